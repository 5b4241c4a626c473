//! Steering that differs from row to row of a batch: added to the residual stream from the eval callback.
//!
//! `llama_set_adapter_cvec` adds one vector to every row. Here each row of the batch has a vector of its own, or none: the
//! callback adds it to that row of `l_out-N`, the output of block N, before the next block reads it. The sum is the one
//! that ggml makes (`x + v` in f32), so the logits are the same to the last bit.

use super::{ControlVector, GateMemory};
use ggml_grad::llama::{Batch, BatchRow, Context, DType, EvalCallback, LlamaError, Node};
use std::collections::BTreeMap;

/// Decodes `batch`, adding to each row its own control vector. `rows`: one entry for each token of the batch.
///
/// The batch must be one that llama.cpp computes in one pass without reordering: at most `n_batch` tokens; and where each
/// sequence has a cache of its own, all sequences with the same number of tokens, in order, their ids following one another.
///
/// Adapters act on every row: those of the rows must be on the context ([`crate::adapter::Adapters::switch_to`]).
///
/// # Errors
/// [`LlamaError::Batch`] for lengths that do not fit and for rows under other adapters than the context's, [`LlamaError::Unsupported`] for a model in whose graph the output of a
/// steered block is not found once, and as [`Context::decode`]. After an error the batch's part of the cache is undefined.
pub fn decode_steered(ctx: &mut Context, batch: &Batch, rows: &[Option<&ControlVector>]) -> Result<(), LlamaError> {
    decode_steered_with(ctx, batch, rows, &mut GateMemory::default())
}

/// As [`decode_steered`]; `memory` holds what gates decided in earlier batches of the same sequences.
///
/// # Errors
/// As [`decode_steered`].
pub fn decode_steered_with(
    ctx: &mut Context,
    batch: &Batch,
    rows: &[Option<&ControlVector>],
    memory: &mut GateMemory,
) -> Result<(), LlamaError> {
    let (n_layer, n_embd) = (ctx.model().n_layer(), ctx.model().n_embd());
    if rows.len() != batch.len() {
        return Err(LlamaError::Batch(format!("{} steered rows for {} tokens", rows.len(), batch.len())));
    }
    if let Some(v) = rows.iter().flatten().find(|v| v.data.len() != (n_layer - 1) * n_embd) {
        let text = format!("a control vector of {} numbers on a model of {n_layer} x {n_embd}", v.data.len());
        return Err(LlamaError::ControlVector(text));
    }
    // Adapters act on whole batches: the caller puts them on the context.
    if rows.iter().flatten().any(|v| !v.adapters.are_on(ctx)) {
        return Err(LlamaError::Batch("a row's adapters are not those of the context".to_owned()));
    }
    let mut tap = RowTap::new(rows, batch, n_embd, memory);
    if tap.layers.is_empty() {
        return ctx.decode(batch);
    }
    ctx.decode_with_callback(batch, &mut tap)?;
    tap.verdict().map_err(|reason| {
        let architecture = ctx.model().architecture();
        LlamaError::Unsupported(format!(
            "rows cannot be steered one by one in a model of this kind ({architecture}): {reason}"
        ))
    })
}

