//! `bidpo eval prompts`.

use super::common::{Case, PromptArgs, RunArgs, measure};
use super::generate::WriteArgs;
use anyhow::{Context as _, bail};
use bidpo_core::data::Prompt;
use bidpo_core::eval::items::Protocol;
use bidpo_core::eval::items::{Benchmark, Item};
use bidpo_core::extract::read_prompts;
use ggml_grad::files::sha256_of_file;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `bidpo eval prompts`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The prompts: one a line (.txt), one JSON value a line (.jsonl), or a column prompt, question or text (.csv).
    #[arg(long, short = 'd', value_name = "FILE")]
    data: PathBuf,
    /// How a prompt is put where there is no chat template; {question} stands for it, \n for a new line.
    #[arg(long, value_name = "TEXT", default_value = "{question}")]
    form: String,
    #[command(flatten)]
    write: WriteArgs,
    #[command(flatten)]
    prompt: PromptArgs,
    #[command(flatten)]
    run: RunArgs,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let form = args.form.replace("\\n", "\n");
    if !form.contains("{question}") {
        bail!("--form {:?} does not hold {{question}}", args.form);
    }
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
    let sha256 = sha256_of_file(&args.data).with_context(|| args.data.display().to_string())?;
    let case = Case {
        name: "prompts",
        protocol: Protocol::Prompts,
        benchmark: Benchmark::plain(items),
        train: None,
        data: vec![(args.data, sha256)],
        selection: json!({ "limit": args.run.limit }),
        form,
        preset: "chat",
    };
    measure(&args.run, &args.prompt, case, Some(&args.write))
}
