//! A training run: its state, and the step that changes it.

use super::checkpoint::{Checkpoint, Point, State};
use super::config::TrainConfig;
use super::error::TrainError;
use super::events::{NamedPair, StepReport, Stop};
use super::gate_fit::{GateFit, is_blind};
use super::identity::RecordedIdentity;
use super::objective::PairScores;
use super::optimizer::{AdamW, clip};
use super::order::{Member, members};
use super::retain::{Retain, Retained, texts_of_step};
use super::summary::RunSummary;
use super::trainer::Trained;
use crate::engine::{
    BatchScore, Direction, Engine, EngineError, PairLogp, ParameterGroup, Parameters, RetainedText, TracedPair,
};
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
    retained: &'a [RetainedText],
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
        let begun = config.init.as_ref().map(|init| init.theta.clone());
        let (groups, theta) = (intervention.groups(&rates), begun.unwrap_or_else(|| intervention.initial(config.seed)));
        let kind = intervention.kind().to_owned();
        Self {
            engine,
            config,
            train,
            valid,
            retained: &[],
            interrupt,
            warmup: (config.warmup_ratio * summary.total_steps as f64).ceil() as usize,
            summary,
            optimizer: AdamW::new(theta.len(), config.weight_decay),
            groups,
            best: theta.clone(),
            good: theta.clone(),
            theta,
            state: State {
                kind,
                best_loss: f64::INFINITY,
                retain_weight: config.retain.map_or(0.0, |r| r.weight),
                // Whatever the first epoch reaches is the best so far.
                best_excess: if config.retain.is_some_and(|r| r.budget.is_some()) { f64::INFINITY } else { 0.0 },
                ..State::default()
            },
            clock: Clock { started: Instant::now(), first_step: 0, tokens: 0 },
        }
    }

    /// The run with texts to retain.
    pub(crate) fn retaining(mut self, texts: &'a [RetainedText]) -> Self {
        self.retained = texts;
        self
    }

    /// The run with a gate that begins where it tells the training pairs from the retained texts; for one that would read nothing.
    /// Returns the fit, if there is one.
    pub(crate) fn fitting_the_gate(&mut self) -> Option<GateFit> {
        let (config, n_embd) = (self.config, self.summary.n_embd);
        if !is_blind(&self.theta, n_embd) {
            return None;
        }
        let fit = GateFit::of(&config.kind, &config.scope, n_embd, self.train.traced, self.retained)?;
        fit.write(&mut self.theta);
        self.best.clone_from(&self.theta);
        self.good.clone_from(&self.theta);
        Some(fit)
    }

    /// Settings of retention, where there are texts to retain.
    fn retain(&self) -> Option<Retain> {
        self.config.retain.filter(|_| !self.retained.is_empty())
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
        let retained = self.step_retained(&theta)?;
        if retained.as_ref().is_some_and(|r| !r.kl.is_finite() || r.grad.iter().any(|g| !g.is_finite())) {
            return Ok(Step::NotFinite { pair: "retained texts".into() });
        }
        let updating = Instant::now();
        let n = members.len() as f64;
        let mut g: Vec<f64> = sum.grad.iter().map(|x| x / n).collect();
        if let Some(retained) = &retained {
            g.iter_mut().zip(&retained.grad).for_each(|(g, x)| *g += x);
        }
        let grad_norm = clip(&mut g, self.config.max_grad_norm.unwrap_or(f64::INFINITY));
        let factor = self.config.schedule.factor(self.state.step, self.warmup, self.summary.total_steps);
        self.good.clone_from(&self.theta);
        self.state.good_step = self.state.step;
        self.optimizer.step(&mut self.theta, &g, &self.groups, factor);
        let update = updating.elapsed();
        self.state.step += 1;
        self.state.epoch_loss += sum.loss;
        self.state.epoch_pairs += members.len();
        let kl = retained.map(|r| r.kl);
        if let Some((retain, kl)) = self.retain().zip(kl) {
            self.state.retain_weight = retain.next_weight(self.state.retain_weight, kl);
        }
        Ok(Step::Taken(StepReport { retained_kl: kl, ..self.report(&sum, n, grad_norm, update) }))
    }

    /// Divergence on the step's retained texts, and the gradient of its part of the loss; `None` without such texts.
    fn step_retained(&mut self, theta: &[f32]) -> Result<Option<StepRetained>, EngineError> {
        let Some(retain) = self.retain() else { return Ok(None) };
        let texts = self.retained;
        let k = retain.texts_of(texts.len(), self.config.batch);
        let both = self.config.objective.both_directions();
        let (chosen, direction) = texts_of_step(self.config.seed, self.state.step, texts.len(), k, both);
        let predictions: usize = chosen.iter().map(|&i| texts[i].n_predictions()).sum();
        let coef = 1.0 / predictions as f64;
        let sizes: Vec<usize> = chosen.iter().map(|&i| texts[i].n_tokens()).collect();
        let mut sum = StepRetained { kl: 0.0, grad: vec![0.0; self.theta.len()] };
        for group in self.summary.batch_plan.batches(&sizes) {
            let members: Vec<&RetainedText> = chosen[group].iter().map(|&i| &texts[i]).collect();
            let d = self.engine.diverge(&members, Parameters { theta, direction }, Some(coef))?;
            sum.kl += d.nats.iter().sum::<f64>() / predictions as f64;
            sum.grad.iter_mut().zip(&d.grad).for_each(|(sum, g)| *sum += g);
            self.clock.tokens += members.iter().map(|t| t.n_tokens()).sum::<usize>();
        }
        // What a divergence weighs may depend on its size.
        let weight = retain.step_weight(self.state.retain_weight, sum.kl);
        sum.grad.iter_mut().for_each(|g| *g *= weight);
        Ok(Some(sum))
    }

    /// Mean divergence on all retained texts, nats a token, over the directions of validation.
    fn divergence(&mut self, theta: &[f32]) -> Result<Option<f64>, EngineError> {
        if self.retain().is_none() {
            return Ok(None);
        }
        let (texts, directions) = (self.retained, self.config.validation().directions());
        let predictions: usize = texts.iter().map(RetainedText::n_predictions).sum();
        let mut nats = 0.0;
        for &direction in directions {
            let at = Parameters { theta, direction };
            nats += self.engine.diverge_all(texts, at, self.summary.batch_plan)?.iter().sum::<f64>();
        }
        Ok(Some(nats / (predictions * directions.len()) as f64))
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
        let BatchScore { logp, grad } = if config.objective.by_margin() {
            let derivative =
                |margin: f64| config.objective.loss(d, config.beta, margin).map_or(f64::NAN, |l| d * l.slope);
            self.engine.run_batch(&traced, at, Some(&derivative))?
        } else {
            let pairs: Vec<PairScores> = traced.iter().map(|t| scores(t, &t.reference())).collect();
            let slopes = |i: usize, policy: &PairLogp| {
                let pair = PairScores { policy: *policy, ..pairs[i] };
                config.objective.evaluate(d, config.strength(), &pair).slopes
            };
            self.engine.run_batch_by(&traced, at, &slopes)?
        };
        let bad = logp.iter().zip(&traced).position(|(policy, pair)| !sum.add(d, config, &scores(pair, policy)));
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
            retained_kl: None,
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
        point.retained_kl = self.divergence(&self.theta_f32())?;
        if point.retained_kl.is_some_and(|kl| !kl.is_finite()) {
            return Ok(EpochEnd::NotFinite { pair: "retained texts".into() });
        }
        point.retain_weight = self.retain().map(|_| self.state.retain_weight);
        if !self.valid.pairs.is_empty() {
            let (value, accuracy) = match self.validate()? {
                Validation::Loss { value, accuracy } => (value, accuracy),
                Validation::NotFinite { pair } => {
                    return Ok(EpochEnd::NotFinite { pair: self.valid.pairs[pair].name.clone() });
                }
            };
            (point.valid_loss, point.valid_accuracy) = (Some(value), Some(accuracy));
            // Under a budget: what is least above it, and of what is within it, the lowest loss. Under a weight: the sum.
            let (excess, loss) = match self.retain().zip(point.retained_kl) {
                None => (0.0, value),
                Some((retain, kl)) if retain.budget.is_some() => (retain.excess(kl), value),
                Some((retain, kl)) => (0.0, value + retain.weight * kl),
            };
            if excess < self.state.best_excess || excess == self.state.best_excess && loss < self.state.best_loss {
                (self.state.best_loss, self.state.best_step, self.state.bad_epochs) = (loss, self.state.step, 0);
                self.state.best_excess = excess;
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
                value += self.config.objective.evaluate(d, self.config.strength(), &scores(e, policy)).value;
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
                Stop::NotFinite { .. } => (self.good.clone(), self.state.good_step),
                _ => (self.theta.clone(), self.state.step),
            };
        }
        let weight = self.state.retain_weight;
        let mut trained = Trained {
            intervention: Arc::clone(self.engine.intervention()),
            kind: self.config.kind,
            scope: self.engine.scope().clone(),
            vector: self.best.iter().map(|&x| x as f32).collect(),
            untrained_loss: self.untrained_loss(),
            retained: None,
            summary: self.summary.clone(),
            history: self.state.history.clone(),
            steps: self.state.step,
            best_step: self.state.best_step,
            stop,
        };
        let written = trained.renormalised(self.config.renorm);
        if let Some((retain, kl)) = self.retain().zip(self.divergence(&written)?) {
            trained.retained = Some(Retained {
                kl,
                texts: self.retained.len(),
                predictions: self.retained.iter().map(RetainedText::n_predictions).sum(),
                weight,
                budget: retain.budget,
            });
        }
        Ok(trained)
    }

    /// Loss of the untrained vector, over the directions of validation: on the validation pairs, or the training pairs, where
    /// it depends on the pairs.
    fn untrained_loss(&self) -> f64 {
        self.config.untrained_loss().unwrap_or_else(|| {
            let set = if self.valid.traced.is_empty() { self.train.traced } else { self.valid.traced };
            let directions = self.config.validation().directions();
            let loss = |pair: &TracedPair| {
                let scores = scores(pair, &pair.reference());
                let of =
                    |d: &Direction| self.config.objective.evaluate(d.sign(), self.config.strength(), &scores).value;
                directions.iter().map(of).sum::<f64>() / directions.len() as f64
            };
            set.iter().map(loss).sum::<f64>() / set.len().max(1) as f64
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

/// A pair for its loss.
fn scores(pair: &TracedPair, policy: &PairLogp) -> PairScores {
    let tokens = pair.tokens();
    let lengths = [tokens.chosen.len(), tokens.rejected.len()];
    PairScores { reference: pair.reference(), policy: *policy, lengths }
}

/// The retained texts' part of a step.
struct StepRetained {
    /// Nats a token.
    kl: f64,
    /// Gradient of the weighted divergence, `[n_params]`.
    grad: Vec<f64>,
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
    fn add(&mut self, d: f64, config: &TrainConfig, pair: &PairScores) -> bool {
        let margin = pair.margin();
        let l = config.objective.evaluate(d, config.strength(), pair);
        if !margin.is_finite() || !l.value.is_finite() || !(l.slopes.chosen + l.slopes.rejected).is_finite() {
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
        let pair = |x| PairScores { reference: p(0.0), policy: p(x), lengths: [1, 1] };
        assert!(s.add(1.0, &config, &pair(1.0)));
        assert!(!s.add(1.0, &config, &pair(f64::NAN)));
        assert!(!s.add(1.0, &config, &pair(f64::INFINITY)));
    }
}
