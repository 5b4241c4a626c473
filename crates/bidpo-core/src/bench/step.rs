//! The training step: against llama.cpp's prefill, against PyTorch, with more threads.

use super::pairs::write_pairs;
use super::peer::Peer;
use super::report::{OpTime, Split, Threads};
use super::{BenchError, Line, Measured, Name, Outcome, Prefill, Rounds, Spread, Subject, alternate};
use crate::engine::{BatchPlan, Direction, Engine, RetainedText, TracedPair};
use crate::intervention::{KindSpec, LoraSpec};
use crate::layers::Layers;
use crate::numbers;
use crate::train::{
    LearningRate, Member, NamedPair, Retain, Run, RunSummary, Schedule, Step, TracedSet, TrainConfig, TrainError,
    TrainingBudget,
};
use crate::{check::file_name, data::TokenizedPair};
use ggml_grad::graph::emit::Timings;
use ggml_grad::llama::{Model, Token};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// What differs between runs that are measured.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Setting<'a> {
    /// The kind of intervention.
    pub kind: KindSpec,
    /// An adapter of this rank on the usual matrices of all blocks above the layer, in place of the kind.
    pub lora: Option<usize>,
    /// Retention with its texts.
    pub retain: Option<(Retain, &'a [NamedPair])>,
}

/// An engine with traced pairs, from which runs begin.
pub(super) struct Ready {
    engine: Engine,
    config: TrainConfig,
    pairs: Vec<NamedPair>,
    traced: Vec<TracedPair>,
    retained: Vec<RetainedText>,
    plan: BatchPlan,
    interrupt: AtomicBool,
}

/// A training run whose steps are timed: the trainer's own [`Run`].
pub(super) struct Stepper<'a> {
    run: Run<'a>,
    /// All pairs, every second one in the other direction: each step costs the same.
    members: Vec<Member>,
}

/// One step, in milliseconds.
pub(super) struct Taken {
    pub wall: f64,
    optimizer: f64,
    timings: Timings,
}

fn millis(d: Duration) -> f64 {
    1e3 * d.as_secs_f64()
}

impl Ready {
    pub(super) fn new(
        model: &Arc<Model>,
        layer: usize,
        pairs: &[TokenizedPair],
        threads: u32,
        setting: Setting<'_>,
    ) -> Result<Self, BenchError> {
        let texts = setting.retain.map_or(&[][..], |(_, texts)| texts);
        let longest = pairs.iter().chain(texts.iter().map(|t| &t.tokens)).map(TokenizedPair::n_tokens).max();
        let longest = longest.unwrap_or(1);
        let last = model.n_layer() - 1;
        let blocks = Layers::new((layer + 1).min(last)..=last).map_err(|e| TrainError::Config(e.to_string()))?;
        let lora = setting.lora.map(|rank| LoraSpec {
            rank,
            alpha: None,
            targets: Vec::new(),
            blocks,
            lr: None,
            with_vectors: false,
        });
        let layer = lora.as_ref().map_or(layer, LoraSpec::layer);
        let mut engine = match &lora {
            Some(spec) => Engine::for_adapter(model, &[layer], longest, 1, threads)?.with_lora(spec.on(model)?)?,
            None => Engine::new(model, &[layer], longest, 1, threads)?
                .with_intervention(setting.kind.intervention(1, model.n_embd())?),
        };
        let plan = plan_batches(&mut engine, pairs)?;
        let traced = pairs.iter().map(|p| engine.trace(p)).collect::<Result<Vec<_>, _>>()?;
        let retained = texts.iter().map(|t| engine.trace_retained(&t.tokens)).collect::<Result<Vec<_>, _>>()?;
        engine.take_timings();
        let named =
            |(i, tokens): (usize, &TokenizedPair)| NamedPair { name: format!("{}", i + 1), tokens: tokens.clone() };
        let config = TrainConfig {
            kind: setting.kind,
            lora,
            retain: setting.retain.map(|(retain, _)| retain),
            learning_rate: LearningRate::Absolute(1e-3),
            schedule: Schedule::Constant,
            warmup_ratio: 0.0,
            batch: pairs.len(),
            budget: TrainingBudget::Steps(1_000_000),
            ..TrainConfig::new(Layers::one(layer))
        };
        let pairs = pairs.iter().enumerate().map(named).collect();
        Ok(Self { engine, config, pairs, traced, retained, plan, interrupt: AtomicBool::new(false) })
    }

    pub(super) fn stepper(&mut self) -> Stepper<'_> {
        let summary = RunSummary { batch_plan: self.plan, ..RunSummary::new(&self.engine, &self.config, &self.traced) };
        let sets = [TracedSet { pairs: &self.pairs, traced: &self.traced }, TracedSet { pairs: &[], traced: &[] }];
        let direction = |pair: usize| if pair.is_multiple_of(2) { Direction::Forward } else { Direction::Reverse };
        let members = (0..self.pairs.len()).map(|pair| Member { pair, direction: direction(pair) }).collect();
        let run = Run::new(&mut self.engine, &self.config, sets, summary, &self.interrupt).retaining(&self.retained);
        Stepper { run, members }
    }
}

