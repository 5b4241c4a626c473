//! Checks of the engine on a model: logits against `llama_decode`, the gradient against central differences, and
//! both against reference values from outside.

mod batch_parity;
mod checks;
mod difference;
mod gold;
mod kinds;
mod report;
mod synthetic;

pub use batch_parity::{BATCH_COSINE, BatchCheck, BatchParity, SkipReason};
pub use checks::{Checks, DEVICE_COSINE, EngineChecks, LIMIT, Rounding, TransposedCopies, check};
pub use difference::{Differences, central_differences, gradient, random_vector};
pub use gold::{Gold, GoldError, GoldResult, Tolerances};
pub use kinds::{PartDifference, adapter_differences, kind_differences, random_parameters};
pub use report::CheckReport;
pub use synthetic::{SyntheticError, check_synthetic};

use crate::data::TokenizedPair;
use ggml_grad::files::FileError;
use ggml_grad::llama::{self, LlamaError, Model, ModelParams};
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// Pairs to check with when the user gives none: plain sentences, tokenized without a template.
const SENTENCES: [[&str; 3]; 3] = [
    ["The library opens at nine and the reading room is", " quiet until noon.", " closed for the whole week."],
    ["To boil an egg, put it in hot water and", " wait for about eight minutes.", " sing to it twice."],
    ["The river rises in the hills and flows", " south to the sea.", " up to the moon every night"],
];

/// The built-in pairs in the model's tokens.
///
/// # Errors
/// [`LlamaError::Tokenize`].
pub fn builtin_pairs(model: &Model) -> Result<Vec<TokenizedPair>, LlamaError> {
    SENTENCES
        .iter()
        .map(|[prompt, chosen, rejected]| {
            Ok(TokenizedPair {
                prompt: model.tokenize(prompt, true, false)?,
                chosen: model.tokenize(chosen, false, false)?,
                rejected: model.tokenize(rejected, false, false)?,
            })
        })
        .collect()
}

/// One pair of `n_tokens` tokens in all, half of them prompt, made of the same sentences over and over.
///
/// # Errors
/// [`LlamaError::Tokenize`].
pub fn long_pair(model: &Model, n_tokens: usize) -> Result<TokenizedPair, LlamaError> {
    let text: String = SENTENCES.iter().flatten().copied().collect::<Vec<_>>().join("");
    let mut tokens = model.tokenize(&text, true, false)?;
    let more = model.tokenize(&text, false, false)?;
    while tokens.len() < n_tokens.max(4) {
        tokens.extend_from_slice(&more);
    }
    tokens.truncate(n_tokens.max(4));
    let rejected = tokens.split_off(tokens.len() * 3 / 4);
    let chosen = tokens.split_off(tokens.len() * 2 / 3);
    Ok(TokenizedPair { prompt: tokens, chosen, rejected })
}

/// An F32 copy of a model, deleted when dropped.
#[derive(Debug)]
pub struct F32Copy {
    model: Arc<Model>,
    _folder: TempDir,
}

impl F32Copy {
    /// De-quantizes `model` into a temporary file and loads that. The file needs 4 bytes a parameter.
    ///
    /// # Errors
    /// [`LlamaError`] when the file cannot be written or loaded.
    pub fn new(model: &Model) -> Result<Self, LlamaError> {
        let folder =
            tempfile::Builder::new().prefix("bidpo-f32-").tempdir().map_err(FileError::write(&std::env::temp_dir()))?;
        let file = folder.path().join("f32.gguf");
        llama::to_f32(model.path(), &file)?;
        Ok(Self { model: Model::load(&file, &ModelParams::default())?, _folder: folder })
    }

    /// The F32 model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }
}

/// The middle layer of a model, the usual place for a steering vector.
pub fn middle_layer(model: &Model) -> usize {
    (model.n_layer() / 2).clamp(1, model.n_layer().saturating_sub(1).max(1))
}

/// Name of a file without its folders, for messages.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned())
}
