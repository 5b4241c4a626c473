//! Random models of a few kilobytes, whole and damaged.

use ggml_grad::llama::DType;
use ggml_grad::synth::{self, Shape};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Width of the residual stream.
pub const WIDTH: usize = 32;
/// Tokens of the vocabulary.
pub const VOCABULARY: usize = 300;

/// The type of most test weights.
pub fn q8_0() -> DType {
    DType::from_name("q8_0").unwrap()
}

/// Writes a llama model of four layers, `tiny.gguf` in a folder.
pub fn model(dir: &Path, dtype: DType) -> PathBuf {
    let path = dir.join("tiny.gguf");
    let shape = Shape {
        n_layer: 4,
        n_embd: WIDTH,
        n_head: 1,
        n_head_kv: 1,
        head_dim: 32,
        n_ff: 32,
        n_vocab: VOCABULARY,
        n_ctx: 512,
        ..synth::family("llama").unwrap().shape()
    };
    synth::write(&path, synth::family("llama").unwrap(), &shape, dtype, 7).unwrap();
    path
}

/// The command, on one thread, without input.
pub fn bidpo() -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("bidpo"));
    command.env("BIDPO_THREADS", "1").env("BIDPO_NEUTRAL_PASSAGES", "2").env_remove("BIDPO_API_KEY");
    command.stdin(Stdio::null());
    command
}
