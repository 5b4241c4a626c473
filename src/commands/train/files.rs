//! Files that a run writes.

use super::options::Args;
use crate::args::kinds::KindChoice;
use crate::args::outputs::{self, Kind};
use anyhow::{Context as _, bail, ensure};
use bidpo_core::train::seed_checkpoint;
use ggml_grad::files::{LockFile, check_writable, destination};
use ggml_grad::llama::AbortMessage;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Files that a run writes.
pub(super) struct Files {
    pub(super) vector: PathBuf,
    pub(super) card: PathBuf,
    /// The vector beside an adapter.
    pub(super) beside: Option<PathBuf>,
    pub(super) checkpoint: PathBuf,
    /// Those of further seeds.
    of_seeds: Vec<PathBuf>,
}

impl Files {
    /// The files of these options, each of them checked before any work.
    pub(super) fn new(args: &Args, set: &str) -> anyhow::Result<Self> {
        let vector = args.output.clone().unwrap_or_else(|| default_output(set, &args.model.model));
        ensure!(
            vector.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")),
            "{}: the vector's file name must end in .gguf, so that other programs know it",
            vector.display()
        );
        let checkpoint = vector.with_extension("ckpt");
        let further = (1..args.seeds as u64).map(|i| args.seed.wrapping_add(i));
        let of_seeds = further.map(|seed| seed_checkpoint(&checkpoint, args.seed, seed)).collect();
        let beside = (args.kind == KindChoice::LoraAdd).then(|| vector.with_extension("vector.gguf"));
        let files = Self { card: vector.with_extension("md"), beside, checkpoint, of_seeds, vector };
        let inputs: Vec<&Path> = [args.model.model.as_path(), args.data.as_path()]
            .into_iter()
            .chain(args.retain.as_deref())
            .chain(args.init.as_deref())
            .chain(args.loras.iter().chain(&args.vectors).map(|file| file.path.as_path()))
            .collect();
        let trained = if args.kind.is_lora() { Kind::Adapter } else { Kind::Vector };
        for (path, kind) in [(&files.vector, trained), (&files.card, Kind::Card)] {
            outputs::check(path, kind, &inputs)?;
        }
        if let Some(beside) = &files.beside {
            outputs::check(beside, Kind::Vector, &inputs)?;
        }
        for checkpoint in files.checkpoints() {
            outputs::not_an_input(checkpoint, &inputs)?;
            check_writable(checkpoint).with_context(|| format!("cannot write {}", checkpoint.display()))?;
        }
        if args.resume {
            let checkpoint = files.checkpoint.display();
            ensure!(files.checkpoint.exists(), "there is no checkpoint {checkpoint} to resume from");
        } else if let Some(checkpoint) = files.checkpoints().find(|c| c.exists() && !args.fresh) {
            bail!(
                "{} is left from an unfinished run: add --resume to continue it, or --fresh to start again",
                checkpoint.display()
            );
        }
        Ok(files)
    }

    /// Keeps other runs from the checkpoint until the value is dropped.
    pub(super) fn lock(&self) -> anyhow::Result<LockFile> {
        // Of the file itself: runs that write it under several names, through links, have one lock.
        let file = destination(&self.vector).with_context(|| format!("cannot write {}", self.vector.display()))?;
        let path = file.with_extension("ckpt.lock");
        let lock = LockFile::take(&path).with_context(|| format!("cannot write {}", path.display()))?;
        lock.with_context(|| {
            format!("{} is being trained by another bidpo: wait for it, or give another -o", self.vector.display())
        })
    }

    fn checkpoints(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.checkpoint).chain(&self.of_seeds)
    }

    /// Removes the checkpoints of all seeds.
    pub(super) fn remove_checkpoints(&self) -> anyhow::Result<()> {
        self.checkpoints().try_for_each(|path| remove(path))
    }

    /// Removes what an earlier run left of further seeds, before a run that starts again.
    pub(super) fn start_again(&self) -> anyhow::Result<()> {
        self.of_seeds.iter().try_for_each(|path| remove(path))
    }

    /// Tells ggml's abort handler what to say about the checkpoint.
    pub(super) fn announce_checkpoint(&self, args: &Args) {
        let how = if args.fresh { "--resume instead of --fresh" } else { "--resume" };
        ggml_grad::llama::set_abort_message(Some(AbortMessage {
            file: self.checkpoint.clone(),
            // A file older than this run's first checkpoint belongs to another run.
            since: if args.resume { SystemTime::UNIX_EPOCH } else { SystemTime::now() },
            text: format!(
                "the checkpoint {} is intact: the same command with {how} continues from it, also with other devices",
                self.checkpoint.display()
            ),
        }));
    }
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn default_output(set: &str, model: &Path) -> PathBuf {
    let stem = |s: &str| Path::new(s).file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
    PathBuf::from(format!("{}.{}.gguf", bidpo_core::data::stem(set), stem(&model.to_string_lossy())))
}
