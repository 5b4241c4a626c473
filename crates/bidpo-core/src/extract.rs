//! The residual stream after each block, read from llama.cpp's graph while it runs.
//!
//! Layer N is the output of block N, counted from 0: the point at which llama.cpp adds `direction.N` of a control vector.

mod file;
mod prompts;

pub use file::{ExtractJob, Positions};
pub use prompts::{PromptsError, read_prompts};

use crate::adapter::Adapters;
use crate::numbers::{median, rows_within};
use ggml_grad::files::FileError;
use ggml_grad::llama::{Batch, Context, ContextParams, DType, EvalCallback, KvType, LlamaError, Model, Node, Token};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

/// An extraction that cannot start or was stopped.
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
    /// The list of layers is empty.
    #[error("the list of layers is empty: give at least one, for example 15 or 10-20")]
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
    /// A prompt longer than the model's training context.
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
    #[error(transparent)]
    Io(#[from] FileError),
    /// Stopped by the caller; nothing was written.
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
    n_tokens_max: usize,
    last_only: bool,
}

/// Consecutive rows of the residual stream of one prompt at one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ResidualRows<'a> {
    /// Index of the prompt in the caller's list, from 0.
    pub prompt: usize,
    /// The layer.
    pub layer: usize,
    /// Position of the first row in the prompt.
    pub first: usize,
    /// `[n, n_embd]`.
    pub data: &'a [f32],
}

/// Receives the rows of a run. Those of one prompt and layer come in the order of their positions.
pub type Sink<'a> = dyn FnMut(ResidualRows<'_>) -> Result<(), ExtractError> + 'a;

