//! Evaluation, in two steps that are kept apart: [`runs`] runs inference and records [`results`]; [`analysis`] and
//! [`report`] compute every number from them.
//!
//! Arrows between the modules, from the top: [`judging`], [`task`] -> [`runs`] -> [`conditions`] -> [`prompt`] ->
//! [`items`], [`scoring`]; [`calibrate`] -> [`price`] -> [`runs`], [`measures`]; [`analysis`], [`report`] -> [`measures`] -> [`results`].

pub mod analysis;
pub mod calibrate;
pub mod conditions;
pub mod items;
pub mod judging;
pub mod measures;
pub mod price;
pub mod prompt;
pub mod report;
pub mod results;
pub mod runs;
pub mod scoring;
pub mod sweep;
pub mod task;

pub use items::truthfulqa;
pub use scoring::{AnswerScore, Plan, Request, ScoreError, Scorer, ScorerParams, TokenRequest};
