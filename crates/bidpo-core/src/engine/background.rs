//! What is loaded with the model and stays as it is while something else is trained: adapters and constant vectors. They belong to
//! the policy and to the reference alike.
//!
//! A captured graph holds the adapters' products and the vectors' additions as llama.cpp computes them. The matrices are the same
//! for every pair, so one copy of them is kept, and each run brings it.

use super::{AdapterRefusal, Engine, EngineError, load_adapter};
use crate::adapter::AdapterFile;
use crate::steer::{ControlVector, ScaledVector, combine};
use ggml_grad::graph::emit::Data;
use ggml_grad::graph::lift::Lifted;
use ggml_grad::llama::{Adapter, Model};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Adapters and constant vectors that a run trains with.
#[derive(Debug, Clone, Default)]
pub struct Background {
    /// With their scales.
    adapters: Vec<(Arc<Adapter>, f32)>,
    /// `[n_embd]` at each layer that has one.
    vectors: BTreeMap<usize, Vec<f32>>,
    /// Hash of all of it; empty where there is nothing.
    sha256: String,
    /// The adapters' matrices in the order of the graph, once a graph was captured.
    matrices: Option<Arc<Vec<Data>>>,
    /// Their names.
    names: Vec<String>,
}

impl Background {
    /// Of scaled adapters and vectors, and the file of each. Adapters of 16-bit numbers are loaded as 32-bit ones of the same values.
    ///
    /// # Errors
    /// [`AdapterRefusal::NotConstant`] for a vector that differs from token to token, [`EngineError::Steering`] for one that does
    /// not fit the model, [`EngineError::AdapterFile`] for an adapter that cannot be read.
    pub fn new(dials: &[ScaledVector], files: &[PathBuf], model: &Arc<Model>) -> Result<Self, EngineError> {
        let Some(control) = combine(dials, None, model)? else { return Ok(Self::default()) };
        if let Some(dial) = dials.iter().find(|d| d.vector.adapter.is_none() && !d.vector.is_control_vector()) {
            return Err(AdapterRefusal::NotConstant { name: dial.name.clone() }.into());
        }
        let mut adapters = Vec::new();
        for (dial, file) in dials.iter().zip(files).filter(|(d, _)| d.vector.adapter.is_some() && d.scale != 0.0) {
            adapters.push((load_adapter(model, &AdapterFile::load(file)?)?, dial.scale));
        }
        Ok(Self {
            adapters,
            vectors: vectors_of(&control, model.n_embd()),
            sha256: control.sha256(),
            ..Self::default()
        })
    }

    /// True where nothing is loaded.
    pub fn is_empty(&self) -> bool {
        self.adapters.is_empty() && self.vectors.is_empty()
    }

    /// True where adapters are loaded.
    pub fn has_adapters(&self) -> bool {
        !self.adapters.is_empty()
    }

    /// SHA-256 of all vectors, adapters and scales, lower-case hex; `None` where nothing is loaded.
    pub fn sha256(&self) -> Option<&str> {
        (!self.is_empty()).then_some(&*self.sha256)
    }

    /// The matrices for a run; `None` where there are none.
    pub(super) fn matrices(&self) -> Option<Arc<Vec<Data>>> {
        self.matrices.clone()
    }

    /// What is added at a layer, `[n_embd]`.
    pub(super) fn at(&self, layer: usize) -> Option<&[f32]> {
        self.vectors.get(&layer).map(Vec::as_slice)
    }

    /// Keeps the matrices of the first graph; of later ones they are the same.
    pub(super) fn keep(&mut self, lifted: &Lifted) -> Result<(), EngineError> {
        if self.adapters.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = lifted.adapters.iter().map(|a| a.name.clone()).collect();
        let data = |kept: &Data, i: usize| *kept == lifted.inputs[lifted.adapters[i].input.0 as usize];
        match &self.matrices {
            None => {
                let data = lifted.adapters.iter().map(|a| lifted.inputs[a.input.0 as usize].clone());
                (self.matrices, self.names) = (Some(Arc::new(data.collect())), names);
                Ok(())
            }
            Some(kept) if self.names == names && kept.iter().enumerate().all(|(i, kept)| data(kept, i)) => Ok(()),
            Some(_) => Err(AdapterRefusal::Changed.into()),
        }
    }
}

/// The rows of a control vector that add something.
fn vectors_of(control: &ControlVector, n_embd: usize) -> BTreeMap<usize, Vec<f32>> {
    let rows = control.data.chunks_exact(n_embd).enumerate().filter(|(_, row)| row.iter().any(|x| *x != 0.0));
    rows.map(|(i, row)| (i + 1, row.to_vec())).collect()
}

impl Engine {
    /// The engine with adapters and vectors that stay as they are. References and all log-probabilities are those of the model with
    /// them, and "without an intervention" means with them alone.
    ///
    /// # Errors
    /// [`AdapterRefusal::OnDevices`] for a model on devices.
    pub fn with_background(mut self, background: Background) -> Result<Self, EngineError> {
        if background.is_empty() {
            return Ok(self);
        }
        if self.is_on_devices() {
            return Err(AdapterRefusal::OnDevices { model: self.model.path().display().to_string() }.into());
        }
        self.context.set_adapters(background.adapters.clone());
        self.context.set_vectors(background.vectors.clone());
        self.joiner = super::joined_batch::Joiner::default();
        self.background = background;
        Ok(self)
    }

    /// What is loaded beside what is trained.
    pub fn background(&self) -> &Background {
        &self.background
    }
}
