//! `bidpo eval text`.

use super::measure::{complete, print, say};
use super::progress::run_session;
use crate::args::eval::RunArgs;
use crate::args::template::{VariableArgs, say_notes};
use crate::terminal::interrupt::stop_flag;
use anyhow::{Context as _, bail, ensure};
use bidpo_core::data::{ChatTemplate, TemplateChoice, Think};
use bidpo_core::eval::analysis::analyse;
use bidpo_core::eval::conditions::{Baseline, Condition, other_conditions, unique_names, vector_conditions};
use bidpo_core::eval::items::Protocol;
use bidpo_core::eval::price::{neutral_facts, neutral_windows};
use bidpo_core::eval::results::{DataFacts, Manifest};
use bidpo_core::eval::runs::{TextRun, Windows, new_manifest};
use bidpo_core::train::{ANSWER, RetainSet};
use ggml_grad::files::{display_name, sha256_of_bytes};
use ggml_grad::llama::Model;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Options of `bidpo eval text`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A text file [default: the 24 built-in neutral passages].
    #[arg(long, short = 'd', value_name = "FILE")]
    data: Option<PathBuf>,
    /// Tokens in a window: the text is cut into such pieces, and each is predicted by itself [default: 512].
    #[arg(long, value_name = "N", requires = "data", value_parser = clap::value_parser!(u32).range(2..))]
    window: Option<u32>,
    /// Measure on the answers to prompts instead of running text: preference pairs (their chosen answers), or rows with a
    /// prompt (and a response; without one the unsteered model answers). Only the answers' tokens count.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data", "window"])]
    answers: Option<PathBuf>,
    /// Chat format of --answers: auto (the model's own), none, a known name, or a Jinja file [default: auto].
    #[arg(long, value_name = "T", requires = "answers")]
    template: Option<TemplateChoice>,
    #[command(flatten)]
    variables: VariableArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// Reads a text file.
fn read(path: &Path) -> anyhow::Result<(String, DataFacts)> {
    let bytes = ggml_grad::files::read_whole(path).with_context(|| format!("cannot read {}", path.display()))?;
    let sha256 = sha256_of_bytes(&bytes);
    let Ok(text) = String::from_utf8(bytes) else { bail!("{}: this is not UTF-8 text", path.display()) };
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned();
    Ok((text, DataFacts { file: display_name(path), sha256 }))
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let run = &args.run;
    run.check_out()?;
    ensure!(
        args.answers.is_some() || args.variables.set.is_empty(),
        "--template-set: running text has no chat format; give --answers"
    );
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
    let (place, text) = match (&args.data, &args.answers) {
        (Some(path), _) => {
            let window = args.window.unwrap_or(512) as usize;
            (path.display().to_string(), Text::of_file(path, &model, window, run.limit)?)
        }
        (None, Some(path)) => {
            let template =
                args.variables.open(&model, args.template.as_ref().unwrap_or(&TemplateChoice::Auto), Think::Auto)?;
            let text = Text::of_answers(path, &model, &template, n_threads, run.limit)?;
            say_notes(&template, 0);
            (path.display().to_string(), text)
        }
        (None, None) => ("the neutral passages".to_owned(), Text::neutral(&model, run.limit)?),
    };
    let steered = run.steering.steered(&model, None, n_threads)?;
    let wanted = run.wanted(steered.is_some(), &[Baseline::Unsteered, Baseline::Negated, Baseline::Random])?;
    let mut conditions = vector_conditions(steered.as_ref(), &wanted, model.n_embd(), run.seed, run.random as usize);
    let control = steered.as_ref().and_then(|s| s.control.as_ref());
    conditions.extend(other_conditions(&run.compare, control, &model, None, &mut say)?);
    unique_names(&conditions)?;
    let shard = run.shard.unwrap_or_default();
    let base = Manifest { shard, ..new_manifest(&model, n_threads, run.seed)? };
    let manifest = text.manifest(base, &conditions);
    let runner = TextRun { model: &model, windows: &text.windows, shard, n_threads };
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

/// A text to measure on.
pub struct Text {
    /// Its windows.
    pub windows: Windows,
    data: DataFacts,
    /// Tokens of a window; absent for passages.
    window: Option<usize>,
    /// Chat format of prompts with answers, and its hash.
    template: Option<(String, String)>,
    limit: Option<u32>,
}

impl Text {
    /// The first `limit` windows of a file.
    pub fn of_file(path: &Path, model: &Model, window: usize, limit: Option<u32>) -> anyhow::Result<Self> {
        let (content, data) = read(path)?;
        let windows = Windows::new(model, &content, window, limit.map_or(usize::MAX, |l| l as usize))
            .with_context(|| path.display().to_string())?;
        Ok(Self { windows, data, window: Some(window), template: None, limit })
    }

    /// The first `limit` neutral passages.
    pub fn neutral(model: &Model, limit: Option<u32>) -> anyhow::Result<Self> {
        let windows = neutral_windows(model)?.first(limit.map_or(usize::MAX, |l| l as usize));
        Ok(Self { windows, data: neutral_facts(), window: None, template: None, limit })
    }

    /// The first `limit` prompts of a file with their answers.
    fn of_answers(
        path: &Path,
        model: &Arc<Model>,
        template: &ChatTemplate,
        n_threads: u32,
        limit: Option<u32>,
    ) -> anyhow::Result<Self> {
        let mut set = RetainSet::open(path).with_context(|| format!("--answers {}", path.display()))?;
        set.items.truncate(limit.map_or(usize::MAX, |l| l as usize));
        if set.unanswered() > 0 {
            eprintln!("the unsteered model answers {} prompts, up to {ANSWER} tokens each ...", set.unanswered());
        }
        let interrupt = stop_flag("stopping")?;
        let encoded = set.encode(model, template, false, None, n_threads, &interrupt)?;
        let windows = Windows::of(set.windows(&encoded)).with_context(|| path.display().to_string())?;
        let data = DataFacts { file: set.name, sha256: set.sha256 };
        Ok(Self { windows, data, window: None, template: Some((template.described(), template.sha256())), limit })
    }

    /// What its windows are called.
    pub fn windows_word(&self) -> &'static str {
        if self.window.is_some() { "windows of text" } else { "neutral passages" }
    }

    /// Completes the manifest of a run on it.
    pub fn manifest(&self, base: Manifest, conditions: &[Condition]) -> Manifest {
        Manifest {
            benchmark: "text".into(),
            protocol: Protocol::Text.name().into(),
            data: vec![self.data.clone()],
            prompt: match &self.template {
                None => json!({ "preset": null, "window": self.window }),
                Some((template, sha256)) => {
                    json!({ "preset": "chat", "template": template, "template_sha256": sha256, "measured": "answers" })
                }
            },
            selection: json!({ "limit": self.limit }),
            items: self.windows.len(),
            conditions: conditions.iter().map(Condition::manifest).collect(),
            ..base
        }
    }
}
