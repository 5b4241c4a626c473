//! The folder of vectors that a server was started with.

use super::{OfferedVector, VectorsError};
use bidpo_core::adapter::AdapterFile;
use bidpo_core::data::{ChatTemplate, PreferenceSet, TemplateError};
use bidpo_core::extract::{ExtractError, residual_norms};
use bidpo_core::steer::{LoadedVector, SteeringVector, architecture_note, warnings};
use ggml_grad::llama::{Model, Token};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Prompts whose residual stream is measured for vectors whose files do not tell its length.
const NORM_PROMPTS: usize = 8;

/// Why the residual stream could not be measured.
#[derive(Debug, thiserror::Error)]
enum MeasureError {
    #[error(transparent)]
    Extract(#[from] ExtractError),
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// A folder of vectors, and what their residual norms are measured with.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    template: ChatTemplate,
    n_threads: u32,
}

impl Folder {
    pub(crate) fn new(path: &Path, template: &ChatTemplate, n_threads: u32) -> Self {
        Self { path: path.to_owned(), template: template.clone(), n_threads }
    }

    /// Its `.gguf` files, in the order of their names.
    fn files(&self) -> Result<Vec<PathBuf>, VectorsError> {
        let no_folder = |source| VectorsError::Folder { path: self.path.clone(), source };
        let entries = std::fs::read_dir(&self.path).map_err(no_folder)?;
        let mut files = entries.map(|e| Ok(e?.path())).collect::<Result<Vec<_>, _>>().map_err(no_folder)?;
        files.retain(|f| f.extension().is_some_and(|e| e == "gguf"));
        files.sort();
        Ok(files)
    }

    /// Every vector of the folder. Files that do not fit the model are passed over; `notices` says which, and why.
    pub(crate) fn read(
        &self,
        model: &Arc<Model>,
        notices: &mut Vec<String>,
    ) -> Result<Vec<OfferedVector>, VectorsError> {
        let mut vectors: Vec<OfferedVector> = Vec::new();
        for file in self.files()? {
            match offered(&file, model, &self.template, notices) {
                Ok(vector) if vectors.iter().any(|v| v.name == vector.name) => {
                    return Err(VectorsError::Twice { path: self.path.clone(), name: vector.name });
                }
                Ok(vector) => vectors.push(vector),
                Err(reason) => notices.push(format!("{} is not offered: {reason}", file.display())),
            }
        }
        self.measure(&mut vectors, model, notices);
        Ok(vectors)
    }

    /// The vector of that name. The name is looked up among the folder's files, so that it can be no path.
    pub(crate) fn read_one(
        &self,
        name: &str,
        model: &Arc<Model>,
        notices: &mut Vec<String>,
    ) -> Result<OfferedVector, VectorsError> {
        let mut files = self.files()?;
        files.retain(|file| name_of(file, model) == name);
        let file = match files.as_slice() {
            [] => return Err(VectorsError::NoFile { name: name.to_owned() }),
            [file] => file,
            _ => return Err(VectorsError::Twice { path: self.path.clone(), name: name.to_owned() }),
        };
        let misfit = |reason: String| {
            // Clients are told names, not where the folder lies.
            let file = file.display().to_string();
            VectorsError::Misfit { name: name.to_owned(), reason: reason.replace(&file, name) }
        };
        let mut vectors = vec![offered(file, model, &self.template, notices).map_err(misfit)?];
        self.measure(&mut vectors, model, notices);
        vectors.pop().ok_or_else(|| VectorsError::NoFile { name: name.to_owned() })
    }

    /// Measures the residual stream where a file does not tell its length.
    fn measure(&self, vectors: &mut [OfferedVector], model: &Arc<Model>, notices: &mut Vec<String>) {
        // Without them there is no scale in percent, and no more.
        if let Err(error) = self.measured(vectors, model) {
            notices.push(format!("scales in percent are not available for files without residual norms: {error}"));
        }
    }

    fn measured(&self, vectors: &mut [OfferedVector], model: &Arc<Model>) -> Result<(), MeasureError> {
        let unknown =
            |v: &SteeringVector| v.layers().into_iter().filter(|&l| v.residual_norm(l).is_none()).collect::<Vec<_>>();
        let mut layers: Vec<usize> = vectors.iter().flat_map(|v| unknown(&v.vector)).collect();
        layers.sort_unstable();
        layers.dedup();
        if layers.is_empty() {
            return Ok(());
        }
        let set = PreferenceSet::builtin(PreferenceSet::BUILTIN[0]).map(|set| set.pairs).unwrap_or_default();
        let prompts: Vec<Vec<Token>> = set
            .into_iter()
            .take(NORM_PROMPTS)
            .map(|p| self.template.encode_prompt(model, &p.prompt))
            .collect::<Result<_, _>>()?;
        let norms = residual_norms(model, &layers, &prompts, self.n_threads)?;
        for offered in vectors {
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
}

/// A file as a vector that is offered.
fn offered(
    file: &Path,
    model: &Arc<Model>,
    template: &ChatTemplate,
    notices: &mut Vec<String>,
) -> Result<OfferedVector, String> {
    if AdapterFile::is_one(file).unwrap_or(false) {
        return offered_adapter(file, model, notices);
    }
    let LoadedVector { mut vector, remarks } = fitting(file, model)?;
    vector.scope = template.scoped(&vector.scope, model).map_err(|e| e.to_string())?;
    let doubts = warnings(&vector, model);
    let note = architecture_note(&vector, model);
    notices.extend(remarks.iter().map(|r| format!("{}: {r}", file.display())));
    notices.extend(doubts.iter().chain(&note).map(|w| format!("{}: {w}", file.display())));
    Ok(OfferedVector { name: name_of(file, model), vector: Arc::new(vector), measured: false, warnings: doubts })
}

/// An adapter's file as a dial that is offered.
///
/// # Errors
/// Why it cannot be used on the model.
pub fn offered_adapter(file: &Path, model: &Arc<Model>, notices: &mut Vec<String>) -> Result<OfferedVector, String> {
    let vector = SteeringVector::open_adapter(file, model).map_err(|e| e.to_string())?;
    let mut doubts = warnings(&vector, model);
    if vector.adapter.as_ref().is_some_and(|a| a.is_invoked) {
        doubts.push("it is meant to act from certain tokens on (aLoRA); here it acts at every position".to_owned());
    }
    notices.extend(doubts.iter().map(|w| format!("{}: {w}", file.display())));
    Ok(OfferedVector { name: name_of(file, model), vector: Arc::new(vector), measured: false, warnings: doubts })
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
