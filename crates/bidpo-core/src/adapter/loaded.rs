//! Adapters beside a model: loaded by llama.cpp, and as a set with scales on a context.

use super::{AdapterError, AdapterFile};
use ggml_grad::files::{FileError, sha256_of_file};
use ggml_grad::llama::{Adapter, Context, LlamaError, Model};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// An adapter that llama.cpp has loaded, with what its file says.
#[derive(Debug, Clone)]
pub struct LoadedAdapter {
    weights: Arc<Adapter>,
    /// SHA-256 of the file, lower-case hex.
    pub sha256: String,
    /// Kinds of matrices it changes.
    pub matrices: Vec<String>,
    /// Blocks it changes.
    pub layers: Vec<usize>,
    /// Norm of `B A` of each matrix at scale 1, by the tensor's name.
    pub norms: BTreeMap<String, f64>,
    /// Tensors that llama.cpp passes over.
    pub skipped: Vec<String>,
    /// Smallest and largest rank.
    pub ranks: (usize, usize),
    /// `adapter.lora.alpha`.
    pub alpha: Option<f32>,
    /// True where the file names tokens from which on it is meant to act (aLoRA): here it acts everywhere.
    pub is_invoked: bool,
}

/// An adapter with the values of its file.
#[derive(Debug)]
pub struct OpenedAdapter {
    /// Loaded by llama.cpp.
    pub loaded: Arc<LoadedAdapter>,
    /// The file's values.
    pub file: AdapterFile,
}

impl LoadedAdapter {
    /// Reads an adapter's file, and has llama.cpp load it for `model`.
    ///
    /// # Errors
    /// As [`AdapterFile::load`] and [`Adapter::load`]; [`AdapterError::File`] where the file cannot be read.
    pub fn open(path: &Path, model: &Arc<Model>) -> Result<OpenedAdapter, AdapterError> {
        let file = AdapterFile::load(path)?;
        let weights = Arc::new(Adapter::load(model, path)?);
        let loaded = Arc::new(Self {
            weights,
            sha256: sha256_of_file(path).map_err(FileError::read(path))?,
            matrices: file.matrices().into_iter().map(str::to_owned).collect(),
            layers: file.layers(),
            norms: file.norms(),
            skipped: file.skipped.clone(),
            ranks: file.ranks(),
            alpha: file.alpha,
            is_invoked: !file.invocation_tokens.is_empty(),
        });
        Ok(OpenedAdapter { loaded, file })
    }

    /// `rank 8`, or `rank 1 to 8`.
    pub fn rank_in_words(&self) -> String {
        match self.ranks {
            (low, high) if low == high => format!("rank {low}"),
            (low, high) => format!("rank {low} to {high}"),
        }
    }
}

/// Of one loading: the same file loaded twice gives two adapters.
impl PartialEq for LoadedAdapter {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.weights, &other.weights)
    }
}

/// Adapters with their scales; none at scale 0, and each once.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Adapters(Vec<(Arc<LoadedAdapter>, f32)>);

impl Adapters {
    /// Adds an adapter, to its own scale where it is there already.
    ///
    /// # Errors
    /// [`AdapterError::Invalid`] for a scale that is not finite.
    pub fn add(&mut self, adapter: &Arc<LoadedAdapter>, scale: f32) -> Result<(), AdapterError> {
        let sum = match self.0.iter_mut().find(|(a, _)| a == adapter) {
            Some((_, old)) => {
                *old += scale;
                *old
            }
            None => {
                self.0.push((Arc::clone(adapter), scale));
                scale
            }
        };
        if !sum.is_finite() {
            return Err(AdapterError::Invalid(format!("its scale is {sum}: give a finite number")));
        }
        self.0.retain(|(_, scale)| *scale != 0.0);
        Ok(())
    }

    /// The adapters of both.
    ///
    /// # Errors
    /// As [`Adapters::add`].
    pub fn and(mut self, other: &Self) -> Result<Self, AdapterError> {
        other.0.iter().try_for_each(|(adapter, scale)| self.add(adapter, *scale))?;
        Ok(self)
    }

    /// The same at `factor` times their scales.
    pub fn scaled(&self, factor: f32) -> Self {
        Self(self.0.iter().map(|(adapter, scale)| (Arc::clone(adapter), scale * factor)).collect())
    }

    /// True where nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The adapters with their scales.
    pub fn iter(&self) -> impl Iterator<Item = (&LoadedAdapter, f32)> {
        self.0.iter().map(|(adapter, scale)| (&**adapter, *scale))
    }

    /// True where exactly these are on the context.
    pub fn are_on(&self, ctx: &Context) -> bool {
        let on = ctx.adapters();
        let mut both = self.0.iter().zip(on);
        let alike = both.all(|((a, s), (b, t))| Arc::ptr_eq(&a.weights, b) && s.to_bits() == t.to_bits());
        on.len() == self.0.len() && alike
    }

    /// Puts exactly these on the context. Where others were, the KV cache is cleared: K and V were computed under those.
    ///
    /// # Errors
    /// As [`Context::set_adapters`].
    pub fn put_on(&self, ctx: &mut Context) -> Result<(), LlamaError> {
        if self.are_on(ctx) { Ok(()) } else { ctx.set_adapters(&self.raw()) }
    }

    /// As [`Adapters::put_on`], and keeps the KV cache, for a caller that knows under which adapters each sequence was computed.
    ///
    /// # Errors
    /// As [`Context::switch_adapters`].
    pub fn switch_to(&self, ctx: &mut Context) -> Result<(), LlamaError> {
        if self.are_on(ctx) { Ok(()) } else { ctx.switch_adapters(&self.raw()) }
    }

    fn raw(&self) -> Vec<(Arc<Adapter>, f32)> {
        self.0.iter().map(|(adapter, scale)| (Arc::clone(&adapter.weights), *scale)).collect()
    }

    /// Files and scales, for a hash.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|(a, scale)| [a.sha256.as_bytes(), &scale.to_le_bytes()].concat()).collect()
    }
}
