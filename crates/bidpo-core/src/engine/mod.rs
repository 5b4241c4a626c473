//! Preference pairs on a model: captured once, then scored and differentiated for any vector.

mod batch_plan;
mod cache;
mod error;
mod intervention;
mod joined;
mod layout;
mod pair_logp;
mod placed;
mod stored;
mod verify;

pub use batch_plan::{BatchPlan, PlannedBatches};
pub use cache::{Cache, CacheType, CacheUse};
pub use error::EngineError;
pub use intervention::{Add, Addition, Intervention, RowGradients};
pub use joined::{Joined, LossDerivative};
pub use pair_logp::PairLogp;
pub use verify::{Agreement, DEVICE_LIMIT, OpCount, Survey};

use crate::data::TokenizedPair;
use crate::numbers::norm;
use ggml_grad::graph::emit::{Bindings, Data, Executor, Forward, Label, Outcome, Precision, Profile, Timings};
use ggml_grad::graph::grad::differentiate_within;
use ggml_grad::graph::ir::{Elem, Graph, InputId, Op, Value};
use ggml_grad::graph::lift::{HookPoint, Lifted};
use ggml_grad::graph::passes::fuse::fuse;
use ggml_grad::graph::passes::lower::LabelScores;
use ggml_grad::graph::passes::symbolic::SymbolicGraph;
use ggml_grad::graph::{AttentionMemory, FastKernels};
use ggml_grad::llama::{Context, ContextParams, DType, LlamaError, Model, Use, Weight};
use layout::Layout;
use placed::Parts;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// One or more pairs, captured: the upper graph, its gradient, the residual stream at the layer, and the reference
/// log-probabilities.
#[derive(Clone)]
pub struct Example {
    graph: Graph,
    entries: Vec<HookPoint>,
    logits: Value,
    head: Value,
    /// What the labels' log-probabilities follow from, where the head runs on a device; the executor records them otherwise.
    scores: Option<LabelScores>,
    /// Factor on the gradients that the graph gives.
    gradient_scale: f32,
    /// Gradient at each entry, `[n_embd, n_rows]`.
    grads: Vec<Value>,
    /// Which of the inputs is the residual stream.
    residual: InputId,
    inputs: Vec<Data>,
    weights: Vec<Weight>,
    labels: Vec<Label>,
    /// For each label: its pair, and whether it belongs to the chosen response.
    owners: Vec<(usize, bool)>,
    /// For each entry and each row of the residual stream there: its pair.
    row_pair: Vec<Vec<usize>>,
    /// Log-probabilities under v = 0.
    pub reference: Vec<PairLogp>,
    /// Tokens in the batch.
    pub n_tokens: usize,
    /// The pairs' tokens.
    pairs: Vec<TokenizedPair>,
    /// For each layer: Euclidean norm of the residual stream at each row.
    pub norms: Vec<Vec<f32>>,
    /// Ops of the lifted graph with their counts.
    pub ops: BTreeMap<&'static str, usize>,
}

impl std::fmt::Debug for Example {
    /// Sizes only: the data are hundreds of thousands of numbers.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Example")
            .field("n_pairs", &self.n_pairs())
            .field("n_tokens", &self.n_tokens)
            .field("n_nodes", &self.n_nodes())
            .finish_non_exhaustive()
    }
}

impl Example {
    /// Bytes held: the residual stream, the other inputs, the graph.
    pub fn bytes(&self) -> usize {
        self.input_bytes() + self.graph_bytes()
    }

    /// Bytes of the graph: the same for every number of tokens.
    pub(super) fn graph_bytes(&self) -> usize {
        self.graph.bytes()
    }

    /// Bytes of the inputs.
    pub(super) fn input_bytes(&self) -> usize {
        self.inputs
            .iter()
            .map(|d| match d {
                Data::F32(v) => v.len() * 4,
                Data::I32(v) => v.len() * 4,
                Data::Bytes(v) => v.len(),
            })
            .sum()
    }

    /// Number of pairs.
    pub fn n_pairs(&self) -> usize {
        self.reference.len()
    }

    /// Nodes of the graph, forward and backward.
    pub fn n_nodes(&self) -> usize {
        self.graph.nodes().len()
    }
}

/// Inputs that an intervention replaces.
struct Steered {
    /// The residual stream at the lowest layer with the intervention applied row by row, `[n_rows, n_embd]`; `None` where it
    /// is as traced.
    residual: Option<Data>,
    /// The vector added at each layer, `[n_embd]`.
    vectors: Vec<Data>,
}

