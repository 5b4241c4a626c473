//! Running traced pairs: log-probabilities and gradients under an intervention.

use super::traced::{PairGraph, Steered};
use super::{Addition, Engine, EngineError, PairLogp, Parameters, RowGradients, Stream, TracedBatch, TracedPair};
use crate::numbers::dot;
use ggml_grad::graph::emit::{Data, Forward, Precision};
use ggml_grad::graph::ir::{Elem, Op, Value};

/// Result of a run.
#[derive(Debug, Clone)]
pub struct Scored {
    /// Log-probabilities of each pair under the intervention.
    pub logp: Vec<PairLogp>,
    /// Gradient of `log p(chosen) - log p(rejected)` with respect to the parameters, for each pair, `[n_params]`; empty when
    /// not asked for.
    pub grads: Vec<Vec<f64>>,
}

impl Engine {
    /// Scores traced pairs under parameters of the intervention (for [`super::Add`] `[n_layers, n_embd]`, added at every
    /// position); with `want_grads`, also the gradient of each pair's `log p(chosen) - log p(rejected)`.
    ///
    /// # Errors
    /// [`EngineError::Trace`].
    pub fn run<'p>(
        &mut self,
        traced: &impl AsRef<TracedBatch>,
        at: impl Into<Parameters<'p>>,
        want_grads: bool,
    ) -> Result<Scored, EngineError> {
        let (traced, at) = (traced.as_ref(), at.into());
        let graph = &traced.graph;
        let steered = self.steer(graph, at)?;
        let (computed, mut read) =
            if want_grads { (&[][..], graph.downstream.grads.clone()) } else { (graph.computed(), Vec::new()) };
        read.extend(graph.score_values());
        let outcome = self.exec.run(&graph.downstream.graph, &graph.bindings(&steered), computed, &read)?;
        let outcome = graph.scored(outcome);
        let n_pairs = traced.n_pairs();
        let grads = if want_grads {
            self.check_one_owner(graph, n_pairs)?;
            let hooks = &outcome.values[..graph.downstream.grads.len()];
            self.gradients(graph, at, hooks, n_pairs)
        } else {
            Vec::new()
        };
        Ok(Scored { logp: graph.labels.sums(n_pairs, &outcome.log_probs), grads })
    }

    /// The graph's inputs under these parameters.
    pub(super) fn steer(&self, graph: &PairGraph, at: Parameters<'_>) -> Result<Steered, EngineError> {
        let places = graph.stream();
        let stream = places.rows;
        let (mut vectors, mut residual) = (Vec::with_capacity(self.layers().len()), None);
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
                        self.layers()[slot],
                        stream.len()
                    )));
                }
            }
        }
        // Kinds that leave the stream as it is name no addition.
        for slot in vectors.len()..self.layers().len() {
            vectors.push(self.at_hook(slot, vec![0.0; self.model.n_embd()]));
        }
        Ok(Steered { residual, vectors, matrices: self.matrices(graph, at) })
    }

    /// For each two of some parameters: the cosine between the changes that they make, over all rows of some traced pairs and all
    /// steered layers. Pairs of parameters of which one changes nothing are left out.
    ///
    /// # Errors
    /// [`EngineError::Model`] for changes that cannot be made at this layer.
    pub fn change_cosines(&self, traced: &[TracedPair], each: &[&[f32]]) -> Result<Vec<f64>, EngineError> {
        let n = each.len();
        // [n, n] sums of products.
        let mut products = vec![0.0; n * n];
        for pair in traced {
            let stream = pair.graph().stream();
            let changes = each.iter().map(|theta| {
                let additions = self.intervention.additions(Parameters::from(*theta), &stream);
                additions.into_iter().map(|a| self.within_scope(a, &stream)).collect::<Result<Vec<_>, _>>()
            });
            let changes = changes.collect::<Result<Vec<_>, _>>()?;
            for (i, a) in changes.iter().enumerate() {
                for (j, b) in changes.iter().enumerate().take(i + 1) {
                    products[i * n + j] += a.iter().zip(b).map(|(a, b)| dot(a.values(), b.values())).sum::<f64>();
                }
            }
        }
        for (i, a) in each.iter().enumerate() {
            for (j, b) in each.iter().enumerate().take(i + 1) {
                products[i * n + j] += self.intervention.matrix_product(a, b);
            }
        }
        let of = |i: usize, j: usize| products[i * n + j];
        let pairs = (0..n).flat_map(|i| (0..i).map(move |j| (i, j)));
        let cosines = pairs.map(|(i, j)| of(i, j) / (of(i, i) * of(j, j)).sqrt());
        Ok(cosines.filter(|c| c.is_finite()).collect())
    }

    /// The addition at the positions of the scope, and nothing elsewhere.
    fn within_scope(&self, addition: Addition, stream: &Stream<'_>) -> Result<Addition, EngineError> {
        let by_row = matches!(addition, Addition::Rows(_));
        if (by_row || !self.scope.is_all()) && stream.places.is_empty() {
            return Err(EngineError::Model(format!(
                "{} has several rows for a token at layer {}: only kind add with scope all can be trained there",
                self.model.path().display(),
                self.layers()[0]
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

    /// The batch with all choices that depend on the intervention (which experts a token goes to) as they are under
    /// these parameters, whatever the later ones are. The gradient is that of this function: at a change of choice the model jumps.
    ///
    /// # Errors
    /// [`EngineError::Trace`].
    pub fn freeze_choices<'p>(
        &mut self,
        traced: &TracedBatch,
        at: impl Into<Parameters<'p>>,
    ) -> Result<TracedBatch, EngineError> {
        let graph = &traced.graph.downstream.graph;
        let chosen: Vec<Value> = (0..graph.nodes().len() as u32)
            .map(Value)
            .filter(|v| {
                let node = graph.node(*v);
                let from_floats = node.src.iter().any(|s| graph.node(*s).elem != Elem::I32);
                node.elem == Elem::I32 && from_floats && !matches!(node.op, Op::Input(_) | Op::Weight(_))
            })
            .collect();
        let mut frozen = traced.clone();
        if chosen.is_empty() {
            return Ok(frozen);
        }
        let steered = self.steer(&traced.graph, at.into())?;
        let outcome = self.exec.run(graph, &traced.graph.bindings(&steered), &[], &chosen)?;
        for (value, numbers) in chosen.into_iter().zip(outcome.integers) {
            frozen.graph.downstream.graph.freeze(value);
            frozen.graph.downstream.inputs.push(Data::I32(numbers));
        }
        Ok(frozen)
    }

    /// Bytes of the CPU's memory that a step on these pairs needs for inputs and activations, beside the model and the trace.
    /// [`Engine::step_device_bytes`] then tells what it needs elsewhere.
    ///
    /// # Errors
    /// [`EngineError::Trace`].
    pub fn step_bytes(&mut self, traced: &impl AsRef<TracedBatch>) -> Result<usize, EngineError> {
        let graph = &traced.as_ref().graph;
        let steered = self.unsteered(graph);
        Ok(self.exec.measure(&graph.downstream.graph, &graph.bindings(&steered), &graph.downstream.grads)?)
    }

    /// Devices in use beside the CPU, with the bytes of activations that the step of the last [`Engine::step_bytes`] needs
    /// there.
    pub fn step_device_bytes(&self) -> Vec<(String, usize)> {
        self.exec.measured_on_devices()
    }

    /// The lifted graph's logits with `vectors`, `[n_layers, n_embd]`, added, `[n_outputs, n_vocab]`, by ggml's own kernels
    /// whatever the precision: they are there to be compared with `llama_decode`.
    ///
    /// # Errors
    /// [`EngineError::Trace`].
    pub fn logits(&mut self, traced: &impl AsRef<TracedBatch>, vectors: &[f32]) -> Result<Vec<f32>, EngineError> {
        let graph = &traced.as_ref().graph;
        let steered = Steered { vectors: self.split(vectors), ..self.unsteered(graph) };
        self.logits_of(graph, &steered)
    }

    /// As [`Engine::logits`], for any inputs.
    pub(super) fn logits_of(&mut self, graph: &PairGraph, steered: &Steered) -> Result<Vec<f32>, EngineError> {
        let precision = self.precision();
        self.exec.set_precision(Precision { forward: Forward::Exact, ..precision });
        let (downstream, bind) = (&graph.downstream, graph.bindings(steered));
        let outcome = self.exec.run(&downstream.graph, &bind, &[], &[downstream.logits]);
        self.exec.set_precision(precision);
        Ok(outcome?.values.into_iter().next().unwrap_or_default())
    }

    /// The vectors of the layers, one by one, with what lies there already.
    pub(super) fn split(&self, vectors: &[f32]) -> Vec<Data> {
        debug_assert_eq!(vectors.len(), self.n_vector());
        let each = vectors.chunks_exact(self.model.n_embd()).enumerate();
        each.map(|(slot, v)| self.at_hook(slot, v.to_vec())).collect()
    }
}
