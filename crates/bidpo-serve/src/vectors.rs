//! The vectors a server offers: loaded once, known to clients by name.

use bidpo_core::data::{ChatTemplate, PreferenceSet, TemplateError};
use bidpo_core::extract::{ExtractError, residual_norms};
use bidpo_core::layers::Layers;
use bidpo_core::steer::{
    ControlVector, LoadedVector, ScaledVector, SteerError, SteeringVector, architecture_note, combine, warnings,
};
use ggml_grad::llama::{Model, Token};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// End of a vector's slider: the norms of its directions, each relative to the residual stream at its layer, add up
/// to this many percent. A rule of thumb for where text begins to degenerate, not a measurement.
const SAFE_PERCENT: f64 = 20.0;

/// Sums of vectors that are remembered, so that requests with the same steering share one.
const REMEMBERED: usize = 32;

/// Prompts whose residual stream is measured for vectors whose files do not tell its length.
const NORM_PROMPTS: usize = 8;

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
}

/// Why the residual stream could not be measured.
#[derive(Debug, thiserror::Error)]
enum MeasureError {
    #[error(transparent)]
    Extract(#[from] ExtractError),
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// All of a server's vectors.
#[derive(Debug)]
pub struct VectorStore {
    model: Arc<Model>,
    vectors: Vec<OfferedVector>,
    sums: Mutex<VecDeque<(Vec<SteerSpec>, Arc<ControlVector>)>>,
}

impl VectorStore {
    /// No vectors.
    pub fn empty(model: &Arc<Model>) -> Self {
        Self { model: Arc::clone(model), vectors: Vec::new(), sums: Mutex::default() }
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
        let no_folder = |source| VectorsError::Folder { path: folder.to_owned(), source };
        let entries = std::fs::read_dir(folder).map_err(no_folder)?;
        let mut files = entries.map(|e| Ok(e?.path())).collect::<Result<Vec<_>, _>>().map_err(no_folder)?;
        files.retain(|f| f.extension().is_some_and(|e| e == "gguf"));
        files.sort();
        let mut store = Self::empty(model);
        for file in files {
            match fitting(&file, model) {
                Ok(LoadedVector { vector, remarks }) => {
                    notices.extend(remarks.iter().map(|r| format!("{}: {r}", file.display())));
                    let doubts = warnings(&vector, model);
                    let note = architecture_note(&vector, model);
                    notices.extend(doubts.iter().chain(&note).map(|w| format!("{}: {w}", file.display())));
                    let (name, vector) = (name_of(&file, model), Arc::new(vector));
                    if store.get(&name).is_some() {
                        return Err(VectorsError::Twice { path: folder.to_owned(), name });
                    }
                    store.vectors.push(OfferedVector { name, vector, measured: false, warnings: doubts });
                }
                Err(reason) => notices.push(format!("{} is not offered: {reason}", file.display())),
            }
        }
        // Without them there is no scale in percent, and no more.
        if let Err(error) = store.measure(template, n_threads) {
            notices.push(format!("scales in percent are not available for files without residual norms: {error}"));
        }
        Ok(store)
    }

    /// Measures the residual stream where a file does not tell its length.
    fn measure(&mut self, template: &ChatTemplate, n_threads: u32) -> Result<(), MeasureError> {
        let unknown =
            |v: &SteeringVector| v.layers().into_iter().filter(|&l| v.residual_norm(l).is_none()).collect::<Vec<_>>();
        let mut layers: Vec<usize> = self.vectors.iter().flat_map(|v| unknown(&v.vector)).collect();
        layers.sort_unstable();
        layers.dedup();
        if layers.is_empty() {
            return Ok(());
        }
        let set = PreferenceSet::builtin(PreferenceSet::BUILTIN[0]).map(|set| set.pairs).unwrap_or_default();
        let prompts: Vec<Vec<Token>> = set
            .into_iter()
            .take(NORM_PROMPTS)
            .map(|p| template.encode_prompt(&self.model, &p.prompt))
            .collect::<Result<_, _>>()?;
        let norms = residual_norms(&self.model, &layers, &prompts, n_threads)?;
        for offered in &mut self.vectors {
            let missing = unknown(&offered.vector);
            let vector = Arc::make_mut(&mut offered.vector);
            for layer in missing {
                if let Some(stats) = norms.get(&layer) {
                    vector.provenance.set_float(&format!("residual_norm_median.{layer}"), stats.median);
                    offered.measured = true;
                }
            }
        }
        Ok(())
    }

    /// The vectors, in order.
    pub fn vectors(&self) -> &[OfferedVector] {
        &self.vectors
    }

    /// The vectors' names.
    pub fn names(&self) -> Vec<String> {
        self.vectors.iter().map(|v| v.name.clone()).collect()
    }

    fn get(&self, name: &str) -> Option<&OfferedVector> {
        self.vectors.iter().find(|v| v.name == name)
    }

    /// The sum of a request's vectors; `None` without steering.
    ///
    /// # Errors
    /// `SpecError`.
    pub fn resolve(&self, specs: &[SteerSpec]) -> Result<Option<Arc<ControlVector>>, SpecError> {
        if let Some(sum) = self.remembered(specs) {
            return Ok(Some(sum));
        }
        let mut sum: Option<ControlVector> = None;
        for (entry, spec) in specs.iter().enumerate() {
            let wrong = |field, reason: String| SpecError { entry, field, reason };
            let Some(offered) = self.get(&spec.vector) else {
                let names: Vec<&str> = self.vectors.iter().map(|v| v.name.as_str()).collect();
                let known = if names.is_empty() { "none".into() } else { names.join(", ") };
                return Err(wrong("vector", format!("there is no vector {:?}; this server has: {known}", spec.vector)));
            };
            let scale = match spec.scale {
                ScaleSpec::Factor(f) => f,
                ScaleSpec::Percent(p) => {
                    offered.vector.scale_for_percent(p).map_err(|e| wrong("scale", e.to_string()))?
                }
            };
            let dial = ScaledVector { name: offered.name.clone(), vector: Arc::clone(&offered.vector), scale };
            let misfit = |e: SteerError| wrong(if spec.layers.is_some() { "layers" } else { "scale" }, e.to_string());
            let Some(part) = combine(&[dial], spec.layers.as_ref(), &self.model).map_err(misfit)? else { continue };
            sum = Some(match sum {
                None => part,
                Some(before) => add(before, &part, self.model.n_embd()).map_err(|e| wrong("scale", e.to_string()))?,
            });
        }
        Ok(sum.map(|sum| self.remember(specs, sum)))
    }

    fn remembered(&self, specs: &[SteerSpec]) -> Option<Arc<ControlVector>> {
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let at = sums.iter().position(|(known, _)| known == specs)?;
        let found = sums.remove(at)?;
        let sum = Arc::clone(&found.1);
        sums.push_back(found);
        Some(sum)
    }

    fn remember(&self, specs: &[SteerSpec], sum: ControlVector) -> Arc<ControlVector> {
        let sum = Arc::new(sum);
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        if sums.len() == REMEMBERED {
            sums.pop_front();
        }
        sums.push_back((specs.to_vec(), Arc::clone(&sum)));
        sum
    }

    /// The response of `/v1/vectors`.
    pub fn describe(&self) -> Value {
        let data: Vec<Value> = self.vectors.iter().map(OfferedVector::describe).collect();
        json!({"object": "list", "data": data})
    }
}

impl OfferedVector {
    /// The scale at which the slider ends; None for a zero vector.
    pub fn safe_scale(&self) -> Option<f64> {
        let at_one = self.vector.percent_of_scale(1.0)? * self.vector.layers().len() as f64;
        (at_one > 0.0).then_some(SAFE_PERCENT / at_one)
    }

    fn describe(&self) -> Value {
        let layers: Vec<Value> = self
            .vector
            .layers()
            .into_iter()
            .map(|layer| {
                json!({"layer": layer, "norm": self.vector.norm(layer), "residual_norm_median": self.vector.residual_norm(layer)})
            })
            .collect();
        let safe = self.safe_scale();
        json!({
            "id": self.name,
            "object": "steering_vector",
            "layers": self.vector.layers(),
            "percent_at_scale_1": self.vector.percent_of_scale(1.0),
            "safe_scale": safe.map(|s| [-s, s]),
            "residual_norm_from": if self.measured { "measured at start" } else { "file" },
            "directions": layers,
            "warnings": self.warnings,
        })
    }
}

/// `a + b`, as if the two had been summed in one go.
fn add(mut a: ControlVector, b: &ControlVector, n_embd: usize) -> Result<ControlVector, SteerError> {
    a.data.iter_mut().zip(&b.data).for_each(|(x, y)| *x += y);
    let mut sum = ControlVector::bounded(a.data, a.first.min(b.first), a.last.max(b.last), n_embd)?;
    sum.conditional = a.conditional;
    sum.conditional.extend(b.conditional.iter().cloned());
    Ok(sum)
}

/// A vector file that fits the model.
fn fitting(file: &Path, model: &Model) -> Result<LoadedVector, String> {
    let loaded = SteeringVector::open(file, None).map_err(|e| e.to_string())?;
    let vector = &loaded.vector;
    let (n_embd, top) = (model.n_embd(), model.n_layer().saturating_sub(1));
    if vector.n_embd() != n_embd {
        return Err(format!("it has {} dimensions, the model's residual stream has {n_embd}", vector.n_embd()));
    }
    match vector.layers().into_iter().find(|&l| l > top) {
        Some(layer) => Err(format!("it has a direction for layer {layer}, this model takes layers 1-{top}")),
        None => Ok(loaded),
    }
}

/// `dial` for `dial.gguf`, and for `dial.MODEL.gguf` where the model's file is `MODEL.gguf`.
fn name_of(file: &Path, model: &Model) -> String {
    let stem = |p: &Path| p.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let (name, model) = (stem(file), stem(model.path()));
    match name.strip_suffix(&format!(".{model}")) {
        Some(short) if !short.is_empty() => short.to_owned(),
        _ => name,
    }
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

    #[test]
    fn the_slider_ends_where_the_layers_add_up() {
        let offered = |layers: &str, n: usize| {
            let layers: Layers = layers.parse().unwrap();
            let mut vector = SteeringVector::from_layers(&layers, &vec![1.0; n], "llama").unwrap();
            layers.iter().for_each(|l| vector.provenance.set_float(&format!("residual_norm_median.{l}"), 10.0));
            OfferedVector { name: "v".into(), vector: Arc::new(vector), measured: false, warnings: Vec::new() }
        };
        // Norm 1 is 10 percent of 10: one layer may have twice that, two layers once each.
        assert!((offered("3", 1).safe_scale().unwrap() - 2.0).abs() < 1e-9);
        assert!((offered("3-4", 2).safe_scale().unwrap() - 1.0).abs() < 1e-9);
    }
}
