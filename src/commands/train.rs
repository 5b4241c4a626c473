//! `bidpo train`: preference pairs in, a control vector and its card out.

mod progress;
mod report;

use crate::args::data::list;
use crate::args::template::{VariableArgs, say_notes};
use crate::terminal::interrupt::stop_flag;
use anyhow::{Context as _, bail, ensure};
use bidpo_core::check::middle_layer;
use bidpo_core::data::inspect::{PairText, inspect};
use bidpo_core::data::{ChatTemplate, PairGroups, PreferenceSet, SkippedRow, SplitBy, TemplateChoice, Think};
use bidpo_core::engine::{BatchPlan, Cache, CacheType, Engine, check_model};
use bidpo_core::eval::price::{Price, neutral_passages};
use bidpo_core::intervention::{KindSpec, Scope};
use bidpo_core::layers::Layers;
use bidpo_core::steer::{ModelIdentity, ScaledVector, SteeringVector, combine};
use bidpo_core::train::{
    Backward, CheckpointParts, CheckpointPlan, ChooseBy, Forward, HeldOut, HeldOutFractions, HeldOutPairs,
    IdentitySource, LearningRate, NamedPair, Objective, Parts, Precision, RecordedIdentity, RunInputs, Schedule, Stop,
    TrainConfig, TrainError, Trainer, TrainingBudget, VectorCard, checkpoint_parts, encode_pair, mean_logp_diff,
};
use ggml_grad::files::{FileError, check_writable, display_name};
use ggml_grad::graph::cpu_level;
use ggml_grad::llama::{AbortMessage, Model};
use progress::Progress;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Instant, SystemTime};

