//! Reverse-mode gradients through any GGUF model that llama.cpp runs.
//!
//! - [`trace`]: the short way: log-probabilities, and their gradients at each layer's residual stream.
//! - [`llama`]: safe Rust over llama.cpp: models, contexts, the callback on the compute graph.
//! - [`graph`]: lift llama.cpp's graph, differentiate it, run it with ggml.
//! - [`synth`]: small random models of every architecture, for tests and benchmarks.
//! - [`files`], [`memory`]: atomic writes and hashes; how much memory there is.
//! - [`numeric`]: numbers from little-endian bytes.

#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod files;
pub mod graph;
pub mod llama;
pub mod memory;
pub mod numeric;
pub mod synth;
pub mod trace;

/// Compiles the program in the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
