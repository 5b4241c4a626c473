//! What is known about model and data before the first step.

use super::cache::CacheType;
use super::config::Rate;
use super::engine::Agreement;
use crate::numbers::{median, norm};
use crate::steer::mean_fraction;

/// One steered layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AtLayer {
    /// The layer.
    pub layer: usize,
    /// Median norm of the residual stream there, over all tokens of the training pairs.
    pub median_norm: f64,
    /// Mean norm.
    pub mean_norm: f64,
    /// Learning rate of this layer's direction, in the units of the residual stream.
    pub lr: f64,
}

impl AtLayer {
    /// From the norms at a layer that is one of `n_layers` trained together.
    pub(super) fn new(layer: usize, norms: &[f32], rate: Rate, n_embd: usize, n_layers: usize) -> Self {
        let median_norm = median(norms).unwrap_or(0.0);
        Self {
            layer,
            median_norm,
            mean_norm: norms.iter().map(|&x| f64::from(x)).sum::<f64>() / norms.len() as f64,
            lr: rate.absolute(median_norm, n_embd, n_layers),
        }
    }

    /// Length of Adam's first step, in percent of the median residual norm.
    pub fn step_percent(&self, n_embd: usize) -> f64 {
        100.0 * self.lr * (n_embd as f64).sqrt() / self.median_norm
    }
}

/// What is known before the first step.
#[derive(Debug, Clone)]
pub struct Ready {
    /// The steered layers, lowest first.
    pub layers: Vec<AtLayer>,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Steps planned.
    pub total_steps: usize,
    /// How the lifted graph compared with `llama_decode`.
    pub agreement: Agreement,
    /// Bytes kept for captured examples.
    pub cache_bytes: usize,
    /// How precisely the residual streams are kept: as a cache stores them, if there is one.
    pub captured_as: CacheType,
    /// Tokens of the training pairs.
    pub train_tokens: usize,
}

impl Ready {
    /// Length of the direction at each layer of `v`, `[n_layers, n_embd]`.
    pub fn lengths(&self, v: &[f64]) -> Vec<f64> {
        v.chunks(self.n_embd.max(1)).map(norm).collect()
    }

    /// Residual norm and length of `v`, as a fraction: the mean of the layers' fractions, over the first one's norm.
    fn fraction(&self, v: &[f64]) -> (f64, f64) {
        let known: Vec<(f64, f64)> = self.layers.iter().map(|l| l.median_norm).zip(self.lengths(v)).collect();
        mean_fraction(&known).unwrap_or((1.0, 0.0))
    }

    /// Length of `v` in percent of the median residual norm: at its layer, or as the mean over its layers.
    pub fn percent(&self, v: &[f64]) -> f64 {
        let (residual, length) = self.fraction(v);
        100.0 * length / residual
    }

    /// The factor that makes `v` as long as `percent` says; `None` for a vector without length.
    pub fn factor_for_percent(&self, v: &[f64], percent: f64) -> Option<f64> {
        let (residual, length) = self.fraction(v);
        (length > 0.0).then(|| percent / 100.0 * residual / length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_relative_to_each_layers_own_norm() {
        let layers = vec![
            AtLayer::new(3, &[100.0, 300.0, 200.0], Rate::Percent(1.0), 4, 2),
            AtLayer::new(7, &[1000.0; 3], Rate::Percent(1.0), 4, 2),
        ];
        assert_eq!((layers[0].median_norm, layers[1].mean_norm), (200.0, 1000.0));
        // A step of 1 % is shared by the two layers.
        assert!((layers[0].step_percent(4) - 0.5).abs() < 1e-12 && (layers[1].lr - 2.5).abs() < 1e-12);
        let ready = Ready {
            layers,
            n_embd: 4,
            total_steps: 1,
            agreement: Agreement::default(),
            cache_bytes: 0,
            captured_as: CacheType::F32,
            train_tokens: 0,
        };
        let v = [3.0, 0.0, 4.0, 0.0, 0.0, 60.0, 0.0, 80.0];
        assert_eq!(ready.lengths(&v), [5.0, 100.0]);
        // 2.5 % and 10 %.
        assert!((ready.percent(&v) - 6.25).abs() < 1e-12);
        assert!((ready.factor_for_percent(&v, 12.5).unwrap() - 2.0).abs() < 1e-12);
        assert_eq!(ready.factor_for_percent(&[0.0; 8], 5.0), None);
    }
}
