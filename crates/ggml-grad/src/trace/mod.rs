//! Gradients of log-probabilities with respect to the residual stream, in four steps: a [`Tracer`] over a model, a
//! [`Trace`] of some tokens, [`Trace::forward`], [`Trace::backward`].
//!
//! ```no_run
//! use ggml_grad::llama::{Model, ModelParams};
//! use ggml_grad::trace::{Target, TraceOptions, Tracer};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Model::load("model.gguf".as_ref(), &ModelParams::default())?;
//! let tokens = model.tokenize("The capital of France is", true, true)?;
//! let mut tracer = Tracer::new(&model, &TraceOptions::default())?;
//! let trace = tracer.trace(&tokens, &[10, 20])?; // the downstream graph of layer 10, with a hook point at layer 20
//! let paris = model.tokenize(" Paris", false, false)?[0];
//! let target = Target { position: tokens.len() - 1, token: paris };
//! println!("log p = {}", trace.forward(&[target])?[0]);
//! let gradient = trace.backward(&[(target, 1.0)])?;
//! for layer in &gradient.layers {
//!     println!("layer {}: {} rows of {}", layer.layer, layer.positions.len(), model.n_embd());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! llama.cpp computes the model up to the lowest traced layer, once. The graph above that layer is lifted from llama.cpp's
//! own ([`crate::graph`]), so with [`Precision::EXACT`] its logits equal those of `llama_decode` bit for bit
//! ([`Trace::verify`] checks that), and a forward or backward pass costs the layers above only.

mod downstream;
mod error;
mod layer_context;

pub use downstream::{DownstreamGraph, GradientsOf};
pub use error::TraceError;
pub use layer_context::LayerContext;

use crate::graph::emit::{Bindings, Data, Executor, Forward, Label, Precision};
use crate::graph::ir::Graph;
use crate::graph::lift::HookPoint;
use crate::graph::{AttentionMemory, FastKernels};
use crate::llama::{Batch, Context, ContextParams, Model, Token, Use};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Options of a tracer.
#[derive(Debug, Clone)]
pub struct TraceOptions {
    /// Tokens of a batch, at most.
    pub max_tokens: usize,
    /// Sequences of a batch, at most.
    pub max_sequences: usize,
    /// Threads; 0: the machine's default.
    pub n_threads: u32,
    /// [`Precision::EXACT`] (the default): ggml's own kernels forward, F32 backward. [`Precision::default`]: kernels that
    /// are several times faster, sum in another order and round the backward pass to BF16.
    pub precision: Precision,
}

impl Default for TraceOptions {
    fn default() -> Self {
        Self { max_tokens: 512, max_sequences: 1, n_threads: 0, precision: Precision::EXACT }
    }
}

/// A token whose log-probability is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Row of the batch whose logits predict it: for a single sequence, the position before the token's own.
    pub position: usize,
    /// The predicted token.
    pub token: Token,
}

/// Rows of the residual stream at one layer, or of a gradient with respect to it.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerRows {
    /// The layer: the stream after this block, counted from 0.
    pub layer: usize,
    /// For each row, its row in the batch. All of the batch in order; at the last layer only those whose logits the batch
    /// asks for (llama.cpp drops the others); where a model carries several streams (gemma 3n), one after the other.
    pub positions: Vec<usize>,
    /// `[n_rows, n_embd]`.
    pub data: Vec<f32>,
}

impl LayerRows {
    /// The row of a position, `[n_embd]` (of the first stream where there are several); None where it was dropped.
    pub fn row(&self, position: usize) -> Option<&[f32]> {
        let n_embd = self.data.len().checked_div(self.positions.len())?;
        let at = self.positions.iter().position(|&p| p == position)?;
        self.data.get(at * n_embd..(at + 1) * n_embd)
    }
}

/// The result of a backward pass.
#[derive(Debug, Clone)]
pub struct Gradient {
    /// log p of each target, in nats, in the order given.
    pub log_probs: Vec<f64>,
    /// For each traced layer, lowest first: the total derivative of `sum_i weight_i log p_i` with respect to the residual
    /// stream there.
    pub layers: Vec<LayerRows>,
}

/// The lifted logits compared with those of `llama_decode`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parity {
    /// Largest absolute difference of a logit; 0 where all bits are equal, infinite where one is not a number.
    pub max_difference: f32,
    /// Logits compared.
    pub n_logits: usize,
}