/// Options of `bidpo train`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: crate::args::ModelArgs,
    /// Preference pairs: JSON Lines, JSON, CSV, TSV (also .gz, .zst) or Parquet in any usual form (docs/data.md), or a built-in
    /// set: misconceptions, plain-vs-flowery.
    #[arg(long, short = 'd', value_name = "FILE|NAME", default_value = "misconceptions")]
    data: PathBuf,
    #[command(flatten)]
    read: crate::args::data::DataArgs,
    /// Layer whose output is steered [default: the middle one].
    #[arg(long, short = 'l', value_name = "L")]
    layer: Option<usize>,
    /// Several layers with one direction each, trained together: 10-20, or 5,9,12-14.
    #[arg(long, value_name = "LIST", conflicts_with = "layer")]
    layers: Option<Layers>,
    /// File of the vector; its card goes into a .md file of the same name [default: named after data and model].
    #[arg(long = "output", short = 'o', value_name = "FILE.gguf")]
    output: Option<PathBuf>,
    /// Chat template: auto (the model's own), none, a known name, or a Jinja file.
    #[arg(long, default_value = "auto", value_name = "T")]
    template: TemplateChoice,
    #[command(flatten)]
    variables: VariableArgs,
    /// Thoughts in answers that are trained: auto (as finished chats of the template hold the answer: after an empty thought
    /// or none), skip (the same, and a thought that an answer brings along is left out), keep (after the generation prompt as
    /// it stands, for answers that begin with the thought).
    #[arg(long, default_value_t = Think::Auto, value_name = "auto|skip|keep")]
    think: Think,
    /// Objective: bidpo (the vector works in both directions) or dpo.
    #[arg(long, default_value = "bidpo")]
    objective: Objective,
    /// Inverse temperature of the preference model.
    #[arg(long, default_value_t = 0.1, value_parser = positive)]
    beta: f64,
    /// Learning rate: auto, a number in the units of the residual stream, or a percentage of the median residual norm
    /// (several layers share the percentage).
    #[arg(long, default_value = "auto", value_name = "LR")]
    lr: LearningRate,
    /// Learning-rate schedule after the warm-up: cosine, linear or constant.
    #[arg(long, default_value = "cosine")]
    schedule: Schedule,
    /// Warm-up ratio: fraction of the steps in which the learning rate rises.
    #[arg(long, default_value_t = 0.1, value_parser = fraction)]
    warmup: f64,
    /// Decoupled weight decay, in the units of the residual stream: no component grows beyond its inverse. 0: none.
    #[arg(long, default_value_t = 0.05, value_parser = not_negative)]
    weight_decay: f64,
    /// Training pairs in a step.
    #[arg(long, default_value_t = 8, value_parser = at_least_one)]
    batch: usize,
    /// Passes over the training pairs.
    #[arg(long, default_value_t = 5, value_parser = at_least_one, conflicts_with = "steps")]
    epochs: usize,
    /// Optimizer steps, instead of --epochs.
    #[arg(long, value_parser = at_least_one)]
    steps: Option<usize>,
    /// Seed of the split, of the order of the pairs and of their directions.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Maximum L2 norm of a step's gradient [default: none].
    #[arg(long, visible_alias = "max-grad-norm", value_parser = positive)]
    clip: Option<f64>,
    /// Fraction of the pairs for validation, which chooses the best epoch [default: a sixth].
    #[arg(long, value_name = "FRACTION", value_parser = fraction)]
    val: Option<f64>,
    /// Fraction of the pairs held out as test pairs, to measure the finished vector on [default: a sixth].
    #[arg(long, value_name = "FRACTION", value_parser = fraction)]
    test: Option<f64>,
    /// Pairs that stay in one part: groups (near-duplicate prompts, or answers that are the same but for names, numbers and
    /// one word), prompts (near-duplicate prompts) or pairs (none: the rule of bidpo 0.2.0, under which held-out pairs may
    /// repeat training pairs).
    #[arg(long, value_name = "RULE", default_value = "groups")]
    split_by: SplitBy,
    /// Epochs without a lower validation loss before stopping; 0 never stops.
    #[arg(long, default_value_t = 3)]
    patience: usize,
    /// Scales that validation averages over: both (+1 and -1) or positive (+1, for a vector that is only added)
    /// [default: those that the objective trains].
    #[arg(long, value_name = "SCALES")]
    choose_by: Option<ChooseBy>,
    /// Scale the finished vector to this percentage of the median residual norm (several layers: the mean over them).
    #[arg(long, value_name = "PERCENT", value_parser = percentage)]
    renorm: Option<f64>,
    /// A system prompt to compare with on the test pairs (each built-in set has one). Repeat it to give several: the best on
    /// the validation pairs is compared.
    #[arg(long = "baseline-prompt", value_name = "TEXT")]
    baseline_prompts: Vec<String>,
    /// Resume from the checkpoint of an interrupted run.
    #[arg(long, conflicts_with = "fresh")]
    resume: bool,
    /// Start again and overwrite an existing checkpoint.
    #[arg(long)]
    fresh: bool,
    /// Steps between checkpoints.
    #[arg(long, default_value_t = 10, value_parser = at_least_one, hide_short_help = true)]
    checkpoint_every: usize,
    /// Directory of cached activations (residual stream and reference log-probabilities of each pair), written and read.
    /// Off unless given here or in BIDPO_CACHE.
    #[arg(long, value_name = "DIR", env = "BIDPO_CACHE")]
    cache: Option<PathBuf>,
    /// Dtype of the cached residual streams: f32, or bf16, half as large and rounded.
    #[arg(long, visible_alias = "cache-dtype", default_value = "f32", value_name = "TYPE", hide_short_help = true)]
    cache_type: CacheType,
    /// Kernels of the forward pass: `fast` uses bidpo's where they are faster (the same arithmetic in a different reduction
    /// order; `bidpo check` measures the effect), `exact` only kernels that are bit-exact with llama_decode.
    #[arg(long, value_name = "KERNELS", default_value = "fast", hide_short_help = true)]
    forward: Forward,
    /// Kernels of the backward pass with quantized weights: both operands rounded to bf16 where the CPU multiplies bf16
    /// (sums in f32), or f32.
    #[arg(long, value_name = "DTYPE", default_value = "bf16", hide_short_help = true)]
    backward: Backward,
    /// Train although model and activations exceed the free memory.
    #[arg(long, hide_short_help = true)]
    allow_swap: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

fn number(s: &str, ok: impl Fn(f64) -> bool, what: &str) -> Result<f64, String> {
    s.parse::<f64>().ok().filter(|&x| x.is_finite() && ok(x)).ok_or_else(|| format!("must be {what}"))
}

