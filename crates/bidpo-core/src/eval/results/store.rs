//! Results on disk, appended as they are made: an interrupted run resumes where it stopped.

use super::manifest::FORM;
use super::{ConditionFacts, ConditionKind, Manifest, Record, differences};
use ggml_grad::files::FileError;
use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Errors of results files.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another process has it.
    #[error("{0} is being written by another bidpo: wait for it, or give another --out")]
    Busy(PathBuf),
    /// The file's run was another one.
    #[error(
        "{path} holds results of another run ({}): give those settings to go on with it, or move the file away, or give \
         another --out",
        what.join("; ")
    )]
    OtherRun {
        /// The file.
        path: PathBuf,
        /// The difference.
        what: Vec<String>,
    },
    /// A line is not what it should be.
    #[error("{path}, line {line}: {reason}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Reason.
        reason: String,
    },
    /// The shards of a run cannot be merged.
    #[error("shards of {path} cannot be put together: {source}")]
    Shards {
        /// The file that they would make up.
        path: PathBuf,
        /// Reason.
        source: Box<ResultsError>,
    },
    /// The files do not make up a run.
    #[error("{0}")]
    Incomplete(String),
}

/// Reads a results file: manifest and records, each checked against the manifest. A last line without its end (a crash in
/// the middle of it) is left out; the second number is the length in bytes of what was read.
///
/// # Errors
/// [`ResultsError::File`], [`ResultsError::Line`].
pub fn read(path: &Path) -> Result<(Manifest, Vec<Record>, u64), ResultsError> {
    let bytes = ggml_grad::files::read_whole(path).map_err(FileError::read(path))?;
    parse(path, &bytes)
}

fn parse(path: &Path, bytes: &[u8]) -> Result<(Manifest, Vec<Record>, u64), ResultsError> {
    let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
    let at = |line: usize, reason: String| ResultsError::Line { path: path.to_owned(), line, reason };
    let text = std::str::from_utf8(&bytes[..whole]).map_err(|e| {
        at(1 + bytes[..e.valid_up_to()].iter().filter(|&&b| b == b'\n').count(), "this is not UTF-8 text".into())
    })?;
    let mut lines = text.lines();
    let no_results = |why: String| at(1, format!("this is no results file of bidpo ({why})"));
    let first = lines.next().ok_or_else(|| no_results("it is empty".into()))?;
    let mut value: serde_json::Value = serde_json::from_str(first).map_err(|e| no_results(e.to_string()))?;
    let manifest = value.get_mut("manifest").map(serde_json::Value::take);
    let manifest = manifest.ok_or_else(|| no_results("its first line holds no manifest".into()))?;
    let form = manifest.get("bidpo_results").and_then(serde_json::Value::as_u64);
    if form != Some(u64::from(FORM)) {
        let form = form.map_or("unknown".into(), |f| f.to_string());
        return Err(at(1, format!("results of form {form}; this bidpo reads form {FORM}")));
    }
    let manifest: Manifest = serde_json::from_value(manifest).map_err(|e| no_results(e.to_string()))?;
    let mut seen: HashMap<(String, usize), usize> = HashMap::new();
    let mut records = Vec::new();
    for (i, line) in lines.enumerate() {
        let line_number = i + 2;
        let at = |reason| at(line_number, reason);
        let record: Record = serde_json::from_str(line).map_err(|e| at(format!("this is no record: {e}")))?;
        if let Some(fault) = record.fault() {
            return Err(at(fault));
        }
        if record.item >= manifest.items || !manifest.shard.holds(record.item) {
            let (item, n, shard) = (record.item, manifest.items, manifest.shard);
            return Err(at(format!("item {item} does not belong to shard {shard} of {n} items")));
        }
        if manifest.condition(&record.condition).is_none() {
            return Err(at(format!("condition {:?} is not in the manifest", record.condition)));
        }
        if let Some(before) = seen.insert((record.condition.clone(), record.item), line_number) {
            let (item, condition) = (record.item, &record.condition);
            return Err(at(format!("item {item} under {condition:?} is there twice, first on line {before}")));
        }
        records.push(record);
    }
    Ok((manifest, records, whole as u64))
}

/// A results file that is being written.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    file: File,
    manifest: Manifest,
}