#[derive(Debug)]
struct Machine {
    context: LayerContext,
    exec: Executor,
}

fn lock(machine: &Mutex<Machine>) -> MutexGuard<'_, Machine> {
    machine.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Traces batches of tokens through one model.
#[derive(Debug)]
pub struct Tracer {
    model: Arc<Model>,
    machine: Arc<Mutex<Machine>>,
}

impl Tracer {
    /// A tracer over a model whose weights are in the CPU's memory.
    ///
    /// # Errors
    /// [`TraceError::Unsupported`] for an encoder or encoder-decoder model, [`TraceError::Offloaded`] for a model
    /// on a device, [`TraceError::Llama`] when there is no memory for a context.
    pub fn new(model: &Arc<Model>, options: &TraceOptions) -> Result<Self, TraceError> {
        model.supports(Use::Trace)?;
        if model.placement().is_offloaded() {
            return Err(TraceError::Offloaded { placement: model.placement().to_string() });
        }
        let params = ContextParams::exact(options.max_tokens, options.max_sequences, options.n_threads);
        let mut ctx = Context::new(model, &params)?;
        let fast = options.precision.forward == Forward::Fast;
        ctx.set_kernel_override(FastKernels::if_supported().filter(|_| fast));
        let mut exec = Executor::new(ctx.n_threads())?;
        exec.set_precision(options.precision);
        let machine = Machine { context: LayerContext::new(ctx, &[]), exec };
        Ok(Self { model: Arc::clone(model), machine: Arc::new(Mutex::new(machine)) })
    }

    /// Layers that have a hook point, `1..n_layer`: llama.cpp applies control vectors there.
    pub fn hook_points(&self) -> std::ops::Range<usize> {
        1..self.model.n_layer()
    }

    /// Traces the tokens of one sequence, with logits at every position and hook points at `layers` (any order).
    ///
    /// # Errors
    /// As [`Tracer::trace_batch`].
    pub fn trace(&mut self, tokens: &[Token], layers: &[usize]) -> Result<Trace, TraceError> {
        let mut batch = Batch::new();
        for (position, &token) in tokens.iter().enumerate() {
            batch.add(token, position, &[0], true);
        }
        self.trace_batch(&batch, layers)
    }

    /// Traces a batch, with hook points at `layers` (any order). Memory and time of the LM head grow with the number of
    /// tokens whose logits the batch asks for.
    ///
    /// # Errors
    /// [`TraceError::Layers`]; [`TraceError::Llama`] for a batch that does not fit the options; [`TraceError::Capture`] or
    /// [`TraceError::Grad`] for an op without a rule.
    pub fn trace_batch(&mut self, batch: &Batch, layers: &[usize]) -> Result<Trace, TraceError> {
        let mut layers = layers.to_vec();
        layers.sort_unstable();
        let in_range = layers.iter().all(|l| self.hook_points().contains(l));
        if layers.is_empty() || !in_range || layers.windows(2).any(|w| w[0] == w[1]) {
            return Err(TraceError::Layers { layers, last: self.model.n_layer() - 1 });
        }
        let mut guard = lock(&self.machine);
        let machine = &mut *guard;
        machine.context.set_layers(&layers);
        let captured = machine.context.capture(batch)?;
        let mut downstream =
            DownstreamGraph::new(captured.lifted, captured.residual, &machine.exec, AttentionMemory::default())?;
        downstream.finish()?;
        drop(guard);
        let outputs: Vec<usize> = (0..batch.len()).filter(|&row| batch.wants_logits(row)).collect();
        let hooks = downstream.hook_points.iter();
        let positions =
            hooks.map(|hook| positions(&downstream.graph, hook, batch, &outputs)).collect::<Result<_, _>>()?;
        let vectors = vec![Data::F32(vec![0.0; self.model.n_embd()]); layers.len()];
        Ok(Trace {
            model: Arc::clone(&self.model),
            machine: Arc::clone(&self.machine),
            batch: batch.clone(),
            downstream,
            vectors,
            outputs,
            positions,
        })
    }
}

