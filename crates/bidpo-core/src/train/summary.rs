//! Facts about model and data that are known before the first step.

use super::config::{LearningRate, TrainConfig};
use crate::engine::{Agreement, BatchPlan, Cache, CacheType, Engine, TracedPair};
use crate::intervention::{Intervention, Lora};
use crate::numbers::{median, norm};
use crate::steer::mean_fraction;

/// Residual stream and learning rate at one steered layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerStats {
    /// The layer.
    pub layer: usize,
    /// Median norm of the residual stream there, over all tokens of the training pairs.
    pub median_norm: f64,
    /// Mean norm.
    pub mean_norm: f64,
    /// Learning rate of this layer's direction, in the units of the residual stream.
    pub lr: f64,
}

impl LayerStats {
    /// From the norms at a layer that is one of `n_layers` trained together.
    pub(super) fn new(layer: usize, norms: &[f32], rate: LearningRate, n_embd: usize, n_layers: usize) -> Self {
        let median_norm = median(norms).unwrap_or(0.0);
        Self {
            layer,
            median_norm,
            mean_norm: norms.iter().map(|&x| f64::from(x)).sum::<f64>() / norms.len() as f64,
            lr: rate.absolute(median_norm, n_embd, n_layers),
        }
    }

    /// L2 norm of Adam's first step, in percent of the median residual norm.
    pub fn step_percent(&self, n_embd: usize) -> f64 {
        100.0 * self.lr * (n_embd as f64).sqrt() / self.median_norm
    }
}

/// An adapter that is trained.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct AdapterStats {
    /// Matrices that it changes.
    pub matrices: usize,
    /// Numbers of all A and B.
    pub numbers: usize,
    /// Rank of each pair.
    pub rank: usize,
    /// The factor on `B A` is `alpha / rank`.
    pub alpha: f32,
    /// Learning rate.
    pub lr: f64,
    /// Vectors are trained with it.
    pub with_vectors: bool,
}

impl AdapterStats {
    fn of(lora: &Lora) -> Self {
        Self {
            matrices: lora.pairs.len(),
            numbers: lora.n_params() - lora.n_vectors(),
            rank: lora.rank,
            alpha: lora.alpha,
            lr: lora.lr,
            with_vectors: lora.add.is_some(),
        }
    }

    /// `rank 8, alpha 16, on 105 matrices, 1.2 million numbers`.
    pub fn in_words(&self) -> String {
        format!(
            "rank {}, alpha {}, on {} matri{}, {} million numbers",
            self.rank,
            self.alpha,
            self.matrices,
            if self.matrices == 1 { "x" } else { "ces" },
            crate::text::numbers::fixed(self.numbers as f64 / 1e6, 3)
        )
    }
}

/// Facts known before the first step.
#[derive(Debug, Clone)]
pub struct RunSummary {
    /// The steered layers, lowest first.
    pub layers: Vec<LayerStats>,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// The adapter that is trained.
    pub adapter: Option<AdapterStats>,
    /// Steps planned.
    pub total_steps: usize,
    /// Batches of pairs that are computed together.
    pub batch_plan: BatchPlan,
    /// Comparison of the lifted graph with `llama_decode`.
    pub agreement: Agreement,
    /// Bytes of the traced pairs.
    pub cache_bytes: usize,
    /// Activation dtype: that of the cache, if there is one.
    pub captured_as: CacheType,
    /// Tokens of the training pairs.
    pub train_tokens: usize,
    /// No training pair has a rejected response: accuracies count answers that became more probable.
    pub alone: bool,
}

