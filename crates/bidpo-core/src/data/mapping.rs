//! From the columns of a file to question, choices and answer: mappings, and those that come with the program
//! (`data/mappings`).

use super::source::Source;
use ggml_grad::files::FileError;
use serde::Deserialize;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Interpretation of an answer that could be an index or a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AnswerAs {
    /// The text of the right choice.
    Text,
    /// Its index or letter.
    #[serde(rename = "index")]
    Place,
}

/// Columns (CSV) or keys (JSON; `a.b` reaches into an object) of question, choices and answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mapping {
    /// The question; several are joined by a space.
    pub question: Vec<String>,
    /// The choices: one key with a list of texts or numbers, with objects that hold text and label, or with an object of
    /// choices and their scores; or several keys with one text each. Only the first part of a text before `separator` is
    /// taken, where one is given.
    #[serde(default)]
    pub choices: Vec<String>,
    /// The right answer: an index (see `first`), a letter, the label of a choice, true or false (for two choices: no, yes), or
    /// the text of the choice. If it names one of the keys of `choices`, the choice there is right in every item. Choices with
    /// scores need none.
    #[serde(default)]
    pub answer: String,
    /// The index of the first choice where answers are numbers: 0, or 1 (Winogrande).
    #[serde(default)]
    pub first: usize,
    /// Labels of the choices, where the choices do not carry them.
    #[serde(default)]
    pub labels: Option<String>,
    /// Scores of the choices: those with the highest one are right.
    #[serde(default)]
    pub scores: Option<String>,
    /// Reading of an answer that is the text of one choice and the index or letter of another one; without it such
    /// an answer is a fault.
    #[serde(default)]
    pub answer_as: Option<AnswerAs>,
    /// A category.
    #[serde(default)]
    pub category: Option<String>,
    /// Separator of several texts in a choice's cell; the first text is taken.
    #[serde(default)]
    pub separator: Option<String>,
    /// Choices that are the same in every item (BoolQ's `no`, `yes`), instead of `choices`.
    #[serde(default)]
    pub fixed: Vec<String>,
}

impl Mapping {
    /// The keys that every row must have.
    fn keys(&self) -> impl Iterator<Item = &str> {
        let answer = Some(self.answer.as_str()).filter(|a| !a.is_empty());
        let others = [answer, self.labels.as_deref(), self.scores.as_deref(), self.category.as_deref()];
        self.question.iter().chain(&self.choices).map(String::as_str).chain(others.into_iter().flatten())
    }
}

/// A mapping file: the forms in which a set is published.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MappingFile {
    /// Name and remarks.
    #[serde(default)]
    pub about: String,
    /// One mapping for each form; a file has the first one all of whose keys it has.
    pub forms: Vec<Mapping>,
}

/// An invalid mapping, or one that does not fit the data.
#[derive(Debug, thiserror::Error)]
pub enum MappingError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] FileError),
    /// Neither a file nor a name.
    #[error("no file and no built-in mapping is called {name:?} (built in: {})", MappingFile::BUILTIN.join(", "))]
    Unknown {
        /// The name asked for.
        name: String,
    },
    /// The file is no mapping.
    #[error("{path}: this is no mapping ({reason}); docs/data.md describes the file")]
    Format {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// The data have other keys.
    #[error("{path}: the mapping {name} does not fit: its keys are {wanted}, the first row has {found}")]
    DoesNotFit {
        /// The data file.
        path: PathBuf,
        /// The mapping.
        name: String,
        /// The keys of its forms.
        wanted: String,
        /// The keys of the first row.
        found: String,
    },
}

macro_rules! builtin {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../../data/mappings/", $name, ".json")))),*]
    };
}

const MAPPINGS: [(&str, &str); 17] = builtin!(
    "arc",
    "bigbench",
    "boolq",
    "commonsenseqa",
    "copa",
    "gpqa",
    "halueval",
    "hellaswag",
    "medmcqa",
    "mmlu",
    "mmlu-pro",
    "openbookqa",
    "piqa",
    "race",
    "sciq",
    "siqa",
    "winogrande",
);

impl MappingFile {
    /// Names of the mappings that come with the program.
    pub const BUILTIN: [&'static str; MAPPINGS.len()] = {
        let mut names = [""; MAPPINGS.len()];
        let mut i = 0;
        while i < names.len() {
            names[i] = MAPPINGS[i].0;
            i += 1;
        }
        names
    };

    /// The file at `source` if there is one, else the built-in mapping of that name: what `--mapping` takes.
    ///
    /// # Errors
    /// [`MappingError`].
    pub fn open(source: &Path) -> Result<Self, MappingError> {
        let parse = |text: &str| {
            serde_json::from_str(text)
                .map_err(|e| MappingError::Format { path: source.to_owned(), reason: e.to_string() })
        };
        if source.is_file() {
            let bytes = ggml_grad::files::read_whole(source).map_err(FileError::read(source))?;
            let text = super::decode(&bytes)
                .map_err(|_| MappingError::Format { path: source.to_owned(), reason: "it is not UTF-8".into() })?;
            return parse(text);
        }
        match MAPPINGS.iter().find(|(name, _)| source.to_str() == Some(name)) {
            Some((_, text)) => parse(text),
            None => Err(MappingError::Unknown { name: source.display().to_string() }),
        }
    }

    /// The form that the data have.
    pub(super) fn form(&self, name: &str, data: &Source) -> Result<Mapping, MappingError> {
        let first = data.rows.iter().find_map(|row| row.value.as_ref().ok()).unwrap_or(&Value::Null);
        let fits = |m: &&Mapping| m.keys().all(|key| has(first, key));
        self.forms.iter().find(fits).cloned().ok_or_else(|| MappingError::DoesNotFit {
            path: data.path.clone(),
            name: name.to_owned(),
            wanted: self
                .forms
                .iter()
                .map(|m| m.keys().collect::<Vec<_>>().join(", "))
                .collect::<Vec<_>>()
                .join("; or "),
            found: first.as_object().map_or("none".into(), |o| o.keys().cloned().collect::<Vec<_>>().join(", ")),
        })
    }
}

/// The value of a key, or of a path: `a.b` reaches into an object, and into each object of a list.
pub(super) fn find(value: &Value, key: &str) -> Result<Value, String> {
    // A column may be called `a.b` itself.
    let found = match value.get(key) {
        Some(found) => Some(found.clone()),
        None => reach(value, key),
    };
    found.ok_or_else(|| {
        let keys = value.as_object().map_or(String::new(), |o| o.keys().cloned().collect::<Vec<_>>().join(", "));
        format!("{key:?} is missing (found: {keys})")
    })
}

/// The row has the key, or the path.
fn has(value: &Value, key: &str) -> bool {
    value.get(key).is_some() || reach(value, key).is_some()
}

fn reach(value: &Value, path: &str) -> Option<Value> {
    match (value, path.split_once('.')) {
        (Value::Array(list), _) => list.iter().map(|v| reach(v, path)).collect::<Option<Vec<_>>>().map(Value::Array),
        (_, Some((first, rest))) => reach(value.get(first)?, rest),
        (_, None) => value.get(path).cloned(),
    }
}
