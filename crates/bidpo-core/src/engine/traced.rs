//! Traced pairs: what a decode of them left, ready to run.

use super::PairLogp;
use super::layout::Labels;
use crate::data::TokenizedPair;
use crate::intervention::{Sequences, Stream};
use ggml_grad::graph::emit::{Bindings, Data, Outcome};
use ggml_grad::graph::ir::Value;
use ggml_grad::graph::passes::lower::{DivergenceScores, LabelScores};
use ggml_grad::trace::DownstreamGraph;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The graph of some pairs with what it takes to run it.
#[derive(Clone)]
pub(super) struct PairGraph {
    pub downstream: DownstreamGraph,
    pub labels: Labels,
    /// For each hook point and each row of the residual stream there: the gradient that it counts towards.
    pub row_owner: Vec<Vec<usize>>,
    /// Places of the rows of the residual stream at the lowest hook point; `None` where a token has several rows there.
    pub sequences: Option<Sequences>,
    /// Values that the labels' log-probabilities follow from, where the LM head runs on a device; the executor records them
    /// otherwise.
    pub scores: Option<LabelScores>,
    /// Values that the divergences of a retained text follow from, where the LM head runs on a device.
    pub divergence: Option<DivergenceScores>,
    /// Factor on the gradients that the graph gives.
    pub gradient_scale: f32,
}

/// Inputs that an intervention replaces.
pub(super) struct Steered {
    /// The residual stream at the lowest layer with the intervention applied row by row, `[n_rows, n_embd]`; `None` where it
    /// is as traced.
    pub residual: Option<Data>,
    /// The vector added at each layer, `[n_embd]`.
    pub vectors: Vec<Data>,
    /// The matrices of the adapter, in the order of the graph.
    pub matrices: Arc<Vec<Data>>,
}

impl PairGraph {
    /// The residual stream at the lowest hook point.
    pub(super) fn stream(&self) -> Stream<'_> {
        let rows = self.downstream.residual();
        self.sequences.as_ref().map_or(Stream { rows, ..Stream::default() }, |sequences| Stream::new(rows, sequences))
    }

    /// Values that the log-probabilities are made of.
    pub(super) fn score_values(&self) -> impl Iterator<Item = Value> + '_ {
        self.scores.iter().flat_map(LabelScores::values)
    }

    /// Values to compute for the log-probabilities beside those that are read.
    pub(super) fn computed(&self) -> &[Value] {
        if self.scores.is_some() { &[] } else { std::slice::from_ref(&self.downstream.head) }
    }

    /// The outcome of a run that read [`PairGraph::score_values`] last, with the log-probabilities instead of those.
    pub(super) fn scored(&self, mut outcome: Outcome) -> Outcome {
        if let Some(scores) = &self.scores {
            let parts = outcome.values.split_off(outcome.values.len() - 3);
            outcome.log_probs = scores.log_probs(&parts[0], &parts[1], &parts[2]);
        }
        outcome
    }

    pub(super) fn bindings<'a>(&'a self, steered: &'a Steered) -> Bindings<'a> {
        let mut bindings = self.downstream.bindings(&steered.vectors, &steered.matrices, &self.labels.labels);
        if let Some(residual) = &steered.residual {
            bindings.inputs[self.downstream.residual.0 as usize] = residual;
        }
        bindings
    }
}

/// Pairs that one decode traced: the subgraph above the lowest layer with its gradient, the residual stream there, and the
/// reference log-probabilities.
#[derive(Clone)]
pub struct TracedBatch {
    pub(super) graph: PairGraph,
    pub(super) pairs: Vec<TokenizedPair>,
    pub(super) references: Vec<PairLogp>,
    pub(super) norms: Vec<Vec<f32>>,
    pub(super) ops: BTreeMap<&'static str, usize>,
}

impl std::fmt::Debug for TracedBatch {
    /// Sizes only: the data are hundreds of thousands of floats.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TracedBatch")
            .field("n_pairs", &self.n_pairs())
            .field("n_tokens", &self.n_tokens())
            .field("n_nodes", &self.n_nodes())
            .finish_non_exhaustive()
    }
}

