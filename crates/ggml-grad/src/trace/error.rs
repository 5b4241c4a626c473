//! Errors of tracing.

use crate::graph::CaptureError;
use crate::graph::emit::RunError;
use crate::graph::ir::IrError;
use crate::llama::{LlamaError, Token, Unsupported};

/// Errors between tokens and a gradient.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// llama.cpp.
    #[error(transparent)]
    Llama(#[from] LlamaError),
    /// The kind of model.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// The graph cannot be captured or lifted.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The graph cannot be differentiated.
    #[error(transparent)]
    Grad(#[from] IrError),
    /// The graph cannot be run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Weights on a GPU or a worker.
    #[error("the weights of the model are not all in the CPU's memory ({placement}): load it with Offload::none()")]
    Offloaded {
        /// Placement of the layers.
        placement: String,
    },
    /// No layer, a layer out of range, or one named twice.
    #[error("layers {layers:?} cannot be traced: give at least one, each once, from 1 to {last}")]
    Layers {
        /// The layers asked for.
        layers: Vec<usize>,
        /// The last layer that has a hook point.
        last: usize,
    },
    /// A layer that the trace has no hook point at.
    #[error("layer {layer} is not traced: the layers of this trace are {traced:?}")]
    NotTraced {
        /// The layer asked for.
        layer: usize,
        /// The traced layers.
        traced: Vec<usize>,
    },
    /// A vector of another width than the residual stream.
    #[error("a vector of {found} components cannot be added to a residual stream of width {n_embd}")]
    Width {
        /// Components given.
        found: usize,
        /// Components needed.
        n_embd: usize,
    },
    /// No target.
    #[error("there is no target: give at least one position and token")]
    NoTarget,
    /// A target at a position without logits.
    #[error("position {position} has no logits: the batch asked for those of {n_outputs} of its {n_tokens} tokens")]
    Position {
        /// The position asked for.
        position: usize,
        /// Positions with logits.
        n_outputs: usize,
        /// Tokens in the batch.
        n_tokens: usize,
    },
    /// A target token outside the vocabulary.
    #[error("token {token} is not in the vocabulary of {n_vocab} tokens")]
    Token {
        /// The token asked for.
        token: Token,
        /// Size of the vocabulary.
        n_vocab: usize,
    },
    /// A residual stream of a shape that this version does not know.
    #[error("the residual stream at layer {layer} has {n_rows} rows for {n_tokens} tokens")]
    Rows {
        /// The layer.
        layer: usize,
        /// Rows found.
        n_rows: usize,
        /// Tokens in the batch.
        n_tokens: usize,
    },
}