/// Largest batch, in tokens.
const BATCH: usize = 512;
/// Most tokens of prompts that share a batch, each as a separate sequence. llama.cpp's attention reads the KV cache in steps
/// of this many cells, whichever sequence they belong to, so larger packs cost more per token.
const PACK: usize = 256;
/// Most prompts in a batch.
const SEQUENCES: usize = 64;
/// Bytes of logits that llama.cpp may set aside where the last block is read: its rows are "output rows" then, for each of
/// which it keeps a place for a logit of every token (a megabyte with gemma's vocabulary), though none is computed.
const LOGITS: usize = 64 << 20;
/// Rows of the last block that a pass computes where only last positions are needed: so many that ggml takes the kernels
/// that it takes for all rows, whose bits are not always those of its kernels for a few.
const OUTPUTS: usize = 64;

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
        Self::prepare(model, layers, n_tokens_max, n_threads, false)
    }

    /// As [`Extractor::new`], for whoever needs the last position of each prompt: of the last block, rows of other positions
    /// are computed and given only in part, as llama.cpp itself leaves them out.
    ///
    /// # Errors
    /// As [`Extractor::new`].
    pub fn of_last_positions(
        model: &Arc<Model>,
        layers: &[usize],
        n_tokens_max: usize,
        n_threads: u32,
    ) -> Result<Self, ExtractError> {
        Self::prepare(model, layers, n_tokens_max, n_threads, true)
    }

    /// Has the model run under these adapters from now on.
    ///
    /// # Errors
    /// [`ExtractError::Llama`].
    pub fn set_adapters(&mut self, adapters: &Adapters) -> Result<(), ExtractError> {
        Ok(adapters.put_on(&mut self.ctx)?)
    }

    fn prepare(
        model: &Arc<Model>,
        layers: &[usize],
        n_tokens_max: usize,
        n_threads: u32,
        last_only: bool,
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
        let n_ctx = n_tokens_max.min(limit).max(PACK);
        let outputs = rows_within(LOGITS, model.n_vocab()).max(32);
        let n_batch = n_ctx.min(if highest == last && !last_only { BATCH.min(outputs) } else { BATCH });
        // The cache and attention of the training engine, so that both see the same values.
        let params = ContextParams {
            n_ctx: n_ctx as u32,
            n_batch: n_batch as u32,
            n_seq_max: SEQUENCES as u32,
            n_threads,
            kv: KvType::F32,
            flash_attention: false,
            shared_cache: true,
            op_offload: true,
        };
        let mut ctx = Context::new(model, &params)?;
        ctx.set_kernel_override(ggml_grad::graph::FastKernels::if_supported());
        Ok(Self { ctx, layers, limit, n_tokens_max, last_only })
    }

    /// The layers it reads, ascending.
    pub fn layers(&self) -> &[usize] {
        &self.layers
    }

    /// Runs one prompt (tokens, BOS included). Returns `[n_tokens, n_embd]` for each layer (fewer rows of the last block, where
    /// only last positions are needed). `number` is the prompt's, from
    /// 1, for error messages.
    ///
    /// # Errors
    /// [`ExtractError::EmptyPrompt`], [`ExtractError::TooLong`], [`ExtractError::NoResidual`], [`ExtractError::Llama`].
    pub fn run(&mut self, tokens: &[Token], number: usize) -> Result<BTreeMap<usize, Vec<f32>>, ExtractError> {
        self.check(tokens, number)?;
        let mut rows: BTreeMap<usize, Vec<f32>> = self.layers.iter().map(|&l| (l, Vec::new())).collect();
        self.run_pack(&[tokens], 0, &mut |r| {
            rows.entry(r.layer).or_default().extend_from_slice(r.data);
            Ok(())
        })?;
        Ok(rows)
    }

    /// Runs prompts, several at once, and hands what is read to `sink`. `progress` is told the number of prompts done and
    /// stops the work by answering false.
    ///
    /// # Errors
    /// As [`Extractor::run`], and the sink's; [`ExtractError::Interrupted`].
    pub fn run_all(
        &mut self,
        prompts: &[Vec<Token>],
        progress: &mut dyn FnMut(usize) -> bool,
        sink: &mut Sink<'_>,
    ) -> Result<(), ExtractError> {
        for (i, prompt) in prompts.iter().enumerate() {
            self.check(prompt, i + 1)?;
        }
        let budget = PACK.min(self.ctx.n_batch());
        let mut first = 0;
        while first < prompts.len() {
            if !progress(first) {
                return Err(ExtractError::Interrupted);
            }
            let mut n_tokens = 0;
            let fits = |p: &&Vec<Token>| {
                n_tokens += p.len();
                n_tokens <= budget
            };
            let count = prompts[first..].iter().take(SEQUENCES).take_while(fits).count().max(1);
            let pack: Vec<&[Token]> = prompts[first..first + count].iter().map(Vec::as_slice).collect();
            self.run_pack(&pack, first, sink)?;
            first += count;
        }
        Ok(())
    }

    fn check(&self, tokens: &[Token], number: usize) -> Result<(), ExtractError> {
        if tokens.is_empty() {
            return Err(ExtractError::EmptyPrompt { number });
        }
        if tokens.len() > self.limit {
            return Err(ExtractError::TooLong { number, n_tokens: tokens.len(), limit: self.limit });
        }
        if tokens.len() > self.n_tokens_max {
            return Err(LlamaError::Batch(format!(
                "prompt {number} has {} tokens, this extractor was made for {}",
                tokens.len(),
                self.n_tokens_max
            ))
            .into());
        }
        Ok(())
    }

    /// Runs prompts that fit into one batch, or a single one in pieces. `first`: place of the first in the caller's list.
    fn run_pack(&mut self, prompts: &[&[Token]], first: usize, sink: &mut Sink<'_>) -> Result<(), ExtractError> {
        self.ctx.clear_kv();
        let model = Arc::clone(self.ctx.model());
        // The last block drops the rows whose logits nobody asked for: of each prompt (of a piece of it) so many are kept.
        let last_block = model.n_layer() - 1;
        let kept = match self.layers.last() == Some(&last_block) {
            true if self.last_only => (OUTPUTS / prompts.len()).max(1),
            true => usize::MAX,
            false => 1,
        };
        let size = self.ctx.n_batch();
        let n_tokens: usize = prompts.iter().map(|p| p.len()).sum();
        let pieces = if n_tokens <= size { 1 } else { n_tokens.div_ceil(size) };
        for piece in 0..pieces {
            let mut batch = Batch::new();
            let mut spans = Vec::new();
            for (i, prompt) in prompts.iter().enumerate() {
                let positions = piece * size..prompt.len().min((piece + 1) * size);
                for pos in positions.clone() {
                    batch.add(prompt[pos], pos, &[i as i32], pos.saturating_add(kept) >= positions.end);
                }
                spans.push(Span { prompt: first + i, first: positions.start, count: positions.len() });
            }
            let is_final = piece + 1 == pieces;
            let mut reader = ResidualReader {
                wanted: &self.layers,
                last_block,
                n_embd: model.n_embd(),
                n_rows: batch.len(),
                n_outputs: batch.n_outputs(),
                kept,
                spans,
                found: BTreeSet::new(),
                sink,
                outcome: Ok(()),
            };
            // The cache is needed by the pieces that follow, and by them only.
            let decoded = if is_final {
                self.ctx.peek(&batch, &mut reader)
            } else {
                self.ctx.decode_with_callback(&batch, &mut reader)
            };
            reader.outcome?;
            decoded?;
            if let Some(&layer) = self.layers.iter().find(|layer| !reader.found.contains(layer)) {
                return Err(ExtractError::NoResidual {
                    architecture: model.architecture(),
                    layer,
                    n_embd: model.n_embd(),
                    n_rows: batch.len(),
                });
            }
        }
        Ok(())
    }
}

