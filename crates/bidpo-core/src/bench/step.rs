//! The training step: against llama.cpp's prefill, against PyTorch, with more threads.

use super::pairs::write_pairs;
use super::peer::Peer;
use super::report::{OpTime, Split, Threads};
use super::{BenchError, Line, Measured, Name, Outcome, Prefill, Spread, Subject, alternate};
use crate::numbers;
use crate::train::{AdamW, Engine, Example, batches, loss};
use crate::{check::file_name, data::TokenizedPair};
use ggml_grad::graph::emit::Timings;
use ggml_grad::llama::{Model, Token};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An engine with its examples captured, ready to take steps.
struct Stepper {
    engine: Engine,
    examples: Vec<Example>,
    optimizer: AdamW,
    vector: Vec<f64>,
}

/// One step, in milliseconds.
struct Taken {
    wall: f64,
    optimizer: f64,
    timings: Timings,
}

fn millis(d: Duration) -> f64 {
    1e3 * d.as_secs_f64()
}

impl Stepper {
    fn new(model: &Arc<Model>, layer: usize, pairs: &[TokenizedPair], threads: u32) -> Result<Self, BenchError> {
        let longest = pairs.iter().map(TokenizedPair::n_tokens).max().unwrap_or(1);
        let mut engine = Engine::new(model, &[layer], longest, 1, threads)?;
        join(&mut engine, pairs)?;
        let examples = pairs.iter().map(|p| engine.capture(&[p])).collect::<Result<Vec<_>, _>>()?;
        let n = engine.n_params();
        engine.take_timings();
        Ok(Self { engine, examples, optimizer: AdamW::new(n, 0.05), vector: vec![0.0; n] })
    }

    /// The pairs as the trainer computes them together, every second one in the other direction.
    fn batches(&self) -> Vec<(Vec<usize>, f64)> {
        let members: Vec<(usize, f64)> = (0..self.examples.len()).map(|i| (i, [1.0, -1.0][i % 2])).collect();
        batches(&self.engine, &members, |i| self.examples[i].n_tokens)
    }

    /// A step as the trainer takes it: forward and backward, with the vector added for one half of the pairs and subtracted
    /// for the other, then AdamW.
    fn step(&mut self) -> Result<Taken, BenchError> {
        let started = Instant::now();
        let mut gradient = vec![0.0; self.vector.len()];
        for (group, d) in self.batches() {
            let members: Vec<&Example> = group.iter().map(|&i| &self.examples[i]).collect();
            let added: Vec<f32> = self.vector.iter().map(|x| (d * x) as f32).collect();
            let slope = |margin: f64| loss(d, 0.1, margin).slope;
            let (_, g) = self.engine.run_together(&members, &added, Some(&slope))?;
            gradient.iter_mut().zip(&g).for_each(|(sum, x)| *sum += x);
        }
        let before = Instant::now();
        let n = self.examples.len() as f64;
        gradient.iter_mut().for_each(|g| *g /= n);
        self.optimizer.step(&mut self.vector, &gradient, &[1e-3]);
        Ok(Taken {
            optimizer: millis(before.elapsed()),
            wall: millis(started.elapsed()),
            timings: self.engine.take_timings(),
        })
    }

    /// A step, op by op.
    fn profile(&mut self) -> Result<Vec<OpTime>, BenchError> {
        self.engine.start_profile();
        self.step()?;
        Ok(OpTime::all(self.engine.take_profile()))
    }

    /// The pairs forward only; milliseconds of ggml's computation.
    fn forward(&mut self) -> Result<f64, BenchError> {
        let added: Vec<f32> = self.vector.iter().map(|&x| x as f32).collect();
        for (group, _) in self.batches() {
            let members: Vec<&Example> = group.iter().map(|&i| &self.examples[i]).collect();
            self.engine.run_together(&members, &added, None)?;
        }
        Ok(millis(self.engine.take_timings().compute))
    }
}

