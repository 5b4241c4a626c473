//! LoRA adapters in the commands, on a model of random weights and on a real one.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use assert_cmd::Command;
use bidpo_core::adapter::{AdapterFile, AdapterKind, Target};
use bidpo_core::chat::{GenerateOptions, Generator, GeneratorParams};
use bidpo_core::data::{ChatTemplate, PreferenceSet, TemplateChoice};
use bidpo_core::extract::Extractor;
use bidpo_core::steer::{ScaledVector, SteeringVector, combine};
use bidpo_core::train::encode_pair;
use common::adapters::any_adapter;
use ggml_grad::llama::{
    Adapter, Batch, Context, ContextParams, DType, EvalCallback, GgufFile, Model, ModelParams, Node, Token, dequantize,
};
use ggml_grad::synth;
use predicates::prelude::*;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

const MATRICES: [&str; 4] = ["attn_q", "attn_v", "attn_output", "ffn_down"];

fn bidpo() -> Command {
    let mut command = Command::cargo_bin("bidpo").unwrap();
    command.env("BIDPO_THREADS", "1");
    command
}

/// A dial of an adapter or a vector.
fn dial(vector: SteeringVector, scale: f32) -> ScaledVector {
    ScaledVector { name: "v".into(), vector: Arc::new(vector), scale }
}

