//! Further vectors, measured beside the one under test.

use super::baselines::{BaselineError, BaselineNotice};
use super::condition::{Condition, STEERED, UNSTEERED, direction, layers_of, same_length};
use crate::adapter::AdapterFile;
use crate::data::ChatTemplate;
use crate::eval::results::ConditionKind;
use crate::steer::{ControlVector, LoadedVector, ScaledVector, SteerError, SteeringVector, combine, warnings};
use ggml_grad::files::{FileError, display_name, sha256_of_file};
use ggml_grad::llama::Model;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

/// A second vector or adapter to compare with, by name: `dpo=other.gguf`, `dpo=other.gguf:1.5`.
#[derive(Debug, Clone, PartialEq)]
pub struct OtherVector {
    /// Name of its condition.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// Factor on the vector; absent where it is rescaled to the steered vector's norm at each of its layers.
    pub scale: Option<f32>,
}

impl FromStr for OtherVector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} names no further vector: write NAME=FILE.gguf or NAME=FILE.gguf:SCALE");
        let (name, file) = text.split_once('=').ok_or_else(bad)?;
        let (name, file) = (name.trim(), file.trim());
        // A path may hold a colon too: after the last one only a number is a scale.
        let (path, scale) = match file.rsplit_once(':') {
            Some((path, scale)) if scale.parse::<f32>().is_ok_and(f32::is_finite) => (path, scale.parse().ok()),
            _ => (file, None),
        };
        if name.is_empty() || path.is_empty() || [STEERED, UNSTEERED].contains(&name) {
            return Err(bad());
        }
        Ok(Self { name: name.into(), path: path.into(), scale })
    }
}

impl OtherVector {
    /// The direction of the file for a layer, as it stands there.
    ///
    /// # Errors
    /// [`BaselineError`] for a file that cannot be read or has nothing for the layer.
    pub fn direction(&self, layer: usize) -> Result<Vec<f32>, BaselineError> {
        let vector = SteeringVector::load(&self.path)?;
        let at = direction(&vector, layer).map(|(d, _)| d.clone());
        at.map_err(|source| BaselineError::Vector { path: self.path.clone(), source })
    }

    /// The condition of this vector, next to a steered vector `control` (`None` at scale 0). Warnings about the vector go to
    /// `notice`.
    fn condition(
        &self,
        control: Option<&ControlVector>,
        model: &Arc<Model>,
        template: Option<&ChatTemplate>,
        notice: &mut dyn FnMut(BaselineNotice),
    ) -> Result<Condition, BaselineError> {
        let path = || self.path.clone();
        let steer = |source| BaselineError::Vector { path: path(), source };
        let is_adapter = AdapterFile::is_one(&self.path).unwrap_or(false);
        let LoadedVector { mut vector, remarks } = match is_adapter {
            true => LoadedVector { vector: SteeringVector::open_adapter(&self.path, model)?, remarks: Vec::new() },
            false => SteeringVector::open(&self.path, None)?,
        };
        for remark in remarks {
            notice(BaselineNotice::Vector { path: path(), warning: remark.to_string() });
        }
        for warning in warnings(&vector, model) {
            notice(BaselineNotice::Vector { path: path(), warning });
        }
        vector.scope = ChatTemplate::scoped_by(template, &vector.scope, model)
            .map_err(|source| BaselineError::Scope { path: path(), source })?;
        let n_embd = model.n_embd();
        let added = match self.scale {
            Some(scale) => {
                let scaled = ScaledVector { name: self.name.clone(), vector: Arc::new(vector), scale };
                combine(&[scaled], None, model)?
            }
            None if is_adapter => return Err(BaselineError::NoNorm(self.name.clone())),
            None => {
                if vector.n_embd() != n_embd {
                    return Err(BaselineError::Width { path: path(), width: vector.n_embd(), n_embd });
                }
                let control =
                    control.filter(|c| c.has_vectors()).ok_or_else(|| BaselineError::NoNorm(self.name.clone()))?;
                let at = |&l: &usize| direction(&vector, l).map(|(d, _)| (l, d.clone()));
                let directions = layers_of(control, n_embd).iter().map(at).collect::<Result<_, _>>().map_err(steer)?;
                Some(same_length(control, n_embd, &directions))
            }
        };
        let kind = ConditionKind::OtherVector {
            file: display_name(&self.path),
            sha256: sha256_of_file(&self.path).map_err(FileError::read(&self.path))?,
            scale: self.scale.map(f64::from),
            length: if self.scale.is_some() { "as in the file, times the scale" } else { "the steered vector's" }
                .into(),
        };
        // Adapters beside --vector stay; where adapters alone are under test, another file stands in their place.
        let beside = control.filter(|c| c.has_vectors()).map(|c| c.adapters.clone()).unwrap_or_default();
        let added = added
            .map(|added| {
                let adapters =
                    added.adapters.clone().and(&beside).map_err(|e| steer(SteerError::Mismatch(e.to_string())))?;
                Ok::<_, BaselineError>(ControlVector { adapters, ..added })
            })
            .transpose()?;
        Ok(Condition::new(&self.name, kind, added))
    }
}

/// The conditions of `others`, next to a steered vector `control` (`None` at scale 0). `template`: that of the prompts, which
/// marks thoughts for scopes that read them.
///
/// # Errors
/// [`BaselineError`] for a vector that cannot be read, does not fit, or would be rescaled to a norm of 0.
pub fn other_conditions(
    others: &[OtherVector],
    control: Option<&ControlVector>,
    model: &Arc<Model>,
    template: Option<&ChatTemplate>,
    notice: &mut dyn FnMut(BaselineNotice),
) -> Result<Vec<Condition>, BaselineError> {
    others.iter().map(|other| other.condition(control, model, template, notice)).collect()
}
