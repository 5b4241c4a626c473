//! A steering vector and where it came from.

use super::{Provenance, RowChanges};
use crate::adapter::{AdapterError, AdapterFile, AdapterKind, LoadedAdapter, OpenedAdapter};
use crate::intervention::{Kind, Scope};
use crate::layers::Layers;
use crate::numbers::norm;
use ggml_grad::files::FileError;
use ggml_grad::llama::Model;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An invalid vector file, or a vector that cannot be used here.
#[derive(Debug, thiserror::Error)]
pub enum SteerError {
    /// A GGUF file cannot be read or written.
    #[error(transparent)]
    Llama(#[from] ggml_grad::llama::LlamaError),
    /// A safetensors or .npy file cannot be read or written.
    #[error(transparent)]
    Io(#[from] FileError),
    /// A provenance key, read from a file of another format, that GGUF cannot hold: nothing was written.
    #[error("cannot write {path}: {source}")]
    Key {
        /// The file that was to be written.
        path: PathBuf,
        /// The key and the reason.
        source: ggml_grad::llama::LlamaError,
    },
    /// The file is readable but holds no usable control vector.
    #[error("{path}: {reason}")]
    NotAVector {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// The file's ending names a format that bidpo reads and does not write.
    #[error("cannot write {}: bidpo writes .gguf, .safetensors and .npy", .0.display())]
    ReadOnly(PathBuf),
    /// The values in memory are not a valid steering vector; nothing was written.
    #[error("not a usable steering vector: {0}")]
    Invalid(String),
    /// The vector does not fit the model, or another vector.
    #[error("{0}")]
    Mismatch(String),
}

/// The mean of fractions norm / residual norm, each given as `(residual norm, norm)`. The result is such a pair, over the
/// first residual norm; a single fraction is returned bit for bit.
pub(crate) fn mean_fraction(layers: &[(f64, f64)]) -> Option<(f64, f64)> {
    let &(first, _) = layers.first()?;
    let sum: f64 = layers.iter().map(|(residual, length)| length * (first / residual)).sum();
    Some((first, sum / layers.len() as f64))
}

/// Provenance key of a training run's losses: a JSON list of `[step, training loss, validation loss or null]`, one entry an
/// epoch.
pub const TRAINING_CURVE: &str = "training_curve";

/// One direction for each steered layer, added to the residual stream after that block (counted from 0); or what else is dialled
/// in its place: a change that depends on the row, or a LoRA adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct SteeringVector {
    /// Layer -> direction, `[n_embd]` each; never layer 0, and empty only where there are `rows` or an `adapter`.
    pub directions: BTreeMap<usize, Vec<f32>>,
    /// A change that depends on the row, in place of directions.
    pub rows: Option<RowChanges>,
    /// A LoRA adapter, in place of directions; it changes matrices, at every position.
    pub adapter: Option<Arc<LoadedAdapter>>,
    /// Positions at which it was trained to act.
    pub scope: Scope,
    /// `controlvector.model_hint`: the architecture it was made for; empty where the file does not say.
    pub model_hint: String,
    /// Provenance.
    pub provenance: Provenance,
}

impl SteeringVector {
    /// A value without directions, to be filled in: [`SteeringVector::check`] refuses it.
    pub(crate) fn empty() -> Self {
        Self {
            directions: BTreeMap::new(),
            rows: None,
            adapter: None,
            scope: Scope::ALL,
            model_hint: String::new(),
            provenance: Provenance::default(),
        }
    }

    /// A LoRA adapter as a dial, loaded for `model`.
    ///
    /// # Errors
    /// As [`LoadedAdapter::open`].
    pub fn open_adapter(path: &Path, model: &Arc<Model>) -> Result<Self, AdapterError> {
        let OpenedAdapter { loaded, file } = LoadedAdapter::open(path, model)?;
        Ok(Self { adapter: Some(loaded), model_hint: file.architecture, provenance: file.provenance, ..Self::empty() })
    }

    /// An adapter that lies in no file yet, as a dial.
    ///
    /// # Errors
    /// As [`LoadedAdapter::open`], and [`AdapterError::File`] where no temporary file can be written.
    pub fn of_adapter(adapter: &AdapterFile, model: &Arc<Model>) -> Result<Self, AdapterError> {
        let temporary = std::env::temp_dir();
        let folder = tempfile::tempdir().map_err(FileError::write(&temporary))?;
        let path = folder.path().join("adapter.gguf");
        adapter.save(&path, AdapterKind::F32)?;
        Self::open_adapter(&path, model)
    }

    /// A vector for one layer, without provenance.
    ///
    /// # Errors
    /// As [`SteeringVector::check`].
    pub fn single(layer: usize, direction: Vec<f32>, model_hint: impl Into<String>) -> Result<Self, SteerError> {
        let vector = Self {
            directions: BTreeMap::from([(layer, direction)]),
            rows: None,
            adapter: None,
            scope: Scope::ALL,
            model_hint: model_hint.into(),
            provenance: Provenance::default(),
        };
        vector.check()?;
        Ok(vector)
    }

    /// A vector for several layers from the matrix of directions that training returns, lowest layer first:
    /// `[n_layers, n_embd]`. Without provenance.
    ///
    /// # Errors
    /// [`SteerError::Invalid`] for a length that is not a multiple of the number of layers, and as [`SteeringVector::check`].
    pub fn from_layers(layers: &Layers, directions: &[f32], model_hint: impl Into<String>) -> Result<Self, SteerError> {
        let n_embd = directions.len() / layers.len();
        if n_embd * layers.len() != directions.len() {
            let text = format!("{} numbers do not divide among {} layers", directions.len(), layers.len());
            return Err(SteerError::Invalid(text));
        }
        let rows = directions.chunks_exact(n_embd.max(1)).map(<[f32]>::to_vec);
        let vector = Self {
            directions: layers.iter().copied().zip(rows).collect(),
            rows: None,
            adapter: None,
            scope: Scope::ALL,
            model_hint: model_hint.into(),
            provenance: Provenance::default(),
        };
        vector.check()?;
        Ok(vector)
    }

    /// Checks the invariants of a vector: at least one layer, none of them 0, equal widths, finite values.
    ///
    /// # Errors
    /// [`SteerError::Invalid`] naming the layer and the value.
    pub fn check(&self) -> Result<(), SteerError> {
        let invalid = |reason: String| Err(SteerError::Invalid(reason));
        if self.adapter.is_some() {
            return match self.directions.is_empty() && self.rows.is_none() && self.scope.is_all() {
                true => Ok(()),
                false => invalid("it holds directions or a scope beside an adapter".into()),
            };
        }
        if let Some(rows) = &self.rows {
            return match self.directions.is_empty() {
                true => rows.check(),
                false => invalid(format!("it holds directions beside kind {}", rows.spec.kind)),
            };
        }
        let n_embd = self.n_embd();
        if n_embd == 0 {
            return invalid("it holds no direction".into());
        }
        for (&layer, direction) in &self.directions {
            if layer == 0 {
                return invalid(
                    "it has a direction for layer 0, which llama.cpp cannot steer (layers start at 1)".into(),
                );
            }
            if direction.len() != n_embd {
                return invalid(format!(
                    "layer {layer} has {} values where the first layer has {n_embd}: all layers need the same width",
                    direction.len()
                ));
            }
            if let Some(i) = direction.iter().position(|x| !x.is_finite()) {
                return invalid(format!("layer {layer}, element {i} is {}: every value must be finite", direction[i]));
            }
        }
        Ok(())
    }

    /// Width of the residual stream it was made for; 0 only for a value that [`SteeringVector::check`] refuses.
    pub fn n_embd(&self) -> usize {
        self.rows.as_ref().map_or_else(|| self.directions.values().next().map_or(0, Vec::len), |rows| rows.n_embd)
    }

    /// The steered layers, lowest first.
    pub fn layers(&self) -> Vec<usize> {
        match &self.rows {
            Some(rows) => vec![rows.layer],
            None => self.directions.keys().copied().collect(),
        }
    }

    /// The kind of intervention.
    pub fn kind(&self) -> Kind {
        self.rows.as_ref().map_or(Kind::Add, |rows| rows.spec.kind)
    }

    /// True if llama.cpp's own control vectors do the same: constant directions at every position.
    pub fn is_control_vector(&self) -> bool {
        self.rows.is_none() && self.adapter.is_none() && self.scope.is_all()
    }

    /// The constant vector that is nearest, at every position, with what is lost. Measurements of the original are dropped.
    ///
    /// # Errors
    /// [`SteerError::Mismatch`] for a kind that no constant vector is near.
    pub fn constant(&self) -> Result<(Self, Vec<String>), SteerError> {
        let mut lost = Vec::new();
        if !self.scope.is_all() {
            lost.push(format!("it was trained with scope {}, and now acts at every position", self.scope));
        }
        let mut out = self.clone();
        (out.rows, out.scope) = (None, Scope::ALL);
        if let Some(rows) = &self.rows {
            let kind = rows.spec.kind;
            let v = rows.rows()?.constant(&rows.wide()).ok_or_else(|| {
                SteerError::Mismatch(format!(
                    "kind {kind} adds nothing that is the same at every token: no constant vector is near it"
                ))
            })?;
            lost.push(match kind {
                Kind::LowRank => "the part of the edit that depends on the token is gone: only its bias is left".into(),
                Kind::LinearGate => "the factor is the gate's bias at every token".to_string(),
                _ => "the gate is gone: the vector acts as if it were fully open at every token".into(),
            });
            out.directions = BTreeMap::from([(rows.layer, v.iter().map(|&x| x as f32).collect())]);
            out.provenance.set_str("exported_from", format!("kind {kind}"));
        }
        out.provenance.entries.retain(|k, _| !super::ops::measured(k) && k != "norm");
        out.check()?;
        Ok((out, lost))
    }

    /// Refuses what only constant vectors at every position can do.
    ///
    /// # Errors
    /// [`SteerError::Mismatch`].
    pub fn require_control_vector(&self, what: &str) -> Result<(), SteerError> {
        if self.is_control_vector() {
            return Ok(());
        }
        if self.adapter.is_some() {
            return Err(SteerError::Mismatch(format!("{what} takes vectors, and this is a LoRA adapter")));
        }
        Err(SteerError::Mismatch(format!(
            "{what} takes constant vectors that act everywhere, and this is kind {} with scope {}: bidpo vector export \
             --constant makes one of it, and says what is lost",
            self.kind(),
            self.scope
        )))
    }

    /// L2 norm of the direction at `layer`, summed in f64; 0 for a layer that it does not steer. Of a change that depends on
    /// the row: with the gate fully open, or for a row of the median norm.
    pub fn norm(&self, layer: usize) -> f64 {
        if let Some(rows) = self.rows.as_ref().filter(|rows| rows.layer == layer) {
            return rows.norm(self.residual_norm(layer).unwrap_or(1.0));
        }
        self.directions.get(&layer).map_or(0.0, |d| norm(d))
    }

    /// The layer that a single residual norm refers to: the one of key `bidpo.layer`, else the one with the largest norm.
    pub fn main_layer(&self) -> usize {
        // The norm of a kind may depend on the residual norm, which is looked up by this layer.
        if let Some(rows) = &self.rows {
            return rows.layer;
        }
        let named = self.provenance.number("layer").map(|n| n as usize).filter(|l| self.layers().contains(l));
        named.unwrap_or_else(|| {
            // The first of equals, so that files whose directions all have unit norm give their lowest layer.
            let mut best = (0, f64::NEG_INFINITY);
            for layer in self.layers() {
                let norm = self.norm(layer);
                if norm > best.1 {
                    best = (layer, norm);
                }
            }
            best.0
        })
    }

    /// Median norm of the residual stream at `layer`, where the file says it and the value makes sense: key
    /// `bidpo.residual_norm_median.N` of a vector for several layers, `bidpo.residual_norm_median` of one for a single
    /// layer.
    pub fn residual_norm(&self, layer: usize) -> Option<f64> {
        let sensible = |x: &f64| x.is_finite() && *x > 0.0;
        let own = self.provenance.number(&format!("residual_norm_median.{layer}"));
        let only = || self.provenance.number("residual_norm_median").filter(|_| layer == self.main_layer());
        own.or_else(only).filter(sensible)
    }

    /// Residual norm and vector norm, as the fraction that percentages refer to. Layers whose residual norm is unknown
    /// are skipped.
    fn fraction(&self) -> Option<(f64, f64)> {
        let known = self.layers().into_iter().filter_map(|l| Some((self.residual_norm(l)?, self.norm(l))));
        mean_fraction(&known.collect::<Vec<_>>())
    }

    /// The scale at which this vector's norm is `percent` percent of the median residual norm: at its layer, or as the
    /// mean over its layers. The sign of `percent` is the sign of the scale.
    ///
    /// # Errors
    /// [`SteerError::Mismatch`] when the file does not know the residual norm, or the vector is zero.
    pub fn scale_for_percent(&self, percent: f64) -> Result<f32, SteerError> {
        if self.adapter.is_some() {
            return Err(SteerError::Mismatch(
                "it is a LoRA adapter, which has no norm in the residual stream: give its scale as a plain number"
                    .into(),
            ));
        }
        let (residual, norm) = self.fraction().ok_or_else(|| {
            SteerError::Mismatch(
                "it has no key bidpo.residual_norm_median, so a scale in percent is undefined for it: give a plain number"
                    .into(),
            )
        })?;
        if norm == 0.0 {
            return Err(SteerError::Mismatch("the vector is zero: no scale gives it a norm".into()));
        }
        let scale = (percent / 100.0 * residual / norm) as f32;
        if !scale.is_finite() {
            return Err(SteerError::Mismatch(format!("{percent}% gives a scale beyond the range of f32")));
        }
        Ok(scale)
    }

    /// `scale` in percent of the median residual norm (the mean over the layers), where that is known.
    pub fn percent_of_scale(&self, scale: f32) -> Option<f64> {
        self.fraction().map(|(residual, norm)| 100.0 * f64::from(scale) * norm / residual)
    }

    /// The scale at which the norms of the directions, each relative to the residual stream at its layer, add up to
    /// [`Self::STRONG_PERCENT`]. `None` where the residual norm is not known, and for a zero vector.
    pub fn safe_scale(&self) -> Option<f64> {
        let at_one = self.percent_of_scale(1.0)? * self.layers().len() as f64;
        (at_one > 0.0).then_some(Self::STRONG_PERCENT / at_one)
    }

    /// Percent of the residual norm, added up over the layers, above which text may degenerate. A rule of thumb, not a
    /// measurement.
    pub const STRONG_PERCENT: f64 = 20.0;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_and_percentages() {
        let mut v = SteeringVector::single(3, vec![3.0, 4.0, 0.0], "llama").unwrap();
        assert_eq!(v.norm(3), 5.0);
        assert_eq!(v.norm(4), 0.0);
        assert_eq!((v.n_embd(), v.layers(), v.main_layer()), (3, vec![3], 3));
        assert!(v.scale_for_percent(5.0).unwrap_err().to_string().contains("bidpo.residual_norm_median"));
        v.provenance.set_float("residual_norm_median", 200.0);
        // 5 % of 200 is 10, twice the vector's norm of 5.
        assert_eq!(v.scale_for_percent(5.0).unwrap(), 2.0);
        assert_eq!(v.scale_for_percent(-5.0).unwrap(), -2.0);
        assert!((v.percent_of_scale(2.0).unwrap() - 5.0).abs() < 1e-12);
    }

    #[test]
    fn the_residual_norm_of_a_kind_needs_no_layer_key() {
        let spec = crate::intervention::KindSpec::from(Kind::Gate);
        let rows = Some(RowChanges { spec, layer: 3, n_embd: 2, theta: vec![0.0, 0.0, 0.0, 3.0, 4.0] });
        let mut v = SteeringVector { rows, ..SteeringVector::empty() };
        v.provenance.set_float("residual_norm_median", 100.0);
        assert_eq!((v.main_layer(), v.residual_norm(3), v.percent_of_scale(1.0)), (3, Some(100.0), Some(5.0)));
    }

    #[test]
    fn percentages_of_several_layers_are_their_mean() {
        let layers: Layers = "3,5-6".parse().unwrap();
        let mut v = SteeringVector::from_layers(&layers, &[3.0, 4.0, 0.0, 10.0, 6.0, 8.0], "llama").unwrap();
        assert_eq!((v.layers(), v.norm(3), v.norm(6)), (vec![3, 5, 6], 5.0, 10.0));
        assert_eq!(v.directions[&5], [0.0, 10.0]);
        for (layer, norm) in [(3, 100.0), (5, 200.0), (6, 500.0)] {
            v.provenance.set_float(&format!("residual_norm_median.{layer}"), norm);
        }
        // 5, 5 and 2 percent.
        assert!((v.percent_of_scale(-1.0).unwrap() + 4.0).abs() < 1e-12);
        assert!((v.scale_for_percent(8.0).unwrap() - 2.0).abs() < 1e-6);
        // Layers without a known residual norm are left out of the mean.
        v.provenance.entries.remove("residual_norm_median.6");
        assert!((v.percent_of_scale(1.0).unwrap() - 5.0).abs() < 1e-12);
        let error = SteeringVector::from_layers(&layers, &[1.0; 4], "llama").unwrap_err().to_string();
        assert!(error.contains("4 numbers do not divide among 3 layers"), "{error}");
        assert!(SteeringVector::from_layers(&layers, &[], "llama").is_err());
    }

    #[test]
    fn the_norm_does_not_overflow_f32() {
        let v = SteeringVector::single(1, vec![3e30, 4e30], "").unwrap();
        assert!((v.norm(1) / 5e30 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn unusable_vectors_are_refused() {
        let refused = |layer, d: Vec<f32>| SteeringVector::single(layer, d, "x").unwrap_err().to_string();
        assert!(refused(0, vec![1.0]).contains("layer 0"));
        assert!(refused(1, vec![]).contains("no direction"));
        assert!(refused(2, vec![1.0, f32::NAN]).contains("layer 2, element 1 is NaN"));
        let mut v = SteeringVector::single(1, vec![1.0, 2.0], "x").unwrap();
        v.directions.insert(2, vec![1.0]);
        assert!(v.check().unwrap_err().to_string().contains("layer 2 has 1 values"));
    }
}
