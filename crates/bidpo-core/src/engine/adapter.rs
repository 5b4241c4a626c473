//! Adapters on the traced graph: llama.cpp itself puts their products into it, and a run brings their matrices.
//!
//! An adapter to be trained is loaded through llama.cpp's own reader, with numbers under which every matrix does something. So the
//! captured graph holds exactly the products that llama.cpp will compute with the finished file. The numbers serve to compare the
//! lifted graph with `llama_decode`; traces, references and steps bring their own. The part below the lowest layer has no adapter,
//! and references have zeros in the place of all matrices.

use super::layout::{Layout, Prompts};
use super::traced::Steered;
use super::verify::{Spread, distance};
use super::{Agreement, Engine, EngineError, Intervention, Parameters, TracedBatch};
use crate::adapter::{AdapterError, AdapterFile, AdapterKind, LowRank, Target};
use crate::data::TokenizedPair;
use crate::intervention::Lora;
use ggml_grad::files::FileError;
use ggml_grad::llama::{Adapter, Model};
use ggml_grad::trace::GradientsOf;
use std::collections::BTreeSet;
use std::sync::Arc;

/// An adapter that cannot be trained on a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdapterRefusal {
    /// llama.cpp builds these matrices' products without looking for an adapter.
    #[error(
        "llama.cpp ignores an adapter on {} in this architecture ({architecture}): the file would load and do nothing there. Leave \
         {} out of --targets",
        tensors.join(", "),
        if tensors.len() == 1 { "it" } else { "them" }
    )]
    Ignored {
        /// The tensors' names.
        tensors: Vec<String>,
        /// The architecture.
        architecture: String,
    },
    /// Matrices below the lowest layer of the trace.
    #[error("an adapter at block {block} cannot be trained from layer {layer} on: the graph begins with block {}", layer + 1)]
    Below {
        /// The block.
        block: usize,
        /// The lowest layer.
        layer: usize,
    },
    /// Weights on devices.
    #[error(
        "{model} lies on devices, where no run has an adapter or a vector beside what it trains yet: keep all layers on the CPU \
         (--gpu-layers 0), and leave --rpc out"
    )]
    OnDevices {
        /// The model's file.
        model: String,
    },
    /// Several pairs in one graph.
    #[error("{pairs} pairs share a graph, where each one's gradient of an adapter is not known: trace them one by one")]
    Shared {
        /// The pairs.
        pairs: usize,
    },
    /// Adapters of both sorts.
    #[error(
        "an adapter is trained, and another one is loaded: their matrices bear the same names in the graph. Merge the loaded one \
         into the model first (`bidpo merge`), or leave it out"
    )]
    Beside,
    /// A vector that is not the same everywhere.
    #[error(
        "vector {name} differs from token to token (its kind or its scope): beside what is trained only constant vectors at every \
         position can be loaded. `bidpo vector export --constant` makes one of it"
    )]
    NotConstant {
        /// The vector.
        name: String,
    },
    /// Graphs that hold different matrices.
    #[error("llama.cpp put other adapters into the graph of this pair than into the one before")]
    Changed,
    /// Matrices of no effect.
    #[error("an adapter on these matrices does not move the logits of this architecture ({architecture})")]
    NoEffect {
        /// The architecture.
        architecture: String,
    },
}

/// The adapter that is trained.
#[derive(Debug)]
pub(super) struct Trained {
    lora: Arc<Lora>,
    adapter: Arc<Adapter>,
    /// The parameters that it was loaded with.
    probe: Vec<f32>,
}

/// What an intervention needs the gradients of.
pub(super) fn gradients_of(intervention: &dyn Intervention) -> GradientsOf {
    match (intervention.changes_rows(), intervention.lora().is_some()) {
        (true, true) => GradientsOf::Both,
        (false, true) => GradientsOf::Adapters,
        _ => GradientsOf::HookPoints,
    }
}

impl Engine {
    /// The engine with low-rank pairs to train, on matrices of blocks above the lowest layer.
    ///
    /// # Errors
    /// [`AdapterRefusal`] for matrices where llama.cpp ignores an adapter; [`EngineError::Trace`] where it refuses one.
    pub fn with_lora(mut self, lora: Lora) -> Result<Self, EngineError> {
        if self.background.has_adapters() {
            return Err(AdapterRefusal::Beside.into());
        }
        let layer = self.layers()[0];
        let block = |tensor: &str| tensor.strip_prefix("blk.")?.split_once('.')?.0.parse::<usize>().ok();
        let lowest = lora.pairs.iter().filter_map(|p| block(&p.tensor)).min();
        if let Some(block) = lowest.filter(|&block| layer > 0 && block <= layer) {
            return Err(AdapterRefusal::Below { block, layer }.into());
        }
        let lora = Arc::new(lora);
        let probe = lora.probe();
        let adapter = load_adapter(&self.model, &adapter_file(&lora, &probe, &self.model.architecture())?)?;
        self.context.set_adapters(vec![(Arc::clone(&adapter), 1.0)]);
        self.intervention = Arc::clone(&lora) as Arc<dyn Intervention>;
        self.joiner = super::joined_batch::Joiner::default();
        self.check_targets(&lora)?;
        self.adapter = Some(Trained { lora, adapter, probe });
        Ok(self)
    }

