//! `bidpo models list`.

use crate::args::names;
use crate::terminal::streams;
use bidpo_core::text::Table;
use bidpo_fetch::models::KNOWN;
use ggml_grad::memory::text;
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;

#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let files = names::model_files();
    let is_named = |path: &Path, file: &str| path.file_name().is_some_and(|name| name.eq_ignore_ascii_case(file));
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |meta| meta.len());
    let here = |file: &str| files.iter().find(|path| is_named(path, file));
    let others = || files.iter().filter(|path| !KNOWN.iter().any(|known| is_named(path, known.file)));
    if args.json {
        let known: Vec<_> = KNOWN
            .iter()
            .map(|k| {
                json!({
                    "name": k.name, "file": k.file, "what": k.what, "licence": k.licence, "bytes": k.bytes,
                    "sha256": k.sha256(), "path": here(k.file).map(|path| path.display().to_string()),
                })
            })
            .collect();
        let folder = names::models_folder().map(|folder| folder.display().to_string());
        let others: Vec<_> =
            others().map(|path| json!({ "path": path.display().to_string(), "bytes": size(path) })).collect();
        streams::out_json(json!({ "folder": folder, "known": known, "others": others }));
        return Ok(ExitCode::SUCCESS);
    }
    let rows = KNOWN.iter().map(|k| {
        let place =
            here(k.file).map_or_else(|| format!("bidpo models fetch {}", k.name), |path| path.display().to_string());
        vec![k.name.to_owned(), k.what.to_owned(), text(k.bytes), k.licence.to_owned(), place]
    });
    print!("{}", Table::new(["name", "model", "size", "licence", "here, or how it gets here"]).with(rows).markdown());
    let others: Vec<Vec<String>> = others().map(|path| vec![path.display().to_string(), text(size(path))]).collect();
    if !others.is_empty() {
        print!("\n{}", Table::new(["further models here", "size"]).with(others).markdown());
    }
    println!("\nAny other GGUF file: bidpo models fetch https://... --sha256 HASH, or --model FILE.gguf.");
    Ok(ExitCode::SUCCESS)
}