fn positive(s: &str) -> Result<f64, String> {
    number(s, |x| x > 0.0, "a positive number")
}

fn not_negative(s: &str) -> Result<f64, String> {
    number(s, |x| x >= 0.0, "zero or a positive number")
}

fn fraction(s: &str) -> Result<f64, String> {
    number(s, |x| (0.0..1.0).contains(&x), "at least 0 and below 1")
}

fn percentage(s: &str) -> Result<f64, String> {
    number(s.strip_suffix('%').unwrap_or(s), |x| x > 0.0, "a positive percentage such as 5%")
}

fn at_least_one(s: &str) -> Result<usize, String> {
    usize::from_str(s).ok().filter(|&n| n > 0).ok_or_else(|| "must be a whole number of at least 1".into())
}

impl Args {
    fn config(&self, layers: Layers) -> TrainConfig {
        TrainConfig {
            layers,
            kind: KindSpec::default(),
            scope: Scope::ALL,
            objective: self.objective,
            beta: self.beta,
            learning_rate: self.lr,
            schedule: self.schedule,
            warmup_ratio: self.warmup,
            weight_decay: self.weight_decay,
            precision: Precision { forward: self.forward, backward: self.backward },
            batch: self.batch,
            budget: self.steps.map_or(TrainingBudget::Epochs(self.epochs), TrainingBudget::Steps),
            seed: self.seed,
            max_grad_norm: self.clip,
            patience: self.patience,
            choose_by: self.choose_by,
            renorm: self.renorm,
            checkpoint_every: self.checkpoint_every,
            allow_swap: self.allow_swap,
        }
    }

    fn held_out(&self) -> HeldOutFractions {
        HeldOutFractions { valid: self.val, test: self.test }
    }
}

/// Files that a run writes.
struct Files {
    vector: PathBuf,
    card: PathBuf,
    checkpoint: PathBuf,
}

impl Files {
    /// The files of these options, each of them checked before any work.
    fn new(args: &Args, set: &str) -> anyhow::Result<Self> {
        let vector = args.output.clone().unwrap_or_else(|| default_output(set, &args.model.model));
        ensure!(
            vector.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")),
            "{}: the vector's file name must end in .gguf, so that other programs know it",
            vector.display()
        );
        let files = Self { card: vector.with_extension("md"), checkpoint: vector.with_extension("ckpt"), vector };
        for path in [&files.vector, &files.card, &files.checkpoint] {
            check_writable(path).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let checkpoint = files.checkpoint.display();
        if args.resume {
            ensure!(files.checkpoint.exists(), "there is no checkpoint {checkpoint} to resume from");
        } else if files.checkpoint.exists() && !args.fresh {
            bail!(
                "{checkpoint} is left from an unfinished run: add --resume to continue it, or --fresh to start again"
            );
        }
        Ok(files)
    }

    fn remove_checkpoint(&self) -> anyhow::Result<()> {
        match std::fs::remove_file(&self.checkpoint) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("cannot remove {}", self.checkpoint.display()))
            }
            _ => Ok(()),
        }
    }

    /// Tells ggml's abort handler what to say about the checkpoint.
    fn announce_checkpoint(&self, args: &Args) {
        let how = if args.fresh { "--resume instead of --fresh" } else { "--resume" };
        ggml_grad::llama::set_abort_message(Some(AbortMessage {
            file: self.checkpoint.clone(),
            // A file older than this run's first checkpoint belongs to another run.
            since: if args.resume { SystemTime::UNIX_EPOCH } else { SystemTime::now() },
            text: format!(
                "the checkpoint {} is intact: the same command with {how} continues from it, also with other devices",
                self.checkpoint.display()
            ),
        }));
    }
}

/// The pairs of a run.
struct Pairs {
    train: Vec<NamedPair>,
    valid: Vec<NamedPair>,
    test: Vec<NamedPair>,
    /// The pairs with each of the baseline's system prompts.
    prompted: Vec<Prompted>,
}

/// A set in tokens, in the order of its file.
struct EncodedSet<'a> {
    set: &'a PreferenceSet,
    model: &'a Model,
    template: &'a ChatTemplate,
    pairs: Vec<NamedPair>,
}

