//! Reference log-probabilities, and the norms of the residual stream.

use super::traced::{PairGraph, Steered};
use super::{Engine, EngineError, Parameters, TracedBatch, TracedPair};
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
        let steered = self.unsteered(graph);
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

    /// As [`Engine::compute_references`], for several pairs.
    pub(super) fn compute_batch_references(&mut self, mut traced: Vec<&mut TracedPair>) -> Result<(), EngineError> {
        // At further layers the norms of all rows are needed, and a joined batch leaves some rows out.
        let joined = if self.layers().len() == 1 && traced.len() > 1 {
            self.join(&traced.iter().map(|t| &**t).collect::<Vec<_>>())?
        } else {
            None
        };
        let Some(joined) = joined else {
            return traced.iter_mut().try_for_each(|t| self.compute_references(t.batch_mut()));
        };
        let n_embd = self.model.n_embd();
        for (pair, logp) in traced.into_iter().zip(self.unsteered_logps(&joined)?) {
            let batch = pair.batch_mut();
            batch.norms = vec![row_norms(batch.residual(), n_embd)];
            batch.references = vec![logp];
        }
        Ok(())
    }

    /// The inputs without an intervention.
    pub(super) fn unsteered(&self, graph: &PairGraph) -> Steered {
        let nothing = vec![0.0; self.n_params()];
        let matrices = self.matrices(graph, Parameters::from(&nothing));
        Steered { residual: None, vectors: self.split(&vec![0.0; self.n_vector()]), matrices }
    }
}
