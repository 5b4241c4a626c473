//! A training run: its state, and the step that changes it.

use super::checkpoint::{Checkpoint, Point, State};
use super::config::TrainConfig;
use super::error::TrainError;
use super::events::{NamedPair, StepReport, Stop};
use super::identity::RecordedIdentity;
use super::optimizer::{AdamW, clip};
use super::order::{Member, members};
use super::summary::RunSummary;
use super::trainer::Trained;
use crate::engine::{BatchScore, Direction, Engine, EngineError, PairLogp, ParameterGroup, Parameters, TracedPair};
use crate::numbers::norm;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Pairs with their traces, in the same order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TracedSet<'a> {
    /// The pairs.
    pub(crate) pairs: &'a [NamedPair],
    /// Their traces.
    pub(crate) traced: &'a [TracedPair],
}

/// A run between two steps.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    engine: &'a mut Engine,
    config: &'a TrainConfig,
    train: TracedSet<'a>,
    valid: TracedSet<'a>,
    interrupt: &'a AtomicBool,
    summary: RunSummary,
    /// Steps of the linear warm-up.
    warmup: usize,
    optimizer: AdamW,
    /// The intervention's parameters with their learning rates, before the schedule's factor.
    groups: Vec<ParameterGroup>,
    /// The parameters, `[n_params]`.
    theta: Vec<f64>,
    /// The parameters with the lowest validation loss so far.
    best: Vec<f64>,
    /// The parameters before the last step: every loss and gradient of that step was finite.
    good: Vec<f64>,
    state: State,
    clock: Clock,
}

/// Speed of this process, from its first step on.
#[derive(Debug)]
struct Clock {
    started: Instant,
    first_step: usize,
    tokens: usize,
}

/// The result of an attempted step.
#[derive(Debug)]
pub(crate) enum Step {
    /// The parameters were updated.
    Taken(StepReport),
    /// The user interrupted; the parameters are as before.
    Interrupted,
    /// A loss or a gradient is not finite; the parameters are as before.
    NotFinite {
        /// The pair's name.
        pair: String,
    },
}

/// The result of an epoch's end.
#[derive(Debug)]
pub(crate) enum EpochEnd {
    /// Losses of the epoch.
    Measured(Point),
    /// A validation loss is not finite.
    NotFinite {
        /// The pair's name.
        pair: String,
    },
}

/// Validation of parameters.
#[derive(Debug)]
enum Validation {
    /// Mean over pairs and over the directions of [`TrainConfig::validation`].
    Loss {
        /// Mean loss.
        value: f64,
        /// Preference accuracy.
        accuracy: f64,
    },
    /// A loss is not finite.
    NotFinite {
        /// Index of the pair.
        pair: usize,
    },
}

