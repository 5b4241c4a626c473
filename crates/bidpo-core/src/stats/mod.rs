//! Intervals, paired comparisons, tests. All are two-sided; `level` is the confidence level, for example 0.95.

mod bootstrap;
mod cluster;
mod multiple;
mod paired;
mod power;
mod proportion;
mod student;

pub use bootstrap::{bayes_advantage, bootstrap_mean, bootstrap_ratio, sign_flip};
pub use cluster::{
    Clustered, ClusteredScore, clustered_difference, clustered_mean, clustered_proportion, clustered_ratio,
};
pub use multiple::holm;
pub use paired::{
    PairedProportions, compare_proportions, mcnemar_exact, mcnemar_score, paired_difference, posterior_advantage,
    posterior_density, sign_test,
};
pub use power::{detectable_mean, detectable_proportion, power_proportion};
pub use proportion::{clopper_pearson, jeffreys, wilson};
pub use student::{MeanEstimate, student_mean, student_ratio};

use statrs::distribution::{Continuous, ContinuousCDF, StudentsT};
use statrs::function::erf::{erfc, erfc_inv};

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

    /// True for an interval without width (up to rounding): the values had no spread, so it says nothing about others.
    pub fn is_degenerate(&self) -> bool {
        self.hi - self.lo <= 1e-12 * self.lo.abs().max(self.hi.abs())
    }
}

/// Two-sided p of a standard normal statistic.
pub(crate) fn normal_two_sided(statistic: f64) -> f64 {
    erfc(statistic.abs() / std::f64::consts::SQRT_2)
}

/// Quantile `q` (1/2 or more) of Student's t.
pub(crate) fn t_quantile(q: f64, df: f64) -> f64 {
    let Ok(t) = StudentsT::new(0.0, 1.0, df) else { return f64::INFINITY };
    let mut x = t.inverse_cdf(q);
    // statrs stops at about 1e-8; two steps of Newton reach the last digits.
    for _ in 0..2 {
        let density = t.pdf(x);
        if density > 0.0 {
            x -= (t.cdf(x) - q) / density;
        }
    }
    x
}

/// Two-sided p of a t statistic.
pub(crate) fn t_two_sided(statistic: f64, df: f64) -> f64 {
    StudentsT::new(0.0, 1.0, df).map_or(1.0, |t| 2.0 * t.sf(statistic.abs()))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// SciPy 1.17.1: `t.ppf(q, df)` and `2 * t.sf(2.3, df)`.
    #[test]
    fn students_t_equals_scipy() {
        for (df, quantiles, p) in [
            (1.0, [1.3763819204711738, 12.706204736174694, 63.656741162871526], 0.26109517417724554),
            (2.0, [1.0606601717798214, 4.302652729749462, 9.924843200918287], 0.14814814814814817),
            (3.7, [0.9498778242960849, 2.8675207071911895, 4.8692522532278275], 0.08830340068840908),
            (7.0, [0.8960296443137653, 2.364624251592784, 3.4994832973504924], 0.05499109520437159),
            (36.0, [0.851719984276387, 2.0280940009804502, 2.7194846304500073], 0.027353405964343557),
            (150.5, [0.8440160689578441, 1.9758519492008906, 2.6088910314930924], 0.022822593220713606),
        ] {
            for (q, x) in [0.8, 0.975, 0.995].into_iter().zip(quantiles) {
                close(t_quantile(q, df), x, 1e-9);
            }
            close(t_two_sided(2.3, df), p, 1e-9);
        }
    }

    #[test]
    fn an_interval_without_width_is_known() {
        let interval = |lo, hi| Interval { lo, hi };
        assert!(interval(0.0, 0.0).is_degenerate() && interval(0.1 + 0.2, 0.3).is_degenerate());
        assert!(!interval(0.0, 1e-9).is_degenerate() && !interval(-1e-20, 1e-20).is_degenerate());
    }
}
