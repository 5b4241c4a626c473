//! `bidpo eval prompts`.

use super::measure::{PromptKind, measure};
use crate::args::eval::{PromptArgs, RunArgs, question_form};
use crate::args::writing::WriteArgs;
use anyhow::bail;
use bidpo_core::data::Prompt;
use bidpo_core::eval::items::{Benchmark, Item, Protocol};
use bidpo_core::eval::task::{DataFile, Task};
use bidpo_core::extract::read_prompts;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `bidpo eval prompts`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The prompts: one a line (.txt), one JSON value a line (.jsonl), or a column prompt, question or text (.csv).
    #[arg(long, short = 'd', value_name = "FILE")]
    data: PathBuf,
    /// Format of a prompt without a chat template (--prompt none): {question} is replaced by it, \n by a new line [default:
    /// {question}].
    #[arg(long = "prompt-format", alias = "form", value_name = "TEXT")]
    form: Option<String>,
    #[command(flatten)]
    write: WriteArgs,
    #[command(flatten)]
    prompt: PromptArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// The preset where --prompt gives none.
const PRESET: &str = "chat";

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let preset = args.prompt.prompt.as_deref().unwrap_or(PRESET);
    let form = question_form(args.form.as_deref(), "{question}", preset)?;
    let prompts = read_prompts(&args.data)?;
    let limit = args.run.limit.map_or(usize::MAX, |n| n as usize);
    let item = |(index, prompt): (usize, Prompt)| match prompt {
        Prompt::Text(question) => Ok(Item { index, question, category: None, answers: Vec::new(), group: 0 }),
        Prompt::Messages(_) => bail!(
            "{}: prompt {} is a list of messages; here a prompt is one text, put by --prompt and --template",
            args.data.display(),
            index + 1
        ),
    };
    let items = prompts.into_iter().enumerate().take(limit).map(item).collect::<anyhow::Result<_>>()?;
    let task = Task {
        name: "prompts",
        benchmark: Benchmark::plain(items),
        train: None,
        choose: None,
        data: vec![DataFile::new(args.data)?],
        selection: json!({ "limit": args.run.limit }),
    };
    let kind = PromptKind { protocol: Protocol::Prompts, form, preset: PRESET, has_splits: false };
    measure(&args.run, &args.prompt, kind, task, Some(&args.write))
}
