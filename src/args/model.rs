//! Options of every command that loads a model.

use super::names;
use crate::args::devices::DeviceArgs;
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser as _};
use ggml_grad::llama::{GgufFile, Model, ModelParams};
use ggml_grad::memory;
use std::path::PathBuf;
use std::sync::Arc;

/// The model file, for commands that read its vocabulary and template only.
#[derive(Debug, Clone, Args)]
pub struct ModelFile {
    /// Model file (GGUF), or a part of the name of one in $BIDPO_MODELS or ~/.cache/bidpo/models.
    #[arg(long, short = 'm', value_name = "FILE.gguf", value_parser = OsStringValueParser::new().try_map(names::model))]
    pub model: PathBuf,
}

impl ModelFile {
    /// Loads vocabulary and metadata, without weights.
    pub fn vocabulary(&self) -> anyhow::Result<Arc<Model>> {
        Ok(Model::load(&self.model, &ModelParams { vocab_only: true, ..ModelParams::default() })?)
    }
}

/// Options of every command that loads a model.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// Model file (GGUF), or a part of the name of one in $BIDPO_MODELS or ~/.cache/bidpo/models.
    #[arg(long, short = 'm', value_name = "FILE.gguf", value_parser = OsStringValueParser::new().try_map(names::model))]
    pub model: PathBuf,
    /// Number of threads [default: the physical cores that it may use].
    #[arg(long, short = 't', value_name = "N", env = "BIDPO_THREADS", value_parser = clap::value_parser!(u32).range(1..=512))]
    pub threads: Option<u32>,
    /// Let llama.cpp repack the weights for this CPU, as its own programs do. Training needs the file layout and then keeps
    /// a second copy.
    #[arg(long)]
    pub repack: bool,
    #[command(flatten)]
    pub devices: DeviceArgs,
}

impl ModelArgs {
    /// Loads the model with its weights in file layout, unless `--repack` is given.
    pub fn load(&self) -> anyhow::Result<Arc<Model>> {
        super::probe::probe(&self.model)?;
        let params =
            ModelParams { plain_weights: !self.repack, offload: self.devices.offload(), ..ModelParams::default() };
        let model = Model::load(&self.model, &params)?;
        if model.placement().is_offloaded() {
            eprintln!("{}", model.placement());
        }
        Ok(model)
    }

    /// Loads the model to train on it, unless its weights are larger than the memory there is.
    pub fn load_within_memory(&self, allow_swap: bool) -> anyhow::Result<Arc<Model>> {
        // `load` has the better message for a file that is not GGUF.
        // Of a model that goes to devices nobody knows yet how much stays here; the devices say themselves what they lack.
        let here = !allow_swap && !self.devices.offload().offloads()?;
        if let Some(bytes) = GgufFile::weight_bytes(&self.model).ok().filter(|_| here) {
            memory::fits(&self.model, bytes, memory::available())?;
        }
        self.load()
    }

    /// The number of threads to use.
    pub fn threads(&self) -> u32 {
        let cores = std::thread::available_parallelism().map_or(u32::MAX, |n| n.get() as u32);
        let wanted = self.threads.unwrap_or_else(ggml_grad::llama::default_threads);
        if wanted > cores {
            static ONCE: std::sync::Once = std::sync::Once::new();
            ONCE.call_once(|| {
                eprintln!(
                    "note: {wanted} threads on {cores} allowed cores would wait for each other: {cores} are used"
                );
            });
        }
        wanted.min(cores)
    }
}
