//! `bidpo models verify`.

use super::there;
use crate::args::names;
use crate::terminal::streams;
use anyhow::{Context as _, ensure};
use bidpo_fetch::{HashText, models, recorded};
use ggml_grad::files::sha256_of_file;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names of models that are here, or files [default: all that are here and whose SHA-256 bidpo knows].
    #[arg(value_name = "NAME|FILE")]
    models: Vec<PathBuf>,
    /// The SHA-256 that the one model named must have.
    #[arg(long, value_name = "HEX")]
    sha256: Option<HashText>,
    /// Print one JSON object for each model.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    ensure!(args.sha256.is_none() || args.models.len() == 1, "--sha256 is of one model: name one");
    let mut paths = args.models.iter().map(|name| there(name)).collect::<anyhow::Result<Vec<_>>>()?;
    if paths.is_empty() {
        paths = names::model_files().into_iter().filter(|path| expected(path).is_some()).collect();
        ensure!(!paths.is_empty(), "no model is here whose SHA-256 bidpo knows; name a file, with --sha256");
    }
    let mut all_right = true;
    for path in &paths {
        let expected = args.sha256.as_ref().map(|s| s.as_str().to_owned()).or_else(|| expected(path));
        let found = sha256_of_file(path).with_context(|| format!("cannot read {}", path.display()))?;
        let right = expected.as_ref() == Some(&found);
        all_right &= right;
        if args.json {
            streams::out_json(
                json!({ "path": path.display().to_string(), "sha256": found, "expected": expected, "right": right }),
            );
            continue;
        }
        match expected {
            Some(_) if right => println!("ok      {}", path.display()),
            Some(expected) => {
                println!("WRONG   {}: the SHA-256 is {found}, and {expected} is expected", path.display())
            }
            None => println!("unknown {}: the SHA-256 is {found}; give the expected one with --sha256", path.display()),
        }
    }
    Ok(if all_right { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The SHA-256 that a file must have: of the table by its name, or recorded when it was fetched.
fn expected(path: &Path) -> Option<String> {
    let known = path.file_name().and_then(|name| name.to_str()).and_then(models::known);
    known.map(|k| k.sha256().to_owned()).or_else(|| recorded(path).map(|hash| hash.as_str().to_owned()))
}
