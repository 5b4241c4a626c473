//! Several captured pairs in one graph.
//!
//! Weights are taken apart once for all of them instead of once for each, and rows that their prompts begin with alike are
//! computed once: with a chat template that is the system prompt, at least. The numbers of a pair do not change by that: its
//! log-probabilities are the same to the bit as alone, for nothing in the forward pass depends on where in a batch a row
//! lies (tests/joined.rs). Gradients are those of the sum over the pairs, each with its own weight, which follows from its
//! log-probabilities between the two passes.

use super::layout::Joint;
use super::{BatchPlan, Engine, EngineError, Example, PairLogp, PlannedBatches, Steered, add_logp};
use crate::data::TokenizedPair;
use ggml_grad::graph::emit::{Data, Precision};
use ggml_grad::graph::grad::differentiate;
use ggml_grad::graph::ir::{InputId, Op, Shape, Value};
use ggml_grad::graph::passes::symbolic::{InputKind, SymDim, SymDims, SymbolicGraph, gather};
use ggml_grad::graph::{SavedTensors, capture_structure};
use ggml_grad::llama::Token;
use std::collections::BTreeMap;

/// Tokens of pairs that are joined, at most. More gain little, and activations grow with them.
const MOST_TOKENS: usize = 640;
/// Bytes of activations that joined pairs may always take; beyond that, half of what the model itself takes.
const FREE_BYTES: u64 = 192 << 20;

/// From a pair's margin, the change of `log p(chosen) - log p(rejected)` against its reference, to what the gradient of that
/// gap counts with.
pub type LossDerivative<'a> = &'a (dyn Fn(f64) -> f64 + Sync);

/// Several examples in one graph.
#[derive(Debug)]
pub struct Joined(Example);

impl Joined {
    /// Rows of the graph: what the pairs share is there once.
    pub fn n_tokens(&self) -> usize {
        self.0.n_tokens
    }
}

/// Tokens and outputs of a single pair's graph.
fn extents(pair: &TokenizedPair) -> SymDims {
    SymDims { tokens: pair.n_tokens(), outputs: pair.chosen.len() + pair.rejected.len() - 1 }
}

impl Example {
    /// Shapes of the inputs that the graph reads.
    fn input_shapes(&self) -> BTreeMap<InputId, Shape> {
        let shape = |n: &ggml_grad::graph::ir::Node| match n.op {
            Op::Input(id) => Some((id, n.ne)),
            _ => None,
        };
        self.graph.nodes().iter().filter_map(shape).collect()
    }
}

impl Engine {
    /// Plans the batches of pairs of `tokens` tokens in all, the longest of which is `longest`. The plan does not depend on how
    /// much memory is free, for batching changes the last bits of gradients.
    ///
    /// # Errors
    /// [`EngineError::Run`].
    pub fn plan_batches(&mut self, longest: &Example, tokens: usize) -> Result<PlannedBatches, EngineError> {
        let bytes = self.step_bytes(longest)?;
        let most = FREE_BYTES.max(self.model.size() / 2);
        let per_token = bytes.div_ceil(longest.n_tokens.max(1)).max(1) as u64;
        let max_tokens = match self.pattern() {
            Ok(_) => ((most / per_token) as usize).min(MOST_TOKENS).min(tokens),
            Err(_) => 0,
        };
        Ok(PlannedBatches {
            plan: BatchPlan::with_max_tokens(max_tokens),
            step_bytes: bytes as u64,
            batch_bytes: per_token * max_tokens as u64,
        })
    }

    /// Why pairs cannot be joined, on this model, with this precision.
    ///
    /// # Errors
    /// The reason.
    pub fn joins(&mut self) -> Result<(), String> {
        self.pattern().map(|_| ())
    }

