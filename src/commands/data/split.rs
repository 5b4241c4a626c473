//! `bidpo data split`: training, validation and test items of a file.

use super::Items;
use crate::args::data::DataArgs;
use crate::args::outputs;
use anyhow::Context as _;
use bidpo_core::data::{SplitBy, SplitFile};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// TruthfulQA (mc_task.json, TruthfulQA.csv, the hub's files), or preference pairs.
    #[arg(value_name = "FILE")]
    data: PathBuf,
    #[command(flatten)]
    read: DataArgs,
    /// Number of training items. They are ordered: the first k are the training set of size k.
    #[arg(long, value_name = "N", default_value_t = 256)]
    train: usize,
    /// Number of validation items; the rest are test items.
    #[arg(long, value_name = "N", default_value_t = 256)]
    valid: usize,
    /// Items that stay in one part: groups (near-duplicate prompts, or answers that are the same but for names, numbers and
    /// one word), prompts (near-duplicate prompts; the rule of bidpo 0.2.0) or pairs (none).
    #[arg(long, value_name = "RULE", default_value = "groups")]
    split_by: SplitBy,
    /// Seed of the permutation.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Output file.
    #[arg(long, short = 'o', value_name = "FILE.json")]
    out: PathBuf,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    outputs::check(&args.out, outputs::Kind::Split, &[&args.data])?;
    let Items { pairs: items, sha256, .. } = Items::load(&args.data, &args.read)?;
    let split = SplitFile::new(&args.data, &sha256, &items, args.split_by, args.seed, [args.train, args.valid])?;
    split.save(&args.out).with_context(|| format!("cannot write {}", args.out.display()))?;
    println!(
        "{}: {} to train on, {} to choose by, {} to report on; {} groups of near-duplicates kept together",
        args.out.display(),
        split.train.len(),
        split.valid.len(),
        split.test.len(),
        split.groups.len()
    );
    Ok(ExitCode::SUCCESS)
}
