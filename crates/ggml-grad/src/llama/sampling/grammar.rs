//! Grammars in llama.cpp's GBNF: which tokens may come next.
//!
//! The form and the texts are llama.cpp's. Its own sampler is not used, but in the tests: it follows each way to read a text by
//! itself and cannot be stopped, so that a short grammar can hold a server for hours. Here a step is bounded.

mod position;
mod read;
mod rules;
mod stacks;
#[cfg(test)]
mod tests;

pub use read::GrammarError;

use crate::llama::model::Pieces;
use crate::llama::process::guard::{guarded, throwing};
use crate::llama::{Context, LlamaError, Model, Sampler, Token, sys};
use position::Position;
use std::sync::Arc;

/// A grammar at some point of a text.
#[derive(Clone)]
pub struct Grammar {
    position: Position,
    /// The vocabulary.
    pieces: Arc<Pieces>,
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Grammar")
    }
}

impl Grammar {
    /// Reads a grammar, whose texts are those of its rule `root`.
    ///
    /// # Errors
    /// [`GrammarError`] with the place of a mistake, or the limit that the grammar exceeds.
    pub fn new(model: &Arc<Model>, gbnf: &str) -> Result<Self, GrammarError> {
        Ok(Self { position: Position::new(gbnf)?, pieces: model.pieces() })
    }

    /// True if the token may come next.
    fn allows(&mut self, token: Token) -> Result<bool, GrammarError> {
        match usize::try_from(token).ok().and_then(|token| self.pieces.text(token)) {
            None => Ok(false),
            Some(text) => self.position.allows(text),
        }
    }

    /// Moves on by a token; false, and no move, where it may not come next.
    fn accept(&mut self, token: Token) -> Result<bool, GrammarError> {
        match usize::try_from(token).ok().and_then(|token| self.pieces.text(token)) {
            None => Ok(false),
            Some(text) => self.position.accept(text),
        }
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
    /// As [`Sampler::sample`], and [`LlamaError::Grammar`] for a grammar that is too ambiguous at this point.
    pub fn sample_within(
        &mut self,
        ctx: &Context,
        row: usize,
        grammar: &mut Grammar,
    ) -> Result<Option<Token>, LlamaError> {
        let logits = ctx.finite_logits(row)?;
        let all = || -> Vec<sys::llama_token_data> {
            let one = |(i, &logit): (usize, &f32)| sys::llama_token_data { id: i as Token, logit, p: 0.0 };
            logits.iter().enumerate().map(one).collect()
        };
        let mut chosen = apply(self.raw(), &mut all())?;
        if let Some(token) = chosen {
            let is_allowed = grammar.allows(token.id)?;
            chosen = chosen.filter(|_| is_allowed);
        }
        if chosen.is_none() {
            let allowed = grammar.position.allowed(&grammar.pieces)?;
            let mut tokens = all();
            tokens.retain(|t| allowed.get(t.id as usize) == Some(&true));
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
        Ok(Some(token.id))
    }
}