    /// The graph for any number of tokens.
    fn pattern(&mut self) -> Result<&SymbolicGraph, String> {
        if self.precision() != Precision::default() {
            return Err("pairs are joined only where forward and backward pass may round".into());
        }
        if self.pattern.is_none() {
            self.pattern = Some(self.learn());
        }
        match self.pattern.as_ref() {
            Some(Ok(pattern)) => Ok(pattern),
            Some(Err(reason)) => Err(reason.clone()),
            None => unreachable!("just set"),
        }
    }

    fn learn(&mut self) -> Result<SymbolicGraph, String> {
        // Numbers that differ, in different proportions; the tokens themselves play no part.
        let pair = |prompt: usize, chosen: usize, rejected: usize| TokenizedPair {
            prompt: vec![0 as Token; prompt],
            chosen: vec![0; chosen],
            rejected: vec![0; rejected],
        };
        let pairs = [pair(5, 7, 6), pair(6, 9, 8)];
        let mut lifted = Vec::new();
        for pair in &pairs {
            let layout = super::Layout::new(&[pair]).map_err(|e| e.to_string())?;
            let one = capture_structure(&mut self.ctx, &layout.batch, &self.layers, SavedTensors::new());
            lifted.push(one.map_err(|e| e.to_string())?);
        }
        if lifted[0].weights.iter().any(|w| w.device().is_some()) {
            return Err("weights lie on a device".into());
        }
        let pattern = SymbolicGraph::learn(&lifted[0], &lifted[1], [extents(&pairs[0]), extents(&pairs[1])])?;
        if let Some(what) = self.exec.foreign_product(pattern.graph(), &pattern.weights) {
            return Err(format!("{what} are left to ggml, whose sums may depend on what else is in a batch"));
        }
        match pattern.graph().output_matrix(pattern.logits) {
            Some(w) if self.exec.can_fuse_head(&pattern.weights[w.0 as usize]) => Ok(pattern),
            _ => Err("the output matrix is not one that bidpo's kernels take".into()),
        }
    }

    /// Puts several examples, each of one pair, together. None where they cannot be joined.
    ///
    /// # Errors
    /// [`EngineError::Grad`].
    pub fn join(&mut self, members: &[&Example]) -> Result<Option<Joined>, EngineError> {
        let n_embd = self.model.n_embd();
        let Ok(pattern) = self.pattern() else { return Ok(None) };
        let shapes: Vec<BTreeMap<InputId, Shape>> = members.iter().map(|m| m.input_shapes()).collect();
        for (m, shapes) in members.iter().zip(&shapes) {
            let fits = |(i, kind): (usize, &InputKind)| match kind {
                InputKind::Unused => true,
                InputKind::Mask => shapes.contains_key(&InputId(i as u32)),
                InputKind::Rows(..) => {
                    shapes.get(&InputId(i as u32)).copied() == pattern.shape(i, extents(&m.pairs[0]))
                }
            };
            let one = m.pairs.len() == 1 && m.scores.is_none() && m.residual().len() == m.n_tokens * n_embd;
            if !one || !pattern.inputs.iter().enumerate().all(fits) {
                return Ok(None);
            }
        }
        let parts: Vec<(&TokenizedPair, &[f32])> = members.iter().map(|m| (&m.pairs[0], m.residual())).collect();
        let joint = Joint::new(&parts, n_embd);
        let size = SymDims { tokens: joint.rows.len(), outputs: joint.outputs.len() };
        let Some(inputs) = inputs(pattern, members, &shapes, &joint, size) else { return Ok(None) };
        let mut graph = pattern.at(size)?;
        let (entries, weights, residual) = (pattern.entries.clone(), pattern.weights.clone(), pattern.residual);
        let logits = pattern.logits;
        let Some((head, of)) = graph.loss_head(logits) else { return Ok(None) };
        let at: Vec<Value> = entries.iter().map(|e| e.at).collect();
        let grads = differentiate(&mut graph, of, head, &at)?;
        let row_pair = at.iter().map(|&v| vec![0; graph.ne(v)[1..].iter().product()]).collect();
        Ok(Some(Joined(Example {
            graph,
            norms: Vec::new(),
            entries,
            logits,
            head,
            scores: None,
            gradient_scale: 1.0,
            grads,
            residual,
            inputs,
            weights,
            labels: joint.labels,
            owners: joint.owners,
            row_pair,
            reference: members.iter().map(|m| m.reference[0]).collect(),
            n_tokens: size.tokens,
            pairs: members.iter().map(|m| m.pairs[0].clone()).collect(),
            ops: BTreeMap::new(),
        })))
    }