/// The row of the batch of each row of the residual stream at a hook point.
fn positions(graph: &Graph, hook: &HookPoint, batch: &Batch, outputs: &[usize]) -> Result<Vec<usize>, TraceError> {
    let n_rows: usize = graph.ne(hook.at)[1..].iter().product();
    let n_tokens = batch.len();
    if n_rows > 0 && n_rows.is_multiple_of(n_tokens) {
        Ok((0..n_tokens).cycle().take(n_rows).collect())
    } else if n_rows == outputs.len() {
        Ok(outputs.to_vec())
    } else {
        Err(TraceError::Rows { layer: hook.layer, n_rows, n_tokens })
    }
}

/// A batch of tokens, traced: the graph above the lowest layer with its gradient, and the activations that enter it.
///
/// Traces of one [`Tracer`] share its threads and buffers: passes of several traces run one after the other.
pub struct Trace {
    model: Arc<Model>,
    machine: Arc<Mutex<Machine>>,
    batch: Batch,
    downstream: DownstreamGraph,
    /// The vector added at each layer, lowest first, `[n_embd]`.
    vectors: Vec<Data>,
    /// Rows of the batch that have logits.
    outputs: Vec<usize>,
    /// For each hook point: the row of the batch of each row there.
    positions: Vec<Vec<usize>>,
}

impl std::fmt::Debug for Trace {
    /// Sizes only.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trace")
            .field("layers", &self.layers())
            .field("n_tokens", &self.batch.len())
            .field("n_nodes", &self.downstream.graph.nodes().len())
            .finish_non_exhaustive()
    }
}

impl Trace {
    /// The traced layers, lowest first.
    pub fn layers(&self) -> Vec<usize> {
        self.downstream.hook_points.iter().map(|h| h.layer).collect()
    }

    fn slot(&self, layer: usize) -> Result<usize, TraceError> {
        let slot = self.downstream.hook_points.iter().position(|h| h.layer == layer);
        slot.ok_or_else(|| TraceError::NotTraced { layer, traced: self.layers() })
    }

    /// Adds a vector, `[n_embd]`, to the residual stream at every row of a traced layer in the passes from now on, in place
    /// of the one before. Zeros: none.
    ///
    /// # Errors
    /// [`TraceError::NotTraced`], [`TraceError::Width`].
    pub fn set_vector(&mut self, layer: usize, vector: &[f32]) -> Result<(), TraceError> {
        let slot = self.slot(layer)?;
        let n_embd = self.model.n_embd();
        if vector.len() != n_embd {
            return Err(TraceError::Width { found: vector.len(), n_embd });
        }
        self.vectors[slot] = Data::F32(vector.to_vec());
        Ok(())
    }

    /// The targets as labels sorted by row, and for each label the number of its target.
    fn labels(&self, targets: &[(Target, f32)]) -> Result<(Vec<Label>, Vec<usize>), TraceError> {
        if targets.is_empty() {
            return Err(TraceError::NoTarget);
        }
        let n_vocab = self.model.n_vocab();
        let mut labels = Vec::with_capacity(targets.len());
        for (i, (target, weight)) in targets.iter().enumerate() {
            let row = self.outputs.binary_search(&target.position).map_err(|_| TraceError::Position {
                position: target.position,
                n_outputs: self.outputs.len(),
                n_tokens: self.batch.len(),
            })?;
            let token = u32::try_from(target.token).ok().filter(|&t| (t as usize) < n_vocab);
            let token = token.ok_or(TraceError::Token { token: target.token, n_vocab })?;
            labels.push((Label { row: row as u32, token, coef: *weight }, i));
        }
        labels.sort_by_key(|(label, _)| label.row); // stable
        Ok(labels.into_iter().unzip())
    }

    fn bindings<'a>(&'a self, labels: &'a [Label]) -> Bindings<'a> {
        self.downstream.bindings(&self.vectors, &[], labels)
    }

    /// Log-probabilities of the targets, in nats, in the order given.
    ///
    /// # Errors
    /// [`TraceError::NoTarget`], [`TraceError::Position`], [`TraceError::Token`], [`TraceError::Run`].
    pub fn forward(&self, targets: &[Target]) -> Result<Vec<f64>, TraceError> {
        let weighted: Vec<(Target, f32)> = targets.iter().map(|&t| (t, 1.0)).collect();
        let (labels, order) = self.labels(&weighted)?;
        let (d, bind) = (&self.downstream, self.bindings(&labels));
        let outcome = lock(&self.machine).exec.run(&d.graph, &bind, &[d.head], &[])?;
        Ok(in_order(&outcome.log_probs, &order))
    }

