//! The training loop.

use super::cache::{Cache, CacheType};
use super::capturing::{Captured, capture_all};
use super::checkpoint::{Checkpoint, Point, State};
use super::config::{Length, TrainConfig};
use super::engine::{Engine, EngineError, Example, PairLogp};
use super::error::TrainError;
use super::events::{Event, NamedPair, StepReport, Stop};
use super::objective::{Objective, loss};
use super::optimizer::{AdamW, clip};
use super::ready::{AtLayer, Ready};
use crate::data::permutation;
use crate::numbers::norm;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// A finished run.
#[derive(Debug, Clone)]
pub struct Trained {
    /// The vector, `[n_layers, n_embd]`, lowest layer first: the one with the best validation loss where there are validation pairs, else the last one whose losses
    /// are finite. All zero, with `best_step` 0, where there is none.
    pub vector: Vec<f32>,
    /// What was known at the start.
    pub ready: Ready,
    /// What was measured.
    pub history: Vec<Point>,
    /// Steps taken.
    pub steps: usize,
    /// Step the vector is from.
    pub best_step: usize,
    /// Why it ended.
    pub stop: Stop,
}

/// Where and how a run keeps its checkpoints.
#[derive(Debug, Clone)]
pub struct CheckpointPlan {
    /// The file.
    pub path: PathBuf,
    /// Go on from it.
    pub resume: bool,
    /// Hash of the model and whatever else decides the result beside settings and tokens.
    pub context: String,
}

