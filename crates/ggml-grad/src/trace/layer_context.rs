//! A llama.cpp context at some layers: decodes are captured there, or steered there.

use crate::graph::lift::Lifted;
use crate::graph::{CaptureError, Captured, SavedTensors, capture_decode, capture_structure, marker};
use crate::llama::{Batch, Context, KernelOverride, LlamaError};
use std::collections::BTreeSet;

/// The control vectors that a context carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carried {
    /// The markers by which a capture finds the hook points.
    Markers,
    /// Any others, or none.
    Others,
}

/// A context whose control vectors belong to some layers: markers while a decode is captured, vectors while one is steered.
#[derive(Debug)]
pub struct LayerContext {
    ctx: Context,
    /// Ascending.
    layers: Vec<usize>,
    carried: Carried,
    /// Nodes below the lowest layer whose results are used above it, by their number in the order of the decode: an earlier
    /// capture found them.
    saved: BTreeSet<usize>,
}

impl LayerContext {
    /// A context at `layers`, in ascending order.
    pub fn new(ctx: Context, layers: &[usize]) -> Self {
        Self { ctx, layers: layers.to_vec(), carried: Carried::Others, saved: BTreeSet::new() }
    }

    /// The same context at other layers, in ascending order.
    pub fn set_layers(&mut self, layers: &[usize]) {
        if self.layers != layers {
            (self.layers, self.carried, self.saved) = (layers.to_vec(), Carried::Others, BTreeSet::new());
        }
    }

    /// The layers, lowest first.
    pub fn layers(&self) -> &[usize] {
        &self.layers
    }

    /// Threads of a decode.
    pub fn n_threads(&self) -> u32 {
        self.ctx.n_threads()
    }

    /// See [`Context::set_kernel_override`].
    pub fn set_kernel_override(
        &mut self,
        kernel_override: Option<Box<dyn KernelOverride>>,
    ) -> Option<Box<dyn KernelOverride>> {
        self.ctx.set_kernel_override(kernel_override)
    }

    fn mark(&mut self) -> Result<(), LlamaError> {
        if self.carried != Carried::Markers {
            let n_embd = self.ctx.model().n_embd();
            let markers: Vec<f32> = self.layers.iter().flat_map(|&l| marker(n_embd, l)).collect();
            self.ctx.set_layer_vectors(&self.layers, &markers)?;
            self.carried = Carried::Markers;
        }
        Ok(())
    }

    /// Runs a batch up to the lowest layer and lifts the graph above it.
    ///
    /// # Errors
    /// [`CaptureError`].
    pub fn capture(&mut self, batch: &Batch) -> Result<Captured, CaptureError> {
        self.mark()?;
        capture_decode(&mut self.ctx, batch, &self.layers, &mut self.saved)
    }

    /// Lifts the graph of a batch without computing anything. `saved`: values from an earlier capture of the same batch.
    ///
    /// # Errors
    /// [`CaptureError`].
    pub fn capture_structure(&mut self, batch: &Batch, saved: SavedTensors) -> Result<Lifted, CaptureError> {
        self.mark()?;
        capture_structure(&mut self.ctx, batch, &self.layers, saved)
    }

    /// Decodes a batch by llama.cpp alone, with `vectors`, `[n_layers, n_embd]`, added at the layers; `None`: without a
    /// control vector. [`LayerContext::logits`] has the result.
    ///
    /// # Errors
    /// [`LlamaError`].
    pub fn decode(&mut self, batch: &Batch, vectors: Option<&[f32]>) -> Result<(), LlamaError> {
        self.carried = Carried::Others;
        match vectors {
            Some(vectors) => self.ctx.set_layer_vectors(&self.layers, vectors)?,
            None => self.ctx.clear_control_vector(),
        }
        let kernel_override = self.ctx.set_kernel_override(None);
        let decoded = self.ctx.decode(batch);
        self.ctx.set_kernel_override(kernel_override);
        decoded
    }

    /// Logits of the last decode for a row of its batch, `[n_vocab]`.
    ///
    /// # Errors
    /// As [`Context::logits`].
    pub fn logits(&self, row: usize) -> Result<&[f32], LlamaError> {
        self.ctx.logits(row)
    }

    /// Forgets what was decoded.
    pub fn clear_kv(&mut self) {
        self.ctx.clear_kv();
    }
}
