//! A training run: its state between two steps.

mod epoch;
mod finish;
mod order;
mod preflight;
mod step;

pub(in crate::train) use epoch::EpochEnd;
pub(crate) use order::Member;
pub(in crate::train) use preflight::preflight;
pub(crate) use step::Step;

use self::order::members;
use crate::engine::{
    BatchLoss, BatchRun, Direction, Engine, EngineError, PairLogp, ParameterGroup, Parameters, RetainedText, TracedPair,
};
use crate::train::checkpoint::RecordedIdentity;
use crate::train::checkpoint::{Checkpoint, State};
use crate::train::config::TrainConfig;
use crate::train::init::{GateFit, is_blind};
use crate::train::objective::PairScores;
use crate::train::optimizer::AdamW;
use crate::train::pairs::NamedPair;
use crate::train::retain::Retain;
use crate::train::summary::RunSummary;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

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
        let mut directions = vec![Direction::Forward, Direction::Reverse];
        for m in members {
            if !directions.contains(&m.direction) {
                directions.push(m.direction);
            }
        }
        for direction in directions {
            let of: Vec<usize> = members.iter().filter(|m| m.direction == direction).map(|m| m.pair).collect();
            let sizes: Vec<usize> = of.iter().map(|&i| self.train.traced[i].n_tokens()).collect();
            all.extend(
                self.summary.batch_plan.batches(&sizes).into_iter().map(|batch| (of[batch].to_vec(), direction)),
            );
        }
        all
    }

    /// Scores `members` under the current parameters, forward only and in the batches of [`Run::step`]: what the benchmark
    /// subtracts from a step to time its backward pass.
    ///
    /// # Errors
    /// Any of [`EngineError`].
    pub(crate) fn forward(&mut self, members: &[Member]) -> Result<(), EngineError> {
        let train = self.train;
        let theta = self.theta_f32();
        let run = |(batch, direction): (Vec<usize>, Direction)| BatchRun {
            members: batch.iter().map(|&i| &train.traced[i]).collect(),
            at: Parameters { theta: &theta, direction },
            loss: BatchLoss::Unweighed,
        };
        let runs: Vec<BatchRun<'_>> = self.batches(members).into_iter().map(run).collect();
        self.engine.run_batches(&runs).map(|_| ())
    }
}

/// A pair for its loss.
fn scores(pair: &TracedPair, policy: &PairLogp) -> PairScores {
    let tokens = pair.tokens();
    let lengths = [tokens.chosen.len(), tokens.rejected.len()];
    PairScores { reference: pair.reference(), policy: *policy, lengths }
}
