//! The subgraph above a layer, ready to run forward and backward.

use crate::graph::AttentionMemory;
use crate::graph::emit::{Bindings, Data, Executor, Forward, Label};
use crate::graph::grad::differentiate_within;
use crate::graph::ir::{Graph, InputId, IrError, Value};
use crate::graph::lift::{AdapterInput, HookPoint, Lifted};
use crate::graph::passes::fuse::fuse;
use crate::llama::{LlamaError, Weight};

/// Values that gradients are wanted of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GradientsOf {
    /// The residual stream at the hook points.
    #[default]
    HookPoints,
    /// The matrices of the adapters on the context.
    Adapters,
    /// Both.
    Both,
}

impl GradientsOf {
    /// The values: the hook points first.
    pub fn entries(self, hook_points: &[HookPoint], adapters: &[AdapterInput]) -> Vec<Value> {
        let hooks = hook_points.iter().map(|h| h.at).filter(|_| self != Self::Adapters);
        hooks.chain(adapters.iter().map(|a| a.at).filter(|_| self != Self::HookPoints)).collect()
    }

    /// The values to differentiate by: those of [`GradientsOf::entries`], and behind them the matrices where they are not wanted.
    /// Products with matrices of adapters have a rule of their own, which is found by asking for the gradients of both sides;
    /// [`GradientsOf::wanted`] drops those that are never computed.
    pub fn differentiated(self, hook_points: &[HookPoint], adapters: &[AdapterInput]) -> Vec<Value> {
        let of = if self == Self::HookPoints { Self::Both } else { self };
        of.entries(hook_points, adapters)
    }

    /// The wanted gradients among those of [`GradientsOf::differentiated`].
    pub fn wanted(self, mut grads: Vec<Value>, hook_points: &[HookPoint]) -> Vec<Value> {
        if self == Self::HookPoints {
            grads.truncate(hook_points.len());
        }
        grads
    }
}

/// The subgraph above the lowest hook point, with the log-probabilities of labels and the gradient at each hook point.
#[derive(Debug, Clone)]
pub struct DownstreamGraph {
    /// Forward and backward pass.
    pub graph: Graph,
    /// The traced layers, lowest first.
    pub hook_points: Vec<HookPoint>,
    /// `[n_outputs, n_vocab]`.
    pub logits: Value,
    /// Value to compute for the log-probabilities.
    pub head: Value,
    /// Matrices of the adapters on the context, whose data a run brings.
    pub adapters: Vec<AdapterInput>,
    /// What `grads` are the gradients of.
    pub of: GradientsOf,
    /// The gradients: at each hook point, `[n_rows, n_embd]`, then of each matrix.
    pub grads: Vec<Value>,
    /// Input: the residual stream at the lowest hook point.
    pub residual: InputId,
    /// Data of the inputs; those of the vectors are empty.
    pub inputs: Vec<Data>,
    /// Tensors of the weights.
    pub weights: Vec<Weight>,
}

impl DownstreamGraph {
    /// From a lifted graph and the residual stream at its lowest hook point, `[n_rows, n_embd]`, for the executor's
    /// precision: the LM head that gives log-probabilities, and the gradient with respect to the residual stream at the hook
    /// points, whose attention scores are kept within `attention`.
    ///
    /// # Errors
    /// [`IrError::NoRule`] naming the first op on the way that cannot be differentiated.
    pub fn new(
        lifted: Lifted,
        residual: Vec<f32>,
        exec: &Executor,
        attention: AttentionMemory,
    ) -> Result<Self, IrError> {
        Self::with_gradients(lifted, residual, exec, attention, GradientsOf::HookPoints)
    }

