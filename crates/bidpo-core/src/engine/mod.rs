//! Preference pairs on a model: traced once, then scored and differentiated for any parameters of an intervention.

mod adapter;
mod applied;
mod background;
mod batch_plan;
mod batches;
mod cache;
mod error;
mod joined_batch;
mod lanes;
mod layout;
mod pair_logp;
mod placement;
mod references;
mod retained;
mod running;
mod traced;
mod tracing;
mod verify;

pub use crate::intervention::{
    Add, Addition, Direction, Intervention, NamedTensor, ParameterGroup, Parameters, RowGradients, Scope, Stream,
};
pub use adapter::{AdapterRefusal, adapter_file, load_adapter};
pub use background::Background;
pub use batch_plan::{BatchPlan, PlannedBatches};
pub use batches::{BatchLoss, BatchRun, BatchScore, LossDerivative, ResponseDerivative, ResponseSlopes};
pub use cache::{Cache, CacheType, CacheUse};
pub use error::EngineError;
pub use joined_batch::{JoinedBatch, NotBatched};
pub use layout::{batch_tokens, covered_positions};
pub use pair_logp::PairLogp;
pub use retained::{DivergeRun, Divergence, RetainedText};
pub use running::Scored;
pub use traced::{TracedBatch, TracedPair};
pub use verify::{Agreement, DEVICE_LIMIT, OpCount, Survey};

use adapter::Trained;
use applied::Applied;
use ggml_grad::graph::emit::{Executor, Forward, Precision, Profile, Timings};
use ggml_grad::graph::{AttentionMemory, FastKernels};
use ggml_grad::llama::{Context, ContextParams, DType, Model, Use};
use ggml_grad::trace::LayerContext;
use joined_batch::Joiner;
use lanes::Lanes;
use layout::Prompts;
use std::sync::Arc;

/// The engine at one or more layers of one model. Vectors of several layers lie one after the other, lowest layer first:
/// `[n_layers, n_embd]`.
#[derive(Debug)]
pub struct Engine {
    model: Arc<Model>,
    context: LayerContext,
    exec: Executor,
    lanes: Lanes,
    attention: AttentionMemory,
    transposed_type: Option<DType>,
    notices: Vec<String>,
    cache: Option<Cache>,
    joiner: Joiner,
    intervention: Arc<dyn Intervention>,
    adapter: Option<Trained>,
    background: Background,
    scope: Scope,
}

