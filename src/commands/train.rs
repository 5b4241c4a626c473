//! `bidpo train`: preference pairs in, a control vector and its card out.

mod progress;

use crate::terminal::interrupt::stop_flag;
use anyhow::{Context as _, bail, ensure};
use bidpo_core::check::middle_layer;
use bidpo_core::data::inspect::{Triple, inspect};
use bidpo_core::data::{
    ChatTemplate, Message, PreferencePair, PreferenceSet, Prompt, Split, TemplateChoice, TokenizedPair, split,
};
use bidpo_core::layers::Layers;
use bidpo_core::steer::{ModelIdentity, SteeringVector};
use bidpo_core::train::{
    Backward, Cache, CacheType, CheckpointPlan, Engine, Forward, HeldOut, Length, NamedPair, Objective, Precision,
    Rate, Record, Schedule, Stop, TrainConfig, Trained, check_model, train,
};
use ggml_grad::files::check_writable;
use ggml_grad::llama::{AbortMessage, Model};
use progress::Progress;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

/// Options of `bidpo train`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: crate::args::ModelArgs,
    /// Preference pairs: a .jsonl, .json or .csv file (prompt, chosen, rejected), or a built-in set: misconceptions,
    /// plain-vs-flowery.
    #[arg(long, short = 'd', value_name = "FILE|NAME", default_value = "misconceptions")]
    data: PathBuf,
    /// Layer whose output is steered [default: the middle one].
    #[arg(long, short = 'l', value_name = "L")]
    layer: Option<usize>,
    /// Several layers, each with a direction of its own, trained together: 10-20, or 5,9,12-14.
    #[arg(long, value_name = "LIST", conflicts_with = "layer")]
    layers: Option<Layers>,
    /// Where the vector goes; its card is written beside it (.md) [default: named after data and model].
    #[arg(long = "output", short = 'o', value_name = "FILE.gguf")]
    output: Option<PathBuf>,
    /// Chat template: auto (the model's own), none, a known name, or a Jinja file.
    #[arg(long, default_value = "auto", value_name = "T")]
    template: TemplateChoice,
    /// What to minimise: bidpo (the vector works in both directions) or dpo.
    #[arg(long, default_value = "bidpo")]
    objective: Objective,
    /// Inverse temperature of the preference model.
    #[arg(long, default_value_t = 0.1, value_parser = positive)]
    beta: f64,
    /// Learning rate: auto, a number in the units of the residual stream, or a percentage of the median residual norm
    /// (several layers share it).
    #[arg(long, default_value = "auto", value_name = "LR")]
    lr: Rate,
    /// Course of the learning rate after the warm-up: cosine, linear or constant.
    #[arg(long, default_value = "cosine")]
    schedule: Schedule,
    /// Share of the steps to warm up.
    #[arg(long, default_value_t = 0.1, value_parser = share)]
    warmup: f64,
    /// Decoupled weight decay.
    #[arg(long, default_value_t = 0.05, value_parser = not_negative)]
    weight_decay: f64,
    /// Pairs in a step.
    #[arg(long, default_value_t = 8, value_parser = at_least_one)]
    batch: usize,
    /// Times through the training pairs.
    #[arg(long, default_value_t = 5, value_parser = at_least_one, conflicts_with = "steps")]
    epochs: usize,
    /// Optimizer steps, instead of --epochs.
    #[arg(long, value_parser = at_least_one)]
    steps: Option<usize>,
    /// Seed of split, order and directions.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Limit on the length of a step's gradient [default: none].
    #[arg(long, value_parser = positive)]
    clip: Option<f64>,
    /// Share of the pairs to choose the best epoch by [default: a sixth].
    #[arg(long, value_name = "SHARE", value_parser = share)]
    val: Option<f64>,
    /// Share of the pairs to hold out for the figures at the end [default: a sixth].
    #[arg(long, value_name = "SHARE", value_parser = share)]
    test: Option<f64>,
    /// Epochs without a better validation loss before stopping; 0 never stops.
    #[arg(long, default_value_t = 3)]
    patience: usize,
    /// Scale the finished vector to this percentage of the median residual norm (several layers: the mean over them).
    #[arg(long, value_name = "PERCENT", value_parser = percentage)]
    renorm: Option<f64>,
    /// A system prompt to compare with on the held-out pairs (the built-in sets bring one).
    #[arg(long, value_name = "TEXT")]
    baseline_prompt: Option<String>,
    /// Go on from the checkpoint of an interrupted run.
    #[arg(long, conflicts_with = "fresh")]
    resume: bool,
    /// Start again although there is a checkpoint.
    #[arg(long)]
    fresh: bool,
    /// Steps between checkpoints.
    #[arg(long, default_value_t = 10, value_parser = at_least_one, hide_short_help = true)]
    checkpoint_every: usize,
    /// Keep what is captured of the pairs in this folder, and read it from there in the next run. Off unless named here
    /// or in BIDPO_CACHE.
    #[arg(long, value_name = "DIR", env = "BIDPO_CACHE")]
    cache: Option<PathBuf>,
    /// How the residual streams lie in the cache: f32, or bf16, half as large and rounded.
    #[arg(long, default_value = "f32", value_name = "TYPE", hide_short_help = true)]
    cache_type: CacheType,
    /// Kernels of the forward pass: `fast` has bidpo's own where they are faster (the same arithmetic, sums in another order;
    /// `bidpo check` says what that does), `exact` only those that give llama_decode's bits.
    #[arg(long, value_enum, default_value_t, hide_short_help = true)]
    forward: ForwardArg,
    /// FastKernels of the backward pass with quantized weights: both sides rounded to bf16 where the CPU multiplies it
    /// (sums in f32), or f32.
    #[arg(long, value_enum, default_value_t, hide_short_help = true)]
    backward: BackwardArg,
    /// Train although model and activations are larger than the free memory.
    #[arg(long, hide_short_help = true)]
    allow_swap: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// As [`Forward`].
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum ForwardArg {
    Exact,
    #[default]
    Fast,
}

