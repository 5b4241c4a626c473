//! An epoch's end: validation of the current parameters, and the choice of the best ones.

use super::{Run, scores};
use crate::engine::{EngineError, Parameters, RetainedText};
use crate::numbers::norm;
use crate::train::checkpoint::Point;
use crate::train::error::TrainError;

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

impl Run<'_> {
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
        let directions = self.config.directions();
        let (mut value, mut preferred, mut n) = (0.0, 0.0, 0.0);
        let theta = self.theta_f32();
        for direction in directions {
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

    /// Mean divergence on all retained texts, nats a token, over the directions of validation.
    pub(super) fn divergence(&mut self, theta: &[f32]) -> Result<Option<f64>, EngineError> {
        if self.retain().is_none() {
            return Ok(None);
        }
        let (texts, directions) = (self.retained, self.config.directions());
        let predictions: usize = texts.iter().map(RetainedText::n_predictions).sum();
        let mut nats = 0.0;
        for &direction in &directions {
            let at = Parameters { theta, direction };
            nats += self.engine.diverge_all(texts, at, self.summary.batch_plan)?.iter().sum::<f64>();
        }
        Ok(Some(nats / (predictions * directions.len()) as f64))
    }
}
