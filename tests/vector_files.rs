//! Control vector files: those of other tools, damaged ones, and what `bidpo vector show` says about them.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use assert_cmd::Command;
use bidpo_core::steer::{ModelIdentity, ScaledVector, SteeringVector, combine, warnings};
use common::raw_gguf::{Raw, floats};
use ggml_grad::llama::{Batch, Context, ContextParams, EvalCallback, Model, ModelParams, Node};
use predicates::prelude::*;
use std::sync::Arc;

const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

fn bidpo() -> Command {
    Command::cargo_bin("bidpo").unwrap()
}

#[test]
fn files_of_other_tools_load() {
    for (name, keeps_bytes) in [("llamacpp_mean_smollm2.gguf", true), ("repeng_pca_smollm2.gguf", false)] {
        let path = common::gold(&format!("interop/{name}"));
        let v = SteeringVector::load(&path).unwrap();
        assert_eq!((v.n_embd(), v.model_hint.as_str()), (576, "llama"));
        assert_eq!(v.layers(), (1..=29).collect::<Vec<_>>());
        for layer in 1..=29 {
            assert!((v.norm(layer) - 1.0).abs() < 1e-5, "both tools write unit vectors: {}", v.norm(layer));
        }
        assert!(v.provenance.entries.is_empty() && v.percent_of_scale(1.0).is_none());
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy.gguf");
        v.save(&copy).unwrap();
        assert_eq!(SteeringVector::load(&copy).unwrap(), v);
        if keeps_bytes {
            // llama.cpp's own writer is the oracle for the format: same keys, types, order, alignment.
            assert!(std::fs::read(&copy).unwrap() == std::fs::read(&path).unwrap(), "bytes differ from llama.cpp's");
        }
    }
}

#[test]
fn unusable_files_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let good = [1.0, 2.0];
    let f32s = |name, values: &[f32]| (name, 0u32, vec![values.len() as u64], floats(values));
    let cases: Vec<(Raw, &str)> = vec![
        (Raw::one("direction.0", &good), "a direction for layer 0 only, which cannot be steered"),
        (Raw::one("direction.x", &good), "\"direction.x\" is no direction"),
        (Raw::one("blk.1.weight", &good), "\"blk.1.weight\" is no direction"),
        (Raw::new(vec![]), "holds no direction"),
        (Raw::new(vec![("direction.1", 8, vec![32], vec![0; 34])]), "type q8_0, a direction must be f32"),
        (Raw::new(vec![("direction.1", 0, vec![2, 2], floats(&[1.0; 4]))]), "must have one dimension"),
        (Raw::one("direction.1", &[1.0, f32::NAN]), "direction.1, element 1 is NaN"),
        (Raw::one("direction.1", &[f32::INFINITY]), "element 0 is inf"),
        (
            Raw::new(vec![f32s("direction.1", &[1.0]), f32s("direction.2", &good)]),
            "direction.2 has 2 values where the first direction has 1",
        ),
        (Raw::new(vec![f32s("direction.1", &good), f32s("direction.01", &good)]), "two directions for layer 1"),
        (
            Raw { architecture: "llama", ..Raw::new(vec![]) },
            "not a control vector: it is a GGUF of architecture \"llama\"",
        ),
    ];
    for (raw, expected) in cases {
        let path = raw.write(folder.path());
        let error = SteeringVector::load(&path).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("made.gguf"), "expected {expected:?}, got {error:?}");
        bidpo().args(["vector", "show"]).arg(&path).assert().code(1).stderr(predicate::str::contains(expected));
    }
    let missing = folder.path().join("missing.gguf");
    bidpo().args(["vector", "show"]).arg(&missing).assert().code(1).stderr(predicate::str::contains("cannot read"));
    bidpo()
        .args(["vector", "show"])
        .arg(folder.path())
        .assert()
        .code(1)
        .stderr(predicate::str::contains("cannot read"));
    let text = folder.path().join("text.gguf");
    std::fs::write(&text, "hello").unwrap();
    bidpo().args(["vector", "show"]).arg(&text).assert().code(1).stderr(predicate::str::contains("not a GGUF file"));
    bidpo().args(["vector", "show"]).assert().code(2);
}

