//! The other programs that write and read control vectors: llama.cpp's server and cvector-generator, repeng, numpy,
//! safetensors and gguf. docs/vector-file.md says how to have them.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use assert_cmd::Command;
use bidpo_core::adapter::{AdapterFile, AdapterKind, LowRank, Target};
use bidpo_core::layers::Layers;
use bidpo_core::steer::{Convention, SteeringVector};
use common::adapters::any_adapter;
use ggml_grad::llama::{Model, ModelParams};
use predicates::prelude::*;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

fn bidpo() -> Command {
    let mut command = Command::cargo_bin("bidpo").unwrap();
    command.env("BIDPO_THREADS", "1");
    command
}

fn shipped(set: &str, model: &str) -> PathBuf {
    let name = format!("vectors/{set}.{}.gguf", model.trim_end_matches(".gguf"));
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// llama.cpp's server with some arguments, ended with the value.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(program: &Path, model: &Path, args: &[String]) -> Self {
        // A port that was free a moment ago.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = std::process::Command::new(program)
            .args(["--host", "127.0.0.1", "-t", "1", "-c", "512", "-np", "1", "--port"])
            .arg(port.to_string())
            .arg("-m")
            .arg(model)
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", program.display()));
        let mut server = Self { child, port };
        let start = Instant::now();
        while server.ask("GET", "/health", &Value::Null).is_none_or(|(status, _)| status != 200) {
            assert!(server.child.try_wait().unwrap().is_none(), "llama-server ended at once: {args:?}");
            assert!(start.elapsed() < Duration::from_secs(60), "llama-server does not come up");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    /// Status and body; `None` where nobody listens yet.
    fn ask(&self, method: &str, path: &str, body: &Value) -> Option<(u16, Value)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        let body = if body.is_null() { String::new() } else { body.to_string() };
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, serde_json::from_str(body).unwrap_or(Value::Null)))
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = self.ask("POST", path, body).expect("llama-server answers");
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A vector steers llama.cpp's own server to the same tokens as bidpo, the weights as they lie in the file on both sides. (The
/// kernels for repacked weights round differently, by the number of rows computed together too.)
#[test]
fn llama_server_writes_the_same_text() {
    let Some(program) = common::program("BIDPO_LLAMA_SERVER") else { return };
    const N: usize = 48;
    for model in [common::SMOL, common::GEMMA] {
        let Some(path) = common::model(model) else { return };
        let vectors = [shipped("plain-vs-flowery", model), shipped("misconceptions", model)];
        let mut texts = Vec::new();
        for scales in [[1.5, 0.0], [-2.0, 0.0], [0.5, -1.5]] {
            let used: Vec<_> = vectors.iter().zip(scales).filter(|(_, s)| *s != 0.0).collect();
            let list: Vec<String> = used.iter().map(|(v, s)| format!("{}:{s}", v.display())).collect();
            let args = ["--no-repack", "--control-vector-scaled", &list.join(",")].map(ToOwned::to_owned);
            let server = Server::start(&program, &path, &args);
            let ours = |more: &[&str]| -> Value {
                let mut command = bidpo();
                command.args(["generate", "--json", "-n", &N.to_string(), "-m"]).arg(&path).args(more);
                for (vector, scale) in &used {
                    command.arg("--vector").arg(vector).arg(format!("--scale={scale}"));
                }
                serde_json::from_slice(&command.assert().success().get_output().stdout).unwrap()
            };
            for prompt in ["The moon is", "My favourite tea is"] {
                let theirs = server.post(
                    "/completion",
                    &json!({ "prompt": prompt, "n_predict": N, "temperature": 0, "return_tokens": true }),
                );
                let ours = ours(&["--template", "none", "-p", prompt]);
                let mut tokens = theirs["tokens"].as_array().unwrap().clone();
                if theirs["stop_type"] == "eos" {
                    tokens.pop(); // the token that ends the text is not counted as text by bidpo
                }
                assert_eq!(ours["tokens"], json!(tokens), "{model} {scales:?}: {ours} {theirs}");
                assert_eq!(ours["stop"] == "end_of_turn", theirs["stop_type"] == "eos");
                // llama-server's content keeps a leading space, as bidpo's text does.
                assert_eq!(ours["text"], theirs["content"]);
                texts.push(ours["text"].clone());
            }
            if model == common::SMOL {
                let question = "What is a lighthouse for?";
                let messages = json!([{ "role": "user", "content": question }]);
                let theirs = server
                    .post("/v1/chat/completions", &json!({ "messages": messages, "max_tokens": N, "temperature": 0 }));
                assert_eq!(ours(&["-p", question])["text"], theirs["choices"][0]["message"]["content"]);
            }
        }
        assert!(texts[0] != texts[2] && texts[2] != texts[4], "the scales must matter: {texts:?}");
    }
}