/// What a run of an example gives.
#[derive(Debug, Clone)]
pub struct Scored {
    /// Log-probabilities of each pair with the vector added.
    pub logp: Vec<PairLogp>,
    /// Gradient of `log p(chosen) - log p(rejected)` with respect to the added vectors, for each pair,
    /// `[n_layers, n_embd]`; empty when not asked for.
    pub grads: Vec<Vec<f64>>,
}

/// The engine at one or more layers of one model. Vectors of several layers lie one after the other, lowest layer first:
/// `[n_layers, n_embd]`.
#[derive(Debug)]
pub struct Engine {
    ctx: Context,
    exec: Executor,
    model: Arc<Model>,
    layers: Vec<usize>,
    attention: AttentionMemory,
    cache: Option<Cache>,
    /// Nodes whose results from below the lowest layer are used above it, by their number in the order of the decode.
    keep: BTreeSet<usize>,
    transposed_type: Option<DType>,
    notices: Vec<String>,
    /// The upper graph for any number of tokens, or why there is none; None while nobody asked.
    pattern: Option<Result<SymbolicGraph, String>>,
    /// How parameters change the residual stream.
    intervention: Arc<dyn Intervention>,
}

impl Engine {
    /// An engine for batches of up to `max_tokens` tokens and `max_pairs` pairs, steering at `layers` (any order, each
    /// once).
    ///
    /// # Errors
    /// [`EngineError::Model`] for no layer, one out of range or named twice; [`EngineError::Unsupported`] for a recurrent
    /// or an encoder-decoder model.
    pub fn new(
        model: &Arc<Model>,
        layers: &[usize],
        max_tokens: usize,
        max_pairs: usize,
        n_threads: u32,
    ) -> Result<Self, EngineError> {
        for &layer in layers {
            check_model(model, layer)?;
        }
        let mut layers = layers.to_vec();
        layers.sort_unstable();
        if layers.is_empty() || layers.windows(2).any(|w| w[0] == w[1]) {
            return Err(EngineError::Model(format!("layers {layers:?}: at least one, and each once")));
        }
        let mut ctx = Context::new(model, &ContextParams::exact(max_tokens, 2 * max_pairs, n_threads))?;
        mark(&mut ctx, &layers)?;
        ctx.set_kernel_override(FastKernels::kernel_override());
        let attention = AttentionMemory::default();
        let exec = Executor::new(ctx.n_threads())?;
        let (cache, keep, transposed_type, notices) = (None, BTreeSet::new(), None, Vec::new());
        let pattern = None;
        let intervention = Arc::new(Add { n_layers: layers.len(), n_embd: model.n_embd() });
        let model = Arc::clone(model);
        Ok(Self { exec, ctx, model, layers, attention, cache, keep, transposed_type, notices, pattern, intervention })
    }

    /// See [`Executor::set_smooth`].
    pub fn set_smooth(&mut self, smooth: bool) {
        self.exec.set_smooth(smooth);
    }

    /// Sets what may be rounded in examples captured from now on, and in their runs.
    pub fn set_precision(&mut self, precision: Precision) {
        self.exec.set_precision(precision);
        // Below the lowest layer they give ggml's bits in either case; but what is asked for are its own kernels.
        self.ctx.set_kernel_override(FastKernels::kernel_override().filter(|_| precision.forward == Forward::Fast));
    }

    /// What may be rounded.
    pub fn precision(&self) -> Precision {
        self.exec.precision()
    }

    /// Sets what the backward pass of examples captured from now on may keep of attention scores.
    pub fn set_attention_memory(&mut self, memory: AttentionMemory) {
        self.attention = memory;
    }

    /// The steered layers, lowest first.
    pub fn layers(&self) -> &[usize] {
        &self.layers
    }

    /// The engine with another kind of intervention instead of [`Add`].
    pub fn with_intervention(mut self, intervention: Arc<dyn Intervention>) -> Self {
        self.intervention = intervention;
        self
    }

    /// How parameters change the residual stream at the steered layers.
    pub fn intervention(&self) -> &dyn Intervention {
        &*self.intervention
    }

    /// Number of parameters of the intervention: `n_layers * n_embd` for [`Add`].
    pub fn n_params(&self) -> usize {
        self.intervention.n_params()
    }

