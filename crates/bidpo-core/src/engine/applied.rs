//! The intervention as runs apply it: what all threads read.

use super::adapter::AdapterRefusal;
use super::traced::{PairGraph, Steered};
use super::{Addition, Background, EngineError, Intervention, Parameters, RowGradients, Scope, Stream};
use ggml_grad::graph::emit::Data;
use ggml_grad::llama::Model;
use ggml_grad::trace::GradientsOf;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The intervention at the engine's layers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Applied<'e> {
    pub model: &'e Model,
    /// Lowest first.
    pub layers: &'e [usize],
    pub intervention: &'e dyn Intervention,
    pub background: &'e Background,
    pub scope: &'e Scope,
}

impl Applied<'_> {
    pub(super) fn n_params(&self) -> usize {
        self.intervention.n_params()
    }

    /// The graph's inputs under these parameters.
    pub(super) fn steer(&self, graph: &PairGraph, at: Parameters<'_>) -> Result<Steered, EngineError> {
        let places = graph.stream();
        let stream = places.rows;
        let (mut vectors, mut residual) = (Vec::with_capacity(self.layers.len()), None);
        for (slot, addition) in self.intervention.additions(at, &places).into_iter().enumerate() {
            match self.within_scope(addition, &places)? {
                Addition::Broadcast(v) => vectors.push(self.at_hook(slot, v)),
                Addition::Rows(rows) if slot == 0 && rows.len() == stream.len() => {
                    residual = Some(Data::F32(stream.iter().zip(&rows).map(|(h, x)| h + x).collect()));
                    vectors.push(self.at_hook(slot, vec![0.0; self.model.n_embd()]));
                }
                Addition::Rows(rows) => {
                    return Err(EngineError::Model(format!(
                        "the intervention gives {} numbers row by row at layer {}: only the lowest layer takes rows, {} numbers here",
                        rows.len(),
                        self.layers[slot],
                        stream.len()
                    )));
                }
            }
        }
        // Kinds that leave the stream as it is name no addition.
        for slot in vectors.len()..self.layers.len() {
            vectors.push(self.at_hook(slot, vec![0.0; self.model.n_embd()]));
        }
        Ok(Steered { residual, vectors, matrices: self.matrices(graph, at) })
    }

    /// The addition at the positions of the scope, and nothing elsewhere.
    pub(super) fn within_scope(&self, addition: Addition, stream: &Stream<'_>) -> Result<Addition, EngineError> {
        let by_row = matches!(addition, Addition::Rows(_));
        if (by_row || !self.scope.is_all()) && stream.places.is_empty() {
            return Err(EngineError::Model(format!(
                "{} has several rows for a token at layer {}: only kind add with scope all can be trained there",
                self.model.path().display(),
                self.layers[0]
            )));
        }
        if self.scope.is_all() {
            return Ok(addition);
        }
        let n = self.model.n_embd();
        let mut rows = match addition {
            Addition::Broadcast(v) => v.repeat(stream.places.len()),
            Addition::Rows(rows) => rows,
        };
        for (row, place) in rows.chunks_exact_mut(n).zip(stream.places) {
            if !self.scope.covers(*place) {
                row.fill(0.0);
            }
        }
        Ok(Addition::Rows(rows))
    }

    /// Gradients of the parameters, for each of `n` owners of rows, from the gradients at the hook points.
    pub(super) fn gradients(
        &self,
        graph: &PairGraph,
        at: Parameters<'_>,
        hooks: &[Vec<f32>],
        n: usize,
    ) -> Vec<Vec<f64>> {
        let mut grads = vec![vec![0.0; self.n_params()]; n];
        let hooks = self.matrix_gradients(graph, at, hooks, &mut grads);
        if hooks.is_empty() {
            return grads;
        }
        let stream = graph.stream();
        let masked: Option<Vec<Vec<f32>>> = (!self.scope.is_all()).then(|| {
            let mut hooks = hooks.to_vec();
            let rows = hooks.iter_mut().flat_map(|rows| rows.chunks_exact_mut(self.model.n_embd()).zip(stream.places));
            rows.filter(|(_, place)| !self.scope.covers(**place)).for_each(|(row, _)| row.fill(0.0));
            hooks
        });
        let rows: Vec<RowGradients<'_>> = masked
            .as_deref()
            .unwrap_or(hooks)
            .iter()
            .zip(&graph.row_owner)
            .map(|(rows, pair)| RowGradients { rows, scale: graph.gradient_scale, pair })
            .collect();
        self.intervention.vjp(at, &stream, &rows, &mut grads);
        grads
    }

    /// The matrices of a graph's adapters under these parameters, in its order.
    fn matrices(&self, graph: &PairGraph, at: Parameters<'_>) -> Arc<Vec<Data>> {
        if let Some(loaded) = self.background.matrices() {
            return loaded;
        }
        if graph.downstream.adapters.is_empty() {
            return Arc::default();
        }
        let own = self.intervention.matrices(at);
        let mut by_name: BTreeMap<String, Vec<f32>> = own.into_iter().map(|m| (m.name, m.values)).collect();
        let mut data = |name: &str| by_name.remove(name).map_or_else(|| Data::F32(Vec::new()), Data::F32);
        Arc::new(graph.downstream.adapters.iter().map(|a| data(&a.name)).collect())
    }

    /// Adds the gradients of the matrices to those of the first owner. Returns those at the hook points.
    fn matrix_gradients<'v>(
        &self,
        graph: &PairGraph,
        at: Parameters<'_>,
        values: &'v [Vec<f32>],
        grads: &mut [Vec<f64>],
    ) -> &'v [Vec<f32>] {
        let of = graph.downstream.of;
        let n_hooks = if of == GradientsOf::Adapters { 0 } else { graph.downstream.hook_points.len() };
        let (hooks, matrices) = values.split_at(n_hooks);
        if of == GradientsOf::HookPoints {
            return hooks;
        }
        let names = graph.downstream.adapters.iter().map(|a| a.name.as_str());
        let by_name: BTreeMap<&str, &[f32]> = names.zip(matrices.iter().map(Vec::as_slice)).collect();
        let wanted = self.intervention.matrices(at);
        let ordered: Vec<&[f32]> =
            wanted.iter().map(|m| by_name.get(m.name.as_str()).copied().unwrap_or_default()).collect();
        if let Some(grad) = grads.first_mut() {
            let mut scaled = vec![0.0; grad.len()];
            self.intervention.matrices_vjp(at, &ordered, &mut scaled);
            let scale = f64::from(graph.gradient_scale);
            grad.iter_mut().zip(&scaled).for_each(|(sum, x)| *sum += x / scale);
        }
        hooks
    }

    /// Refuses the gradient of matrices for each of several pairs in one graph.
    pub(super) fn check_one_owner(&self, graph: &PairGraph, n_pairs: usize) -> Result<(), EngineError> {
        match graph.downstream.of {
            GradientsOf::Adapters | GradientsOf::Both if n_pairs > 1 => {
                Err(AdapterRefusal::Shared { pairs: n_pairs }.into())
            }
            _ => Ok(()),
        }
    }

    /// The inputs without an intervention.
    pub(super) fn unsteered(&self, graph: &PairGraph) -> Steered {
        let nothing = vec![0.0; self.n_params()];
        let matrices = self.matrices(graph, Parameters::from(&nothing));
        Steered { residual: None, vectors: self.split(&vec![0.0; self.layers.len() * self.model.n_embd()]), matrices }
    }

    /// A vector for the hook point at a layer, with what lies there already.
    fn at_hook(&self, slot: usize, mut vector: Vec<f32>) -> Data {
        if let Some(own) = self.background.at(self.layers[slot]) {
            vector.iter_mut().zip(own).for_each(|(x, own)| *x += own);
        }
        Data::F32(vector)
    }

    /// The vectors of the layers, one by one, with what lies there already.
    pub(super) fn split(&self, vectors: &[f32]) -> Vec<Data> {
        debug_assert_eq!(vectors.len(), self.layers.len() * self.model.n_embd());
        let each = vectors.chunks_exact(self.model.n_embd()).enumerate();
        each.map(|(slot, v)| self.at_hook(slot, v.to_vec())).collect()
    }
}