    /// Scores some pairs with `vectors`, `[n_layers, n_embd]`, added at every position, in one graph where they can be
    /// joined. With `slope`, also the sum of the gradients of their `log p(chosen) - log p(rejected)`, `[n_layers, n_embd]`,
    /// each times its slope.
    ///
    /// # Errors
    /// Any of [`EngineError`].
    pub fn run_together(
        &mut self,
        members: &[&Example],
        vectors: &[f32],
        slope: Option<LossDerivative<'_>>,
    ) -> Result<(Vec<PairLogp>, Vec<f64>), EngineError> {
        let joined = if members.len() > 1 { self.join(members)? } else { None };
        if let Some(joined) = joined {
            return self.run_joined(&joined, vectors, slope);
        }
        let mut logp = Vec::new();
        let mut sum = vec![0.0; slope.map_or(0, |_| self.n_params())];
        for member in members {
            let scored = self.run(member, vectors, slope.is_some())?;
            if let Some(slope) = slope {
                for ((policy, reference), grad) in scored.logp.iter().zip(&member.reference).zip(&scored.grads) {
                    let factor = slope(policy.gap() - reference.gap());
                    sum.iter_mut().zip(grad).for_each(|(sum, g)| *sum += factor * g);
                }
            }
            logp.extend(scored.logp);
        }
        Ok((logp, sum))
    }

    /// Log-probabilities of examples of one pair each under the parameters `vectors`, in the batches of the plan.
    ///
    /// # Errors
    /// Any of [`EngineError`].
    pub fn score_all(
        &mut self,
        examples: &[Example],
        vectors: &[f32],
        plan: BatchPlan,
    ) -> Result<Vec<PairLogp>, EngineError> {
        let sizes: Vec<usize> = examples.iter().map(|e| e.n_tokens).collect();
        let mut logp = Vec::with_capacity(examples.len());
        for group in plan.batches(&sizes) {
            let members: Vec<&Example> = examples[group].iter().collect();
            logp.extend(self.run_together(&members, vectors, None)?.0);
        }
        Ok(logp)
    }

    fn run_joined(
        &mut self,
        Joined(joined): &Joined,
        vectors: &[f32],
        slope: Option<LossDerivative<'_>>,
    ) -> Result<(Vec<PairLogp>, Vec<f64>), EngineError> {
        let data = self.steer(joined, vectors)?;
        let (logp, hooks) = self.run_steered(joined, &data, slope)?;
        let sum = match slope {
            // The labels' coefficients carry the slopes: one gradient for the whole batch.
            Some(_) => self.gradients(joined, vectors, &hooks, 1).swap_remove(0),
            None => Vec::new(),
        };
        Ok((logp, sum))
    }

    /// Log-probabilities of a batch without an intervention.
    pub(super) fn unsteered_logps(&mut self, Joined(joined): &Joined) -> Result<Vec<PairLogp>, EngineError> {
        let vectors = self.split(&vec![0.0; self.n_vector()]);
        Ok(self.run_steered(joined, &Steered { residual: None, vectors }, None)?.0)
    }

