//! `bidpo eval`: one subcommand a benchmark.

mod report;
mod truthfulqa;

use clap::Subcommand;
use std::process::ExitCode;

/// Options of `bidpo eval`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Debug, Subcommand)]
enum Benchmark {
    /// TruthfulQA: MC1, MC2 or the binary setting, on the official files.
    Truthfulqa(truthfulqa::Args),
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.benchmark {
        Benchmark::Truthfulqa(args) => truthfulqa::run(args),
    }
}
