//! `bidpo sweep`: many layers and scales on validation items, the best of them on test items.

mod comparisons;
mod session;
mod subject;

use self::comparisons::Comparisons;
use self::session::{Part, Sweep, Whole};
use self::subject::{Loaded, Points, Scales, Subject, median_norms, percents};
use super::eval::choose::say_chosen;
use super::eval::measure::say;
use super::eval::mmlu;
use super::eval::text::Text;
use super::eval::truthfulqa::{CategoriesArgs, ProtocolName, benchmark, default_preset, warn_of_contradictions};
use crate::args::ModelArgs;
use crate::args::eval::{Preamble, PromptArgs};
use crate::args::names;
use crate::terminal::streams;
use anyhow::{Context as _, ensure};
use bidpo_core::data::inspect::PairText;
use bidpo_core::data::truthfulqa::TruthfulQa;
use bidpo_core::data::{SplitBy, SplitFile};
use bidpo_core::eval::analysis::Analysis;
use bidpo_core::eval::conditions::{
    Baseline, Baselines, Condition, OtherVector, Steered, SystemPrompts, UNSTEERED, refuses_system_prompts,
    training_pairs, unique_names, vector_facts,
};
use bidpo_core::eval::items::{Benchmark, Protocol, part_facts};
use bidpo_core::eval::measures::Kind;
use bidpo_core::eval::price::Price;
use bidpo_core::eval::prompt::{QUESTION_FORM, Style};
use bidpo_core::eval::report;
use bidpo_core::eval::results::{ChoiceRule, ChosenOn, ConditionKind, Run, Shard};
use bidpo_core::eval::runs::new_manifest;
use bidpo_core::eval::sweep::{Compared, Configuration, Place, best, choose, measured as measured_points};
use bidpo_core::eval::task::{DataFile, Task};
use bidpo_core::layers::Layers;
use bidpo_core::steer::Convention;
use ggml_grad::files::sha256_of_file;
use ggml_grad::llama::Model;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;

/// Tokens of a window of --text.
const WINDOW: usize = 256;

