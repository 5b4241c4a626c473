//! A run that can be interrupted and resumed: conditions through a [`Runner`] into a results file.

use super::error::RunError;
use super::pending::{Pending, Runner};
use crate::eval::conditions::Condition;
use crate::eval::results::{Manifest, ModelFacts, Record, ResultsError, Run, Shard, Store};
use crate::steer::ModelIdentity;
use ggml_grad::files::{FileError, display_name};
use ggml_grad::graph::cpu_level;
use ggml_grad::llama::Model;
use serde_json::Value;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A run in progress: its manifest, its results file, its records.
#[derive(Debug)]
pub struct Session {
    manifest: Manifest,
    store: Option<Store>,
    records: Vec<Record>,
    stop: Arc<AtomicBool>,
    wanted: usize,
    resumed: usize,
}

/// Progress of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress<'a> {
    /// The condition of this name begins.
    Condition(&'a str),
    /// So many results more.
    Results(usize),
}

/// How a session ended.
#[derive(Debug)]
pub enum Ended {
    /// All results of all items are there.
    Complete {
        /// The run, with the conditions of the file that are complete.
        run: Box<Run>,
        /// Conditions of the file that an earlier run left unfinished and this one was not asked for: not in `run`.
        unfinished: Vec<String>,
    },
    /// All results of a shard are there.
    Shard {
        /// The shard.
        shard: Shard,
        /// Its results.
        results: usize,
    },
    /// The stop flag was set before all results were there.
    Interrupted {
        /// Results that are there.
        done: usize,
        /// Results that were asked for.
        wanted: usize,
    },
}

impl Session {
    /// Opens a session of `manifest.shard`, and the results file `out`, new or of an interrupted run. The work ends after
    /// the batch in which `stop` was set.
    ///
    /// # Errors
    /// [`RunError::EmptyShard`]; [`RunError::Results`] for a file that cannot be written or is of another run.
    pub fn open(manifest: Manifest, out: Option<&Path>, stop: Arc<AtomicBool>) -> Result<Self, RunError> {
        let mine = manifest.shard.items(manifest.items).count();
        if mine == 0 {
            return Err(RunError::EmptyShard { shard: manifest.shard, items: manifest.items });
        }
        let wanted = mine * manifest.conditions.len();
        let (store, records) = match out {
            Some(out) => {
                let (store, records) = Store::open(out, &manifest)?;
                (Some(store), records)
            }
            None => (None, Vec::new()),
        };
        let mut session = Self { manifest, store, records, stop, wanted, resumed: 0 };
        session.resumed = session.done();
        Ok(session)
    }

    /// Results that are asked for: items of the shard, times conditions.
    pub fn wanted(&self) -> usize {
        self.wanted
    }

    /// How many of them an earlier run left.
    pub fn resumed(&self) -> usize {
        self.resumed
    }

    /// How many of them are there.
    pub fn done(&self) -> usize {
        self.records.iter().filter(|r| self.manifest.condition(&r.condition).is_some()).count()
    }

    /// The results file.
    pub fn file(&self) -> Option<&Path> {
        self.store.as_ref().map(Store::path)
    }

    /// Runs the conditions in order, up to the end or until the stop flag is set. A condition that adds the same vector under
    /// the same prompt as an earlier one is the same computation: its results are copied.
    ///
    /// # Errors
    /// [`RunError`]; the results before it are kept.
    pub fn run(
        &mut self,
        conditions: &[Condition],
        runner: &dyn Runner,
        observe: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), RunError> {
        for (i, condition) in conditions.iter().enumerate() {
            observe(Progress::Condition(&condition.name));
            let of_condition = self.records.iter().filter(|r| r.condition == condition.name);
            let done: BTreeSet<usize> = of_condition.map(|r| r.item).collect();
            let twin = conditions[..i].iter().find(|c| c.is_computed_as(condition));
            let copies: Vec<Record> = twin.map_or_else(Vec::new, |twin| {
                let theirs = self.records.iter().filter(|r| r.condition == twin.name && !done.contains(&r.item));
                theirs.map(|r| Record { condition: condition.name.clone(), ..r.clone() }).collect()
            });
            let done: BTreeSet<usize> = done.into_iter().chain(copies.iter().map(|r| r.item)).collect();
            let mut sink = |records: Vec<Record>| -> Result<ControlFlow<()>, ResultsError> {
                if let Some(store) = &mut self.store {
                    store.push(&records)?;
                }
                observe(Progress::Results(records.len()));
                self.records.extend(records);
                let stop = self.stop.load(Ordering::Relaxed);
                Ok(if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            };
            let copied = if copies.is_empty() { ControlFlow::Continue(()) } else { sink(copies)? };
            if copied.is_break() || runner.run(condition, Pending::new(&done, &mut sink))?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Ends the session.
    ///
    /// # Errors
    /// [`ResultsError::Incomplete`] for a file whose items do not make up the run.
    pub fn end(self) -> Result<Ended, ResultsError> {
        let done = self.done();
        if done < self.wanted {
            return Ok(Ended::Interrupted { done, wanted: self.wanted });
        }
        if self.manifest.shard != Shard::WHOLE {
            return Ok(Ended::Shard { shard: self.manifest.shard, results: self.wanted });
        }
        let Some(store) = &self.store else {
            let run = Run::new(&self.manifest, self.records, Vec::new())?;
            return Ok(Ended::Complete { run: Box::new(run), unfinished: Vec::new() });
        };
        // The conditions that the file had before count, unless an earlier run left them unfinished.
        let mut manifest = store.manifest().clone();
        let done = |name: &str| self.records.iter().filter(|r| r.condition == name).count();
        let (kept, unfinished): (Vec<_>, Vec<_>) = std::mem::take(&mut manifest.conditions)
            .into_iter()
            .partition(|c| self.manifest.condition(&c.name).is_some() || done(&c.name) == manifest.items);
        manifest.conditions = kept;
        let files = vec![store.path().to_owned()];
        let run = Run::new(&manifest, self.records, files)?;
        Ok(Ended::Complete { run: Box::new(run), unfinished: unfinished.into_iter().map(|c| c.name).collect() })
    }
}

/// A manifest of a model: benchmark, protocol, data, prompt, selection, items and conditions are still empty.
///
/// # Errors
/// The model file cannot be read.
pub fn new_manifest(model: &Model, n_threads: u32, seed: u64) -> Result<Manifest, FileError> {
    let identity = ModelIdentity::of(model).map_err(FileError::read(model.path()))?;
    let (bidpo, llama_cpp) = Manifest::versions();
    Ok(Manifest {
        bidpo_results: 1,
        bidpo,
        llama_cpp,
        benchmark: String::new(),
        protocol: String::new(),
        model: ModelFacts {
            file: display_name(model.path()),
            sha256: identity.sha256,
            name: identity.name,
            architecture: identity.architecture,
            quantization: identity.quantization,
        },
        data: Vec::new(),
        prompt: Value::Null,
        selection: Value::Null,
        items: 0,
        seed,
        threads: n_threads,
        // Measured on both test models: one thread and two give scores that differ in their last bits.
        bits_depend_on_threads: Some(true),
        cpu: cpu_level().ok().map(|level| level.name().to_owned()),
        computed_with: Vec::new(),
        conditions: Vec::new(),
        shard: Shard::WHOLE,
    })
}