/// As [`Backward`].
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum BackwardArg {
    F32,
    #[default]
    Bf16,
}

impl Args {
    fn precision(&self) -> Precision {
        Precision {
            forward: match self.forward {
                ForwardArg::Exact => Forward::Exact,
                ForwardArg::Fast => Forward::Fast,
            },
            backward: match self.backward {
                BackwardArg::F32 => Backward::F32,
                BackwardArg::Bf16 => Backward::Bf16,
            },
        }
    }
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

fn share(s: &str) -> Result<f64, String> {
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
            objective: self.objective,
            beta: self.beta,
            lr: self.lr,
            schedule: self.schedule,
            warmup: self.warmup,
            weight_decay: self.weight_decay,
            precision: self.precision(),
            batch: self.batch,
            length: self.steps.map_or(Length::Epochs(self.epochs), Length::Steps),
            seed: self.seed,
            clip: self.clip,
            patience: self.patience,
            renorm: self.renorm,
            checkpoint_every: self.checkpoint_every,
            allow_swap: self.allow_swap,
        }
    }

    fn split(&self, n: usize) -> anyhow::Result<Split> {
        // Below a dozen pairs a sixth is no measurement: everything goes into training unless the user says otherwise.
        let sixth = if n >= 12 { 1.0 / 6.0 } else { 0.0 };
        let part = |share: Option<f64>| (share.unwrap_or(sixth) * n as f64).round() as usize;
        let (valid, test) = (part(self.val), part(self.test));
        ensure!(
            valid + test < n,
            "{valid} of the {n} pairs to choose by (--val) and {test} held out (--test) leave nothing to train on"
        );
        Ok(split(n, self.seed, n - valid - test, valid, test)?)
    }
}