/// Adapters that each request turns by its field `lora` write bidpo's text: pairs in all blocks at scales 0, 0.5 and 1, and a pair of
/// rank 1 on one matrix, which is a vector whose strength depends on the token.
#[test]
fn llama_server_turns_adapters_by_request() {
    let Some(program) = common::program("BIDPO_LLAMA_SERVER") else { return };
    let Some(path) = common::model(common::SMOL) else { return };
    const N: usize = 24;
    let folder = tempfile::tempdir().unwrap();
    let wide = any_adapter(folder.path(), &path, "wide", &["attn_q", "attn_v", "attn_output", "ffn_down"], 4, 22.0);
    let gate = any_adapter(folder.path(), &path, "gate", &["ffn_down"], 1, 400.0);
    let mut file = AdapterFile::load(&gate).unwrap();
    file.pairs.retain(|target, _| target.layer == Some(15));
    file.save(&gate, AdapterKind::F32).unwrap();
    let text = |path: &Path| path.display().to_string();
    let args = ["--no-repack", "--lora-init-without-apply", "--lora", &text(&wide), "--lora", &text(&gate)];
    let server = Server::start(&program, &path, &args.map(ToOwned::to_owned));
    let prompt = "My favourite tea is";
    let mut texts = Vec::new();
    for scales in [[0.0, 0.0], [0.5, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.5, 1.0], [0.0, 0.0]] {
        let lora: Vec<Value> =
            scales.iter().enumerate().map(|(id, scale)| json!({ "id": id, "scale": scale })).collect();
        // It keeps the prompt's keys and values also where `lora` has changed in between.
        let theirs = server.post(
            "/completion",
            &json!({
                "prompt": prompt, "n_predict": N, "temperature": 0, "return_tokens": true, "cache_prompt": false, "lora": lora,
            }),
        );
        let mut command = bidpo();
        command.args(["generate", "--json", "-n", &N.to_string(), "--template", "none", "-p", prompt, "-m"]).arg(&path);
        for (file, scale) in [&wide, &gate].into_iter().zip(scales) {
            command.arg("--lora").arg(format!("{}:{scale}", file.display()));
        }
        let ours: Value = serde_json::from_slice(&command.assert().success().get_output().stdout).unwrap();
        let mut tokens = theirs["tokens"].as_array().unwrap().clone();
        if theirs["stop_type"] == "eos" {
            tokens.pop(); // the token that ends the text is not counted as text by bidpo
        }
        assert_eq!(ours["tokens"], json!(tokens), "{scales:?}: {ours} {theirs}");
        texts.push(ours["text"].clone());
    }
    assert_eq!(texts[0], texts[6], "turned off again");
    for (i, text) in texts[1..6].iter().enumerate() {
        assert!(texts[..=i].iter().all(|earlier| earlier != text), "the scales must matter: {texts:?}");
    }
}

