//! The training loop.

use super::checkpoint::Checkpoint;
use super::checkpoint::{IdentitySource, RecordedIdentity, RunInputs};
use super::config::TrainConfig;
use super::error::TrainError;
use super::events::{Event, Stop};
use super::pairs::NamedPair;
use super::run::{EpochEnd, Run, Step, TracedSet, preflight};
use super::seeds::{SeedRun, SeedRuns};
use super::summary::RunSummary;
use super::trained::Trained;
use crate::engine::{Engine, RetainedText, TracedPair};
use crate::text::numbers::percent;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Where a run keeps its checkpoints.
#[derive(Debug, Clone)]
pub struct CheckpointPlan {
    /// The file.
    pub path: PathBuf,
    /// Continue from the file.
    pub resume: bool,
    /// Model, template and activations of the run: with settings and tokens, its identity.
    pub inputs: RunInputs,
}

/// The checkpoint of a seed of several: that of the `first` one is `path` itself.
pub fn seed_checkpoint(path: &Path, first: u64, seed: u64) -> PathBuf {
    if seed == first { path.to_owned() } else { path.with_extension(format!("seed-{seed}.ckpt")) }
}

/// Training pairs on whose rows the changes of several seeds are compared, at most.
const COMPARED_PAIRS: usize = 16;

/// Trains the engine's intervention at its layers: all parameters by one optimizer.
#[derive(Debug)]
pub struct Trainer<'a> {
    /// The engine, at the layers of the settings.
    pub engine: &'a mut Engine,
    /// Settings.
    pub config: &'a TrainConfig,
    /// Checkpoints, if any are kept.
    pub checkpoints: Option<&'a CheckpointPlan>,
    /// Set by the user to end the run early.
    pub interrupt: &'a AtomicBool,
}

