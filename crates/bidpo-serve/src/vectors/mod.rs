//! The vectors a server offers, known to clients by name.

pub(crate) mod folder;

use bidpo_core::data::ChatTemplate;
use bidpo_core::intervention::Scope;
use bidpo_core::layers::Layers;
use bidpo_core::steer::{ControlVector, ScaledVector, SteerError, SteeringVector, combine};
use folder::Folder;
use ggml_grad::llama::Model;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Sums of vectors that are remembered, so that requests with the same steering share one.
const REMEMBERED: usize = 32;

/// A vector with what is told of it.
#[derive(Debug, Clone)]
pub struct OfferedVector {
    /// The file's name without `.gguf`, and without the model's name behind a dot.
    pub name: String,
    /// The vector.
    pub vector: Arc<SteeringVector>,
    /// The residual norms were measured at start: the file does not tell them.
    pub measured: bool,
    /// Why it may not belong to the model.
    pub warnings: Vec<String>,
}

/// Scale of a vector.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ScaleSpec {
    /// A factor.
    Factor(f32),
    /// Per cent of the median residual norm.
    Percent(f64),
}

impl std::str::FromStr for ScaleSpec {
    type Err = ();

    /// A number, or a number with a percent sign.
    fn from_str(text: &str) -> Result<Self, ()> {
        let text = text.trim();
        if let Some(percent) = text.strip_suffix('%') {
            let percent: f64 = percent.trim().parse().map_err(drop)?;
            return if percent.is_finite() { Ok(Self::Percent(percent)) } else { Err(()) };
        }
        let factor: f32 = text.parse().map_err(drop)?;
        if factor.is_finite() { Ok(Self::Factor(factor)) } else { Err(()) }
    }
}

/// One vector of a request's steering.
#[derive(Debug, Clone, PartialEq)]
pub struct SteerSpec {
    /// Its name.
    pub vector: String,
    /// Its scale.
    pub scale: ScaleSpec,
    /// The layers it is limited to.
    pub layers: Option<Layers>,
}

impl SteerSpec {
    /// As an entry of `steering`.
    pub(crate) fn describe(&self) -> Value {
        let scale = match self.scale {
            ScaleSpec::Factor(f) => json!(f),
            ScaleSpec::Percent(p) => json!(format!("{p}%")),
        };
        let mut value = json!({"vector": self.vector, "scale": scale});
        if let Some(layers) = &self.layers {
            value["layers"] = json!(layers.to_string());
        }
        value
    }
}

/// An invalid entry of a request's steering.
#[derive(Debug, PartialEq, Eq)]
pub struct SpecError {
    /// The entry's number, from 0.
    pub entry: usize,
    /// The field: `vector`, `scale`, `layers`.
    pub field: &'static str,
    /// The reason.
    pub reason: String,
}

/// A directory of vectors that cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum VectorsError {
    /// The directory cannot be read.
    #[error("cannot read the directory of vectors {path}: {source}")]
    Folder {
        /// The folder.
        path: std::path::PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Two files give the same name.
    #[error("two files of {path} are both called {name}: rename one")]
    Twice {
        /// The folder.
        path: std::path::PathBuf,
        /// The name.
        name: String,
    },
    /// An adapter of the command line has the name.
    #[error("{name:?} is the name of an adapter of the command line (--lora): rename the other file")]
    Taken {
        /// The name.
        name: String,
    },
    /// The server was started without a folder of vectors.
    #[error("this server was started without a folder of vectors (--vectors DIR)")]
    NoFolder,
    /// The folder has no such file.
    #[error("the server's folder of vectors has no file {name:?} (a name without .gguf, as /v1/vectors lists them)")]
    NoFile {
        /// The name.
        name: String,
    },
    /// There is no vector to unload.
    #[error("no vector {name:?} is loaded")]
    NotLoaded {
        /// The name.
        name: String,
    },
    /// The file is no vector for this model.
    #[error("the vector {name:?} cannot be loaded: {reason}")]
    Misfit {
        /// The name.
        name: String,
        /// The reason.
        reason: String,
    },
}

