//! Measuring a model: scores of answers, protocols, statistics.

pub mod items;
mod score;
pub mod stats;
pub mod summary;
pub mod truthfulqa;

pub use score::{AnswerScore, ScoreError, Scorer, ScorerParams};
