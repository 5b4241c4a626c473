//! The run that benchmarks share: baselines, a session, and the results printed.

use super::choose::{Choice, choose_system, first_items};
use super::progress::run_session;
use crate::args::ModelArgs;
use crate::args::eval::{PromptArgs, RunArgs};
use crate::args::names;
use crate::args::template::say_notes;
use crate::args::writing::{JudgingArgs, WriteArgs};
use crate::terminal::streams;
use anyhow::bail;
use bidpo_core::eval::analysis::{Analysis, analyse};
use bidpo_core::eval::conditions::{Baseline, BaselineNotice, Baselines, STEERED, swapped_places};
use bidpo_core::eval::items::Protocol;
use bidpo_core::eval::judging::judged_file;
use bidpo_core::eval::prompt::{Preset, fit_examples};
use bidpo_core::eval::report;
use bidpo_core::eval::results::{Run, Shard};
use bidpo_core::eval::runs::{Ended, new_manifest};
use bidpo_core::eval::task::{Choosing, Task};
use ggml_grad::llama::Model;
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

/// Prompts of a benchmark.
pub struct PromptKind {
    /// Protocol of the items.
    pub protocol: Protocol,
    /// Form of a question.
    pub form: String,
    /// Preset where --prompt gives none.
    pub preset: &'static str,
    /// The benchmark takes a --split, and with it has training items.
    pub has_splits: bool,
}

/// Measures a task under all conditions and prints the results.
pub fn measure(
    run: &RunArgs,
    prompt: &PromptArgs,
    kind: PromptKind,
    mut task: Task,
    write: Option<&WriteArgs>,
) -> anyhow::Result<ExitCode> {
    let protocol = kind.protocol;
    let preamble = prompt.preamble(kind.preset)?;
    // For prompts of any kind truthfulness is not the question: one of the built-in texts is enough.
    let mut systems = prompt.systems(if protocol == Protocol::Prompts { 1 } else { usize::MAX })?;
    run.check_out()?;
    match (&mut task.train, prompt.train_limit) {
        (Some(train), Some(n)) => train.items.truncate(n as usize),
        (Some(_), None) => {}
        (None, _) if kind.has_splits => {
            prompt.refuse_without_training_items(
                "there are no training items; give --split, and not its training part",
            )?;
        }
        (None, _) => prompt.refuse_without_training_items("this benchmark has no training items")?,
    }
    if let (false, Some(name)) = (kind.has_splits, run.refused_baseline(Baseline::needs_training_items)) {
        bail!("--baselines {name}: this benchmark has no training items");
    }
    if run.steering.vectors.is_empty()
        && run.steering.loras.is_empty()
        && let Some(flag) = write.and_then(WriteArgs::judge_given)
    {
        bail!("{flag}: without --vector or --lora there are no steered answers to judge");
    }
    let model = run.model.load()?;
    let n_threads = run.model.threads();
    let style = prompt.style(preamble, &kind.form, protocol, run.seed, &model)?;
    let n_notes = if let Preset::Chat(template) = &style.preset { template.notes().len() } else { 0 };
    let steered = run.steering.steered(&model, style.template(), n_threads)?;
    // A generated answer needs its question.
    let impossible = |b: Baseline| protocol.writes() && b.changes_the_question();
    if let Some(name) = run.refused_baseline(impossible) {
        bail!("--baselines {name}: without its own question there is nothing to write an answer to");
    }
    let missing = |b: Baseline| !kind.has_splits && b.needs_training_items();
    let possible: Vec<Baseline> = Baseline::ALL.into_iter().filter(|&b| !impossible(b) && !missing(b)).collect();
    let wanted = run.wanted(steered.is_some(), &possible)?;
    let options = write.map(|w| w.options(run.seed, matches!(style.preset, Preset::Chat(_))));
    let swaps = wanted.contains(&Baseline::Swapped) || wanted.contains(&Baseline::SwappedSteered);
    let swapped = if swaps { swapped_places(&task.benchmark, run.seed) } else { None };
    let fewer = fit_examples(&mut task.benchmark, &style, &model, swapped.as_deref())?;
    if !fewer.is_empty() {
        eprintln!(
            "The model's context ({} tokens) holds fewer solved examples than asked for in: {}.",
            model.n_ctx_train(),
            fewer.join(", ")
        );
        task.selection["fewer_examples"] = json!(fewer);
    }
    if wanted.contains(&Baseline::System)
        && systems.texts.len() > 1
        && let Some(by) = task.choose.take()
    {
        let by = Choosing { benchmark: first_items(by.benchmark, task.benchmark.items.len()), ..by };
        match choose_system(run, &model, &style, &task, by, &systems)? {
            Choice::Made(chosen) => systems = chosen,
            Choice::Impossible => {}
            Choice::Interrupted => return Ok(ExitCode::FAILURE),
        }
    }
    let others = names::others(&run.compare, model.path())?;
    let baselines = Baselines {
        model: &model,
        steered: steered.as_ref(),
        wanted: &wanted,
        others: &others,
        n_random: run.random as usize,
        systems: &systems,
        n_shots: prompt.shots.map(|n| n as usize),
        style: &style,
        benchmark: &task.benchmark,
        train: task.train.as_ref(),
        n_threads,
    };
    let conditions = baselines.conditions(&mut say)?;
    if let Preset::Chat(template) = &style.preset {
        say_notes(template, n_notes);
    }
    if !conditions.skipped.is_empty() {
        eprintln!("Not measured: {}.", conditions.skipped.join("; "));
    }
    let shard = run.shard.unwrap_or_default();
    let base = new_manifest(&model, n_threads, run.seed)?;
    let manifest = task.manifest(base, &style, options.as_ref(), &conditions.list, shard);
    let runner = task.runner(&model, &style, options.as_ref(), shard, n_threads);
    let out = run.out_file();
    let ended = run_session(&task.data_name(), manifest, out.as_deref(), &conditions.list, &*runner)?;
    drop(runner);
    let run_done = match complete(ended, out.as_deref(), run.json) {
        Ok(run) => run,
        Err(code) => return Ok(code),
    };
    let analysis = analyse(&run_done)?;
    let pairs = run_done.under(STEERED).is_some() && run_done.manifest.conditions.len() > 1;
    let judged = match write.filter(|w| pairs && !w.no_judge) {
        Some(write) => match judge_own(run, write, &run_done, model)? {
            Some(judged) => Some(judged),
            None => return Ok(ExitCode::FAILURE),
        },
        None => None,
    };
    print(&analysis, judged.as_ref(), run.json);
    Ok(ExitCode::SUCCESS)
}