/// The real cvector-generator measures `direction.N` at the output of block N - 1: bidpo's own activations say so. Read with
/// that convention, its file steers where it was measured.
#[test]
fn the_cvector_generator_measures_one_block_earlier() {
    let Some(program) = common::program("BIDPO_CVECTOR_GENERATOR") else { return };
    let Some(path) = common::model(common::SMOL) else { return };
    let folder = tempfile::tempdir().unwrap();
    let pairs = [
        ("The meal was wonderful, and I enjoyed it.", "The meal was terrible, and I hated it."),
        ("I love this song.", "I hate this song."),
        ("What a bright and happy day!", "What a dark and gloomy day!"),
    ];
    let file = |name: &str| folder.path().join(name);
    let lines =
        |side: fn(&(&'static str, &'static str)) -> &'static str| pairs.iter().map(side).collect::<Vec<_>>().join("\n");
    std::fs::write(file("positive.txt"), lines(|p| p.0)).unwrap();
    std::fs::write(file("negative.txt"), lines(|p| p.1)).unwrap();
    let out = file("generated.gguf");
    let run = std::process::Command::new(program)
        .args(["--method", "mean", "-t", "1", "-fa", "off", "-ctk", "f32", "-ctv", "f32", "--no-repack", "-m"])
        .arg(&path)
        .arg("--positive-file")
        .arg(file("positive.txt"))
        .arg("--negative-file")
        .arg(file("negative.txt"))
        .arg("-o")
        .arg(&out)
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let generated = SteeringVector::load(&out).unwrap();
    let n_layer = 30;
    assert_eq!((generated.layers(), generated.n_embd()), ((1..n_layer).collect(), 576));

    // Its mean differences, with bidpo's activations.
    let model = Model::load(&path, &ModelParams::default()).unwrap();
    let sums = common::generator::differences(&model, &pairs, &generated.layers());
    let measured = SteeringVector {
        rows: None,
        adapter: None,
        scope: Default::default(),
        directions: sums.into_iter().map(|(n, s)| (n, s.into_iter().map(|x| x as f32).collect())).collect(),
        model_hint: "llama".into(),
        provenance: Default::default(),
    };
    let cosines = |a: &SteeringVector, b: &SteeringVector| -> Vec<f64> {
        a.compare(b).unwrap().layers.iter().filter_map(|l| l.cosine).collect()
    };
    let same = cosines(&generated, &measured);
    assert!(same.len() == n_layer - 1 && same.iter().all(|c| *c > 0.999), "direction.N is block N - 1: {same:?}");

    // Moved to where it was measured it is what bidpo's layer N says, and one layer off it is not.
    let moved = generated.clone().normalized(Convention::Generator).unwrap();
    assert!(moved.lost_block_0);
    let own = measured.normalized(Convention::Generator).unwrap().vector;
    assert!(cosines(&moved.vector, &own).iter().all(|c| *c > 0.999));
    let off = cosines(&generated, &own);
    assert!(off.iter().any(|c| *c < 0.97), "neighbouring layers are too alike for this to mean anything: {off:?}");

    // And it loads wherever a vector does.
    for convention in ["output", "generator"] {
        bidpo()
            .args(["generate", "-p", "How was it?", "-n", "4", "--scale", "8", "--convention", convention, "-m"])
            .arg(&path)
            .arg("--vector")
            .arg(&out)
            .assert()
            .success()
            .stderr(predicate::str::contains("left out").count(usize::from(convention == "generator")));
    }
}

fn numbers(layer: usize) -> Vec<f32> {
    (0..64).map(|i| (i as f32 - 31.0) * layer as f32 / 4.0).collect()
}

fn vector() -> SteeringVector {
    let layers: Layers = "2-3,10".parse().unwrap();
    let values: Vec<f32> = [2, 3, 10].into_iter().flat_map(numbers).collect();
    SteeringVector::from_layers(&layers, &values, "llama").unwrap()
}

