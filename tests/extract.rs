//! The residual stream, read from real models.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use assert_cmd::Command;
use bidpo_core::data::{ChatTemplate, Prompt, TemplateChoice};
use bidpo_core::extract::{ExtractError, Extractor, residual_norms};
use ggml_grad::llama::{Batch, Context, ContextParams, EvalCallback, Model, ModelParams, Node, Token};
use predicates::prelude::*;
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

const SMOL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const GEMMA: &str = "gemma-3-270m-q4_k_m.gguf";
const PROMPTS: &str =
    "What is the capital of France?\n\nThe spider has eight legs.\nWater boils at a hundred degrees.\n";

fn load(name: &str) -> Option<Arc<Model>> {
    Some(Model::load(&common::model(name)?, &ModelParams::default()).unwrap())
}

fn tokens(model: &Model) -> Vec<Vec<Token>> {
    let none = ChatTemplate::new(model, &TemplateChoice::None).unwrap();
    let lines = PROMPTS.lines().filter(|l| !l.is_empty());
    lines.map(|l| none.encode_prompt(model, &Prompt::Text(l.into())).unwrap()).collect()
}

/// Largest difference of two rows relative to the length of the first.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut a.iter().copied())
}

/// Runs the binary and returns the tensors: name -> (shape, values).
fn extract(model: &Path, folder: &Path, more: &[&str]) -> BTreeMap<String, (Vec<usize>, Vec<f64>)> {
    let (data, out) = (folder.join("prompts.txt"), folder.join("acts.safetensors"));
    std::fs::write(&data, PROMPTS).unwrap();
    let mut command = Command::cargo_bin("bidpo").unwrap();
    command.env("BIDPO_THREADS", "1").arg("extract").arg("-m").arg(model).arg("-d").arg(&data).arg("-o").arg(&out);
    command.args(more).assert().success();
    let bytes = std::fs::read(&out).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let read = |t: &safetensors::tensor::TensorView| match t.dtype() {
        safetensors::Dtype::F32 => {
            t.data().chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
        }
        _ => t.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).collect::<Vec<_>>(),
    };
    file.iter().map(|(name, t)| (name.to_owned(), (t.shape().to_vec(), read(&t)))).collect()
}

#[test]
fn shards_are_rows_of_the_whole() {
    let Some(model) = common::model(SMOL) else { return };
    let folder = tempfile::tempdir().unwrap();
    let run =
        |shard: &str| extract(&model, folder.path(), &["--layers", "7", "--shard", shard]).remove("layer.7").unwrap();
    let (whole, odd, even) = (run("1/1"), run("1/2"), run("2/2"));
    let n = whole.0[1];
    assert_eq!((whole.0[0], &odd.0, &even.0), (3, &vec![2, n], &vec![1, n]));
    assert_eq!((&whole.1[..n], &whole.1[n..2 * n], &whole.1[2 * n..]), (&odd.1[..n], &even.1[..], &odd.1[n..]));
    let mut command = Command::cargo_bin("bidpo").unwrap();
    command
        .args(["extract", "--layers", "7", "--shard", "4/4", "-o"])
        .arg(folder.path().join("x"))
        .arg("-m")
        .arg(&model);
    command.arg("-d").arg(folder.path().join("prompts.txt"));
    command.assert().code(1).stderr(predicate::str::contains("shard 4/4 holds none of the 3 prompts"));
}

#[test]
fn last_and_mean_follow_from_all() {
    for name in [SMOL, GEMMA] {
        let Some(model) = load(name) else { continue };
        let n_embd = model.n_embd();
        let top = model.n_layer() - 1;
        let layers = format!("0,7,{top}");
        let folder = tempfile::tempdir().unwrap();
        let run =
            |positions: &str| extract(model.path(), folder.path(), &["--layers", &layers, "--positions", positions]);
        let (last, all, mean) = (run("last"), run("all"), run("mean"));
        let prompts = tokens(&model);
        let n_tokens: usize = prompts.iter().map(Vec::len).sum();

        let offsets: Vec<usize> = all["prompt_offsets"].1.iter().map(|&o| o as usize).collect();
        assert_eq!(offsets.len(), 4);
        assert!(prompts.iter().enumerate().all(|(i, p)| offsets[i + 1] - offsets[i] == p.len()));
        for layer in [0, 7, top] {
            let key = format!("layer.{layer}");
            assert_eq!(last[&key].0, [3, n_embd]);
            assert_eq!(mean[&key].0, [3, n_embd]);
            assert_eq!(all[&key].0, [n_tokens, n_embd]);
            for i in 0..3 {
                let rows = &all[&key].1[offsets[i] * n_embd..offsets[i + 1] * n_embd];
                assert_eq!(last[&key].1[i * n_embd..][..n_embd], rows[rows.len() - n_embd..]);
                for j in 0..n_embd {
                    let expected = rows[j..].iter().step_by(n_embd).sum::<f64>() / prompts[i].len() as f64;
                    let got = mean[&key].1[i * n_embd + j];
                    assert!((got - expected).abs() <= 1e-6 * expected.abs().max(1e-3), "{got} {expected}");
                }
            }
        }
        assert!(!last.contains_key("prompt_offsets"));
        assert_eq!(last.len(), 3);
    }
}

