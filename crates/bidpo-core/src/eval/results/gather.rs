//! Shards in one directory, put together as the file of the run that they are parts of.

use super::store::{Store, other_run, read};
use super::{Manifest, Record, ResultsError, Run, Shard, merge};
use ggml_grad::files::FileError;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// What was put together.
#[derive(Debug, Default)]
pub struct Gathered {
    /// Shards that were put together, and removed.
    pub shards: usize,
    /// Results that an existing file lacked; absent where the file is new.
    pub added: Option<usize>,
    /// Shards of another run, with what differs: they stay.
    pub foreign: Vec<(PathBuf, Vec<String>)>,
}

/// Start of the names of a file's shards.
fn shard_prefix(file: &str) -> String {
    format!("{}.shard-", file.strip_suffix(".jsonl").unwrap_or(file))
}

/// Name of the file for a shard of `file`: `valid.shard-1-of-2.jsonl` for `valid.jsonl`; `file` itself for all items.
pub fn shard_file(file: &str, shard: Shard) -> String {
    match shard {
        Shard::WHOLE => file.to_owned(),
        Shard { number, of } => format!("{}{number}-of-{of}.jsonl", shard_prefix(file)),
    }
}

/// Puts the shards of `file` that are in `directory` together as the file itself, or adds to it what it lacks of them.
/// Shards of a run other than that of `manifest` stay where they are.
///
/// # Errors
/// [`ResultsError::OtherRun`] where neither the file nor any shard is of this run, but another shard is there: rather a
/// mistaken option than a reason to compute everything again. [`ResultsError::Incomplete`] for shards that are missing.
pub fn gather(directory: &Path, file: &str, manifest: &Manifest) -> Result<Gathered, ResultsError> {
    let path = directory.join(file);
    let prefix = shard_prefix(file);
    let is_shard = |n: &OsStr| {
        let n = n.to_string_lossy();
        n.starts_with(&prefix) && n.ends_with(".jsonl")
    };
    let entries = std::fs::read_dir(directory).map_err(FileError::read(directory))?;
    let mut shards: Vec<PathBuf> =
        entries.filter_map(|f| Some(f.ok()?.path())).filter(|p| p.file_name().is_some_and(is_shard)).collect();
    shards.sort();
    let (mut mine, mut foreign) = (Vec::new(), Vec::new());
    for shard in shards {
        let what = other_run(&read(&shard)?.0, manifest);
        if what.is_empty() { mine.push(shard) } else { foreign.push((shard, what)) }
    }
    if mine.is_empty()
        && !path.exists()
        && let Some((path, what)) = foreign.first().cloned()
    {
        return Err(ResultsError::OtherRun { path, what });
    }
    let runs = merge(&mine).map_err(|source| ResultsError::Shards { path: path.clone(), source: Box::new(source) })?;
    if runs.is_empty() {
        return Ok(Gathered { foreign, ..Gathered::default() });
    }
    let added = if path.exists() {
        Some(add(&path, &runs, manifest)?)
    } else {
        // Under a temporary name: an existing file counts as the result of a complete run.
        let temporary =
            tempfile::Builder::new().prefix(".gather").tempdir_in(directory).map_err(FileError::write(directory))?;
        let made = temporary.path().join(file);
        add(&made, &runs, manifest)?;
        std::fs::rename(&made, &path).map_err(FileError::write(&path))?;
        None
    };
    // The file holds all of them; a report on the directory would find the items twice.
    for shard in runs.iter().flat_map(|r| &r.files) {
        std::fs::remove_file(shard).map_err(FileError::write(shard))?;
    }
    Ok(Gathered { shards: mine.len(), added, foreign })
}

/// Adds to a results file, new or not, the records of some runs that it lacks, and returns their number.
fn add(path: &Path, runs: &[Run], manifest: &Manifest) -> Result<usize, ResultsError> {
    let mut added = 0;
    for run in runs {
        // Shards may have had different numbers of threads: the run is resumed with that of this manifest.
        let conditions = run.manifest.conditions.clone();
        let merged = Manifest { conditions, computed_with: run.manifest.computations(), ..manifest.clone() };
        let (mut store, there) = Store::open(path, &merged)?;
        let there: BTreeSet<(&str, usize)> = there.iter().map(|r| (r.condition.as_str(), r.item)).collect();
        for records in &run.records {
            let new: Vec<Record> =
                records.iter().filter(|r| !there.contains(&(r.condition.as_str(), r.item))).cloned().collect();
            store.push(&new)?;
            added += new.len();
        }
    }
    Ok(added)
}
