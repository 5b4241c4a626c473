//! A benchmark ready to be measured: items, protocol, and all that a manifest records of them.

use super::conditions::Condition;
use super::items::{Benchmark, Protocol};
use super::prompt::Style;
use super::results::{DataFacts, Manifest, Shard};
use super::runs::{Generation, GenerationOptions, Measurement, Runner};
use super::scoring::ScorerParams;
use ggml_grad::files::{FileError, display_name, sha256_of_file};
use ggml_grad::llama::Model;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A data file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataFile {
    /// Path.
    pub path: PathBuf,
    /// SHA-256 of its bytes.
    pub sha256: String,
}

/// A benchmark ready to be measured.
#[derive(Debug, Clone)]
pub struct Task {
    /// Name in the manifest: `truthfulqa`, `mmlu`, ...
    pub name: &'static str,
    /// Items.
    pub benchmark: Benchmark,
    /// Training items of the same data, for the baselines that need some.
    pub train: Option<Benchmark>,
    /// Items to choose a system prompt by, where the split has some that are not measured.
    pub choose: Option<Choosing>,
    /// Files that the items come from.
    pub data: Vec<DataFile>,
    /// Selection of the items, for the manifest.
    pub selection: Value,
}

/// Items of another part of the split, to choose by.
#[derive(Debug, Clone)]
pub struct Choosing {
    /// The part: `valid` or `train`.
    pub part: &'static str,
    /// The items.
    pub benchmark: Benchmark,
    /// How they are measured: the task's protocol, or multiple choice where that one writes.
    pub protocol: Protocol,
    /// Selection of the items, for the manifest.
    pub selection: Value,
}

impl Choosing {
    /// The task of measuring these items.
    pub fn task(self, of: &Task) -> Task {
        let Self { benchmark, selection, .. } = self;
        Task { name: of.name, benchmark, train: None, choose: None, data: of.data.clone(), selection }
    }
}

impl Task {
    /// Completes a manifest with this task under these conditions.
    pub fn manifest(
        &self,
        base: Manifest,
        style: &Style,
        options: Option<&GenerationOptions>,
        conditions: &[Condition],
        shard: Shard,
    ) -> Manifest {
        let mut prompt = style.facts();
        if let Some(options) = options {
            prompt["writing"] = options.facts();
        }
        Manifest {
            benchmark: self.name.into(),
            protocol: style.protocol.name().into(),
            data: self.data.iter().map(DataFile::facts).collect(),
            prompt,
            selection: self.selection.clone(),
            items: self.benchmark.items.len(),
            conditions: conditions.iter().map(Condition::manifest).collect(),
            shard,
            ..base
        }
    }

    /// What measures this task: generation with `options` under a protocol of open-ended generation, scores otherwise.
    pub fn runner<'a>(
        &'a self,
        model: &'a Arc<Model>,
        style: &'a Style,
        options: Option<&'a GenerationOptions>,
        shard: Shard,
        n_threads: u32,
    ) -> Box<dyn Runner + 'a> {
        let benchmark = &self.benchmark;
        match options {
            Some(options) => Box::new(Generation { model, benchmark, style, shard, options, n_threads }),
            None => {
                let params = ScorerParams { n_threads, ..ScorerParams::default() };
                Box::new(Measurement { model, benchmark, style, shard, params })
            }
        }
    }

    /// The data in an error message: the file, or the directory of several.
    pub fn data_name(&self) -> String {
        match &self.data[..] {
            [one] => one.path.display().to_string(),
            [first, ..] => first.path.parent().unwrap_or(Path::new(".")).display().to_string(),
            [] => self.name.into(),
        }
    }
}

impl DataFile {
    /// A file with the hash of its bytes.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn new(path: PathBuf) -> Result<Self, FileError> {
        let sha256 = sha256_of_file(&path).map_err(FileError::read(&path))?;
        Ok(Self { path, sha256 })
    }

    /// Entry of the manifest.
    pub fn facts(&self) -> DataFacts {
        DataFacts { file: display_name(&self.path), sha256: self.sha256.clone() }
    }
}
