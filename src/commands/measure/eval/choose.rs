//! The choice of a system prompt on items that are not measured.

use super::progress::run_session;
use crate::args::eval::RunArgs;
use anyhow::Context as _;
use bidpo_core::eval::analysis::analyse;
use bidpo_core::eval::conditions::{SystemPrompts, refuses_system_prompts};
use bidpo_core::eval::items::Benchmark;
use bidpo_core::eval::prompt::Style;
use bidpo_core::eval::results::Shard;
use bidpo_core::eval::runs::{Ended, new_manifest};
use bidpo_core::eval::task::{Choosing, Task};
use ggml_grad::llama::Model;
use std::sync::Arc;

/// How a choice ended.
pub enum Choice {
    /// One is left.
    Made(SystemPrompts),
    /// Nothing was measured: a shard, or a chat template without system prompts.
    Impossible,
    /// By Ctrl-C.
    Interrupted,
}

/// The first `n` items: no more are chosen by than are measured.
pub fn first_items(mut benchmark: Benchmark, n: usize) -> Benchmark {
    benchmark.items.truncate(n);
    benchmark
}

/// Measures `systems` on the items of `by`, and leaves the best. With --out the results stand beside that file.
pub fn choose_system(
    run: &RunArgs,
    model: &Arc<Model>,
    style: &Style,
    task: &Task,
    by: Choosing,
    systems: &SystemPrompts,
) -> anyhow::Result<Choice> {
    if run.shard.is_some_and(|s| s != Shard::WHOLE) {
        eprintln!("bidpo: a shard cannot choose a system prompt: all {} are measured", systems.texts.len());
        return Ok(Choice::Impossible);
    }
    if refuses_system_prompts(style, model).is_some() {
        return Ok(Choice::Impossible);
    }
    let (part, items, n_threads) = (by.part, by.benchmark.items.len(), run.model.threads());
    eprintln!("Choosing among {} system prompts on {items} items of the part {part:?} ...", systems.texts.len());
    let style = Style { protocol: by.protocol, ..style.clone() };
    let task = by.task(task);
    let conditions = systems.conditions();
    let base = new_manifest(model, n_threads, run.seed)?;
    let manifest = task.manifest(base, &style, None, &conditions, Shard::WHOLE);
    let runner = task.runner(model, &style, None, Shard::WHOLE, n_threads);
    let out = run.out_file().map(|f| f.with_extension("system-prompts.jsonl"));
    let Ended::Complete { run: done, .. } =
        run_session(&task.data_name(), manifest, out.as_deref(), &conditions, &*runner)?
    else {
        return Ok(Choice::Interrupted);
    };
    let table = &analyse(&done)?.tables[0];
    let chosen = SystemPrompts::best(table, part, items).context("internal: no system prompt was measured")?;
    say_chosen(&chosen);
    Ok(Choice::Made(chosen))
}

/// Says on stderr which system prompt was chosen.
pub fn say_chosen(chosen: &SystemPrompts) {
    if let (Some(text), Some(on)) = (chosen.texts.first(), &chosen.chosen_on) {
        eprintln!("The best of {} system prompts on {} {} items: {text:?}", on.settings, on.items, on.part);
    }
}
