//! Random weights.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Distribution of a tensor's values.
#[derive(Debug, Clone)]
pub(super) enum Init {
    /// Normal numbers.
    Normal {
        /// Their mean.
        mean: f32,
        /// Their standard deviation.
        std: f32,
    },
    /// These.
    Given(Vec<f32>),
}

/// The values of one tensor, in order.
pub(super) struct Source {
    rng: ChaCha8Rng,
    spare: Option<f32>,
    given: usize,
}

impl Source {
    /// Each tensor has a stream of its own, so that its values do not depend on those before it.
    pub(super) fn new(seed: u64, tensor: &str) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // FNV-1a (Fowler, Noll, Vo), 64 bits: names to stream numbers.
        rng.set_stream(
            tensor.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)),
        );
        Self { rng, spare: None, given: 0 }
    }

    /// Replaces `out` by the next `n` values.
    pub(super) fn fill(&mut self, init: &Init, n: usize, out: &mut Vec<f32>) {
        out.clear();
        match init {
            Init::Normal { mean, std } => out.extend((0..n).map(|_| mean + std * self.normal())),
            Init::Given(values) => {
                out.extend_from_slice(&values[self.given..self.given + n]);
                self.given += n;
            }
        }
    }

    /// A standard normal number: Box and Muller's method (1958), which makes two at a time.
    fn normal(&mut self) -> f32 {
        if let Some(x) = self.spare.take() {
            return x;
        }
        let mut uniform = || (f64::from(self.rng.next_u32()) + 0.5) / 4_294_967_296.0;
        let radius = (-2.0 * uniform().ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * uniform()).sin_cos();
        self.spare = Some((radius * sin) as f32);
        (radius * cos) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(seed: u64, tensor: &str, pieces: &[usize]) -> Vec<f32> {
        let mut source = Source::new(seed, tensor);
        let (mut all, mut piece) = (Vec::new(), Vec::new());
        for &n in pieces {
            source.fill(&Init::Normal { mean: 0.0, std: 1.0 }, n, &mut piece);
            all.extend_from_slice(&piece);
        }
        all
    }

    #[test]
    fn values_are_normal_and_depend_on_seed_and_name_only() {
        let x = values(1, "a", &[100_000]);
        assert_eq!(x, values(1, "a", &[1, 3, 99_996]));
        assert_ne!(x, values(2, "a", &[100_000]));
        assert_ne!(x, values(1, "b", &[100_000]));
        let moment = |k: i32| x.iter().map(|&x| f64::from(x).powi(k)).sum::<f64>() / x.len() as f64;
        for (k, expected) in [(1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)] {
            assert!((moment(k) - expected).abs() < 0.05, "moment {k}: {}", moment(k));
        }
    }
}
