//! Running traced pairs: log-probabilities and gradients under an intervention.

use super::applied::Applied;
use super::traced::{PairGraph, Steered};
use super::{Engine, EngineError, PairLogp, Parameters, TracedBatch, TracedPair};
use crate::numbers::dot;
use ggml_grad::graph::emit::{Data, Executor, Forward, Precision};
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

impl Applied<'_> {
    /// See [`Engine::run`].
    pub(super) fn run(
        &self,
        exec: &mut Executor,
        traced: &TracedBatch,
        at: Parameters<'_>,
        want_grads: bool,
    ) -> Result<Scored, EngineError> {
        let graph = &traced.graph;
        let steered = self.steer(graph, at)?;
        let (computed, mut read) =
            if want_grads { (&[][..], graph.downstream.grads.clone()) } else { (graph.computed(), Vec::new()) };
        read.extend(graph.score_values());
        let outcome = exec.run(&graph.downstream.graph, &graph.bindings(&steered), computed, &read)?;
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
        let (applied, exec, _) = self.parts();
        applied.run(exec, traced.as_ref(), at.into(), want_grads)
    }

    /// For each two of some parameters: the cosine between the changes that they make, over all rows of some traced pairs and all
    /// steered layers. Pairs of parameters of which one changes nothing are left out.
    ///
    /// # Errors
    /// [`EngineError::Model`] for changes that cannot be made at this layer.
    pub fn change_cosines(&self, traced: &[TracedPair], each: &[&[f32]]) -> Result<Vec<f64>, EngineError> {
        let (n, applied) = (each.len(), self.applied());
        // [n, n] sums of products.
        let mut products = vec![0.0; n * n];
        for pair in traced {
            let stream = pair.graph().stream();
            let changes = each.iter().map(|theta| {
                let additions = self.intervention.additions(Parameters::from(*theta), &stream);
                additions.into_iter().map(|a| applied.within_scope(a, &stream)).collect::<Result<Vec<_>, _>>()
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
        let steered = self.applied().steer(&traced.graph, at.into())?;
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
        let steered = self.applied().unsteered(graph);
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
        let steered = Steered { vectors: self.applied().split(vectors), ..self.applied().unsteered(graph) };
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
}
