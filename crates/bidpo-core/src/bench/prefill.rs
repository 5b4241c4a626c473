//! The reference of most figures: llama.cpp's prefill, at its best.

use super::BenchError;
use ggml_grad::llama::{LlamaError, Model, ModelParams, ReferenceContext, Token};
use std::sync::Arc;

/// Tokens of a sequence when the tokens are taken as one stream, as llama.cpp's bench tool does by default (pp512).
const STREAM: usize = 512;

/// llama.cpp over the weights as they lie in the file, and over weights that it repacked for this CPU (its default).
#[derive(Debug)]
pub struct Prefill {
    plain: ReferenceContext,
    repacked: ReferenceContext,
}

/// A way to prefill some tokens.
#[derive(Debug, Clone)]
pub(super) struct Way {
    repacked: bool,
    pub sequences: Vec<Vec<Token>>,
    pub words: String,
}

impl Prefill {
    /// Loads the model a second time, repacked.
    ///
    /// # Errors
    /// [`LlamaError`].
    pub fn new(model: &Arc<Model>, threads: u32) -> Result<Self, LlamaError> {
        let repacked = Model::load(model.path(), &ModelParams { plain_weights: false, ..ModelParams::default() })?;
        Ok(Self {
            plain: ReferenceContext::new(model, 2048, threads)?,
            repacked: ReferenceContext::new(&repacked, 2048, threads)?,
        })
    }

    /// The fastest way through these sequences: weights repacked or not; with `may_join`, also their tokens as one stream
    /// in pieces of 512 instead of sequence by sequence.
    pub(super) fn fastest(&mut self, sequences: &[Vec<Token>], may_join: bool) -> Result<Way, BenchError> {
        let mut shapes = vec![(sequences.to_vec(), "each sequence by itself")];
        if may_join {
            let stream: Vec<Token> = sequences.concat();
            shapes.push((stream.chunks(STREAM).map(<[Token]>::to_vec).collect(), "in sequences of 512 tokens"));
        }
        let mut best: Option<(f64, Way)> = None;
        for repacked in [true, false] {
            for (sequences, shape) in &shapes {
                let weights = if repacked { "repacked" } else { "plain" };
                let way = Way { repacked, sequences: sequences.clone(), words: format!("{weights} weights, {shape}") };
                // The first call also touches the weights.
                self.seconds(&way.first())?;
                let seconds = self.seconds(&way)?;
                if best.as_ref().is_none_or(|(least, _)| seconds < *least) {
                    best = Some((seconds, way));
                }
            }
        }
        Ok(best.expect("there are ways").1)
    }

    /// Seconds that a way takes.
    pub(super) fn seconds(&mut self, way: &Way) -> Result<f64, BenchError> {
        let ctx = if way.repacked { &mut self.repacked } else { &mut self.plain };
        Ok(ctx.prefill(&way.sequences)?.as_secs_f64())
    }
}

impl Way {
    fn first(&self) -> Self {
        Self { sequences: self.sequences.iter().take(1).cloned().collect(), ..self.clone() }
    }
}
