//! Reference log-probabilities, and the norms of the residual stream.

use super::{Engine, EngineError, TracedBatch, TracedPair};
use crate::numbers::norm;
use ggml_grad::graph::ir::Value;

/// L2 norm of each row, `[n_rows]`.
fn row_norms(rows: &[f32], n_embd: usize) -> Vec<f32> {
    rows.chunks_exact(n_embd).map(|row| norm(row) as f32).collect()
}

impl Engine {
    /// Computes reference log-probabilities, on the same path as the policy's, and the norms of the residual stream at each
    /// layer.
    pub(super) fn compute_references(&mut self, traced: &mut TracedBatch) -> Result<(), EngineError> {
        let n_embd = self.model.n_embd();
        let graph = &traced.graph;
        let steered = self.applied().unsteered(graph);
        let mut read: Vec<Value> = graph.downstream.hook_points.iter().skip(1).map(|h| h.at).collect();
        read.extend(graph.score_values());
        let outcome = self.exec.run(&graph.downstream.graph, &graph.bindings(&steered), graph.computed(), &read)?;
        let outcome = graph.scored(outcome);
        traced.references = graph.labels.sums(traced.pairs.len(), &outcome.log_probs);
        let lowest = traced.residual();
        let streams = std::iter::once(lowest).chain(outcome.values.iter().map(Vec::as_slice));
        traced.norms = streams.map(|rows| row_norms(rows, n_embd)).collect();
        Ok(())
    }

    /// As [`Engine::compute_references`], for batches of pairs, side by side.
    pub(super) fn compute_batch_references(&mut self, batches: Vec<Vec<&mut TracedPair>>) -> Result<(), EngineError> {
        let (n_embd, one_layer) = (self.model.n_embd(), self.layers().len() == 1);
        // At further layers the norms of all rows are needed, and a joined batch leaves some rows out.
        let (together, apart): (Vec<_>, Vec<_>) = batches.into_iter().partition(|b| one_layer && b.len() > 1);
        let members: Vec<Vec<&TracedPair>> =
            together.iter().map(|batch| batch.iter().map(|t| &**t).collect()).collect();
        let references = self.side_by_side(
            &members,
            |members| members.iter().map(|t| t.n_tokens()).sum(),
            |engine, members| engine.join(members),
            |applied, exec, _, joined| joined.as_ref().map(|joined| applied.unsteered_logps(exec, joined)).transpose(),
        )?;
        for (batch, references) in together.into_iter().zip(references) {
            let Some(references) = references else {
                batch.into_iter().try_for_each(|t| self.compute_references(t.batch_mut()))?;
                continue;
            };
            for (pair, logp) in batch.into_iter().zip(references) {
                let batch = pair.batch_mut();
                batch.norms = vec![row_norms(batch.residual(), n_embd)];
                batch.references = vec![logp];
            }
        }
        apart.into_iter().flatten().try_for_each(|t| self.compute_references(t.batch_mut()))
    }
}
