//! `bidpo judge`: written answers of an earlier run, head to head before another judge.

use super::eval::generate::{Judge, JudgingArgs, judged_file};
use crate::args::ModelArgs;
use anyhow::bail;
use bidpo_core::eval::report;
use bidpo_core::eval::results::merge;
use std::path::PathBuf;
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
    ggml_grad::files::check_writable(&out)?;
    let model = args.judge.load()?;
    let judge = Judge { model: &model, args: &args.judge, judging: &args.judging, seed: run.manifest.seed };
    let Some(analysis) = judge.judge(&run, Some(&out))? else { return Ok(ExitCode::FAILURE) };
    if args.json {
        println!("{}", report::json(&analysis));
    } else {
        print!("{}", report::markdown(&analysis));
    }
    Ok(ExitCode::SUCCESS)
}
