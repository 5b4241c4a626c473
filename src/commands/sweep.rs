//! `bidpo sweep`: many layers and scales on validation items, the best of them on test items.

use super::eval::baselines::{self, Baseline, Compare, Steered};
use super::eval::common::{PromptArgs, file_name, style};
use super::eval::session::{Session, SessionError, manifest};
use super::eval::truthfulqa::{ProtocolName, benchmark, warn_of_contradictions};
use super::eval::{mmlu, text};
use crate::args::ModelArgs;
use crate::args::steering::load_vector;
use anyhow::{Context as _, ensure};
use bidpo_core::data::SplitFile;
use bidpo_core::data::truthfulqa::TruthfulQa;
use bidpo_core::eval::ScorerParams;
use bidpo_core::eval::analysis::{Analysis, analyse};
use bidpo_core::eval::conditions::condition::Condition;
use bidpo_core::eval::items::Benchmark;
use bidpo_core::eval::items::Protocol;
use bidpo_core::eval::prompt::{PromptOverride, QUESTION_FORM, Style};
use bidpo_core::eval::report;
use bidpo_core::eval::results::{
    ChosenOn, ConditionKind, DataFacts, Manifest, Record, ResultsError, Run, Shard, Store, merge, other_run, read,
};
use bidpo_core::eval::runs::Measurement;
use bidpo_core::eval::runs::Windows;
use bidpo_core::eval::sweep::{Percents, best, measured, points};
use bidpo_core::extract::residual_norms;
use bidpo_core::layers::Layers;
use bidpo_core::steer::{Convention, warnings};
use ggml_grad::files::sha256_of_file;
use ggml_grad::llama::Model;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Items on whose prompts the residual norm is measured.
const NORM_ITEMS: usize = 16;

/// Options of `bidpo sweep`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The vector. At each layer its own direction is used; that of a vector for a single layer is moved.
    #[arg(long, short = 'v', value_name = "FILE.gguf")]
    vector: PathBuf,
    /// What direction.N of the file means: output, the output of block N (bidpo, repeng), or generator, that of block N - 1
    /// (llama.cpp's cvector-generator).
    #[arg(long, value_name = "C", default_value_t = Convention::Output)]
    convention: Convention,
    /// TruthfulQA: mc_task.json or TruthfulQA.csv.
    #[arg(long, short = 'd', value_name = "FILE")]
    data: PathBuf,
    /// What is measured of TruthfulQA. The best setting is the one with the best first measure.
    #[arg(long, short = 'p', value_enum, default_value = "mc1")]
    protocol: ProtocolName,
    /// Layers to steer, one at a time: 8-22 [default: the vector's].
    #[arg(long, value_name = "LIST")]
    layers: Option<Layers>,
    /// Scales to try, in per cent of the median residual norm at the layer: -10%..10%, -10%..10%/5% (with a step), or a list.
    #[arg(long, value_name = "LIST", default_value = "-10%..10%", allow_hyphen_values = true)]
    scales: Percents,
    /// The split of the data that the vector's training pairs came from; without it test items may have been trained on
    /// [default: FOLDER/split.json, made there with 256 training and 256 validation items].
    #[arg(long, value_name = "FILE.json")]
    split: Option<PathBuf>,
    /// A further vector to measure beside the chosen setting on the test items: dpo=other.gguf. At the chosen layer, as long
    /// there; with :SCALE behind the file as it stands in the file, times that.
    #[arg(long, value_name = "NAME=FILE.gguf[:SCALE]")]
    compare: Vec<Compare>,
    /// Only the first N validation items, and the first N test items.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// What the settings cost: MMLU (the folder with dev and test), the first questions of each subject, without examples.
    #[arg(long, value_name = "FOLDER")]
    mmlu: Option<PathBuf>,
    /// Questions of each subject.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    per_subject: u32,
    /// What the settings cost: divergence of the predictions on this text, and its perplexity.
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Windows of 256 tokens taken from the text.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    windows: u32,
    /// Seed of the split, of random vectors, and of the order of options.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    prompt: PromptArgs,
    /// Only every n-th item of the settings' measurements, from the i-th on: i/n, for n runs side by side with the same
    /// FOLDER. The same command without --shard then puts them together and goes on.
    #[arg(long, value_name = "i/n")]
    shard: Option<Shard>,
    /// Folder of the results. The same command goes on with what is there, another one adds to it.
    #[arg(long, short = 'o', value_name = "FOLDER")]
    out: PathBuf,
    /// Print the figures as one JSON object.
    #[arg(long)]
    json: bool,
}

