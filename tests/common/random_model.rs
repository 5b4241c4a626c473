//! Random models of a family, in a folder that lives as long as its handle.

use ggml_grad::llama::{DType, Model, ModelParams};
use ggml_grad::synth;
use std::path::Path;
use std::sync::Arc;

/// A model of the family's usual shape with weights of a type, in a folder of its own.
pub fn model(family: &str, dtype: DType) -> (tempfile::TempDir, Arc<Model>) {
    let directory = tempfile::tempdir().unwrap();
    let model = model_at(&directory.path().join("model.gguf"), family, dtype);
    (directory, model)
}

/// The same, written to a path.
pub fn model_at(path: &Path, family: &str, dtype: DType) -> Arc<Model> {
    let family = synth::family(family).unwrap();
    synth::write(path, family, &family.shape(), dtype, 1).unwrap();
    Model::load(path, &ModelParams::default()).unwrap()
}