/// Trains a vector at the engine's layers: one direction each, all of them the parameters of one optimizer.
///
/// # Errors
/// [`TrainError`]. A loss that is not finite is no error but a [`Stop`]: the last good vector comes back.
pub fn train(
    engine: &mut Engine,
    train: &[NamedPair],
    valid: &[NamedPair],
    config: &TrainConfig,
    plan: Option<&CheckpointPlan>,
    interrupt: &AtomicBool,
    observe: &mut dyn FnMut(Event<'_>),
) -> Result<Trained, TrainError> {
    if engine.layers() != &*config.layers {
        return Err(TrainError::Config(format!(
            "the engine steers layers {:?}, the settings say {}",
            engine.layers(),
            config.layers
        )));
    }
    if train.is_empty() {
        return Err(TrainError::Config("there is no pair to train on".into()));
    }
    let batch = config.batch.clamp(1, train.len());
    let per_epoch = train.len().div_ceil(batch);
    let total = match config.length {
        Length::Epochs(n) => n * per_epoch,
        Length::Steps(n) => n,
    };
    if total == 0 {
        return Err(TrainError::Config("a run of zero steps trains nothing".into()));
    }
    let (n_embd, n_params) = (engine.model().n_embd(), engine.n_params());
    let fingerprint = fingerprint(train, valid, config, plan.map_or("", |p| &p.context));
    let resumed = match plan.filter(|p| p.resume) {
        Some(p) => Some(Checkpoint::load(&p.path, &fingerprint, n_params)?),
        None => None,
    };

    engine.set_precision(config.precision);
    let Captured { examples, agreement, rounding } =
        capture_all(engine, (train, valid), config.allow_swap, interrupt, observe)?.ok_or_else(|| {
            TrainError::Config(match resumed {
                None => "interrupted before the first step: there is nothing to save".into(),
                Some(_) => {
                    "interrupted before the first new step: the checkpoint is as it was, --resume goes on".into()
                }
            })
        })?;
    if let Some((cache, rounding)) = engine.cache().zip(rounding) {
        observe(Event::Cache { folder: cache.folder(), used: cache.used(), rounding });
    }
    let (train_examples, valid_examples) = examples.split_at(train.len());
    let at_layer = |(i, &layer): (usize, &usize)| {
        let norms: Vec<f32> = train_examples.iter().flat_map(|e| e.norms[i].iter().copied()).collect();
        AtLayer::new(layer, &norms, config.lr, n_embd, config.layers.len())
    };
    let ready = Ready {
        layers: config.layers.iter().enumerate().map(at_layer).collect(),
        n_embd,
        total_steps: total,
        agreement,
        cache_bytes: examples.iter().map(Example::bytes).sum(),
        captured_as: engine.cache().map_or(CacheType::F32, Cache::kind),
        train_tokens: train_examples.iter().map(|e| e.n_tokens).sum(),
    };
    observe(Event::Ready(&ready));

    let mut opt = AdamW::new(n_params, config.weight_decay);
    let mut state = State { fingerprint, best_loss: f64::INFINITY.to_bits(), ..State::default() };
    let mut v = vec![0.0f64; n_params];
    let (mut best, mut good) = (v.clone(), v.clone());
    if let Some(c) = resumed {
        (opt.t, opt.m, opt.s, v, best, good, state) = (c.state.step as u64, c.m, c.s, c.v, c.best, c.good, c.state);
        observe(Event::Resumed { step: state.step });
    }
    let warmup = (config.warmup * total as f64).ceil() as usize;
    let mut stop = Stop::Finished;
    let (started, first_step, mut tokens) = (Instant::now(), state.step, 0usize);
    // A run that had already stopped early must not go on.
    let patience_over = |state: &State| config.patience > 0 && state.bad_epochs >= config.patience;

    'run: while state.step < total {
        if patience_over(&state) {
            stop = Stop::Early;
            break;
        }
        let epoch = state.step / per_epoch;
        let members = members(config, state.step, train.len());
        let mut sum = StepSum::new(n_params);
        for (group, d) in batches(engine, &members, |i| train_examples[i].n_tokens) {
            if interrupt.load(Ordering::Relaxed) {
                stop = Stop::Interrupted;
                break 'run;
            }
            let joined: Vec<&Example> = group.iter().map(|&i| &train_examples[i]).collect();
            let added: Vec<f32> = v.iter().map(|x| (d * x) as f32).collect();
            let slope = |margin: f64| loss(d, config.beta, margin).slope;
            let (policies, grad) = engine.run_together(&joined, &added, Some(&slope))?;
            let references = joined.iter().map(|e| &e.reference[0]);
            let bad = policies.iter().zip(references).position(|(policy, r)| !sum.add(d, config.beta, r, policy));
            let bad = match bad {
                None if grad.iter().any(|g| !g.is_finite()) => Some(without_gradient(engine, &joined, &added)?),
                bad => bad,
            };
            if let Some(at) = bad {
                stop = Stop::NotFinite { step: state.step + 1, pair: train[group[at]].name.clone() };
                break 'run;
            }
            sum.grad.iter_mut().zip(&grad).for_each(|(sum, g)| *sum += g);
            tokens += joined.iter().map(|e| e.n_tokens).sum::<usize>();
        }
        let n = members.len() as f64;
        let mut g: Vec<f64> = sum.grad.iter().map(|x| x / n).collect();
        let grad_norm = clip(&mut g, config.clip.unwrap_or(f64::INFINITY));
        let factor = config.schedule.factor(state.step, warmup, total);
        let lr: Vec<f64> = ready.layers.iter().map(|l| l.lr * factor).collect();
        good.clone_from(&v);
        state.good_step = state.step;
        opt.step(&mut v, &g, &lr);
        state.step += 1;
        state.epoch_loss = (f64::from_bits(state.epoch_loss) + sum.loss).to_bits();
        state.epoch_pairs += members.len();

        let elapsed = started.elapsed();
        let done = (state.step - first_step) as u32;
        observe(Event::Step(&StepReport {
            step: state.step,
            total,
            epoch: epoch + 1,
            loss: sum.loss / n,
            margin: sum.margin / n,
            accuracy: sum.wins / n,
            norm: norm(&v),
            percent: ready.percent(&v),
            grad_norm,
            tokens_per_second: tokens as f64 / elapsed.as_secs_f64().max(1e-9),
            left: elapsed / done * (total - state.step) as u32,
        }));

        let epoch_ends = state.step.is_multiple_of(per_epoch) || state.step == total;
        if epoch_ends {
            let mut point = Point {
                step: state.step,
                train_loss: f64::from_bits(state.epoch_loss) / state.epoch_pairs.max(1) as f64,
                norm: norm(&v),
                percent: ready.percent(&v),
                ..Point::default()
            };
            (state.epoch_loss, state.epoch_pairs) = (0, 0);
            if !valid.is_empty() {
                let (value, accuracy) = match validate(engine, valid_examples, &v, config)? {
                    Ok(figures) => figures,
                    Err(i) => {
                        stop = Stop::NotFinite { step: state.step, pair: valid[i].name.clone() };
                        break;
                    }
                };
                (point.valid_loss, point.valid_accuracy) = (Some(value), Some(accuracy));
                if value < f64::from_bits(state.best_loss) {
                    state.best_loss = value.to_bits();
                    state.best_step = state.step;
                    state.bad_epochs = 0;
                    best.clone_from(&v);
                } else {
                    state.bad_epochs += 1;
                }
            }
            state.history.push(point);
            observe(Event::Epoch(&point));
        }
        if let Some(p) = plan
            && (epoch_ends || state.step.is_multiple_of(config.checkpoint_every.max(1)))
        {
            save(p, &v, &opt, [&best, &good], &state)?;
        }
    }
    if let Some(p) = plan.filter(|_| !matches!(stop, Stop::NotFinite { .. })) {
        save(p, &v, &opt, [&best, &good], &state)?;
    }
    // Nothing was validated: what there is, is the best. Its last step was not followed by a loss yet that shows whether
    // it is usable, so the pairs of that step are scored once more.
    if state.best_step == 0 {
        if !matches!(stop, Stop::NotFinite { .. }) && state.step > 0 {
            for (i, d) in members(config, state.step - 1, train.len()) {
                let added: Vec<f32> = v.iter().map(|x| (d * x) as f32).collect();
                let scored = engine.run(&train_examples[i], &added, false)?;
                if !(scored.logp[0].gap() - train_examples[i].reference[0].gap()).is_finite() {
                    stop = Stop::NotFinite { step: state.step, pair: train[i].name.clone() };
                    break;
                }
            }
        }
        if matches!(stop, Stop::NotFinite { .. }) {
            (best, state.best_step) = (good, state.good_step);
        } else {
            (best, state.best_step) = (v, state.step);
        }
    }
    Ok(Trained {
        vector: best.iter().map(|&x| x as f32).collect(),
        ready,
        history: state.history,
        steps: state.step,
        best_step: state.best_step,
        stop,
    })
}

