//! Sampling settings of a request.

use ggml_grad::llama::{PenaltyParams, Sampler, SamplerParams, Token};

/// Sampling options of a request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sampling {
    pub params: SamplerParams,
    pub penalties: PenaltyParams,
    /// Added to the logits of these tokens.
    pub bias: Vec<(Token, f32)>,
}

impl Sampling {
    pub(crate) fn sampler(&self, n_vocab: usize) -> Sampler {
        Sampler::with_penalties(n_vocab, &self.params, &self.penalties, &self.bias)
    }
}
