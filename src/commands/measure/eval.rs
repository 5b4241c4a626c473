//! `bidpo eval`: one subcommand a benchmark. Each measures, writes results, and prints the values computed from them.

mod choice;
pub(super) mod choose;
pub(super) mod measure;
pub(super) mod mmlu;
pub(super) mod progress;
mod prompts;
pub(super) mod text;
pub(super) mod truthfulqa;

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
    /// TruthfulQA: MC1, MC2, MC3, the binary setting, or letters, on the official files.
    Truthfulqa(truthfulqa::Args),
    /// MMLU, on the official CSV files.
    Mmlu(mmlu::Args),
    /// Multiple choice from any CSV or JSONL file.
    Choice(choice::Args),
    /// Perplexity of a text, and how far a vector moves the predictions (KL divergence).
    Text(text::Args),
    /// Answers to any prompts: refusals, repetition, and head to head before a judge.
    Prompts(prompts::Args),
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.benchmark {
        Benchmark::Truthfulqa(args) => truthfulqa::run(args),
        Benchmark::Mmlu(args) => mmlu::run(args),
        Benchmark::Choice(args) => choice::run(args),
        Benchmark::Text(args) => text::run(args),
        Benchmark::Prompts(args) => prompts::run(args),
    }
}
