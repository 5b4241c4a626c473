//! Vector files as other tools write them, through the binary: names of architectures, layers, element types, scales.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use assert_cmd::Command;
use assert_cmd::assert::Assert;
use common::raw_gguf::{BF16, F16, Raw};
use ggml_grad::llama::DType;
use ggml_grad::synth;
use predicates::prelude::*;
use std::path::PathBuf;
use tempfile::TempDir;

/// A folder with a random model of the architecture llama in it, `m.gguf`.
struct Folder {
    folder: TempDir,
    width: usize,
}

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let family = synth::family("llama").unwrap();
        let shape = family.shape();
        synth::write(&folder.path().join("m.gguf"), family, &shape, DType::F32, 1).unwrap();
        Self { folder, width: shape.n_embd }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs the binary in the folder.
    fn run(&self, args: &[&str]) -> Assert {
        Command::cargo_bin("bidpo").unwrap().env("BIDPO_THREADS", "1").current_dir(&self.folder).args(args).assert()
    }

    /// One token from the model, with further arguments.
    fn generate(&self, args: &[&str]) -> Assert {
        self.run(&[&["generate", "-m", "m.gguf", "--template", "none", "-p", "a", "-n", "1"], args].concat())
    }

    fn direction(&self, value: f32) -> Vec<f32> {
        vec![value; self.width]
    }
}

fn says(text: &str) -> impl Predicate<str> + use<> {
    predicate::str::contains(text.to_owned())
}

/// repeng writes Hugging Face's `model_type`, EasySteer `unknown`, or a family's name.
#[test]
fn names_of_architectures() {
    let f = Folder::new();
    let (one, two) = (f.direction(0.1), f.direction(0.2));
    for (hint, name) in [
        ("mistral", "mistral.gguf"),
        ("llama", "llama.gguf"),
        ("unknown", "unknown.gguf"),
        ("", "silent.gguf"),
        ("gemma3_text", "gemma.gguf"),
    ] {
        Raw::directions(hint, &[("direction.1", &one), ("direction.2", &two)]).write_as(f.folder.path(), name);
    }
    for quiet in ["mistral.gguf", "llama.gguf", "silent.gguf"] {
        f.generate(&["--vector", quiet]).success().stderr(says("architecture").not());
    }
    f.generate(&["--vector", "unknown.gguf"])
        .success()
        .stderr(says("note: unknown.gguf: its architecture is given as \"unknown\"").and(says("warning").not()));
    f.generate(&["--vector", "gemma.gguf"])
        .success()
        .stderr(says("warning: gemma.gguf: it was made for the gemma3_text"));

    let add = |a: &str, b: &str| f.run(&["vector", "add", a, b, "-o", "s.gguf"]);
    let stated = || {
        let out = f.run(&["vector", "show", "s.gguf", "--json"]).success();
        let shown: serde_json::Value = serde_json::from_slice(&out.get_output().stdout).unwrap();
        shown[0]["architecture"].as_str().unwrap_or_default().to_owned()
    };
    add("mistral.gguf", "llama.gguf").success().stderr(says("two names of one architecture"));
    assert_eq!(stated(), "llama");
    add("unknown.gguf", "llama.gguf").success().stderr(says("note: unknown.gguf says \"unknown\""));
    assert_eq!(stated(), "llama");
    add("silent.gguf", "mistral.gguf").success();
    assert_eq!(stated(), "mistral");
    f.run(&["vector", "average", "mistral.gguf", "unknown.gguf", "-o", "s.gguf"]).success();
    assert_eq!(stated(), "mistral");
    add("gemma.gguf", "llama.gguf")
        .code(1)
        .stderr(says("made for gemma3_text cannot be added").and(says("--architecture")));
    // The way round it.
    f.run(&["vector", "convert", "gemma.gguf", "--architecture", "llama", "-o", "named.gguf"])
        .success()
        .stderr(says("note: gemma.gguf says gemma3_text"));
    add("named.gguf", "llama.gguf").success().stderr(says("note").not());
    assert!(f.path("named.gguf").is_file());
}

