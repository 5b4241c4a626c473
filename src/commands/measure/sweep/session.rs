//! The parts of a sweep: results files of one folder, by shards or whole.

use super::Args;
use crate::commands::measure::eval::progress::run_session;
use crate::commands::measure::eval::text::Text;
use bidpo_core::eval::analysis::{Analysis, analyse};
use bidpo_core::eval::conditions::Condition;
use bidpo_core::eval::prompt::Style;
use bidpo_core::eval::results::{Manifest, Run, Shard, gather, shard_file};
use bidpo_core::eval::runs::{Ended, Runner, TextRun};
use bidpo_core::eval::task::Task;
use ggml_grad::llama::Model;
use std::path::Path;
use std::sync::Arc;

/// What all parts of a sweep share.
pub struct Sweep<'a> {
    pub args: &'a Args,
    pub model: Arc<Model>,
    pub base: Manifest,
    pub shard: Shard,
}

/// How the measurement of some items ended.
pub enum Part {
    /// By Ctrl-C.
    Stopped,
    /// The items of one shard are there.
    Shard,
    /// All are there.
    Whole(Box<Whole>),
}

/// All results of a file, and their values.
pub struct Whole {
    /// The results.
    pub run: Run,
    /// The values.
    pub analysis: Analysis,
}

impl Part {
    /// All results, unless the part ended before.
    pub fn whole(self) -> Option<Box<Whole>> {
        match self {
            Self::Whole(whole) => Some(whole),
            Self::Stopped | Self::Shard => None,
        }
    }

    /// True if Ctrl-C ended it.
    pub fn is_stopped(&self) -> bool {
        matches!(self, Self::Stopped)
    }
}

impl Sweep<'_> {
    /// Measures a task under some conditions into a file of the directory.
    pub fn task(&self, file: &str, task: &Task, style: &Style, conditions: &[Condition]) -> anyhow::Result<Part> {
        let manifest = task.manifest(self.base.clone(), style, None, conditions, self.shard);
        let runner = task.runner(&self.model, style, None, self.shard, self.args.model.threads());
        self.session(file, manifest, conditions, &*runner)
    }

    /// Divergence and perplexity on a text.
    pub fn text(&self, text: &Text, conditions: &[Condition]) -> anyhow::Result<Part> {
        let manifest = text.manifest(Manifest { shard: self.shard, ..self.base.clone() }, conditions);
        let n_threads = self.args.model.threads();
        let runner = TextRun { model: &self.model, windows: &text.windows, shard: self.shard, n_threads };
        self.session("text.jsonl", manifest, conditions, &runner)
    }

    fn session(
        &self,
        file: &str,
        manifest: Manifest,
        conditions: &[Condition],
        runner: &dyn Runner,
    ) -> anyhow::Result<Part> {
        let path = self.args.out.join(shard_file(file, self.shard));
        eprintln!("{}: {} items, {} conditions", path.display(), manifest.items, conditions.len());
        if self.shard == Shard::WHOLE {
            self.gather(file, &path, &manifest)?;
        }
        let place = path.display().to_string();
        Ok(match run_session(&place, manifest, Some(&path), conditions, runner)? {
            Ended::Interrupted { .. } => Part::Stopped,
            Ended::Shard { .. } => Part::Shard,
            Ended::Complete { run, .. } => {
                let analysis = analyse(&run)?;
                Part::Whole(Box::new(Whole { run: *run, analysis }))
            }
        })
    }

    /// Puts the shards of a file that are in the directory together, and says so.
    fn gather(&self, file: &str, path: &Path, manifest: &Manifest) -> anyhow::Result<()> {
        let gathered = gather(&self.args.out, file, manifest)?;
        for (shard, what) in &gathered.foreign {
            let what = what.join("; ");
            eprintln!("bidpo: warning: {} is left alone: it is of another run ({what})", shard.display());
        }
        let (path, shards) = (path.display(), gathered.shards);
        match gathered.added {
            _ if shards == 0 => {}
            Some(added) => eprintln!("{path}: {added} results added from {shards} shards"),
            None => eprintln!("{path}: put together from {shards} shards"),
        }
        Ok(())
    }
}