    /// Captures a small batch and looks for the matrices in its graph.
    fn check_targets(&mut self, lora: &Lora) -> Result<(), EngineError> {
        let pair = TokenizedPair { prompt: vec![0; 3], chosen: vec![0; 2], rejected: vec![0; 2] };
        let captured = self.context.capture(&Layout::new(&[&pair], Prompts::of(&self.model))?.batch)?;
        let found: BTreeSet<&str> = captured.lifted.adapters.iter().map(|a| a.name.as_str()).collect();
        let missing = |tensor: &&String| ["a", "b"].iter().any(|m| !found.contains(&*format!("{tensor}.lora_{m}")));
        let tensors: Vec<String> = lora.pairs.iter().map(|p| &p.tensor).filter(missing).cloned().collect();
        match tensors.is_empty() {
            true => Ok(()),
            false => Err(AdapterRefusal::Ignored { tensors, architecture: self.model.architecture() }.into()),
        }
    }

    /// True where an adapter is trained, alone or with a vector.
    pub fn has_adapter(&self) -> bool {
        self.adapter.is_some()
    }

    /// The adapter's part in the name of a cached trace.
    pub(super) fn adapter_trait(&self) -> String {
        let Some(of) = &self.adapter else { return String::new() };
        let tensors: Vec<&str> = of.lora.pairs.iter().map(|p| p.tensor.as_str()).collect();
        format!(", adapter of rank {} on {}", of.lora.rank, tensors.join(" "))
    }

    /// As [`Engine::compare`], with the adapter that is trained: without it, and with the numbers that llama.cpp loaded (and a
    /// pseudo-random vector, where vectors are trained too).
    pub(super) fn compare_adapter(&mut self, traced: &TracedBatch) -> Result<Option<Agreement>, EngineError> {
        let Some((adapter, mut theta)) = self.adapter.as_ref().map(|t| (Arc::clone(&t.adapter), t.probe.clone()))
        else {
            return Ok(None);
        };
        let layout = Layout::new(&traced.pairs.iter().collect::<Vec<_>>(), Prompts::of(&self.model))?;
        let vector = self.random_vectors(traced);
        let added = self.intervention.changes_rows();
        if added {
            theta[..vector.len()].copy_from_slice(&vector);
        }
        let mut agreement = Agreement { on_devices: self.is_on_devices(), ..Agreement::default() };
        let without = self.applied().unsteered(&traced.graph);
        let with = self.applied().steer(&traced.graph, Parameters::from(&theta))?;
        self.context.decode_with(&layout.batch, None, &[])?;
        let bare = self.all_logits(&layout)?;
        agreement.n_logits = bare.len();
        (agreement.unsteered, agreement.relative) = self.apart(traced, &without, &bare)?;
        self.context.decode_with(&layout.batch, added.then_some(&vector[..]), &[(adapter, 1.0)])?;
        let changed = self.all_logits(&layout)?;
        let (steered, relative) = self.apart(traced, &with, &changed)?;
        (agreement.steered, agreement.relative) = (steered, agreement.relative.max(relative));
        agreement.effect = distance(&changed, &bare);
        self.context.clear_kv();
        Ok(Some(agreement))
    }

    /// Largest difference of a logit of the lifted graph, and the root mean square of the differences over the spread.
    fn apart(&mut self, traced: &TracedBatch, at: &Steered, theirs: &[f32]) -> Result<(f32, f64), EngineError> {
        let ours = self.logits_of(&traced.graph, at)?;
        let mut spread = Spread::default();
        spread.add(theirs, &ours);
        Ok((distance(theirs, &ours), spread.relative()))
    }
}

/// Low-rank pairs as a file holds them, for models of an architecture.
///
/// # Errors
/// [`AdapterError::Invalid`] for numbers that are not finite.
pub fn adapter_file(lora: &Lora, theta: &[f32], architecture: &str) -> Result<AdapterFile, AdapterError> {
    let mut file = AdapterFile::new(architecture, Some(lora.alpha));
    for (pair, [a, b]) in lora.places() {
        let low_rank = LowRank::of_experts(pair.n_experts, lora.rank, theta[a].to_vec(), theta[b].to_vec())?;
        file.pairs.insert(Target::of(&pair.tensor), low_rank);
    }
    file.check()?;
    Ok(file)
}

/// The adapter as llama.cpp's own reader loads it: through a file that is removed again.
///
/// # Errors
/// [`AdapterError`].
pub fn load_adapter(model: &Arc<Model>, file: &AdapterFile) -> Result<Arc<Adapter>, AdapterError> {
    let temporary = std::env::temp_dir();
    let folder = tempfile::tempdir().map_err(FileError::write(&temporary))?;
    let path = folder.path().join("adapter.gguf");
    file.save(&path, AdapterKind::F32)?;
    Ok(Arc::new(Adapter::load(model, &path)?))
}