/// Adds to the rows of block outputs.
struct RowTap<'a> {
    /// Layer -> rows of the batch and what is added to each, `[n_embd]`.
    layers: BTreeMap<usize, Vec<(usize, &'a [f32])>>,
    /// Rows of the batch with changes that depend on the row.
    conditional: Vec<(usize, &'a ControlVector)>,
    places: Vec<BatchRow>,
    memory: &'a mut GateMemory,
    /// Row of the batch -> row among those whose logits were asked for.
    outputs: Vec<Option<usize>>,
    n_outputs: usize,
    n_embd: usize,
    /// Layer -> how often its output came by.
    seen: BTreeMap<usize, usize>,
    wrong: Option<String>,
}

impl<'a> RowTap<'a> {
    fn new(rows: &[Option<&'a ControlVector>], batch: &Batch, n_embd: usize, memory: &'a mut GateMemory) -> Self {
        let mut layers: BTreeMap<usize, Vec<(usize, &'a [f32])>> = BTreeMap::new();
        for (row, vector) in rows.iter().enumerate().filter_map(|(i, v)| Some((i, (*v)?))) {
            for layer in vector.first..=vector.last {
                let added = &vector.data[(layer - 1) * n_embd..layer * n_embd]; // [n_embd]
                if added.iter().any(|&x| x != 0.0) {
                    layers.entry(layer).or_default().push((row, added));
                }
            }
        }
        let conditional: Vec<(usize, &ControlVector)> =
            rows.iter().enumerate().filter_map(|(i, v)| Some((i, v.filter(|v| !v.conditional.is_empty())?))).collect();
        for layer in conditional.iter().flat_map(|(_, v)| v.conditional.iter().map(|c| c.layer)) {
            layers.entry(layer).or_default();
        }
        let mut n_outputs = 0;
        let outputs = (0..batch.len())
            .map(|row| {
                let asked = batch.wants_logits(row);
                n_outputs += usize::from(asked);
                asked.then(|| n_outputs - 1)
            })
            .collect();
        let places = batch.rows();
        for (row, control) in &conditional {
            control.follow_thoughts(std::iter::once(&places[*row]), memory);
        }
        Self { layers, conditional, places, memory, outputs, n_outputs, n_embd, seen: BTreeMap::new(), wrong: None }
    }

    /// True if the callback saw each steered layer exactly once.
    fn verdict(self) -> Result<(), String> {
        if let Some(reason) = self.wrong {
            return Err(reason);
        }
        match self.layers.keys().find(|layer| self.seen.get(layer) != Some(&1)) {
            Some(layer) => Err(format!(
                "the output of block {layer} (l_out-{layer}) came by {} times in one batch, and should once",
                self.seen.get(layer).unwrap_or(&0)
            )),
            None => Ok(()),
        }
    }
}

impl EvalCallback for RowTap<'_> {
    fn wants(&mut self, node: &Node<'_>) -> bool {
        node.block_output().is_some_and(|layer| self.layers.contains_key(&layer)) && node.is_computed()
    }

    fn computed(&mut self, node: &Node<'_>) -> bool {
        let Some((layer, rows)) = node.block_output().and_then(|l| Some((l, self.layers.get(&l)?))) else {
            return true;
        };
        *self.seen.entry(layer).or_default() += 1;
        let [width, n_rows, rest @ ..] = node.ne(); // [n_embd, n_rows]
        let whole = node.nb()[1] == width * 4 && node.dtype() == DType::F32;
        // The last block computes only the rows whose logits were asked for.
        let all = n_rows == self.outputs.len();
        if width != self.n_embd || rest != [1, 1] || !whole || !(all || n_rows == self.n_outputs) {
            self.wrong = Some(format!(
                "the output of block {layer} is {:?} {}, where [{}, {}] or [{}, {}] f32 was expected",
                node.ne(),
                node.dtype().name(),
                self.n_embd,
                self.outputs.len(),
                self.n_embd,
                self.n_outputs
            ));
            return false;
        }
        let at = |row: usize| if all { Some(row) } else { self.outputs[row] };
        // Changes that depend on the row read it before anything is added.
        let mut changed: Vec<(usize, Vec<f32>)> = Vec::new();
        for &(row, control) in self.conditional.iter().filter(|(_, v)| v.conditional.iter().any(|c| c.layer == layer)) {
            let Some(at) = at(row) else { continue };
            let h = node.f32s()[at * self.n_embd..(at + 1) * self.n_embd].to_vec();
            let mut out = h.clone();
            rows.iter().filter(|r| r.0 == row).for_each(|(_, v)| out.iter_mut().zip(*v).for_each(|(x, v)| *x += v));
            if let Err(reason) = control.change_row(layer, &self.places[row], &h, self.memory, &mut out) {
                self.wrong = Some(reason);
                return false;
            }
            changed.push((row, out));
        }
        for &(row, added) in rows.iter().filter(|(row, _)| changed.iter().all(|c| c.0 != *row)) {
            if let Some(at) = at(row) {
                node.add_f32(at * self.n_embd, added);
            }
        }
        for (row, out) in &changed {
            if let Some(at) = at(*row) {
                node.write_f32(at * self.n_embd, out);
            }
        }
        true
    }
}
