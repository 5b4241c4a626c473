//! `bidpo eval text`.

use super::measure::{complete, print, say};
use super::progress::run_session;
use crate::args::eval::RunArgs;
use anyhow::{Context as _, bail};
use bidpo_core::eval::analysis::analyse;
use bidpo_core::eval::conditions::{Baseline, Condition, other_conditions, unique_names, vector_conditions};
use bidpo_core::eval::items::Protocol;
use bidpo_core::eval::results::{DataFacts, Manifest};
use bidpo_core::eval::runs::{TextRun, Windows, new_manifest};
use ggml_grad::files::{display_name, sha256_of_bytes};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of `bidpo eval text`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A text file.
    #[arg(long, short = 'd', value_name = "FILE")]
    data: PathBuf,
    /// Tokens in a window: the text is cut into such pieces, and each is predicted by itself.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..))]
    window: u32,
    #[command(flatten)]
    run: RunArgs,
}

/// Reads a text file.
pub fn read(path: &Path) -> anyhow::Result<(String, DataFacts)> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let sha256 = sha256_of_bytes(&bytes);
    let Ok(text) = String::from_utf8(bytes) else { bail!("{}: this is not UTF-8 text", path.display()) };
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned();
    Ok((text, DataFacts { file: display_name(path), sha256 }))
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let run = &args.run;
    let (text, data) = read(&args.data)?;
    run.check_out()?;
    if let Some(name) = run.refused_baseline(Baseline::changes_the_prompt) {
        bail!("--baselines {name}: a text has no prompt that it could change");
    }
    if let Some(name) = run.refused_baseline(Baseline::needs_training_items) {
        bail!(
            "--baselines {name}: a text has no training items; measure a vector of `bidpo extract` by --compare NAME=FILE"
        );
    }
    let model = run.model.load()?;
    let n_threads = run.model.threads();
    let place = args.data.display().to_string();
    let limit = run.limit.map_or(usize::MAX, |l| l as usize);
    let windows = Windows::new(&model, &text, args.window as usize, limit).with_context(|| place.clone())?;
    let steered = run.steering.steered(&model, n_threads)?;
    let wanted = run.wanted(steered.is_some(), &[Baseline::Unsteered, Baseline::Negated, Baseline::Random])?;
    let mut conditions = vector_conditions(steered.as_ref(), &wanted, model.n_embd(), run.seed, run.random as usize);
    let control = steered.as_ref().and_then(|s| s.control.as_ref());
    conditions.extend(other_conditions(&run.compare, control, &model, &mut say)?);
    unique_names(&conditions)?;
    let shard = run.shard.unwrap_or_default();
    let base = Manifest { shard, ..new_manifest(&model, n_threads, run.seed)? };
    let manifest = manifest(base, data, args.window as usize, run.limit, &windows, &conditions);
    let runner = TextRun { model: &model, windows: &windows, shard, n_threads };
    let out = run.out_file();
    let ended = run_session(&place, manifest, out.as_deref(), &conditions, &runner)?;
    Ok(match complete(ended, out.as_deref(), run.json) {
        Ok(done) => {
            print(&analyse(&done)?, None, run.json);
            ExitCode::SUCCESS
        }
        Err(code) => code,
    })
}

/// Completes the manifest of a run on windows of text.
pub fn manifest(
    base: Manifest,
    data: DataFacts,
    window: usize,
    limit: Option<u32>,
    windows: &Windows,
    conditions: &[Condition],
) -> Manifest {
    Manifest {
        benchmark: "text".into(),
        protocol: Protocol::Text.name().into(),
        data: vec![data],
        prompt: json!({ "preset": null, "window": window }),
        selection: json!({ "limit": limit }),
        items: windows.len(),
        conditions: conditions.iter().map(Condition::manifest).collect(),
        ..base
    }
}
