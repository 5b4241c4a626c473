//! `bidpo train`: preference pairs in, a control vector and its card out.

mod adapter;
mod beside;
mod files;
mod notes;
mod options;
mod pairs;
mod progress;
mod report;
mod retained;

pub use options::Args;

use super::calibrate::{n_passages, say_scale};
use crate::args::names;
use crate::args::template::say_notes;
use crate::terminal::interrupt::stop_flag;
use adapter::AdapterResult;
use anyhow::{Context as _, bail, ensure};
use beside::Beside;
use bidpo_core::check::middle_layer;
use bidpo_core::data::inspect::PairText;
use bidpo_core::data::{PairGroups, PreferenceSet, SplitBy};
use bidpo_core::engine::{BatchPlan, Cache, CacheType, Engine, check_model};
use bidpo_core::eval::calibrate::{Calibrated, Calibration};
use bidpo_core::eval::price::Price;
use bidpo_core::intervention::KindSpec;
use bidpo_core::layers::Layers;
use bidpo_core::steer::{ModelIdentity, ScaledVector, SteeringVector, combine};
use bidpo_core::train::{
    CheckpointParts, CheckpointPlan, HeldOut, HeldOutPairs, IdentitySource, Init, Objective, Parts, RecordedIdentity,
    RunInputs, SeedSpread, Stop, TrainConfig, TrainError, Trainer, VectorCard, checkpoint_parts, initial_parameters,
    mean_logp_diff, retained_sha256,
};
use files::Files;
use ggml_grad::files::{FileError, display_name, sha256_of_file};
use ggml_grad::graph::cpu_level;
use ggml_grad::llama::Model;
use notes::{describe, note_data, note_groups};
use pairs::{EncodedSet, Prompted, check_scope, encode_usable};
use progress::Progress;
use retained::RetainedTexts;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let passages = n_passages()?;
    let mut set = match args.objective {
        Objective::Sft => args.read.open_alone(&args.data)?,
        _ => args.read.open(&args.data)?,
    };
    let alone = set.has_answers_alone();
    let n_both = set.pairs.iter().filter(|p| !p.rejected.is_empty()).count();
    if alone && n_both > 0 {
        eprintln!("note: {}: {n_both} rejected answers are not used, because other rows have none", set.name);
        set.pairs.iter_mut().for_each(|p| p.rejected.clear());
    }
    let files = Files::new(&args, &set.name)?;
    let _lock = files.lock()?;
    let model = args.model.load_within_memory(args.allow_swap)?;
    let kind = args.kind_spec()?;
    let spec = args.lora(&model)?;
    let lora = spec.as_ref().map(|spec| spec.on(&model)).transpose()?;
    let layers = match &spec {
        Some(spec) => Layers::one(spec.layer()),
        None => args.layers.clone().unwrap_or_else(|| Layers::one(args.layer.unwrap_or_else(|| middle_layer(&model)))),
    };
    for &layer in layers.iter().filter(|&&layer| spec.is_none() || layer > 0) {
        check_model(&model, layer)?;
    }
    for &layer in layers.iter() {
        kind.check_layer(layer, model.n_layer())?;
    }
    let intervention = kind.intervention(layers.len(), model.n_embd())?;
    ensure!(
        args.scope.is_all() || layers.len() == 1,
        "scope {} with {} layers: a scope takes one layer, whose rows are known before the graph runs. Give one with --layer",
        args.scope,
        layers.len()
    );
    let template = args.variables.open(&model, &args.template, args.think)?;
    let scope = template.scoped(&args.scope, &model)?;
    let beside = Beside::load(&args, &model, &template)?;
    let background = beside.background(&model)?;
    let pairs = encode_usable(&mut set, &model, &template, args.read.strict)?;
    check_scope(&pairs, &scope)?;
    let texts: Vec<PairText> = set.pairs.iter().map(PairText::from).collect();
    let groups = PairGroups::new(&texts, args.split_by);
    let parts = Parts::new(&groups, args.seed, args.held_out())?;
    note_data(&set, &texts, alone);
    let baseline_prompts: Vec<&str> = match args.baseline_prompts.is_empty() {
        true => PreferenceSet::builtin_baseline_prompt(&set.name).into_iter().collect(),
        false => args.baseline_prompts.iter().map(String::as_str).collect(),
    };
    let retained = match &args.retain {
        Some(file) => Some(RetainedTexts::open(file, &texts, &groups, &parts)?),
        None => None,
    };
    let encoded = EncodedSet { set: &set, model: &model, template: &template, pairs };
    let identity = ModelIdentity::of(&model).with_context(|| format!("hashing {}", model.path().display()))?;
    let begin = |file: &Path| match &lora {
        Some(lora) => adapter::begin_with(file, lora, model.path(), args.seed),
        None => begin_with(file, kind, &layers, &model, args.seed),
    };
    let init = args.init.as_deref().map(begin).transpose()?;
    let config = args.config(layers, kind, spec, init);
    let cache = open_cache(&args, &identity)?;
    let template_sha256 = template.sha256();
    let interrupt =
        stop_flag("stopping as soon as the vector so far can be saved; press Ctrl-C again to stop at once")?;
    let retained_texts = match &retained {
        Some(texts) => texts.encode(&args, &model, &template, kind, beside.control(&model)?.as_ref(), &interrupt)?,
        None => Vec::new(),
    };
    let inputs = RunInputs {
        model_sha256: identity.sha256.clone(),
        template_sha256: template_sha256.clone(),
        // Rounded activations train another vector.
        bf16_activations: cache.is_some() && args.cache_type == CacheType::Bf16,
        retained_sha256: retained_sha256(&retained_texts),
        beside_sha256: background.sha256().map(str::to_owned),
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
    let longest = retained_texts.iter().map(|t| t.tokens.n_tokens()).fold(pairs.longest(), usize::max);
    let mut engine = match (&config.lora, lora) {
        (Some(spec), Some(lora)) => {
            adapter::describe(spec, &model);
            let engine = Engine::for_adapter(&model, &config.layers, longest, 1, args.model.threads())?;
            engine.with_background(background)?.with_lora(lora)?
        }
        _ => {
            let engine = Engine::new(&model, &config.layers, longest, 1, args.model.threads())?;
            engine.with_background(background)?.with_intervention(intervention)
        }
    }
    .with_cache(cache)
    .with_scope(scope);
    let plan = CheckpointPlan { path: files.checkpoint.clone(), resume: args.resume, inputs };
    if !args.resume {
        files.start_again()?;
    }
    files.announce_checkpoint(&args);
    let mut progress = Progress::new();
    let mut trainer = Trainer { engine: &mut engine, config: &config, checkpoints: Some(&plan), interrupt: &interrupt };
    let sets = (&pairs.train[..], &pairs.valid[..]);
    let runs = trainer.train_seeds(sets, &retained_texts, args.seeds, &mut |event| progress.show(&event))?;
    progress.finish();
    let trained = &runs.runs[0].trained;

    if trained.best_step == 0 {
        if let Stop::NotFinite { pair, .. } = &trained.stop {
            files.remove_checkpoints()?;
            bail!("the loss was not finite at step 1, pair {pair}: there is no good vector to save");
        }
        bail!("interrupted before the first step: there is nothing to save");
    }
    let vector = trained.renormalised(config.renorm);
    let has_vectors = config.lora.as_ref().is_none_or(|lora| lora.with_vectors);
    let mut file = has_vectors.then(|| trained.steering_vector(config.renorm, &identity.architecture)).transpose()?;
    let adapter =
        trained.adapter(&identity.architecture)?.map(|adapter| AdapterResult { file: adapter, vector: file.clone() });
    let kept = || {
        let checkpoint = files.checkpoint.display();
        format!("measuring (the trained vector is kept in {checkpoint}, --resume continues from it)")
    };
    let plan = trained.summary.batch_plan;
    let mut best_prompt = pairs.prompted.first();
    let heldout = if trained.complete() && !pairs.test.is_empty() {
        best_prompt = choose_prompt(&mut engine, &pairs.prompted, plan, &interrupt).with_context(kept)?;
        let further: Vec<Vec<f32>> = runs.runs[1..].iter().map(|r| r.trained.renormalised(config.renorm)).collect();
        let test = HeldOutPairs {
            test: &pairs.test,
            groups: &parts.test_groups,
            prompted: best_prompt.map(|p| p.test.as_slice()),
            random: args.random,
            seeds: &further,
            nulled: config.nulls(),
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
    // Its graphs and their scratch memory are not needed any more; the price has contexts of its own.
    drop(engine);
    let measured = Measured { model: &model, beside: &beside, passages, args: &args, interrupt: &interrupt };
    let dials = match &adapter {
        Some(adapter) => adapter.dials(&model)?,
        None => file.iter().map(dial).collect(),
    };
    let price = match trained.complete() {
        true => measured.price(&dials).with_context(kept)?,
        false => None,
    };
    let spread = SeedSpread::new(&runs, heldout.as_ref()).filter(|_| trained.complete());
    let cpu = cpu_level().map_or_else(|_| "unknown", |level| level.name());
    let card = VectorCard {
        config: &config,
        trained,
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
        retained: retained.as_ref().map(RetainedTexts::described),
        beside: &beside.files,
        range: None,
        seeds: spread.as_ref(),
        threads: args.model.threads(),
        cpu,
    };
    if let Some(file) = &mut file {
        file.provenance = card.provenance();
    }
    // Of an adapter with a vector beside it there are two dials, and no range of either.
    let turned = match (&adapter, &file) {
        (None, Some(file)) => Some(file),
        (Some(_), None) => dials.first().map(|dial| &*dial.vector),
        _ => None,
    };
    let range = match args.calibrate.filter(|_| price.is_some()).zip(turned) {
        Some((budget, turned)) => Some(measured.range(turned, budget).with_context(kept)?),
        None => None,
    };
    let card = VectorCard { range: range.as_ref(), ..card };
    let mut provenance = card.provenance();
    if let Some(range) = &range {
        range.record(&mut provenance, &identity.sha256);
    }
    match (adapter, file) {
        (Some(adapter), _) => adapter.save(&files, provenance)?,
        (None, Some(file)) => SteeringVector { provenance, ..file }.save(&files.vector)?,
        (None, None) => bail!("kind {} gives no file", args.kind),
    }
    ggml_grad::files::write_atomically(&files.card, card.card(&display_name(&files.vector))?.as_bytes())
        .map_err(FileError::write(&files.card))?;
    // A run whose loss is not finite would only get there again.
    if !matches!(trained.stop, Stop::Interrupted) {
        files.remove_checkpoints()?;
    }
    report::print(&args, &card, &files, &beside, &set.reading)?;
    Ok(if trained.complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The parameters of a file to begin with.
fn begin_with(file: &Path, kind: KindSpec, layers: &Layers, model: &Model, seed: u64) -> anyhow::Result<Init> {
    let named = || format!("--init {}", file.display());
    let file = names::vector(file, model.path())?;
    let vector = SteeringVector::load(&file).with_context(named)?;
    let theta = initial_parameters(kind, layers, model.n_embd(), seed, &vector).with_context(named)?;
    let sha256 = sha256_of_file(&file).map_err(FileError::read(&file))?;
    Ok(Init { name: display_name(&file), sha256, theta })
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

/// What was trained, at scale 1.
fn dial(vector: &SteeringVector) -> ScaledVector {
    ScaledVector { name: String::new(), vector: Arc::new(vector.clone()), scale: 1.0 }
}

/// How a finished run is measured on neutral text.
struct Measured<'a> {
    model: &'a Arc<Model>,
    beside: &'a Beside,
    passages: usize,
    args: &'a Args,
    interrupt: &'a AtomicBool,
}

impl Measured<'_> {
    /// The price of these dials beside what is loaded; a zero vector has none.
    fn price(&self, dials: &[ScaledVector]) -> anyhow::Result<Option<Price>> {
        let started = Instant::now();
        if combine(dials, None, self.model)?.is_none() {
            eprintln!("warning: the vector is zero: the pairs gave no gradient");
            return Ok(None);
        }
        let all: Vec<ScaledVector> = self.beside.dials().iter().chain(dials).cloned().collect();
        let Some(control) = combine(&all, None, self.model)? else { return Ok(None) };
        let (reference, n_threads) = (self.beside.control(self.model)?, self.args.model.threads());
        let price =
            Price::measure_against(self.model, reference.as_ref(), &control, self.passages, n_threads, self.interrupt)?;
        eprintln!("measured on {} neutral passages in {:.1} s", price.passages, started.elapsed().as_secs_f64());
        Ok(Some(price))
    }

    /// The range of scales within a budget.
    fn range(&self, vector: &SteeringVector, budget: f64) -> anyhow::Result<Calibrated> {
        let how = Calibration {
            model: self.model,
            budget,
            passages: self.passages,
            n_threads: self.args.model.threads(),
            beside: self.beside.dials(),
            interrupt: self.interrupt,
        };
        Ok(how.measure(vector, &mut say_scale)?)
    }
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
