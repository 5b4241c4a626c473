//! `bidpo judge`: written answers of an earlier run, head to head before another judge.

use super::eval::measure::{judge, print};
use crate::args::ModelArgs;
use crate::args::writing::JudgingArgs;
use anyhow::bail;
use bidpo_core::eval::judging::judged_file;
use bidpo_core::eval::results::merge;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of `bidpo judge`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The results of `bidpo eval truthfulqa --protocol generate` or `bidpo eval prompts`; all shards of one run.
    #[arg(required = true, value_name = "FILE.jsonl")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    judge: ModelArgs,
    #[command(flatten)]
    judging: JudgingArgs,
    /// Write the judgements to this file [default: FILE.judged.jsonl]. The same command goes on with what is there.
    #[arg(long, short = 'o', value_name = "FILE.jsonl")]
    out: Option<PathBuf>,
    /// Print the figures as one JSON object.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut runs = merge(&args.files)?;
    let (Some(run), true) = (runs.pop(), runs.is_empty()) else {
        bail!("these files are of several runs; give those of one");
    };
    let out = args.out.unwrap_or_else(|| judged_file(&args.files[0]));
    let inputs: Vec<&Path> = args.files.iter().chain([&args.judge.model]).map(PathBuf::as_path).collect();
    crate::args::outputs::not_an_input(&out, &inputs)?;
    ggml_grad::files::check_writable(&out)?;
    let model = args.judge.load()?;
    let (seed, n_threads) = (run.manifest.seed, args.judge.threads());
    let Some(analysis) = judge(&args.judging, &model, n_threads, seed, &run, Some(&out))? else {
        return Ok(ExitCode::FAILURE);
    };
    print(&analysis, None, args.json);
    Ok(ExitCode::SUCCESS)
}