impl Engine {
    /// An engine for batches of up to `max_tokens` tokens and `max_pairs` pairs, steering at `layers` (any order, each
    /// once).
    ///
    /// # Errors
    /// [`EngineError::Model`] for no layer, one out of range or named twice; [`EngineError::Trace`] for an encoder-decoder
    /// model.
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
        Self::from_layers(model, layers, max_tokens, max_pairs, n_threads)
    }

    /// As [`Engine::new`], for an adapter on blocks that may begin anywhere: layer 0 is the tokens' embeddings, below all blocks.
    /// Nothing can be added there.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn for_adapter(
        model: &Arc<Model>,
        layers: &[usize],
        max_tokens: usize,
        max_pairs: usize,
        n_threads: u32,
    ) -> Result<Self, EngineError> {
        model.supports(Use::Train)?;
        for &layer in layers.iter().filter(|&&l| l > 0) {
            check_model(model, layer)?;
        }
        Self::from_layers(model, layers, max_tokens, max_pairs, n_threads)
    }

    fn from_layers(
        model: &Arc<Model>,
        layers: &[usize],
        max_tokens: usize,
        max_pairs: usize,
        n_threads: u32,
    ) -> Result<Self, EngineError> {
        let mut layers = layers.to_vec();
        layers.sort_unstable();
        if layers.is_empty() || layers.windows(2).any(|w| w[0] == w[1]) {
            return Err(EngineError::Model(format!("layers {layers:?}: at least one, and each once")));
        }
        // Repeated prompts: at most twice the tokens for each pair alone.
        let max_tokens = if Prompts::of(model) == Prompts::Repeated { 2 * max_tokens } else { max_tokens };
        let mut ctx = Context::new(model, &ContextParams::exact(max_tokens, 2 * max_pairs, n_threads))?;
        ctx.set_kernel_override(FastKernels::if_supported());
        let exec = Executor::new(ctx.n_threads())?;
        Ok(Self {
            model: Arc::clone(model),
            context: LayerContext::new(ctx, &layers),
            exec,
            lanes: Lanes::default(),
            attention: AttentionMemory::default(),
            transposed_type: None,
            notices: Vec::new(),
            cache: None,
            joiner: Joiner::default(),
            intervention: Arc::new(Add { n_layers: layers.len(), n_embd: model.n_embd() }),
            adapter: None,
            background: Background::default(),
            scope: Scope::ALL,
        })
    }

    /// See [`Executor::set_smooth`].
    pub fn set_smooth(&mut self, smooth: bool) {
        self.exec.set_smooth(smooth);
    }

    /// Sets what may be rounded in traces from now on, and in their runs.
    pub fn set_precision(&mut self, precision: Precision) {
        self.exec.set_precision(precision);
        // Below the lowest layer they give ggml's bits in either case; but what is asked for are its own kernels.
        let fast = precision.forward == Forward::Fast;
        self.context.set_kernel_override(FastKernels::if_supported().filter(|_| fast));
    }

    /// Precision of traces and runs.
    pub fn precision(&self) -> Precision {
        self.exec.precision()
    }

    /// Sets what the backward pass of traces from now on may keep of attention scores.
    pub fn set_attention_memory(&mut self, memory: AttentionMemory) {
        self.attention = memory;
    }

    /// The steered layers, lowest first.
    pub fn layers(&self) -> &[usize] {
        self.context.layers()
    }

    /// The engine with another kind of intervention instead of [`Add`].
    pub fn with_intervention(mut self, intervention: Arc<dyn Intervention>) -> Self {
        self.intervention = intervention;
        self
    }

    /// The engine with the intervention at some positions only.
    pub fn with_scope(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
    }

    /// Positions at which the intervention acts.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The kind of change at the steered layers.
    pub fn intervention(&self) -> &Arc<dyn Intervention> {
        &self.intervention
    }

    /// Number of parameters of the intervention: `n_layers * n_embd` for [`Add`].
    pub fn n_params(&self) -> usize {
        self.intervention.n_params()
    }

    /// The intervention as runs apply it, and what computes.
    fn parts(&mut self) -> (Applied<'_>, &mut Executor, &mut Lanes) {
        let (model, layers) = (&*self.model, self.context.layers());
        let (intervention, background) = (&*self.intervention, &self.background);
        let applied = Applied { model, layers, intervention, background, scope: &self.scope };
        (applied, &mut self.exec, &mut self.lanes)
    }

    fn applied(&self) -> Applied<'_> {
        let (intervention, background) = (&*self.intervention, &self.background);
        Applied { model: &self.model, layers: self.layers(), intervention, background, scope: &self.scope }
    }

    /// Elements of one vector for each layer: `n_layers * n_embd`.
    fn n_vector(&self) -> usize {
        self.layers().len() * self.model.n_embd()
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Bytes of activations that the largest runs so far needed, of all batches that were computed at once.
    pub fn activation_bytes(&self) -> usize {
        self.lanes.activation_bytes() + self.exec.activation_bytes()
    }

    /// See [`Executor::start_profile`].
    pub fn start_profile(&mut self) {
        self.exec.start_profile();
    }

    /// See [`Executor::take_profile`].
    pub fn take_profile(&mut self) -> Profile {
        self.exec.take_profile()
    }

    /// See [`Executor::take_timings`]; of batches that are computed side by side, the time of the first.
    pub fn take_timings(&mut self) -> Timings {
        self.exec.take_timings()
    }
}

/// Refuses models and layers that cannot be trained on.
///
/// # Errors
/// [`EngineError::Trace`] naming the architecture, [`EngineError::Model`] naming the range.
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
