//! `bidpo data inspect`: what is to be known about preference pairs before training on them.

use super::Items;
use crate::args::data::{DataArgs, plural, reading_json};
use bidpo_core::chat::printable;
use bidpo_core::data::inspect::{Inspection, PairText, inspect};
use bidpo_core::data::permutation;
use bidpo_core::data::similar::{NEAR, nearest};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Preference pairs (any form of docs/data.md, or a built-in set), or TruthfulQA.
    #[arg(value_name = "FILE")]
    data: PathBuf,
    #[command(flatten)]
    read: DataArgs,
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

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Items { pairs, sha256, reading } = Items::load(&args.data, &args.read)?;
    let found = inspect(&pairs);
    let prompts: Vec<String> = pairs.iter().map(|p| p.prompt.clone()).collect();
    let mut overlaps = Vec::new();
    for path in &args.against {
        let theirs = Items::load(path, &DataArgs::default())?;
        let theirs: Vec<String> = theirs.pairs.into_iter().map(|t| t.prompt).collect();
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
                "pairs": found.n, "sha256": sha256, "repeated": found.repeated, "near_prompts": found.near.listed,
                "near_prompts_count": found.near.listed.len(), "near_prompts_more": found.near.more,
                "contradictions": found.contradictions, "empty_prompts": found.empty_prompts, "balance": balance,
                "surface_accuracy": found.surface, "overlap": overlaps, "reading": reading.as_ref().map(reading_json),
            })
        );
        return Ok(ExitCode::SUCCESS);
    }
    let n = found.n;
    println!("{}: {n} pair{}, SHA-256 {}", args.data.display(), plural(n), sha256.get(..16).unwrap_or(&sha256));
    println!("\nSamples (seed {}):", args.seed);
    for i in permutation(pairs.len(), args.seed).into_iter().take(args.samples) {
        let p = &pairs[i];
        // Further lines stand below the first.
        let shown = |text: &String| printable(text).trim_end().replace('\n', "\n              ");
        let [prompt, chosen, rejected] = [&p.prompt, &p.chosen, &p.rejected].map(shown);
        println!("  {}\n    prompt    {prompt}\n    chosen    {chosen}\n    rejected  {rejected}", p.place);
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
            println!("  {s:.2}  {}  |  {}", printable(&prompts[*i]), printable(&theirs[*j]));
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
    println!("\nrepeated pairs         {}", found.repeated.len());
    let more = if found.near.more { "more than " } else { "" };
    println!("near-duplicate prompts {more}{}", found.near.listed.len());
    for (i, j, s) in found.near.listed.iter().take(5) {
        println!("  {s:.2}  {}  |  {}", printable(&pairs[*i].prompt), printable(&pairs[*j].prompt));
    }
    println!("contradictions         {}", found.contradictions.len());
    for (i, j) in found.contradictions.iter().take(5) {
        println!("  {}  |  {}", pairs[*i].place, pairs[*j].place);
    }
    println!("empty prompts          {}", found.empty_prompts);
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
