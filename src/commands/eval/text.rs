//! `bidpo eval text`.

use super::baselines::{self, Baseline};
use super::common::{RunArgs, file_name};
use super::session::Session;
use anyhow::{Context as _, bail};
use bidpo_core::eval::items::Protocol;
use bidpo_core::eval::results::DataFacts;
use bidpo_core::eval::runs::Windows;
use serde_json::json;
use std::path::PathBuf;
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
pub fn read(path: &std::path::Path) -> anyhow::Result<(String, DataFacts)> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let sha256 = ggml_grad::files::sha256_of_bytes(&bytes);
    let Ok(text) = String::from_utf8(bytes) else { bail!("{}: this is not UTF-8 text", path.display()) };
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned();
    Ok((text, DataFacts { file: file_name(path), sha256 }))
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let run = &args.run;
    let (text, data) = read(&args.data)?;
    run.check_out()?;
    if let Some(b) = run.baselines.iter().flatten().find(|b| b.changes_the_prompt()) {
        bail!("--baselines {}: a text has no prompt that it could change", b.name());
    }
    let model = run.model.load()?;
    let limit = run.limit.map_or(usize::MAX, |l| l as usize);
    let windows =
        Windows::new(&model, &text, args.window as usize, limit).with_context(|| args.data.display().to_string())?;
    let steered = baselines::steered(&run.steering, &model, run.model.threads())?;
    let wanted = run.wanted(steered.is_some(), &[Baseline::Unsteered, Baseline::Flipped, Baseline::Random]);
    let conditions = baselines::of_vector(steered.as_ref(), &wanted, &model, run.seed);
    let mut session = Session::open(run, &model, &conditions, |m| {
        m.benchmark = "text".into();
        m.protocol = Protocol::Text.name().into();
        m.data = vec![data];
        m.prompt = json!({ "preset": null, "window": args.window });
        m.selection = json!({ "limit": run.limit });
        m.items = windows.len();
    })?;
    for condition in &conditions {
        let done = session.done(&condition.name);
        let threads = run.model.threads();
        let going = windows
            .run(&model, condition, threads, run.shard.unwrap_or_default(), &done, &mut |r| session.push(r))
            .with_context(|| args.data.display().to_string())?;
        if !going {
            break;
        }
    }
    session.finish(run)
}