/// What all parts of a sweep share.
struct Sweep<'a> {
    args: &'a Args,
    model: Arc<Model>,
    base: Manifest,
    shard: Shard,
}

/// How the names of a file's shards begin.
fn shard_prefix(file: &str) -> String {
    format!("{}.shard-", file.strip_suffix(".jsonl").unwrap_or(file))
}

/// Adds to a results file, new or not, what it lacks of some runs, and says how much that was.
fn add(path: &Path, runs: &[Run], manifest: &Manifest) -> anyhow::Result<usize> {
    let mut added = 0;
    for run in runs {
        // Shards may have had other numbers of threads each: the whole is gone on with under that of this run.
        let merged = Manifest { conditions: run.manifest.conditions.clone(), ..manifest.clone() };
        let (mut store, there) = Store::open(path, &merged)?;
        let there: BTreeSet<(&str, usize)> = there.iter().map(|r| (r.condition.as_str(), r.item)).collect();
        for records in &run.records {
            let new: Vec<Record> =
                records.iter().filter(|r| !there.contains(&(r.condition.as_str(), r.item))).cloned().collect();
            store.push(&new)?;
            added += new.len();
        }
    }
    Ok(added)
}

/// How the measurement of some items ended.
enum Part {
    /// By Ctrl-C.
    Stopped,
    /// The items of one shard are there.
    Shard,
    /// All are there.
    Whole(Box<Analysis>),
}

