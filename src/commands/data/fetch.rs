//! `bidpo data fetch`: a benchmark's files from their origin.

use crate::args::names::cache_folder;
use crate::args::outputs::is_forced;
use crate::terminal::streams;
use crate::terminal::transfer::Transfer;
use anyhow::{Context as _, ensure};
use bidpo_core::text::Table;
use bidpo_fetch::benchmarks::{KNOWN, Options, known};
use bidpo_fetch::{HashText, Outcome};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The benchmark: truthfulqa, mmlu, bipo.
    #[arg(value_name = "NAME", required_unless_present = "list")]
    name: Option<String>,
    /// List the benchmarks with their licences, addresses and SHA-256.
    #[arg(long, conflicts_with = "name")]
    list: bool,
    /// Only the file of this name.
    #[arg(long, value_name = "FILE")]
    only: Option<String>,
    /// The SHA-256 of that file, where bidpo knows none or you want another version.
    #[arg(long, value_name = "HEX", requires = "only")]
    sha256: Option<HashText>,
    /// Take the files from this address (URL/FILE) instead of their origin. They are checked in the same way.
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// Folder of the files [default: ~/.cache/bidpo/data/NAME].
    #[arg(long, short = 'o', value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.list {
        return list(args);
    }
    let name = args.name.as_deref().unwrap_or_default();
    let names = || KNOWN.iter().map(|b| b.name).collect::<Vec<_>>().join(", ");
    let benchmark = known(name).with_context(|| format!("{name}: bidpo knows where to get {}", names()))?;
    let folder = match &args.out {
        Some(out) => out.clone(),
        None => cache_folder()
            .context("neither XDG_CACHE_HOME nor HOME says where data may lie: give a folder with -o")?
            .join("data")
            .join(benchmark.name),
    };
    std::fs::create_dir_all(&folder).with_context(|| format!("making the folder {}", folder.display()))?;
    let files: Vec<_> =
        benchmark.files.iter().filter(|f| args.only.as_deref().is_none_or(|only| only == f.name)).collect();
    let all = || benchmark.files.iter().map(|f| f.name).collect::<Vec<_>>().join(", ");
    ensure!(
        !files.is_empty(),
        "--only {}: the files of {name} are {}",
        args.only.as_deref().unwrap_or_default(),
        all()
    );
    eprintln!("{}\nlicence {}", benchmark.what, benchmark.licence);
    let options = Options {
        mirror: args.mirror.as_deref(),
        sha256: args.sha256.as_ref(),
        replace: is_forced(),
        ..Options::default()
    };
    let mut done = Vec::new();
    for file in files {
        let mut transfer = Transfer::new(file.name);
        let fetched = file.fetch(&folder, &options, &mut |event| transfer.show(event)).with_context(|| {
            let hint = if file.sha256.is_some() && args.mirror.is_none() {
                " (its authors may have revised it: --only FILE --sha256 HEX takes another version)"
            } else {
                ""
            };
            format!("fetching {} from {}{hint}", file.name, bidpo_fetch::shown(&options.url(file)))
        })?;
        drop(transfer);
        let how = if fetched.outcome == Outcome::WasThere { "is here already" } else { "fetched" };
        let pinned = file.sha256.is_some() || args.sha256.is_some();
        let checked = if pinned { "checked by its SHA-256" } else { "not pinned: its authors revise it in place" };
        eprintln!("{} {how}; {checked}: {}", file.name, fetched.sha256);
        done.push(json!({
            "file": file.name, "url": file.url, "sha256": fetched.sha256, "pinned": pinned,
            "fetched": fetched.outcome == Outcome::Written,
        }));
    }
    eprintln!("use: {}", benchmark.used_by.replace("DIR", &folder.display().to_string()));
    if args.json {
        let report = json!({ "name": benchmark.name, "licence": benchmark.licence, "folder": folder.display().to_string(), "files": done });
        streams::out_json(report);
    } else {
        println!("{}", folder.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn list(args: &Args) -> anyhow::Result<ExitCode> {
    if args.json {
        let file = |f: &bidpo_fetch::benchmarks::KnownFile| json!({ "file": f.name, "url": f.url, "sha256": f.sha256 });
        let one = |b: &bidpo_fetch::benchmarks::Benchmark| {
            let files: Vec<_> = b.files.iter().map(file).collect();
            json!({ "name": b.name, "what": b.what, "licence": b.licence, "files": files })
        };
        streams::out_json(json!(KNOWN.iter().map(one).collect::<Vec<_>>()));
        return Ok(ExitCode::SUCCESS);
    }
    for benchmark in &KNOWN {
        println!("{}: {}; licence {}", benchmark.name, benchmark.what, benchmark.licence);
        let rows = benchmark.files.iter().map(|f| {
            vec![f.name.to_owned(), f.url.to_owned(), f.sha256.unwrap_or("not pinned: revised in place").to_owned()]
        });
        println!("\n{}", Table::new(["file", "address", "SHA-256"]).with(rows).markdown());
    }
    Ok(ExitCode::SUCCESS)
}
