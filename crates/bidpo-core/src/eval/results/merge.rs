//! From files to runs: shards are put together, and nothing is missing or there twice.

use super::{Manifest, Record, ResultsError, Shard, differences, read};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// All results of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Manifest of the merged run; its `shard` is the whole.
    pub manifest: Manifest,
    /// Under each condition of the manifest, in its order, the records by item: all of them.
    pub records: Vec<Vec<Record>>,
    /// The files it came from.
    pub files: Vec<PathBuf>,
}

impl Run {
    /// A run from the records of one or more shards, in any order.
    ///
    /// # Errors
    /// [`ResultsError::Incomplete`] naming what is missing.
    pub fn new(manifest: &Manifest, records: Vec<Record>, files: Vec<PathBuf>) -> Result<Self, ResultsError> {
        let mut by_condition: BTreeMap<String, BTreeMap<usize, Record>> = BTreeMap::new();
        for record in records {
            by_condition.entry(record.condition.clone()).or_default().insert(record.item, record);
        }
        let mut lists = Vec::new();
        for condition in &manifest.conditions {
            let done = by_condition.remove(&condition.name).unwrap_or_default();
            if let Some(item) = (0..manifest.items).find(|i| !done.contains_key(i)) {
                return Err(ResultsError::Incomplete(format!(
                    "{}: under {:?} {} of {} items are there (item {item} is missing): the run is not complete; the \
                     command that began it goes on with it",
                    names(&files),
                    condition.name,
                    done.len(),
                    manifest.items
                )));
            }
            lists.push(done.into_values().collect());
        }
        let Manifest { threads, bits_depend_on_threads, .. } = *manifest;
        let (cpu, computed_with) = (manifest.cpu.clone(), manifest.computed_with.clone());
        let manifest = Manifest { threads, bits_depend_on_threads, cpu, computed_with, ..manifest.run() };
        Ok(Self { manifest, records: lists, files })
    }

    /// The records of a condition, by item.
    pub fn under(&self, condition: &str) -> Option<&[Record]> {
        let at = self.manifest.conditions.iter().position(|c| c.name == condition)?;
        Some(&self.records[at])
    }
}