/// Options of `bidpo sweep`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("subject").required(true).args(["vector", "lora"]))]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The vector, of any kind. At each layer its own direction is used; that of a vector for a single layer is moved. Other
    /// kinds and vectors with a scope stay at their layer.
    #[arg(long, short = 'v', value_name = "FILE.gguf")]
    vector: Option<PathBuf>,
    /// The LoRA adapter to sweep instead of a vector, over scales alone.
    #[arg(long, value_name = "FILE.gguf", conflicts_with_all = ["convention", "layers"])]
    lora: Option<PathBuf>,
    /// What direction.N of the file means: output, the output of block N (bidpo, repeng), or generator, that of block N - 1
    /// (llama.cpp's cvector-generator).
    #[arg(long, value_name = "C", default_value_t = Convention::Output)]
    convention: Convention,
    /// TruthfulQA: mc_task.json or TruthfulQA.csv.
    #[arg(long, short = 'd', value_name = "FILE")]
    data: PathBuf,
    #[command(flatten)]
    categories: CategoriesArgs,
    /// What is measured of TruthfulQA. Settings are compared by the first measure.
    #[arg(long, short = 'p', value_enum, default_value = "mc1")]
    protocol: ProtocolName,
    /// Layers to steer, one at a time: 8-22 [default: the vector's].
    #[arg(long, value_name = "LIST")]
    layers: Option<Layers>,
    /// Scales to try, in percent of the median residual norm at the layer: -10%..10%, -10%..10%/5% (with a step), or a list. Those
    /// of an adapter are factors: 0..1/0.25, or -1,0.5,1 [default: -10%..10%; of an adapter -2..2].
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    scales: Option<Scales>,
    /// The split of the data that the vector's training pairs came from; without it test items may have been trained on
    /// [default: FOLDER/split.json, made there with 256 training and 256 validation items].
    #[arg(long, value_name = "FILE.json")]
    split: Option<PathBuf>,
    /// A further vector or adapter to measure beside the chosen configuration on the test items: dpo=other.gguf. At the chosen layer,
    /// as long there; with :SCALE behind the file as it stands in the file, times that. Adapters need a scale.
    #[arg(long, value_name = "NAME=FILE.gguf[:SCALE]")]
    compare: Vec<OtherVector>,
    /// Random vectors that the chosen configuration is compared with on the test items.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    random: u32,
    /// Compare at the chosen configuration's norm only. By default the vectors of --compare, the mean difference (CAA) and the first
    /// random vector are swept too, at the chosen layer, and stand on the test items also at their own best scale and at the
    /// scale whose KL on the text equals that of the chosen configuration. For each vector that costs as much as one layer of the
    /// sweep (for the random one up to four scales), and two more conditions on the test items.
    #[arg(long)]
    same_norm_only: bool,
    /// Only the first N validation items, and the first N test items.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// What the configurations cost: MMLU (the folder with dev and test), the first questions of each subject, without examples.
    #[arg(long, value_name = "FOLDER")]
    mmlu: Option<PathBuf>,
    /// Questions of each subject.
    #[arg(long, value_name = "N", default_value_t = 2, requires = "mmlu", value_parser = clap::value_parser!(u32).range(1..))]
    per_subject: u32,
    /// What the configurations cost: divergence of the predictions on this text, and its perplexity [default: the 24 built-in
    /// neutral passages].
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Windows of 256 tokens taken from the text.
    #[arg(long, value_name = "N", default_value_t = 20, requires = "text", value_parser = clap::value_parser!(u32).range(1..))]
    windows: u32,
    /// Choose the best configuration among those whose KL(unsteered || steered) on the text is at most this many nats a token
    /// [default: the smallest scale within one standard error of the best].
    #[arg(long, value_name = "KL", value_parser = positive)]
    budget: Option<f64>,
    /// Seed of the split, of random vectors, and of the order of options.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    prompt: PromptArgs,
    /// Only every n-th item of the configurations' measurements, from the i-th on: i/n, for n runs side by side with the same
    /// FOLDER. The same command without --shard then puts them together and goes on.
    #[arg(long, value_name = "i/n")]
    shard: Option<Shard>,
    /// Folder of the results. The same command goes on with what is there, another one adds to it.
    #[arg(long, short = 'o', value_name = "FOLDER")]
    out: PathBuf,
    /// Print the values as one JSON object.
    #[arg(long)]
    json: bool,
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

/// A number above 0.
fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|x| x.is_finite() && *x > 0.0);
    number.ok_or_else(|| format!("{text:?} is not a number above 0"))
}

/// What a sweep works on, read before the model is loaded.
struct Inputs {
    set: TruthfulQa,
    split: SplitFile,
    split_path: PathBuf,
    /// Entry of the manifest for categories of another file.
    categories: Option<Value>,
    valid: Vec<usize>,
    test: Vec<usize>,
    capability: Option<(Benchmark, Vec<DataFile>)>,
    systems: SystemPrompts,
}

impl Inputs {
    /// The inputs, and what is swept.
    fn read(args: &Args) -> anyhow::Result<(Self, Subject)> {
        let protocol = Protocol::from(args.protocol);
        ensure!(
            !protocol.writes(),
            "--protocol generate: a setting is chosen by multiple choice; write answers with the chosen one"
        );
        let subject = Subject::of(args)?;
        let (set, categories) = args.categories.load(&args.data)?;
        std::fs::create_dir_all(&args.out).with_context(|| format!("cannot make the folder {}", args.out.display()))?;
        let (split, split_path) = split(args, &set)?;
        let limit = args.limit.map_or(usize::MAX, |l| l as usize);
        let first = |items: &[usize]| items.iter().copied().take(limit).collect::<Vec<_>>();
        let (valid, test) = (first(&split.valid), first(&split.test));
        ensure!(!valid.is_empty() && !test.is_empty(), "{}: no validation or no test items", split_path.display());
        warn_of_contradictions(&set, &[&valid[..], &test].concat());
        let capability = args.mmlu.as_ref().map(|f| mmlu::load(f, 0, &[], Some(args.per_subject))).transpose()?;
        let systems = args.prompt.systems(usize::MAX)?;
        Ok((Self { set, split, split_path, categories, valid, test, capability, systems }, subject))
    }