    /// Log-probabilities of a batch, and with `slope` the gradient at each hook point, `[n_rows, n_embd]`, lowest layer first.
    fn run_steered(
        &mut self,
        joined: &Example,
        data: &Steered,
        slope: Option<LossDerivative<'_>>,
    ) -> Result<(Vec<PairLogp>, Vec<Vec<f32>>), EngineError> {
        let mut bind = joined.steered(data);
        let (owners, labels, reference) = (&joined.owners, &joined.labels, &joined.reference);
        let by_pair = |log_probs: &[f64]| {
            let mut logp = vec![PairLogp::default(); reference.len()];
            owners.iter().zip(log_probs).for_each(|(owner, l)| add_logp(&mut logp, *owner, *l));
            logp
        };
        let weigh = |log_probs: &[f64]| -> Vec<f32> {
            let margins = by_pair(log_probs).into_iter().zip(reference).map(|(l, r)| l.gap() - r.gap());
            let slopes: Vec<f32> = margins.map(|margin| slope.map_or(1.0, |slope| slope(margin)) as f32).collect();
            owners.iter().zip(labels).map(|((pair, _), l)| l.coef * slopes[*pair]).collect()
        };
        let (computed, read) = match slope {
            Some(_) => (&[][..], &joined.grads[..]),
            None => (joined.computed(), &[][..]),
        };
        bind.weigh = Some(&weigh);
        let outcome = self.exec.run(&joined.graph, &bind, computed, read)?;
        Ok((by_pair(&outcome.log_probs), outcome.values))
    }
}

/// The inputs of a joined graph. None where one of them is of a kind that is not known.
fn inputs(
    pattern: &SymbolicGraph,
    members: &[&Example],
    shapes: &[BTreeMap<InputId, Shape>],
    joint: &Joint,
    size: SymDims,
) -> Option<Vec<Data>> {
    let vectors: Vec<InputId> = pattern.entries.iter().map(|e| e.vector).collect();
    let one = |(i, kind): (usize, &InputKind)| {
        let id = InputId(i as u32);
        let parts: Vec<&Data> = members.iter().map(|m| &m.inputs[i]).collect();
        match kind {
            InputKind::Unused => Some(Data::F32(Vec::new())),
            _ if vectors.contains(&id) => Some(Data::F32(Vec::new())),
            InputKind::Mask => mask(&parts, shapes.iter().map(|s| s[&id]), joint, size),
            InputKind::Rows(extents) => {
                if extents.contains(&SymDim::Tokens(1)) {
                    return gather(&parts, extents, &joint.rows);
                }
                if extents.contains(&SymDim::Outputs(1)) {
                    // Which rows the logits are wanted of: the one thing that there is one of for each output.
                    let own = |(part, m): (&&Data, &&Example)| **part == Data::I32(m.output_rows());
                    let known = parts.iter().zip(members).all(own);
                    return known.then(|| Data::I32(joint.outputs.iter().map(|&row| row as i32).collect()));
                }
                let fixed = extents.iter().all(|e| matches!(e, SymDim::Fixed(_)));
                (fixed && parts.iter().all(|part| *part == parts[0])).then(|| parts[0].clone())
            }
        }
    };
    pattern.inputs.iter().enumerate().map(one).collect()
}

/// The mask of joined pairs: each row sees of its own pair what it sees there, and nothing of another.
fn mask(parts: &[&Data], shapes: impl Iterator<Item = Shape>, joint: &Joint, size: SymDims) -> Option<Data> {
    let [width, rows, ..] = size.mask();
    let mut out = vec![f32::NEG_INFINITY; width * rows]; // [n_tokens, n_tokens rounded up]
    let widths: Vec<usize> = shapes.map(|ne| ne[0]).collect();
    for (row, &(part, from)) in out.chunks_exact_mut(width).zip(&joint.rows) {
        let Data::F32(mask) = parts[part] else { return None };
        let mask = mask.get(from * widths[part]..(from + 1) * widths[part])?;
        for (column, &sees) in joint.columns[part].iter().zip(mask) {
            if let Some(column) = *column {
                row[column] = sees;
            }
        }
    }
    Some(Data::F32(out))
}
