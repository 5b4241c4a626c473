//! The subgraph above a layer, ready to run forward and backward.

use crate::graph::AttentionMemory;
use crate::graph::emit::{Bindings, Data, Executor, Forward, Label};
use crate::graph::grad::differentiate_within;
use crate::graph::ir::{Graph, InputId, IrError, Value};
use crate::graph::lift::{HookPoint, Lifted};
use crate::graph::passes::fuse::fuse;
use crate::llama::{LlamaError, Weight};

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
    /// For each hook point: the gradient there, `[n_rows, n_embd]`.
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
    /// precision: the LM head that gives log-probabilities, and the gradient, whose attention scores are kept within
    /// `attention`.
    ///
    /// # Errors
    /// [`IrError::NoRule`] naming the first op on the way that cannot be differentiated.
    pub fn new(
        mut lifted: Lifted,
        residual: Vec<f32>,
        exec: &Executor,
        attention: AttentionMemory,
    ) -> Result<Self, IrError> {
        let on_cpu = lifted.weights.iter().all(|w| w.device().is_none());
        if exec.precision().forward == Forward::Fast && on_cpu {
            let at: Vec<Value> = lifted.hook_points.iter().map(|h| h.at).collect();
            let (graph, map) = fuse(&lifted.graph, &at)?;
            lifted.graph = graph;
            lifted.logits = map[lifted.logits.0 as usize];
            lifted.hook_points.iter_mut().for_each(|h| h.at = map[h.at.0 as usize]);
        }
        let Lifted { mut graph, hook_points, logits, mut inputs, weights, residual: input, .. } = lifted;
        let fused = graph.output_matrix(logits).filter(|w| exec.can_fuse_head(&weights[w.0 as usize]));
        let (head, of) = match fused.and_then(|_| graph.loss_head(logits)) {
            Some(fused) => fused,
            None => (graph.log_prob_head(logits)?, logits),
        };
        let at: Vec<Value> = hook_points.iter().map(|h| h.at).collect();
        let grads = differentiate_within(&mut graph, of, head, &at, attention)?;
        inputs[input.0 as usize] = Data::F32(residual);
        Ok(Self { graph, hook_points, logits, head, grads, residual: input, inputs, weights })
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
        let at: Vec<Value> = of.hook_points.iter().map(|h| h.at).collect();
        of.grads = differentiate_within(&mut of.graph, entry, head, &at, attention)?;
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

    /// The inputs of a run with a vector, `[n_embd]`, added at each hook point, lowest first.
    pub fn bindings<'a>(&'a self, vectors: &'a [Data], labels: &'a [Label]) -> Bindings<'a> {
        let mut inputs: Vec<&Data> = self.inputs.iter().collect();
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
