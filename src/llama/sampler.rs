//! Choosing the next token.

use super::{Context, LlamaError, Token, sys};

/// Sampling options, with llama.cpp's meanings.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerParams {
    /// Temperature; 0 takes the most likely token.
    pub temperature: f32,
    /// Keep the smallest set of tokens whose probability reaches this (1: off).
    pub top_p: f32,
    /// Keep tokens at least this probable, relative to the best (0: off).
    pub min_p: f32,
    /// Keep this many tokens (0: off).
    pub top_k: i32,
    /// Penalty on tokens seen in the last 64 (1: off).
    pub repeat_penalty: f32,
    /// Seed of the random choice.
    pub seed: u32,
}

impl Default for SamplerParams {
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 0.95, min_p: 0.05, top_k: 40, repeat_penalty: 1.0, seed: 0 }
    }
}

/// A chain of llama.cpp samplers.
#[derive(Debug)]
pub struct Sampler {
    raw: *mut sys::llama_sampler,
}

// SAFETY: a sampler holds no thread-local state.
unsafe impl Send for Sampler {}

impl Sampler {
    /// Builds the chain: penalties, then greedy, or top-k, top-p, min-p, temperature and a random choice.
    pub fn new(n_vocab: usize, p: &SamplerParams) -> Self {
        super::init();
        // SAFETY: the chain takes ownership of each sampler added to it.
        let raw = unsafe {
            let chain = sys::llama_sampler_chain_init(sys::llama_sampler_chain_default_params());
            if p.repeat_penalty != 1.0 {
                sys::llama_sampler_chain_add(
                    chain,
                    sys::llama_sampler_init_penalties(n_vocab as i32, 64, p.repeat_penalty, 0.0, 0.0),
                );
            }
            if p.temperature <= 0.0 {
                sys::llama_sampler_chain_add(chain, sys::llama_sampler_init_greedy());
            } else {
                if p.top_k > 0 {
                    sys::llama_sampler_chain_add(chain, sys::llama_sampler_init_top_k(p.top_k));
                }
                if p.top_p < 1.0 {
                    sys::llama_sampler_chain_add(chain, sys::llama_sampler_init_top_p(p.top_p, 1));
                }
                if p.min_p > 0.0 {
                    sys::llama_sampler_chain_add(chain, sys::llama_sampler_init_min_p(p.min_p, 1));
                }
                sys::llama_sampler_chain_add(chain, sys::llama_sampler_init_temp(p.temperature));
                sys::llama_sampler_chain_add(chain, sys::llama_sampler_init_dist(p.seed));
            }
            chain
        };
        Self { raw }
    }

    /// Chooses a token from the logits of batch row `row` of the last decode, and remembers it for the penalties.
    ///
    /// # Errors
    /// [`LlamaError::Batch`] if that row has no logits.
    pub fn sample(&mut self, ctx: &Context, row: usize) -> Result<Token, LlamaError> {
        ctx.logits(row)?; // llama.cpp aborts on a row without logits
        // SAFETY: both are alive and the row has logits.
        Ok(unsafe { sys::llama_sampler_sample(self.raw, ctx.raw(), row as i32) })
    }

    pub(super) fn raw(&mut self) -> *mut sys::llama_sampler {
        self.raw
    }

    /// Forgets what was sampled and restarts the random sequence.
    pub fn reset(&mut self) {
        // SAFETY: alive.
        unsafe { sys::llama_sampler_reset(self.raw) };
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        // SAFETY: freed once, with its chain.
        unsafe { sys::llama_sampler_free(self.raw) };
    }
}
