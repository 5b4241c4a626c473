//! The residual stream after each block, read from llama.cpp's graph while it runs.
//!
//! Layer N is the output of block N, counted from 0: the point at which llama.cpp adds `direction.N` of a control vector.

mod file;
mod prompts;

pub use file::{Positions, extract_to_file};
pub use prompts::{PromptsError, read_prompts};

use crate::llama::{Batch, Context, ContextParams, DType, KvType, LlamaError, Model, Node, Tap, Token};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// What can go wrong in an extraction.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// The model has no such block.
    #[error("layer {layer} does not exist: {model} has layers 0 to {last}")]
    Layer {
        /// The layer asked for.
        layer: usize,
        /// The model's file.
        model: PathBuf,
        /// The model's last layer.
        last: usize,
    },
    /// Nothing was asked for.
    #[error("no layer was asked for")]
    NoLayers,
    /// There is nothing to run on.
    #[error("there is no prompt to run the model on")]
    NoPrompts,
    /// A prompt without tokens.
    #[error("prompt {number} is empty")]
    EmptyPrompt {
        /// Its number, counted from 1.
        number: usize,
    },
    /// A prompt that the model cannot take.
    #[error("prompt {number} has {n_tokens} tokens, the model was trained for {limit}: shorten it")]
    TooLong {
        /// Its number, counted from 1.
        number: usize,
        /// Its tokens.
        n_tokens: usize,
        /// The model's training context.
        limit: usize,
    },
    /// The graph has no node that is the block's output.
    #[error(
        "the graph of architecture {architecture} has no node l_out-{layer} of {n_embd} x {n_rows} floats, so the residual \
         stream after that block cannot be read: this architecture is not supported by extract"
    )]
    NoResidual {
        /// `general.architecture`.
        architecture: String,
        /// The layer.
        layer: usize,
        /// Width of the residual stream.
        n_embd: usize,
        /// Rows expected.
        n_rows: usize,
    },
    /// The result cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Someone stopped it; nothing was written.
    #[error("stopped; nothing was written")]
    Interrupted,
    /// llama.cpp's reason.
    #[error(transparent)]
    Llama(#[from] LlamaError),
}

/// Runs prompts and reads the residual stream at some layers. The graph stops at the highest of them.
#[derive(Debug)]
pub struct Extractor {
    ctx: Context,
    layers: Vec<usize>,
    limit: usize,
}

/// Tokens of one compute pass.
const BATCH: usize = 512;
/// The same where the last block is read: all of its rows are then "output rows", for which llama.cpp sets logits aside
/// (a megabyte a row with gemma's vocabulary).
const BATCH_WITH_LOGITS: usize = 64;

impl Extractor {
    /// Prepares to read `layers` for prompts of up to `n_tokens_max` tokens.
    ///
    /// # Errors
    /// [`ExtractError::NoLayers`], [`ExtractError::Layer`], [`ExtractError::Llama`].
    pub fn new(
        model: &Arc<Model>,
        layers: &[usize],
        n_tokens_max: usize,
        n_threads: u32,
    ) -> Result<Self, ExtractError> {
        let mut layers = layers.to_vec();
        layers.sort_unstable();
        layers.dedup();
        let last = model.n_layer() - 1;
        let &highest = layers.last().ok_or(ExtractError::NoLayers)?;
        if highest > last {
            return Err(ExtractError::Layer { layer: highest, model: model.path().to_owned(), last });
        }
        let limit = model.n_ctx_train();
        let n_ctx = n_tokens_max.min(limit).max(32);
        let n_batch = n_ctx.min(if highest == last { BATCH_WITH_LOGITS } else { BATCH });
        // The cache and attention of the training engine, so that both see the same values.
        let params = ContextParams {
            n_ctx: n_ctx as u32,
            n_batch: n_batch as u32,
            n_seq_max: 1,
            n_threads,
            kv: KvType::F32,
            flash_attention: false,
            op_offload: true,
        };
        Ok(Self { ctx: Context::new(model, &params)?, layers, limit })
    }

    /// The layers it reads, ascending.
    pub fn layers(&self) -> &[usize] {
        &self.layers
    }

