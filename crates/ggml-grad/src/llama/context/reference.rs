//! llama.cpp as its own programs call it, to be measured against: no callback, no control vector, its own defaults.

use crate::llama::process::guard::{guarded, throwing};
use crate::llama::{LlamaError, Model, Pool, Sampler, SamplerParams, Token, last_log_lines, sys};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tokens of one compute pass: the default of llama.cpp's programs (`n_ubatch`).
const N_UBATCH: usize = 512;

/// A context as llama.cpp's bench tool makes it: F16 cache, fused attention where llama.cpp chooses it, passes of 512
/// tokens, a thread pool that lives as long as the context, no callback.
#[derive(Debug)]
pub struct ReferenceContext {
    raw: *mut sys::llama_context,
    /// Its threads may wait by spinning: until the first call, and between calls, they sleep.
    pool: Pool,
    model: Arc<Model>,
    n_ctx: usize,
}

// SAFETY: as for `Context`; the pool belongs to this context alone.
unsafe impl Send for ReferenceContext {}

impl ReferenceContext {
    /// A context of `n_ctx` tokens.
    ///
    /// # Errors
    /// [`LlamaError::Context`].
    pub fn new(model: &Arc<Model>, n_ctx: usize, n_threads: u32) -> Result<Self, LlamaError> {
        let _ = last_log_lines();
        let no_context = |reason| LlamaError::Context { n_ctx: n_ctx as u32, reason };
        let pool = Pool::new(n_threads).ok_or_else(|| no_context(format!("{n_threads} threads cannot be started")))?;
        // SAFETY: the model is alive and outlives the context through the Arc; the pool is freed after the context.
        let raw = unsafe {
            let mut p = sys::llama_context_default_params();
            p.n_ctx = n_ctx as u32;
            p.n_batch = 2048;
            p.n_ubatch = N_UBATCH as u32;
            p.n_threads = n_threads as i32;
            p.n_threads_batch = n_threads as i32;
            p.swa_full = false;
            let model_raw = model.raw();
            let raw = guarded(|| throwing::llama_init_from_model(model_raw, p)).map_err(LlamaError::Failed)?;
            if raw.is_null() {
                return Err(no_context(last_log_lines()));
            }
            sys::llama_attach_threadpool(raw, pool.raw(), std::ptr::null_mut());
            raw
        };
        Ok(Self { raw, pool, model: Arc::clone(model), n_ctx })
    }

    /// Time that `llama_decode` takes for each of the sequences alone, one after the other, with the logits of the last
    /// token only.
    ///
    /// # Errors
    /// [`LlamaError::Batch`] for a sequence longer than the context, [`LlamaError::Decode`].
    pub fn prefill(&mut self, sequences: &[Vec<Token>]) -> Result<Duration, LlamaError> {
        self.awake(|ctx| {
            let started = Instant::now();
            for tokens in sequences {
                ctx.clear();
                ctx.decode(tokens)?;
            }
            Ok(started.elapsed())
        })
    }

    /// Decodes `prompt`, then takes the most likely token and decodes it, `n` times over, whatever it is. The time of the
    /// second part.
    ///
    /// # Errors
    /// As [`ReferenceContext::prefill`].
    pub fn generate(&mut self, prompt: &[Token], n: usize) -> Result<Duration, LlamaError> {
        if prompt.len() + n > self.n_ctx {
            return Err(too_long(prompt.len() + n, self.n_ctx));
        }
        self.awake(|ctx| {
            ctx.clear();
            ctx.decode(prompt)?;
            let mut sampler = Sampler::new(ctx.model.n_vocab(), &SamplerParams::default());
            let started = Instant::now();
            for _ in 0..n {
                let token = ctx.sample(&mut sampler);
                std::hint::black_box(ctx.model.token_bytes(token, false));
                ctx.decode(&[token])?;
            }
            Ok(started.elapsed())
        })
    }