impl RunSummary {
    /// Of a run over these training pairs; comparison and bytes are left empty.
    pub(crate) fn new(engine: &Engine, config: &TrainConfig, train: &[TracedPair]) -> Self {
        let n_embd = engine.model().n_embd();
        let of_layer = |(i, &layer): (usize, &usize)| {
            let norms: Vec<f32> = train.iter().flat_map(|e| e.norms()[i].iter().copied()).collect();
            LayerStats::new(layer, &norms, config.learning_rate, n_embd, config.layers.len())
        };
        Self {
            layers: config.layers.iter().enumerate().map(of_layer).collect(),
            n_embd,
            adapter: engine.intervention().lora().map(AdapterStats::of),
            total_steps: config.total_steps(train.len()),
            batch_plan: BatchPlan::UNBATCHED,
            agreement: Agreement::default(),
            cache_bytes: 0,
            captured_as: engine.cache().map_or(CacheType::F32, Cache::kind),
            train_tokens: train.iter().map(TracedPair::n_tokens).sum(),
            alone: train.iter().all(|pair| pair.tokens().rejected.is_empty()),
        }
    }

    /// Median norm of the residual stream at each layer, lowest first.
    pub fn medians(&self) -> Vec<f64> {
        self.layers.iter().map(|l| l.median_norm).collect()
    }

    /// L2 norm of the direction at each layer of `v`, `[n_layers, n_embd]`.
    pub fn norms(&self, v: &[f64]) -> Vec<f64> {
        v.chunks(self.n_embd.max(1)).map(norm).collect()
    }

    /// Residual norm and norm of a change whose quotient is the mean over the layers of their quotients.
    fn fraction(&self, norms: &[f64]) -> (f64, f64) {
        let known: Vec<(f64, f64)> = self.layers.iter().map(|l| l.median_norm).zip(norms.iter().copied()).collect();
        mean_fraction(&known).unwrap_or((1.0, 0.0))
    }

    /// L2 norm of `v` in percent of the median residual norm: at its layer, or as the mean over its layers.
    pub fn percent(&self, v: &[f64]) -> f64 {
        self.percent_of_norms(&self.norms(v))
    }

    /// A change of these L2 norms, one for each layer, in percent of the median residual norm: at its layer, or as the mean
    /// over its layers.
    pub fn percent_of_norms(&self, norms: &[f64]) -> f64 {
        let (residual, norm) = self.fraction(norms);
        100.0 * norm / residual
    }

    /// The factor that scales a change of these L2 norms, one for each layer, to this percentage; `None` for no change.
    pub fn factor_for_percent(&self, norms: &[f64], percent: f64) -> Option<f64> {
        let (residual, norm) = self.fraction(norms);
        (norm > 0.0).then(|| percent / 100.0 * residual / norm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_are_relative_to_each_layers_own_norm() {
        let layers = vec![
            LayerStats::new(3, &[100.0, 300.0, 200.0], LearningRate::Percent(1.0), 4, 2),
            LayerStats::new(7, &[1000.0; 3], LearningRate::Percent(1.0), 4, 2),
        ];
        assert_eq!((layers[0].median_norm, layers[1].mean_norm), (200.0, 1000.0));
        // A step of 1 % is shared by the two layers.
        assert!((layers[0].step_percent(4) - 0.5).abs() < 1e-12 && (layers[1].lr - 2.5).abs() < 1e-12);
        let ready = RunSummary {
            layers,
            n_embd: 4,
            adapter: None,
            total_steps: 1,
            batch_plan: BatchPlan::UNBATCHED,
            agreement: Agreement::default(),
            cache_bytes: 0,
            captured_as: CacheType::F32,
            train_tokens: 0,
            alone: false,
        };
        let v = [3.0, 0.0, 4.0, 0.0, 0.0, 60.0, 0.0, 80.0];
        assert_eq!(ready.norms(&v), [5.0, 100.0]);
        // 2.5 % and 10 %.
        assert!((ready.percent(&v) - 6.25).abs() < 1e-12);
        assert!((ready.factor_for_percent(&ready.norms(&v), 12.5).unwrap() - 2.0).abs() < 1e-12);
        assert_eq!(ready.factor_for_percent(&[0.0; 2], 5.0), None);
    }
}