    /// A task on some items of the data.
    fn task(&self, args: &Args, which: &[usize], train: &[usize], part: &str) -> anyhow::Result<Task> {
        let protocol = Protocol::from(args.protocol);
        let mut selection = part_facts(&self.split_path, part, args.limit)?;
        if let Some(categories) = &self.categories {
            selection["categories"] = categories.clone();
        }
        Ok(Task {
            name: "truthfulqa",
            benchmark: benchmark(&self.set, which, protocol)?,
            train: (!train.is_empty()).then(|| benchmark(&self.set, train, protocol)).transpose()?,
            choose: None,
            data: vec![DataFile { path: args.data.clone(), sha256: self.set.sha256.clone() }],
            selection,
        })
    }
}

/// What was measured of all configurations.
struct Measured {
    on_valid: Analysis,
    capability: Option<Analysis>,
    on_text: Box<Whole>,
    systems: SystemPrompts,
}

/// What the configurations are measured on.
struct MeasuredOn<'a> {
    valid: &'a Task,
    text: &'a Text,
}

/// How measuring ended.
enum Outcome {
    /// All results are there.
    Whole(Box<Measured>),
    /// Those of one shard are.
    Shard,
    /// By Ctrl-C.
    Stopped,
}

/// Measures all configurations, and the system prompts, on the validation items; the configurations also on what they may
/// cost.
fn measure(
    sweep: &Sweep<'_>,
    inputs: &mut Inputs,
    style: &Style,
    task: &Task,
    text: &Text,
    conditions: &[Condition],
) -> anyhow::Result<Outcome> {
    let on_valid = sweep.task("valid.jsonl", task, style, conditions)?;
    if on_valid.is_stopped() {
        return Ok(Outcome::Stopped);
    }
    let mut systems = inputs.systems.clone();
    if systems.texts.len() > 1 && refuses_system_prompts(style, &sweep.model).is_none() {
        match sweep.task("system-prompts.jsonl", task, style, &systems.conditions())? {
            Part::Stopped => return Ok(Outcome::Stopped),
            Part::Shard => {}
            Part::Whole(whole) => {
                systems = SystemPrompts::best(&whole.analysis.tables[0], "valid", inputs.valid.len())
                    .context("internal: no system prompt was measured")?;
                say_chosen(&systems);
            }
        }
    }
    let mut capability = None;
    if let Some((benchmark, data)) = inputs.capability.take() {
        let style = capability_style(sweep.args, &sweep.model)?;
        let selection = json!({ "few_shot": 0, "per_subject": sweep.args.per_subject });
        let task = Task { name: "mmlu", benchmark, train: None, choose: None, data, selection };
        let part = sweep.task("mmlu.jsonl", &task, &style, conditions)?;
        if part.is_stopped() {
            return Ok(Outcome::Stopped);
        }
        capability = part.whole().map(|w| w.analysis);
    }
    let on_text = sweep.text(text, conditions)?;
    if on_text.is_stopped() {
        return Ok(Outcome::Stopped);
    }
    Ok(match (on_valid.whole(), on_text.whole()) {
        (Some(on_valid), Some(on_text)) => {
            Outcome::Whole(Box::new(Measured { on_valid: on_valid.analysis, capability, on_text, systems }))
        }
        _ => Outcome::Shard,
    })
}