/// The point that is read is the point that is steered: a control vector at layer L moves layer L's rows by exactly
/// itself, and no row of a lower layer.
#[test]
fn layers_are_counted_as_llama_cpp_steers_them() {
    struct Spy {
        n_rows: usize,
        seen: BTreeMap<String, Vec<f32>>,
    }
    impl EvalCallback for Spy {
        fn wants(&mut self, node: &Node) -> bool {
            node.name().starts_with("l_out-") && node.ne()[1] == self.n_rows
        }
        fn computed(&mut self, node: &Node) -> bool {
            self.seen.insert(node.name(), node.read_f32());
            true
        }
    }
    for name in [SMOL, GEMMA] {
        let Some(model) = load(name) else { continue };
        let (n_layer, n_embd, layer) = (model.n_layer(), model.n_embd(), 7);
        let prompt = &tokens(&model)[1];
        let plain = Extractor::new(&model, &[layer - 1, layer, layer + 1], 64, 1).unwrap().run(prompt, 1).unwrap();

        let mut ctx = Context::new(&model, &ContextParams::exact(prompt.len(), 1, 1)).unwrap();
        let mut data = vec![0.0f32; (n_layer - 1) * n_embd];
        let direction: Vec<f32> = (0..n_embd).map(|i| (i % 13) as f32 - 6.0).collect();
        data[(layer - 1) * n_embd..layer * n_embd].copy_from_slice(&direction);
        ctx.set_control_vector(&data, layer, layer).unwrap();
        let mut batch = Batch::new();
        for (i, &t) in prompt.iter().enumerate() {
            batch.add(t, i, &[0], true);
        }
        let mut spy = Spy { n_rows: prompt.len(), seen: BTreeMap::new() };
        ctx.decode_with_callback(&batch, &mut spy).unwrap();
        assert_eq!(spy.seen[&format!("l_out-{}", layer - 1)], plain[&(layer - 1)], "{name}: below the vector");
        let moved: Vec<f32> = plain[&layer].iter().enumerate().map(|(i, x)| x + direction[i % n_embd]).collect();
        assert_eq!(spy.seen[&format!("l_out-{layer}")], moved, "{name}: at the vector");
        assert!(distance(&plain[&(layer + 1)], &spy.seen[&format!("l_out-{}", layer + 1)]) > 1e-3, "{name}: above it");
    }
}

#[test]
fn stopping_batching_and_neighbours_change_nothing() {
    let Some(model) = load(SMOL) else { return };
    let top = model.n_layer() - 1;
    let prompts = tokens(&model);
    let run = |layers: &[usize], prompts: &[&Vec<Token>]| {
        let mut extractor = Extractor::new(&model, layers, 700, 1).unwrap();
        prompts.iter().map(|p| extractor.run(p, 1).unwrap()).collect::<Vec<_>>()
    };
    let stopped = &run(&[5], &[&prompts[0]])[0][&5];
    assert_eq!(stopped, &run(&[5, top], &[&prompts[0]])[0][&5], "where the graph stops does not matter");
    let after_others = run(&[5], &[&prompts[2], &prompts[1], &prompts[0]]);
    assert_eq!(stopped, &after_others[2][&5], "what ran before does not matter");

    // A long prompt runs in several passes (of 512 tokens at most).
    let long: Vec<Token> = prompts.concat().into_iter().cycle().take(700).collect();
    let (one, two) = (run(&[5], &[&long]), run(&[5, top], &[&long]));
    assert_eq!(two[0][&top].len(), 700 * model.n_embd());
    assert!(distance(&one[0][&5], &two[0][&5]) < 1e-2, "{}", distance(&one[0][&5], &two[0][&5]));

    // Two prompts as two sequences of one batch give what each gives alone.
    struct Spy(Vec<f32>);
    impl EvalCallback for Spy {
        fn wants(&mut self, node: &Node) -> bool {
            node.name() == "l_out-5"
        }
        fn computed(&mut self, node: &Node) -> bool {
            self.0 = node.read_f32();
            false
        }
    }
    let mut batch = Batch::new();
    for (seq, prompt) in prompts[..2].iter().enumerate() {
        for (i, &t) in prompt.iter().enumerate() {
            batch.add(t, i, &[seq as i32], true);
        }
    }
    let mut ctx = Context::new(&model, &ContextParams::exact(batch.len(), 2, 1)).unwrap();
    let mut spy = Spy(Vec::new());
    ctx.decode_with_callback(&batch, &mut spy).unwrap();
    let alone = [stopped.clone(), run(&[5], &[&prompts[1]])[0][&5].clone()].concat();
    assert!(distance(&alone, &spy.0) < 1e-3, "{}", distance(&alone, &spy.0));
}