/// The pairs of the set in tokens. Those that cannot be trained on (too long for the model's context, refused by the template)
/// are taken out of the set and said, up to half of all; the first of them is an error if `strict`.
fn encode_usable(
    set: &mut PreferenceSet,
    model: &Model,
    template: &ChatTemplate,
    strict: bool,
) -> anyhow::Result<Vec<NamedPair>> {
    let all = std::mem::take(&mut set.pairs);
    let n = all.len();
    let (mut encoded, mut left_out, mut first) = (Vec::with_capacity(n), Vec::new(), None);
    for pair in all {
        match encode_pair(&pair, model, template, None) {
            Ok(named) => {
                encoded.push(named);
                set.pairs.push(pair);
            }
            Err(error) if strict || n == 1 => return Err(error.into()),
            Err(error) => {
                left_out.push(SkippedRow { place: pair.origin, reason: error.reason() });
                first.get_or_insert(error);
            }
        }
    }
    if let Some(error) = first.filter(|_| 2 * left_out.len() > n) {
        let error = anyhow::Error::from(error);
        return Err(
            error.context(format!("{} of {n} pairs cannot be trained on, more than half; the first", left_out.len()))
        );
    }
    list(&left_out, n, "pairs cannot be trained on and are left out (--strict stops at the first)");
    set.reading.skipped.extend(left_out);
    Ok(encoded)
}

impl<'a> EncodedSet<'a> {
    fn pick(&self, indices: &[usize]) -> Vec<NamedPair> {
        indices.iter().map(|&i| self.pairs[i].clone()).collect()
    }

    fn parts(&self, parts: &Parts, baseline_prompts: &[&str]) -> anyhow::Result<Pairs> {
        let split = &parts.split;
        let prompted = |text: &str| -> anyhow::Result<Prompted> {
            let one = |&i: &usize| encode_pair(&self.set.pairs[i], self.model, self.template, Some(text));
            // A single prompt is not chosen.
            let valid: &[usize] = if baseline_prompts.len() > 1 { &split.valid } else { &[] };
            Ok(Prompted {
                text: text.to_owned(),
                valid: valid.iter().map(one).collect::<Result<_, _>>()?,
                test: split.test.iter().map(one).collect::<Result<_, _>>()?,
            })
        };
        Ok(Pairs {
            prompted: baseline_prompts.iter().map(|text| prompted(text)).collect::<Result<_, _>>()?,
            train: self.pick(&split.train),
            valid: self.pick(&split.valid),
            test: self.pick(&split.test),
        })
    }
}

/// Pairs with a system prompt.
struct Prompted {
    text: String,
    valid: Vec<NamedPair>,
    test: Vec<NamedPair>,
}