impl<'a> Run<'a> {
    /// A run before its first step.
    pub(crate) fn new(
        engine: &'a mut Engine,
        config: &'a TrainConfig,
        [train, valid]: [TracedSet<'a>; 2],
        summary: RunSummary,
        interrupt: &'a AtomicBool,
    ) -> Self {
        let intervention = engine.intervention();
        let rates: Vec<f64> = summary.layers.iter().map(|l| l.lr).collect();
        let (groups, theta) = (intervention.groups(&rates), intervention.initial(config.seed));
        let kind = intervention.kind().to_owned();
        Self {
            engine,
            config,
            train,
            valid,
            interrupt,
            warmup: (config.warmup_ratio * summary.total_steps as f64).ceil() as usize,
            summary,
            optimizer: AdamW::new(theta.len(), config.weight_decay),
            groups,
            best: theta.clone(),
            good: theta.clone(),
            theta,
            state: State { kind, best_loss: f64::INFINITY, ..State::default() },
            clock: Clock { started: Instant::now(), first_step: 0, tokens: 0 },
        }
    }

    /// Continues from a checkpoint.
    pub(crate) fn resume(&mut self, c: Checkpoint) {
        (self.optimizer.t, self.optimizer.m, self.optimizer.s) = (c.state.step as u64, c.m, c.s);
        (self.theta, self.best, self.good, self.state) = (c.v, c.best, c.good, c.state);
        self.clock = Clock { started: Instant::now(), first_step: self.state.step, tokens: 0 };
    }

    /// The state of the run, to be saved under this identity.
    pub(crate) fn checkpoint(&self, identity: RecordedIdentity) -> Checkpoint {
        Checkpoint {
            v: self.theta.clone(),
            m: self.optimizer.m.clone(),
            s: self.optimizer.s.clone(),
            best: self.best.clone(),
            good: self.good.clone(),
            state: State { identity, ..self.state.clone() },
        }
    }

    /// The engine.
    pub(crate) fn engine(&mut self) -> &mut Engine {
        self.engine
    }

    /// Steps taken.
    pub(crate) fn steps(&self) -> usize {
        self.state.step
    }

    /// All planned steps were taken.
    pub(crate) fn complete(&self) -> bool {
        self.state.step >= self.summary.total_steps
    }

    /// The validation loss has not fallen for as many epochs as the settings allow. True also of a run that had already
    /// stopped for it when its checkpoint was written.
    pub(crate) fn out_of_patience(&self) -> bool {
        self.config.patience > 0 && self.state.bad_epochs >= self.config.patience
    }

    /// An epoch ends with the last step.
    pub(crate) fn at_epoch_end(&self) -> bool {
        self.state.step.is_multiple_of(self.config.steps_per_epoch(self.train.pairs.len())) || self.complete()
    }

    /// Pairs of the next step.
    pub(crate) fn next_members(&self) -> Vec<Member> {
        members(self.config, self.state.step, self.train.pairs.len())
    }

    /// The parameters as the engine takes them.
    fn theta_f32(&self) -> Vec<f32> {
        self.theta.iter().map(|&x| x as f32).collect()
    }

    /// The members as they are computed together: batches of indices of one direction.
    fn batches(&self, members: &[Member]) -> Vec<(Vec<usize>, Direction)> {
        let mut all = Vec::new();
        for direction in [Direction::Forward, Direction::Reverse] {
            let of: Vec<usize> = members.iter().filter(|m| m.direction == direction).map(|m| m.pair).collect();
            let sizes: Vec<usize> = of.iter().map(|&i| self.train.traced[i].n_tokens()).collect();
            all.extend(
                self.summary.batch_plan.batches(&sizes).into_iter().map(|batch| (of[batch].to_vec(), direction)),
            );
        }
        all
    }

    /// One step over `members`: loss and gradient of each batch, their mean, clipping, AdamW.
    ///
    /// # Errors
    /// [`TrainError::Engine`].
    pub(crate) fn step(&mut self, members: &[Member]) -> Result<Step, TrainError> {
        let mut sum = StepSum::new(self.theta.len());
        let theta = self.theta_f32();
        for (batch, direction) in self.batches(members) {
            if self.interrupt.load(Ordering::Relaxed) {
                return Ok(Step::Interrupted);
            }
            if let Some(bad) = self.add_batch(&batch, Parameters { theta: &theta, direction }, &mut sum)? {
                return Ok(Step::NotFinite { pair: self.train.pairs[bad].name.clone() });
            }
        }
        let updating = Instant::now();
        let n = members.len() as f64;
        let mut g: Vec<f64> = sum.grad.iter().map(|x| x / n).collect();
        let grad_norm = clip(&mut g, self.config.max_grad_norm.unwrap_or(f64::INFINITY));
        let factor = self.config.schedule.factor(self.state.step, self.warmup, self.summary.total_steps);
        self.good.clone_from(&self.theta);
        self.state.good_step = self.state.step;
        self.optimizer.step(&mut self.theta, &g, &self.groups, factor);
        let update = updating.elapsed();
        self.state.step += 1;
        self.state.epoch_loss += sum.loss;
        self.state.epoch_pairs += members.len();
        Ok(Step::Taken(self.report(&sum, n, grad_norm, update)))
    }

    /// Scores `members` under the current parameters, forward only and in the batches of [`Run::step`]: what the benchmark
    /// subtracts from a step to time its backward pass.
    ///
    /// # Errors
    /// Any of [`EngineError`].
    pub(crate) fn forward(&mut self, members: &[Member]) -> Result<(), EngineError> {
        let train = self.train;
        let theta = self.theta_f32();
        for (batch, direction) in self.batches(members) {
            let traced: Vec<&TracedPair> = batch.iter().map(|&i| &train.traced[i]).collect();
            self.engine.run_batch(&traced, Parameters { theta: &theta, direction }, None)?;
        }
        Ok(())
    }

    /// Adds losses and gradients of a batch of one direction to `sum`. Returns the pair that is not finite, if any.
    fn add_batch(
        &mut self,
        batch: &[usize],
        at: Parameters<'_>,
        sum: &mut StepSum,
    ) -> Result<Option<usize>, EngineError> {
        let train = self.train;
        let traced: Vec<&TracedPair> = batch.iter().map(|&i| &train.traced[i]).collect();
        let (d, config) = (at.direction.sign(), self.config);
        let derivative = |margin: f64| d * config.objective.loss(d, config.beta, margin).slope;
        let BatchScore { logp, grad } = self.engine.run_batch(&traced, at, Some(&derivative))?;
        let references = traced.iter().map(|t| t.reference());
        let bad = logp.iter().zip(references).position(|(policy, r)| !sum.add(d, config, &r, policy));
        let bad = match bad {
            None if grad.iter().any(|g| !g.is_finite()) => Some(self.without_gradient(&traced, at)?),
            bad => bad,
        };
        if let Some(at) = bad {
            return Ok(Some(batch[at]));
        }
        sum.grad.iter_mut().zip(&grad).for_each(|(sum, g)| *sum += g);
        self.clock.tokens += traced.iter().map(|t| t.n_tokens()).sum::<usize>();
        Ok(None)
    }

    /// Index of the first pair whose own gradient is not finite; the last one where each is finite alone.
    fn without_gradient(&mut self, traced: &[&TracedPair], theta: Parameters<'_>) -> Result<usize, EngineError> {
        for (at, pair) in traced.iter().enumerate() {
            if self.engine.run(*pair, theta, true)?.grads.iter().flatten().any(|g| !g.is_finite()) {
                return Ok(at);
            }
        }
        Ok(traced.len() - 1)
    }

    fn report(&self, sum: &StepSum, n: f64, grad_norm: f64, update: Duration) -> StepReport {
        let norms = self.engine.intervention().norms(&self.theta, &self.summary.medians());
        let (step, total) = (self.state.step, self.summary.total_steps);
        let elapsed = self.clock.started.elapsed();
        StepReport {
            step,
            total,
            epoch: (step - 1) / self.config.steps_per_epoch(self.train.pairs.len()) + 1,
            loss: sum.loss / n,
            margin: sum.margin / n,
            accuracy: sum.preferred / n,
            norm: norm(&norms),
            percent: self.summary.percent_of_norms(&norms),
            grad_norm,
            tokens_per_second: self.clock.tokens as f64 / elapsed.as_secs_f64().max(1e-9),
            left: elapsed / (step - self.clock.first_step) as u32 * total.saturating_sub(step) as u32,
            update,
        }
    }

    /// Ends an epoch: its training loss, and the validation that chooses the best vector.
    ///
    /// # Errors
    /// [`TrainError::Engine`].
    pub(crate) fn end_epoch(&mut self) -> Result<EpochEnd, TrainError> {
        let norms = self.engine.intervention().norms(&self.theta, &self.summary.medians());
        let mut point = Point {
            step: self.state.step,
            train_loss: self.state.epoch_loss / self.state.epoch_pairs.max(1) as f64,
            norm: norm(&norms),
            percent: self.summary.percent_of_norms(&norms),
            ..Point::default()
        };
        (self.state.epoch_loss, self.state.epoch_pairs) = (0.0, 0);
        if !self.valid.pairs.is_empty() {
            let (value, accuracy) = match self.validate()? {
                Validation::Loss { value, accuracy } => (value, accuracy),
                Validation::NotFinite { pair } => {
                    return Ok(EpochEnd::NotFinite { pair: self.valid.pairs[pair].name.clone() });
                }
            };
            (point.valid_loss, point.valid_accuracy) = (Some(value), Some(accuracy));
            if value < self.state.best_loss {
                (self.state.best_loss, self.state.best_step, self.state.bad_epochs) = (value, self.state.step, 0);
                self.best.clone_from(&self.theta);
            } else {
                self.state.bad_epochs += 1;
            }
        }
        self.state.history.push(point);
        Ok(EpochEnd::Measured(point))
    }

    /// Validates the current parameters.
    fn validate(&mut self) -> Result<Validation, EngineError> {
        let directions = self.config.validation().directions();
        let (mut value, mut preferred, mut n) = (0.0, 0.0, 0.0);
        let theta = self.theta_f32();
        for &direction in directions {
            let at = Parameters { theta: &theta, direction };
            let d = direction.sign();
            let scored = self.engine.score_all(self.valid.traced, at, self.summary.batch_plan)?;
            for (pair, (policy, e)) in scored.iter().zip(self.valid.traced).enumerate() {
                let margin = policy.gap() - e.reference().gap();
                if !margin.is_finite() {
                    return Ok(Validation::NotFinite { pair });
                }
                value += self.config.objective.loss(d, self.config.beta, margin).value;
                preferred += f64::from(u8::from(d * margin > 0.0));
                n += 1.0;
            }
        }
        Ok(Validation::Loss { value: value / n, accuracy: preferred / n })
    }

    /// Ends the run and chooses its parameters.
    ///
    /// # Errors
    /// [`TrainError::Engine`].
    pub(crate) fn finish(mut self, mut stop: Stop) -> Result<Trained, TrainError> {
        // Without validation the last parameters are the best ones. No loss followed its last step yet that shows whether they are
        // usable, so the pairs of that step are scored once more.
        if self.state.best_step == 0 {
            if !matches!(stop, Stop::NotFinite { .. })
                && self.state.step > 0
                && let Some(pair) = self.last_not_finite()?
            {
                stop = Stop::NotFinite { step: self.state.step, pair };
            }
            (self.best, self.state.best_step) = match stop {
                Stop::NotFinite { .. } => (self.good, self.state.good_step),
                _ => (self.theta, self.state.step),
            };
        }
        Ok(Trained {
            intervention: Arc::clone(self.engine.intervention()),
            kind: self.config.kind,
            scope: self.engine.scope().clone(),
            vector: self.best.iter().map(|&x| x as f32).collect(),
            untrained_loss: self.config.untrained_loss(),
            summary: self.summary,
            history: self.state.history,
            steps: self.state.step,
            best_step: self.state.best_step,
            stop,
        })
    }

    /// Name of a pair of the last step whose log-probabilities under the current parameters are not finite.
    fn last_not_finite(&mut self) -> Result<Option<String>, EngineError> {
        let theta = self.theta_f32();
        for m in members(self.config, self.state.step - 1, self.train.pairs.len()) {
            let traced = &self.train.traced[m.pair];
            let scored = self.engine.run(traced, Parameters { theta: &theta, direction: m.direction }, false)?;
            if !(scored.logp[0].gap() - traced.reference().gap()).is_finite() {
                return Ok(Some(self.train.pairs[m.pair].name.clone()));
            }
        }
        Ok(None)
    }
}

/// Sums over a step's pairs.
struct StepSum {
    /// Gradient of the loss, `[n_params]`.
    grad: Vec<f64>,
    loss: f64,
    margin: f64,
    /// Pairs whose preferred response, for their direction, became more probable.
    preferred: f64,
}

impl StepSum {
    fn new(n: usize) -> Self {
        Self { grad: vec![0.0; n], loss: 0.0, margin: 0.0, preferred: 0.0 }
    }

    /// Adds the loss of a pair; false if it is not finite.
    fn add(&mut self, d: f64, config: &TrainConfig, reference: &PairLogp, policy: &PairLogp) -> bool {
        let margin = policy.gap() - reference.gap();
        let l = config.objective.loss(d, config.beta, margin);
        if !margin.is_finite() || !l.value.is_finite() || !l.slope.is_finite() {
            return false;
        }
        self.loss += l.value;
        self.margin += d * margin;
        self.preferred += f64::from(u8::from(d * margin > 0.0));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_notices_what_is_not_finite() {
        let p = |x| PairLogp { chosen: x, rejected: 0.0 };
        let mut s = StepSum::new(1);
        let config = TrainConfig::new(crate::layers::Layers::one(1));
        assert!(s.add(1.0, &config, &p(0.0), &p(1.0)));
        assert!(!s.add(1.0, &config, &p(0.0), &p(f64::NAN)));
        assert!(!s.add(1.0, &config, &p(0.0), &p(f64::INFINITY)));
    }
}