    /// As [`DownstreamGraph::new`], with the gradients of other values.
    ///
    /// # Errors
    /// As [`DownstreamGraph::new`].
    pub fn with_gradients(
        mut lifted: Lifted,
        residual: Vec<f32>,
        exec: &Executor,
        attention: AttentionMemory,
        of: GradientsOf,
    ) -> Result<Self, IrError> {
        let on_cpu = lifted.weights.iter().all(|w| w.device().is_none());
        if exec.precision().forward == Forward::Fast && on_cpu {
            let at: Vec<Value> = lifted.entries().collect();
            let (graph, map) = fuse(&lifted.graph, &at)?;
            lifted.graph = graph;
            lifted.logits = map[lifted.logits.0 as usize];
            lifted.hook_points.iter_mut().for_each(|h| h.at = map[h.at.0 as usize]);
            lifted.adapters.iter_mut().for_each(|a| a.at = map[a.at.0 as usize]);
        }
        let Lifted { mut graph, hook_points, adapters, logits, mut inputs, weights, residual: input, .. } = lifted;
        let fused = graph.output_matrix(logits).filter(|w| exec.can_fuse_head(&weights[w.0 as usize]));
        let (head, entry) = match fused.and_then(|_| graph.loss_head(logits)) {
            Some(fused) => fused,
            None => (graph.log_prob_head(logits)?, logits),
        };
        let at = of.differentiated(&hook_points, &adapters);
        let grads = of.wanted(differentiate_within(&mut graph, entry, head, &at, attention)?, &hook_points);
        inputs[input.0 as usize] = Data::F32(residual);
        for matrix in &adapters {
            inputs[matrix.input.0 as usize] = Data::F32(Vec::new());
        }
        Ok(Self { graph, hook_points, adapters, of, logits, head, grads, residual: input, inputs, weights })
    }

    /// The same forward pass with the gradient of `-coef KL(reference || policy)` summed over the rows, where `reference` are the
    /// final hidden states of the reference ([`Graph::final_hidden`] without a vector), `[n_outputs, n_embd]`.
    ///
    /// # Errors
    /// [`IrError`], also for logits that are not made by one matmul.
    pub fn diverging(&self, reference: Vec<f32>, exec: &Executor, attention: AttentionMemory) -> Result<Self, IrError> {
        let mut of = self.clone();
        let fused = of.graph.output_matrix(of.logits).is_some_and(|w| exec.can_fuse_head(&of.weights[w.0 as usize]));
        let (head, entry) = of.graph.divergence_head(of.logits, fused)?;
        let at = of.of.differentiated(&of.hook_points, &of.adapters);
        let grads = differentiate_within(&mut of.graph, entry, head, &at, attention)?;
        of.grads = of.of.wanted(grads, &of.hook_points);
        of.head = head;
        of.inputs.push(Data::F32(reference));
        Ok(of)
    }

    /// Gives back memory that building the graph took, and loads the file layout of weights that the backward pass reads in it.
    ///
    /// # Errors
    /// [`LlamaError`] for a file that cannot be read again.
    pub fn finish(&mut self) -> Result<(), LlamaError> {
        self.graph.shrink();
        for id in self.graph.transposed_weights() {
            self.weights[id.0 as usize].make_plain()?;
        }
        Ok(())
    }

    /// The residual stream at the lowest hook point, before a vector is added, `[n_rows, n_embd]`.
    pub fn residual(&self) -> &[f32] {
        match &self.inputs[self.residual.0 as usize] {
            Data::F32(rows) => rows,
            _ => &[],
        }
    }

    /// The inputs of a run with a vector, `[n_embd]`, added at each hook point, lowest first, and with these matrices of the
    /// adapters.
    pub fn bindings<'a>(&'a self, vectors: &'a [Data], matrices: &'a [Data], labels: &'a [Label]) -> Bindings<'a> {
        let mut inputs: Vec<&Data> = self.inputs.iter().collect();
        for (of, matrix) in self.adapters.iter().zip(matrices) {
            inputs[of.input.0 as usize] = matrix;
        }
        for (hook, vector) in self.hook_points.iter().zip(vectors) {
            inputs[hook.vector.0 as usize] = vector;
        }
        Bindings { inputs, weights: &self.weights, labels, weigh: None }
    }

    /// Bytes of the inputs.
    pub fn input_bytes(&self) -> usize {
        let bytes = |data: &Data| match data {
            Data::F32(v) => v.len() * 4,
            Data::I32(v) => v.len() * 4,
            Data::Bytes(v) => v.len(),
        };
        self.inputs.iter().map(bytes).sum()
    }
}
