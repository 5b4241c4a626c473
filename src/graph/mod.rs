//! The engine: lift llama.cpp's own graph, differentiate it, run it with ggml.
//!
//! [`capture`] watches a decode, [`lift`] turns its upper part into the [`ir`], [`grad`] extends that by its gradient,
//! [`emit`] runs the result. [`kernels`] holds the kernels that ggml has no (fast) equivalent of.

mod attention;
mod capture;
pub mod emit;
pub mod grad;
pub mod ir;
mod kernels;
pub mod lift;

pub(crate) use kernels::head::log_sum_exp;
pub(crate) use kernels::logprobs::OutputHead;

use crate::llama::{Batch, Context, LlamaError};
use lift::{LiftError, Lifted};
use std::collections::BTreeSet;

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
    let n_embd = ctx.model().n_embd();
    let mut capture = capture::Capture::new(n_embd, layers, BTreeSet::new());
    ctx.decode_tapped(batch, &mut capture)?;
    let lifted = match lift::lift(&mut capture, batch.len(), layers, &arch) {
        // Values from below the lowest layer that are used above it do not depend on the vectors: once it is known which
        // they are, a second decode of the same batch brings them along.
        Err(LiftError::Below { numbers }) => {
            let names: Vec<(u32, String)> = capture.nodes.iter().map(|n| (n.op, n.name.clone())).collect();
            capture = capture::Capture::new(n_embd, layers, numbers);
            ctx.clear_kv();
            ctx.decode_tapped(batch, &mut capture)?;
            if !capture.nodes.iter().map(|n| (n.op, &n.name)).eq(names.iter().map(|(op, name)| (*op, name))) {
                return Err(LiftError::Changed.into());
            }
            lift::lift(&mut capture, batch.len(), layers, &arch)?
        }
        other => other?,
    };
    Ok((lifted, std::mem::take(&mut capture.residual)))
}
