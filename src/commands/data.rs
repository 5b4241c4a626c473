//! `bidpo data`: inspect data files, split them, write pairs.

use anyhow::{Context as _, bail, ensure};
use bidpo_core::data::inspect::{Inspection, PairText, inspect};
use bidpo_core::data::similar::{NEAR, nearest};
use bidpo_core::data::truthfulqa::TruthfulQa;
use bidpo_core::data::{Part, PreferenceSet, SplitBy, SplitFile, permutation};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::args::eval::PartName;

/// Options of `bidpo data`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Report samples, duplicates, balance, contradictions, dataset artifacts and overlap with evaluation sets.
    Inspect(InspectArgs),
    /// Split a file into training, validation and test items; near-duplicates stay in one part.
    Split(SplitArgs),
    /// Write part of TruthfulQA as preference pairs: best answer against best incorrect answer.
    Pairs(PairsArgs),
}

#[derive(Debug, clap::Args)]
struct InspectArgs {
    /// Preference pairs (.jsonl, .json, .csv, or a built-in set), or TruthfulQA.csv.
    #[arg(value_name = "FILE")]
    data: PathBuf,
    /// Evaluation sets to check the prompts against for overlap: mc_task.json, TruthfulQA.csv, or pairs.
    #[arg(long, value_name = "FILE")]
    against: Vec<PathBuf>,
    /// Number of sample pairs to print.
    #[arg(long, value_name = "N", default_value_t = 5)]
    samples: usize,
    /// Seed for choosing the samples.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print the result as one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct SplitArgs {
    /// mc_task.json, TruthfulQA.csv, or preference pairs.
    #[arg(value_name = "FILE")]
    data: PathBuf,
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

#[derive(Debug, clap::Args)]
struct PairsArgs {
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
    match args.action {
        Action::Inspect(args) => run_inspect(args),
        Action::Split(args) => run_split(args),
        Action::Pairs(args) => run_pairs(args),
    }
}

/// A file as prompt, preferred and other answer; TruthfulQA by its columns, anything else as preference pairs.
fn triples(path: &Path) -> anyhow::Result<(Vec<PairText>, String)> {
    if let Some(set) = truthfulqa(path)? {
        let triple = |(i, q): (usize, &bidpo_core::data::truthfulqa::Question)| PairText {
            place: format!("{}: question {}", path.display(), i + 1),
            ..PairText::from(q)
        };
        return Ok((set.questions.iter().enumerate().map(triple).collect(), set.sha256));
    }
    let set = PreferenceSet::open(path)?;
    Ok((set.pairs.iter().map(PairText::from).collect(), set.sha256))
}

/// TruthfulQA, where the file begins like one of its forms.
fn truthfulqa(path: &Path) -> anyhow::Result<Option<TruthfulQa>> {
    let Ok(bytes) = std::fs::read(path) else { return Ok(None) };
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(4096)]).into_owned();
    let is_csv = head.lines().next().is_some_and(|l| l.contains("Correct Answers") && l.contains("Question"));
    if is_csv || head.contains("\"mc1_targets\"") { Ok(Some(TruthfulQa::load(path)?)) } else { Ok(None) }
}

fn run_inspect(args: InspectArgs) -> anyhow::Result<ExitCode> {
    let (pairs, sha256) = triples(&args.data)?;
    let found = inspect(&pairs);
    let prompts: Vec<String> = pairs.iter().map(|p| p.prompt.clone()).collect();
    let mut overlaps = Vec::new();
    for path in &args.against {
        let (theirs, _) = triples(path)?;
        let theirs: Vec<String> = theirs.into_iter().map(|t| t.prompt).collect();
        let near = nearest(&prompts, &theirs, NEAR);
        overlaps.push((path, theirs, near));
    }
    if args.json {
        let balance: Vec<_> = found
            .balance
            .iter()
            .map(|b| json!({ "what": b.what, "chosen": b.chosen, "rejected": b.rejected, "z": b.z }))
            .collect();
        let overlaps: Vec<_> = overlaps
            .iter()
            .map(|(path, theirs, near)| {
                let one = |(i, j, s): &(usize, usize, f64)| json!({ "pair": i, "prompt": prompts[*i], "theirs": theirs[*j], "similarity": s });
                json!({ "file": path.display().to_string(), "near": near.iter().map(one).collect::<Vec<_>>() })
            })
            .collect();
        println!(
            "{}",
            json!({
                "pairs": found.n, "sha256": sha256, "repeated": found.repeated, "near_prompts": found.near.listed, "near_prompts_count": found.near.count,
                "contradictions": found.contradictions, "empty_prompts": found.empty_prompts, "balance": balance,
                "surface_accuracy": found.surface, "overlap": overlaps,
            })
        );
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}: {} pairs, SHA-256 {}", args.data.display(), found.n, sha256.get(..16).unwrap_or(&sha256));
    println!("\nSamples (seed {}):", args.seed);
    for i in permutation(pairs.len(), args.seed).into_iter().take(args.samples) {
        let p = &pairs[i];
        println!("  {}\n    prompt    {}\n    chosen    {}\n    rejected  {}", p.place, p.prompt, p.chosen, p.rejected);
    }
    print_findings(&found, &pairs);
    for (path, theirs, near) in &overlaps {
        println!(
            "\nOverlap with {}: {} of {} prompts have a near-duplicate there",
            path.display(),
            near.len(),
            found.n
        );
        for (i, j, s) in near.iter().take(5) {
            println!("  {s:.2}  {}  |  {}", prompts[*i], theirs[*j]);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print_findings(found: &Inspection, pairs: &[PairText]) {
    println!("\n{:<28}{:>10}{:>10}{:>8}", "", "chosen", "rejected", "z");
    for b in &found.balance {
        let mark = if b.z.abs() > 3.0 { "  <- not chance" } else { "" };
        println!("{:<28}{:>10.2}{:>10.2}{:>8.1}{mark}", b.what, b.chosen, b.rejected, b.z);
    }
    println!("\nrepeated pairs        {}", found.repeated.len());
    println!("near-duplicate prompts {}", found.near.count);
    for (i, j, s) in found.near.listed.iter().take(5) {
        println!("  {s:.2}  {}  |  {}", pairs[*i].prompt, pairs[*j].prompt);
    }
    println!("contradictions        {}", found.contradictions.len());
    for (i, j) in found.contradictions.iter().take(5) {
        println!("  {}  |  {}", pairs[*i].place, pairs[*j].place);
    }
    println!("empty prompts         {}", found.empty_prompts);
    if let Some(surface) = found.surface {
        println!(
            "\nA classifier that never sees the prompt is right on {:.1} % of held-out pairs (50 % is chance).",
            100.0 * surface
        );
    }
    let warnings = found.warnings();
    if !warnings.is_empty() {
        println!();
    }
    for warning in warnings {
        println!("Warning: {warning}.");
    }
}

fn run_split(args: SplitArgs) -> anyhow::Result<ExitCode> {
    ggml_grad::files::check_writable(&args.out).with_context(|| format!("cannot write {}", args.out.display()))?;
    let (items, sha256) = triples(&args.data)?;
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

fn run_pairs(args: PairsArgs) -> anyhow::Result<ExitCode> {
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