/// EasySteer writes a direction for layer 0 too.
#[test]
fn a_direction_for_layer_0_is_left_out() {
    let f = Folder::new();
    let d = [f.direction(0.1), f.direction(0.2), f.direction(0.3)];
    let all = [("direction.0", &d[0][..]), ("direction.1", &d[1][..]), ("direction.2", &d[2][..])];
    Raw::directions("llama", &all).write_as(f.folder.path(), "all.gguf");
    let line = "all.gguf: its direction for layer 0 is left out";
    f.run(&["vector", "convert", "all.gguf", "--layers", "1-2", "-o", "o.gguf"]).success().stderr(says(line));
    f.run(&["vector", "convert", "all.gguf", "-o", "o.safetensors"]).success().stderr(says(line));
    let shown = f.run(&["vector", "show", "all.gguf", "--json"]).success().stderr(says(line));
    let shown: serde_json::Value = serde_json::from_slice(&shown.get_output().stdout).unwrap();
    let layers: Vec<_> = shown[0]["layers"].as_array().unwrap().iter().map(|l| l["layer"].as_u64().unwrap()).collect();
    assert_eq!(layers, [1, 2]);
    f.generate(&["--vector", "all.gguf", "--layers", "1-2"]).success().stderr(says(line));
    f.generate(&["--vector", "all.gguf"]).success().stderr(says(line));
    f.run(&["vector", "add", "all.gguf", "o.gguf", "-o", "s.gguf"]).success().stderr(says(line));
    // It says so where layer 0 is asked for.
    let refused = "layer 0 cannot be steered";
    f.run(&["vector", "convert", "all.gguf", "--layers", "0-2", "-o", "x.gguf"]).code(1).stderr(says(refused));
    f.generate(&["--vector", "all.gguf", "--layers", "0,1"]).code(1).stderr(says(refused));
    f.run(&["vector", "convert", "o.gguf", "--layers", "0,1", "-o", "x.gguf"]).code(1).stderr(says(refused));
    Raw::directions("llama", &all[..1]).write_as(f.folder.path(), "zero.gguf");
    f.run(&["vector", "show", "zero.gguf"]).code(1).stderr(says("layer 0 only"));
}

/// Element types and shapes; all of them hold the same numbers.
#[test]
fn element_types_and_shapes() {
    let f = Folder::new();
    let n = f.width as u64;
    // 0.5 in every type: f16 0x3800, bf16 0x3f00.
    let half = |bytes: [u8; 2], n: u64| bytes.repeat(n as usize);
    let f32s = |n: u64| 0.5f32.to_le_bytes().repeat(n as usize);
    let files = [
        ("f16.gguf", "direction.1", F16, vec![n], half([0, 0x38], n)),
        ("bf16.gguf", "direction.1", BF16, vec![n], half([0, 0x3f], n)),
        ("row.gguf", "direction.1", 0, vec![n, 1], f32s(n)),
        ("column.gguf", "direction.1", 0, vec![1, n], f32s(n)),
        ("one.gguf", "direction", 0, vec![n], f32s(n)),
        ("matrix.gguf", "directions", 0, vec![n, 3], f32s(3 * n)),
    ];
    for (file, name, kind, ne, data) in files {
        Raw::new(vec![(name, kind, ne, data)]).write_as(f.folder.path(), file);
    }
    Raw::directions("llama", &[("direction.1", &f.direction(0.5))]).write_as(f.folder.path(), "plain.gguf");
    let compare = |file: &str| {
        let out = f.run(&["vector", "compare", "plain.gguf", file, "--json"]).success();
        let pairs: serde_json::Value = serde_json::from_slice(&out.get_output().stdout).unwrap();
        assert_eq!(pairs[0]["comparison"]["cosine"].as_f64(), Some(1.0), "{file}");
        let (a, b) = (&pairs[0]["comparison"]["norm_a"], &pairs[0]["comparison"]["norm_b"]);
        assert_eq!(a, b, "{file}");
    };
    for file in ["f16.gguf", "bf16.gguf", "row.gguf", "column.gguf"] {
        compare(file);
    }
    f.run(&["vector", "show", "one.gguf"]).code(1).stderr(says("name it with --layers"));
    f.run(&["vector", "convert", "one.gguf", "--layers", "1", "-o", "one.safetensors"]).success();
    compare("one.safetensors");
    f.run(&["vector", "show", "matrix.gguf"]).code(1).stderr(says("3 rows ([1, 1, 3,"));
    f.run(&["vector", "convert", "matrix.gguf", "--layers", "0-2", "-o", "m.safetensors"])
        .success()
        .stderr(says("layer 0 is left out"));
    f.generate(&["--vector", "m.safetensors"]).success();
}

/// `FILE:SCALE`, as llama.cpp's --control-vector-scaled takes it.
#[test]
fn a_scale_behind_a_colon() {
    let f = Folder::new();
    Raw::directions("llama", &[("direction.1", &f.direction(0.5))]).write_as(f.folder.path(), "v.gguf");
    let scales = |args: &[&str]| {
        let out = f.generate(&[args, &["--json"]].concat()).success();
        let answer: serde_json::Value = serde_json::from_slice(&out.get_output().stdout).unwrap();
        answer["vectors"].as_array().unwrap().iter().map(|v| v["scale"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(scales(&["--vector", "v.gguf:-1.5"]), [-1.5]);
    assert_eq!(scales(&["-v", "v.gguf:2", "-v", "v.gguf"]), [2.0, 1.0]);
    std::fs::copy(f.path("v.gguf"), f.path("v.gguf:2")).unwrap();
    assert_eq!(scales(&["-v", "v.gguf:2"]), [1.0], "the file of that name");
    f.generate(&["-v", "v.gguf:3", "--scale", "2"]).code(1).stderr(says("leave one out"));
    f.generate(&["-v", "v.gguf:much"]).code(2).stderr(says("is not a scale"));
    f.generate(&["-v", "no.gguf:3"]).code(1).stderr(says("no.gguf").and(says("no.gguf:3").not()));
}
