//! The manifest, first line of a results file: the exact settings of a run.

use super::ConditionFacts;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::str::FromStr;

/// Version of the file's form.
pub(super) const FORM: u32 = 1;

/// A part of the items: every `of`-th, from the `number`-th on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shard {
    /// Index of the part, from 1.
    pub number: usize,
    /// Of how many.
    pub of: usize,
}

impl Shard {
    /// All items.
    pub const WHOLE: Self = Self { number: 1, of: 1 };

    /// True if item `i` (from 0) is in this part.
    pub fn holds(self, i: usize) -> bool {
        i % self.of == self.number - 1
    }

    /// The items below `n` in this part.
    pub fn items(self, n: usize) -> impl Iterator<Item = usize> {
        (self.number - 1..n).step_by(self.of)
    }
}

impl Default for Shard {
    fn default() -> Self {
        Self::WHOLE
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(i, n)| Some((i.trim().parse().ok()?, n.trim().parse().ok()?)));
        match parts {
            Some((number, of)) if (1..=of).contains(&number) && of <= 100_000 => Ok(Self { number, of }),
            Some((number, of)) => {
                Err(format!("{number}/{of} is no shard: the first number counts from 1 to the second"))
            }
            None => Err(format!("{text:?} is no shard: write i/n, for example 1/4 for the first of four")),
        }
    }
}

impl Serialize for Shard {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Shard {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The model file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// File name.
    pub file: String,
    /// SHA-256 of the file.
    pub sha256: String,
    /// `general.name`.
    pub name: String,
    /// `general.architecture`.
    pub architecture: String,
    /// llama.cpp's name of the quantization.
    pub quantization: String,
}

/// A data file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFacts {
    /// File name.
    pub file: String,
    /// SHA-256 of its bytes.
    pub sha256: String,
}

/// A number of threads and a CPU level that results were computed with. Either changes their last bits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Computation {
    /// Threads.
    pub threads: u32,
    /// CPU level of bidpo's kernels; absent for results of 0.2.0 and before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
}

impl fmt::Display for Computation {
    /// `1 thread, CPU level avx2`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = if self.threads == 1 { "" } else { "s" };
        write!(f, "{} thread{s}", self.threads)?;
        self.cpu.as_ref().map_or(Ok(()), |cpu| write!(f, ", CPU level {cpu}"))
    }
}

/// The settings of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this form.
    pub bidpo_results: u32,
    /// bidpo's version.
    pub bidpo: String,
    /// llama.cpp's version.
    pub llama_cpp: String,
    /// `truthfulqa`, `mmlu`, ...
    pub benchmark: String,
    /// `mc`, `binary`, `letter`, ...
    pub protocol: String,
    /// The model.
    pub model: ModelFacts,
    /// The data files.
    pub data: Vec<DataFacts>,
    /// Preset, preamble, template, and the form of a question: all that stands around the data's own text.
    pub prompt: Value,
    /// Selection of items: split file, part, limit.
    pub selection: Value,
    /// Items in all shards together.
    pub items: usize,
    /// Seed of every random choice.
    pub seed: u64,
    /// Threads computed with; 0 for shards with different numbers.
    pub threads: u32,
    /// True where another number of threads gives other last bits; absent in files of 0.2.0 and before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits_depend_on_threads: Option<bool>,
    /// CPU level of bidpo's kernels; absent in files of 0.2.0 and before, and for shards with different levels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// All that the results were computed with, where that is not `threads` and `cpu` alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub computed_with: Vec<Computation>,
    /// The conditions, in the order in which they were run.
    pub conditions: Vec<ConditionFacts>,
    /// The part of the items in this file.
    pub shard: Shard,
}

impl Manifest {
    /// bidpo's own version and llama.cpp's, for the manifest's fields of these names.
    pub fn versions() -> (String, String) {
        let ggml = ggml_grad::llama::ggml_version();
        let commit = ggml_grad::llama::ggml_commit().map_or(String::new(), |c| format!(" ({c})"));
        (
            env!("CARGO_PKG_VERSION").into(),
            format!("ggml {ggml}{commit}, llama-cpp-sys-2 {}", ggml_grad::llama::LLAMA_CPP_SYS_VERSION),
        )
    }

    /// The manifest of all shards together: what shards of one run have in common. Threads and CPU level are left out too:
    /// machines differ, and the sums by no more than rounding.
    pub fn run(&self) -> Self {
        let mut run = Self { shard: Shard::WHOLE, threads: 0, bits_depend_on_threads: None, ..self.clone() };
        (run.cpu, run.computed_with) = (None, Vec::new());
        run
    }

    /// All that the results were computed with; empty where the file does not tell.
    pub fn computations(&self) -> Vec<Computation> {
        if !self.computed_with.is_empty() {
            return self.computed_with.clone();
        }
        let own = Computation { threads: self.threads, cpu: self.cpu.clone() };
        if own.threads > 0 { vec![own] } else { Vec::new() }
    }

    /// Adds what further results are computed with.
    pub(super) fn add_computations(&mut self, more: Vec<Computation>) {
        let mut all = self.computations();
        for computation in more {
            if !all.contains(&computation) {
                all.push(computation);
            }
        }
        let own = Computation { threads: self.threads, cpu: self.cpu.clone() };
        self.computed_with = if all == [own] { Vec::new() } else { all };
    }

    /// A condition by name.
    pub fn condition(&self, name: &str) -> Option<&ConditionFacts> {
        self.conditions.iter().find(|c| c.name == name)
    }

    /// Its text, one line of JSON: `{"manifest":{...}}`.
    pub fn line(&self) -> String {
        serde_json::json!({ "manifest": self }).to_string()
    }
}

/// Differences between two JSON values, as `path: left, right` (long values shortened), for error messages.
pub fn differences(left: &Value, right: &Value) -> Vec<String> {
    let mut out = Vec::new();
    compare("", left, right, &mut out);
    out
}

fn compare(path: &str, left: &Value, right: &Value, out: &mut Vec<String>) {
    let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match (left, right) {
        (Value::Object(a), Value::Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))) {
                let null = Value::Null;
                compare(&join(key), a.get(key).unwrap_or(&null), b.get(key).unwrap_or(&null), out);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                compare(&join(&i.to_string()), a, b, out);
            }
        }
        (a, b) if a == b => {}
        (a, b) => out.push(format!("{path}: {} there, {} now", short(a), short(b))),
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn shards_take_every_nth() {
        let shard: Shard = "2/3".parse().unwrap();
        assert_eq!((shard.items(8).collect::<Vec<_>>(), shard.to_string().as_str()), (vec![1, 4, 7], "2/3"));
        assert!((0..8).all(|i| shard.holds(i) == [1, 4, 7].contains(&i)));
        let all: std::collections::BTreeSet<usize> =
            (1..=3).flat_map(|number| Shard { number, of: 3 }.items(8)).collect();
        assert_eq!(all.len(), 8);
        for bad in ["0/3", "4/3", "1/0", "3", "a/b", "-1/2", "1/2/3", ""] {
            assert!(bad.parse::<Shard>().unwrap_err().contains("is no shard"), "{bad}");
        }
    }

    #[test]
    fn differences_name_their_place() {
        let a = json!({"model": {"sha256": "a", "file": "m"}, "list": [1, 2], "only": 1});
        let b = json!({"model": {"sha256": "b", "file": "m"}, "list": [1, 3]});
        let d = differences(&a, &b);
        assert_eq!(d, ["model.sha256: \"a\" there, \"b\" now", "list.1: 2 there, 3 now", "only: 1 there, null now"]);
        assert!(differences(&a, &a).is_empty());
    }
}