    /// Elements of one vector for each layer: `n_layers * n_embd`.
    fn n_vector(&self) -> usize {
        self.layers.len() * self.model.n_embd()
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Bytes of activations that the largest run so far needed.
    pub fn activation_bytes(&self) -> usize {
        self.exec.activation_bytes()
    }

    /// See [`Executor::start_profile`].
    pub fn start_profile(&mut self) {
        self.exec.start_profile();
    }

    /// See [`Executor::take_profile`].
    pub fn take_profile(&mut self) -> Profile {
        self.exec.take_profile()
    }

    /// See [`Executor::take_timings`].
    pub fn take_timings(&mut self) -> Timings {
        self.exec.take_timings()
    }

    /// Keeps what training needs of some pairs: llama.cpp computes what lies below the lowest layer, the lifted graph the
    /// rest, once, without vectors. With a cache ([`Engine::set_cache`]) that is read from there if it can be.
    ///
    /// # Errors
    /// Any of [`EngineError`].
    pub fn capture(&mut self, pairs: &[&TokenizedPair]) -> Result<Example, EngineError> {
        let mut cache = self.cache.take();
        let example = self.capture_through(cache.as_mut(), pairs);
        self.cache = cache;
        example
    }

    /// As [`Engine::capture`], without a look at the cache.
    ///
    /// # Errors
    /// Any of [`EngineError`].
    pub fn capture_fresh(&mut self, pairs: &[&TokenizedPair]) -> Result<Example, EngineError> {
        self.capture_through(None, pairs)
    }

    fn capture_through(
        &mut self,
        mut cache: Option<&mut Cache>,
        pairs: &[&TokenizedPair],
    ) -> Result<Example, EngineError> {
        let mut begun = self.begin(cache.as_deref_mut(), pairs)?;
        if begun.kept.is_some() {
            self.compute_references(&mut begun.example)?;
        }
        Ok(begun.finish(cache))
    }

    /// Captures each pair by itself, as [`Engine::capture`] does, but computes the references of each batch of the plan in
    /// one graph where that is possible. `seen` is called with each pair and returns whether to continue; `None` where it
    /// returned false.
    ///
    /// # Errors
    /// Any of [`EngineError`], with the pair's place.
    pub fn capture_each(
        &mut self,
        pairs: &[&TokenizedPair],
        plan: BatchPlan,
        seen: &mut dyn FnMut(&Example) -> bool,
    ) -> Result<Option<Vec<Example>>, (usize, EngineError)> {
        let mut cache = self.cache.take();
        let examples = self.capture_each_through(cache.as_mut(), pairs, plan, seen);
        self.cache = cache;
        examples
    }

    fn capture_each_through(
        &mut self,
        mut cache: Option<&mut Cache>,
        pairs: &[&TokenizedPair],
        plan: BatchPlan,
        seen: &mut dyn FnMut(&Example) -> bool,
    ) -> Result<Option<Vec<Example>>, (usize, EngineError)> {
        let sizes: Vec<usize> = pairs.iter().map(|p| p.n_tokens()).collect();
        let mut examples = Vec::with_capacity(pairs.len());
        for group in plan.batches(&sizes) {
            let first = group.start;
            let mut begun = Vec::with_capacity(group.len());
            for i in group {
                let one = self.begin(cache.as_deref_mut(), &pairs[i..=i]).map_err(|e| (i, e))?;
                let proceed = seen(&one.example);
                begun.push(one);
                if !proceed {
                    return Ok(None);
                }
            }
            let new = begun.iter_mut().filter(|b| b.kept.is_some()).map(|b| &mut b.example).collect();
            self.compute_batch_references(new).map_err(|e| (first, e))?;
            examples.extend(begun.into_iter().map(|b| b.finish(cache.as_deref_mut())));
        }
        Ok(Some(examples))
    }

    /// Puts an example together, all but what a run of it tells.
    fn example(&mut self, mut layout: Layout, mut lifted: Lifted, residual: Vec<f32>) -> Result<Example, EngineError> {
        let row_pair = lifted
            .entries
            .iter()
            .map(|e| layout.row_pair(&lifted.graph, e))
            .collect::<Result<Vec<Vec<usize>>, EngineError>>()?;
        if self.precision().forward == Forward::Fast && lifted.weights.iter().all(|w| w.device().is_none()) {
            let at: Vec<Value> = lifted.entries.iter().map(|e| e.at).collect();
            let (graph, map) = fuse(&lifted.graph, &at)?;
            lifted.graph = graph;
            lifted.logits = map[lifted.logits.0 as usize];
            lifted.entries.iter_mut().for_each(|e| e.at = map[e.at.0 as usize]);
        }
        let mut graph = lifted.graph;
        let fused =
            graph.output_matrix(lifted.logits).filter(|w| self.exec.can_fuse_head(&lifted.weights[w.0 as usize]));
        let (head, of) = match fused.and_then(|_| graph.loss_head(lifted.logits)) {
            Some(fused) => fused,
            None => (graph.log_prob_head(lifted.logits)?, lifted.logits),
        };
        let at: Vec<Value> = lifted.entries.iter().map(|e| e.at).collect();
        let grads = differentiate_within(&mut graph, of, head, &at, self.attention)?;
        let mut inputs = lifted.inputs;
        inputs[lifted.residual.0 as usize] = Data::F32(residual);
        let parts = Parts { graph, weights: lifted.weights, inputs, logits: lifted.logits, head, grads };
        let (parts, entries, scores, gradient_scale) = self.place(parts, lifted.entries, &mut layout.labels)?;
        let Parts { mut graph, mut weights, inputs, logits, head, grads } = parts;
        graph.shrink();
        for id in graph.transposed_weights() {
            weights[id.0 as usize].make_plain()?;
        }
        Ok(Example {
            graph,
            norms: Vec::new(),
            entries,
            logits,
            head,
            scores,
            gradient_scale,
            grads,
            residual: lifted.residual,
            inputs,
            weights,
            labels: layout.labels,
            owners: layout.owners,
            row_pair,
            reference: vec![PairLogp::default(); layout.n_pairs],
            n_tokens: layout.token_pair.len(),
            pairs: layout.pairs,
            ops: lifted.ops,
        })
    }

    /// Computes reference log-probabilities, on the same path as the policy's, and the norms of the residual stream at each
    /// layer.
    fn compute_references(&mut self, example: &mut Example) -> Result<(), EngineError> {
        let n_embd = self.model.n_embd();
        let zeros = self.split(&vec![0.0; self.n_vector()]);
        let mut read: Vec<Value> = example.entries.iter().skip(1).map(|e| e.at).collect();
        read.extend(example.score_values());
        let outcome = self.exec.run(&example.graph, &example.bindings(&zeros), example.computed(), &read)?;
        let outcome = example.scored(outcome);
        for (owner, l) in example.owners.iter().zip(&outcome.log_probs) {
            add_logp(&mut example.reference, *owner, *l);
        }
        let lowest = example.residual();
        let norms = std::iter::once(lowest).chain(outcome.values.iter().map(Vec::as_slice));
        example.norms = norms.map(|rows| rows.chunks_exact(n_embd).map(|row| norm(row) as f32).collect()).collect();
        Ok(())
    }

    /// As [`Engine::compute_references`], for several examples of one pair each.
    fn compute_batch_references(&mut self, mut examples: Vec<&mut Example>) -> Result<(), EngineError> {
        // At further layers the norms of all rows are needed, and a batch leaves some rows out.
        let batch = if self.layers.len() == 1 && examples.len() > 1 {
            self.join(&examples.iter().map(|e| &**e).collect::<Vec<_>>())?
        } else {
            None
        };
        if let Some(batch) = batch {
            let logp = self.unsteered_logps(&batch)?;
            let n_embd = self.model.n_embd();
            for (example, logp) in examples.into_iter().zip(logp) {
                example.norms = vec![example.residual().chunks_exact(n_embd).map(|row| norm(row) as f32).collect()];
                example.reference = vec![logp];
            }
            return Ok(());
        }
        examples.iter_mut().try_for_each(|example| self.compute_references(example))
    }

    /// The example with all choices that depend on the vectors (which experts a token goes to) as they are with `vectors`
    /// added, whatever is added later. The gradient is that of this function: at a change of choice the model jumps.
    ///
    /// # Errors
    /// [`EngineError::Run`].
    pub fn freeze_choices(&mut self, example: &Example, vectors: &[f32]) -> Result<Example, EngineError> {
        let nodes = example.graph.nodes();
        let chosen: Vec<Value> = (0..nodes.len() as u32)
            .map(Value)
            .filter(|v| {
                let node = example.graph.node(*v);
                let from_floats = node.src.iter().any(|s| example.graph.node(*s).elem != Elem::I32);
                node.elem == Elem::I32 && from_floats && !matches!(node.op, Op::Input(_) | Op::Weight(_))
            })
            .collect();
        let mut frozen = example.clone();
        if chosen.is_empty() {
            return Ok(frozen);
        }
        let data = self.steer(example, vectors)?;
        let outcome = self.exec.run(&example.graph, &example.steered(&data), &[], &chosen)?;
        for (value, numbers) in chosen.into_iter().zip(outcome.integers) {
            frozen.graph.freeze(value);
            frozen.inputs.push(Data::I32(numbers));
        }
        Ok(frozen)
    }

    /// Bytes of the CPU's memory that a step on this example needs for inputs and activations, beside the model and what is
    /// captured. [`Engine::step_device_bytes`] then tells what it needs elsewhere.
    ///
    /// # Errors
    /// [`EngineError::Run`].
    pub fn step_bytes(&mut self, example: &Example) -> Result<usize, EngineError> {
        let data = self.split(&vec![0.0; self.n_vector()]);
        Ok(self.exec.measure(&example.graph, &example.bindings(&data), &example.grads)?)
    }

    /// Devices in use beside the CPU, with the bytes that a step on the example of the last [`Engine::step_bytes`] needs
    /// there for activations.
    pub fn step_device_bytes(&self) -> Vec<(String, usize)> {
        self.exec.measured_on_devices()
    }

    /// The lifted graph's logits with `vectors` added, `[n_outputs, n_vocab]`, by ggml's own kernels whatever the precision:
    /// they are there to be compared with `llama_decode`.
    ///
    /// # Errors
    /// [`EngineError::Run`].
    pub fn logits(&mut self, example: &Example, vectors: &[f32]) -> Result<Vec<f32>, EngineError> {
        let data = self.split(vectors);
        let precision = self.precision();
        self.exec.set_precision(Precision { forward: Forward::Exact, ..precision });
        let outcome = self.exec.run(&example.graph, &example.bindings(&data), &[], &[example.logits]);
        self.exec.set_precision(precision);
        Ok(outcome?.values.into_iter().next().unwrap_or_default())
    }

    /// The vectors of the layers, one by one.
    fn split(&self, vectors: &[f32]) -> Vec<Data> {
        debug_assert_eq!(vectors.len(), self.n_vector());
        vectors.chunks_exact(self.model.n_embd()).map(|v| Data::F32(v.to_vec())).collect()
    }

    /// The example's inputs for the parameters `theta`.
    fn steer(&self, example: &Example, theta: &[f32]) -> Result<Steered, EngineError> {
        let (mut vectors, mut residual) = (Vec::with_capacity(self.layers.len()), None);
        for (at, addition) in self.intervention.additions(theta, example.residual()).into_iter().enumerate() {
            match addition {
                Addition::Broadcast(v) => vectors.push(Data::F32(v)),
                Addition::Rows(rows) if at == 0 && rows.len() == example.residual().len() => {
                    residual = Some(Data::F32(example.residual().iter().zip(&rows).map(|(h, x)| h + x).collect()));
                    vectors.push(Data::F32(vec![0.0; self.model.n_embd()]));
                }
                Addition::Rows(rows) => {
                    return Err(EngineError::Model(format!(
                        "the intervention gives {} numbers row by row at layer {}: only the lowest layer takes rows, {} numbers here",
                        rows.len(),
                        self.layers[at],
                        example.residual().len()
                    )));
                }
            }
        }
        Ok(Steered { residual, vectors })
    }

    /// Gradients of the parameters, for each of `n` pairs, from the gradients at the hook points.
    fn gradients(&self, example: &Example, theta: &[f32], hooks: &[Vec<f32>], n: usize) -> Vec<Vec<f64>> {
        let mut grads = vec![vec![0.0; self.n_params()]; n];
        let at: Vec<RowGradients<'_>> = hooks
            .iter()
            .zip(&example.row_pair)
            .map(|(rows, pair)| RowGradients { rows, scale: example.gradient_scale, pair })
            .collect();
        self.intervention.vjp(theta, example.residual(), &at, &mut grads);
        grads
    }

    /// Scores the example's pairs under the parameters `vectors` (for [`Add`] `[n_layers, n_embd]`, added at every
    /// position); with `want_grads`, also the gradient of each pair's `log p(chosen) - log p(rejected)`.
    ///
    /// # Errors
    /// [`EngineError::Run`].
    pub fn run(&mut self, example: &Example, vectors: &[f32], want_grads: bool) -> Result<Scored, EngineError> {
        let data = self.steer(example, vectors)?;
        let bind = example.steered(&data);
        let (computed, mut read) =
            if want_grads { (&[][..], example.grads.clone()) } else { (example.computed(), Vec::new()) };
        read.extend(example.score_values());
        let outcome = example.scored(self.exec.run(&example.graph, &bind, computed, &read)?);
        let mut logp = vec![PairLogp::default(); example.n_pairs()];
        for (owner, l) in example.owners.iter().zip(&outcome.log_probs) {
            add_logp(&mut logp, *owner, *l);
        }
        let mut grads = Vec::new();
        if want_grads {
            let hooks = &outcome.values[..example.grads.len()];
            grads = self.gradients(example, vectors, hooks, example.n_pairs());
        }
        Ok(Scored { logp, grads })
    }
}

impl Example {
    /// The residual stream at the lowest layer, before a vector is added, `[n_rows, n_embd]`.
    pub fn residual(&self) -> &[f32] {
        match &self.inputs[self.residual.0 as usize] {
            Data::F32(rows) => rows,
            _ => &[],
        }
    }

