//! The checks on random models: every architecture, every type of weight.

use super::{Checks, F32Copy, builtin_pairs, check};
use crate::engine::EngineError;
use ggml_grad::files::FileError;
use ggml_grad::llama::{DType, LlamaError, Model, ModelParams};
use ggml_grad::synth::{self, Family, SynthError};

/// A random model that could not be made or checked.
#[derive(Debug, thiserror::Error)]
pub enum SyntheticError {
    /// Making it.
    #[error(transparent)]
    Synth(#[from] SynthError),
    /// Loading it.
    #[error(transparent)]
    Llama(#[from] LlamaError),
    /// Checking it.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Makes a random model of a family with weights of one type in the temporary folder and runs [`check`] on it, gradient
/// included. `repack`: with weights that llama.cpp repacks for this CPU.
///
/// # Errors
/// [`SyntheticError`]; a check that fails is no error.
pub fn check_synthetic(
    family: &Family,
    dtype: DType,
    layers: &[usize],
    repack: bool,
    n_threads: u32,
) -> Result<Checks, SyntheticError> {
    let folder = tempfile::Builder::new()
        .prefix("bidpo-synth-")
        .tempdir()
        .map_err(FileError::write(&std::env::temp_dir()))
        .map_err(LlamaError::from)?;
    let path = folder.path().join(format!("{}.gguf", family.name()));
    synth::write(&path, family, &family.shape(), dtype, 1)?;
    let model = Model::load(&path, &ModelParams { plain_weights: !repack, ..ModelParams::default() })?;
    crate::engine::check_model(&model, layers.first().copied().unwrap_or(1))?;
    let copy = F32Copy::new(&model)?;
    // Random models have small vocabularies, so texts are long in tokens. Short pairs do: longer than the sliding windows.
    let mut pairs = builtin_pairs(&model)?;
    pairs.truncate(2);
    for pair in &mut pairs {
        pair.prompt.truncate(20);
        pair.chosen.truncate(8);
        pair.rejected.truncate(9);
    }
    Ok(check(&model, Some(copy.model()), layers, &pairs, n_threads)?)
}
