//! Measuring a model: scores of answers, protocols, statistics.

mod head;
pub mod items;
mod pack;
mod score;
pub mod stats;
pub mod summary;
pub mod truthfulqa;

pub use pack::{Plan, Request};
pub use score::{AnswerScore, ScoreError, Scorer, ScorerParams};