    /// For a single pair: rows whose logits are wanted, as llama.cpp is told them.
    fn output_rows(&self) -> Vec<i32> {
        let pair = &self.pairs[0];
        let (p, c, r) = (pair.prompt.len(), pair.chosen.len(), pair.rejected.len());
        (p - 1..p + c - 1).chain(p + c..p + c + r - 1).map(|row| row as i32).collect()
    }

    /// Values that the log-probabilities are made of.
    fn score_values(&self) -> impl Iterator<Item = Value> + '_ {
        self.scores.iter().flat_map(LabelScores::values)
    }

    /// What has to run for the log-probabilities beside what is read.
    fn computed(&self) -> &[Value] {
        if self.scores.is_some() { &[] } else { std::slice::from_ref(&self.head) }
    }

    /// The outcome of a run that read [`Example::score_values`] last: with the log-probabilities instead of those.
    fn scored(&self, mut outcome: Outcome) -> Outcome {
        if let Some(scores) = &self.scores {
            let parts = outcome.values.split_off(outcome.values.len() - 3);
            outcome.log_probs = scores.log_probs(&parts[0], &parts[1], &parts[2]);
        }
        outcome
    }

    fn steered<'a>(&'a self, steered: &'a Steered) -> Bindings<'a> {
        let mut bindings = self.bindings(&steered.vectors);
        if let Some(residual) = &steered.residual {
            bindings.inputs[self.residual.0 as usize] = residual;
        }
        bindings
    }

