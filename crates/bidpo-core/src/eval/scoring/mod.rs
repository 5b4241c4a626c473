//! Log-probabilities of answers after prompts, on tokens: what is decoded together, and the LM head that gives the numbers.

mod error;
mod lm_head;
mod pack;
mod scorer;

pub use error::ScoreError;
pub use pack::{Plan, Request};
pub use scorer::{AnswerScore, Scorer, ScorerParams, TokenRequest};