impl TracedBatch {
    /// Number of pairs.
    pub fn n_pairs(&self) -> usize {
        self.pairs.len()
    }

    /// The pairs' tokens.
    pub fn pairs(&self) -> &[TokenizedPair] {
        &self.pairs
    }

    /// Tokens of all pairs.
    pub fn n_tokens(&self) -> usize {
        self.pairs.iter().map(TokenizedPair::n_tokens).sum()
    }

    /// Log-probabilities of each pair without an intervention.
    pub fn references(&self) -> &[PairLogp] {
        &self.references
    }

    /// For each layer: L2 norm of the residual stream at each row.
    pub fn norms(&self) -> &[Vec<f32>] {
        &self.norms
    }

    /// Ops of the lifted graph with their counts.
    pub fn ops(&self) -> &BTreeMap<&'static str, usize> {
        &self.ops
    }

    /// The model's residual stream at the lowest layer, `[n_rows, n_embd]`.
    pub fn residual(&self) -> &[f32] {
        self.graph.downstream.residual()
    }

    /// Nodes of the graph, forward and backward.
    pub fn n_nodes(&self) -> usize {
        self.graph.downstream.graph.nodes().len()
    }

    /// Bytes held: the residual stream, the other inputs, the graph.
    pub fn bytes(&self) -> usize {
        self.input_bytes() + self.graph_bytes()
    }

    /// Bytes of the graph: the same for every number of tokens.
    pub(crate) fn graph_bytes(&self) -> usize {
        self.graph.downstream.graph.bytes()
    }

    /// Bytes of the inputs.
    pub(crate) fn input_bytes(&self) -> usize {
        self.graph.downstream.input_bytes()
    }
}

impl AsRef<TracedBatch> for TracedBatch {
    fn as_ref(&self) -> &TracedBatch {
        self
    }
}

/// One traced pair. Several of them can be run as one batch.
#[derive(Debug, Clone)]
pub struct TracedPair(TracedBatch);

impl TracedPair {
    /// `None` unless the batch is of one pair.
    pub(super) fn new(batch: TracedBatch) -> Option<Self> {
        (batch.pairs.len() == 1 && batch.references.len() == 1).then_some(Self(batch))
    }

    /// The pair's tokens.
    pub fn tokens(&self) -> &TokenizedPair {
        &self.0.pairs[0]
    }

    /// Number of tokens.
    pub fn n_tokens(&self) -> usize {
        self.tokens().n_tokens()
    }

    /// Log-probabilities without an intervention.
    pub fn reference(&self) -> PairLogp {
        self.0.references[0]
    }

    /// See [`TracedBatch::norms`].
    pub fn norms(&self) -> &[Vec<f32>] {
        self.0.norms()
    }

    /// See [`TracedBatch::residual`].
    pub fn residual(&self) -> &[f32] {
        self.0.residual()
    }

    /// The residual stream at the lowest layer with the places of its rows; without places where a token has several rows there.
    pub fn stream(&self) -> Stream<'_> {
        self.graph().stream()
    }

    /// See [`TracedBatch::bytes`].
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    pub(super) fn graph(&self) -> &PairGraph {
        &self.0.graph
    }

    pub(super) fn batch_mut(&mut self) -> &mut TracedBatch {
        &mut self.0
    }

    /// Rows whose logits are asked for, as llama.cpp is told them.
    pub(super) fn output_rows(&self) -> Vec<i32> {
        let pair = self.tokens();
        let (p, c, r) = (pair.prompt.len(), pair.chosen.len(), pair.rejected.len());
        (p - 1..p + c - 1).chain(p + c..p + c + r - 1).map(|row| row as i32).collect()
    }
}

impl AsRef<TracedBatch> for TracedPair {
    fn as_ref(&self) -> &TracedBatch {
        &self.0
    }
}