/// Says on stderr what happens while baselines are made.
pub fn say(notice: BaselineNotice) {
    eprintln!("{notice}");
}

/// The complete run; otherwise the exit code, with a line on stdout for a shard.
pub fn complete(ended: Ended, out: Option<&Path>, json: bool) -> Result<Box<Run>, ExitCode> {
    match ended {
        Ended::Complete { run, .. } => Ok(run),
        Ended::Interrupted { .. } => Err(ExitCode::FAILURE),
        Ended::Shard { shard, results } => {
            debug_assert_ne!(shard, Shard::WHOLE);
            let file = out.map_or(String::new(), |f| f.display().to_string());
            if json {
                streams::out_json(json!({ "shard": shard, "results": results, "file": file }));
            } else {
                println!("Shard {shard}: {results} results in {file}. `bidpo report` on all shards gives the figures.");
            }
            Err(ExitCode::SUCCESS)
        }
    }
}

/// Prints an analysis, and the judge's.
pub fn print(analysis: &Analysis, judged: Option<&Analysis>, json: bool) {
    if json {
        let mut object = report::json(analysis);
        if let Some(judged) = judged {
            object["judged"] = report::json(judged);
        }
        streams::out_json(object);
    } else {
        print!("{}", report::markdown(analysis));
        if let Some(judged) = judged {
            print!("\n{}", report::markdown(judged));
        }
    }
}

/// Compares a run's steered answers with those under each other condition. `None` if it was interrupted.
pub fn judge(
    judging: &JudgingArgs,
    model: &Arc<Model>,
    n_threads: u32,
    seed: u64,
    run: &Run,
    out: Option<&Path>,
) -> anyhow::Result<Option<Analysis>> {
    let judging = judging.judge(model, n_threads, seed).judging(run)?;
    if judging.is_same_model() {
        eprintln!(
            "bidpo: warning: the judge is the model that wrote the answers; --judge FILE.gguf names a stronger one. Models \
             prefer their own answers, and one that does not know an answer cannot judge it."
        );
    }
    let file = run.files.first().map_or("the results".into(), |f| f.display().to_string());
    let ended = run_session(&file, judging.manifest.clone(), out, &judging.conditions(), &judging)?;
    match ended {
        Ended::Complete { run, .. } => Ok(Some(analyse(&run)?)),
        Ended::Shard { .. } | Ended::Interrupted { .. } => Ok(None),
    }
}

/// The judge of a run's own answers: --judge, or the model that generated them.
fn judge_own(run: &RunArgs, write: &WriteArgs, done: &Run, model: Arc<Model>) -> anyhow::Result<Option<Analysis>> {
    let judge_model = match &write.judge {
        Some(path) => {
            drop(model);
            ModelArgs { model: path.clone(), ..run.model.clone() }.load()?
        }
        None => model,
    };
    let out = run.out_file().map(|f| judged_file(&f));
    judge(&write.judging, &judge_model, run.model.threads(), run.seed, done, out.as_deref())
}