/// The tokens of a prompt in a batch; they follow those of the previous prompt.
struct Span {
    prompt: usize,
    /// Position of the first.
    first: usize,
    count: usize,
}

/// Reads `l_out-N` for the wanted N and stops the graph at the highest.
struct ResidualReader<'a, 'b> {
    wanted: &'a [usize],
    last_block: usize,
    n_embd: usize,
    n_rows: usize,
    n_outputs: usize,
    /// Rows of each prompt that the last block keeps, at most.
    kept: usize,
    spans: Vec<Span>,
    found: BTreeSet<usize>,
    sink: &'a mut Sink<'b>,
    outcome: Result<(), ExtractError>,
}

impl ResidualReader<'_, '_> {
    /// The layer whose output this node is. The name alone is not enough: names repeat and carry suffixes.
    fn layer(&self, node: &Node) -> Option<usize> {
        let layer = node.name().strip_prefix("l_out-")?.parse().ok()?;
        let [n_embd, n_rows, 1, 1] = node.ne() else { return None };
        let rows_fit = n_rows == self.n_rows || layer == self.last_block && n_rows == self.n_outputs;
        let fits = n_embd == self.n_embd && rows_fit && node.dtype() == DType::F32;
        (fits && self.wanted.contains(&layer)).then_some(layer)
    }

    fn pass_on(&mut self, layer: usize, rows: &[f32]) -> Result<(), ExtractError> {
        // Of all tokens, or of those that the last block keeps.
        let kept = if rows.len() == self.n_rows * self.n_embd { usize::MAX } else { self.kept };
        let mut rest = rows;
        for span in &self.spans {
            let count = span.count.min(kept);
            let (data, next) = rest.split_at(count * self.n_embd);
            (self.sink)(ResidualRows { prompt: span.prompt, layer, first: span.first + span.count - count, data })?;
            rest = next;
        }
        Ok(())
    }
}

impl EvalCallback for ResidualReader<'_, '_> {
    fn wants(&mut self, node: &Node) -> bool {
        self.layer(node).is_some()
    }

    fn computed(&mut self, node: &Node) -> bool {
        let Some(layer) = self.layer(node) else { return true };
        if self.found.insert(layer) {
            self.outcome = self.pass_on(layer, &node.f32s());
        }
        self.outcome.is_ok() && self.wanted.last() != Some(&layer)
    }
}

/// Norms of the residual stream at one layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormStats {
    /// Number of token positions.
    pub n: usize,
    /// Mean norm. A few tokens (above all the first) have norms a hundred times larger than the rest and dominate it.
    pub mean: f64,
    /// Median norm: the reference of a scale in percent.
    pub median: f64,
}

impl NormStats {
    /// Mean and median of norms; `None` without any.
    pub fn of(norms: &[f32]) -> Option<Self> {
        let (n, median) = (norms.len(), median(norms)?);
        Some(Self { n, mean: norms.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64, median })
    }
}

/// Euclidean norm of each row of `rows`, `[n, n_embd]`.
pub fn row_norms(rows: &[f32], n_embd: usize) -> impl Iterator<Item = f32> + '_ {
    rows.chunks_exact(n_embd).map(|row| {
        // Eight sums side by side: one would have to wait for each addition.
        let mut sums = [0.0f64; 8];
        let (eights, rest) = row.as_chunks::<8>();
        for eight in eights {
            for (sum, &x) in sums.iter_mut().zip(eight) {
                *sum += f64::from(x) * f64::from(x);
            }
        }
        let rest: f64 = rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        (sums.iter().sum::<f64>() + rest).sqrt() as f32
    })
}

/// Norms of the residual stream over all token positions of some prompts (in tokens), layer by layer.
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
    extractor.run_all(prompts, &mut |_| true, &mut |rows| {
        norms.entry(rows.layer).or_default().extend(row_norms(rows.data, model.n_embd()));
        Ok(())
    })?;
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
