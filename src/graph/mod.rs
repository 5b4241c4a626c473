//! The engine: lift llama.cpp's own graph, differentiate it, run it with ggml.
//!
//! [`capture`] watches a decode, [`lift`] turns its upper part into the [`ir`], [`grad`] extends that by its gradient,
//! [`emit`] runs the result. [`kernels`] holds the two kernels that ggml has no fast equivalent of.

mod attention;
mod capture;
pub mod emit;
pub mod grad;
pub mod ir;
mod kernels;
pub mod lift;

pub(crate) use kernels::head::log_sum_exp;

use crate::llama::{Batch, Context, LlamaError};
use lift::{LiftError, Lifted};

pub use attention::AttentionMemory;
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

/// Decodes a batch and lifts its graph above the lowest of `layers`, which are in ascending order. The context must carry
/// the [`marker`]s as those layers' control vectors and an empty cache. Returns the lifted graph and the residual stream
/// at its entry, `[n_rows, n_embd]`.
pub(crate) fn capture_decode(
    ctx: &mut Context,
    batch: &Batch,
    layers: &[usize],
) -> Result<(Lifted, Vec<f32>), CaptureError> {
    let arch = ctx.model().architecture();
    let mut capture = capture::Capture::new(ctx.model().n_embd(), layers);
    ctx.decode_tapped(batch, &mut capture)?;
    let lifted = lift::lift(&mut capture, batch.len(), layers, &arch)?;
    Ok((lifted, std::mem::take(&mut capture.residual)))
}