/// A change of what a server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VectorChange {
    /// Loads the vector of this name from the folder, or loads it again.
    Load(String),
    /// Offers the vector of this name no longer.
    Unload(String),
    /// Loads the whole folder anew.
    Rescan,
}

/// What a sum was made of: the entries, and the scope that replaces those of the vectors.
type Asked = (Vec<SteerSpec>, Option<Scope>);

/// All of a server's vectors.
#[derive(Debug)]
pub struct VectorStore {
    model: Arc<Model>,
    folder: Option<Folder>,
    vectors: RwLock<Arc<Vec<OfferedVector>>>,
    /// Adapters of the command line, which a rescan leaves, each with the scale at which it acts where a request does not say.
    given: Vec<(OfferedVector, f32)>,
    /// Held while `vectors` is replaced.
    sums: Mutex<VecDeque<(Asked, Arc<ControlVector>)>>,
    changing: Mutex<()>,
}

impl VectorStore {
    /// No vectors, and no folder of them.
    pub fn empty(model: &Arc<Model>) -> Self {
        Self {
            model: Arc::clone(model),
            folder: None,
            vectors: RwLock::default(),
            given: Vec::new(),
            sums: Mutex::default(),
            changing: Mutex::default(),
        }
    }

    /// Loads every `.gguf` file of a directory that is a control vector for this model, in the order of their names. Files that
    /// are not are passed over; `notices` says which, and why.
    ///
    /// # Errors
    /// [`VectorsError`].
    pub fn load(
        folder: &Path,
        model: &Arc<Model>,
        template: &ChatTemplate,
        n_threads: u32,
        notices: &mut Vec<String>,
    ) -> Result<Self, VectorsError> {
        let folder = Folder::new(folder, template, n_threads);
        let vectors = RwLock::new(Arc::new(folder.read(model, notices)?));
        Ok(Self { folder: Some(folder), vectors, ..Self::empty(model) })
    }

    /// Offers an adapter of the command line, which acts at `scale` on requests that do not name it.
    ///
    /// # Errors
    /// [`VectorsError::Taken`] where another vector has its name.
    pub fn with_adapter(mut self, adapter: OfferedVector, scale: f32) -> Result<Self, VectorsError> {
        let mut vectors = (*self.vectors()).clone();
        if vectors.iter().any(|v| v.name == adapter.name) {
            return Err(VectorsError::Taken { name: adapter.name });
        }
        vectors.push(adapter.clone());
        self.given.push((adapter, scale));
        self.vectors = RwLock::new(Arc::new(vectors));
        Ok(self)
    }

    /// What acts on a request that says nothing of adapters.
    pub fn defaults(&self) -> Vec<SteerSpec> {
        let spec = |(v, scale): &(OfferedVector, f32)| SteerSpec {
            vector: v.name.clone(),
            scale: ScaleSpec::Factor(*scale),
            layers: None,
        };
        self.given.iter().map(spec).collect()
    }

    /// All adapters: those of the command line, then those of the folder, each with its default scale. A request's field `lora`
    /// counts them in this order, from 0.
    pub fn adapters(&self) -> Vec<(String, f32)> {
        let given = || self.given.iter().map(|(v, scale)| (v.name.clone(), *scale));
        let vectors = self.vectors();
        let others = vectors.iter().filter(|v| v.vector.adapter.is_some() && given().all(|(name, _)| name != v.name));
        given().chain(others.map(|v| (v.name.clone(), 0.0))).collect()
    }

    /// True if there is a folder of vectors, be it empty.
    pub fn has_folder(&self) -> bool {
        self.folder.is_some()
    }