fn save(
    p: &CheckpointPlan,
    v: &[f64],
    opt: &AdamW,
    [best, good]: [&[f64]; 2],
    state: &State,
) -> Result<(), TrainError> {
    let (m, s) = (opt.m.clone(), opt.s.clone());
    let c = Checkpoint { v: v.to_vec(), m, s, best: best.to_vec(), good: good.to_vec(), state: state.clone() };
    Ok(c.save(&p.path)?)
}

/// A step's pairs, as they are computed together: places of those of one direction.
pub(crate) fn batches(
    engine: &Engine,
    members: &[(usize, f64)],
    tokens: impl Fn(usize) -> usize,
) -> Vec<(Vec<usize>, f64)> {
    let mut all = Vec::new();
    for d in [1.0, -1.0] {
        let of: Vec<usize> = members.iter().filter(|m| m.1 == d).map(|m| m.0).collect();
        let sizes: Vec<usize> = of.iter().map(|&i| tokens(i)).collect();
        all.extend(engine.groups(&sizes).into_iter().map(|group| (of[group].to_vec(), d)));
    }
    all
}

/// Which of some pairs has a gradient that is not finite; the last where none has one by itself.
fn without_gradient(engine: &mut Engine, pairs: &[&Example], added: &[f32]) -> Result<usize, EngineError> {
    for (at, pair) in pairs.iter().enumerate() {
        if engine.run(pair, added, true)?.grads.iter().flatten().any(|g| !g.is_finite()) {
            return Ok(at);
        }
    }
    Ok(pairs.len() - 1)
}

/// Sums over a step's pairs.
struct StepSum {
    grad: Vec<f64>,
    loss: f64,
    margin: f64,
    wins: f64,
}

impl StepSum {
    fn new(n: usize) -> Self {
        Self { grad: vec![0.0; n], loss: 0.0, margin: 0.0, wins: 0.0 }
    }

    /// Adds a pair's figures; false if one is not finite.
    fn add(&mut self, d: f64, beta: f64, reference: &PairLogp, policy: &PairLogp) -> bool {
        let margin = policy.gap() - reference.gap();
        let l = loss(d, beta, margin);
        if !margin.is_finite() || !l.value.is_finite() || !l.slope.is_finite() {
            return false;
        }
        self.loss += l.value;
        self.margin += d * margin;
        self.wins += f64::from(u8::from(d * margin > 0.0));
        true
    }
}