    fn bindings<'a>(&'a self, vectors: &'a [Data]) -> Bindings<'a> {
        let mut inputs: Vec<&Data> = self.inputs.iter().collect();
        for (e, v) in self.entries.iter().zip(vectors) {
            inputs[e.vector.0 as usize] = v;
        }
        Bindings { inputs, weights: &self.weights, labels: &self.labels, weigh: None }
    }
}

/// Refuses models and layers that cannot be trained on.
///
/// # Errors
/// [`EngineError::Unsupported`] naming the architecture, [`EngineError::Model`] naming the range.
pub fn check_model(model: &Model, layer: usize) -> Result<(), EngineError> {
    model.supports(Use::Train)?;
    let n_layer = model.n_layer();
    if layer < 1 || layer >= n_layer {
        return Err(EngineError::Model(format!(
            "layer {layer} is out of range: {} has {n_layer} layers, and llama.cpp steers 1 to {}",
            model.path().display(),
            n_layer - 1
        )));
    }
    Ok(())
}

/// Puts vectors, `[n_layers, n_embd]`, on the layers (ascending).
fn set_vectors(ctx: &mut Context, layers: &[usize], vectors: &[f32]) -> Result<(), LlamaError> {
    let (n_layer, n_embd) = (ctx.model().n_layer(), ctx.model().n_embd());
    let mut data = vec![0.0; (n_layer - 1) * n_embd];
    for (layer, v) in layers.iter().zip(vectors.chunks_exact(n_embd)) {
        data[(layer - 1) * n_embd..layer * n_embd].copy_from_slice(v);
    }
    ctx.set_control_vector(&data, layers[0], layers[layers.len() - 1])
}

fn markers(layers: &[usize], n_embd: usize) -> Vec<f32> {
    layers.iter().flat_map(|&l| ggml_grad::graph::marker(n_embd, l)).collect()
}

fn mark(ctx: &mut Context, layers: &[usize]) -> Result<(), LlamaError> {
    let markers = markers(layers, ctx.model().n_embd());
    set_vectors(ctx, layers, &markers)
}

fn add_logp(pairs: &mut [PairLogp], (pair, chosen): (usize, bool), logp: f64) {
    let slot = &mut pairs[pair];
    if chosen { slot.chosen += logp } else { slot.rejected += logp }
}