impl Sweep<'_> {
    /// Measures some items under some conditions into a file of the folder.
    #[allow(clippy::too_many_arguments, reason = "each is one independent part of the run")]
    fn choice(
        &self,
        file: &str,
        name: &str,
        style: &Style,
        benchmark: &Benchmark,
        data: &[(PathBuf, String)],
        selection: Value,
        conditions: &[Condition],
    ) -> anyhow::Result<Part> {
        let mut m = self.base.clone();
        m.benchmark = name.into();
        m.protocol = style.protocol.name().into();
        m.data = data.iter().map(|(p, s)| DataFacts { file: file_name(p), sha256: s.clone() }).collect();
        m.prompt = style.facts();
        m.selection = selection;
        m.items = benchmark.items.len();
        let measurement = Measurement {
            model: &self.model,
            benchmark,
            style,
            shard: self.shard,
            params: ScorerParams { n_threads: self.args.model.threads(), ..ScorerParams::default() },
        };
        self.all(file, m, conditions, |condition, session| {
            let done = session.done(&condition.name);
            measurement.run(condition, &done, &mut |r| session.push(r))
        })
    }

    fn all(
        &self,
        file: &str,
        mut manifest: Manifest,
        conditions: &[Condition],
        mut one: impl FnMut(&Condition, &mut Session) -> Result<bool, SessionError>,
    ) -> anyhow::Result<Part> {
        manifest.conditions = conditions.iter().map(Condition::manifest).collect();
        manifest.shard = self.shard;
        let path = self.args.out.join(match self.shard {
            Shard::WHOLE => file.to_owned(),
            Shard { number, of } => format!("{}{number}-of-{of}.jsonl", shard_prefix(file)),
        });
        eprintln!("{}: {} items, {} conditions", path.display(), manifest.items, conditions.len());
        if self.shard == Shard::WHOLE {
            self.gather(file, &path, &manifest)?;
        }
        let mut session = Session::resume(manifest, Some(&path))?;
        for condition in conditions {
            if !one(condition, &mut session).with_context(|| path.display().to_string())? {
                break;
            }
        }
        if !session.close() {
            return Ok(Part::Stopped);
        }
        if self.shard != Shard::WHOLE {
            return Ok(Part::Shard);
        }
        Ok(Part::Whole(Box::new(analyse(&session.into_run()?)?)))
    }

    /// Puts the shards of a file that are in the folder, if any, together as the file itself, or adds what it lacks of them.
    /// Shards of another run stay where they are.
    fn gather(&self, file: &str, path: &Path, manifest: &Manifest) -> anyhow::Result<()> {
        let prefix = shard_prefix(file);
        let is_shard = |n: &std::ffi::OsStr| {
            let n = n.to_string_lossy();
            n.starts_with(&prefix) && n.ends_with(".jsonl")
        };
        let mut shards: Vec<PathBuf> = std::fs::read_dir(&self.args.out)
            .with_context(|| self.args.out.display().to_string())?
            .filter_map(|f| Some(f.ok()?.path()))
            .filter(|p| p.file_name().is_some_and(is_shard))
            .collect();
        shards.sort();
        let (mut mine, mut others) = (Vec::new(), Vec::new());
        for shard in shards {
            let what = other_run(&read(&shard)?.0, manifest);
            if what.is_empty() { mine.push(shard) } else { others.push((shard, what)) }
        }
        if mine.is_empty()
            && !path.exists()
            && let Some((path, what)) = others.first().cloned()
        {
            // Rather a mistaken setting than all of it again.
            return Err(ResultsError::OtherRun { path, what }.into());
        }
        for (shard, what) in &others {
            let what = what.join("; ");
            eprintln!("bidpo: warning: {} is left alone: it is of another run ({what})", shard.display());
        }
        let runs = merge(&mine).with_context(|| format!("shards of {} cannot be put together", path.display()))?;
        if runs.is_empty() {
            return Ok(());
        }
        if path.exists() {
            let added = add(path, &runs, manifest)?;
            eprintln!("{}: {added} results added from {} shards", path.display(), mine.len());
        } else {
            // Under a temporary name: a file that is there counts as what a whole run left.
            let whole = tempfile::Builder::new().prefix(".gather").tempdir_in(&self.args.out)?;
            let made = whole.path().join(file);
            add(&made, &runs, manifest)?;
            std::fs::rename(&made, path).with_context(|| format!("cannot write {}", path.display()))?;
            eprintln!("{}: put together from {} shards", path.display(), mine.len());
        }
        // All they hold is in there; a report on the folder would find it twice.
        for shard in runs.iter().flat_map(|r| &r.files) {
            std::fs::remove_file(shard).with_context(|| format!("cannot remove {}", shard.display()))?;
        }
        Ok(())
    }

    /// Divergence and perplexity on a text.
    fn text(&self, path: &Path, conditions: &[Condition]) -> anyhow::Result<Part> {
        const WINDOW: usize = 256;
        let (content, data) = text::read(path)?;
        let windows = Windows::new(&self.model, &content, WINDOW, self.args.windows as usize)
            .with_context(|| path.display().to_string())?;
        let mut m = self.base.clone();
        m.benchmark = "text".into();
        m.protocol = Protocol::Text.name().into();
        m.data = vec![data];
        m.prompt = json!({ "preset": null, "window": WINDOW });
        m.selection = json!({ "limit": self.args.windows });
        m.items = windows.len();
        self.all("text.jsonl", m, conditions, |condition, session| {
            let done = session.done(&condition.name);
            let threads = self.args.model.threads();
            windows.run(&self.model, condition, threads, self.shard, &done, &mut |r| session.push(r))
        })
    }
}

