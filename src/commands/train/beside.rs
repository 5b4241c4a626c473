//! `--lora` and `--vector`: what is loaded while something else is trained.

use super::Args;
use crate::args::steering::{Steering, SteeringArgs};
use anyhow::{Context as _, ensure};
use bidpo_core::adapter::AdapterFile;
use bidpo_core::data::ChatTemplate;
use bidpo_core::engine::Background;
use bidpo_core::steer::{ControlVector, ScaledVector};
use bidpo_core::train::LoadedBeside;
use ggml_grad::files::{display_name, sha256_of_file};
use ggml_grad::llama::Model;
use std::sync::Arc;

/// Adapters and vectors of the command line.
pub(super) struct Beside {
    steering: Steering,
    /// Their files, for the card.
    pub(super) files: Vec<LoadedBeside>,
}

impl Beside {
    /// Loads them, and says on stderr what they mean for the run.
    pub(super) fn load(args: &Args, model: &Arc<Model>, template: &ChatTemplate) -> anyhow::Result<Self> {
        let given =
            SteeringArgs { vectors: args.vectors.clone(), loras: args.loras.clone(), ..SteeringArgs::default() };
        let steering = given.load(model, Some(template), args.model.threads())?;
        let mut files = Vec::new();
        for (path, dial) in steering.files.iter().zip(&steering.dials) {
            ensure!(dial.scale != 0.0, "{}: at scale 0 nothing is loaded: leave it out", path.display());
            let is_adapter = AdapterFile::is_one(path).unwrap_or(false);
            ensure!(
                !(is_adapter && args.kind.is_lora()),
                "{} is loaded, and kind {} trains an adapter: the matrices of both bear the same names in the graph. Merge the \
                 loaded one into the model first (`bidpo merge`), or leave it out",
                path.display(),
                args.kind
            );
            let sha256 = sha256_of_file(path).with_context(|| path.display().to_string())?;
            files.push(LoadedBeside { file: display_name(path), sha256, scale: dial.scale, is_adapter });
        }
        for file in &files {
            eprintln!("loaded: {}; the reference and everything called unsteered have it too", file.in_words());
        }
        Ok(Self { steering, files })
    }

    /// As the engine takes it.
    pub(super) fn background(&self, model: &Arc<Model>) -> anyhow::Result<Background> {
        Ok(Background::new(&self.steering.dials, &self.steering.files, model)?)
    }

    /// As a context takes it; `None` where nothing is loaded.
    pub(super) fn control(&self, model: &Model) -> anyhow::Result<Option<ControlVector>> {
        self.steering.control_vector(model)
    }

    /// The options of bidpo that load them, each with a space before it.
    pub(super) fn options(&self) -> String {
        self.spelled("--lora", "--vector")
    }

    /// The options of llama.cpp's programs that load them, each with a space before it.
    pub(super) fn llama_options(&self) -> String {
        self.spelled("--lora-scaled", "--control-vector-scaled")
    }

    fn spelled(&self, of_adapter: &str, of_vector: &str) -> String {
        let each = self.files.iter().zip(&self.steering.files);
        let option = |is_adapter: bool| if is_adapter { of_adapter } else { of_vector };
        each.map(|(file, path)| format!(" {} {}:{}", option(file.is_adapter), path.display(), file.scale)).collect()
    }

    /// The files as dials.
    pub(super) fn dials(&self) -> &[ScaledVector] {
        &self.steering.dials
    }
}
