//! Errors of the engine.

use ggml_grad::graph::CaptureError;
use ggml_grad::graph::emit::RunError;
use ggml_grad::graph::ir::IrError;
use ggml_grad::llama::{LlamaError, Unsupported};

/// Errors between a pair and its gradient.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// llama.cpp.
    #[error(transparent)]
    Llama(#[from] LlamaError),
    /// The graph cannot be captured or lifted.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The graph cannot be differentiated.
    #[error(transparent)]
    Grad(#[from] IrError),
    /// The graph cannot be run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A kind of model that cannot be trained on.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// A model that cannot be trained on, or a layer it does not have.
    #[error("{0}")]
    Model(String),
    /// A pair that cannot be used.
    #[error("{0}")]
    Pair(String),
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