/// The system prompt that each built-in set is compared with.
fn builtin_baseline(set: &str) -> Option<&'static str> {
    match set {
        "misconceptions" => Some(
            "Answer with what is really true according to science and reliable sources, even where many people believe \
             something else.",
        ),
        "plain-vs-flowery" => Some("Answer in flowery, ornate, poetic language."),
        _ => None,
    }
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let set = PreferenceSet::open(&args.data)?;
    let output = args.output.clone().unwrap_or_else(|| default_output(&set.name, &args.model.model));
    ensure!(
        output.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")),
        "{}: the vector's file name must end in .gguf, so that other programs know it",
        output.display()
    );
    let card = output.with_extension("md");
    let checkpoint = output.with_extension("ckpt");
    for path in [&output, &card, &checkpoint] {
        check_writable(path).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if args.resume {
        ensure!(checkpoint.exists(), "there is no checkpoint {} to resume from", checkpoint.display());
    } else if checkpoint.exists() && !args.fresh {
        bail!(
            "{} is left from an unfinished run: add --resume to go on with it, or --fresh to start again",
            checkpoint.display()
        );
    }
    let split = args.split(set.len())?;
    let model = args.model.load_within_memory(args.allow_swap)?;
    let layers = args.layers.clone().unwrap_or_else(|| Layers::one(args.layer.unwrap_or_else(|| middle_layer(&model))));
    for &layer in layers.iter() {
        check_model(&model, layer)?;
    }
    let template = ChatTemplate::new(&model, &args.template)?;
    if let Some(notice) = template.notice() {
        eprintln!("note: {notice}");
    }
    match set.n_duplicates() {
        0 => {}
        1 => eprintln!("note: one pair repeats an earlier one word for word and counts twice"),
        n => eprintln!("note: {n} pairs repeat earlier ones word for word and count once more each"),
    }
    match set.n_empty_prompts() {
        0 => {}
        1 => eprintln!("note: the prompt of one pair is empty: it trains on what follows an empty question"),
        n => eprintln!("note: the prompts of {n} pairs are empty: they train on what follows an empty question"),
    }
    warn_of_data(&set);
    let baseline_prompt = args.baseline_prompt.clone().or_else(|| builtin_baseline(&set.name).map(str::to_owned));
    let pairs = encode(&set, &model, &template, None)?;
    let prompted = match &baseline_prompt {
        Some(text) => Some(encode_some(&set, &split.test, &model, &template, text)?),
        None => None,
    };
    let max_tokens =
        pairs.iter().chain(prompted.iter().flatten()).map(|p| p.tokens.n_tokens()).max().unwrap_or_default();

    let identity = ModelIdentity::of(&model).with_context(|| format!("hashing {}", model.path().display()))?;
    let config = args.config(layers);
    eprintln!(
        "{} ({}), {} of {}, {} thread{}, template {}",
        identity.name,
        model.description(),
        config.layers.words(),
        model.n_layer(),
        args.model.threads(),
        if args.model.threads() == 1 { "" } else { "s" },
        template.name()
    );
    eprintln!(
        "{}: {} pairs to train on, {} to choose by, {} held out",
        set.name,
        split.train.len(),
        split.valid.len(),
        split.test.len()
    );
    let mut engine = Engine::new(&model, &config.layers, max_tokens, 1, args.model.threads())?;
    // An empty variable says no.
    let cache = args.cache.as_deref().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = cache {
        let context = format!("{} {}", identity.sha256, if args.model.repack { "repacked" } else { "plain" });
        let cache = Cache::open(folder, args.cache_type, &context)
            .with_context(|| format!("cannot use {} as a cache", folder.display()))?;
        engine.set_cache(Some(cache));
    }
    // Rounded residual streams train another vector.
    let rounded = if cache.is_some() && args.cache_type == CacheType::Bf16 { " cache bf16" } else { "" };
    let interrupt =
        stop_flag("stopping as soon as the vector so far can be saved; press Ctrl-C again to stop at once")?;
    let pick = |ids: &[usize]| ids.iter().map(|&i| pairs[i].clone()).collect::<Vec<_>>();
    let plan = CheckpointPlan {
        path: checkpoint.clone(),
        resume: args.resume,
        context: format!("{} {} {}{rounded}", identity.sha256, template.sha256(), env!("CARGO_PKG_VERSION")),
    };
    let how = if args.fresh { "--resume instead of --fresh" } else { "--resume" };
    ggml_grad::llama::set_abort_message(Some(AbortMessage {
        file: checkpoint.clone(),
        // What is there before this run's first checkpoint is another run's.
        since: if args.resume { SystemTime::UNIX_EPOCH } else { SystemTime::now() },
        text: format!(
            "the checkpoint {} is whole: the same command with {how} goes on from it, also with other devices",
            checkpoint.display()
        ),
    }));
    let mut progress = Progress::new();
    let trained =
        train(&mut engine, &pick(&split.train), &pick(&split.valid), &config, Some(&plan), &interrupt, &mut |event| {
            progress.show(&event)
        })?;
    progress.finish();

    if trained.best_step == 0 {
        if let Stop::NotFinite { pair, .. } = &trained.stop {
            remove_checkpoint(&checkpoint)?;
            bail!("the loss was not finite at step 1, pair {pair}: there is no good vector to save");
        }
        bail!("interrupted before the first step: there is nothing to save");
    }
    let vector = renormalised(&trained, &config);
    let complete = matches!(trained.stop, Stop::Finished | Stop::Early);
    let heldout = if complete && !split.test.is_empty() {
        Some(
            measure(&mut engine, &pick(&split.test), prompted.as_deref(), &vector, args.seed, &interrupt)
                .with_context(|| {
                    format!(
                        "measuring (the trained vector is kept in {}, --resume goes on from there)",
                        checkpoint.display()
                    )
                })?,
        )
    } else {
        None
    };
    let sha = template.sha256();
    let record = Record {
        config: &config,
        trained: &trained,
        model: &identity,
        template: (template.name(), &sha),
        data: (&set.name, &set.sha256),
        split: [split.train.len(), split.valid.len(), split.test.len()],
        vector: &vector,
        heldout: heldout.as_ref(),
        baseline_prompt: baseline_prompt.as_deref(),
    };
    let mut file = SteeringVector::from_layers(&config.layers, &vector, &identity.architecture)?;
    file.provenance = record.provenance();
    file.save(&output)?;
    let name = output.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    ggml_grad::files::write_atomically(&card, record.card(&name).as_bytes())
        .with_context(|| format!("cannot write {}", card.display()))?;
    // A run whose loss is not finite would only get there again.
    if !matches!(trained.stop, Stop::Interrupted) {
        remove_checkpoint(&checkpoint)?;
    }
    report(&args, &record, &output, &card, &checkpoint)?;
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Says what `bidpo data inspect` would find.
fn warn_of_data(set: &PreferenceSet) {
    /// Every pair is compared with every other.
    const MOST: usize = 5000;
    if set.len() > MOST {
        eprintln!("note: {} pairs are not looked through here: `bidpo data inspect` does it", set.len());
        return;
    }
    let triples: Vec<Triple> = set.pairs.iter().map(Triple::from).collect();
    for warning in inspect(&triples).warnings() {
        eprintln!("note: {warning} (`bidpo data inspect` shows more)");
    }
}

fn remove_checkpoint(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn default_output(set: &str, model: &Path) -> PathBuf {
    let stem = |s: &str| Path::new(s).file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
    let set = set.trim_end_matches(".jsonl").trim_end_matches(".json").trim_end_matches(".csv");
    PathBuf::from(format!("{set}.{}.gguf", stem(&model.to_string_lossy())))
}

fn renormalised(trained: &Trained, config: &TrainConfig) -> Vec<f32> {
    let Some(percent) = config.renorm else { return trained.vector.clone() };
    let numbers: Vec<f64> = trained.vector.iter().map(|&x| f64::from(x)).collect();
    let Some(factor) = trained.ready.factor_for_percent(&numbers, percent) else { return trained.vector.clone() };
    trained.vector.iter().map(|&x| (f64::from(x) * factor) as f32).collect()
}

fn name_of(pair: &PreferencePair) -> String {
    format!("{} ({})", pair.id, pair.origin)
}

/// Encodes every pair; with `system`, as if that system prompt stood before it.
fn encode(
    set: &PreferenceSet,
    model: &Arc<Model>,
    template: &ChatTemplate,
    system: Option<&str>,
) -> anyhow::Result<Vec<NamedPair>> {
    set.pairs.iter().map(|p| encode_pair(p, model, template, system)).collect()
}

fn encode_some(
    set: &PreferenceSet,
    ids: &[usize],
    model: &Arc<Model>,
    template: &ChatTemplate,
    system: &str,
) -> anyhow::Result<Vec<NamedPair>> {
    ids.iter().map(|&i| encode_pair(&set.pairs[i], model, template, Some(system))).collect()
}

fn encode_pair(
    pair: &PreferencePair,
    model: &Arc<Model>,
    template: &ChatTemplate,
    system: Option<&str>,
) -> anyhow::Result<NamedPair> {
    let prompt = match (system, &pair.prompt) {
        (None, prompt) => prompt.clone(),
        (Some(s), Prompt::Text(text)) => Prompt::Messages(vec![Message::system(s), Message::user(text)]),
        (Some(s), Prompt::Messages(messages)) => {
            let rest = messages.iter().filter(|m| m.role != "system").cloned();
            Prompt::Messages(std::iter::once(Message::system(s)).chain(rest).collect())
        }
    };
    let tokens: TokenizedPair =
        template.encode_pair(model, &prompt, &pair.chosen, &pair.rejected).with_context(|| pair.origin.clone())?;
    let longest = tokens.prompt.len() + tokens.chosen.len().max(tokens.rejected.len());
    ensure!(
        longest <= model.n_ctx_train(),
        "{}: prompt and response have {longest} tokens, the model's context is {}; shorten or remove the pair",
        pair.origin,
        model.n_ctx_train()
    );
    ensure!(
        tokens.chosen != tokens.rejected,
        "{}: chosen and rejected are the same tokens: there is nothing to prefer",
        pair.origin
    );
    Ok(NamedPair { name: name_of(pair), tokens })
}

fn measure(
    engine: &mut Engine,
    test: &[NamedPair],
    prompted: Option<&[NamedPair]>,
    vector: &[f32],
    seed: u64,
    interrupt: &AtomicBool,
) -> anyhow::Result<HeldOut> {
    let bar = progress::spinner("measuring on the held-out pairs");
    let mut capture = |pairs: &[NamedPair]| -> anyhow::Result<Vec<_>> {
        let tokens: Vec<_> = pairs.iter().map(|p| &p.tokens).collect();
        engine
            .capture_each(&tokens, &mut |_| !interrupt.load(Ordering::Relaxed))
            .map_err(|(i, e)| anyhow::Error::new(e).context(pairs[i].name.clone()))?
            .context("interrupted")
    };
    let examples = capture(test)?;
    let prompted = match prompted {
        Some(p) => Some(capture(p)?),
        None => None,
    };
    let heldout = HeldOut::measure(engine, &examples, prompted.as_deref(), vector, seed)?;
    bar.finish_and_clear();
    for notice in engine.take_cache_notices() {
        eprintln!("note: {notice}");
    }
    if let Some(cache) = engine.cache() {
        eprintln!("{} in all", progress::cache_line(cache.folder(), &cache.used()));
    }
    Ok(heldout)
}

fn report(args: &Args, r: &Record<'_>, output: &Path, card: &Path, checkpoint: &Path) -> anyhow::Result<()> {
    let t = r.trained;
    match &t.stop {
        Stop::Finished => {}
        Stop::Early => eprintln!("stopped early: the validation loss has not fallen for {} epochs", args.patience),
        Stop::Interrupted => eprintln!(
            "interrupted after step {} of {}: the vector so far is saved; --resume goes on from {}",
            t.steps,
            t.ready.total_steps,
            checkpoint.display()
        ),
        Stop::NotFinite { step, pair } => eprintln!(
            "bidpo: the loss was not finite at step {step}, pair {pair}: stopped; the last good vector, from step {}, is \
             saved in {}. A smaller --lr or a --clip limit usually helps",
            t.best_step,
            output.display()
        ),
    }
    let longest = r.at_layers().into_iter().fold(0.0, |most, (_, _, percent)| percent.max(most));
    if longest > 100.0 {
        eprintln!(
            "warning: the vector is longer than the residual stream it is added to ({:.3e} times its median norm): text \
             will fall apart at scale 1. Train with a smaller --lr, or add --renorm 5%",
            longest / 100.0
        );
    }
    if args.json {
        let stop = match &t.stop {
            Stop::Finished => json!("finished"),
            Stop::Early => json!("early"),
            Stop::Interrupted => json!("interrupted"),
            Stop::NotFinite { step, pair } => json!({ "not_finite": { "step": step, "pair": pair } }),
        };
        let layers: Vec<_> = r
            .at_layers()
            .into_iter()
            .map(|(at, norm, percent)| {
                json!({
                    "layer": at.layer,
                    "norm": norm,
                    "norm_percent": percent,
                    "residual_norm_median": at.median_norm,
                    "residual_norm_mean": at.mean_norm,
                    "lr": at.lr,
                })
            })
            .collect();
        // What there is once for each layer stands beside the list only where there is one.
        let only = match t.ready.layers[..] {
            [at] => Some(at),
            _ => None,
        };
        let summary = json!({
            "vector": output.display().to_string(),
            "card": card.display().to_string(),
            "layer": only.map(|at| at.layer),
            "layers": layers,
            "norm": r.norm(),
            "norm_percent": r.percent(),
            "residual_norm_median": only.map(|at| at.median_norm),
            "residual_norm_mean": only.map(|at| at.mean_norm),
            "lr": only.map(|at| at.lr),
            "steps": t.steps,
            "best_step": t.best_step,
            "stop": stop,
            "history": t.history,
            "heldout": r.heldout.map(HeldOut::rows),
            "summary": r.heldout.map(HeldOut::in_words),
        });
        println!("{}", serde_json::to_string_pretty(&summary)?);
        return Ok(());
    }
    let percent = progress::figure(r.percent(), 2);
    let length = match r.config.layers.len() {
        1 => format!("length {} ({percent} % of the median residual norm)", progress::figure(r.norm(), 3)),
        n => format!("{percent} % of the median residual norm (mean over {n} layers)"),
    };
    println!("{}: {}, {length}, from step {} of {}", output.display(), r.config.layers.words(), t.best_step, t.steps);
    if let Some(h) = r.heldout {
        println!("\nOn {} held-out pairs:\n\n{}\n{}\n", r.split[2], h.table(), h.in_words());
    }
    println!("card: {}", card.display());
    println!("chat: bidpo chat --model {} --vector {} --scale 1", args.model.model.display(), output.display());
    println!("llama.cpp: llama-cli -m {} --control-vector-scaled {}:1.0", args.model.model.display(), output.display());
    Ok(())
}