impl Pairs {
    /// Tokens of the longest pair.
    fn longest(&self) -> usize {
        let plain = [&self.train, &self.valid, &self.test].into_iter().flatten();
        let prompted = self.prompted.iter().flat_map(|p| p.valid.iter().chain(&p.test));
        plain.chain(prompted).map(|p| p.tokens.n_tokens()).max().unwrap_or_default()
    }
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let passages = n_passages()?;
    let mut set = args.read.open(&args.data)?;
    let files = Files::new(&args, &set.name)?;
    let model = args.model.load_within_memory(args.allow_swap)?;
    let layers = args.layers.clone().unwrap_or_else(|| Layers::one(args.layer.unwrap_or_else(|| middle_layer(&model))));
    for &layer in layers.iter() {
        check_model(&model, layer)?;
    }
    let template = args.variables.open(&model, &args.template, args.think)?;
    let pairs = encode_usable(&mut set, &model, &template, args.read.strict)?;
    let texts: Vec<PairText> = set.pairs.iter().map(PairText::from).collect();
    let groups = PairGroups::new(&texts, args.split_by);
    let parts = Parts::new(&groups, args.seed, args.held_out())?;
    note_data(&set, &texts);
    let baseline_prompts: Vec<&str> = match args.baseline_prompts.is_empty() {
        true => PreferenceSet::builtin_baseline_prompt(&set.name).into_iter().collect(),
        false => args.baseline_prompts.iter().map(String::as_str).collect(),
    };
    let encoded = EncodedSet { set: &set, model: &model, template: &template, pairs };
    let identity = ModelIdentity::of(&model).with_context(|| format!("hashing {}", model.path().display()))?;
    let config = args.config(layers);
    let cache = open_cache(&args, &identity)?;
    let template_sha256 = template.sha256();
    let inputs = RunInputs {
        model_sha256: identity.sha256.clone(),
        template_sha256: template_sha256.clone(),
        // Rounded activations train another vector.
        bf16_activations: cache.is_some() && args.cache_type == CacheType::Bf16,
    };
    let legacy = match args.resume {
        true => legacy_parts(&args, &files, &config, &inputs, &encoded, &parts)?,
        false => None,
    };
    let split_by = if legacy.is_some() { SplitBy::Pairs } else { args.split_by };
    if legacy.is_none() {
        if split_by == SplitBy::Pairs {
            eprintln!("note: --split-by pairs cuts groups: held-out pairs may be near-duplicates of training pairs");
        }
        note_groups(&groups, &parts, &texts);
    }
    let parts = legacy.unwrap_or(parts);
    let pairs = encoded.parts(&parts, &baseline_prompts)?;
    say_notes(&template, 0);
    ensure!(
        pairs.prompted.len() < 2 || !pairs.valid.is_empty() || pairs.test.is_empty(),
        "{} prompts with --baseline-prompt, but no validation pair to choose the best of them by: give one prompt, or hold out \
         pairs with --val",
        pairs.prompted.len()
    );
    describe(&args, &config, &model, &identity, &template, &set.name, &pairs);
    let mut engine = Engine::new(&model, &config.layers, pairs.longest(), 1, args.model.threads())?.with_cache(cache);
    let interrupt =
        stop_flag("stopping as soon as the vector so far can be saved; press Ctrl-C again to stop at once")?;
    let plan = CheckpointPlan { path: files.checkpoint.clone(), resume: args.resume, inputs };
    files.announce_checkpoint(&args);
    let mut progress = Progress::new();
    let mut trainer = Trainer { engine: &mut engine, config: &config, checkpoints: Some(&plan), interrupt: &interrupt };
    let trained = trainer.train(&pairs.train, &pairs.valid, &mut |event| progress.show(&event))?;
    progress.finish();

    if trained.best_step == 0 {
        if let Stop::NotFinite { pair, .. } = &trained.stop {
            files.remove_checkpoint()?;
            bail!("the loss was not finite at step 1, pair {pair}: there is no good vector to save");
        }
        bail!("interrupted before the first step: there is nothing to save");
    }
    let vector = trained.renormalised(config.renorm);
    let mut file = trained.steering_vector(config.renorm, &identity.architecture)?;
    let kept = || {
        let checkpoint = files.checkpoint.display();
        format!("measuring (the trained vector is kept in {checkpoint}, --resume continues from it)")
    };
    let plan = trained.summary.batch_plan;
    let mut best_prompt = pairs.prompted.first();
    let heldout = if trained.complete() && !pairs.test.is_empty() {
        best_prompt = choose_prompt(&mut engine, &pairs.prompted, plan, &interrupt).with_context(kept)?;
        let test = HeldOutPairs {
            test: &pairs.test,
            groups: &parts.test_groups,
            prompted: best_prompt.map(|p| p.test.as_slice()),
        };
        let measured = HeldOut::of_pairs(&mut engine, test, plan, &vector, args.seed, &interrupt, &mut |event| {
            progress.show(&event)
        });
        progress.finish();
        let measured = measured.with_context(kept)?;
        if let Some(cache) = engine.cache() {
            eprintln!("{} in all", progress::cache_line(cache.folder(), &cache.used()));
        }
        Some(measured)
    } else {
        None
    };
    let price = match trained.complete() {
        true => price(&model, &file, passages, args.model.threads(), &interrupt).with_context(kept)?,
        false => None,
    };
    let cpu = cpu_level().map_or_else(|_| "unknown", |level| level.name());
    let card = VectorCard {
        config: &config,
        trained: &trained,
        model: &identity,
        template: (&template.described(), &template_sha256),
        data: (&set.name, &set.sha256),
        split: [pairs.train.len(), pairs.valid.len(), pairs.test.len()],
        split_by,
        vector: &vector,
        heldout: heldout.as_ref(),
        baseline_prompt: best_prompt.map(|p| p.text.as_str()),
        prompts_tried: pairs.prompted.len(),
        price: price.as_ref(),
        threads: args.model.threads(),
        cpu,
    };
    file.provenance = card.provenance();
    file.save(&files.vector)?;
    ggml_grad::files::write_atomically(&files.card, card.card(&display_name(&files.vector))?.as_bytes())
        .map_err(FileError::write(&files.card))?;
    // A run whose loss is not finite would only get there again.
    if !matches!(trained.stop, Stop::Interrupted) {
        files.remove_checkpoint()?;
    }
    report::print(&args, &card, &files, &set.reading)?;
    Ok(if trained.complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The system prompt under which the unsteered model does best on the validation pairs; a single one is not measured.
fn choose_prompt<'a>(
    engine: &mut Engine,
    prompted: &'a [Prompted],
    plan: BatchPlan,
    interrupt: &AtomicBool,
) -> Result<Option<&'a Prompted>, TrainError> {
    if prompted.len() < 2 {
        return Ok(prompted.first());
    }
    let mut best: Option<(f64, &Prompted)> = None;
    for p in prompted {
        let difference = mean_logp_diff(engine, &p.valid, plan, interrupt)?;
        eprintln!(
            "system prompt {:?}: log-probability difference {difference:+.2} nats on the validation pairs",
            p.text
        );
        if best.is_none_or(|(most, _)| difference > most) {
            best = Some((difference, p));
        }
    }
    Ok(best.map(|(_, p)| p))
}

