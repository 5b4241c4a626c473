//! Measuring a model, in two steps that are kept apart: [`run`] asks the model and writes [`results`], [`analysis`] and
//! [`report`] compute every figure from them.

pub mod analysis;
pub mod benchmark;
pub mod caa;
pub mod condition;
mod head;
pub mod judge;
pub mod manner;
pub mod measure;
pub mod overlap;
mod pack;
pub mod prompt;
pub mod protocol;
pub mod report;
pub mod results;
pub mod run;
mod score;
pub mod sweep;
pub mod text;
pub mod truthfulqa;
pub mod write;

pub use pack::{Plan, Request};
pub use score::{AnswerScore, ScoreError, Scorer, ScorerParams, TokenRequest};
