//! Intervals, paired comparisons, tests. All are two-sided; `level` is the confidence level, for example 0.95.

mod bootstrap;
mod cluster;
mod multiple;
mod paired;
mod power;
mod proportion;

pub use bootstrap::{bayes_advantage, bootstrap_mean, bootstrap_ratio, sign_flip};
pub use cluster::{Clustered, clustered_mean};
pub use multiple::holm;
pub use paired::{
    PairedProportions, compare_proportions, mcnemar_exact, paired_difference, posterior_advantage, posterior_density,
    sign_test,
};
pub use power::{detectable_mean, detectable_proportion};
pub use proportion::{jeffreys, wilson};

use statrs::function::erf::erfc_inv;

/// A closed interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// Lower end.
    pub lo: f64,
    /// Upper end.
    pub hi: f64,
}

impl Interval {
    /// True if `x` lies in it.
    pub fn contains(&self, x: f64) -> bool {
        self.lo <= x && x <= self.hi
    }
}

/// Quantile of the standard normal distribution for a two-sided `level` (1.96 for 0.95).
pub(crate) fn z(level: f64) -> f64 {
    std::f64::consts::SQRT_2 * erfc_inv(1.0 - level)
}

/// The mean of `x`; NaN for none.
pub fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len() as f64
}

/// Standard deviation of `x` with n - 1 in the denominator; NaN for fewer than two values.
pub fn std_dev(x: &[f64]) -> f64 {
    let m = mean(x);
    (x.iter().map(|v| (v - m).powi(2)).sum::<f64>() / (x.len() as f64 - 1.0)).sqrt()
}

#[cfg(test)]
pub(crate) fn close(a: f64, b: f64, eps: f64) {
    assert!((a - b).abs() <= eps * b.abs().max(1e-3), "{a} is not {b}");
}