/// Files of Python's numpy, safetensors and gguf packages, and of repeng's own export, load; all hold the same vector.
#[test]
fn files_of_python_packages_load() {
    let Some(mut python) = common::python_packages() else { return };
    let folder = tempfile::tempdir().unwrap();
    let run = python.arg("write").arg(folder.path()).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let path = |name: &str| folder.path().join(name);
    let expected = vector();
    for name in ["repeng.gguf", "python.gguf"] {
        assert_eq!(SteeringVector::load(&path(name)).unwrap(), expected, "{name}");
    }
    for kind in ["float32", "float64", "float16"] {
        let loaded = SteeringVector::load(&path(&format!("{kind}.safetensors"))).unwrap();
        assert_eq!(loaded.directions, expected.directions, "{kind}.safetensors");
        let layers: Layers = "2-3,10".parse().unwrap();
        let loaded = SteeringVector::open(&path(&format!("{kind}.npy")), Some(&layers)).unwrap().vector;
        assert_eq!(loaded.directions, expected.directions, "{kind}.npy");
    }
    for name in ["one.npy", "big-endian.npy"] {
        let loaded = SteeringVector::open(&path(name), Some(&Layers::one(10))).unwrap().vector;
        assert_eq!(loaded.directions[&10], numbers(10), "{name}");
    }
    let refused = |name: &str, layers: &str| {
        SteeringVector::open(&path(name), Some(&layers.parse().unwrap())).unwrap_err().to_string()
    };
    assert!(refused("fortran.npy", "2-3,10").contains("Fortran order"));
    assert!(refused("integers.npy", "1").contains("expected floats"));
    assert!(refused("cube.npy", "1-2").contains("[2, 3, 4]"));
    assert!(refused("one.npy", "1-2").contains("holds 1 directions"));

    // From the command line: to a GGUF file that is repeng's to the last number, architecture included.
    let out = path("converted.gguf");
    bidpo()
        .args(["vector", "convert", "--layers", "2-3,10", "--architecture", "llama"])
        .arg(path("float32.npy"))
        .arg("-o")
        .arg(&out)
        .assert()
        .success()
        .stderr(predicate::str::contains("layers 2-3,10, 64 dimensions"));
    assert_eq!(SteeringVector::load(&out).unwrap(), expected);
}

/// The same packages read the files that `bidpo vector convert` writes, bit for bit.
#[test]
fn python_packages_read_what_is_converted() {
    let Some(mut python) = common::python_packages() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut v = vector();
    v.provenance.set_str("method", "bidpo \u{e9}");
    v.provenance.set_float("beta", 0.1);
    v.provenance.set_int("seed", 7);
    v.save(&path("source.gguf")).unwrap();
    let convert = |from: &str, to: &str, more: &[&str]| {
        let mut command = bidpo();
        command.args(["vector", "convert"]).arg(path(from)).arg("-o").arg(path(to)).args(more).assert().success();
    };
    convert("source.gguf", "bidpo.safetensors", &[]);
    convert("bidpo.safetensors", "bidpo.gguf", &[]);
    assert_eq!(std::fs::read(path("bidpo.gguf")).unwrap(), std::fs::read(path("source.gguf")).unwrap());
    convert("source.gguf", "bidpo.npy", &[]);
    convert("bidpo.safetensors", "bidpo-one.npy", &["--layers", "10"]);

    let run = python.arg("read").arg(folder.path()).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let found: Value = serde_json::from_slice(&run.stdout).unwrap();
    let directions = json!({ "direction.2": numbers(2), "direction.3": numbers(3), "direction.10": numbers(10) });
    for reader in ["gguf", "repeng", "safetensors"] {
        assert_eq!(found[reader], directions, "{reader}");
    }
    assert_eq!(found["gguf_keys"]["controlvector.layer_count"], 3);
    assert_eq!(found["gguf_keys"]["general.architecture"], "controlvector");
    assert_eq!(found["gguf_keys"]["bidpo.method"], "bidpo \u{e9}");
    assert_eq!(found["repeng_model_type"], "llama");
    let provenance = json!({ "method": "bidpo \u{e9}", "beta": 0.1, "seed": 7 });
    assert_eq!(found["safetensors_meta"], json!({ "model_hint": "llama", "provenance": provenance }));
    assert_eq!(
        (&found["npy"], &found["npy_dtype"]),
        (&json!([numbers(2), numbers(3), numbers(10)]), &json!("float32"))
    );
    assert_eq!(found["npy_one"], json!(numbers(10)));
}

