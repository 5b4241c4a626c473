//! `bidpo eval truthfulqa`.

use super::measure::{PromptKind, measure};
use crate::args::eval::{PromptArgs, RunArgs, SplitArgs};
use crate::args::writing::WriteArgs;
use anyhow::bail;
use bidpo_core::data::truthfulqa::TruthfulQa;
use bidpo_core::eval::items::{Benchmark, Protocol};
use bidpo_core::eval::prompt::QUESTION_FORM;
use bidpo_core::eval::task::{DataFile, Task};
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `bidpo eval truthfulqa`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The official mc_task.json or TruthfulQA.csv.
    #[arg(long, short = 'd', value_name = "FILE")]
    data: PathBuf,
    /// What to measure.
    #[arg(long, short = 'p', value_enum, default_value = "mc")]
    protocol: ProtocolName,
    #[command(flatten)]
    write: WriteArgs,
    #[command(flatten)]
    split: SplitArgs,
    #[command(flatten)]
    prompt: PromptArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// A protocol of TruthfulQA.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum ProtocolName {
    /// MC1, MC2 and MC3 in one pass.
    Mc,
    /// The best answer above every false one.
    Mc1,
    /// The share of the true answers in the probability of all.
    Mc2,
    /// The share of the true answers that are above every false one.
    Mc3,
    /// The best answer and the best incorrect one as options A and B, in both orders (CSV of January 2025 only).
    Binary,
    /// The same two answers as continuations.
    Pair,
    /// The answers of MC1 as lettered options in an order drawn by the seed.
    Letter,
    /// Answers in the model's own words: likeness to the reference answers, refusals, repetition, and head to head before
    /// a judge.
    Generate,
}

impl From<ProtocolName> for Protocol {
    fn from(name: ProtocolName) -> Self {
        match name {
            ProtocolName::Mc => Self::Mc,
            ProtocolName::Mc1 => Self::Mc1,
            ProtocolName::Mc2 => Self::Mc2,
            ProtocolName::Mc3 => Self::Mc3,
            ProtocolName::Binary => Self::Binary,
            ProtocolName::Pair => Self::Pair,
            ProtocolName::Letter => Self::Letter,
            ProtocolName::Generate => Self::Generate,
        }
    }
}

/// The questions' benchmark under a protocol.
pub fn benchmark(set: &TruthfulQa, which: &[usize], protocol: Protocol) -> anyhow::Result<Benchmark> {
    let Some(benchmark) = Benchmark::truthfulqa(&set.questions, which, protocol) else {
        bail!(
            "{}: the binary setting is not defined in this file, which names no best incorrect answer; use TruthfulQA.csv \
             of the January 2025 revision (column \"Best Incorrect Answer\")",
            set.path.display()
        );
    };
    Ok(benchmark)
}

/// Says which questions contradict themselves.
pub fn warn_of_contradictions(set: &TruthfulQa, which: &[usize]) {
    for question in which.iter().map(|&i| &set.questions[i]) {
        if let Some(answer) = question.contradiction() {
            let (data, text) = (set.path.display(), &question.text);
            eprintln!("bidpo: warning: {data}: {text:?} lists the answer {answer:?} as true and as false");
        }
    }
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let protocol = Protocol::from(args.protocol);
    let set = TruthfulQa::load(&args.data)?;
    let selected = args.split.select(args.run.limit, set.questions.len(), &set.sha256)?;
    warn_of_contradictions(&set, &selected.items);
    let task = Task {
        name: "truthfulqa",
        benchmark: benchmark(&set, &selected.items, protocol)?,
        train: selected.train.as_ref().map(|t| benchmark(&set, t, protocol)).transpose()?,
        data: vec![DataFile { path: args.data, sha256: set.sha256.clone() }],
        selection: selected.facts,
    };
    let kind = PromptKind { protocol, form: QUESTION_FORM.into(), preset: default_preset(protocol) };
    measure(&args.run, &args.prompt, kind, task, protocol.writes().then_some(&args.write))
}

/// The preset where --prompt gives none. The reference's six pairs show how a question is continued; where options are shown
/// they would show another form.
pub fn default_preset(protocol: Protocol) -> &'static str {
    if protocol.shows_options() { "none" } else { "qa" }
}
