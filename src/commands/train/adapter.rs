//! `--kind lora` and `lora+add`: what is asked for, and the files.

use super::Args;
use super::files::Files;
use crate::args::kinds::KindChoice;
use crate::args::names;
use anyhow::{Context as _, ensure};
use bidpo_core::adapter::{AdapterFile, AdapterKind};
use bidpo_core::check::middle_layer;
use bidpo_core::intervention::{Lora, LoraSpec};
use bidpo_core::layers::Layers;
use bidpo_core::steer::{Provenance, ScaledVector, SteeringVector};
use bidpo_core::train::{Init, LearningRate, initial_adapter};
use ggml_grad::files::{FileError, display_name, sha256_of_file};
use ggml_grad::llama::Model;
use std::path::Path;
use std::sync::Arc;

impl Args {
    /// The adapter asked for, if one is.
    ///
    /// # Errors
    /// Options that do not go together.
    pub(super) fn lora(&self, model: &Model) -> anyhow::Result<Option<LoraSpec>> {
        if !self.kind.is_lora() {
            ensure!(
                self.alpha.is_none() && self.targets.is_empty(),
                "--alpha and --targets belong to kind lora, not to kind {}",
                self.kind
            );
            return Ok(None);
        }
        ensure!(
            self.scope.is_all(),
            "scope {} with kind {}: an adapter changes the model's matrices at every position. Leave --scope out",
            self.scope,
            self.kind
        );
        let with_vectors = self.kind == KindChoice::LoraAdd;
        let refused = [
            (
                self.renorm.is_some(),
                "--renorm scales a vector by the residual stream's norm, and an adapter has no such size",
            ),
            (
                self.calibrate.is_some() && with_vectors,
                "--calibrate measures the scales of one file, and this kind gives two: `bidpo calibrate` measures each",
            ),
        ];
        for (is_given, why) in refused {
            ensure!(!is_given, "{why}: leave it out with kind {}", self.kind);
        }
        let lr = match self.lr {
            LearningRate::Absolute(lr) => Some(lr),
            LearningRate::Percent(_) if !with_vectors => anyhow::bail!(
                "--lr {}: A and B are no part of the residual stream. Give a number (default {}), or auto",
                self.lr,
                LoraSpec::RATE
            ),
            LearningRate::Percent(_) | LearningRate::Auto => None,
        };
        let named: Vec<usize> = self.targets.iter().filter_map(|t| t.block).collect();
        let every_one_named = !named.is_empty() && named.len() == self.targets.len();
        let last = model.n_layer() - 1;
        let blocks = match (self.layer, &self.layers) {
            (None, None) if every_one_named => {
                let mut blocks = named;
                blocks.sort_unstable();
                blocks.dedup();
                Layers::new(blocks)?
            }
            (None, None) => Layers::new((middle_layer(model) + 1).min(last)..=last)?,
            _ if every_one_named => {
                anyhow::bail!("every target names its block: --layer and --layers say nothing, leave them out")
            }
            (Some(layer), _) => Layers::one(layer),
            (None, Some(layers)) => layers.clone(),
        };
        let spec = LoraSpec {
            rank: self.rank.unwrap_or(8),
            alpha: self.alpha.map(|a| a as f32),
            targets: self.targets.clone(),
            blocks,
            lr,
            with_vectors,
        };
        ensure!(
            !with_vectors || spec.layer() > 0,
            "kind lora+add adds its vector below the lowest block that is adapted, and nothing can be added below block {}: begin \
             with block 2 or higher",
            spec.lowest()
        );
        Ok(Some(spec))
    }
}

/// The parameters of an adapter's file to begin with.
pub(super) fn begin_with(file: &Path, lora: &Lora, model: &Path, seed: u64) -> anyhow::Result<Init> {
    let named = || format!("--init {}", file.display());
    let file = names::vector(file, model)?;
    let adapter = AdapterFile::load(&file).with_context(named)?;
    let theta = initial_adapter(lora, seed, &adapter).with_context(named)?;
    let sha256 = sha256_of_file(&file).map_err(FileError::read(&file))?;
    Ok(Init { name: display_name(&file), sha256, theta })
}

/// Says what is trained, and what it costs.
pub(super) fn describe(spec: &LoraSpec, model: &Model) {
    eprintln!("adapter: {}", spec.described());
    if spec.layer() == 0 {
        let above_middle = model.n_layer() - middle_layer(model) - 1;
        eprintln!(
            "note: the adapter begins at block {}, so nothing of the model is computed beforehand: each step runs all {} blocks, \
             about {:.1} times the time of an adapter above the middle",
            spec.lowest(),
            model.n_layer(),
            model.n_layer() as f64 / above_middle.max(1) as f64
        );
    }
}

/// A trained adapter, with the vector beside it.
pub(super) struct AdapterResult {
    pub(super) file: AdapterFile,
    pub(super) vector: Option<SteeringVector>,
}

impl AdapterResult {
    /// Both at scale 1.
    pub(super) fn dials(&self, model: &Arc<Model>) -> anyhow::Result<Vec<ScaledVector>> {
        let adapter = SteeringVector::of_adapter(&self.file, model)?;
        Ok([&adapter].into_iter().chain(&self.vector).map(super::dial).collect())
    }

    /// Writes the files.
    pub(super) fn save(mut self, files: &Files, provenance: Provenance) -> anyhow::Result<()> {
        if let (Some(mut vector), Some(path)) = (self.vector, &files.beside) {
            vector.provenance = provenance.clone();
            vector.save(path)?;
        }
        self.file.provenance = provenance;
        self.file.save(&files.vector, AdapterKind::F32)?;
        Ok(())
    }
}
