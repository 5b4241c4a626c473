//! `bidpo data pairs`: TruthfulQA as preference pairs.

use crate::args::eval::PartName;
use crate::args::outputs;
use anyhow::{Context as _, bail, ensure};
use bidpo_core::data::truthfulqa::TruthfulQa;
use bidpo_core::data::{Part, SplitFile};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// TruthfulQA.csv of January 2025.
    #[arg(value_name = "FILE.csv")]
    data: PathBuf,
    /// Split file, written by `bidpo data split`.
    #[arg(long, value_name = "FILE.json")]
    split: PathBuf,
    /// Part of the split to write.
    #[arg(long, value_enum, default_value = "train")]
    part: PartName,
    /// Only the first N items of the part.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Output file.
    #[arg(long, short = 'o', value_name = "FILE.jsonl")]
    out: PathBuf,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    outputs::check(&args.out, outputs::Kind::Pairs, &[&args.data, &args.split])?;
    let set = TruthfulQa::load(&args.data)?;
    let split = SplitFile::load(&args.split, &set.sha256)?;
    ensure!(split.items == set.questions.len(), "{}: it splits another number of items", args.split.display());
    let mut text = String::new();
    let part = split.part(Part::from(args.part));
    let n = part.len().min(args.limit.unwrap_or(usize::MAX));
    for &i in &part[..n] {
        let q = &set.questions[i];
        let Some([best, worst]) = &q.binary else {
            bail!(
                "{}: no best incorrect answer in it; use TruthfulQA.csv of the January 2025 revision",
                args.data.display()
            );
        };
        let line = json!({ "id": i.to_string(), "prompt": q.text, "chosen": best.text, "rejected": worst.text });
        text += &format!("{line}\n");
    }
    ggml_grad::files::write_atomically(&args.out, text.as_bytes())
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    println!("{}: {n} pairs", args.out.display());
    Ok(ExitCode::SUCCESS)
}
