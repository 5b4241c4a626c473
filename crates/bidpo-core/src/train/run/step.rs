//! A step: loss and gradient of its pairs and retained texts, and the update.

use super::order::Member;
use super::{Run, scores};
use crate::engine::{
    BatchLoss, BatchRun, BatchScore, Direction, DivergeRun, EngineError, PairLogp, Parameters, ResponseSlopes,
    TracedPair,
};
use crate::numbers::norm;
use crate::train::config::TrainConfig;
use crate::train::error::TrainError;
use crate::train::events::StepReport;
use crate::train::objective::PairScores;
use crate::train::optimizer::clip;
use crate::train::retain::texts_of_step;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

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

impl Run<'_> {
    /// One step over `members`: loss and gradient of each batch, their mean, clipping, AdamW.
    ///
    /// # Errors
    /// [`TrainError::Engine`].
    pub(crate) fn step(&mut self, members: &[Member]) -> Result<Step, TrainError> {
        let mut sum = StepSum::new(self.theta.len());
        let theta = self.theta_f32();
        for batches in self.batches(members).chunks(self.engine.batches_at_once()) {
            if self.interrupt.load(Ordering::Relaxed) {
                return Ok(Step::Interrupted);
            }
            if let Some(bad) = self.add_batches(batches, &theta, &mut sum)? {
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
        let (chosen, opposite) = texts_of_step(self.config.seed, self.state.step, texts.len(), k, both);
        let direction = if opposite { self.config.opposite() } else { Direction::Forward };
        let predictions: usize = chosen.iter().map(|&i| texts[i].n_predictions()).sum();
        let coef = 1.0 / predictions as f64;
        let sizes: Vec<usize> = chosen.iter().map(|&i| texts[i].n_tokens()).collect();
        let mut sum = StepRetained { kl: 0.0, grad: vec![0.0; self.theta.len()] };
        let at = Parameters { theta, direction };
        let run = |group: Range<usize>| DivergeRun {
            texts: chosen[group].iter().map(|&i| &texts[i]).collect(),
            at,
            coef: Some(coef),
        };
        let runs: Vec<DivergeRun<'_>> = self.summary.batch_plan.batches(&sizes).into_iter().map(run).collect();
        for d in self.engine.diverge_batches(&runs)? {
            sum.kl += d.nats.iter().sum::<f64>() / predictions as f64;
            sum.grad.iter_mut().zip(&d.grad).for_each(|(sum, g)| *sum += g);
        }
        self.clock.tokens += sizes.iter().sum::<usize>();
        // What a divergence weighs may depend on its size.
        let weight = retain.step_weight(self.state.retain_weight, sum.kl);
        sum.grad.iter_mut().for_each(|g| *g *= weight);
        Ok(Some(sum))
    }

    /// Adds losses and gradients of batches, each of one direction, to `sum`. Returns the pair that is not finite, if any.
    fn add_batches(
        &mut self,
        batches: &[(Vec<usize>, Direction)],
        theta: &[f32],
        sum: &mut StepSum,
    ) -> Result<Option<usize>, EngineError> {
        let weighed: Vec<WeighedBatch<'_>> =
            batches.iter().map(|(batch, direction)| WeighedBatch::new(self, batch, *direction, theta)).collect();
        let runs: Vec<BatchRun<'_>> = weighed.iter().map(WeighedBatch::run).collect();
        let scored = self.engine.run_batches(&runs)?;
        for (((batch, _), of), score) in batches.iter().zip(&weighed).zip(scored) {
            if let Some(at) = self.add_batch(of, score, sum)? {
                return Ok(Some(batch[at]));
            }
        }
        Ok(None)
    }

    /// Adds losses and gradient of a batch. Returns the number in it of the pair that is not finite, if any.
    fn add_batch(
        &mut self,
        of: &WeighedBatch<'_>,
        score: BatchScore,
        sum: &mut StepSum,
    ) -> Result<Option<usize>, EngineError> {
        let BatchScore { logp, grad } = score;
        let (d, traced) = (of.at.direction.sign(), &of.traced[..]);
        let bad = logp.iter().zip(traced).position(|(policy, pair)| !sum.add(d, self.config, &scores(pair, policy)));
        if bad.is_some() {
            return Ok(bad);
        }
        if grad.iter().any(|g| !g.is_finite()) {
            return self.without_gradient(traced, of.at).map(Some);
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
}

/// A batch of one direction with its loss.
struct WeighedBatch<'a> {
    traced: Vec<&'a TracedPair>,
    at: Parameters<'a>,
    loss: Derivative<'a>,
}

type OfMargin<'a> = dyn Fn(f64) -> f64 + Sync + 'a;
type OfResponses<'a> = dyn Fn(usize, &PairLogp) -> ResponseSlopes + Sync + 'a;

/// The derivative of a batch's loss.
enum Derivative<'a> {
    OfMargins(Box<OfMargin<'a>>),
    OfResponses(Box<OfResponses<'a>>),
}

impl<'a> WeighedBatch<'a> {
    fn new(run: &Run<'a>, batch: &[usize], direction: Direction, theta: &'a [f32]) -> Self {
        let (config, traced) = (run.config, run.train.traced);
        let traced: Vec<&TracedPair> = batch.iter().map(|&i| &traced[i]).collect();
        let d = direction.sign();
        let loss = if config.objective.by_margin() {
            Derivative::OfMargins(Box::new(move |margin| {
                config.objective.loss(d, config.beta, margin).map_or(f64::NAN, |l| d * l.slope)
            }))
        } else {
            let pairs: Vec<PairScores> = traced.iter().map(|t| scores(t, &t.reference())).collect();
            Derivative::OfResponses(Box::new(move |i, policy| {
                let pair = PairScores { policy: *policy, ..pairs[i] };
                config.objective.evaluate(d, config.strength(), &pair).slopes
            }))
        };
        Self { traced, at: Parameters { theta, direction }, loss }
    }

    fn run(&self) -> BatchRun<'_> {
        let loss = match &self.loss {
            Derivative::OfMargins(derivative) => BatchLoss::OfMargins(&**derivative),
            Derivative::OfResponses(derivative) => BatchLoss::OfResponses(&**derivative),
        };
        BatchRun { members: self.traced.clone(), at: self.at, loss }
    }
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
