//! Several traced pairs in one graph.
//!
//! Weights are unpacked once per batch, and shared prompt prefixes are computed once: with a chat template that is the system
//! prompt, at least. The log-probabilities of a pair are bitwise those that it has alone: the forward pass is batch-invariant
//! (tests/joined.rs). Gradients are those of the sum over the pairs, each with its own weight, which follows from its
//! log-probabilities between the two passes.

use super::adapter::gradients_of;
use super::layout::{BatchLayout, Layout, Prompts};
use super::traced::PairGraph;
use super::{BatchPlan, Engine, EngineError, PairLogp, PlannedBatches, TracedPair};
use crate::data::TokenizedPair;
use ggml_grad::graph::SavedTensors;
use ggml_grad::graph::emit::{Data, Executor, Precision};
use ggml_grad::graph::grad::differentiate;
use ggml_grad::graph::ir::{InputId, Node, Op, Shape};
use ggml_grad::graph::passes::symbolic::{InputKind, SymDim, SymDims, SymbolicGraph, gather};
use ggml_grad::llama::Token;
use ggml_grad::trace::{DownstreamGraph, LayerContext};
use std::collections::BTreeMap;

/// Tokens of a batch, at most. More gain little, and activations grow with them.
const MOST_TOKENS: usize = 640;
/// Bytes of activations that a batch may always take; beyond that, half of what the model itself takes.
const FREE_BYTES: u64 = 192 << 20;
/// Bytes that all batches that are computed at once may take beyond those of one: a small model's training stays below five times its
/// file (`bidpo bench --only memory`).
const AT_ONCE_BYTES: u64 = 64 << 20;

/// Why pairs are computed one by one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotBatched {
    /// Batches need the default precision.
    #[error("pairs are batched only where forward and backward pass may round")]
    Precision,
    /// Weights on a device.
    #[error("weights are placed on a device")]
    OnDevice,
    /// Adapters or vectors are loaded beside what is trained.
    #[error("pairs are not joined beside adapters and vectors that are loaded")]
    Beside,
    /// Sequences with a recurrent state, which lie in a graph side by side.
    #[error("sequences with a recurrent state are of one length in a graph")]
    Recurrent,
    /// The graph cannot be made for any number of tokens.
    #[error("{0}")]
    Graph(String),
    /// Matmuls that are not batch-invariant.
    #[error("{0} are left to ggml, whose sums may depend on the other rows of a batch")]
    GgmlMatmul(String),
    /// An LM head that cannot be fused with the loss.
    #[error("bidpo's kernels do not take the type of the LM head's weights")]
    LmHead,
}

/// What the head of a joined graph gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    /// Log-probabilities of the labels.
    LogProbs,
    /// The divergence from the unsteered model, whose final hidden states are each member's last input.
    Divergence,
}

/// Several traced pairs in one graph, which they share the rows of.
pub struct JoinedBatch {
    graph: PairGraph,
    references: Vec<PairLogp>,
    n_tokens: usize,
}

impl std::fmt::Debug for JoinedBatch {
    /// Sizes only.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JoinedBatch")
            .field("n_pairs", &self.references.len())
            .field("n_tokens", &self.n_tokens)
            .finish_non_exhaustive()
    }
}

impl JoinedBatch {
    pub(super) fn graph(&self) -> &PairGraph {
        &self.graph
    }

    /// Reference log-probabilities of each pair.
    pub(super) fn references(&self) -> &[PairLogp] {
        &self.references
    }

    /// Rows of the graph: shared prefixes count once.
    pub fn n_tokens(&self) -> usize {
        self.n_tokens
    }
}

/// Tokens and outputs of a single pair's graph.
fn extents(pair: &TokenizedPair) -> SymDims {
    // The prompt's last row predicts the first token of both responses.
    let outputs = 1 + (pair.chosen.len() - 1) + pair.rejected.len().saturating_sub(1);
    SymDims { tokens: pair.n_tokens(), outputs }
}

/// Shapes of the inputs that a graph reads.
fn input_shapes(graph: &PairGraph) -> BTreeMap<InputId, Shape> {
    let shape = |n: &Node| match n.op {
        Op::Input(id) => Some((id, n.ne)),
        _ => None,
    };
    graph.downstream.graph.nodes().iter().filter_map(shape).collect()
}

/// The graph for any number of tokens, from which batches are made. It is inferred once, when it is first needed.
#[derive(Debug, Default)]
pub(super) struct Joiner {
    inferred: Option<Result<SymbolicGraph, NotBatched>>,
}

impl Joiner {
    /// The graph.
    ///
    /// # Errors
    /// Why there is none.
    fn graph(
        &mut self,
        context: &mut LayerContext,
        exec: &Executor,
        prompts: Prompts,
    ) -> Result<&SymbolicGraph, NotBatched> {
        if exec.precision() != Precision::default() {
            return Err(NotBatched::Precision);
        }
        if prompts == Prompts::Repeated {
            return Err(NotBatched::Recurrent);
        }
        self.inferred.get_or_insert_with(|| infer(context, exec)).as_ref().map_err(Clone::clone)
    }
}

