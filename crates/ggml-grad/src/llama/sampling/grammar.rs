//! Grammars in llama.cpp's GBNF: which tokens may come next.

use crate::llama::process::guard::{guarded, throwing};
use crate::llama::{Context, LlamaError, Model, Sampler, Token, sys};
use std::ffi::CString;
use std::sync::Arc;
use std::time::{Duration, Instant};

mod check;

pub use check::GrammarError;

/// Time limit for one step: ambiguous grammars can need exponential time.
const STEP_TIME: Duration = Duration::from_secs(2);

/// A grammar at some point of a text.
pub struct Grammar {
    raw: *mut sys::llama_sampler,
    /// The vocabulary that it looks tokens up in.
    model: Arc<Model>,
}

// SAFETY: a grammar sampler holds no thread-local state; the vocabulary it reads is never written.
unsafe impl Send for Grammar {}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Grammar")
    }
}

impl Grammar {
    /// Reads a grammar whose first rule to be met is `root`.
    ///
    /// # Errors
    /// [`GrammarError`] with the place of a mistake.
    pub fn new(model: &Arc<Model>, gbnf: &str) -> Result<Self, GrammarError> {
        check::check(gbnf)?;
        let text = CString::new(gbnf).map_err(|_| GrammarError::new(gbnf, 0, "the text holds a NUL character"))?;
        let (vocab, text) = (model.vocab(), text.as_c_str());
        // SAFETY: the vocabulary lives as long as the model; the texts end with NUL and are copied.
        let raw = guarded(|| unsafe { throwing::llama_sampler_init_grammar(vocab, text.as_ptr(), c"root".as_ptr()) });
        match raw {
            Ok(raw) if !raw.is_null() => Ok(Self { raw, model: Arc::clone(model) }),
            Ok(_) => Err(GrammarError::Refused("a rule may begin with itself (left recursion)".into())),
            Err(reason) => Err(GrammarError::Refused(reason)),
        }
    }

    /// A copy at the same point.
    ///
    /// # Errors
    /// [`LlamaError::Failed`] with llama.cpp's reason.
    pub fn copy(&self) -> Result<Self, LlamaError> {
        let from = self.raw;
        // SAFETY: alive.
        let raw = guarded(|| unsafe { throwing::llama_sampler_clone(from) }).map_err(LlamaError::Failed)?;
        Ok(Self { raw, model: Arc::clone(&self.model) })
    }

    /// Sets the logits of the tokens that may not come next to minus infinity.
    fn restrict(&self, tokens: &mut [sys::llama_token_data]) -> Result<(), LlamaError> {
        apply(self.raw, tokens).map(drop)
    }

    /// Moves on by a token that may come next.
    fn accept(&mut self, token: Token) -> Result<(), LlamaError> {
        let raw = self.raw;
        // SAFETY: alive.
        guarded(|| unsafe { throwing::llama_sampler_accept(raw, token) }).map_err(LlamaError::Failed)
    }
}

impl Drop for Grammar {
    fn drop(&mut self) {
        // SAFETY: freed once.
        unsafe { sys::llama_sampler_free(self.raw) };
    }
}

/// Applies a sampler; the chosen candidate, if it chooses one.
fn apply(
    sampler: *mut sys::llama_sampler,
    tokens: &mut [sys::llama_token_data],
) -> Result<Option<sys::llama_token_data>, LlamaError> {
    let mut list =
        sys::llama_token_data_array { data: tokens.as_mut_ptr(), size: tokens.len(), selected: -1, sorted: false };
    let pointer = &raw mut list;
    // SAFETY: sampler and list are alive; samplers shorten and reorder the list in place.
    guarded(|| unsafe { throwing::llama_sampler_apply(sampler, pointer) }).map_err(LlamaError::Failed)?;
    let at = usize::try_from(list.selected).ok().filter(|&at| at < list.size);
    Ok(at.and_then(|at| tokens.get(at).copied()))
}

impl Sampler {
    /// As [`Sampler::sample`], among the tokens that the grammar allows; `None` where it allows none. A token that the
    /// sampler chooses without the grammar is looked at first: most often it is allowed, and the whole vocabulary need not be.
    ///
    /// # Errors
    /// As [`Sampler::sample`], and [`LlamaError::Failed`] for a grammar that takes too long.
    pub fn sample_within(
        &mut self,
        ctx: &Context,
        row: usize,
        grammar: &mut Grammar,
    ) -> Result<Option<Token>, LlamaError> {
        let logits = ctx.finite_logits(row)?;
        let started = Instant::now();
        let all = || -> Vec<sys::llama_token_data> {
            let one = |(i, &logit): (usize, &f32)| sys::llama_token_data { id: i as Token, logit, p: 0.0 };
            logits.iter().enumerate().map(one).collect()
        };
        let mut chosen = apply(self.raw(), &mut all())?;
        if let Some(token) = chosen {
            let mut alone = [sys::llama_token_data { logit: 0.0, ..token }];
            grammar.restrict(&mut alone)?;
            chosen = chosen.filter(|_| alone[0].logit.is_finite());
        }
        if chosen.is_none() {
            let mut tokens = all();
            grammar.restrict(&mut tokens)?;
            tokens.retain(|t| t.logit.is_finite());
            if tokens.is_empty() {
                return Ok(None);
            }
            chosen = apply(self.raw(), &mut tokens)?;
        }
        let Some(token) = chosen.filter(|t| t.logit.is_finite()) else { return Ok(None) };
        let raw = self.raw();
        // SAFETY: alive.
        guarded(|| unsafe { throwing::llama_sampler_accept(raw, token.id) }).map_err(LlamaError::Failed)?;
        grammar.accept(token.id)?;
        if started.elapsed() > STEP_TIME {
            return Err(LlamaError::Failed(format!(
                "the grammar is too ambiguous: one token took {:.1} s",
                started.elapsed().as_secs_f64()
            )));
        }
        Ok(Some(token.id))
    }
}
