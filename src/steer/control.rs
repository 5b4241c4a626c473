//! A control vector ready for llama.cpp.

use crate::llama::{Context, LlamaError};

/// What is added to the residual stream, one row for each layer from 1.
#[derive(Debug, Clone, PartialEq)]
pub struct ControlVector {
    /// `[n_layer - 1, n_embd]`, the first row for layer 1.
    pub data: Vec<f32>,
    /// First steered layer.
    pub first: usize,
    /// Last steered layer.
    pub last: usize,
}

impl ControlVector {
    /// Sets it on a context, whose KV cache is cleared.
    ///
    /// # Errors
    /// [`LlamaError::ControlVector`] when it does not fit the model.
    pub fn apply(&self, ctx: &mut Context) -> Result<(), LlamaError> {
        ctx.set_control_vector(&self.data, self.first, self.last)
    }
}