/// Infers the graph for any number of tokens from those of two small pairs.
fn infer(context: &mut LayerContext, exec: &Executor) -> Result<SymbolicGraph, NotBatched> {
    // Numbers that differ, in different proportions; the tokens themselves play no part.
    let pair = |prompt: usize, chosen: usize, rejected: usize| TokenizedPair {
        prompt: vec![0 as Token; prompt],
        chosen: vec![0; chosen],
        rejected: vec![0; rejected],
    };
    let pairs = [pair(5, 7, 6), pair(6, 9, 8)];
    let mut lifted = Vec::new();
    for pair in &pairs {
        let layout = Layout::new(&[pair], Prompts::Shared).map_err(|e| NotBatched::Graph(e.to_string()))?;
        let one = context.capture_structure(&layout.batch, SavedTensors::new());
        lifted.push(one.map_err(|e| NotBatched::Graph(e.to_string()))?);
    }
    if lifted[0].weights.iter().any(|w| w.device().is_some()) {
        return Err(NotBatched::OnDevice);
    }
    let symbolic = SymbolicGraph::infer_dims(&lifted[0], &lifted[1], [extents(&pairs[0]), extents(&pairs[1])])
        .map_err(NotBatched::Graph)?;
    if let Some(what) = exec.foreign_product(symbolic.graph(), &symbolic.weights) {
        return Err(NotBatched::GgmlMatmul(what));
    }
    match symbolic.graph().output_matrix(symbolic.logits) {
        Some(w) if exec.can_fuse_head(&symbolic.weights[w.0 as usize]) => Ok(symbolic),
        _ => Err(NotBatched::LmHead),
    }
}

impl Engine {
    /// Plans the batches of pairs of `tokens` tokens in all, the longest of which is `longest`. The plan does not depend on how
    /// much memory is free, for batching changes the last bits of gradients.
    ///
    /// # Errors
    /// [`EngineError::Trace`].
    pub fn plan_batches(&mut self, longest: &TracedPair, tokens: usize) -> Result<PlannedBatches, EngineError> {
        let bytes = self.step_bytes(longest)?;
        let most = FREE_BYTES.max(self.model.size() / 2);
        let per_token = bytes.div_ceil(longest.n_tokens().max(1)).max(1) as u64;
        let max_tokens = match self.batches_pairs() {
            Ok(()) => ((most / per_token) as usize).min(MOST_TOKENS).min(tokens),
            Err(_) => 0,
        };
        Ok(PlannedBatches {
            plan: BatchPlan::with_max_tokens(max_tokens),
            step_bytes: bytes as u64,
            batch_bytes: per_token * max_tokens as u64,
            token_bytes: per_token,
            tokens_at_once: ((most + AT_ONCE_BYTES) / per_token) as usize,
        })
    }

    /// Pairs can be batched on this model, with this precision.
    ///
    /// # Errors
    /// Why they cannot.
    pub fn batches_pairs(&mut self) -> Result<(), NotBatched> {
        if !self.background.is_empty() {
            return Err(NotBatched::Beside);
        }
        self.joiner.graph(&mut self.context, &self.exec, Prompts::of(&self.model)).map(|_| ())
    }

    /// Joins several traced pairs in one graph. `None` where they cannot be joined.
    ///
    /// # Errors
    /// [`EngineError::Trace`].
    pub fn join(&mut self, members: &[&TracedPair]) -> Result<Option<JoinedBatch>, EngineError> {
        self.join_under(members, Head::LogProbs)
    }

