//! Errors of the engine.

use super::AdapterRefusal;
use ggml_grad::graph::CaptureError;
use ggml_grad::graph::emit::RunError;
use ggml_grad::graph::ir::IrError;
use ggml_grad::llama::{LlamaError, Unsupported};
use ggml_grad::trace::TraceError;

/// Errors between a pair and its gradient.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The model, its graph, or a run of it.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// A model that cannot be trained on, or a layer it does not have.
    #[error("{0}")]
    Model(String),
    /// A pair that cannot be used.
    #[error("{0}")]
    Pair(String),
    /// An adapter that cannot be trained.
    #[error(transparent)]
    Adapter(#[from] AdapterRefusal),
    /// The adapter's file for llama.cpp.
    #[error(transparent)]
    AdapterFile(#[from] crate::adapter::AdapterError),
    /// A vector that is loaded beside what is trained and does not fit the model.
    #[error(transparent)]
    Steering(#[from] crate::steer::SteerError),
    /// The system gives no thread.
    #[error("cannot start a thread for a batch: {0}")]
    Thread(std::io::Error),
    /// The lifted graph and `llama_decode` disagree.
    #[error(
        "the lifted graph disagrees with llama_decode on this model: largest logit difference {max_diff:.3e} over \
         {n_logits} logits ({what}); training would optimise something else than what llama.cpp runs, so bidpo refuses. \
         `bidpo check` shows the details"
    )]
    Disagrees {
        /// The largest absolute difference.
        max_diff: f32,
        /// Number of logits compared.
        n_logits: usize,
        /// At which vector.
        what: &'static str,
    },
}

/// Errors that a trace may have, by the way of [`TraceError`].
macro_rules! from_trace {
    ($($source:ty),*) => {$(
        impl From<$source> for EngineError {
            fn from(source: $source) -> Self {
                Self::Trace(source.into())
            }
        }
    )*};
}

from_trace!(LlamaError, CaptureError, IrError, RunError, Unsupported);