    /// Changes what is offered. Requests that are being computed keep their vectors. `notices` says what a rescan passed over.
    ///
    /// # Errors
    /// [`VectorsError`]; then nothing has changed.
    pub fn change(&self, change: &VectorChange, notices: &mut Vec<String>) -> Result<(), VectorsError> {
        let folder = self.folder.as_ref().ok_or(VectorsError::NoFolder)?;
        // One change at a time; requests go on with what there is.
        let _one = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut vectors = (*self.vectors()).clone();
        match change {
            VectorChange::Rescan => {
                vectors = folder.read(&self.model, notices)?;
                if let Some((v, _)) = self.given.iter().find(|(v, _)| vectors.iter().any(|o| o.name == v.name)) {
                    return Err(VectorsError::Taken { name: v.name.clone() });
                }
                vectors.extend(self.given.iter().map(|(v, _)| v.clone()));
            }
            VectorChange::Load(name) => {
                self.not_given(name)?;
                let new = folder.read_one(name, &self.model, notices)?;
                vectors.retain(|v| v.name != new.name);
                vectors.push(new);
                vectors.sort_by(|a, b| a.name.cmp(&b.name));
            }
            VectorChange::Unload(name) => {
                self.not_given(name)?;
                let before = vectors.len();
                vectors.retain(|v| v.name != *name);
                if vectors.len() == before {
                    return Err(VectorsError::NotLoaded { name: name.clone() });
                }
            }
        }
        // Under the lock of the sums, so that none of the old vectors is remembered afterwards.
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        sums.clear();
        *self.vectors.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(vectors);
        Ok(())
    }

    /// Refuses the name of an adapter of the command line.
    fn not_given(&self, name: &str) -> Result<(), VectorsError> {
        match self.given.iter().any(|(v, _)| v.name == name) {
            true => Err(VectorsError::Taken { name: name.to_owned() }),
            false => Ok(()),
        }
    }

