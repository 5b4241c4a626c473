//! `bidpo sweep`: many layers and scales on validation items, the best of them on test items.

use super::eval::choose::say_chosen;
use super::eval::measure::say;
use super::eval::progress::run_session;
use super::eval::truthfulqa::{CategoriesArgs, ProtocolName, benchmark, default_preset, warn_of_contradictions};
use super::eval::{mmlu, text};
use crate::args::ModelArgs;
use crate::args::eval::{Preamble, PromptArgs};
use crate::args::steering::load_vector;
use anyhow::{Context as _, ensure};
use bidpo_core::data::inspect::PairText;
use bidpo_core::data::truthfulqa::TruthfulQa;
use bidpo_core::data::{SplitBy, SplitFile};
use bidpo_core::eval::analysis::{Analysis, analyse};
use bidpo_core::eval::conditions::{
    Baseline, Baselines, Condition, OtherVector, Steered, SystemPrompts, refuses_system_prompts, training_pairs,
    vector_facts,
};
use bidpo_core::eval::items::{Protocol, part_facts};
use bidpo_core::eval::prompt::{PromptOverride, QUESTION_FORM, Style};
use bidpo_core::eval::report;
use bidpo_core::eval::results::{ChosenOn, ConditionKind, Manifest, Shard, gather, shard_file};
use bidpo_core::eval::runs::{Ended, Runner, TextRun, Windows, new_manifest};
use bidpo_core::eval::sweep::{Percents, best, measured, points};
use bidpo_core::eval::task::{DataFile, Task};
use bidpo_core::extract::residual_norms;
use bidpo_core::layers::Layers;
use bidpo_core::steer::{Convention, warnings};
use ggml_grad::files::sha256_of_file;
use ggml_grad::llama::Model;
use serde_json::{Value, json};
use std::collections::BTreeMap;
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
    #[command(flatten)]
    categories: CategoriesArgs,
    /// What is measured of TruthfulQA. The best setting is the one with the best first measure.
    #[arg(long, short = 'p', value_enum, default_value = "mc1")]
    protocol: ProtocolName,
    /// Layers to steer, one at a time: 8-22 [default: the vector's].
    #[arg(long, value_name = "LIST")]
    layers: Option<Layers>,
    /// Scales to try, in percent of the median residual norm at the layer: -10%..10%, -10%..10%/5% (with a step), or a list.
    #[arg(long, value_name = "LIST", default_value = "-10%..10%", allow_hyphen_values = true)]
    scales: Percents,
    /// The split of the data that the vector's training pairs came from; without it test items may have been trained on
    /// [default: FOLDER/split.json, made there with 256 training and 256 validation items].
    #[arg(long, value_name = "FILE.json")]
    split: Option<PathBuf>,
    /// A further vector to measure beside the chosen setting on the test items: dpo=other.gguf. At the chosen layer, as long
    /// there; with :SCALE behind the file as it stands in the file, times that.
    #[arg(long, value_name = "NAME=FILE.gguf[:SCALE]")]
    compare: Vec<OtherVector>,
    /// Random vectors that the chosen setting is compared with on the test items.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    random: u32,
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
    /// Measures a task under some conditions into a file of the directory.
    fn task(&self, file: &str, task: &Task, style: &Style, conditions: &[Condition]) -> anyhow::Result<Part> {
        let manifest = task.manifest(self.base.clone(), style, None, conditions, self.shard);
        let runner = task.runner(&self.model, style, None, self.shard, self.args.model.threads());
        self.session(file, manifest, conditions, &*runner)
    }

    /// Divergence and perplexity on a text.
    fn text(&self, path: &Path, conditions: &[Condition]) -> anyhow::Result<Part> {
        const WINDOW: usize = 256;
        let (content, data) = text::read(path)?;
        let limit = self.args.windows;
        let windows =
            Windows::new(&self.model, &content, WINDOW, limit as usize).with_context(|| path.display().to_string())?;
        let base = Manifest { shard: self.shard, ..self.base.clone() };
        let manifest = text::manifest(base, data, WINDOW, Some(limit), &windows, conditions);
        let n_threads = self.args.model.threads();
        let runner = TextRun { model: &self.model, windows: &windows, shard: self.shard, n_threads };
        self.session("text.jsonl", manifest, conditions, &runner)
    }

    fn session(
        &self,
        file: &str,
        manifest: Manifest,
        conditions: &[Condition],
        runner: &dyn Runner,
    ) -> anyhow::Result<Part> {
        let path = self.args.out.join(shard_file(file, self.shard));
        eprintln!("{}: {} items, {} conditions", path.display(), manifest.items, conditions.len());
        if self.shard == Shard::WHOLE {
            self.gather(file, &path, &manifest)?;
        }
        let place = path.display().to_string();
        Ok(match run_session(&place, manifest, Some(&path), conditions, runner)? {
            Ended::Interrupted { .. } => Part::Stopped,
            Ended::Shard { .. } => Part::Shard,
            Ended::Complete { run, .. } => Part::Whole(Box::new(analyse(&run)?)),
        })
    }

    /// Puts the shards of a file that are in the directory together, and says so.
    fn gather(&self, file: &str, path: &Path, manifest: &Manifest) -> anyhow::Result<()> {
        let gathered = gather(&self.args.out, file, manifest)?;
        for (shard, what) in &gathered.foreign {
            let what = what.join("; ");
            eprintln!("bidpo: warning: {} is left alone: it is of another run ({what})", shard.display());
        }
        let (path, shards) = (path.display(), gathered.shards);
        match gathered.added {
            _ if shards == 0 => {}
            Some(added) => eprintln!("{path}: {added} results added from {shards} shards"),
            None => eprintln!("{path}: put together from {shards} shards"),
        }
        Ok(())
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
        let items: Vec<PairText> = set.questions.iter().map(PairText::from).collect();
        let split = SplitFile::new(&args.data, &set.sha256, &items, SplitBy::Groups, args.seed, [256, 256])
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
    let (set, categories) = args.categories.load(&args.data)?;
    let selection = |split: &Path, part: &str| -> anyhow::Result<Value> {
        let mut facts = part_facts(split, part, args.limit)?;
        if let Some(categories) = &categories {
            facts["categories"] = categories.clone();
        }
        Ok(facts)
    };
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

    let mut systems = args.prompt.systems(usize::MAX)?;
    let model = args.model.load()?;
    for warning in warnings(&vector, &model) {
        eprintln!("bidpo: warning: {}: {warning}", args.vector.display());
    }
    let preamble = args.prompt.preamble(default_preset(protocol))?;
    let style = args.prompt.style(preamble, QUESTION_FORM, protocol, args.seed, &model)?;
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
    let base = new_manifest(&model, args.model.threads(), args.seed)?;
    let sweep = Sweep { base, model, args: &args, shard };
    let data = vec![DataFile { path: args.data.clone(), sha256: set.sha256.clone() }];
    let stopped = Ok(ExitCode::FAILURE);
    let on_valid_items = Task {
        name: "truthfulqa",
        benchmark: items,
        train: None,
        choose: None,
        data: data.clone(),
        selection: selection(&split_path, "valid")?,
    };
    let on_valid = match sweep.task("valid.jsonl", &on_valid_items, &style, &conditions)? {
        Part::Stopped => return stopped,
        Part::Shard => None,
        Part::Whole(analysis) => Some(*analysis),
    };
    if systems.texts.len() > 1 && refuses_system_prompts(&style, &sweep.model).is_none() {
        match sweep.task("system-prompts.jsonl", &on_valid_items, &style, &systems.conditions())? {
            Part::Stopped => return stopped,
            Part::Shard => {}
            Part::Whole(a) => {
                systems = SystemPrompts::best(&a.tables[0], "valid", valid.len())
                    .context("internal: no system prompt was measured")?;
                say_chosen(&systems);
            }
        }
    }
    let mut others = Vec::new();
    if let Some((benchmark, data)) = costs {
        let style = capability_style(&args, &sweep.model)?;
        let selection = json!({ "few_shot": 0, "per_subject": args.per_subject });
        let task = Task { name: "mmlu", benchmark, train: None, choose: None, data, selection };
        match sweep.task("mmlu.jsonl", &task, &style, &conditions)? {
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
        vectors: vec![vector_facts(
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
    let steered = Steered { control: Some(chosen.control.clone()), kind, training_pairs: training_pairs(&vector) };
    let train_items = &split.train[..split.train.len().min(args.prompt.train_limit.map_or(usize::MAX, |n| n as usize))];
    let on_test_items = Task {
        name: "truthfulqa",
        benchmark: benchmark(&set, &test, protocol)?,
        choose: None,
        train: (!train_items.is_empty()).then(|| benchmark(&set, train_items, protocol)).transpose()?,
        data,
        selection: selection(&split_path, "test")?,
    };
    let baselines = Baselines {
        model: &sweep.model,
        steered: Some(&steered),
        wanted: &Baseline::ALL,
        others: &args.compare,
        n_random: args.random as usize,
        systems: &systems,
        n_shots: args.prompt.shots.map(|n| n as usize),
        style: &style,
        benchmark: &on_test_items.benchmark,
        train: on_test_items.train.as_ref(),
        n_threads: args.model.threads(),
    };
    let conditions = baselines.conditions(&mut say)?.list;
    // Another choice is another run: its file stands beside the earlier one's, for everybody to see.
    let file = format!("test-layer{}{:+}pc.jsonl", chosen.layer, chosen.percent);
    let Part::Whole(on_test) = sweep.task(&file, &on_test_items, &style, &conditions)? else { return stopped };
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

/// The prompts of a capability benchmark: the chat template where that is the preset, no preamble otherwise.
fn capability_style(args: &Args, model: &Model) -> anyhow::Result<Style> {
    let chat = args.prompt.prompt.as_deref() == Some("chat");
    let preamble = Preamble::named(if chat { "chat" } else { "none" })?;
    args.prompt.style(preamble, QUESTION_FORM, Protocol::Options, args.seed, model)
}
