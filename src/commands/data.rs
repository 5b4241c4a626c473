//! `bidpo data`: inspect data files, convert and split them, write pairs, fetch benchmarks.

mod convert;
mod fetch;
mod inspect;
mod pairs;
mod split;

use crate::args::data::DataArgs;
use bidpo_core::data::Reading;
use bidpo_core::data::inspect::PairText;
use bidpo_core::data::truthfulqa::{Question, TruthfulQa};
use std::path::Path;
use std::process::ExitCode;

/// Options of `bidpo data`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Report form, samples, duplicates, balance, contradictions, dataset artifacts and overlap with evaluation sets.
    Inspect(inspect::Args),
    /// Write preference pairs of any form as JSON Lines with prompt, chosen and rejected.
    Convert(convert::Args),
    /// Split a file into training, validation and test items; near-duplicates stay in one part.
    Split(split::Args),
    /// Write part of TruthfulQA as preference pairs: best answer against best incorrect answer.
    Pairs(pairs::Args),
    /// Fetch the files of a benchmark from their origin, checked by their SHA-256.
    Fetch(fetch::Args),
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.action {
        Action::Inspect(args) => inspect::run(args),
        Action::Convert(args) => convert::run(args),
        Action::Split(args) => split::run(args),
        Action::Pairs(args) => pairs::run(args),
        Action::Fetch(args) => fetch::run(&args),
    }
}

/// A file as prompt, preferred and other answer; TruthfulQA by its columns, anything else as preference pairs.
struct Items {
    pairs: Vec<PairText>,
    sha256: String,
    /// How pairs were read; `None` for TruthfulQA.
    reading: Option<Reading>,
}

impl Items {
    fn load(path: &Path, read: &DataArgs) -> anyhow::Result<Self> {
        if path.is_file()
            && let Some(set) = TruthfulQa::recognized(path)?
        {
            let one = |(i, q): (usize, &Question)| PairText {
                place: format!("{}: question {}", path.display(), i + 1),
                ..PairText::from(q)
            };
            let pairs = set.questions.iter().enumerate().map(one).collect();
            return Ok(Self { pairs, sha256: set.sha256, reading: None });
        }
        let set = read.open(path)?;
        Ok(Self {
            pairs: set.pairs.iter().map(PairText::from).collect(),
            sha256: set.sha256,
            reading: Some(set.reading),
        })
    }
}