impl Stepper<'_> {
    /// The trainer's step.
    pub(super) fn step(&mut self) -> Result<Taken, BenchError> {
        let started = Instant::now();
        let step = self.run.step(&self.members)?;
        let wall = millis(started.elapsed());
        let Step::Taken(report) = step else { return Err(BenchError::NotFinite) };
        Ok(Taken { wall, optimizer: millis(report.update), timings: self.run.engine().take_timings() })
    }

    /// A step, op by op.
    fn profile(&mut self) -> Result<Vec<OpTime>, BenchError> {
        self.run.engine().start_profile();
        self.step()?;
        Ok(OpTime::all(self.run.engine().take_profile()))
    }

    /// The batches of a step, forward only; milliseconds of ggml's computation.
    fn forward(&mut self) -> Result<f64, BenchError> {
        self.run.forward(&self.members)?;
        Ok(millis(self.run.engine().take_timings().compute))
    }
}

/// The trainer's batches of these pairs, as many at once as it computes.
pub(super) fn plan_batches(engine: &mut Engine, pairs: &[TokenizedPair]) -> Result<BatchPlan, BenchError> {
    let Some(longest) = pairs.iter().max_by_key(|p| p.n_tokens()) else { return Ok(BatchPlan::UNBATCHED) };
    let traced = engine.trace(longest)?;
    let planned = engine.plan_batches(&traced, pairs.iter().map(TokenizedPair::n_tokens).sum())?;
    engine.set_tokens_at_once(planned.tokens_at_once);
    Ok(planned.plan)
}

/// The unique tokens of each pair.
pub(super) fn sequences(pairs: &[TokenizedPair]) -> Vec<Vec<Token>> {
    pairs.iter().map(|p| [&p.prompt[..], &p.chosen, &p.rejected].concat()).collect()
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    numbers::median(&values.collect::<Vec<_>>()).unwrap_or(f64::NAN)
}

/// The step's line, and where its time goes.
pub(super) fn against_prefill(s: &mut Subject<'_>, prefill: &mut Prefill) -> Result<(Line, Split), BenchError> {
    s.say("training step: capturing the pairs, and looking for llama.cpp's fastest prefill");
    let mut ready = Ready::new(&s.model, s.layer, &s.pairs, s.settings.threads, Setting::default())?;
    let mut stepper = ready.stepper();
    let way = prefill.fastest(&sequences(&s.pairs), true)?;
    s.say("training step: measuring");
    let mut taken = Vec::new();
    let rounds = alternate(
        s.settings.rounds,
        &mut || {
            let t = stepper.step()?;
            let wall = t.wall;
            taken.push(t);
            Ok::<_, BenchError>(wall)
        },
        &mut || Ok(1e3 * prefill.seconds(&way)?),
    )?;
    let forwards = (0..=s.settings.rounds.get()).map(|_| stepper.forward()).collect::<Result<Vec<_>, _>>()?;
    // The first of each was a rehearsal.
    let of = |f: &dyn Fn(&Taken) -> f64| median(taken[1..].iter().map(f));
    let forward = median(forwards[1..].iter().copied());
    let compute = of(&|t| millis(t.timings.compute));
    let split = Split {
        wall: of(&|t| t.wall),
        build: of(&|t| millis(t.timings.build)),
        upload: of(&|t| millis(t.timings.upload)),
        compute,
        forward,
        backward: compute - forward,
        read: of(&|t| millis(t.timings.read)),
        optimizer: of(&|t| t.optimizer),
        serial: of(&|t| (t.wall - millis(t.timings.compute)) / t.wall),
        ops: stepper.profile()?,
    };
    let line = Line {
        name: Name::Step,
        what: format!(
            "one training step at layer {} of {}, {} pairs, examples captured before",
            s.layer,
            s.model.n_layer(),
            s.pairs.len()
        ),
        against: format!("llama.cpp's prefill of the same {} unique tokens ({})", s.unique_tokens(), way.words),
        unit: "ms",
        outcome: Outcome::Measured(Measured::of(&rounds)),
        limit: Name::Step.limit(&s.model, s.layer),
    };
    Ok((line, split))
}

/// The step with one thread and with all.
pub(super) fn threads(s: &mut Subject<'_>) -> Result<Threads, BenchError> {
    s.say("training step with one thread and with all");
    let all = s.settings.threads;
    let mut single = Ready::new(&s.model, s.layer, &s.pairs, 1, Setting::default())?;
    let mut many = Ready::new(&s.model, s.layer, &s.pairs, all, Setting::default())?;
    let (mut single, mut many) = (single.stepper(), many.stepper());
    let mut serial = Vec::new();
    let rounds = alternate(
        s.settings.rounds,
        &mut || {
            let t = single.step()?;
            serial.push(t.wall - millis(t.timings.compute));
            Ok::<_, BenchError>(t.wall)
        },
        &mut || Ok(many.step()?.wall),
    )?;
    let m = Measured::of(&rounds);
    Ok(Threads::new(all, m.ours, m.reference, median(serial[1..].iter().copied())))
}