/// Lets pairs be joined as the trainer does.
pub(super) fn join(engine: &mut Engine, pairs: &[TokenizedPair]) -> Result<(), BenchError> {
    if let Some(longest) = pairs.iter().max_by_key(|p| p.n_tokens()) {
        let example = engine.capture(&[longest])?;
        engine.plan_joining(&example, pairs.iter().map(TokenizedPair::n_tokens).sum())?;
    }
    Ok(())
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
    let mut stepper = Stepper::new(&s.model, s.layer, &s.pairs, s.settings.threads)?;
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
    let forwards = (0..=s.settings.rounds).map(|_| stepper.forward()).collect::<Result<Vec<_>, _>>()?;
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
        outcome: Outcome::Measured(Measured::of(&rounds).expect("there are rounds")),
        limit: Name::Step.limit(&s.model, s.layer),
    };
    Ok((line, split))
}

/// The step with one thread and with all.
pub(super) fn threads(s: &mut Subject<'_>) -> Result<Threads, BenchError> {
    s.say("training step with one thread and with all");
    let all = s.settings.threads;
    let mut single = Stepper::new(&s.model, s.layer, &s.pairs, 1)?;
    let mut many = Stepper::new(&s.model, s.layer, &s.pairs, all)?;
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
    let m = Measured::of(&rounds).expect("there are rounds");
    Ok(Threads::new(all, m.ours, m.reference, median(serial[1..].iter().copied())))
}

/// The step against PyTorch's on the same pairs: in turns with it where a Python with PyTorch is known, else with the times
/// in a file that benches/peers wrote.
pub(super) fn against_pytorch(s: &mut Subject<'_>) -> Result<Line, BenchError> {
    let mut line = Line {
        name: Name::Pytorch,
        what: format!("one training step at layer {}, {} pairs", s.layer, s.pairs.len()),
        against: "BiPO's step in PyTorch, f32, on the same pairs".into(),
        unit: "ms",
        outcome: Outcome::NotMeasured("needs --pytorch FILE, which benches/peers/run.sh writes".into()),
        limit: Name::Pytorch.limit(&s.model, s.layer),
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
    let mut stepper = Stepper::new(&s.model, s.layer, &s.pairs, s.settings.threads)?;
    if let Some(python) = s.settings.pytorch_python.clone() {
        s.say("training step in turns with PyTorch");
        let folder = tempfile::tempdir().map_err(|e| failed(e.to_string()))?;
        let pairs = folder.path().join("pairs.json");
        write_pairs(&pairs, &s.model, s.layer)?;
        let mut peer = Peer::start(&python, s.model.path(), &pairs, s.settings.threads)?;
        let rounds =
            alternate(s.settings.rounds, &mut || Ok::<_, BenchError>(stepper.step()?.wall), &mut || peer.step())?;
        line.outcome = Outcome::Measured(Measured::of(&rounds).expect("there are rounds"));
        return Ok(line);
    }
    line.against += " (measured before, by benches/peers)";
    let Some(reference) = Spread::of(&before.f32_ms) else { return Err(failed("no time in f32_ms".into())) };
    s.say("training step for the comparison with PyTorch");
    stepper.step()?; // a rehearsal
    let walls = (0..s.settings.rounds).map(|_| Ok(stepper.step()?.wall)).collect::<Result<Vec<_>, BenchError>>()?;
    let ours = Spread::of(&walls).expect("there are rounds");
    if before.threads != s.settings.threads {
        line.against += &format!(", with {} threads", before.threads);
    }
    let ratio =
        Spread { median: ours.median / reference.median, min: ours.min / reference.max, max: ours.max / reference.min };
    line.outcome = Outcome::Measured(Measured { ours, reference, ratio });
    Ok(line)
}

/// What benches/peers writes (and more, which is for readers).
#[derive(Debug, serde::Deserialize)]
struct Before {
    model: String,
    layer: usize,
    threads: u32,
    unique_tokens: usize,
    /// Times of the steps, milliseconds.
    f32_ms: Vec<f64>,
}
