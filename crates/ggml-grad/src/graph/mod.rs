//! The engine: lift llama.cpp's own graph (trace it and import it into the [`ir`]), differentiate it, run it with ggml.
//!
//! `capture` watches a decode, [`lift`] turns its upper part into the [`ir`], [`grad`] extends that by its gradient,
//! [`emit`] runs the result. `ggml_ops` maps ggml's ops to the IR's and back; `kernels` holds the kernels that ggml lacks or
//! computes slowly. [`passes`] rewrite graphs.

mod capture;
pub mod emit;
mod ggml_ops;
pub mod grad;
pub mod ir;
mod kernels;
pub mod lift;
pub mod passes;
mod recompute;

pub use kernels::cpu::{CpuLevel, CpuLevelError, cpu_level};
pub use kernels::head::logprobs::LmHead;
pub use kernels::kernel_override::FastKernels;
pub use kernels::numeric::log_sum_exp;

use crate::llama::{Batch, Context, LlamaError};
use capture::{Capture, CaptureMode};
use lift::{LiftError, Lifted};
use std::collections::{BTreeMap, BTreeSet};

pub use capture::marker;
pub use recompute::AttentionMemory;

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

/// A captured decode: the subgraph above the lowest layer, with the values that it needs.
pub struct Captured {
    /// The graph.
    pub lifted: Lifted,
    /// The residual stream at its lowest hook point, before a vector is added, `[n_rows, n_embd]`; empty where nothing was
    /// computed.
    pub residual: Vec<f32>,
    /// Values from below that are used above, by number of their node in the order of the decode.
    pub kept: SavedTensors,
}

/// Bytes of some nodes' results, by number of the node in the order of the decode.
pub type SavedTensors = BTreeMap<usize, Vec<u8>>;

/// Runs a batch up to the lowest of `layers`, which are in ascending order, and lifts the graph above it. The context must
/// carry the [`marker`]s as those layers' control vectors; its cache holds nothing of use afterwards. `keep`: numbers of
/// the nodes that an earlier capture had to keep; those that this one had to are put there.
pub fn capture_decode(
    ctx: &mut Context,
    batch: &Batch,
    layers: &[usize],
    keep: &mut BTreeSet<usize>,
) -> Result<Captured, CaptureError> {
    let mut before: Option<Vec<(u32, String)>> = None;
    loop {
        let mut capture = watch(ctx, batch, layers, keep.clone(), CaptureMode::Below)?;
        if before
            .is_some_and(|names| !capture.nodes.iter().map(|n| (n.op, &n.name)).eq(names.iter().map(|(o, n)| (*o, n))))
        {
            return Err(LiftError::Changed.into());
        }
        match lift::lift(&mut capture, batch.len(), layers, ctx.model()) {
            // Values from below the lowest layer that are used above it do not depend on the vectors: once it is known
            // which they are, another decode of the same batch brings them along.
            Err(LiftError::Below { numbers }) if !numbers.is_subset(keep) => {
                before = Some(capture.nodes.iter().map(|n| (n.op, n.name.clone())).collect());
                *keep = numbers;
            }
            lifted => return Ok(Captured { lifted: lifted?, residual: capture.residual, kept: capture.kept }),
        }
    }
}

/// As [`capture_decode`], but nothing is computed: what would have been comes from an earlier capture of the same batch. A
/// batch whose graph wants other values from below is refused with [`LiftError::Below`].
pub fn capture_structure(
    ctx: &mut Context,
    batch: &Batch,
    layers: &[usize],
    kept: SavedTensors,
) -> Result<Lifted, CaptureError> {
    let mut capture = watch(ctx, batch, layers, BTreeSet::new(), CaptureMode::Nothing)?;
    capture.kept = kept;
    Ok(lift::lift(&mut capture, batch.len(), layers, ctx.model())?)
}

fn watch(
    ctx: &mut Context,
    batch: &Batch,
    layers: &[usize],
    keep: BTreeSet<usize>,
    mode: CaptureMode,
) -> Result<Capture, LlamaError> {
    ctx.clear_kv();
    let mut capture = Capture::new(ctx.model().n_embd(), layers, keep, mode);
    let outcome = ctx.decode_with_callback(batch, &mut capture);
    // The cache lacks what was not computed.
    ctx.clear_kv();
    outcome.map(|()| capture)
}