#[test]
fn damaged_files_are_errors_and_never_crashes() {
    let folder = tempfile::tempdir().unwrap();
    let whole =
        Raw::new(vec![("direction.3", 0, vec![8], floats(&[0.5; 8])), ("direction.4", 0, vec![8], floats(&[-0.5; 8]))])
            .bytes();
    let path = folder.path().join("damaged.gguf");
    std::fs::write(&path, &whole).unwrap();
    assert!(SteeringVector::load(&path).is_ok());
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(SteeringVector::load(&path).is_err(), "the first {length} of {} bytes loaded", whole.len());
    }
    // Any byte may be anything: an answer or an error, and what loads is a vector. (A crash ends this test's process.)
    for i in 0..whole.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff, whole[i] ^ 1, whole[i] ^ 0x40] {
            let mut bytes = whole.clone();
            bytes[i] = value;
            std::fs::write(&path, &bytes).unwrap();
            if let Ok(v) = SteeringVector::load(&path) {
                v.check().unwrap();
            }
        }
    }
}

#[test]
fn show_prints_text_and_json() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.gguf");
    let mut v = SteeringVector::single(15, vec![3.0, 4.0], "llama").unwrap();
    v.provenance.set_str("method", "bidpo");
    v.provenance.set_int("layer", 15);
    v.provenance.set_float("residual_norm_median", 200.0);
    v.save(&path).unwrap();
    let text = "norm at 15       5 (2.50 % of the residual norm)";
    bidpo().args(["vector", "show"]).arg(&path).assert().success().stdout(predicate::str::contains(text));
    let output = bidpo().args(["vector", "show", "--json"]).arg(&path).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json[0]["n_embd"], 2);
    assert_eq!(json[0]["layers"][0]["norm"], 5.0);
    assert_eq!(json[0]["layers"][0]["percent_of_residual_norm"], 2.5);
    assert_eq!(json[0]["provenance"]["method"], "bidpo");
}

/// `bidpo vector` on files: what it writes is what the arithmetic says, with its provenance.
#[test]
fn vectors_are_made_of_vectors() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let save = |name: &str, layer: usize, values: [f32; 2], seed: i64| {
        let mut v = SteeringVector::single(layer, values.to_vec(), "llama").unwrap();
        v.provenance.set_str("model_name", "m");
        v.provenance.set_int("seed", seed);
        v.provenance.set_float("residual_norm_median", 100.0);
        v.provenance.set_float("heldout_accuracy", 0.5);
        v.save(&path(name)).unwrap();
    };
    save("a.gguf", 3, [3.0, 4.0], 1);
    save("b.gguf", 3, [4.0, -3.0], 2);
    save("c.gguf", 5, [1.0, 0.0], 3);
    let run = |args: &[&str]| bidpo().args(["vector"]).args(args).current_dir(folder.path()).assert();
    let made = |args: &[&str]| {
        run(&[args, &["-o", "out.gguf"][..]].concat())
            .success()
            .stdout("")
            .stderr(predicate::str::contains("out.gguf: layer"));
        SteeringVector::load(&path("out.gguf")).unwrap()
    };
    let sum = made(&["add", "a.gguf", "b.gguf", "c.gguf", "--weights", "1,-2,0.5"]);
    assert_eq!((sum.directions[&3].clone(), sum.directions[&5].clone()), (vec![-5.0, 10.0], vec![0.5, 0.0]));
    let text = |v: &SteeringVector, key: &str| v.provenance.str(key).unwrap().to_owned();
    assert_eq!(text(&sum, "model_name"), "m");
    assert!(
        text(&sum, "made_of").starts_with("1 * a.gguf (SHA-256 ") && text(&sum, "made_of").contains(" + -2 * b.gguf")
    );
    assert!(sum.provenance.number("seed").is_none() && sum.provenance.number("heldout_accuracy").is_none());
    assert!((sum.provenance.number("norm").unwrap() - 125.25f64.sqrt()).abs() < 1e-9);
    assert_eq!(made(&["combine", "a.gguf", "b.gguf"]).directions[&3], [7.0, 1.0]);
    assert_eq!(made(&["average", "a.gguf", "b.gguf"]).directions[&3], [3.5, 0.5]);
    assert_eq!(made(&["scale", "a.gguf", "-2"]).directions[&3], [-6.0, -8.0]);
    let tenth = made(&["scale", "a.gguf", "10%"]);
    assert_eq!((tenth.norm(3), tenth.percent_of_scale(1.0)), (10.0, Some(10.0)));
    run(&["scale", "out.gguf", "0.5", "-o", "out.gguf"])
        .code(1)
        .stderr(predicate::str::contains("would replace the input"));
    assert_eq!(SteeringVector::load(&path("out.gguf")).unwrap(), tenth);
    assert_eq!(made(&["convert", "c.gguf", "--layers", "5"]), SteeringVector::load(&path("c.gguf")).unwrap());

    let out = run(&["compare", "a.gguf", "b.gguf", "c.gguf", "--json"]).success().get_output().stdout.clone();
    let pairs: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(pairs.as_array().unwrap().len(), 3);
    let ab = &pairs[0]["comparison"];
    assert_eq!((&ab["cosine"], &ab["norm_a"], &ab["layers"][0]["norm_b"]), (&0.0.into(), &5.0.into(), &5.0.into()));
    assert_eq!(pairs[1]["comparison"]["layers"][0]["norm_b"], serde_json::Value::Null);
    run(&["compare", "a.gguf", "b.gguf"])
        .success()
        .stdout(predicate::str::is_match(r"\n +all +\+0\.0000 +5 +5\n").unwrap());

    // The cvector-generator's convention, one file of two in it.
    SteeringVector::single(4, vec![3.0, 4.0], "llama").unwrap().save(&path("generated.gguf")).unwrap();
    let moved = made(&["convert", "generated.gguf", "--convention", "generator"]);
    assert_eq!(moved.layers(), [3]);
    run(&["convert", "out.gguf", "--convention", "generator", "-o", "x.gguf"]).code(1);
    SteeringVector::single(3, vec![3.0, 4.0], "llama").unwrap().save(&path("plain.gguf")).unwrap();
    let both = ["--convention", "output", "--convention", "generator"];
    let out = run(&[&["compare", "plain.gguf", "generated.gguf", "--json"][..], &both].concat());
    let pairs: serde_json::Value = serde_json::from_slice(&out.success().get_output().stdout).unwrap();
    assert!((pairs[0]["comparison"]["cosine"].as_f64().unwrap() - 1.0).abs() < 1e-12);

    let fails = |args: &[&str], code: i32, message: &str| {
        run(args).code(code).stdout("").stderr(predicate::str::contains(message));
    };
    run(&["convert", "a.gguf", "-o", "v.npy"]).success();
    fails(&["convert", "v.npy", "-o", "x.gguf"], 1, "does not say which layer");
    std::fs::write(path("v.npy"), "no numbers").unwrap();
    fails(&["convert", "v.npy", "--layers", "3", "-o", "x.gguf"], 1, "v.npy: not a .npy file");
    fails(&["convert", "a.gguf", "--layers", "4", "-o", "x.gguf"], 1, "no direction for layer 4, only for layer 3");
    fails(&["convert", "a.gguf", "-o", "no/such/folder/x.npy"], 1, "cannot write");
    fails(&["add", "a.gguf", "b.gguf", "--weights", "1", "-o", "x.gguf"], 1, "1 weights for 2 vectors");
    fails(&["add", "a.gguf", "-o", "x.gguf"], 2, "2 values required");
    fails(&["add", "a.gguf", "b.gguf", "--weights", "1,x", "-o", "x.gguf"], 2, "is not a weight");
    fails(&["scale", "generated.gguf", "5%", "-o", "x.gguf"], 1, "residual_norm_median");
    fails(
        &["compare", "a.gguf", "b.gguf", "c.gguf", "--convention", "output", "--convention", "output"],
        1,
        "2 conventions",
    );
    assert!(!path("x.gguf").exists());
}