impl Trainer<'_> {
    /// Trains on `train` and validates on `valid`, which may be empty.
    ///
    /// # Errors
    /// [`TrainError`]. A loss that is not finite is a [`Stop`], not an error: the last good vector is returned.
    pub fn train(
        &mut self,
        train: &[NamedPair],
        valid: &[NamedPair],
        observe: &mut dyn FnMut(Event<'_>),
    ) -> Result<Trained, TrainError> {
        self.train_retaining(train, valid, &[], observe)
    }

    /// As [`Trainer::train`]; the settings' retention is over the texts `retained`, pairs without a rejected response
    /// ([`super::RetainSet::encode`]).
    ///
    /// # Errors
    /// As [`Trainer::train`]; [`TrainError::Config`] for texts without settings of retention, or the other way round.
    pub fn train_retaining(
        &mut self,
        train: &[NamedPair],
        valid: &[NamedPair],
        retained: &[NamedPair],
        observe: &mut dyn FnMut(Event<'_>),
    ) -> Result<Trained, TrainError> {
        let mut runs = self.train_seeds((train, valid), retained, 1, observe)?.runs;
        Ok(runs.swap_remove(0).trained)
    }

    /// As [`Trainer::train_retaining`] on the pairs for training and validation, with `seeds` seeds one after the other: that of
    /// the settings and those behind it. The pairs are traced once. Each further seed has a checkpoint of its own
    /// ([`seed_checkpoint`]). The first run's vector is that of a run alone. An interruption ends all; the first run then
    /// says [`Stop::Interrupted`].
    ///
    /// # Errors
    /// As [`Trainer::train_retaining`].
    pub fn train_seeds(
        &mut self,
        (train, valid): (&[NamedPair], &[NamedPair]),
        retained: &[NamedPair],
        seeds: usize,
        observe: &mut dyn FnMut(Event<'_>),
    ) -> Result<SeedRuns, TrainError> {
        self.check(train)?;
        if self.config.retain.is_some() == retained.is_empty() {
            return Err(TrainError::Config(
                "retention needs both its settings and texts to retain: one of them is missing".into(),
            ));
        }
        let inputs = self.checkpoints.map(|p| p.inputs.clone()).unwrap_or_default();
        let source = IdentitySource { config: self.config, inputs: &inputs, train, valid };
        let resumed = match self.checkpoints.filter(|p| p.resume) {
            Some(p) => Some(Checkpoint::load(&p.path, &source, &**self.engine.intervention())?),
            None => None,
        };
        self.engine.set_precision(self.config.precision);
        let recorded = resumed.as_ref().and_then(|c| c.state.identity.max_batch_tokens());
        let captured = preflight(
            self.engine,
            (train, valid),
            (self.config.objective, retained),
            self.config.allow_swap,
            recorded,
            self.interrupt,
            observe,
        )?;
        let captured = captured.ok_or_else(|| {
            TrainError::Config(match resumed {
                None => "interrupted before the first step: there is nothing to save".into(),
                Some(_) => {
                    "interrupted before the first new step: the checkpoint is unchanged, --resume continues".into()
                }
            })
        })?;
        if let Some((cache, rounding)) = self.engine.cache().zip(captured.rounding) {
            observe(Event::Cache { folder: cache.folder(), used: cache.used(), rounding });
        }
        let (on, by) = captured.traced.split_at(train.len());
        let summary = RunSummary {
            batch_plan: captured.plan,
            agreement: captured.agreement,
            cache_bytes: captured.traced.iter().map(TracedPair::bytes).sum(),
            ..RunSummary::new(self.engine, self.config, on)
        };
        observe(Event::Ready(&summary));
        if let Some(recorded) = recorded {
            report_batching(recorded, captured.plan.max_tokens(), observe);
        }
        let texts = self.trace_retained(retained, observe)?;
        let sets = [TracedSet { pairs: train, traced: on }, TracedSet { pairs: valid, traced: by }];
        let mut runs: Vec<SeedRun> = Vec::with_capacity(seeds);
        let mut resumed = resumed;
        for number in 0..seeds.max(1) {
            let seed = self.config.seed.wrapping_add(number as u64);
            let config = TrainConfig { seed, ..self.config.clone() };
            let plan = self
                .checkpoints
                .map(|p| CheckpointPlan { path: seed_checkpoint(&p.path, self.config.seed, seed), ..p.clone() });
            let source = IdentitySource { config: &config, inputs: &inputs, train, valid };
            if number > 0 {
                let left = plan.as_ref().filter(|p| p.resume && p.path.exists());
                resumed =
                    left.map(|p| Checkpoint::load(&p.path, &source, &**self.engine.intervention())).transpose()?;
            }
            if seeds > 1 {
                observe(Event::Seed { seed, number: number + 1, of: seeds, steps: summary.total_steps });
            }
            let mut run = Run::new(self.engine, &config, sets, summary.clone(), self.interrupt).retaining(&texts);
            if let Some(checkpoint) = resumed.take() {
                run.resume(checkpoint);
                observe(Event::Resumed { step: run.steps() });
            } else if let Some(fit) = run.fitting_the_gate() {
                let [on, off] = fit.right.map(percent);
                observe(Event::Notice(&format!(
                    "the gate begins at a fit that opens it on {on} of what it reads of the training pairs and shuts it on {off} of \
                     what it reads of the retained texts"
                )));
            }
            let identity = RecordedIdentity::Current { identity: source.identity(captured.plan.max_tokens()) };
            let trained = take_steps(run, &config, plan.as_ref().map(|p| (&*p.path, identity)), observe)?;
            let ended = trained.complete();
            let interrupted = trained.stop == Stop::Interrupted;
            runs.push(SeedRun { seed, trained });
            if interrupted {
                runs[0].trained.stop = Stop::Interrupted;
            }
            // A loss that is not finite ends the whole run only where its vector is the result.
            if interrupted || number == 0 && !ended {
                break;
            }
        }
        let vectors: Vec<&[f32]> = runs.iter().map(|r| &r.trained.vector[..]).collect();
        let cosines = match runs.len() {
            1 => Vec::new(),
            _ => self.engine.change_cosines(&on[..on.len().min(COMPARED_PAIRS)], &vectors)?,
        };
        Ok(SeedRuns { runs, cosines })
    }

    /// Traces the retained texts.
    fn trace_retained(
        &mut self,
        texts: &[NamedPair],
        observe: &mut dyn FnMut(Event<'_>),
    ) -> Result<Vec<RetainedText>, TrainError> {
        let mut traced = Vec::with_capacity(texts.len());
        for text in texts {
            if self.interrupt.load(Ordering::Relaxed) {
                return Err(TrainError::Interrupted);
            }
            let one = self.engine.trace_retained(&text.tokens);
            traced.push(one.map_err(|source| TrainError::Pair { pair: text.name.clone(), source })?);
        }
        if !traced.is_empty() {
            observe(Event::Retaining {
                texts: traced.len(),
                predictions: traced.iter().map(RetainedText::n_predictions).sum(),
                bytes: traced.iter().map(RetainedText::bytes).sum(),
            });
        }
        Ok(traced)
    }

    /// Checks settings and pairs.
    fn check(&self, train: &[NamedPair]) -> Result<(), TrainError> {
        if self.engine.layers() != &*self.config.layers {
            return Err(TrainError::Config(format!(
                "the engine steers layers {:?}, the settings say {}",
                self.engine.layers(),
                self.config.layers
            )));
        }
        if self.engine.intervention().lora().is_some() != self.config.lora.is_some() {
            return Err(TrainError::Config("the engine and the settings do not agree on an adapter".into()));
        }
        if self.config.lora.is_some() && (self.config.renorm.is_some() || !self.config.scope.is_all()) {
            return Err(TrainError::Config(
                "an adapter acts at every position, and its size is no part of the residual stream: leave scope and renorm out"
                    .into(),
            ));
        }
        let n_params = self.engine.intervention().n_params();
        if let Some(init) = self.config.init.as_ref().filter(|init| init.theta.len() != n_params) {
            return Err(TrainError::Config(format!(
                "the run would begin with {} parameters, and the intervention has {n_params}",
                init.theta.len()
            )));
        }
        if self.config.nulls() && self.config.layers.len() > 1 {
            return Err(TrainError::Config(format!(
                "objective reps takes the vector's component out of the residual stream, whose rows are known before the graph runs \
                 at one layer alone, and {} were given: give one with --layer, or take --objective bidpo",
                self.config.layers.len()
            )));
        }
        if train.is_empty() {
            return Err(TrainError::Config("there is no training pair: give at least one".into()));
        }
        match self.config.total_steps(train.len()) {
            0 => Err(TrainError::Config("a run of 0 steps trains nothing: give at least one step".into())),
            _ => Ok(()),
        }
    }
}

/// Takes all steps of a run and writes its checkpoints, under an identity, to a path.
fn take_steps(
    mut run: Run<'_>,
    config: &TrainConfig,
    checkpoint: Option<(&Path, RecordedIdentity)>,
    observe: &mut dyn FnMut(Event<'_>),
) -> Result<Trained, TrainError> {
    let save = |run: &Run<'_>| match &checkpoint {
        Some((path, identity)) => run.checkpoint(identity.clone()).save(path),
        None => Ok(()),
    };
    let stop = loop {
        if run.complete() {
            break Stop::Finished;
        }
        if run.out_of_patience() {
            break Stop::Early;
        }
        match run.step(&run.next_members())? {
            Step::Taken(report) => observe(Event::Step(&report)),
            Step::Interrupted => break Stop::Interrupted,
            Step::NotFinite { pair } => break Stop::NotFinite { step: run.steps() + 1, pair },
        }
        let epoch_ends = run.at_epoch_end();
        if epoch_ends {
            match run.end_epoch()? {
                EpochEnd::Measured(point) => observe(Event::Epoch(&point)),
                EpochEnd::NotFinite { pair } => break Stop::NotFinite { step: run.steps(), pair },
            }
        }
        if epoch_ends || run.steps().is_multiple_of(config.checkpoint_every.max(1)) {
            save(&run)?;
        }
    };
    if !matches!(stop, Stop::NotFinite { .. }) {
        save(&run)?;
    }
    run.finish(stop)
}

/// Tells the user where a resumed run cannot batch its pairs as the recorded run did.
fn report_batching(recorded: usize, now: usize, observe: &mut dyn FnMut(Event<'_>)) {
    if now != recorded {
        observe(Event::Notice(&format!(
            "the checkpoint was made with batches of up to {recorded} tokens, this run has batches of up to {now}: \
             the last bits of gradients differ from those of an uninterrupted run"
        )));
    }
}