    /// Runs one prompt (tokens, BOS included). Returns `[n_tokens, n_embd]` for each layer. `number` is the prompt's, from
    /// 1, for error messages.
    ///
    /// # Errors
    /// [`ExtractError::EmptyPrompt`], [`ExtractError::TooLong`], [`ExtractError::NoResidual`], [`ExtractError::Llama`].
    pub fn run(&mut self, tokens: &[Token], number: usize) -> Result<BTreeMap<usize, Vec<f32>>, ExtractError> {
        if tokens.is_empty() {
            return Err(ExtractError::EmptyPrompt { number });
        }
        if tokens.len() > self.limit {
            return Err(ExtractError::TooLong { number, n_tokens: tokens.len(), limit: self.limit });
        }
        if tokens.len() > self.ctx.n_ctx() {
            return Err(LlamaError::Batch(format!(
                "prompt {number} has {} tokens, this extractor was made for {}",
                tokens.len(),
                self.ctx.n_ctx()
            ))
            .into());
        }
        self.ctx.clear_kv();
        let model = Arc::clone(self.ctx.model());
        let n_embd = model.n_embd();
        let mut rows: BTreeMap<usize, Vec<f32>> = self.layers.iter().map(|&l| (l, Vec::new())).collect();
        // The last block drops the rows whose logits nobody asked for.
        let reads_last = self.layers.last() == Some(&(model.n_layer() - 1));
        let mut pos = 0;
        for chunk in tokens.chunks(self.ctx.n_batch()) {
            let mut batch = Batch::new();
            for (i, &t) in chunk.iter().enumerate() {
                batch.add(t, pos + i, &[0], reads_last || i + 1 == chunk.len());
            }
            pos += chunk.len();
            let mut tap = ResidualTap { wanted: &self.layers, n_embd, n_rows: chunk.len(), found: BTreeMap::new() };
            self.ctx.decode_tapped(&batch, &mut tap)?;
            for (&layer, all) in &mut rows {
                let Some(values) = tap.found.remove(&layer) else {
                    return Err(ExtractError::NoResidual {
                        architecture: model.architecture(),
                        layer,
                        n_embd,
                        n_rows: chunk.len(),
                    });
                };
                all.extend(values);
            }
        }
        Ok(rows)
    }
}

/// Reads `l_out-N` for the wanted N and stops the graph at the highest.
struct ResidualTap<'a> {
    wanted: &'a [usize],
    n_embd: usize,
    n_rows: usize,
    found: BTreeMap<usize, Vec<f32>>, // [n_rows, n_embd] each
}

impl ResidualTap<'_> {
    /// The layer whose output this node is. The name alone is not enough: names repeat and carry suffixes.
    fn layer(&self, node: &Node) -> Option<usize> {
        let layer = node.name().strip_prefix("l_out-")?.parse().ok()?;
        let fits = node.ne() == [self.n_embd, self.n_rows, 1, 1] && node.dtype() == DType::F32;
        (fits && self.wanted.contains(&layer)).then_some(layer)
    }
}

impl Tap for ResidualTap<'_> {
    fn wants(&mut self, node: &Node) -> bool {
        self.layer(node).is_some()
    }

    fn computed(&mut self, node: &Node) -> bool {
        let Some(layer) = self.layer(node) else { return true };
        self.found.insert(layer, node.read_f32());
        self.wanted.last() != Some(&layer)
    }
}

/// Lengths of the residual stream's vectors at one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormStats {
    /// Number of token positions.
    pub n: usize,
    /// Mean length. A few tokens (the first above all) are a hundred times longer than the rest and pull it up.
    pub mean: f64,
    /// Median length: what a scale in per cent refers to.
    pub median: f64,
}

impl NormStats {
    /// Mean and median of some lengths; `None` without any.
    pub fn of(norms: &[f32]) -> Option<Self> {
        if norms.is_empty() {
            return None;
        }
        let mut sorted = norms.to_vec();
        sorted.sort_unstable_by(f32::total_cmp);
        let n = sorted.len();
        let median = (f64::from(sorted[(n - 1) / 2]) + f64::from(sorted[n / 2])) / 2.0;
        Some(Self { n, mean: sorted.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64, median })
    }
}

/// Euclidean length of each row of `rows`, `[n, n_embd]`.
pub fn row_norms(rows: &[f32], n_embd: usize) -> impl Iterator<Item = f32> + '_ {
    rows.chunks_exact(n_embd).map(|row| row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt() as f32)
}

/// Lengths of the residual stream over all token positions of some prompts (in tokens), layer by layer.
///
/// # Errors
/// As [`Extractor::new`] and [`Extractor::run`]; [`ExtractError::NoPrompts`].
pub fn residual_norms(
    model: &Arc<Model>,
    layers: &[usize],
    prompts: &[Vec<Token>],
    n_threads: u32,
) -> Result<BTreeMap<usize, NormStats>, ExtractError> {
    let longest = prompts.iter().map(Vec::len).max().ok_or(ExtractError::NoPrompts)?;
    let mut extractor = Extractor::new(model, layers, longest, n_threads)?;
    let mut norms: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
    for (i, prompt) in prompts.iter().enumerate() {
        for (layer, rows) in extractor.run(prompt, i + 1)? {
            norms.entry(layer).or_default().extend(row_norms(&rows, model.n_embd()));
        }
    }
    Ok(norms.into_iter().filter_map(|(layer, n)| Some((layer, NormStats::of(&n)?))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norm_statistics() {
        assert_eq!(NormStats::of(&[]), None);
        assert_eq!(NormStats::of(&[4.0, 1.0, 1000.0]), Some(NormStats { n: 3, mean: 335.0, median: 4.0 }));
        assert_eq!(NormStats::of(&[4.0, 1.0]), Some(NormStats { n: 2, mean: 2.5, median: 2.5 }));
        assert_eq!(row_norms(&[3.0, 4.0, 0.0, 2.0], 2).collect::<Vec<_>>(), [5.0, 2.0]);
    }
}
