//! The end of a run: its parameters, and what they reach.

use super::order::members;
use super::{Run, scores};
use crate::engine::{Direction, EngineError, Parameters, RetainedText, TracedPair};
use crate::train::error::TrainError;
use crate::train::events::Stop;
use crate::train::retain::Retained;
use crate::train::trained::Trained;
use std::sync::Arc;

impl Run<'_> {
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
            let directions = self.config.directions();
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