    /// Does something with the pool's threads awake.
    fn awake<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, LlamaError>) -> Result<T, LlamaError> {
        self.pool.resume();
        let result = work(self);
        self.pool.pause();
        result
    }

    fn clear(&mut self) {
        // SAFETY: alive.
        unsafe { sys::llama_memory_clear(sys::llama_get_memory(self.raw), false) };
    }

    fn decode(&mut self, tokens: &[Token]) -> Result<(), LlamaError> {
        if tokens.len() > self.n_ctx {
            return Err(too_long(tokens.len(), self.n_ctx));
        }
        let mut tokens = tokens.to_vec();
        let _ = last_log_lines();
        for piece in tokens.chunks_mut(2048) {
            // SAFETY: the batch points at `piece`, which outlives the call; llama.cpp checks ids and positions.
            let (raw, n) = (self.raw, piece.len() as i32);
            // SAFETY: as below.
            let batch = unsafe { sys::llama_batch_get_one(piece.as_mut_ptr(), n) };
            // SAFETY: as above: the tokens outlive the call.
            let code = guarded(|| unsafe {
                let code = throwing::llama_decode(raw, batch);
                throwing::llama_synchronize(raw);
                code
            })
            .map_err(LlamaError::Failed)?;
            if code != 0 {
                return Err(LlamaError::Decode { code, n_tokens: piece.len(), reason: last_log_lines() });
            }
        }
        Ok(())
    }

    fn sample(&self, sampler: &mut Sampler) -> Token {
        // SAFETY: both are alive; a decode came before, and -1 names its last row, which has logits.
        unsafe { sys::llama_sampler_sample(sampler.raw(), self.raw, -1) }
    }
}

fn too_long(n_tokens: usize, n_ctx: usize) -> LlamaError {
    LlamaError::Batch(format!("{n_tokens} tokens do not fit a context of {n_ctx}"))
}

impl Drop for ReferenceContext {
    fn drop(&mut self) {
        // SAFETY: freed once, before the pool that it uses, which is a field.
        unsafe { sys::llama_free(self.raw) };
    }
}

/// The text of the first token of an answer, and what it took to get there: the calls of llama.cpp's `simple` example in
/// their order. Load the model with the defaults, tokenize `text` (special tokens read as such), make a context as large as
/// the prompt, a greedy sampler, one `llama_decode`, one sample, one piece.
///
/// # Errors
/// [`LlamaError`].
pub fn first_token(path: &std::path::Path, text: &str, n_threads: u32) -> Result<Vec<u8>, LlamaError> {
    let model = Model::load(
        path,
        &crate::llama::ModelParams {
            plain_weights: false,
            offload: crate::llama::Offload::default(),
            vocab_only: false,
        },
    )?;
    let mut tokens = model.tokenize(text, true, true)?;
    // SAFETY: the calls of `simple`, each with what the one before gave; freed on every way out below.
    unsafe {
        let mut p = sys::llama_context_default_params();
        p.n_ctx = tokens.len() as u32;
        p.n_batch = tokens.len() as u32;
        p.no_perf = false;
        // The example leaves llama.cpp's four threads; here both sides have the same number.
        p.n_threads = n_threads as i32;
        p.n_threads_batch = n_threads as i32;
        let model_raw = model.raw();
        let ctx = guarded(|| throwing::llama_init_from_model(model_raw, p)).map_err(LlamaError::Failed)?;
        if ctx.is_null() {
            return Err(LlamaError::Context { n_ctx: tokens.len() as u32, reason: last_log_lines() });
        }
        let mut sampler = Sampler::new(model.n_vocab(), &SamplerParams::default());
        let batch = sys::llama_batch_get_one(tokens.as_mut_ptr(), tokens.len() as i32);
        let chosen = sampler.raw();
        let decoded = guarded(|| {
            let code = throwing::llama_decode(ctx, batch);
            (code, if code == 0 { throwing::llama_sampler_sample(chosen, ctx, -1) } else { 0 })
        });
        let bytes = if let Ok((0, token)) = decoded {
            Ok(model.token_bytes(token, true))
        } else {
            let reason = decoded.as_ref().err().cloned().unwrap_or_else(last_log_lines);
            Err(LlamaError::Decode { code: decoded.map_or(-1, |d| d.0), n_tokens: tokens.len(), reason })
        };
        sys::llama_free(ctx);
        bytes
    }
}
