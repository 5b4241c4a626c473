//! `bidpo eval truthfulqa`.

use super::measure::{PromptKind, measure};
use crate::args::eval::{PromptArgs, RunArgs, SplitArgs};
use crate::args::writing::WriteArgs;
use anyhow::{bail, ensure};
use bidpo_core::data::Part;
use bidpo_core::data::truthfulqa::TruthfulQa;
use bidpo_core::eval::items::{Benchmark, Protocol, add_categories, categories_beside, part_name};
use bidpo_core::eval::prompt::QUESTION_FORM;
use bidpo_core::eval::task::{Choosing, DataFile, Task};
use ggml_grad::files::display_name;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of `bidpo eval truthfulqa`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The official mc_task.json or TruthfulQA.csv.
    #[arg(long, short = 'd', value_name = "FILE")]
    data: PathBuf,
    #[command(flatten)]
    categories: CategoriesArgs,
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

/// Where the questions' categories come from.
#[derive(Debug, clap::Args)]
pub struct CategoriesArgs {
    /// TruthfulQA.csv, from which the questions of mc_task.json get their categories, by which uncertainty is clustered; or
    /// none [default: TruthfulQA.csv beside mc_task.json, where it is there].
    #[arg(long, value_name = "FILE|none")]
    pub categories: Option<PathBuf>,
}

impl CategoriesArgs {
    /// Reads the questions, with categories. Also the entry of the manifest, where they are of another file.
    pub fn load(&self, data: &Path) -> anyhow::Result<(TruthfulQa, Option<Value>)> {
        let mut set = TruthfulQa::load(data)?;
        let own = set.questions.iter().any(|q| q.category.is_some());
        let file = match &self.categories {
            Some(none) if none.as_os_str() == "none" => return Ok((set, None)),
            Some(file) if own => {
                bail!("--categories {}: {} names the categories itself; leave it out", file.display(), data.display())
            }
            Some(file) => file.clone(),
            None if own => return Ok((set, None)),
            None => match categories_beside(data) {
                Some(file) => file,
                None => return Ok((set, None)),
            },
        };
        let from = TruthfulQa::load(&file)?;
        let found = add_categories(&mut set.questions, &from.questions);
        let (name, n) = (file.display(), set.questions.len());
        ensure!(
            found > 0 || self.categories.is_none(),
            "--categories {name}: none of the {n} questions of {} has a category there",
            data.display()
        );
        if found == 0 {
            return Ok((set, None));
        }
        eprintln!("{name}: categories of {found} of {n} questions.");
        let facts = json!({ "file": display_name(&file), "sha256": from.sha256, "questions": found });
        Ok((set, Some(facts)))
    }
}

/// A protocol of TruthfulQA.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum ProtocolName {
    /// MC1, MC2 and MC3 in one pass.
    Mc,
    /// The best answer above every false one.
    Mc1,
    /// The fraction of the true answers in the probability of all.
    Mc2,
    /// The fraction of the true answers that are above every false one.
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
    let (set, categories) = args.categories.load(&args.data)?;
    let mut selected = args.split.select(args.run.limit, set.questions.len(), &set.sha256)?;
    if let Some(categories) = categories {
        selected.facts["categories"] = categories;
    }
    warn_of_contradictions(&set, &selected.items);
    let task = Task {
        name: "truthfulqa",
        benchmark: benchmark(&set, &selected.items, protocol)?,
        train: selected.train.as_ref().map(|t| benchmark(&set, t, protocol)).transpose()?,
        choose: selected.choose.map(|(part, which)| choosing(&set, part, &which, protocol)).transpose()?,
        data: vec![DataFile { path: args.data, sha256: set.sha256.clone() }],
        selection: selected.facts,
    };
    if let (false, Some(flag)) = (protocol.writes(), args.write.given()) {
        bail!("{flag}: under --protocol {protocol} no answer is written; give --protocol generate");
    }
    let form = QUESTION_FORM.into();
    let kind = PromptKind { protocol, form, preset: default_preset(protocol), has_splits: true };
    measure(&args.run, &args.prompt, kind, task, protocol.writes().then_some(&args.write))
}

/// Items to choose a system prompt by. What is written is judged by no rule that could choose: MC1 does.
fn choosing(set: &TruthfulQa, part: Part, which: &[usize], protocol: Protocol) -> anyhow::Result<Choosing> {
    let protocol = if protocol.writes() { Protocol::Mc1 } else { protocol };
    let selection = json!({ "part": part_name(part) });
    Ok(Choosing { part: part_name(part), benchmark: benchmark(set, which, protocol)?, protocol, selection })
}

/// The preset where --prompt gives none. The reference's six pairs show how a question is continued; where options are shown
/// they would show another form.
pub fn default_preset(protocol: Protocol) -> &'static str {
    if protocol.shows_options() { "none" } else { "qa" }
}