#[test]
fn doctor_finds_the_cpu() {
    bidpo().arg("doctor").assert().success().stdout(predicate::str::contains("llama-cpp-sys-2"));
    let output = bidpo().args(["doctor", "--json"]).env("BIDPO_THREADS", "many").output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(json["backends"].as_array().unwrap().iter().any(|b| b == "CPU"));
    assert!(json["warnings"].to_string().contains("BIDPO_THREADS"));
    let plain = bidpo().args(["doctor", "--json"]).env("BIDPO_CPU", "plain").output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&plain.stdout).unwrap();
    assert_eq!(json["kernel_level"], "plain");
    bidpo().arg("doctor").env("BIDPO_CPU", "sse").assert().success().stdout(predicate::str::contains("BIDPO_CPU"));
}

/// Adds rows to the output of block `layer` from the eval callback: steering without a control vector.
struct AddAt<'a> {
    name: String,
    direction: &'a [f32],
    seen: usize,
}

impl EvalCallback for AddAt<'_> {
    fn wants(&mut self, node: &Node) -> bool {
        node.name() == self.name
    }

    fn computed(&mut self, node: &Node) -> bool {
        let mut rows = node.read_f32(); // [n_rows, n_embd]
        for row in rows.chunks_exact_mut(self.direction.len()) {
            row.iter_mut().zip(self.direction).for_each(|(x, d)| *x += d);
        }
        node.write_f32(0, &rows);
        self.seen += 1;
        true
    }
}