/// The gguf package reads an adapter of ours: keys, shapes (PEFT's: A `[rank, n_in]`, B `[n_out, rank]`) and numbers.
#[test]
fn python_reads_an_adapter() {
    if common::python_packages().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let numbers = |n: usize| (0..n).map(|i| i as f32 / 4.0 - 3.0).collect::<Vec<f32>>();
    let mut file = AdapterFile::new("llama", Some(4.0));
    file.pairs.insert(Target::of("blk.1.attn_q.weight"), LowRank::new(2, numbers(6), numbers(8)).unwrap());
    file.pairs
        .insert(Target::of("blk.2.ffn_up_exps.weight"), LowRank::of_experts(2, 1, numbers(6), numbers(10)).unwrap());
    file.provenance.set_str("tensors", "blk.1.attn_q.weight");
    for (kind, name) in [(AdapterKind::F32, "F32"), (AdapterKind::F16, "F16")] {
        file.save(&folder.path().join("adapter.gguf"), kind).unwrap();
        let run = common::python_packages().unwrap().arg("adapter").arg(folder.path()).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let found: Value = serde_json::from_slice(&run.stdout).unwrap();
        let keys = &found["keys"];
        assert_eq!((&keys["general.type"], &keys["adapter.type"]), (&json!("adapter"), &json!("lora")));
        assert_eq!((&keys["general.architecture"], &keys["adapter.lora.alpha"]), (&json!("llama"), &json!(4.0)));
        assert_eq!(keys["bidpo.tensors"], "blk.1.attn_q.weight");
        assert_eq!(found["types"], json!([name]));
        let rows = |values: &[f32], width: usize| json!(values.chunks(width).collect::<Vec<_>>());
        let tensors = &found["tensors"];
        assert_eq!(tensors.as_object().unwrap().len(), 4);
        assert_eq!(tensors["blk.1.attn_q.weight.lora_a"], rows(&numbers(6), 3));
        assert_eq!(tensors["blk.1.attn_q.weight.lora_b"], rows(&numbers(8), 2));
        let (a, b) = (numbers(6), numbers(10));
        assert_eq!(tensors["blk.2.ffn_up_exps.weight.lora_a"], json!([rows(&a[..3], 3), rows(&a[3..], 3)]));
        assert_eq!(tensors["blk.2.ffn_up_exps.weight.lora_b"], json!([rows(&b[..5], 1), rows(&b[5..], 1)]));
    }
}

/// A file of the cvector-generator, read in its convention, steers one layer lower than its numbers say.
#[test]
fn the_generators_convention_moves_what_is_added() {
    let Some(path) = common::model(common::SMOL) else { return };
    let file = common::gold("interop/llamacpp_mean_smollm2.gguf");
    let run = |more: &[&str]| -> Value {
        let mut command = bidpo();
        command.args(["generate", "--json", "-n", "8", "-p", "Tell me a story.", "--vector"]).arg(&file);
        command.args(["--scale=-8", "-m"]).arg(&path).args(more);
        serde_json::from_slice(&command.assert().success().get_output().stdout).unwrap()
    };
    // direction.15 alone, read as measured at block 14: the same numbers, added one layer lower.
    let folder = tempfile::tempdir().unwrap();
    let original = SteeringVector::load(&file).unwrap();
    let moved = folder.path().join("moved.gguf");
    SteeringVector::single(14, original.directions[&15].clone(), "llama").unwrap().save(&moved).unwrap();
    let as_generator = run(&["--convention", "generator", "--layers", "14"]);
    let mut command = bidpo();
    command.args(["generate", "--json", "-n", "8", "-p", "Tell me a story.", "--scale=-8", "--vector"]).arg(&moved);
    let by_hand: Value =
        serde_json::from_slice(&command.arg("-m").arg(&path).assert().success().get_output().stdout).unwrap();
    assert_eq!(as_generator["tokens"], by_hand["tokens"]);
    bidpo()
        .args(["generate", "-p", "x", "--convention", "generator", "--vector"])
        .arg(shipped("misconceptions", common::SMOL))
        .arg("-m")
        .arg(&path)
        .assert()
        .code(1)
        .stderr(predicate::str::contains("states its convention"));
}
