//! `bidpo models fetch`.

use super::folder;
use crate::args::outputs::is_forced;
use crate::terminal::streams;
use crate::terminal::transfer::Transfer;
use anyhow::{Context as _, bail, ensure};
use bidpo_fetch::models::KnownModel;
use bidpo_fetch::{Download, Fetched, HashText, Outcome, Patience, file_name, shown, write_record};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names of models that `bidpo models` lists, or the address of a GGUF file.
    #[arg(value_name = "NAME|URL", required = true)]
    models: Vec<String>,
    /// Take a model that bidpo knows from this address instead. It is checked by the same SHA-256.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The SHA-256 of the file at an address, as its page tells it.
    #[arg(long, value_name = "HEX")]
    sha256: Option<HashText>,
    /// Take the file at an address without a SHA-256 to check it by; what it has is printed.
    #[arg(long, conflicts_with = "sha256")]
    unchecked: bool,
    /// Name of the file that an address gives [default: the address's last part].
    #[arg(long, short = 'o', value_name = "FILE.gguf")]
    out: Option<PathBuf>,
    /// Print one JSON object for each model.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let of_one = args.url.is_some() || args.sha256.is_some() || args.unchecked || args.out.is_some();
    ensure!(!of_one || args.models.len() == 1, "--url, --sha256, --unchecked and -o are of one model: name one");
    for model in &args.models {
        let (path, fetched) = if model.contains("://") { from_address(args, model)? } else { by_name(args, model)? };
        if args.json {
            let written = fetched.outcome == Outcome::Written;
            streams::out_json(
                json!({ "path": path.display().to_string(), "sha256": fetched.sha256, "fetched": written }),
            );
        } else {
            println!("{}", path.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn by_name(args: &Args, name: &str) -> anyhow::Result<(PathBuf, Fetched)> {
    let Some(model) = bidpo_fetch::models::known(name) else {
        bail!(
            "{name}: bidpo does not know a model of this name; `bidpo models` lists those it knows, and an address is fetched with --sha256"
        );
    };
    ensure!(
        args.sha256.is_none() && !args.unchecked && args.out.is_none(),
        "{name}: bidpo knows the name and the SHA-256 of this model: leave --sha256, --unchecked and -o away"
    );
    known(model, args.url.as_deref())
}

/// Fetches a model that bidpo knows, and tells its licence.
pub fn known(model: &KnownModel, url: Option<&str>) -> anyhow::Result<(PathBuf, Fetched)> {
    let folder = made(&folder()?)?;
    let mut transfer = Transfer::new(model.name);
    let on = &mut |event: bidpo_fetch::Event<'_>| transfer.show(event);
    let fetched = match url {
        Some(url) => model.fetch_from(url, &folder, Patience::default(), on),
        None => model.fetch(&folder, on),
    }
    .with_context(|| format!("fetching {}", model.name))?;
    drop(transfer);
    say(&fetched, &format!("licence {}; its SHA-256 is right", model.licence));
    Ok((folder.join(model.file), fetched))
}

fn from_address(args: &Args, url: &str) -> anyhow::Result<(PathBuf, Fetched)> {
    ensure!(args.url.is_none(), "--url is for a model that bidpo knows by name; {} is an address itself", shown(url));
    ensure!(
        args.sha256.is_some() || args.unchecked,
        "{}: give --sha256 HEX, which the page of the model tells, so that the file can be checked; or --unchecked",
        shown(url)
    );
    let to = match &args.out {
        Some(out) if out.components().count() > 1 => out.clone(),
        Some(out) => made(&folder()?)?.join(out),
        None => made(&folder()?)?.join(file_name(url)?),
    };
    ensure!(
        to.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")),
        "{}: the name of a model ends in .gguf; give one with -o",
        to.display()
    );
    let mut transfer = Transfer::new(to.file_name().unwrap_or_default().to_string_lossy());
    let download = Download {
        url,
        to: &to,
        sha256: args.sha256.as_ref(),
        bytes: None,
        begins: Some(("GGUF", "model in GGUF")),
        replace: is_forced(),
        patience: Patience::default(),
    };
    let fetched = download.run(&mut |event| transfer.show(event))?;
    drop(transfer);
    write_record(&to, &fetched.sha256)?;
    let checked = if args.unchecked { "not checked; its SHA-256 is " } else { "SHA-256 as given: " };
    say(&fetched, &format!("{checked}{}", fetched.sha256));
    Ok((to, fetched))
}

fn made(folder: &Path) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(folder).with_context(|| format!("making the folder {}", folder.display()))?;
    Ok(folder.to_owned())
}

fn say(fetched: &Fetched, rest: &str) {
    match fetched.outcome {
        Outcome::WasThere => eprintln!("it is here already; {rest}"),
        _ => eprintln!("fetched; {rest}"),
    }
}