/// The reference files give the residual norms of their pairs (PyTorch, f32).
#[test]
fn norms_agree_with_the_reference() {
    for (name, gold, layer) in [(SMOL, "smol_il15_v0_Dp1.json", 15), (GEMMA, "gemma_il9_v0_Dp1.json", 9)] {
        let Some(model) = load(name) else { continue };
        let gold: serde_json::Value = serde_json::from_slice(&std::fs::read(common::gold(gold)).unwrap()).unwrap();
        let ids = |v: &serde_json::Value| -> Vec<Token> {
            v.as_array().unwrap().iter().map(|t| t.as_i64().unwrap() as Token).collect()
        };
        let prompts: Vec<Vec<Token>> = gold["pairs"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|p| ["chosen_ids", "rejected_ids"].map(|r| [ids(&p["prompt_ids"]), ids(&p[r])].concat()))
            .collect();
        let stats = residual_norms(&model, &[layer], &prompts, 1).unwrap()[&layer];
        let expected = |key: &str| gold[key].as_f64().unwrap();
        let (median, mean) = (expected("residual_norm_median"), expected("residual_norm_mean"));
        println!("{name}: median {} ({median}), mean {} ({mean}), n {}", stats.median, stats.mean, stats.n);
        assert!((stats.median / median - 1.0).abs() < 0.03, "{} {median}", stats.median);
        assert!((stats.mean / mean - 1.0).abs() < 0.03, "{} {mean}", stats.mean);
    }
}

#[test]
fn the_same_run_writes_the_same_bytes() {
    let Some(model) = common::model(SMOL) else { return };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("acts.safetensors");
    let bytes = || {
        extract(&model, folder.path(), &["--layers", "2,1", "--template", "auto", "--json"]);
        std::fs::read(&out).unwrap()
    };
    let first = bytes();
    assert_eq!(first, bytes());
    let (_, header) = SafeTensors::read_metadata(&first).unwrap();
    let meta = header.metadata().as_ref().unwrap();
    assert_eq!((meta["template"].as_str(), meta["positions"].as_str()), ("gguf", "last"));
    assert_eq!(meta["n_prompts"], "3");
    assert!(meta["layer_convention"].contains("after block N") && meta["model_sha256"].len() == 64);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "no temporary file is left");
}

#[test]
fn bad_input_gets_a_clear_error() {
    let Some(model) = common::model(SMOL) else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let write = |name: &str, text: &str| {
        std::fs::write(folder.path().join(name), text).unwrap();
        path(name)
    };
    let (good, empty) = (write("good.txt", PROMPTS), write("empty.txt", "\n\n"));
    let broken = write("broken.jsonl", "{\"prompt\": \"a\"}\n{\"prompt\": \n");
    let out = write("old.safetensors", "what was there before");
    let fails = |data: &str, layers: &str, out: &str, code: i32, message: &str| {
        let mut command = Command::cargo_bin("bidpo").unwrap();
        command.arg("extract").arg("-m").arg(&model).args(["-d", data, "--layers", layers, "-o", out, "--force"]);
        command.assert().code(code).stdout("").stderr(predicate::str::contains(message));
    };
    fails("no/such.txt", "1", &out, 1, "no/such.txt");
    fails(&empty, "1", &out, 1, "holds no prompt");
    fails(&broken, "1", &out, 1, "broken.jsonl:2");
    fails(&good, "30", &out, 1, "layers 0 to 29");
    fails(&good, "ten", &out, 2, "is not a list of layers");
    fails(&good, "1", "no/such/folder/o.safetensors", 1, "no/such/folder");
    fails(&good, "1", folder.path().to_str().unwrap(), 1, "it is a directory");
    let long = write("long.txt", &"word ".repeat(9000));
    fails(&long, "1", &out, 1, "prompt 1 has");
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "what was there before", "a failed run destroys nothing");

    let model = Model::load(&model, &ModelParams::default()).unwrap();
    assert!(matches!(Extractor::new(&model, &[], 10, 1), Err(ExtractError::NoLayers)));
    let mut extractor = Extractor::new(&model, &[1], 10, 1).unwrap();
    assert!(matches!(extractor.run(&[], 4), Err(ExtractError::EmptyPrompt { number: 4 })));
    assert!(matches!(residual_norms(&model, &[1], &[], 1), Err(ExtractError::NoPrompts)));
}