/// The step against PyTorch's on the same pairs: in turns with it where a Python with PyTorch is known, else with the times
/// in a file that benches/peers wrote. With a rank, that of an adapter against peft's.
pub(super) fn against_pytorch(s: &mut Subject<'_>, rank: Option<usize>) -> Result<Line, BenchError> {
    let name = if rank.is_some() { Name::PytorchLora } else { Name::Pytorch };
    let (of, against) = match rank {
        None => (String::new(), "BiPO's step in PyTorch, f32, on the same pairs".to_owned()),
        Some(rank) => (
            format!(" of an adapter of rank {rank} on all blocks above it"),
            "peft's DPO step in PyTorch, f32, on the same pairs and matrices".to_owned(),
        ),
    };
    let mut line = Line {
        name,
        what: format!("one training step at layer {}{of}, {} pairs", s.layer, s.pairs.len()),
        against,
        unit: "ms",
        outcome: Outcome::NotMeasured("needs --pytorch FILE, which benches/peers/run.sh writes".into()),
        limit: name.limit(&s.model, s.layer),
    };
    let Some(path) = s.settings.pytorch.clone() else { return Ok(line) };
    let failed = |reason: String| BenchError::File { path: path.clone(), reason };
    let text = std::fs::read_to_string(&path).map_err(|e| failed(e.to_string()))?;
    let before: Before =
        serde_json::from_str(&text).map_err(|e| failed(format!("not a result of benches/peers: {e}")))?;
    let mine = (file_name(s.model.path()), s.layer);
    if (&before.model, before.layer) != (&mine.0, mine.1) {
        let text = format!("{} is of {} at layer {}", file_name(&path), before.model, before.layer);
        line.outcome = Outcome::NotMeasured(text);
        return Ok(line);
    }
    if before.unique_tokens != s.unique_tokens() {
        return Err(failed(format!("made from {} unique tokens, not {}", before.unique_tokens, s.unique_tokens())));
    }
    let before = match (rank, before.lora) {
        (None, _) => Steps { threads: before.threads, f32_ms: before.f32_ms },
        (Some(rank), Some(of)) if of.lora_rank == rank => Steps { threads: of.threads, f32_ms: of.f32_ms },
        (Some(rank), _) => {
            let text = format!("{} holds no step of an adapter of rank {rank}", file_name(&path));
            line.outcome = Outcome::NotMeasured(text);
            return Ok(line);
        }
    };
    let setting = Setting { lora: rank, ..Setting::default() };
    let mut ready = Ready::new(&s.model, s.layer, &s.pairs, s.settings.threads, setting)?;
    let mut stepper = ready.stepper();
    if let Some(python) = s.settings.pytorch_python.clone() {
        s.say("training step in turns with PyTorch");
        let folder = tempfile::tempdir().map_err(|e| failed(e.to_string()))?;
        let pairs = folder.path().join("pairs.json");
        write_pairs(&pairs, &s.model, s.layer)?;
        let mut peer = Peer::start(&python, s.model.path(), &pairs, s.settings.threads, rank)?;
        let rounds =
            alternate(s.settings.rounds, &mut || Ok::<_, BenchError>(stepper.step()?.wall), &mut || peer.step())?;
        line.outcome = Outcome::Measured(Measured::of(&rounds));
        return Ok(line);
    }
    line.against += " (measured before, by benches/peers)";
    let Some(reference) = Spread::of(&before.f32_ms) else { return Err(failed("no time in f32_ms".into())) };
    s.say("training step for the comparison with PyTorch");
    stepper.step()?; // a rehearsal
    let walls = Rounds::measure(s.settings.rounds, || Ok::<_, BenchError>((stepper.step()?.wall, 0.0)))?;
    let ours = walls.spread(|r| r.0);
    if before.threads != s.settings.threads {
        line.against += &format!(", with {} threads", before.threads);
    }
    let ratio =
        Spread { median: ours.median / reference.median, min: ours.min / reference.max, max: ours.max / reference.min };
    line.outcome = Outcome::Measured(Measured { ours, reference, ratio });
    Ok(line)
}

/// The file that benches/peers writes (it holds more, for readers).
#[derive(Debug, serde::Deserialize)]
struct Before {
    model: String,
    layer: usize,
    threads: u32,
    unique_tokens: usize,
    /// Times of the steps, milliseconds.
    f32_ms: Vec<f64>,
    /// The step of an adapter; absent in files of older versions.
    lora: Option<AdapterBefore>,
}

/// The part of that file about an adapter.
#[derive(Debug, serde::Deserialize)]
struct AdapterBefore {
    lora_rank: usize,
    threads: u32,
    f32_ms: Vec<f64>,
}

/// Times of the steps that are compared with.
struct Steps {
    threads: u32,
    f32_ms: Vec<f64>,
}
