//! `bidpo data convert`: preference pairs of any form as plain JSON Lines.

use crate::args::data::{DataArgs, reading_json};
use crate::args::outputs;
use anyhow::Context as _;
use bidpo_core::data::PreferencePair;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `bidpo data convert`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Preference pairs in any form of docs/data.md, or a built-in set.
    #[arg(value_name = "FILE")]
    data: PathBuf,
    #[command(flatten)]
    read: DataArgs,
    /// Output file: one JSON object a line, with id, prompt (text, or a list of messages), chosen and rejected.
    #[arg(long, short = 'o', value_name = "FILE.jsonl")]
    out: PathBuf,
    /// Print the result as one JSON object.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let out = args.out.display();
    outputs::check(&args.out, outputs::Kind::Pairs, &[&args.data])?;
    let set = args.read.open(&args.data)?;
    let mut text = String::new();
    for PreferencePair { id, prompt, chosen, rejected, .. } in &set.pairs {
        text += &format!("{}\n", json!({ "id": id, "prompt": prompt, "chosen": chosen, "rejected": rejected }));
    }
    ggml_grad::files::write_atomically(&args.out, text.as_bytes()).with_context(|| format!("cannot write {out}"))?;
    if args.json {
        let reading = reading_json(&set.reading);
        println!(
            "{}",
            json!({ "file": out.to_string(), "pairs": set.len(), "sha256": set.sha256, "reading": reading })
        );
    } else {
        println!("{out}: {} pair{}", set.len(), crate::args::data::plural(set.len()));
    }
    Ok(ExitCode::SUCCESS)
}