/// The split that was given, or the folder's own, made where there is none yet.
fn split(args: &Args, set: &TruthfulQa) -> anyhow::Result<(SplitFile, PathBuf)> {
    let path = args.split.clone().unwrap_or_else(|| args.out.join("split.json"));
    if args.split.is_none() {
        eprintln!(
            "bidpo: WARNING: without --split the parts are drawn anew ({}), and the vector may have been trained on test \
             items. Then the figures on them show what it was told, not what it does. If its training pairs came from {}, \
             give --split with the file that they were taken by (`bidpo data pairs --split`).",
            path.display(),
            args.data.display()
        );
    }
    if args.split.is_none() && !path.exists() {
        let texts: Vec<String> = set.questions.iter().map(|q| q.text.clone()).collect();
        let split = SplitFile::new(&args.data, &set.sha256, &texts, args.seed, 256, 256)
            .context("give a --split of your own (`bidpo data split`)")?;
        split.save(&path).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok((SplitFile::load(&path, &set.sha256)?, path))
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let protocol = Protocol::from(args.protocol);
    ensure!(
        !protocol.writes(),
        "--protocol generate: a setting is chosen by multiple choice; write answers with the chosen one"
    );
    let set = TruthfulQa::load(&args.data)?;
    let vector = load_vector(&args.vector, args.convention)?;
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot make the folder {}", args.out.display()))?;
    let (split, split_path) = split(&args, &set)?;
    let limit = args.limit.map_or(usize::MAX, |l| l as usize);
    let first = |items: &[usize]| items.iter().copied().take(limit).collect::<Vec<_>>();
    let (valid, test) = (first(&split.valid), first(&split.test));
    ensure!(!valid.is_empty() && !test.is_empty(), "{}: no validation or no test items", split_path.display());
    warn_of_contradictions(&set, &[&valid[..], &test].concat());
    let items = benchmark(&set, &valid, protocol)?;
    let costs = args.mmlu.as_ref().map(|f| mmlu::load(f, 0, &[], Some(args.per_subject))).transpose()?;

    let model = args.model.load()?;
    for warning in warnings(&vector, &model) {
        eprintln!("bidpo: warning: {}: {warning}", args.vector.display());
    }
    let preset = if protocol.shows_options() { "none" } else { "qa" };
    let style = style(&args.prompt, preset, QUESTION_FORM, protocol, args.seed, &model)?;
    let layers = args.layers.as_ref().map_or_else(|| vector.layers(), |l| l.to_vec());
    let vector_name = || args.vector.display().to_string();

    // The scale's unit: the residual stream on the prompts of the validation items themselves.
    let some: Vec<usize> = (0..items.items.len().min(NORM_ITEMS)).collect();
    let (prompts, _) = style.prompts(&model, &items, 0, &some, &PromptOverride::default())?;
    let contexts: Vec<_> = prompts.tokens(&model)?.into_iter().map(|r| r.context).collect();
    let norms: BTreeMap<usize, f64> = residual_norms(&model, &layers, &contexts, args.model.threads())?
        .into_iter()
        .map(|(layer, stats)| (layer, stats.median))
        .collect();
    let points = points(&vector, &layers, &args.scales, &norms, &model).with_context(vector_name)?;
    let conditions: Vec<Condition> =
        [Condition::unsteered()].into_iter().chain(points.iter().map(|p| p.condition())).collect();

    let shard = args.shard.unwrap_or_default();
    let sweep = Sweep { base: manifest(&args.model, &model, args.seed)?, model, args: &args, shard };
    let data = [(args.data.clone(), set.sha256.clone())];
    let part = |name: &str| -> anyhow::Result<Value> {
        let sha256 = sha256_of_file(&split_path).with_context(|| split_path.display().to_string())?;
        Ok(json!({ "split": file_name(&split_path), "split_sha256": sha256, "part": name, "limit": args.limit }))
    };
    let stopped = Ok(ExitCode::FAILURE);
    let on_valid =
        match sweep.choice("valid.jsonl", "truthfulqa", &style, &items, &data, part("valid")?, &conditions)? {
            Part::Stopped => return stopped,
            Part::Shard => None,
            Part::Whole(analysis) => Some(*analysis),
        };
    let mut others = Vec::new();
    if let Some((benchmark, files)) = &costs {
        let style = Style { protocol: Protocol::Options, ..style_none(&args, &sweep.model)? };
        let selection = json!({ "few_shot": 0, "per_subject": args.per_subject });
        match sweep.choice("mmlu.jsonl", "mmlu", &style, benchmark, files, selection, &conditions)? {
            Part::Stopped => return stopped,
            Part::Shard => {}
            Part::Whole(a) => others.push(*a),
        }
    }
    if let Some(path) = &args.text {
        match sweep.text(path, &conditions)? {
            Part::Stopped => return stopped,
            Part::Shard => {}
            Part::Whole(a) => others.push(*a),
        }
    }
    let Some(on_valid) = on_valid else {
        let folder = args.out.display().to_string();
        if args.json {
            println!("{}", json!({ "shard": shard, "folder": folder }));
        } else {
            println!("Shard {shard} is in {folder}. With all shards there, the same command without --shard goes on.");
        }
        return Ok(ExitCode::SUCCESS);
    };

    // Earlier settings of the folder count among those that were tried, whether or not they are asked for again.
    let tried = measured(&on_valid.manifest, &points, &vector, &sweep.model).with_context(vector_name)?;
    let chosen = best(&tried, &on_valid.tables[0]).context("internal: a sweep without points")?;
    let kind = ConditionKind::Steered {
        vectors: vec![baselines::vector_facts(
            &args.vector,
            &sha256_of_file(&args.vector).with_context(vector_name)?,
            chosen.factor,
            Some(chosen.percent),
            &vector,
        )],
        layers: Some(Layers::one(chosen.layer)),
        chosen_on: Some(ChosenOn {
            part: "valid".into(),
            items: valid.len(),
            settings: tried.len(),
            other: serde_json::Map::new(),
        }),
    };
    let steered = Steered { control: Some(chosen.control.clone()), kind };
    let on_test_items = benchmark(&set, &test, protocol)?;
    let train_items = &split.train[..split.train.len().min(args.prompt.train_limit.map_or(usize::MAX, |n| n as usize))];
    let train = (!train_items.is_empty()).then(|| benchmark(&set, train_items, protocol)).transpose()?;
    let (conditions, _) = baselines::conditions(
        Some(&steered),
        &Baseline::ALL,
        &args.prompt,
        &sweep.model,
        &style,
        &on_test_items,
        train.as_ref(),
        &args.compare,
        args.model.threads(),
    )?;
    // Another choice is another run: its file stands beside the earlier one's, for everybody to see.
    let file = format!("test-layer{}{:+}pc.jsonl", chosen.layer, chosen.percent);
    let Part::Whole(on_test) =
        sweep.choice(&file, "truthfulqa", &style, &on_test_items, &data, part("test")?, &conditions)?
    else {
        return stopped;
    };
    if args.json {
        let object = json!({
            "chosen": { "layer": chosen.layer, "percent": chosen.percent, "factor": chosen.factor },
            "residual_norm_median": norms,
            "valid": report::json(&on_valid),
            "costs": others.iter().map(report::json).collect::<Vec<_>>(),
            "test": report::json(&on_test),
        });
        println!("{object}");
    } else {
        println!("{}", report::markdown(&on_valid));
        others.iter().for_each(|a| println!("{}", report::markdown(a)));
        println!(
            "Best on the {} validation items: {}. On the test items, which it was not chosen by:\n",
            valid.len(),
            chosen.name()
        );
        print!("{}", report::markdown(&on_test));
    }
    eprintln!("bidpo: `bidpo report --html report.html {}` draws all of it", args.out.display());
    Ok(ExitCode::SUCCESS)
}

/// The style of a capability benchmark: the chat template where that is the preset, no preamble otherwise.
fn style_none(args: &Args, model: &Model) -> anyhow::Result<Style> {
    let name = args.prompt.prompt.as_deref().filter(|p| *p == "chat").unwrap_or("none");
    let prompt = PromptArgs {
        prompt: Some(name.to_owned()),
        template: args.prompt.template.clone(),
        system: args.prompt.system.clone(),
        shots: args.prompt.shots,
        train_limit: args.prompt.train_limit,
    };
    style(&prompt, "none", QUESTION_FORM, Protocol::Options, args.seed, model)
}