    /// As [`Engine::join`], with the head that gives what is asked for.
    pub(super) fn join_under(
        &mut self,
        members: &[&TracedPair],
        head: Head,
    ) -> Result<Option<JoinedBatch>, EngineError> {
        let n_embd = self.model.n_embd();
        if !self.background.is_empty() {
            return Ok(None);
        }
        let prompts = Prompts::of(&self.model);
        let Ok(symbolic) = self.joiner.graph(&mut self.context, &self.exec, prompts) else { return Ok(None) };
        let shapes: Vec<BTreeMap<InputId, Shape>> = members.iter().map(|m| input_shapes(m.graph())).collect();
        for (m, shapes) in members.iter().zip(&shapes) {
            let fits = |(i, kind): (usize, &InputKind)| match kind {
                InputKind::Unused => true,
                InputKind::Mask => shapes.contains_key(&InputId(i as u32)),
                InputKind::Rows(..) | InputKind::Positions { .. } => {
                    shapes.get(&InputId(i as u32)).copied() == symbolic.shape(i, extents(m.tokens()))
                }
            };
            let plain = m.graph().scores.is_none() && m.residual().len() == m.n_tokens() * n_embd;
            if !plain || !symbolic.inputs.iter().enumerate().all(fits) {
                return Ok(None);
            }
        }
        let parts: Vec<(&TokenizedPair, &[f32])> = members.iter().map(|m| (m.tokens(), m.residual())).collect();
        let layout = BatchLayout::new(&parts, n_embd, &self.scope);
        let size = SymDims { tokens: layout.rows.len(), outputs: layout.outputs.len() };
        let Some(mut inputs) = inputs(symbolic, members, &shapes, &layout, size) else { return Ok(None) };
        let mut graph = symbolic.at(size)?;
        let logits = symbolic.logits;
        let (head, of) = match head {
            Head::LogProbs => match graph.loss_head(logits) {
                Some(head) => head,
                None => return Ok(None),
            },
            Head::Divergence => {
                // Outputs are not shared between pairs: those of each follow one another.
                let references = members.iter().map(|m| match m.graph().downstream.inputs.last() {
                    Some(Data::F32(rows)) => Some(&rows[..]),
                    _ => None,
                });
                let Some(references) = references.collect::<Option<Vec<_>>>() else { return Ok(None) };
                inputs.push(Data::F32(references.concat()));
                graph.divergence_head(logits, true)?
            }
        };
        let (hook_points, adapters) = (symbolic.hook_points.clone(), symbolic.adapters.clone());
        let gradients = gradients_of(&*self.intervention);
        let grads = differentiate(&mut graph, of, head, &gradients.differentiated(&hook_points, &adapters))?;
        let grads = gradients.wanted(grads, &hook_points);
        // The labels' coefficients carry the derivatives of the loss, so all rows count towards one gradient.
        let row_owner = hook_points.iter().map(|h| vec![0; graph.ne(h.at)[1..].iter().product()]).collect();
        let (weights, residual) = (symbolic.weights.clone(), symbolic.residual);
        Ok(Some(JoinedBatch {
            graph: PairGraph {
                downstream: DownstreamGraph {
                    graph,
                    hook_points,
                    adapters,
                    of: gradients,
                    logits,
                    head,
                    grads,
                    residual,
                    inputs,
                    weights,
                },
                labels: layout.labels,
                row_owner,
                sequences: Some(layout.sequences),
                scores: None,
                divergence: None,
                gradient_scale: 1.0,
            },
            references: members.iter().map(|m| m.reference()).collect(),
            n_tokens: size.tokens,
        }))
    }
}

/// The inputs of a joined graph. None where one of them is of a kind that is not known.
fn inputs(
    symbolic: &SymbolicGraph,
    members: &[&TracedPair],
    shapes: &[BTreeMap<InputId, Shape>],
    layout: &BatchLayout,
    size: SymDims,
) -> Option<Vec<Data>> {
    let hooks = symbolic.hook_points.iter().map(|e| e.vector);
    // What each run brings.
    let brought: Vec<InputId> = hooks.chain(symbolic.adapters.iter().map(|a| a.input)).collect();
    let one = |(i, kind): (usize, &InputKind)| {
        let id = InputId(i as u32);
        let parts: Vec<&Data> = members.iter().map(|m| &m.graph().downstream.inputs[i]).collect();
        match kind {
            InputKind::Unused => Some(Data::F32(Vec::new())),
            _ if brought.contains(&id) => Some(Data::F32(Vec::new())),
            InputKind::Mask => mask(&parts, shapes.iter().map(|s| s[&id]), layout, size),
            InputKind::Positions { axes } => gather(&parts, &[SymDim::Tokens(1), SymDim::Fixed(*axes)], &layout.rows),
            InputKind::Rows(extents) => {
                if extents.contains(&SymDim::Tokens(1)) {
                    return gather(&parts, extents, &layout.rows);
                }
                if extents.contains(&SymDim::Outputs(1)) {
                    // Which rows the logits are wanted of: the one thing that there is one of for each output.
                    let own = |(part, m): (&&Data, &&TracedPair)| **part == Data::I32(m.output_rows());
                    let known = parts.iter().zip(members).all(own);
                    return known.then(|| Data::I32(layout.outputs.iter().map(|&row| row as i32).collect()));
                }
                let fixed = extents.iter().all(|e| matches!(e, SymDim::Fixed(_)));
                (fixed && parts.iter().all(|part| *part == parts[0])).then(|| parts[0].clone())
            }
        }
    };
    symbolic.inputs.iter().enumerate().map(one).collect()
}

/// The mask of joined pairs: each row sees of its own pair what it sees there, and nothing of another.
fn mask(parts: &[&Data], shapes: impl Iterator<Item = Shape>, layout: &BatchLayout, size: SymDims) -> Option<Data> {
    let [width, rows, ..] = size.mask();
    let mut out = vec![f32::NEG_INFINITY; width * rows]; // [n_tokens, n_tokens rounded up]
    let widths: Vec<usize> = shapes.map(|ne| ne[0]).collect();
    for (row, &(part, from)) in out.chunks_exact_mut(width).zip(&layout.rows) {
        let Data::F32(mask) = parts[part] else { return None };
        let mask = mask.get(from * widths[part]..(from + 1) * widths[part])?;
        for (column, &sees) in layout.columns[part].iter().zip(mask) {
            if let Some(column) = *column {
                row[column] = sees;
            }
        }
    }
    Some(Data::F32(out))
}