impl Store {
    /// Opens `path`, new or with the results of an earlier run of the same manifest, and gives the records that are there.
    /// The conditions may be others: those that are new are added to the file's manifest, those that are no longer asked
    /// for stay.
    ///
    /// # Errors
    /// [`ResultsError`]; [`ResultsError::OtherRun`] says what differs.
    pub fn open(path: &Path, manifest: &Manifest) -> Result<(Self, Vec<Record>), ResultsError> {
        let write = FileError::write(path);
        let mut file = lock(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(write)?;
        if !bytes.contains(&b'\n') {
            // New, or cut short within the first line.
            let not_ours = !bytes.is_empty() && !manifest.line().as_bytes().starts_with(&bytes[..bytes.len().min(12)]);
            if not_ours {
                let reason = "this is no results file of bidpo: give another --out".into();
                return Err(ResultsError::Line { path: path.to_owned(), line: 1, reason });
            }
            file.set_len(0).map_err(write)?;
            file.seek(SeekFrom::Start(0)).map_err(write)?;
            file.write_all(format!("{}\n", manifest.line()).as_bytes()).map_err(write)?;
            return Ok((Self { path: path.to_owned(), file, manifest: manifest.clone() }, Vec::new()));
        }
        let (old, records, whole) = parse(path, &bytes)?;
        let mut union = join(&old, manifest).map_err(|what| ResultsError::OtherRun { path: path.to_owned(), what })?;
        let of_shard = manifest.shard.items(manifest.items).count();
        let is_there = |name: &str| records.iter().filter(|r| r.condition == name).count() == of_shard;
        if manifest.conditions.iter().any(|c| !is_there(&c.name)) {
            union.add_computations(manifest.computations());
        }
        if union != old {
            // Another first line: the file is written anew, and the lock goes over to the new one.
            let end = bytes.iter().position(|&b| b == b'\n').map_or(0, |i| i + 1);
            let text = [union.line().as_bytes(), b"\n", &bytes[end..whole as usize]].concat();
            ggml_grad::files::write_atomically(path, &text).map_err(write)?;
            file = lock(path)?;
        } else {
            file.set_len(whole).map_err(write)?;
        }
        file.seek(SeekFrom::End(0)).map_err(write)?;
        Ok((Self { path: path.to_owned(), file, manifest: union }, records))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The manifest as it stands in the file.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Keeps some records; they are with the system when this returns.
    ///
    /// # Errors
    /// [`ResultsError::File`].
    pub fn push(&mut self, records: &[Record]) -> Result<(), ResultsError> {
        let write = FileError::write(&self.path);
        let mut text = String::new();
        for record in records {
            text += &serde_json::to_string(record).map_err(|e| write(std::io::Error::other(e)))?;
            text.push('\n');
        }
        Ok(self.file.write_all(text.as_bytes()).map_err(write)?)
    }
}

fn lock(path: &Path) -> Result<File, ResultsError> {
    let write = FileError::write(path);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(write)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(ResultsError::Busy(path.to_owned())),
        // Some file systems know no locks; the run is no less safe than without them.
        Err(TryLockError::Error(_)) => {}
    }
    Ok(file)
}

/// Differences that make two manifests those of different runs: everything except shard and threads, and conditions that only one of
/// them has. Empty for parts of one run.
pub fn other_run(there: &Manifest, now: &Manifest) -> Vec<String> {
    join(&there.run(), &now.run()).err().unwrap_or_default()
}

/// A condition without the number of configurations that it was chosen among, and the rule: the same one may be chosen again
/// among more, or by another rule.
fn without_count(mut c: ConditionFacts) -> ConditionFacts {
    if let ConditionKind::Steered { chosen_on: Some(chosen), .. }
    | ConditionKind::Rescaled { chosen_on: Some(chosen), .. } = &mut c.kind
    {
        chosen.settings = 0;
        chosen.rule = None;
    }
    c
}

/// Versions of bidpo that give the same records for the same manifest.
const SAME_RECORDS: [&str; 2] = ["0.1.0", "0.2.0"];

/// The oldest version that gives the same records as this one.
fn records_of(version: &str) -> &str {
    if SAME_RECORDS.contains(&version) { SAME_RECORDS[0] } else { version }
}

/// The file's manifest with the conditions that are new; what differs, if anything else does.
fn join(old: &Manifest, new: &Manifest) -> Result<Manifest, Vec<String>> {
    let value = |m: &Manifest, conditions: Vec<ConditionFacts>| {
        let conditions = conditions.into_iter().map(without_count).collect();
        let bidpo = records_of(&m.bidpo).to_owned();
        let m = Manifest { cpu: None, computed_with: Vec::new(), ..m.clone() };
        serde_json::to_value(Manifest { bidpo, conditions, bits_depend_on_threads: None, ..m })
            .unwrap_or(serde_json::Value::Null)
    };
    let common = |m: &Manifest, other: &Manifest| {
        other.conditions.iter().filter_map(|c| m.condition(&c.name).cloned()).collect::<Vec<_>>()
    };
    // In the same order on both sides.
    let what = differences(
        &value(old, common(old, new)),
        &value(new, new.conditions.iter().filter(|c| old.condition(&c.name).is_some()).cloned().collect()),
    );
    if !what.is_empty() {
        return Err(what);
    }
    let mut union = old.clone();
    for c in &mut union.conditions {
        if let Some(new) = new.condition(&c.name) {
            c.clone_from(new);
        }
    }
    union.conditions.extend(new.conditions.iter().filter(|c| old.condition(&c.name).is_none()).cloned());
    Ok(union)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_file_of_an_older_version_with_the_same_records_is_resumed() {
        let manifest = |bidpo: &str| -> Manifest {
            serde_json::from_value(json!({
                "bidpo_results": 1, "bidpo": bidpo, "llama_cpp": "0", "benchmark": "mmlu", "protocol": "options",
                "model": {"file": "m", "sha256": "x", "name": "m", "architecture": "llama", "quantization": "Q4_1"},
                "data": [], "prompt": null, "selection": null, "items": 1, "seed": 0, "threads": 1,
                "conditions": [{"name": "unsteered", "kind": "unsteered"}], "shard": "1/1",
            }))
            .unwrap()
        };
        assert_eq!(other_run(&manifest("0.1.0"), &manifest("0.2.0")), Vec::<String>::new());
        // The file keeps the version that began it.
        assert_eq!(join(&manifest("0.1.0"), &manifest("0.2.0")).unwrap().bidpo, "0.1.0");
        assert_eq!(other_run(&manifest("9.0.0"), &manifest("0.2.0")).len(), 1);
    }
}
