//! Errors of the benchmark.

use crate::chat::ChatError;
use crate::data::truthfulqa::TruthfulQaError;
use crate::data::{PrefsError, TemplateError};
use crate::engine::EngineError;
use crate::eval::ScoreError;
use crate::extract::ExtractError;
use crate::intervention::{KindError, LoraError};
use crate::train::TrainError;
use ggml_grad::llama::LlamaError;
use std::path::PathBuf;

/// A measurement that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// llama.cpp.
    #[error(transparent)]
    Llama(#[from] LlamaError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A training step.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// A kind of intervention that this model cannot have.
    #[error(transparent)]
    Kind(#[from] KindError),
    /// An adapter that this model cannot have.
    #[error(transparent)]
    Lora(#[from] LoraError),
    /// A loss or gradient of a measured training step is not finite.
    #[error("a loss or gradient of the measured training step is not finite: the model cannot be trained on")]
    NotFinite,
    /// The chat template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The built-in pairs.
    #[error(transparent)]
    Prefs(#[from] PrefsError),
    /// Extraction.
    #[error(transparent)]
    Extract(#[from] ExtractError),
    /// Generation.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// Scoring.
    #[error(transparent)]
    Score(#[from] ScoreError),
    /// The file of questions.
    #[error(transparent)]
    TruthfulQa(#[from] TruthfulQaError),
    /// A file of this benchmark.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// A process that was measured failed.
    #[error("{what} failed: {reason}")]
    Child {
        /// The kind of work.
        what: &'static str,
        /// Its last words.
        reason: String,
    },
}
