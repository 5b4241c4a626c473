//! Vector files as other tools write them, through the binary: names of architectures, layers, element types, scales.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use assert_cmd::Command;
use assert_cmd::assert::Assert;
use common::raw_gguf::Raw;
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