#[test]
fn dials_steer_as_stated() {
    let Some(path) = common::model(SMOLLM2) else { return };
    let model = Model::load(&path, &ModelParams::default()).unwrap();
    let direction: Vec<f32> = (0..model.n_embd()).map(|i| (i as f32 * 0.7).sin()).collect();
    let vector = Arc::new(SteeringVector::single(12, direction.clone(), "llama").unwrap());
    let dial = |scale| ScaledVector { name: "v".into(), vector: Arc::clone(&vector), scale };
    let tokens = model.tokenize("The capital of France is", true, false).unwrap();
    let mut ctx = Context::new(&model, &ContextParams::exact(tokens.len(), 1, 1)).unwrap();
    let batch = {
        let mut b = Batch::new();
        tokens.iter().enumerate().for_each(|(i, &t)| {
            b.add(t, i, &[0], i + 1 == tokens.len());
        });
        b
    };
    let last = tokens.len() - 1;
    ctx.decode(&batch).unwrap();
    let plain = ctx.logits(last).unwrap().to_vec();

    // Two dials on one vector add up; the same sum written from the callback gives the same bits.
    let cv = combine(&[dial(2.0), dial(-0.5)], None, &model).unwrap().unwrap();
    assert_eq!((cv.first, cv.last), (12, 12));
    cv.apply(&mut ctx).unwrap();
    ctx.decode(&batch).unwrap();
    let steered = ctx.logits(last).unwrap().to_vec();
    assert_ne!(steered, plain);
    ctx.clear_control_vector();
    let sum: Vec<f32> = direction.iter().map(|x| 2.0 * x + -0.5 * x).collect();
    let mut tap = AddAt { name: "l_out-12".into(), direction: &sum, seen: 0 };
    ctx.decode_with_callback(&batch, &mut tap).unwrap();
    assert_eq!(tap.seen, 1);
    assert!(ctx.logits(last).unwrap() == steered.as_slice(), "direction.12 is not the output of block 12");

    // Nothing to add is no vector; dials that cancel add exact zeros.
    assert_eq!(combine(&[dial(0.0)], None, &model).unwrap(), None);
    combine(&[dial(1.5), dial(-1.5)], None, &model).unwrap().unwrap().apply(&mut ctx).unwrap();
    ctx.decode(&batch).unwrap();
    assert!(ctx.logits(last).unwrap() == plain.as_slice());

    // Doubts and refusals.
    assert!(warnings(&vector, &model).is_empty(), "no provenance, no doubt");
    let identity = ModelIdentity::of(&model).unwrap();
    assert_eq!(identity.sha256, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53");
    assert_eq!((identity.architecture.as_str(), identity.quantization.as_str()), ("llama", "Q4_1"));
    let mut known = (*vector).clone();
    identity.record(&mut known.provenance);
    assert!(warnings(&known, &model).is_empty());
    for (key, expected) in
        [("model_sha256", "another file"), ("model_quantization", "quantization"), ("model_name", "was trained on")]
    {
        known.provenance.set_str(key, "0123456789abcdef");
        let text = warnings(&known, &model).join("\n");
        assert!(text.contains(expected), "{key}: {text}");
    }
    known.model_hint = "gemma3".into();
    assert!(warnings(&known, &model)[0].contains("gemma3 architecture, this model is llama"));
    let narrow = Arc::new(SteeringVector::single(12, vec![1.0; 64], "llama").unwrap());
    let error =
        combine(&[ScaledVector { name: "narrow".into(), vector: narrow, scale: 1.0 }], None, &model).unwrap_err();
    assert!(error.to_string().contains("narrow has 64 dimensions, the model's residual stream has 576"), "{error}");
}

#[test]
fn a_provenance_key_that_gguf_cannot_hold_is_one_message() {
    let directory = tempfile::tempdir().unwrap();
    let (from, to) = (directory.path().join("nul.safetensors"), directory.path().join("x.gguf"));
    // The safetensors layout: length of the JSON header, header, data.
    let metadata = serde_json::json!({ "provenance": { "a\0b": "x" } }).to_string();
    let header = serde_json::json!({
        "__metadata__": { "control_vector": metadata },
        "direction.1": { "dtype": "F32", "shape": [4], "data_offsets": [0, 16] },
    })
    .to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(floats(&[1.0, 2.0, 3.0, 4.0]));
    std::fs::write(&from, bytes).unwrap();
    bidpo()
        .args(["vector", "convert", "-o"])
        .args([&to, &from])
        .assert()
        .code(1)
        .stderr(predicate::str::contains("x.gguf").and(predicate::str::contains(r#""bidpo.a\0b""#)))
        .stderr(predicate::str::contains("NUL byte").and(predicate::str::contains("panicked").not()))
        .stderr(predicate::function(|text: &str| text.trim().lines().count() == 1));
    assert!(!to.exists(), "nothing is written");
}