/// Neutral passages to measure on: all of them. Tests, which train hundreds of vectors, take fewer by BIDPO_NEUTRAL_PASSAGES; the
/// output and the card give their number.
fn n_passages() -> anyhow::Result<usize> {
    const VARIABLE: &str = "BIDPO_NEUTRAL_PASSAGES";
    let all = neutral_passages().len();
    let Some(value) = std::env::var_os(VARIABLE) else { return Ok(all) };
    let n = value.to_str().and_then(|v| v.parse().ok()).filter(|n| (2..=all).contains(n));
    n.with_context(|| format!("{VARIABLE} is {value:?}: expected a number from 2 to {all}"))
}

/// Measures the vector on neutral text; a zero vector has no price.
fn price(
    model: &Arc<Model>,
    vector: &SteeringVector,
    passages: usize,
    n_threads: u32,
    interrupt: &AtomicBool,
) -> anyhow::Result<Option<Price>> {
    let started = Instant::now();
    let scaled = ScaledVector { name: String::new(), vector: Arc::new(vector.clone()), scale: 1.0 };
    let Some(control) = combine(&[scaled], None, model)? else {
        eprintln!("warning: the vector is zero: the pairs gave no gradient");
        return Ok(None);
    };
    let price = Price::measure(model, &control, passages, n_threads, interrupt)?;
    eprintln!("measured on {} neutral passages in {:.1} s", price.passages, started.elapsed().as_secs_f64());
    Ok(Some(price))
}

/// Prints model, settings and data on stderr.
fn describe(
    args: &Args,
    config: &TrainConfig,
    model: &Model,
    identity: &ModelIdentity,
    template: &ChatTemplate,
    set: &str,
    pairs: &Pairs,
) {
    eprintln!(
        "{} ({}), {} of {}, {} thread{}, template {}",
        identity.name,
        model.description(),
        config.layers.labelled(),
        model.n_layer(),
        args.model.threads(),
        if args.model.threads() == 1 { "" } else { "s" },
        template.described()
    );
    eprintln!(
        "{set}: {} training pairs, {} validation pairs, {} test pairs",
        pairs.train.len(),
        pairs.valid.len(),
        pairs.test.len()
    );
}

/// The cache of activations, if one is wanted. An empty BIDPO_CACHE means none.
fn open_cache(args: &Args, identity: &ModelIdentity) -> anyhow::Result<Option<Cache>> {
    let Some(directory) = args.cache.as_deref().filter(|d| !d.as_os_str().is_empty()) else { return Ok(None) };
    let context = format!("{} {}", identity.sha256, if args.model.repack { "repacked" } else { "plain" });
    let cache = Cache::open(directory, args.cache_type, &context)
        .with_context(|| format!("cannot use {} as a cache", directory.display()))?;
    Ok(Some(cache))
}

