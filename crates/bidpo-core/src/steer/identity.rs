//! The model file that a vector belongs to.

use super::Provenance;
use ggml_grad::files::display_name;
use ggml_grad::llama::Model;

/// Name, architecture, quantization and hash of a model file: what a vector's provenance says about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelIdentity {
    /// `general.name`, else the file's name.
    pub name: String,
    /// `general.architecture`.
    pub architecture: String,
    /// llama.cpp's name of the quantization, for example `Q4_1`.
    pub quantization: String,
    /// SHA-256 of the file, lower-case hex.
    pub sha256: String,
}

impl ModelIdentity {
    /// Reads the identity of a loaded model; hashes its file (about a second for each GB).
    ///
    /// # Errors
    /// The system's, when the file cannot be read any more.
    pub fn of(model: &Model) -> std::io::Result<Self> {
        Ok(Self {
            name: name(model),
            architecture: model.architecture(),
            quantization: quantization(model),
            sha256: ggml_grad::files::sha256_of_file(model.path())?,
        })
    }

    /// Writes the `model_*` keys.
    pub fn record(&self, provenance: &mut Provenance) {
        provenance.set_str("model_name", &self.name);
        provenance.set_str("model_architecture", &self.architecture);
        provenance.set_str("model_quantization", &self.quantization);
        provenance.set_str("model_sha256", &self.sha256);
    }
}

/// `general.name`, else the file's name.
pub(super) fn name(model: &Model) -> String {
    model.meta("general.name").filter(|n| !n.trim().is_empty()).unwrap_or_else(|| display_name(model.path()))
}

/// The last part of llama.cpp's description (`llama ?B Q4_1`): "architecture size quantization".
pub(super) fn quantization(model: &Model) -> String {
    let description = model.description();
    description.splitn(3, ' ').nth(2).unwrap_or(&description).to_owned()
}