/// Greedy tokens by llama.cpp alone.
fn greedy(ctx: &mut Context, prompt: &[Token], n: usize) -> Vec<Token> {
    let best = |logits: &[f32]| (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as Token;
    let mut row = ctx.prefill(prompt, 0).unwrap();
    let mut out = Vec::new();
    for at in 0..n {
        let token = best(ctx.logits(row).unwrap());
        out.push(token);
        row = ctx.prefill(&[token], prompt.len() + at).unwrap();
    }
    out
}

/// A dial turned to 0, 0.5, 1 and back gives the tokens of llama.cpp's own adapters, with and without a vector.
#[test]
fn a_dial_is_llama_cpps_own_adapter() {
    let Some(path) = common::model(common::SMOL) else { return };
    let dir = tempfile::tempdir().unwrap();
    let file = any_adapter(dir.path(), &path, "a", &MATRICES, 4, 22.0);
    let model = Model::load(&path, &ModelParams::default()).unwrap();
    let prompt = model.tokenize("The moon is", true, false).unwrap();
    let direction: Vec<f32> = (0..model.n_embd()).map(|i| 3.0 * ((i % 5) as f32 - 2.0)).collect();
    let vector = SteeringVector::single(15, direction.clone(), "llama").unwrap();
    let params = GeneratorParams { n_ctx: 64, n_threads: 1 };
    let mut generator = Generator::new(&model, &params).unwrap();
    let options = GenerateOptions { max_tokens: 8, ..GenerateOptions::default() };
    let adapter = SteeringVector::open_adapter(&file, &model).unwrap();
    let raw = Arc::new(Adapter::load(&model, &file).unwrap());
    let params = ContextParams { n_ctx: 64, n_batch: 64, n_threads: 1, ..ContextParams::default() };
    let mut ctx = Context::new(&model, &params).unwrap();
    let mut texts = Vec::new();
    for (scale, of_vector) in [(0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0), (0.5, 0.0), (0.0, 0.0)] {
        let dials = [dial(adapter.clone(), scale), dial(vector.clone(), of_vector)];
        generator.set_steering(combine(&dials, None, &model).unwrap()).unwrap();
        let ours = generator.generate(&prompt, &options, &mut |_| {}).unwrap().tokens;
        ctx.set_adapters(&[(raw.clone(), scale)]).unwrap();
        if of_vector == 0.0 {
            ctx.clear_control_vector();
        } else {
            ctx.set_layer_vectors(&[15], &direction).unwrap();
        }
        let theirs = greedy(&mut ctx, &prompt, 8);
        assert_eq!(ours, theirs[..ours.len()], "scale {scale}, vector at {of_vector}");
        texts.push(ours);
    }
    assert!(texts[0] == texts[6] && texts[1] == texts[5]);
    let different = texts[..5].iter().collect::<std::collections::BTreeSet<_>>();
    assert_eq!(different.len(), 5, "{texts:?}");
    let percent = combine(&[dial(adapter, f32::NAN)], None, &model);
    assert!(percent.unwrap_err().to_string().contains("finite"));
}

fn json_of(command: &mut Command) -> Value {
    serde_json::from_slice(&command.assert().success().get_output().stdout).unwrap()
}

fn synth(dir: &Path, family: &str) -> std::path::PathBuf {
    let path = dir.join(format!("{family}.gguf"));
    let of = synth::family(family).unwrap();
    synth::write(&path, of, &of.shape(), DType::F32, 1).unwrap();
    path
}

/// `--lora` on generate, chat and eval, with llama.cpp's spellings.
#[test]
fn the_commands_take_adapters() {
    let dir = tempfile::tempdir().unwrap();
    let model = synth(dir.path(), "llama");
    let file = any_adapter(dir.path(), &model, "warm", &MATRICES, 2, 4.0);
    let generate = |args: &[&str]| {
        let mut command = bidpo();
        command.args(["generate", "--json", "--template", "none", "-p", "One two three", "-n", "12", "-m"]).arg(&model);
        command.args(args).current_dir(dir.path());
        json_of(&mut command)
    };
    let plain = generate(&[]);
    let warm = generate(&["--lora", "warm.gguf:1"]);
    assert_ne!(plain["tokens"], warm["tokens"]);
    assert_eq!(warm["vectors"][0]["kind"], "lora");
    assert_eq!(generate(&["--lora", "warm.gguf"])["tokens"], warm["tokens"]);
    assert_eq!(generate(&["--lora", "warm.gguf:0"])["tokens"], plain["tokens"]);
    assert_eq!(generate(&["--lora-scaled", "warm.gguf", "1"])["tokens"], warm["tokens"]);
    assert_eq!(generate(&["--lora-scaled", "warm.gguf:0.5,warm.gguf:0.5"])["tokens"], warm["tokens"]);
    assert_eq!(generate(&["--lora", "warm.gguf:0.5,warm.gguf:0.5"])["tokens"], warm["tokens"]);
    assert_eq!(generate(&["--vector", "warm.gguf"])["tokens"], warm["tokens"], "an adapter is known by its file");
    let swept = generate(&["--lora", "warm.gguf", "--scales", "0,1"]);
    assert_eq!((&swept[0]["tokens"], &swept[1]["tokens"]), (&plain["tokens"], &warm["tokens"]));

    let refused = |args: &[&str], said: &str| {
        let mut command = bidpo();
        command.args(["generate", "-p", "x", "-n", "1", "-m"]).arg(&model).args(args).current_dir(dir.path());
        command.assert().failure().stderr(predicate::str::contains(said));
    };
    refused(&["--lora", "warm.gguf:5%"], "plain number");
    refused(&["--lora", "warm.gguf,other.gguf"], "other.gguf");
    refused(&["--lora", "llama.gguf"], "not an adapter");
    refused(&["--vector", "warm.gguf", "--layers", "1"], "LoRA adapter");
    refused(&["--vector", "warm.gguf", "--scope", "answer"], "LoRA adapter");
    let other = synth(dir.path(), "gemma3");
    let foreign = any_adapter(dir.path(), &other, "foreign", &["attn_q"], 2, 1.0);
    refused(&["--lora", foreign.to_str().unwrap()], "gemma3");

    // A chat dials it by name.
    let mut chat = bidpo();
    chat.args(["chat", "--template", "none", "-n", "4", "--lora", "warm.gguf:0.5", "-m"]).arg(&model);
    chat.current_dir(dir.path())
        .write_stdin("hello\n/scale warm=2\n/scale warm=5%\n/layers\n/off\n/unload warm\n/load warm.gguf cool 1\n");
    chat.assert()
        .success()
        .stderr(predicate::str::contains("warm: scale 2 (LoRA adapter of rank 2)"))
        .stderr(predicate::str::contains("plain number"))
        .stderr(predicate::str::contains("warm at 2, LoRA adapter of rank 2"))
        .stderr(predicate::str::contains("cool: scale 1 (LoRA adapter of rank 2)"));

    // An evaluation names it in its results, and compares with the model as it is.
    let out = dir.path().join("r.jsonl");
    let mut eval = bidpo();
    eval.args(["eval", "text", "--limit", "2", "--json", "--lora"])
        .arg(&file)
        .arg("-o")
        .arg(&out)
        .arg("-m")
        .arg(&model);
    let found = json_of(&mut eval);
    let text = std::fs::read_to_string(&out).unwrap();
    let head: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let manifest = &head["manifest"];
    let conditions: Vec<&str> =
        manifest["conditions"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(conditions, ["unsteered", "steered", "sign flipped"]);
    assert_eq!(manifest["conditions"][1]["vectors"][0]["adapter"]["ranks"], serde_json::json!([2, 2]));
    assert_ne!(manifest["conditions"][1]["control_sha256"], manifest["conditions"][2]["control_sha256"]);
    assert!(found.to_string().contains("steered"));
}

/// Outputs of all blocks at each position, `[n_layer][n_tokens * n_embd]`.
fn block_outputs(ctx: &mut Context, tokens: &[Token]) -> Vec<Vec<f32>> {
    struct Outputs(Vec<Vec<f32>>);
    impl EvalCallback for Outputs {
        fn wants(&mut self, node: &Node<'_>) -> bool {
            node.block_output().is_some() && node.is_computed()
        }
        fn computed(&mut self, node: &Node<'_>) -> bool {
            self.0[node.block_output().unwrap()] = node.read_f32();
            true
        }
    }
    let mut batch = Batch::new();
    tokens.iter().enumerate().for_each(|(at, &t)| {
        batch.add(t, at, &[0], true);
    });
    let mut outputs = Outputs(vec![Vec::new(); ctx.model().n_layer()]);
    ctx.clear_kv();
    ctx.decode_with_callback(&batch, &mut outputs).unwrap();
    outputs.0
}

/// After each block the residual stream's component along the direction is what the embedding left, within rounding.
#[test]
fn an_ablation_leaves_what_the_embedding_has() {
    let dir = tempfile::tempdir().unwrap();
    for family in ["llama", "qwen3moe"] {
        let path = synth(dir.path(), family);
        let model = Model::load(&path, &ModelParams::default()).unwrap();
        let n = model.n_embd();
        let direction: Vec<f32> = (0..n).map(|i| ((i * 13 % 7) as f32 - 3.0) * 0.2).collect();
        let vector = dir.path().join("direction.gguf");
        SteeringVector::single(1, direction.clone(), model.architecture()).unwrap().save(&vector).unwrap();
        let out = dir.path().join("ablate.gguf");
        let mut command = bidpo();
        command.args(["--force", "vector", "ablate"]).arg(&vector).arg("-m").arg(&path).arg("-o").arg(&out);
        command
            .assert()
            .success()
            .stderr(predicate::str::contains("embedding"))
            .stdout(predicate::str::contains("rank 1"));

        let length = direction.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let along =
            |row: &[f32]| row.iter().zip(&direction).map(|(&x, &u)| f64::from(x) * f64::from(u)).sum::<f64>() / length;
        let file = GgufFile::open(&path).unwrap();
        let (_, dtype, ne) = file.tensors().find(|t| t.0 == "token_embd.weight").unwrap();
        let mut bytes = Vec::new();
        file.read_pieces("token_embd.weight", 1 << 20, &mut |piece| bytes.extend_from_slice(piece)).unwrap();
        let table = dequantize(dtype, &bytes);
        let params = ContextParams { n_ctx: 64, n_batch: 64, n_threads: 1, ..ContextParams::default() };
        let mut ctx = Context::new(&model, &params).unwrap();
        let tokens: Vec<Token> = (3..11).collect();
        let before = block_outputs(&mut ctx, &tokens);
        let adapter = Arc::new(Adapter::load(&model, &out).unwrap());
        ctx.set_adapters(&[(adapter, 1.0)]).unwrap();
        let after = block_outputs(&mut ctx, &tokens);
        let (mut kept, mut removed) = (0.0f64, 0.0f64);
        for (layer, rows) in after.iter().enumerate() {
            assert_eq!(rows.len(), tokens.len() * n, "{family}: block {layer}");
            for ((row, plain), &token) in rows.chunks(n).zip(before[layer].chunks(n)).zip(&tokens) {
                let embedded = along(&table[token as usize * ne[0]..][..ne[0]]);
                kept = kept.max((along(row) - embedded).abs());
                removed = removed.max((along(plain) - embedded).abs());
            }
        }
        assert!(removed > 0.05, "{family}: the blocks write nothing along the direction: {removed}");
        assert!(kept < 1e-4 * removed.max(1.0), "{family}: {kept} is left of {removed}");
    }
    // Where it is not exact it is said; another model's direction is refused.
    let gemma = synth(dir.path(), "gemma3");
    let width = Model::load(&gemma, &ModelParams::default()).unwrap().n_embd();
    let vector = dir.path().join("direction.gguf");
    SteeringVector::single(1, vec![1.0; width], "gemma3").unwrap().save(&vector).unwrap();
    let ablate = |more: &[&str]| {
        let mut command = bidpo();
        command
            .args(["--force", "vector", "ablate"])
            .arg(&vector)
            .arg("-m")
            .arg(&gemma)
            .arg("-o")
            .arg(dir.path().join("g.gguf"));
        command.args(more);
        command.assert()
    };
    ablate(&[]).success().stderr(predicate::str::contains("post_attention_norm"));
    ablate(&["--blocks", "1"]).success().stderr(predicate::str::contains("--blocks"));
    ablate(&["--layer", "2"]).failure().stderr(predicate::str::contains("no direction for layer 2"));
    ablate(&["--strength", "nan"]).failure();
    SteeringVector::single(1, vec![1.0; width + 1], "gemma3").unwrap().save(&vector).unwrap();
    ablate(&[]).failure().stderr(predicate::str::contains("another model"));
}

/// What a file does on a model: its parts, its strength, its sign, its layers, and the exit code.
#[test]
fn files_are_verified() {
    let dir = tempfile::tempdir().unwrap();
    let path = synth(dir.path(), "llama");
    let model = Model::load(&path, &ModelParams::default()).unwrap();
    let at = |name: &str| dir.path().join(name);
    let pairs = at("pairs.jsonl");
    let line = |i: usize| {
        format!(
            "{{\"prompt\": \"say {i}\", \"chosen\": \"one two three {i}\", \"rejected\": \"nine ten seven {i}\"}}\n"
        )
    };
    std::fs::write(&pairs, (0..6).map(line).collect::<String>()).unwrap();
    let verify = |file: &Path, more: &[&str]| -> (bool, Value) {
        let mut command = bidpo();
        command.env("BIDPO_NEUTRAL_PASSAGES", "2").args(["verify", "--json", "--template", "none"]).arg(file);
        command.arg("-m").arg(&path).args(more);
        let out = command.output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        (out.status.success(), serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {said}")))
    };
    let with_pairs = ["--pairs", pairs.to_str().unwrap()];

    // The mean difference of activations of these pairs: at its own block, one block too high, and turned.
    let encoded: Vec<_> = {
        let template = ChatTemplate::new(&model, &TemplateChoice::None).unwrap();
        let set = PreferenceSet::load(&pairs).unwrap().pairs;
        set.iter().map(|p| encode_pair(p, &model, &template, None).unwrap().tokens).collect()
    };
    let mut extractor = Extractor::new(&model, &[0, 1, 2], 64, 1).unwrap();
    let n = model.n_embd();
    let mut sums = vec![vec![0.0f32; n]; 3];
    for pair in &encoded {
        for (answer, sign) in [(&pair.chosen, 1.0), (&pair.rejected, -1.0)] {
            let tokens = [&pair.prompt[..], answer].concat();
            for (block, rows) in extractor.run(&tokens, 1).unwrap() {
                for row in rows.chunks(n).skip(pair.prompt.len()) {
                    sums[block].iter_mut().zip(row).for_each(|(s, x)| *s += sign * x / answer.len() as f32);
                }
            }
        }
    }
    let save = |name: &str, layer: usize, values: &[f32]| {
        let file = at(name);
        SteeringVector::single(layer, values.to_vec(), "llama").unwrap().save(&file).unwrap();
        file
    };
    let own = save("own.gguf", 2, &sums[2]);
    let (ok, found) = verify(&own, &[]);
    assert!(ok && found["parts"] == serde_json::json!([{"name": "layer 2", "acts": true}]), "{found}");
    assert!(found["price"]["kl_per_token"]["value"].as_f64().unwrap() > 0.0 && found["sign"].is_null());
    let (_, found) = verify(&own, &with_pairs);
    assert!((found["layers"]["block_n"].as_f64().unwrap() - 1.0).abs() < 1e-3, "{found}");
    let change = found["sign"]["change"].as_f64().unwrap();
    let turned: Vec<f32> = sums[2].iter().map(|x| -x).collect();
    let (_, found) = verify(&save("turned.gguf", 2, &turned), &with_pairs);
    assert!((found["sign"]["change"].as_f64().unwrap() + change).abs() < 1e-3 * change.abs().max(1.0), "{found}");
    let (ok, found) = verify(&save("early.gguf", 2, &sums[1]), &with_pairs);
    assert!(!ok && found["problems"].to_string().contains("block N - 1"), "{found}");

    // A pair that llama.cpp's graph does not multiply with is named, and so is one of zeros.
    let mut adapter = AdapterFile::load(&any_adapter(dir.path(), &path, "a", &["attn_q", "ffn_down"], 2, 1.0)).unwrap();
    let save = |adapter: &AdapterFile| {
        adapter.save(&at("b.gguf"), AdapterKind::F32).unwrap();
        verify(&at("b.gguf"), &[])
    };
    let (ok, found) = save(&adapter);
    assert!(ok && found["kind"] == "lora", "{found}");
    let zero = Target::of("blk.0.attn_q.weight");
    adapter.pairs.get_mut(&zero).unwrap().b.fill(0.0);
    let (ok, found) = save(&adapter);
    assert!(!ok && found["problems"].to_string().contains("blk.0.attn_q.weight"), "{found}");
    adapter.pairs.values_mut().for_each(|p| p.b.fill(0.0));
    let (ok, found) = save(&adapter);
    assert!(!ok && found["problems"].to_string().contains("no logit moves"), "{found}");
    // For people the same.
    let mut command = bidpo();
    command.env("BIDPO_NEUTRAL_PASSAGES", "2").arg("verify").arg(at("b.gguf")).arg("-m").arg(&path);
    command.assert().code(1).stdout(predicate::str::contains("do not use it"));
}

/// What an adapter is, in words and for programs.
#[test]
fn an_adapter_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = synth(dir.path(), "llama");
    let file = any_adapter(dir.path(), &path, "a", &["attn_q", "ffn_down"], 2, 3.0);
    let mut show = bidpo();
    show.args(["vector", "show"]).arg(&file);
    show.assert()
        .success()
        .stdout(predicate::str::contains("LoRA adapter"))
        .stdout(predicate::str::contains("attn_q, ffn_down"))
        .stdout(predicate::str::contains("norm at block 0").and(predicate::str::contains("4.2426")));
    let found = json_of(bidpo().args(["vector", "show", "--json"]).arg(&file));
    assert_eq!((&found[0]["kind"], &found[0]["pairs"][0]["rank"]), (&serde_json::json!("lora"), &serde_json::json!(2)));
    assert!((found[0]["pairs"][0]["norm"].as_f64().unwrap() - 3.0).abs() < 1e-5);
}

/// A merged model is the model with its adapter: the same logits where the weights are floats, and every other tensor as it was.
#[test]
fn a_merge_is_the_adapter_in_the_weights() {
    let dir = tempfile::tempdir().unwrap();
    for (family, dtype, matrices) in [
        ("llama", "f32", &MATRICES[..]),
        ("llama", "q8_0", &MATRICES[..]),
        ("qwen3moe", "f32", &["attn_k", "ffn_down_exps", "ffn_gate_exps"]),
    ] {
        let path = dir.path().join(format!("{family}-{dtype}.gguf"));
        let of = synth::family(family).unwrap();
        synth::write(&path, of, &of.shape(), DType::from_name(dtype).unwrap(), 1).unwrap();
        let adapter = any_adapter(dir.path(), &path, "a", matrices, 2, 2.0);
        let out = dir.path().join("merged.gguf");
        let mut merge = bidpo();
        merge.env("BIDPO_NEUTRAL_PASSAGES", "2").args(["merge", "--json", "--lora"]);
        merge.arg(format!("{}:0.5", adapter.display())).arg("-m").arg(&path).arg("-o").arg(&out);
        let found = json_of(&mut merge);
        let cost = found["cost"]["kl_per_token"]["value"].as_f64().unwrap();
        let own = found["adapter"]["kl_per_token"]["value"].as_f64().unwrap();
        assert!(own > 0.0 && cost < if dtype == "f32" { 1e-6 } else { 0.1 * own }, "{family} {dtype}: {cost} {own}");

        let (before, after) = (GgufFile::open(&path).unwrap(), GgufFile::open(&out).unwrap());
        let bytes = |file: &GgufFile, name: &str| {
            let mut bytes = Vec::new();
            file.read_pieces(name, 1 << 20, &mut |piece| bytes.extend_from_slice(piece)).unwrap();
            bytes
        };
        let mut changed = 0;
        for (name, dtype, ne) in before.tensors() {
            assert!(after.tensors().any(|t| t == (name, dtype, ne)), "{name}");
            let touched = matrices.contains(&Target::of(name).matrix.as_str()) && name.ends_with(".weight");
            assert_eq!(bytes(&before, name) != bytes(&after, name), touched, "{name}");
            changed += usize::from(touched);
        }
        assert_eq!(found["tensors"], changed);
        for (key, value) in before.meta() {
            assert_eq!(after.get(key), Some(value), "{key}");
        }
        // Logits of llama.cpp: the model under the adapter, and the merged one.
        let tokens: Vec<Token> = (3..11).collect();
        let logits = |file: &Path, scale: f32| {
            let model = Model::load(file, &ModelParams::default()).unwrap();
            let params = ContextParams { n_ctx: 64, n_batch: 64, n_threads: 1, ..ContextParams::default() };
            let mut ctx = Context::new(&model, &params).unwrap();
            if scale != 0.0 {
                ctx.set_adapters(&[(Arc::new(Adapter::load(&model, &adapter).unwrap()), scale)]).unwrap();
            }
            let row = ctx.prefill(&tokens, 0).unwrap();
            ctx.logits(row).unwrap().to_vec()
        };
        let far = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        let (plain, adapted, merged) = (logits(&path, 0.0), logits(&path, 0.5), logits(&out, 0.0));
        let (moved, off) = (far(&plain, &adapted), far(&adapted, &merged));
        assert!(off < moved * if dtype == "f32" { 1e-2 } else { 0.3 }, "{family} {dtype}: {off} of {moved}");
    }
    // Another adapter's shapes, and a file of another kind.
    let path = dir.path().join("llama-f32.gguf");
    let refused = |args: &[&str], said: &str| {
        let mut merge = bidpo();
        merge.args(["merge", "-m"]).arg(&path).args(args).current_dir(dir.path());
        merge.assert().failure().stderr(predicate::str::contains(said));
    };
    any_adapter(dir.path(), &path, "b", &["attn_q"], 2, 2.0);
    refused(&["--lora", "b.gguf:0", "-o", "x.gguf"], "nothing to merge");
    refused(&["--lora", "b.gguf", "-o", "b.gguf"], "would replace the input");
    refused(&["--lora", "llama-f32.gguf", "-o", "x.gguf"], "not an adapter");
}

/// To PEFT's folder and back: the same logits, and the rows of Q and K in Hugging Face's order in between.
#[test]
fn adapters_go_to_peft_and_back() {
    let dir = tempfile::tempdir().unwrap();
    for family in ["llama", "qwen2"] {
        let path = synth(dir.path(), family);
        let all = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
        let file = any_adapter(dir.path(), &path, "a", &all, 2, 2.0);
        let (folder, back) = (dir.path().join(family), dir.path().join(format!("{family}-back.gguf")));
        for (from, to) in [(&file, &folder), (&folder, &back)] {
            let mut convert = bidpo();
            convert.args(["vector", "convert"]).arg(from).arg("-o").arg(to).arg("-m").arg(&path);
            convert.assert().success().stdout(predicate::str::contains("matrices"));
        }
        let (a, b) = (AdapterFile::load(&file).unwrap(), AdapterFile::load(&back).unwrap());
        assert_eq!((&a.pairs, a.alpha), (&b.pairs, b.alpha));
        let bytes = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let name = |half: &str| format!("base_model.model.model.layers.0.self_attn.q_proj.lora_{half}.weight");
        let theirs = tensors.tensor(&name("B")).unwrap();
        let pair = &a.pairs[&Target::of("blk.0.attn_q.weight")];
        assert_eq!(theirs.shape(), [pair.n_out, pair.rank]);
        assert_eq!(tensors.tensor(&name("A")).unwrap().shape(), [pair.rank, pair.n_in]);
        let ours: Vec<u8> = pair.b.iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(theirs.data() == ours, family == "qwen2", "rows are moved in llama's files only");
    }
    let refused = |args: &[&str], said: &str| {
        let mut convert = bidpo();
        convert.args(["vector", "convert"]).args(args).current_dir(dir.path());
        convert.assert().failure().stderr(predicate::str::contains(said));
    };
    refused(&["a.gguf", "-o", "folder"], "--model");
    refused(&["a.gguf", "-o", "x.npy", "-m", "qwen2.gguf"], "PEFT folder");
    refused(&["a.gguf", "-o", ".", "-m", "qwen2.gguf"], "something else");
    refused(&["a.gguf", "-o", "y", "-m", "llama.gguf"], "the model is llama");
}

/// The folder for PEFT gives in transformers the logits that llama.cpp has under the adapter: tests/gold/peft_logits.py.
#[test]
fn peft_has_the_same_logits() {
    let Some(path) = common::model(common::SMOL) else { return };
    let gold: Value = serde_json::from_slice(&std::fs::read(common::gold("peft_logits.json")).unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let all = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
    let file = any_adapter(dir.path(), &path, "peft", &all, 4, 12.0);
    let folder = dir.path().join("folder");
    let mut convert = bidpo();
    convert.args(["vector", "convert"]).arg(&file).arg("-o").arg(&folder).arg("-m").arg(&path).assert().success();
    let sha256 = ggml_grad::files::sha256_of_file(&folder.join("adapter_model.safetensors")).unwrap();
    assert_eq!(gold["weights_sha256"], sha256, "the reference is of another folder");

    let whole = dir.path().join("f32.gguf");
    ggml_grad::llama::to_f32(&path, &whole).unwrap();
    let model = Model::load(&whole, &ModelParams::default()).unwrap();
    let params = ContextParams { n_ctx: 64, n_batch: 64, n_threads: 1, ..ContextParams::default() };
    let mut ctx = Context::new(&model, &params).unwrap();
    let tokens: Vec<Token> = serde_json::from_value(gold["prompt"].clone()).unwrap();
    let places: Vec<usize> = serde_json::from_value(gold["places"].clone()).unwrap();
    let adapter = Arc::new(Adapter::load(&model, &file).unwrap());
    let mut farthest = [0.0f32; 3];
    let theirs = |key: &str| -> Vec<f32> { serde_json::from_value(gold[key].clone()).unwrap() };
    for (i, (key, scale)) in [("plain", 0.0), ("adapted", 1.0)].into_iter().enumerate() {
        ctx.set_adapters(&[(adapter.clone(), scale)]).unwrap();
        let row = ctx.prefill(&tokens, 0).unwrap();
        let logits = ctx.logits(row).unwrap();
        for (&place, x) in places.iter().zip(theirs(key)) {
            farthest[i] = farthest[i].max((logits[place] - x).abs());
        }
    }
    for (x, y) in theirs("plain").iter().zip(theirs("adapted")) {
        farthest[2] = farthest[2].max((x - y).abs());
    }
    let [plain, adapted, moved] = farthest;
    assert!(
        moved > 1.0 && plain < 2e-2 && adapted < 2e-2,
        "{plain} without and {adapted} with an adapter that moves {moved}"
    );
}
