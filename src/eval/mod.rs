//! Measuring a model: scores of answers, protocols, statistics.

mod score;
pub mod stats;
pub mod truthfulqa;

pub use score::{AnswerScore, ScoreError, Scorer, ScorerParams};