    /// The vectors, in order.
    pub fn vectors(&self) -> Arc<Vec<OfferedVector>> {
        Arc::clone(&self.vectors.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The vectors' names.
    pub fn names(&self) -> Vec<String> {
        self.vectors().iter().map(|v| v.name.clone()).collect()
    }

    /// The sum of a request's vectors; `None` without steering. `scope`: where they act, instead of the scopes that they were
    /// trained with.
    ///
    /// # Errors
    /// `SpecError`.
    pub fn resolve(&self, specs: &[SteerSpec], scope: Option<&Scope>) -> Result<Option<Arc<ControlVector>>, SpecError> {
        let asked = (specs.to_vec(), scope.cloned());
        if let Some(sum) = self.remembered(&asked) {
            return Ok(Some(sum));
        }
        let vectors = self.vectors();
        let mut sum: Option<ControlVector> = None;
        for (entry, spec) in specs.iter().enumerate() {
            let wrong = |field, reason: String| SpecError { entry, field, reason };
            let Some(offered) = vectors.iter().find(|v| v.name == spec.vector) else {
                let names: Vec<&str> = vectors.iter().map(|v| v.name.as_str()).collect();
                let known = if names.is_empty() { "none".into() } else { names.join(", ") };
                return Err(wrong("vector", format!("there is no vector {:?}; this server has: {known}", spec.vector)));
            };
            let scale = match spec.scale {
                ScaleSpec::Factor(f) => f,
                ScaleSpec::Percent(p) => {
                    offered.vector.scale_for_percent(p).map_err(|e| wrong("scale", e.to_string()))?
                }
            };
            if offered.vector.adapter.is_some() && spec.layers.is_some() {
                let reason = "must be left out: it is a LoRA adapter, which changes the matrices of its file";
                return Err(wrong("layers", reason.to_owned()));
            }
            let mut vector = Arc::clone(&offered.vector);
            if let Some(scope) = scope {
                Arc::make_mut(&mut vector).scope = scope.clone();
            }
            let dial = ScaledVector { name: offered.name.clone(), vector, scale };
            let misfit = |e: SteerError| wrong(if spec.layers.is_some() { "layers" } else { "scale" }, e.to_string());
            let Some(part) = combine(&[dial], spec.layers.as_ref(), &self.model).map_err(misfit)? else { continue };
            sum = Some(match sum {
                None => part,
                Some(before) => add(before, &part, self.model.n_embd()).map_err(|e| wrong("scale", e.to_string()))?,
            });
        }
        // The same adapter at 1 and at -1.
        let sum = sum.filter(|sum| sum.has_vectors() || !sum.adapters.is_empty());
        Ok(sum.map(|sum| self.remember(asked, sum, &vectors)))
    }

    fn remembered(&self, asked: &Asked) -> Option<Arc<ControlVector>> {
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let at = sums.iter().position(|(known, _)| known == asked)?;
        let found = sums.remove(at)?;
        let sum = Arc::clone(&found.1);
        sums.push_back(found);
        Some(sum)
    }

    fn remember(&self, asked: Asked, sum: ControlVector, of: &Arc<Vec<OfferedVector>>) -> Arc<ControlVector> {
        let sum = Arc::new(sum);
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(of, &self.vectors()) {
            return sum;
        }
        if sums.len() == REMEMBERED {
            sums.pop_front();
        }
        sums.push_back((asked, Arc::clone(&sum)));
        sum
    }

    /// The response of `/v1/vectors`.
    pub fn describe(&self) -> Value {
        let data: Vec<Value> = self.vectors().iter().map(OfferedVector::describe).collect();
        json!({"object": "list", "data": data})
    }
}

impl OfferedVector {
    fn describe(&self) -> Value {
        let layers: Vec<Value> = self
            .vector
            .layers()
            .into_iter()
            .map(|layer| {
                json!({"layer": layer, "norm": self.vector.norm(layer), "residual_norm_median": self.vector.residual_norm(layer)})
            })
            .collect();
        // The page's slider ends there.
        let safe = self.vector.safe_range();
        let mut value = json!({
            "id": self.name,
            "object": "steering_vector",
            "kind": if self.vector.adapter.is_some() { "lora" } else { self.vector.kind().name() },
            "scope": self.vector.scope.to_string(),
            "layers": self.layers(),
            "percent_at_scale_1": self.vector.percent_of_scale(1.0),
            "safe_scale": safe.map(|s| [s.low, s.high]),
            "safe_scale_from": safe.map(|s| if s.measured { "measured" } else { "rule of thumb" }),
            "residual_norm_from": if self.measured { "measured at start" } else { "file" },
            "directions": layers,
            "warnings": self.warnings,
        });
        if let Some(adapter) = &self.vector.adapter {
            value["adapter"] = json!({
                "ranks": adapter.ranks, "matrices": adapter.matrices, "alpha": adapter.alpha, "sha256": adapter.sha256,
            });
        }
        value
    }

    /// Layers that are steered, or the blocks that an adapter changes.
    fn layers(&self) -> Vec<usize> {
        self.vector.adapter.as_ref().map_or_else(|| self.vector.layers(), |adapter| adapter.layers.clone())
    }
}

/// `a + b`, as if the two had been summed in one go.
fn add(mut a: ControlVector, b: &ControlVector, n_embd: usize) -> Result<ControlVector, SteerError> {
    let adapters = a.adapters.clone().and(&b.adapters).map_err(|e| SteerError::Mismatch(e.to_string()))?;
    if !b.has_vectors() {
        return Ok(ControlVector { adapters, ..a });
    }
    if !a.has_vectors() {
        return Ok(ControlVector { adapters, ..b.clone() });
    }
    a.data.iter_mut().zip(&b.data).for_each(|(x, y)| *x += y);
    let mut sum = ControlVector::bounded(a.data, a.first.min(b.first), a.last.max(b.last), n_embd)?;
    sum.conditional = a.conditional;
    sum.conditional.extend(b.conditional.iter().cloned());
    sum.adapters = adapters;
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_keep_the_span_of_both() {
        let of = |data: &[f32], first, last| ControlVector::constant(data.to_vec(), first, last);
        let sum = add(of(&[0.0, 1.0, 2.0], 2, 3), &of(&[5.0, 0.5, 0.0], 1, 2), 1).unwrap();
        assert_eq!(sum, of(&[5.0, 1.5, 2.0], 1, 3));
        for part in [3e38, 6e11] {
            assert!(add(of(&[part], 1, 1), &of(&[part], 1, 1), 1).unwrap_err().to_string().contains("too large"));
        }
    }
}