/// Pairs of the step after `step` steps, with their directions.
fn members(config: &TrainConfig, step: usize, n: usize) -> Vec<(usize, f64)> {
    let batch = config.batch.clamp(1, n);
    let per_epoch = n.div_ceil(batch);
    let first = step % per_epoch * batch;
    epoch_plan(config, step / per_epoch, n)[first..(first + batch).min(n)].to_vec()
}

/// Order and directions of an epoch: a function of the seed and the epoch alone, so that a resumed run sees the same.
fn epoch_plan(config: &TrainConfig, epoch: usize, n: usize) -> Vec<(usize, f64)> {
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    rng.set_stream(epoch as u64 + 1);
    let order = permutation(n, rng.next_u64());
    order
        .into_iter()
        .map(|i| {
            let d = match config.objective {
                Objective::Dpo => 1.0,
                Objective::Bidpo => [1.0, -1.0][(rng.next_u32() & 1) as usize],
            };
            (i, d)
        })
        .collect()
}

/// Mean loss and share of wins on `examples`, over both directions for BiDPO; or the example whose loss is not finite.
fn validate(
    engine: &mut Engine,
    examples: &[Example],
    v: &[f64],
    config: &TrainConfig,
) -> Result<Result<(f64, f64), usize>, TrainError> {
    let directions: &[f64] = match config.objective {
        Objective::Bidpo => &[1.0, -1.0],
        Objective::Dpo => &[1.0],
    };
    let (mut value, mut wins, mut n) = (0.0, 0.0, 0.0);
    for &d in directions {
        let added: Vec<f32> = v.iter().map(|x| (d * x) as f32).collect();
        for (i, (policy, e)) in engine.score_all(examples, &added)?.iter().zip(examples).enumerate() {
            let margin = policy.gap() - e.reference[0].gap();
            if !margin.is_finite() {
                return Ok(Err(i));
            }
            value += loss(d, config.beta, margin).value;
            wins += f64::from(u8::from(d * margin > 0.0));
            n += 1.0;
        }
    }
    Ok(Ok((value / n, wins / n)))
}

fn fingerprint(train: &[NamedPair], valid: &[NamedPair], config: &TrainConfig, context: &str) -> String {
    let mut h = Sha256::new();
    h.update(config.fingerprint());
    h.update(context);
    for (kind, set) in [(0u8, train), (1, valid)] {
        for p in set {
            for part in [&p.tokens.prompt, &p.tokens.chosen, &p.tokens.rejected] {
                h.update([kind]);
                h.update((part.len() as u64).to_le_bytes());
                for t in part {
                    h.update(t.to_le_bytes());
                }
            }
        }
    }
    ggml_grad::files::hex(&h.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::Layers;

    #[test]
    fn an_epoch_meets_every_pair_once_in_a_seeded_order() {
        let config = TrainConfig::new(Layers::one(3));
        let a = epoch_plan(&config, 0, 50);
        let mut seen: Vec<usize> = a.iter().map(|x| x.0).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..50).collect::<Vec<_>>());
        assert_eq!(a, epoch_plan(&config, 0, 50));
        assert_ne!(a, epoch_plan(&config, 1, 50));
        assert_ne!(a, epoch_plan(&TrainConfig { seed: 1, ..config.clone() }, 0, 50));
        let plus = a.iter().filter(|x| x.1 > 0.0).count();
        assert!((10..40).contains(&plus), "{plus} of 50 directions are +1");
        let dpo = TrainConfig { objective: Objective::Dpo, ..config };
        assert!(epoch_plan(&dpo, 0, 50).iter().all(|x| x.1 == 1.0));
    }

    #[test]
    fn a_step_notices_what_is_not_finite() {
        let p = |x| PairLogp { chosen: x, rejected: 0.0 };
        let mut s = StepSum::new(1);
        assert!(s.add(1.0, 0.1, &p(0.0), &p(1.0)));
        assert!(!s.add(1.0, 0.1, &p(0.0), &p(f64::NAN)));
        assert!(!s.add(1.0, 0.1, &p(0.0), &p(f64::INFINITY)));
    }
}
