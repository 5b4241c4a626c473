//! A finished run: its parameters, as values and as a file holds them.

use super::checkpoint::Point;
use super::events::Stop;
use super::retain::Retained;
use super::summary::RunSummary;
use crate::adapter::{AdapterError, AdapterFile};
use crate::engine::{Intervention, NamedTensor, adapter_file};
use crate::intervention::{Kind, KindSpec, Scope};
use crate::steer::{RowChanges, SteerError, SteeringVector};
use std::sync::Arc;

/// A finished run.
#[derive(Debug, Clone)]
pub struct Trained {
    /// The intervention.
    pub intervention: Arc<dyn Intervention>,
    /// Its kind.
    pub kind: KindSpec,
    /// Positions at which it was trained.
    pub scope: Scope,
    /// Its parameters, for vectors that are added `[n_layers, n_embd]`, lowest layer first: those with the lowest validation
    /// loss where there are validation pairs, else the last ones whose losses are finite. As they began, with `best_step` 0,
    /// where there are none.
    pub vector: Vec<f32>,
    /// Facts known before the first step.
    pub summary: RunSummary,
    /// Losses of each epoch.
    pub history: Vec<Point>,
    /// Steps taken.
    pub steps: usize,
    /// Steps after which the vector was taken: the epoch with the lowest validation loss, also where no epoch beat the
    /// untrained model ([`Trained::beats_untrained`]); without validation the last step.
    pub best_step: usize,
    /// Loss of the untrained vector, on any pairs.
    pub untrained_loss: f64,
    /// What was reached on the retained texts, if there are any.
    pub retained: Option<Retained>,
    /// Why the run ended.
    pub stop: Stop,
}

impl Trained {
    /// The parameters, scaled so that the change is `percent` of the median residual norm (with several layers, the mean over
    /// them) if that is given. No change stays none.
    pub fn renormalised(&self, percent: Option<f64>) -> Vec<f32> {
        let theta: Vec<f64> = self.vector.iter().map(|&x| f64::from(x)).collect();
        let norms = self.intervention.norms(&theta, &self.summary.medians());
        match percent.and_then(|percent| self.summary.factor_for_percent(&norms, percent)) {
            Some(factor) => self.intervention.scaled(&theta, factor).iter().map(|&x| x as f32).collect(),
            None => self.vector.clone(),
        }
    }

    /// Whether the vector's validation loss is below that of the untrained vector; `None` where nothing was validated.
    pub fn beats_untrained(&self) -> Option<bool> {
        self.best_valid_loss().map(|best| best < self.untrained_loss)
    }

    /// The validation loss of the epoch that was chosen; the lowest one but where retained texts had a say.
    pub fn best_valid_loss(&self) -> Option<f64> {
        let chosen = self.history.iter().find(|p| p.step == self.best_step).and_then(|p| p.valid_loss);
        chosen.or_else(|| self.history.iter().filter_map(|p| p.valid_loss).min_by(f64::total_cmp))
    }

    /// Tensors of the file, scaled as [`Trained::renormalised`] does.
    pub fn tensors(&self, percent: Option<f64>) -> Vec<NamedTensor> {
        let layers: Vec<usize> = self.summary.layers.iter().map(|l| l.layer).collect();
        self.intervention.tensors(&self.renormalised(percent), &layers)
    }

    /// The vector or intervention as a file holds it, scaled as [`Trained::renormalised`] does.
    ///
    /// # Errors
    /// [`SteerError::Invalid`] for one that no file holds, or values that are not finite.
    pub fn steering_vector(&self, percent: Option<f64>, model_hint: &str) -> Result<SteeringVector, SteerError> {
        let mut vector =
            SteeringVector { model_hint: model_hint.into(), scope: self.scope.clone(), ..SteeringVector::empty() };
        if let (true, [layer]) = (self.kind.kind != Kind::Add, &self.summary.layers[..]) {
            let theta = self.renormalised(percent);
            vector.rows = Some(RowChanges { spec: self.kind, layer: layer.layer, n_embd: self.summary.n_embd, theta });
            vector.check()?;
            return Ok(vector);
        }
        let own = self.tensors(percent).into_iter();
        // The vectors beside an adapter.
        let beside = self.intervention.lora().is_some();
        for tensor in own.filter(|t| !beside || t.name.starts_with("direction.")) {
            let layer = tensor.name.strip_prefix("direction.").and_then(|n| n.parse().ok()).ok_or_else(|| {
                SteerError::Invalid(format!(
                    "an intervention of kind {} holds tensor {}: llama.cpp adds only direction.N",
                    self.intervention.kind(),
                    tensor.name
                ))
            })?;
            vector.directions.insert(layer, tensor.data);
        }
        vector.check()?;
        Ok(vector)
    }

    /// The adapter as a file holds it, for models of this architecture; `None` for other kinds.
    ///
    /// # Errors
    /// [`AdapterError::Invalid`] for values that are not finite.
    pub fn adapter(&self, architecture: &str) -> Result<Option<AdapterFile>, AdapterError> {
        self.intervention.lora().map(|lora| adapter_file(lora, &self.vector, architecture)).transpose()
    }

    /// The run ended by itself: all steps were taken, or the validation loss stopped falling.
    pub fn complete(&self) -> bool {
        matches!(self.stop, Stop::Finished | Stop::Early)
    }
}