fn names(files: &[PathBuf]) -> String {
    files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Reads results files and puts shards of the same run together. Several runs may be among them, in the order in which
/// their first files are given.
///
/// # Errors
/// [`ResultsError`]: a shard that is missing or given twice, items that are missing, a file that cannot be read.
pub fn merge(files: &[PathBuf]) -> Result<Vec<Run>, ResultsError> {
    type Part = (Manifest, Vec<Record>, PathBuf);
    let mut groups: Vec<(Manifest, Vec<Part>)> = Vec::new();
    for path in files {
        let (manifest, records, _) = read(path)?;
        let run = manifest.run();
        let part = (manifest, records, path.clone());
        match groups.iter_mut().find(|(m, parts)| *m == run && parts[0].0.shard.of == part.0.shard.of) {
            Some((_, parts)) => parts.push(part),
            None => groups.push((run, vec![part])),
        }
    }
    let mut runs = Vec::new();
    for (i, (manifest, parts)) in groups.iter().enumerate() {
        let of = parts[0].0.shard.of;
        let mut by_number: BTreeMap<usize, &Path> = BTreeMap::new();
        for (m, _, path) in parts {
            if let Some(first) = by_number.insert(m.shard.number, path) {
                return Err(ResultsError::Incomplete(format!(
                    "{} and {} hold the same items (shard {}) of the same run: give one of them",
                    first.display(),
                    path.display(),
                    m.shard
                )));
            }
        }
        if let Some(number) = (1..=of).find(|n| !by_number.contains_key(n)) {
            let shard = Shard { number, of };
            let mut text = format!("{}: shard {shard} is missing", parts[0].2.display());
            // Perhaps it is there, and was run with other settings.
            let stranger =
                groups.iter().enumerate().filter(|(j, _)| *j != i).find_map(|(_, (m, p))| {
                    p.iter().find(|(pm, _, _)| pm.shard == shard).map(|(_, _, path)| (m, path))
                });
            if let Some((other, path)) = stranger {
                let value = |m: &Manifest| serde_json::to_value(m).unwrap_or(serde_json::Value::Null);
                let what = differences(&value(manifest), &value(other)).join("; ");
                text += &format!("; {} is that shard of another run ({what})", path.display());
            }
            return Err(ResultsError::Incomplete(text));
        }
        let files = parts.iter().map(|p| p.2.clone()).collect();
        // The threads, where all parts have the same number.
        let first = &parts[0].0;
        let same = |part: &Part| part.0.threads == first.threads;
        let threads = if parts.iter().all(same) { first.threads } else { 0 };
        let cpu = first.cpu.clone().filter(|_| parts.iter().all(|p| p.0.cpu == first.cpu));
        let bits_depend_on_threads = first.bits_depend_on_threads;
        let mut manifest = Manifest { threads, bits_depend_on_threads, cpu, ..manifest.clone() };
        manifest.computed_with = first.computed_with.clone();
        manifest.add_computations(parts.iter().flat_map(|p| p.0.computations()).collect());
        let manifest = &manifest;
        runs.push(Run::new(manifest, parts.iter().flat_map(|p| p.1.clone()).collect(), files)?);
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::super::{Answer, ChosenOn, ConditionFacts, ConditionKind, ModelFacts, Store, View, test_kind};
    use super::*;
    use serde_json::Value;

    fn manifest(shard: &str) -> Manifest {
        let condition = |name: &str| ConditionFacts::new(name, test_kind(name));
        Manifest {
            bidpo_results: 1,
            bidpo: "0".into(),
            llama_cpp: "0".into(),
            benchmark: "truthfulqa".into(),
            protocol: "mc".into(),
            model: ModelFacts {
                file: "m.gguf".into(),
                sha256: "x".into(),
                name: "m".into(),
                architecture: "llama".into(),
                quantization: "Q4_1".into(),
            },
            data: Vec::new(),
            prompt: Value::Null,
            selection: Value::Null,
            items: 5,
            seed: 0,
            threads: 1,
            bits_depend_on_threads: Some(true),
            cpu: None,
            computed_with: Vec::new(),
            conditions: vec![condition("unsteered"), condition("steered")],
            shard: shard.parse().unwrap(),
        }
    }

    fn record(item: usize, condition: &str) -> Record {
        Record {
            item,
            index: item,
            condition: condition.into(),
            question: "Q?".into(),
            category: None,
            answers: vec![Answer::new("a", true), Answer::new("b", false)],
            views: vec![View { order: None, logprobs: vec![-1.0 / 3.0, -2.0], n_tokens: vec![1, 2] }],
            text: None,
            written: None,
        }
    }

    fn write(path: &Path, m: &Manifest) {
        let (mut store, done) = Store::open(path, m).unwrap();
        assert!(done.is_empty());
        for c in ["unsteered", "steered"] {
            let records: Vec<Record> = m.shard.items(m.items).map(|i| record(i, c)).collect();
            store.push(&records).unwrap();
        }
    }

    #[test]
    fn shards_make_up_the_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for (name, shard) in [("whole", "1/1"), ("a", "1/2"), ("b", "2/2")] {
            write(&path(name), &manifest(shard));
        }
        let whole = merge(&[path("whole")]).unwrap();
        let merged = merge(&[path("b"), path("a")]).unwrap();
        assert_eq!((merged.len(), &merged[0].records, &merged[0].manifest), (1, &whole[0].records, &whole[0].manifest));
        assert_eq!(merged[0].under("steered").unwrap().len(), 5);
        // Whole and shards are the same items: two runs of the same thing are not one, and say so each for themselves.
        let error = |files: &[&str]| merge(&files.iter().map(|f| path(f)).collect::<Vec<_>>()).unwrap_err().to_string();
        assert!(error(&["a"]).contains("shard 2/2 is missing"));
        assert!(error(&["a", "b", "b"]).contains("hold the same items (shard 2/2)"));
        // A shard of another run is told apart, with what differs.
        let mut other = manifest("2/2");
        other.seed = 7;
        write(&path("c"), &other);
        let text = error(&["a", "c"]);
        assert!(text.contains("shard 2/2 is missing") && text.contains("seed: 0 there, 7 now"), "{text}");
        // Threads may differ between machines.
        let mut other = manifest("2/2");
        other.threads = 8;
        write(&path("d"), &other);
        let mixed = merge(&[path("a"), path("d")]).unwrap().remove(0);
        assert_eq!(mixed.records, whole[0].records);
        let with: Vec<String> = mixed.manifest.computations().iter().map(ToString::to_string).collect();
        assert_eq!((with, mixed.manifest.threads), (vec!["1 thread".to_owned(), "8 threads".into()], 0));
        assert_eq!(whole[0].manifest.computed_with, []);
    }

    #[test]
    fn an_interrupted_run_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, cut) = (dir.path().join("whole"), dir.path().join("cut"));
        let m = manifest("1/1");
        write(&whole, &m);
        let (mut store, _) = Store::open(&cut, &m).unwrap();
        store.push(&[record(0, "unsteered"), record(1, "unsteered")]).unwrap();
        assert!(matches!(Store::open(&cut, &m), Err(ResultsError::Busy(_))));
        drop(store);
        let error = merge(std::slice::from_ref(&cut)).unwrap_err().to_string();
        assert!(error.contains("2 of 5 items") && error.contains("item 2 is missing"), "{error}");
        // A crash in the middle of a line.
        let mut bytes = std::fs::read(&cut).unwrap();
        bytes.extend(b"{\"item\":2,\"ques");
        std::fs::write(&cut, &bytes).unwrap();
        let mut other = m.clone();
        other.model.sha256 = "y".into();
        let error = Store::open(&cut, &other).unwrap_err().to_string();
        assert!(error.contains("model.sha256: \"x\" there, \"y\" now"), "{error}");
        assert_eq!(bytes, std::fs::read(&cut).unwrap(), "a refused run changes nothing");

        let (mut store, done) = Store::open(&cut, &m).unwrap();
        assert_eq!(done, [record(0, "unsteered"), record(1, "unsteered")]);
        store.push(&(2..5).map(|i| record(i, "unsteered")).collect::<Vec<_>>()).unwrap();
        store.push(&(0..5).map(|i| record(i, "steered")).collect::<Vec<_>>()).unwrap();
        drop(store);
        assert_eq!(std::fs::read(&whole).unwrap(), std::fs::read(&cut).unwrap());
    }

    #[test]
    fn conditions_may_be_added_and_not_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r");
        let mut m = manifest("1/1");
        write(&path, &m);
        let steered = m.conditions.remove(1);
        let random = ConditionFacts::new("random", test_kind("random"));
        m.conditions.push(random.clone());
        let (mut store, done) = Store::open(&path, &m).unwrap();
        assert_eq!(done.len(), 10);
        assert_eq!(
            store.manifest().conditions.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(),
            ["unsteered", "steered", "random"]
        );
        store.push(&(0..5).map(|i| record(i, "random")).collect::<Vec<_>>()).unwrap();
        drop(store);
        assert_eq!(merge(std::slice::from_ref(&path)).unwrap()[0].records.len(), 3);
        let mut changed = steered;
        changed.other.insert("scale".into(), 2.into());
        m.conditions.push(changed);
        let error = Store::open(&path, &m).unwrap_err().to_string();
        assert!(error.contains("scale: null there, 2 now"), "{error}");
    }

    #[test]
    fn a_setting_may_be_chosen_again_among_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r");
        let chosen = |part: &str, settings: usize| {
            let mut m = manifest("1/1");
            let chosen_on =
                Some(ChosenOn { part: part.into(), items: 5, settings, rule: None, other: serde_json::Map::new() });
            m.conditions[1].kind = ConditionKind::Steered { vectors: Vec::new(), layers: None, chosen_on };
            m
        };
        write(&path, &chosen("valid", 4));
        let (store, done) = Store::open(&path, &chosen("valid", 6)).unwrap();
        assert_eq!((done.len(), store.manifest()), (10, &chosen("valid", 6)));
        drop(store);
        let run = merge(std::slice::from_ref(&path)).unwrap().remove(0);
        assert_eq!(run.manifest.conditions, chosen("valid", 6).conditions);
        let error = Store::open(&path, &chosen("test", 6)).unwrap_err().to_string();
        assert!(error.contains("chosen_on.part"), "{error}");
    }

    #[test]
    fn damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r");
        let good = format!("{}\n", manifest("1/2").line());
        let line = |r: &Record| serde_json::to_string(r).unwrap() + "\n";
        let mut crooked = record(0, "steered");
        crooked.views[0].logprobs.pop();
        let cases = [
            (String::new(), "line 1: this is no results file"),
            ("{}\n".to_owned(), "line 1: this is no results file"),
            (good.replace("\"bidpo_results\":1", "\"bidpo_results\":9"), "form 9"),
            (format!("{good}x\n"), "line 2: this is no record"),
            (format!("{good}{}", line(&crooked)), "line 2: view 0 has 1 scores"),
            (format!("{good}{}", line(&record(1, "steered"))), "item 1 does not belong to shard 1/2 of 5 items"),
            (format!("{good}{}", line(&record(0, "other"))), "condition \"other\" is not in the manifest"),
            (format!("{good}{0}{0}", line(&record(0, "steered"))), "line 3: item 0 under \"steered\" is there twice"),
        ];
        for (text, expected) in cases {
            std::fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}\n{expected}");
        }
    }
}
