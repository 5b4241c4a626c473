//! The engine: lift llama.cpp's own graph, differentiate it, run it with ggml.
//!
//! [`capture`] watches a decode, [`lift`] turns its upper part into the [`ir`], [`grad`] extends that by its gradient,
//! [`emit`] runs the result. [`kernels`] holds the two kernels that ggml has no fast equivalent of.

mod capture;
pub mod emit;
pub mod grad;
pub mod ir;
mod kernels;
pub mod lift;

pub(crate) use kernels::head::log_sum_exp;

use crate::llama::{Batch, Context, LlamaError};
use lift::{LiftError, Lifted};

pub(crate) use capture::marker;

/// A decode that could not be captured.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// llama.cpp.
    #[error(transparent)]
    Llama(#[from] LlamaError),
    /// The graph cannot be lifted.
    #[error(transparent)]
    Lift(#[from] LiftError),
}

/// Decodes a batch and lifts its graph above `layer`. The context must carry [`marker`] as that layer's control vector
/// and an empty cache. Returns the lifted graph and the residual stream at the entry, `[n_rows, n_embd]`.
pub(crate) fn capture_decode(
    ctx: &mut Context,
    batch: &Batch,
    layer: usize,
) -> Result<(Lifted, Vec<f32>), CaptureError> {
    let arch = ctx.model().architecture();
    let mut capture = capture::Capture::new(ctx.model().n_embd());
    ctx.decode_tapped(batch, &mut capture)?;
    let lifted = lift::lift(&capture, batch.len(), layer, &arch)?;
    Ok((lifted, std::mem::take(&mut capture.residual)))
}
