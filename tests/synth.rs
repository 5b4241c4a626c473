//! Random models: llama.cpp loads and runs every family, in every type of weight.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

use ggml_grad::llama::{self, Batch, Context, ContextParams, DType, GgufFile, Model, ModelParams, Token};
use ggml_grad::synth::{self, Family, Refusal, Shape, SynthError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

const TEXT: &str = "The river rises in the hills, flows south - über die Grenze - and ends in the sea.";

fn dtype(name: &str) -> DType {
    DType::from_name(name).unwrap()
}

fn write(folder: &TempDir, family: &Family, dtype: DType) -> PathBuf {
    let path = folder.path().join(format!("{}.gguf", family.name()));
    synth::write(&path, family, &family.shape(), dtype, 1).unwrap();
    path
}

fn load(path: &Path) -> Arc<Model> {
    Model::load(path, &ModelParams::default()).unwrap()
}

/// Logits of all positions.
fn logits(ctx: &mut Context, tokens: &[Token]) -> Vec<Vec<f32>> {
    let mut batch = Batch::new();
    tokens.iter().enumerate().for_each(|(i, &t)| {
        batch.add(t, i, &[0], true);
    });
    ctx.clear_kv();
    ctx.decode(&batch).unwrap();
    (0..tokens.len()).map(|i| ctx.logits(i).unwrap().to_vec()).collect()
}

fn context(model: &Arc<Model>) -> Context {
    Context::new(model, &ContextParams::exact(128, 1, 1)).unwrap()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Decodes a text: finite logits of sensible size, different at each position.
fn runs(model: &Arc<Model>, what: &str) -> (Context, Vec<Token>, Vec<Vec<f32>>) {
    let tokens = model.tokenize(TEXT, true, false).unwrap();
    assert_eq!(tokens[0], model.bos().unwrap());
    assert_eq!(model.detokenize(&tokens, false).trim(), TEXT, "{what}");
    let mut ctx = context(model);
    let rows = logits(&mut ctx, &tokens);
    for (i, row) in rows.iter().enumerate() {
        let size = (row.iter().map(|x| x * x).sum::<f32>() / row.len() as f32).sqrt();
        assert!((0.01..100.0).contains(&size), "{what}: logits of size {size} at position {i}");
        assert!(i == 0 || largest_difference(row, &rows[i - 1]) > 1e-3, "{what}: position {i} repeats the one before");
    }
    (ctx, tokens, rows)
}

#[test]
fn every_family_loads_and_runs() {
    let folder = TempDir::new().unwrap();
    for family in synth::families() {
        let what = family.name();
        eprintln!("{what}");
        let path = write(&folder, family, dtype("q4_k"));
        let model = load(&path);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(model.architecture(), family.arch());
        let shape = family.shape();
        assert_eq!((model.n_layer(), model.n_embd()), (shape.n_layer, shape.n_embd), "{what}");
        assert_eq!((model.n_vocab(), model.n_ctx_train()), (shape.n_vocab, shape.n_ctx), "{what}");
        assert_eq!(model.has_encoder(), family.refusal() == Some(Refusal::EncoderDecoder), "{what}");
        if model.has_encoder() {
            continue;
        }
        let (mut ctx, tokens, plain) = runs(&model, what);
        if family.refusal() == Some(Refusal::NoControlVectors) {
            let vector = vec![1.0; (shape.n_layer - 1) * shape.n_embd];
            ctx.set_control_vector(&vector, 1, shape.n_layer - 1).unwrap();
            assert!(logits(&mut ctx, &tokens) == plain, "{what}: llama.cpp steers it now");
        }
        for &layer in family.layers() {
            let mut vector = vec![0.0; (shape.n_layer - 1) * shape.n_embd];
            let row = &mut vector[(layer - 1) * shape.n_embd..layer * shape.n_embd];
            row.iter_mut().enumerate().for_each(|(i, x)| *x = (i as f32 * 1.7).sin());
            ctx.set_control_vector(&vector, layer, layer).unwrap();
            let steered = logits(&mut ctx, &tokens);
            let effect =
                plain.iter().zip(&steered).map(|(a, b)| largest_difference(a, b)).fold(f32::INFINITY, f32::min);
            assert!(effect > 1e-3, "{what}: a vector at layer {layer} moves logits by {effect} only");
        }
    }
}

/// Error of each type on normal numbers, `|quantized - value| / |value|` over a tensor: measured, and in the order that the
/// bits a weight suggest.
const ERRORS: [(&str, f64); 28] = [
    ("f32", 0.0),
    ("f16", 0.00021),
    ("bf16", 0.0017),
    ("q8_0", 0.0053),
    ("q4_0", 0.086),
    ("q4_1", 0.078),
    ("q5_0", 0.042),
    ("q5_1", 0.038),
    ("q2_k", 0.3),
    ("q3_k", 0.15),
    ("q4_k", 0.071),
    ("q5_k", 0.036),
    ("q6_k", 0.018),
    ("iq1_s", 0.49),
    ("iq1_m", 0.58),
    ("iq2_xxs", 0.34),
    ("iq2_xs", 0.3),
    ("iq2_s", 0.26),
    ("iq3_xxs", 0.21),
    ("iq3_s", 0.16),
    ("iq4_nl", 0.076),
    ("iq4_xs", 0.077),
    ("mxfp4", 0.11),
    ("nvfp4", 0.095),
    ("tq1_0", 0.81),
    ("tq2_0", 0.81),
    ("q1_0", 0.6),
    ("q2_0", 0.72),
];

/// llama.cpp de-quantizes each type to what went in, up to the type's error, and runs it.
#[test]
fn every_type_holds_the_values_and_runs() {
    let folder = TempDir::new().unwrap();
    let family = synth::family("llama").unwrap();
    let shape = Shape { n_layer: 1, n_ff: 256, ..family.shape() };
    let names: Vec<String> = DType::WEIGHTS.iter().map(|t| t.name().to_lowercase()).collect();
    assert_eq!(names, ERRORS.map(|(name, _)| name));
    let (file, copy) = (folder.path().join("model.gguf"), folder.path().join("copy.gguf"));
    let mut values: Option<Vec<f32>> = None;
    for (name, expected) in ERRORS {
        synth::write(&file, family, &shape, dtype(name), 1).unwrap();
        let tensor = "blk.0.ffn_up.weight";
        let opened = GgufFile::open(&file).unwrap();
        let stored = |tensor: &str| opened.tensors().find(|(n, _, _)| *n == tensor).map(|(_, t, _)| t).unwrap();
        for matrix in [tensor, "token_embd.weight", "output.weight", "blk.0.attn_k.weight"] {
            assert_eq!(stored(matrix), dtype(name), "{matrix}");
        }
        assert_eq!(stored("blk.0.attn_norm.weight"), DType::F32);
        llama::to_f32(&file, &copy).unwrap();
        let read = GgufFile::open(&copy).unwrap().read_f32(tensor).unwrap();
        let exact = values.get_or_insert_with(|| read.clone());
        let square = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>();
        let error = (square(&mut read.iter().zip(&*exact).map(|(a, b)| f64::from(a - b)))
            / square(&mut exact.iter().map(|&x| f64::from(x))))
        .sqrt();
        eprintln!("{name}: error {error:.5}");
        assert!((error - expected).abs() <= 0.1 * expected, "{name}: error {error}, expected about {expected}");
        runs(&load(&file), name);
    }
}

#[test]
fn a_seed_makes_the_same_bytes() {
    let folder = TempDir::new().unwrap();
    let family = synth::family("mixtral").unwrap();
    let bytes = |dtype: DType, seed: u64| {
        let path = folder.path().join("model.gguf");
        synth::write(&path, family, &Shape { n_layer: 1, ..family.shape() }, dtype, seed).unwrap();
        std::fs::read(&path).unwrap()
    };
    let first = bytes(dtype("q4_0"), 7);
    assert_eq!(first, bytes(dtype("q4_0"), 7));
    assert_ne!(first, bytes(dtype("q4_0"), 8));
    assert!(first.len() < bytes(dtype("q5_0"), 7).len());
}

/// A block type that no row holds: Q8_0 in its place where that fits, else F32.
#[test]
fn rows_that_hold_no_block_take_another_type() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    let family = synth::family("llama").unwrap();
    for (n_embd, name) in [(96, "q8_0"), (72, "f32")] {
        let shape = Shape { n_layer: 2, n_embd, n_head: 3, n_head_kv: 1, head_dim: 32, ..family.shape() };
        synth::write(&path, family, &shape, dtype("q6_k"), 1).unwrap();
        let file = GgufFile::open(&path).unwrap();
        let types = |part: &str| {
            let tensors = file.tensors().filter(|(name, ..)| name.contains(part)).map(|(_, t, _)| t.name());
            tensors.map(|t| t.to_lowercase()).collect::<Vec<_>>()
        };
        assert_eq!(types("ffn_up"), [name; 2]);
        assert_eq!(types("ffn_down"), ["q6_k"; 2]);
        runs(&load(&path), name);
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    assert!(matches!(synth::family("lama"), Err(SynthError::Family { .. })));
    let refused = |name: &str, change: fn(&mut Shape), words: &[&str]| {
        let family = synth::family(name).unwrap();
        let mut shape = family.shape();
        change(&mut shape);
        let message = synth::write(&path, family, &shape, dtype("q8_0"), 1).unwrap_err().to_string();
        assert!(words.iter().all(|w| message.contains(w)), "{message}");
        assert!(!path.exists());
    };
    refused("llama", |s| s.n_layer = 0, &["llama", "blocks", "1 to 512", "not 0"]);
    refused("llama", |s| s.n_vocab = 100, &["tokens", "259"]);
    refused("llama", |s| s.n_head_kv = 3, &["3 key-value heads", "8 heads"]);
    refused("llama", |s| s.n_expert = 4, &["experts", "0 to 0"]);
    refused("mixtral", |s| s.n_expert_used = 5, &["experts used", "1 to 4", "not 5"]);
    refused("qwen2", |s| s.head_dim = 64, &["8 heads of 64", "256"]);
    refused("olmoe", |s| s.n_head_kv = 2, &["8 heads", "not 2"]);
    refused("gemma4", |s| s.n_layer = 2, &["blocks", "3 to 512", "not 2"]);
    refused("llama", |s| s.n_embd = usize::MAX, &["width"]);
    let family = synth::family("llama").unwrap();
    let error = synth::write(&path, family, &family.shape(), DType::I32, 1).unwrap_err();
    assert!(error.to_string().contains("cannot quantize to i32"), "{error}");
    let error =
        synth::write(&folder.path().join("no/model.gguf"), family, &family.shape(), dtype("f16"), 1).unwrap_err();
    assert!(error.to_string().contains("cannot write"), "{error}");

    assert!(DType::from_name("q9_k").is_none());
    for (values, row, word) in
        [(&[1.0; 30][..], 30, "multiples of 32"), (&[1.0; 33], 32, "whole number"), (&[f32::NAN; 32], 32, "NaN")]
    {
        let error = llama::quantize(dtype("q8_0"), values, row).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn the_command_writes_what_it_lists() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("model.gguf");
    let bidpo = |args: &[&str]| {
        let mut command = assert_cmd::Command::new(assert_cmd::cargo::cargo_bin!("bidpo"));
        command.arg("synth").args(args);
        command.assert()
    };
    let list = bidpo(&["--list"]).success();
    let list = String::from_utf8_lossy(&list.get_output().stdout).into_owned();
    assert!(synth::families().iter().all(|f| list.lines().any(|l| l.starts_with(f.name()))), "{list}");
    let out = path.to_str().unwrap();
    bidpo(&["--arch", "gpt2", "--type", "Q5_K", "--layers", "2", "--heads", "4", "--ctx", "64", "-o", out]).success();
    let model = load(&path);
    assert_eq!((model.n_layer(), model.n_ctx_train()), (2, 64));
    assert_eq!(model.meta("gpt2.attention.key_length").unwrap(), "64");
    bidpo(&["--arch", "gpt2", "--type", "q9", "-o", out]).failure().stderr(predicates::str::contains("iq4_xs"));
    bidpo(&["--arch", "gpt3", "-o", out]).failure().stderr(predicates::str::contains("gptneox"));
}
