//! Errors of a training run.

use super::checkpoint::CheckpointError;
use crate::engine::EngineError;
use ggml_grad::memory::text;

/// A run that cannot start or continue.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Model, pairs, graph.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A pair that cannot be used, with its name.
    #[error("pair {pair}: {source}")]
    Pair {
        /// The pair's id and origin.
        pair: String,
        /// What is wrong.
        source: EngineError,
    },
    /// The checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The longest pair needs more memory than there is.
    #[error(
        "{} tokens (pair {pair}) need {} for a gradient, the captured pairs {} and the model's weights {}, but {} are free: \
         leave out the longest pairs, choose a higher layer, free memory, or add --allow-swap to train very slowly",
        tokens, text(*step_bytes), text(*captured_bytes), text(*model_bytes), text(*available)
    )]
    Memory {
        /// The longest pair.
        pair: String,
        /// Its tokens.
        tokens: usize,
        /// Bytes of activations for its gradient.
        step_bytes: u64,
        /// Bytes of all captured pairs, at most.
        captured_bytes: u64,
        /// Bytes of weights that lie in the mapped file, whose memory the system counts as free.
        model_bytes: u64,
        /// Bytes that the system has left.
        available: u64,
    },
    /// The user interrupted a measurement.
    #[error("interrupted")]
    Interrupted,
    /// Settings that cannot be used, or an interruption before there is anything to save.
    #[error("{0}")]
    Config(String),
}
