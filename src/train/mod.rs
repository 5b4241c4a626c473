//! Training: objective, optimizer, trainer, and the engine that scores and differentiates captured pairs.

mod engine;

pub use engine::{Agreement, Engine, EngineError, Example, PairLogp, PairTokens, Scored, check_model, median};
