//! The models and the points.

use ggml_grad::llama::DType;
use ggml_grad::synth::{self, Shape};
use std::error::Error;
use std::path::{Path, PathBuf};

/// The sizes of a model in the form of Llama.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sizes {
    pub name: &'static str,
    pub n_layer: usize,
    pub n_embd: usize,
    pub n_head: usize,
    pub n_head_kv: usize,
    pub n_ff: usize,
    pub n_vocab: usize,
}

const fn sizes(name: &'static str, n_layer: usize, n_embd: usize, heads: [usize; 2], n_ff: usize) -> Sizes {
    Sizes { name, n_layer, n_embd, n_head: heads[0], n_head_kv: heads[1], n_ff, n_vocab: 32_000 }
}

pub const SMALL: Sizes = sizes("a small model (1,024 wide)", 12, 1024, [16, 16], 4096);
pub const TINY: Sizes = sizes("TinyLlama-1.1B's shape", 22, 2048, [32, 4], 5632);
pub const WIDE: Sizes = sizes("a 7B's width, 4 layers", 4, 4096, [32, 32], 11_008);
pub const SEVEN: Sizes = sizes("7B (Llama 2)", 32, 4096, [32, 32], 11_008);
pub const SEVENTY: Sizes = sizes("70B (Llama 2)", 80, 8192, [64, 8], 28_672);

impl Sizes {
    pub fn head_dim(&self) -> usize {
        self.n_embd / self.n_head
    }

    /// Weights of one block's matrices.
    pub fn block_params(&self) -> f64 {
        let kv = self.n_head_kv * self.head_dim();
        (2 * self.n_embd * self.n_embd + 2 * self.n_embd * kv + 3 * self.n_embd * self.n_ff) as f64
    }

    /// Weights of the output matrix; the table of embeddings has as many.
    pub fn head_params(&self) -> f64 {
        (self.n_vocab * self.n_embd) as f64
    }

    pub fn params(&self) -> f64 {
        self.n_layer as f64 * self.block_params() + 2.0 * self.head_params()
    }

    /// Blocks above a layer.
    pub fn above(&self, layer: usize) -> usize {
        self.n_layer - 1 - layer
    }
}

/// Purpose of a point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// The cost model is fitted to it.
    Fit,
    /// The cost model is tested on it.
    HeldOut,
    /// Another number of threads.
    Threads,
}

/// A step on one pair.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measurement {
    pub kind: Kind,
    pub model: Sizes,
    pub layer: usize,
    /// Unique tokens of the pair, half of them prompt.
    pub tokens: usize,
    pub threads: usize,
}

/// Threads of all points but one.
pub fn threads() -> usize {
    ggml_grad::llama::default_threads() as usize
}

pub fn all() -> Vec<Measurement> {
    let threads = threads();
    let point = |kind, model, layer, tokens| Measurement { kind, model, layer, tokens, threads };
    let mut points = Vec::new();
    for (model, layer, tokens) in [
        (SMALL, 6, [64, 128, 256, 512].as_slice()),
        (SMALL, 2, &[128]),
        (SMALL, 9, &[128]),
        (TINY, 11, &[64, 128, 256, 512]),
        (TINY, 6, &[128]),
        (TINY, 16, &[128]),
        (TINY, 19, &[128]),
        (WIDE, 1, &[64, 128, 256]),
        (WIDE, 2, &[128]),
    ] {
        points.extend(tokens.iter().map(|&n| point(Kind::Fit, model, layer, n)));
    }
    for (model, layer, tokens) in [(SMALL, 4, 384), (TINY, 14, 192), (WIDE, 1, 192)] {
        points.push(point(Kind::HeldOut, model, layer, tokens));
    }
    if threads > 1 {
        points.push(Measurement { threads: 1, ..point(Kind::Threads, TINY, 11, 128) });
    }
    points
}

/// Writes all models that are not there, side by side.
pub fn write_models(folder: &Path) -> Result<(), Box<dyn Error>> {
    std::thread::scope(|scope| {
        let workers =
            [SMALL, TINY, WIDE].map(|m| scope.spawn(move || model_file(m, folder).map_err(|e| e.to_string())));
        workers.into_iter().try_for_each(|w| match w.join() {
            Ok(result) => result.map(drop).map_err(Into::into),
            Err(_) => Err("a model could not be written".into()),
        })
    })
}

/// The file of a random model of these sizes, all matrices Q4_K; written if it is not there.
pub fn model_file(m: Sizes, folder: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let path = folder.join(format!("{}x{}.q4_k.gguf", m.n_layer, m.n_embd));
    if !path.exists() {
        eprintln!("writing {} ...", path.display());
        let family = synth::family("llama")?;
        let shape = Shape {
            n_layer: m.n_layer,
            n_embd: m.n_embd,
            n_head: m.n_head,
            n_head_kv: m.n_head_kv,
            head_dim: m.head_dim(),
            n_ff: m.n_ff,
            n_vocab: m.n_vocab,
            ..family.shape()
        };
        let dtype = DType::from_name("q4_k").ok_or("ggml has no type q4_k")?;
        synth::write(&path, family, &shape, dtype, 1)?;
    }
    Ok(path)
}