/// Says what the chosen configuration costs: in the results of the text it is one of the conditions.
fn price_of(chosen: &Configuration, on_text: &Run) -> anyhow::Result<Price> {
    let name = chosen.name();
    let records = |condition: &str| {
        on_text.under(condition).with_context(|| format!("the results on text lack the condition {condition:?}"))
    };
    Price::of_records(records(UNSTEERED)?, records(&name)?).context("internal: the results on text hold no scores")
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let model = &args.model.model;
    let args = Args { compare: names::others(&args.compare, model)?, ..args };
    let (mut inputs, subject) = Inputs::read(&args)?;
    let protocol = Protocol::from(args.protocol);
    let model = args.model.load()?;
    let subject = subject.loaded(&model)?;
    let style = args.prompt.style(
        args.prompt.preamble(default_preset(protocol))?,
        QUESTION_FORM,
        protocol,
        args.seed,
        &model,
    )?;
    let on_valid_items = inputs.task(&args, &inputs.valid, &[], "valid")?;
    let points = Points::new(&args, &subject, &style, &on_valid_items.benchmark, &model)?;
    let text = match &args.text {
        Some(path) => Text::of_file(path, &model, WINDOW, Some(args.windows))?,
        None => Text::neutral(&model, None)?,
    };
    let conditions: Vec<Condition> =
        [Condition::unsteered()].into_iter().chain(points.list.iter().map(|p| p.condition())).collect();
    let base = new_manifest(&model, args.model.threads(), args.seed)?;
    let sweep = Sweep { base, model, args: &args, shard: args.shard.unwrap_or_default() };
    match measure(&sweep, &mut inputs, &style, &on_valid_items, &text, &conditions)? {
        Outcome::Stopped => Ok(ExitCode::FAILURE),
        Outcome::Shard => {
            let (shard, folder) = (sweep.shard, args.out.display().to_string());
            if args.json {
                streams::out_json(json!({ "shard": shard, "folder": folder }));
            } else {
                println!(
                    "Shard {shard} is in {folder}. With all shards there, the same command without --shard goes on."
                );
            }
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Whole(measured) => {
            let on = MeasuredOn { valid: &on_valid_items, text: &text };
            finish(&sweep, &inputs, &subject, &style, &points, on, &measured)
        }
    }
}

/// Chooses a configuration, measures it on the test items with all baselines, and prints everything.
fn finish(
    sweep: &Sweep<'_>,
    inputs: &Inputs,
    subject: &Loaded,
    style: &Style,
    points: &Points,
    on: MeasuredOn<'_>,
    measured: &Measured,
) -> anyhow::Result<ExitCode> {
    let args = sweep.args;
    let file_name = || subject.path.display().to_string();
    let Measured { on_valid, on_text, .. } = measured;
    // Earlier configurations of the folder count among those that were tried, whether or not they are asked for again.
    let tried =
        measured_points(&on_valid.manifest, &points.list, &subject.vector, &sweep.model).with_context(file_name)?;
    let rule = args.budget.map_or(ChoiceRule::OneStandardError, |kl| ChoiceRule::Budget { kl });
    let kl = on_text.analysis.tables.iter().find(|t| t.measure.kind == Kind::Divergence);
    let kl = kl.context("internal: the results on text hold no KL")?;
    let (priced, others): (Vec<Configuration>, Vec<_>) =
        tried.iter().cloned().partition(|p| kl.row(&p.name()).is_some());
    if !others.is_empty() {
        eprintln!(
            "bidpo: {} settings of an earlier sweep have no results on the text and cannot be chosen; name their scales and \
             layers to measure them",
            others.len()
        );
    }
    let chosen = choose(&priced, &on_valid.tables[0], kl, rule)?;
    let price = price_of(chosen, &on_text.run)?;
    let sha256 = sha256_of_file(&subject.path).with_context(file_name)?;
    let facts = vector_facts(&subject.path, &sha256, chosen.factor, chosen.place.percent(), &subject.vector);
    let chosen_on = ChosenOn {
        part: "valid".into(),
        items: inputs.valid.len(),
        settings: tried.len(),
        rule: Some(rule),
        other: serde_json::Map::new(),
    };
    let layers = chosen.place.layer().map(Layers::one);
    let kind = ConditionKind::Steered { vectors: vec![facts], layers, chosen_on: Some(chosen_on) };
    let control = Some(chosen.control.clone());
    let steered = Steered { control, kind, training_pairs: training_pairs(&subject.vector) };
    let train = &inputs.split.train;
    let train = &train[..train.len().min(args.prompt.train_limit.map_or(usize::MAX, |n| n as usize))];
    let on_test_items = inputs.task(args, &inputs.test, train, "test")?;
    let baselines = Baselines {
        model: &sweep.model,
        steered: Some(&steered),
        wanted: &Baseline::ALL,
        others: &args.compare,
        n_random: args.random as usize,
        systems: &measured.systems,
        n_shots: args.prompt.shots.map(|n| n as usize),
        style,
        benchmark: &on_test_items.benchmark,
        train: on_test_items.train.as_ref(),
        n_threads: args.model.threads(),
    };
    let made = baselines.conditions(&mut say)?;
    // An adapter has no norm that another file could have.
    let at_layer = match chosen.place {
        Place::Layer { layer, percent, .. } if !args.same_norm_only => Some((layer, percent)),
        _ => None,
    };
    let compared = match at_layer {
        Some((layer, percent)) => Compared::among(&made, &args.compare, &subject.vector, layer, percent)?,
        None => Vec::new(),
    };
    let mut conditions = made.list;
    let mut found = None;
    if let (Some((layer, _)), false) = (at_layer, compared.is_empty()) {
        let kl = kl.row(&chosen.name()).context("internal: the chosen setting has no KL")?.estimate.value;
        // An earlier run may have swept the chosen layer.
        let norms = match points.norms.contains_key(&layer) {
            true => points.norms.clone(),
            false => median_norms(args, style, &on.valid.benchmark, &sweep.model, &[layer])?,
        };
        let norm = *norms.get(&layer).context("internal: the chosen layer has no norm")?;
        let comparisons = Comparisons { sweep, norm, rule, kl, style, on_valid: on.valid, text: on.text };
        let Some(of_compared) = comparisons.find(&compared, &percents(args)?)? else { return Ok(ExitCode::FAILURE) };
        conditions.extend(of_compared.conditions.iter().cloned());
        unique_names(&conditions)?;
        found = Some(of_compared);
    }
    // With all that was tried for the other vectors.
    let on_valid = found.as_ref().map_or(on_valid, |f| &f.on_valid.analysis);
    let on_text = found.as_ref().map_or(on_text, |f| &f.on_text);
    // Another choice is another run: its file stands beside the earlier one's, for everybody to see.
    let file = match chosen.place {
        Place::Layer { layer, percent, .. } => format!("test-layer{layer}{percent:+}pc.jsonl"),
        Place::Matrices => format!("test-scale{:+}.jsonl", chosen.factor),
    };
    let Part::Whole(on_test) = sweep.task(&file, &on_test_items, style, &conditions)? else {
        return Ok(ExitCode::FAILURE);
    };
    let costs = || measured.capability.iter().chain([&on_text.analysis]);
    let best = best(&tried, &on_valid.tables[0]).map(Configuration::name).unwrap_or_default();
    if args.json {
        let object = json!({
            "chosen": {
                "layer": chosen.place.layer(), "percent": chosen.place.percent(), "factor": chosen.factor, "rule": rule,
                "best": best,
            },
            "price": price,
            "residual_norm_median": points.norms,
            "valid": report::json(on_valid),
            "costs": costs().map(report::json).collect::<Vec<_>>(),
            "test": report::json(&on_test.analysis),
        });
        streams::out_json(object);
    } else {
        println!("{}", report::markdown(on_valid));
        costs().for_each(|a| println!("{}", report::markdown(a)));
        let why = match rule {
            ChoiceRule::OneStandardError if best == chosen.name() => {
                "the best, and no smaller scale is near".to_owned()
            }
            ChoiceRule::OneStandardError => format!("the smallest scale within one standard error of the best, {best}"),
            ChoiceRule::Budget { kl } => format!("the best with a KL of at most {kl} nats a token"),
        };
        println!("Chosen on the {} validation items: {} ({why}).", inputs.valid.len(), chosen.name());
        println!("{}", price.in_words_of(&chosen.name(), on.text.windows_word(), ""));
        println!("On the test items, which it was not chosen by:\n");
        print!("{}", report::markdown(&on_test.analysis));
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
