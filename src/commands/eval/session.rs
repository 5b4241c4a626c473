//! A run in progress: the results file, the progress bar, Ctrl-C, and the figures at the end.

use super::common::{RunArgs, file_name};
use crate::args::ModelArgs;
use crate::terminal::interrupt::stop_flag;
use anyhow::{Context as _, ensure};
use bidpo_core::eval::analysis::analyse;
use bidpo_core::eval::conditions::condition::Condition;
use bidpo_core::eval::report;
use bidpo_core::eval::results::{Manifest, ModelFacts, Record, Run, Shard, Store};
use bidpo_core::eval::runs::RunError;
use bidpo_core::steer::ModelIdentity;
use ggml_grad::llama::Model;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A run in progress: its file, its records, its progress bar, and Ctrl-C.
pub struct Session {
    manifest: Manifest,
    store: Option<Store>,
    records: Vec<Record>,
    stop: Arc<AtomicBool>,
    bar: ProgressBar,
    wanted: usize,
    before: usize,
}

impl Session {
    /// Opens the results file, new or of an interrupted run. `fill` completes the manifest.
    pub fn open(
        run: &RunArgs,
        model: &Arc<Model>,
        conditions: &[Condition],
        fill: impl FnOnce(&mut Manifest),
    ) -> anyhow::Result<Self> {
        let mut manifest = manifest(&run.model, model, run.seed)?;
        manifest.conditions = conditions.iter().map(Condition::manifest).collect();
        manifest.shard = run.shard.unwrap_or_default();
        fill(&mut manifest);
        Self::resume(manifest, run.out_file().as_deref())
    }

    /// The same for a whole manifest.
    pub fn resume(manifest: Manifest, out: Option<&Path>) -> anyhow::Result<Self> {
        let mine = manifest.shard.items(manifest.items).count();
        ensure!(mine > 0, "shard {} holds none of the {} items", manifest.shard, manifest.items);
        let wanted = mine * manifest.conditions.len();
        let (store, records) = match out {
            Some(out) => {
                let (store, records) = Store::open(out, &manifest)?;
                (Some(store), records)
            }
            None => (None, Vec::new()),
        };
        let asked = |r: &&Record| manifest.condition(&r.condition).is_some();
        let before = records.iter().filter(asked).count();
        if before == wanted {
            eprintln!("All {wanted} results are there already; nothing is computed.");
        } else if before > 0 {
            eprintln!("Going on after {before} of {wanted} results of an earlier run.");
        }
        let bar = ProgressBar::new(wanted as u64).with_position(before as u64);
        bar.set_style(ProgressStyle::with_template("{msg} {bar:30} {pos}/{len}, {per_sec:.1}, {eta} left")?);
        bar.reset_eta();
        Ok(Self {
            manifest,
            store,
            records,
            stop: stop_flag("Stopping after this batch; Ctrl-C again stops at once.")?,
            bar,
            wanted,
            before,
        })
    }

    /// Items that are done under a condition.
    pub fn done(&self, condition: &str) -> BTreeSet<usize> {
        self.bar.set_message(condition.to_owned());
        self.records.iter().filter(|r| r.condition == condition).map(|r| r.item).collect()
    }

    /// Keeps some records; false once Ctrl-C was pressed.
    pub fn push(&mut self, records: Vec<Record>) -> Result<bool, SessionError> {
        if let Some(store) = &mut self.store {
            store.push(&records)?;
        }
        self.bar.inc(records.len() as u64);
        self.records.extend(records);
        Ok(!self.stop.load(Ordering::Relaxed))
    }

    /// How it ended: says on stderr how long it took; false if not all results are there.
    pub fn close(&self) -> bool {
        self.bar.finish_and_clear();
        let asked = |r: &&Record| self.manifest.condition(&r.condition).is_some();
        let there = self.records.iter().filter(asked).count();
        let (done, seconds) = (there - self.before, self.bar.elapsed().as_secs_f64());
        if done > 0 {
            eprintln!("{done} results in {seconds:.1} s, {:.3} s each.", seconds / done as f64);
        }
        if there < self.wanted {
            match &self.store {
                Some(store) => eprintln!(
                    "Interrupted after {there} of {} results. They are kept in {}; the same command goes on from there.",
                    self.wanted,
                    store.path().display()
                ),
                None => {
                    eprintln!("Interrupted after {there} of {} results; nothing is kept without --out.", self.wanted)
                }
            }
        }
        there == self.wanted
    }

    /// The whole run, with the conditions that the file had before, but for those that an earlier run left unfinished and
    /// nobody asked for now.
    pub fn into_run(self) -> anyhow::Result<Run> {
        let Some(store) = &self.store else { return Ok(Run::new(&self.manifest, self.records, Vec::new())?) };
        let mut manifest = store.manifest().clone();
        let done = |name: &str| self.records.iter().filter(|r| r.condition == name).count();
        let (kept, unfinished): (Vec<_>, Vec<_>) = std::mem::take(&mut manifest.conditions)
            .into_iter()
            .partition(|c| self.manifest.condition(&c.name).is_some() || done(&c.name) == manifest.items);
        if !unfinished.is_empty() {
            let names: Vec<String> = unfinished.iter().map(|c| format!("{:?}", c.name)).collect();
            eprintln!(
                "bidpo: {}: left out of these figures, for an earlier run did not finish them: {}. The command that began \
                 them goes on with them.",
                store.path().display(),
                names.join(", ")
            );
        }
        manifest.conditions = kept;
        let files = vec![store.path().to_owned()];
        Ok(Run::new(&manifest, self.records, files)?)
    }

    /// Prints the figures, if the items are all there.
    pub fn finish(self, args: &RunArgs) -> anyhow::Result<ExitCode> {
        match self.whole(args)? {
            Ok(run) => {
                let analysis = analyse(&run)?;
                if args.json {
                    println!("{}", report::json(&analysis));
                } else {
                    print!("{}", report::markdown(&analysis));
                }
                Ok(ExitCode::SUCCESS)
            }
            Err(code) => Ok(code),
        }
    }

    /// The whole run; what the program ends with where it was interrupted, or is a shard, which is said.
    pub fn whole(self, args: &RunArgs) -> anyhow::Result<Result<Run, ExitCode>> {
        if !self.close() {
            return Ok(Err(ExitCode::FAILURE));
        }
        let shard = self.manifest.shard;
        if shard != Shard::WHOLE {
            let file = self.store.as_ref().map_or(String::new(), |s| s.path().display().to_string());
            if args.json {
                println!("{}", json!({ "shard": shard, "results": self.wanted, "file": file }));
            } else {
                println!(
                    "Shard {shard}: {} results in {file}. `bidpo report` on all shards gives the figures.",
                    self.wanted
                );
            }
            return Ok(Err(ExitCode::SUCCESS));
        }
        Ok(Ok(self.into_run()?))
    }
}

/// What a record's way to the disk can fail with.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Results(#[from] bidpo_core::eval::results::ResultsError),
}

/// A manifest of a model, to be completed.
pub fn manifest(args: &ModelArgs, model: &Model, seed: u64) -> anyhow::Result<Manifest> {
    let identity = ModelIdentity::of(model).with_context(|| model.path().display().to_string())?;
    let (bidpo, llama_cpp) = Manifest::versions();
    Ok(Manifest {
        bidpo_results: 1,
        bidpo,
        llama_cpp,
        benchmark: String::new(),
        protocol: String::new(),
        model: ModelFacts {
            file: file_name(model.path()),
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
        threads: args.threads(),
        conditions: Vec::new(),
        shard: Shard::WHOLE,
    })
}