/// The parts of bidpo 0.2.0, where the checkpoint to resume from was made with them.
fn legacy_parts(
    args: &Args,
    files: &Files,
    config: &TrainConfig,
    inputs: &RunInputs,
    set: &EncodedSet<'_>,
    current: &Parts,
) -> anyhow::Result<Option<Parts>> {
    let legacy = Parts::legacy(set.pairs.len(), args.seed, args.held_out())?;
    let accepts = |parts: &Parts, recorded: &RecordedIdentity| {
        let (train, valid) = (set.pick(&parts.split.train), set.pick(&parts.split.valid));
        IdentitySource { config, inputs, train: &train, valid: &valid }.accepts(recorded)
    };
    let made_with = checkpoint_parts(&files.checkpoint, |r| accepts(current, r), |r| accepts(&legacy, r))?;
    if made_with != CheckpointParts::Legacy {
        return Ok(None);
    }
    eprintln!(
        "note: the checkpoint was made by an older bidpo, which split pair by pair and kept repeats: the run continues with \
         that split, and its held-out pairs may repeat training pairs"
    );
    Ok(Some(legacy))
}

/// Prints what the user should know about the parts.
fn note_groups(groups: &PairGroups, parts: &Parts, texts: &[PairText]) {
    match groups.repeated[..] {
        [] => {}
        [(earlier, later)] => eprintln!(
            "note: one pair repeats an earlier one word for word and is left out: {} repeats {}",
            texts[later].place, texts[earlier].place
        ),
        [(earlier, later), ..] => eprintln!(
            "note: {} pairs repeat earlier ones word for word and are left out (the first: {} repeats {})",
            groups.repeated.len(),
            texts[later].place,
            texts[earlier].place
        ),
    }
    if let [(earlier, later), ..] = groups.swapped[..] {
        eprintln!(
            "warning: {} and {} have the same prompt with chosen and rejected swapped ({} such pair{} in all): one of them \
             is wrong. They stay in one part of the split",
            texts[earlier].place,
            texts[later].place,
            groups.swapped.len(),
            if groups.swapped.len() == 1 { "" } else { "s" }
        );
    }
    for &(first, n) in &groups.common {
        eprintln!(
            "note: {n} of {} pairs share an answer as in {}: these pairs are not kept in one part, so the held-out figures \
             measure that answer on other prompts",
            groups.n_pairs(),
            texts[first].place
        );
    }
    if groups.largest() > 1 {
        eprintln!(
            "note: {} pairs form {} groups of near-duplicates, none of which is cut by the split (the largest has {} pairs)",
            groups.n_pairs(),
            groups.groups.len(),
            groups.largest()
        );
    }
    if let Some(unheld) = parts.unheld {
        let part = match (unheld.valid, unheld.test) {
            (true, true) => "no pair is held out: there is neither validation nor a test",
            (true, false) => "no pair is held out for validation: the last step's vector is kept",
            _ => "no pair is held out for the test: nothing is measured at the end",
        };
        eprintln!(
            "warning: {part}, because the groups of near-duplicates are too large ({} groups, the largest of {} pairs). Give \
             pairs with more different prompts and answers, or see --split-by",
            unheld.groups, unheld.largest
        );
    }
}

/// Prints what the user should know about the data.
fn note_data(set: &PreferenceSet, texts: &[PairText]) {
    match set.n_empty_prompts() {
        0 => {}
        1 => eprintln!("note: the prompt of one pair is empty: it trains on what follows an empty question"),
        n => eprintln!("note: the prompts of {n} pairs are empty: they train on what follows an empty question"),
    }
    for warning in inspect(texts).warnings() {
        eprintln!("note: {warning} (`bidpo data inspect` shows more)");
    }
}

fn default_output(set: &str, model: &Path) -> PathBuf {
    let stem = |s: &str| Path::new(s).file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
    PathBuf::from(format!("{}.{}.gguf", bidpo_core::data::stem(set), stem(&model.to_string_lossy())))
}
