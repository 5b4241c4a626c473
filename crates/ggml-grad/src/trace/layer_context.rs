//! A llama.cpp context at some layers: decodes are captured there, or steered there.

use crate::graph::lift::Lifted;
use crate::graph::{CaptureError, Captured, SavedTensors, capture_decode, capture_structure, marker};
use crate::llama::{Adapter, Batch, Context, KernelOverride, LlamaError};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// An adapter with its scale.
type Scaled = (Arc<Adapter>, f32);

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
    /// Adapters that captures and decodes run with.
    adapters: Vec<Scaled>,
    /// Vectors that captures and decodes run with, `[n_embd]` at each of their layers.
    vectors: BTreeMap<usize, Vec<f32>>,
    carried: Carried,
    /// Nodes below the lowest layer whose results are used above it, by their number in the order of the decode: an earlier
    /// capture found them.
    saved: BTreeSet<usize>,
}

impl LayerContext {
    /// A context at `layers`, in ascending order. Layer 0 is the tokens' embeddings: nothing can be added there, but the graph
    /// above it can be captured.
    pub fn new(ctx: Context, layers: &[usize]) -> Self {
        Self {
            ctx,
            layers: layers.to_vec(),
            adapters: Vec::new(),
            vectors: BTreeMap::new(),
            carried: Carried::Others,
            saved: BTreeSet::new(),
        }
    }

    /// The same context at other layers, in ascending order.
    pub fn set_layers(&mut self, layers: &[usize]) {
        if self.layers != layers {
            (self.layers, self.carried, self.saved) = (layers.to_vec(), Carried::Others, BTreeSet::new());
        }
    }

    /// Sets the adapters, each with its scale, that later captures and decodes run with.
    pub fn set_adapters(&mut self, adapters: Vec<Scaled>) {
        (self.adapters, self.saved) = (adapters, BTreeSet::new());
    }

    /// Sets vectors, `[n_embd]` at each of their layers, that later captures and decodes run with beside those that a decode is
    /// given. At the context's own layers a captured graph lacks them: whoever runs it adds them to the vectors there.
    pub fn set_vectors(&mut self, vectors: BTreeMap<usize, Vec<f32>>) {
        (self.vectors, self.carried, self.saved) = (vectors, Carried::Others, BTreeSet::new());
    }

    /// Puts adapters on the context where others lie there.
    fn switch(&mut self, adapters: &[Scaled]) -> Result<(), LlamaError> {
        let now = self.ctx.adapters();
        let same = |((a, scale), (b, other)): (&Scaled, &Scaled)| Arc::ptr_eq(a, b) && scale == other;
        if now.len() == adapters.len() && now.iter().zip(adapters).all(same) {
            return Ok(());
        }
        self.ctx.set_adapters(adapters)
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
        let adapters = self.adapters.clone();
        self.switch(&adapters)?;
        if self.carried != Carried::Markers {
            let n_embd = self.ctx.model().n_embd();
            let markers: Vec<f32> = self.layers.iter().flat_map(|&l| marker(n_embd, l)).collect();
            self.put(&markers, |_, marker| marker)?;
            self.carried = Carried::Markers;
        }
        Ok(())
    }

    /// Puts vectors, `[n_layers, n_embd]` or none, on the context; where the context has a vector of its own, what `join` makes of
    /// it and the given one. At layer 0 llama.cpp adds none.
    fn put(&mut self, vectors: &[f32], join: fn(f32, f32) -> f32) -> Result<(), LlamaError> {
        let mut all = self.vectors.clone();
        for (&layer, v) in self.layers.iter().zip(vectors.chunks_exact(self.ctx.model().n_embd())) {
            match all.entry(layer) {
                _ if layer == 0 => {}
                Entry::Vacant(free) => drop(free.insert(v.to_vec())),
                Entry::Occupied(mut own) => own.get_mut().iter_mut().zip(v).for_each(|(x, &v)| *x = join(*x, v)),
            }
        }
        if all.is_empty() {
            self.ctx.clear_control_vector();
            return Ok(());
        }
        let (layers, rows): (Vec<usize>, Vec<Vec<f32>>) = all.into_iter().unzip();
        self.ctx.set_layer_vectors(&layers, &rows.concat())
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
    /// control vector but the context's own. [`LayerContext::logits`] has the result.
    ///
    /// # Errors
    /// [`LlamaError`].
    pub fn decode(&mut self, batch: &Batch, vectors: Option<&[f32]>) -> Result<(), LlamaError> {
        let adapters = self.adapters.clone();
        self.decode_with(batch, vectors, &adapters)
    }

    /// As [`LayerContext::decode`], with these adapters in place of the context's own.
    ///
    /// # Errors
    /// [`LlamaError`].
    pub fn decode_with(
        &mut self,
        batch: &Batch,
        vectors: Option<&[f32]>,
        adapters: &[Scaled],
    ) -> Result<(), LlamaError> {
        self.switch(adapters)?;
        self.carried = Carried::Others;
        self.put(vectors.unwrap_or(&[]), |own, v| own + v)?;
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
