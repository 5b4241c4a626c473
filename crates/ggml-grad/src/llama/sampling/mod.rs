//! Choosing the next token: sampler chains and grammars.

mod grammar;
mod sampler;

pub use grammar::{Grammar, GrammarError};
pub use sampler::{PenaltyParams, Sampler, SamplerParams};
