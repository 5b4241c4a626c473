//! Changes of the residual stream, row by row, in every decode of a context.

use crate::llama::{Batch, BatchRow, DType, LlamaError, Node};
use std::collections::BTreeMap;
use std::fmt::Debug;

/// Changes rows of the outputs of blocks, before the next block reads them.
pub trait RowChange: Debug + Send {
    /// Layers whose output is changed.
    fn layers(&self) -> Vec<usize>;

    /// A decode of these rows begins. Those without logits may not reach [`RowChange::change`] at the last layer.
    fn begins(&mut self, places: &[BatchRow]);

    /// Changes `rows`, `[rows.len(), n_embd]`, of the output of block `layer`. Rows come in the order of the batch.
    ///
    /// # Errors
    /// Why it cannot; the decode fails with that.
    fn change(&mut self, layer: usize, places: &[BatchRow], rows: &mut [f32]) -> Result<(), String>;

    /// All of sequence `from` is now in sequence `to` as well.
    fn copied(&mut self, from: i32, to: i32);
}

/// A change with the decode in progress.
#[derive(Debug)]
pub(in crate::llama) struct RowHook {
    pub(in crate::llama) change: Box<dyn RowChange>,
    layers: Vec<usize>,
    rows: Vec<BatchRow>,
    /// Layer -> how often its output came by.
    seen: BTreeMap<usize, usize>,
}

impl RowHook {
    pub(in crate::llama) fn new(change: Box<dyn RowChange>) -> Self {
        Self { layers: change.layers(), change, rows: Vec::new(), seen: BTreeMap::new() }
    }

    /// Prepares a decode.
    pub(in crate::llama) fn arm(&mut self, batch: &Batch) {
        self.rows = batch.rows();
        self.change.begins(&self.rows);
        self.seen.clear();
    }

    /// True for a node whose data is to be changed.
    pub(in crate::llama) fn wants(&self, node: &Node<'_>) -> bool {
        node.block_output().is_some_and(|layer| self.layers.contains(&layer)) && node.is_computed()
    }

    /// Changes the node, just computed.
    pub(in crate::llama) fn apply(&mut self, node: &Node<'_>) -> Result<(), String> {
        let Some(layer) = node.block_output() else { return Ok(()) };
        *self.seen.entry(layer).or_default() += 1;
        let [width, n_rows, rest @ ..] = node.ne(); // [n_embd, n_rows]
        // The last block computes only the rows whose logits were asked for.
        let n_outputs = self.rows.iter().filter(|r| r.wants_logits).count();
        let all = n_rows == self.rows.len();
        let whole = node.nb()[1] == width * 4 && node.dtype() == DType::F32 && rest == [1, 1];
        if !whole || !(all || n_rows == n_outputs) {
            return Err(format!(
                "the output of block {layer} is {:?} {}, where {} rows of f32 were expected: rows cannot be changed one by one \
                 in a model of this kind",
                node.ne(),
                node.dtype().name(),
                self.rows.len()
            ));
        }
        let mut rows = node.read_f32();
        if all {
            self.change.change(layer, &self.rows, &mut rows)?;
        } else {
            let outputs: Vec<BatchRow> = self.rows.iter().filter(|r| r.wants_logits).cloned().collect();
            self.change.change(layer, &outputs, &mut rows)?;
        }
        node.write_f32(0, &rows);
        Ok(())
    }

    /// Checks, after a decode that ran to its end, that each layer came by once.
    pub(in crate::llama) fn verdict(&self) -> Result<(), LlamaError> {
        match self.layers.iter().find(|layer| self.seen.get(layer) != Some(&1)) {
            Some(layer) => Err(LlamaError::Unsupported(format!(
                "the output of block {layer} (l_out-{layer}) came by {} times in one batch, and should once: rows cannot be \
                 changed one by one in a model of this kind",
                self.seen.get(layer).unwrap_or(&0)
            ))),
            None => Ok(()),
        }
    }
}