    /// The gradient of `sum_i weight_i log p(target_i)` with respect to the residual stream at every traced layer. The
    /// difference of two tokens' logits is that of their log-probabilities: weights 1 and -1 at one position.
    ///
    /// # Errors
    /// As [`Trace::forward`].
    pub fn backward(&self, targets: &[(Target, f32)]) -> Result<Gradient, TraceError> {
        let (labels, order) = self.labels(targets)?;
        let (d, bind) = (&self.downstream, self.bindings(&labels));
        let outcome = lock(&self.machine).exec.run(&d.graph, &bind, &[d.head], &d.grads)?;
        let layers = d.hook_points.iter().zip(&self.positions).zip(outcome.values);
        Ok(Gradient {
            log_probs: in_order(&outcome.log_probs, &order),
            layers: layers
                .map(|((hook, positions), data)| LayerRows { layer: hook.layer, positions: positions.clone(), data })
                .collect(),
        })
    }

    /// The residual stream at a traced layer, a vector that was set there included.
    ///
    /// # Errors
    /// [`TraceError::NotTraced`], [`TraceError::Run`].
    pub fn residual(&self, layer: usize) -> Result<LayerRows, TraceError> {
        let slot = self.slot(layer)?;
        let bind = self.bindings(&[]);
        let d = &self.downstream;
        let outcome = lock(&self.machine).exec.run(&d.graph, &bind, &[], &[d.hook_points[slot].at])?;
        let data = outcome.values.into_iter().next().unwrap_or_default();
        Ok(LayerRows { layer, positions: self.positions[slot].clone(), data })
    }

    /// The logits, `[n_outputs, n_vocab]`, by ggml's own kernels whatever the precision.
    ///
    /// # Errors
    /// [`TraceError::Run`].
    pub fn logits(&self) -> Result<Vec<f32>, TraceError> {
        self.exact_logits(&mut lock(&self.machine), &self.vectors)
    }

    fn exact_logits(&self, machine: &mut Machine, vectors: &[Data]) -> Result<Vec<f32>, TraceError> {
        let (d, precision) = (&self.downstream, machine.exec.precision());
        machine.exec.set_precision(Precision { forward: Forward::Exact, ..precision });
        let outcome = machine.exec.run(&d.graph, &d.bindings(vectors, &[], &[]), &[], &[d.logits]);
        machine.exec.set_precision(precision);
        Ok(outcome?.values.into_iter().next().unwrap_or_default())
    }

    /// Decodes the batch with `llama_decode` and compares its logits with those of the lifted graph, both without the
    /// vectors of [`Trace::set_vector`]. On the CPU every bit is equal.
    ///
    /// # Errors
    /// [`TraceError::Llama`], [`TraceError::Run`]; a difference is reported, not raised.
    pub fn verify(&self) -> Result<Parity, TraceError> {
        let (n_embd, n_vocab) = (self.model.n_embd(), self.model.n_vocab());
        let mut machine = lock(&self.machine);
        let zeros = vec![Data::F32(vec![0.0; n_embd]); self.vectors.len()];
        let lifted = self.exact_logits(&mut machine, &zeros)?;
        // llama_decode as it is, without kernels of this crate.
        machine.context.decode(&self.batch, Some(&vec![0.0; self.vectors.len() * n_embd]))?;
        let mut parity = Parity { max_difference: 0.0, n_logits: 0 };
        for (&row, ours) in self.outputs.iter().zip(lifted.chunks_exact(n_vocab)) {
            for (a, b) in machine.context.logits(row)?.iter().zip(ours).filter(|(a, b)| a.to_bits() != b.to_bits()) {
                let difference = (a - b).abs();
                let difference = if difference.is_nan() { f32::INFINITY } else { difference };
                parity.max_difference = parity.max_difference.max(difference);
            }
            parity.n_logits += n_vocab;
        }
        machine.context.clear_kv();
        Ok(parity)
    }
}

/// Values of labels, back in the order of the targets.
fn in_order(values: &[f64], order: &[usize]) -> Vec<f64> {
    let mut sorted = vec![f64::NAN; values.len()];
    for (&value, &target) in values.iter().zip(order) {
        sorted[target] = value;
    }
    sorted
}
