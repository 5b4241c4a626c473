//! `bidpo report`: results computed again from results files.

use crate::args::outputs;
use crate::terminal::streams;
use anyhow::{Context as _, bail};
use bidpo_core::eval::analysis::analyse;
use bidpo_core::eval::report;
use bidpo_core::eval::results::merge;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of `bidpo report`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Results files of `bidpo eval --out` and `bidpo sweep`, or folders with such files. Shards of one run are put together.
    #[arg(required = true, value_name = "FILE.jsonl|FOLDER")]
    files: Vec<PathBuf>,
    /// Write one self-contained HTML page instead of printing the values: words, tables, plots, the items that changed, the
    /// exact protocol.
    #[arg(long, value_name = "FILE.html", conflicts_with = "json")]
    html: Option<PathBuf>,
    /// Leave the items that changed out of the page: it then holds no text of the data.
    #[arg(long, requires = "html")]
    no_items: bool,
    /// Print the values as one JSON list, an object for each run.
    #[arg(long)]
    json: bool,
}

/// The results files that are meant: a folder stands for the .jsonl files in it, by name.
fn expand(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path).with_context(|| format!("cannot read the folder {}", path.display()))?;
        let mut inside = Vec::new();
        for entry in entries {
            let file = entry.with_context(|| format!("cannot read the folder {}", path.display()))?.path();
            if file.extension().is_some_and(|e| e == "jsonl") {
                inside.push(file);
            }
        }
        if inside.is_empty() {
            bail!("{}: there is no .jsonl file in this folder", path.display());
        }
        inside.sort();
        files.extend(inside);
    }
    Ok(files)
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let files = expand(&args.files)?;
    if let Some(page) = &args.html {
        let inputs: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
        outputs::check(page, outputs::Kind::Page, &inputs)?;
    }
    let runs = merge(&files)?;
    let mut analyses = runs.iter().map(analyse).collect::<Result<Vec<_>, _>>()?;
    if args.no_items {
        analyses.iter_mut().for_each(|a| a.changed.clear());
    }
    if let Some(path) = &args.html {
        ggml_grad::files::write_atomically(path, report::html(&analyses).as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
        // The summary that the page begins with.
        analyses.iter().flat_map(|a| a.summary()).for_each(|sentence| println!("{sentence}"));
        eprintln!("bidpo: the report is {}", path.display());
    } else if args.json {
        streams::out_json(serde_json::Value::from(analyses.iter().map(report::json).collect::<Vec<_>>()));
    } else {
        let texts: Vec<String> = analyses.iter().map(report::markdown).collect();
        print!("{}", texts.join("\n"));
    }
    Ok(ExitCode::SUCCESS)
}
