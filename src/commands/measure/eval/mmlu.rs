//! `bidpo eval mmlu`.

use super::measure::{PromptKind, measure};
use crate::args::eval::{PromptArgs, RunArgs};
use anyhow::ensure;
use bidpo_core::data::mmlu;
use bidpo_core::eval::items::{Benchmark, Protocol};
use bidpo_core::eval::prompt::QUESTION_FORM;
use bidpo_core::eval::task::{DataFile, Task};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of `bidpo eval mmlu`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The folder that holds MMLU's folders dev and test.
    #[arg(long, short = 'd', value_name = "FOLDER")]
    data: PathBuf,
    /// Solved examples of the same subject before each question.
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = clap::value_parser!(u8).range(0..=5))]
    few_shot: u8,
    /// Only these subjects, by their file names: anatomy,virology.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    subjects: Vec<String>,
    /// Only the first N questions of each subject.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    per_subject: Option<u32>,
    #[command(flatten)]
    prompt: PromptArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// MMLU's items, and its files.
pub fn load(
    folder: &Path,
    few_shot: usize,
    names: &[String],
    per_subject: Option<u32>,
) -> anyhow::Result<(Benchmark, Vec<DataFile>)> {
    let mut subjects = mmlu::load(folder, few_shot > 0)?;
    if let Some(unknown) = names.iter().find(|n| subjects.iter().all(|s| s.name != **n)) {
        let known: Vec<&str> = subjects.iter().map(|s| s.name.as_str()).collect();
        anyhow::bail!("{}: no subject is called {unknown:?} (there are {})", folder.display(), known.join(", "));
    }
    subjects.retain(|s| names.is_empty() || names.contains(&s.name));
    for s in &subjects {
        ensure!(
            s.dev.len() >= few_shot,
            "{}: subject {} has {} development questions, {few_shot} are asked for",
            folder.display(),
            s.name,
            s.dev.len()
        );
    }
    let files = subjects.iter().flat_map(|s| &s.files).cloned().map(DataFile::new).collect::<Result<_, _>>()?;
    Ok((Benchmark::mmlu(&subjects, few_shot, per_subject.map_or(usize::MAX, |n| n as usize)), files))
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (mut benchmark, files) = load(&args.data, usize::from(args.few_shot), &args.subjects, args.per_subject)?;
    if let Some(limit) = args.run.limit {
        benchmark.items.truncate(limit as usize);
    }
    let task = Task {
        name: "mmlu",
        benchmark,
        train: None,
        choose: None,
        data: files,
        selection: json!({
            "few_shot": args.few_shot, "subjects": args.subjects, "per_subject": args.per_subject, "limit": args.run.limit,
        }),
    };
    let form = QUESTION_FORM.into();
    let kind = PromptKind { protocol: Protocol::Options, form, preset: "none", has_splits: false };
    measure(&args.run, &args.prompt, kind, task, None)
}
