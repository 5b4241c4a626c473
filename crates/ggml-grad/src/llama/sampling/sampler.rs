//! Choosing the next token.

use crate::llama::process::guard::{guarded, throwing};
use crate::llama::{Context, LlamaError, Token, sys};

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

/// Penalties on what the answer already holds, beside [`SamplerParams::repeat_penalty`], as OpenAI's API has them.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PenaltyParams {
    /// Taken from a logit for each time the token was sampled (0: off).
    pub frequency: f32,
    /// Taken from a logit once if the token was sampled (0: off).
    pub presence: f32,
    /// Number of last tokens that both penalties look at.
    pub window: usize,
}

impl PenaltyParams {
    fn is_off(&self) -> bool {
        self.frequency == 0.0 && self.presence == 0.0
    }
}

/// A chain of llama.cpp samplers.
#[derive(Debug)]
pub struct Sampler {
    raw: *mut sys::llama_sampler,
    /// Nothing but the most likely token is asked for. llama.cpp's greedy sampler first writes a table of all candidates.
    greedy: bool,
}

// SAFETY: a sampler holds no thread-local state.
unsafe impl Send for Sampler {}

impl Sampler {
    /// Builds the chain: penalties, then greedy, or top-k, top-p, min-p, temperature and a random choice.
    pub fn new(n_vocab: usize, p: &SamplerParams) -> Self {
        Self::with_penalties(n_vocab, p, &PenaltyParams::default(), &[])
    }

    /// As [`Sampler::new`], behind OpenAI's two penalties and numbers that are added to the logits of some tokens.
    pub fn with_penalties(n_vocab: usize, p: &SamplerParams, penalties: &PenaltyParams, bias: &[(Token, f32)]) -> Self {
        crate::llama::init();
        let raw_bias: Vec<_> = bias.iter().map(|&(token, bias)| sys::llama_logit_bias { token, bias }).collect();
        // SAFETY: the chain takes ownership of each sampler added to it; the biases are copied.
        let raw = unsafe {
            let chain = sys::llama_sampler_chain_init(sys::llama_sampler_chain_default_params());
            if !raw_bias.is_empty() {
                let n = raw_bias.len() as i32;
                sys::llama_sampler_chain_add(
                    chain,
                    sys::llama_sampler_init_logit_bias(n_vocab as i32, n, raw_bias.as_ptr()),
                );
            }
            if !penalties.is_off() {
                let (n, off) = (i32::try_from(penalties.window).unwrap_or(i32::MAX), 1.0);
                let penalties =
                    sys::llama_sampler_init_penalties(n_vocab as i32, n, off, penalties.frequency, penalties.presence);
                sys::llama_sampler_chain_add(chain, penalties);
            }
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
        let greedy = p.temperature <= 0.0 && p.repeat_penalty == 1.0 && penalties.is_off() && bias.is_empty();
        Self { raw, greedy }
    }

    /// Chooses a token from the logits of batch row `row` of the last decode, and remembers it for the penalties.
    ///
    /// # Errors
    /// [`LlamaError::Batch`] if that row has no logits, [`LlamaError::NotFinite`] if they are not finite.
    pub fn sample(&mut self, ctx: &Context, row: usize) -> Result<Token, LlamaError> {
        let logits = ctx.finite_logits(row)?; // llama.cpp aborts on a row without logits
        if self.greedy {
            return Ok(most_likely(logits));
        }
        // SAFETY: both are alive and the row has logits.
        let (raw, ctx) = (self.raw, ctx.raw());
        // SAFETY: both are alive and the row has logits.
        guarded(|| unsafe { throwing::llama_sampler_sample(raw, ctx, row as i32) }).map_err(LlamaError::Failed)
    }

    pub(in crate::llama) fn raw(&mut self) -> *mut sys::llama_sampler {
        self.raw
    }

    /// Forgets what was sampled and restarts the random sequence.
    pub fn reset(&mut self) {
        // SAFETY: alive.
        unsafe { sys::llama_sampler_reset(self.raw) };
    }
}

/// The first of the largest logits, as llama.cpp's greedy sampler chooses.
fn most_likely(logits: &[f32]) -> Token {
    let mut top = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    for chunk in chunks {
        top.iter_mut().zip(chunk).for_each(|(top, &x)| *top = if x > *top { x } else { *top });
    }
    let max = top.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max });
    logits.iter().position(|&x| x == max).unwrap_or(0) as Token
}

impl Drop for Sampler {
    fn drop(&mut self) {
        // SAFETY: freed once, with its chain.
        unsafe { sys::llama_sampler_free(self.raw) };
    }
}

#[cfg(test)]
mod tests {
    use super::most_likely;

    #[test]
    fn the_first_of_the_largest() {
        let mut x: Vec<f32> = (0..37).map(|i| -(i as f32)).collect();
        assert_eq!(most_likely(&x), 0);
        (x[35], x[36]) = (2.0, 2.0);
        assert_eq!(most_likely(&x), 35);
        (x[20], x[3]) = (2.0, f32::NAN);
        assert_eq!(most_likely(&x), 20);
        assert_eq!(most_likely(&[f32::NAN; 3]), 0);
    }
}
