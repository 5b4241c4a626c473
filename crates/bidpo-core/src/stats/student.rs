//! Means and ratios of sums by Student's t.

use super::{Interval, mean, t_quantile, t_two_sided};

/// A mean with its interval and its test against 0. Both come from one t statistic: the interval excludes 0 exactly where
/// p is below 1 - level.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeanEstimate {
    /// The mean.
    pub mean: f64,
    /// Its standard error.
    pub standard_error: f64,
    /// Degrees of freedom of t.
    pub df: f64,
    /// The interval.
    pub interval: Interval,
    /// Two-sided p of a mean of 0. 1 where the standard error is 0: values without spread show nothing.
    pub p: f64,
}

impl MeanEstimate {
    /// From a mean and its standard error.
    pub(super) fn new(mean: f64, standard_error: f64, df: f64, level: f64) -> Self {
        let half = t_quantile(0.5 + level / 2.0, df) * standard_error;
        Self {
            mean,
            standard_error,
            df,
            interval: Interval { lo: mean - half, hi: mean + half },
            p: if standard_error > 0.0 { t_two_sided(mean / standard_error, df) } else { 1.0 },
        }
    }
}

/// The mean of `x` by Student's t with n - 1 degrees of freedom (Student 1908, Biometrika 6:1). `None` for fewer than two
/// values.
pub fn student_mean(x: &[f64], level: f64) -> Option<MeanEstimate> {
    let items: Vec<(f64, f64)> = x.iter().map(|&v| (v, 1.0)).collect();
    student_ratio(&items, level)
}

/// The same for a ratio of sums, `sum(numerator) / sum(denominator)`, by linearization: the standard error is that of the
/// residuals `numerator - ratio * denominator` over the mean denominator (Cochran 1977, Sampling Techniques, equation 6.13,
/// without the finite population correction). `None` for fewer than two items.
///
/// # Panics
/// For a denominator that is not positive.
pub fn student_ratio(items: &[(f64, f64)], level: f64) -> Option<MeanEstimate> {
    assert!(items.iter().all(|i| i.1 > 0.0), "a ratio needs positive denominators");
    let n = items.len() as f64;
    if items.len() < 2 {
        return None;
    }
    let (a, b) = items.iter().fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y));
    let ratio = a / b;
    let residuals = residuals(items, ratio);
    // Rounding of values that are all the same is no spread.
    let scale = mean(&items.iter().map(|i| i.0.abs()).collect::<Vec<_>>()) * n / b;
    let sum_of_squares: f64 = residuals.iter().map(|r| r * r).sum();
    let error = (sum_of_squares / (n - 1.0) / n).sqrt();
    let error = if error <= 1e-12 * scale { 0.0 } else { error };
    Some(MeanEstimate::new(ratio, error, n - 1.0, level))
}

/// An item's part in the deviation of a ratio from `ratio`: their mean is 0, their spread that of the ratio.
pub(super) fn residuals(items: &[(f64, f64)], ratio: f64) -> Vec<f64> {
    let mean_denominator = items.iter().map(|i| i.1).sum::<f64>() / items.len() as f64;
    items.iter().map(|(x, y)| (x - ratio * y) / mean_denominator).collect()
}

#[cfg(test)]
mod tests {
    use super::super::close;
    use super::*;

    /// SciPy 1.17.1: `ttest_1samp(x, 0)` and its `confidence_interval(0.95)`.
    #[test]
    fn means_equal_scipy() {
        let x = [0.3, 0.1, -0.05, 0.4, 0.2, -0.1, 0.15, 0.02];
        let m = student_mean(&x, 0.95).unwrap();
        close(m.mean, 0.1275, 1e-12);
        close(m.p, 0.07327286054772593, 1e-9);
        close(m.interval.lo, -0.01569092001890454, 1e-9);
        close(m.interval.hi, 0.27069092001890455, 1e-9);
        let two = student_mean(&[1.0, 2.0], 0.95).unwrap();
        close(two.interval.lo, -4.853102368087347, 1e-9);
        close(two.interval.hi, 7.853102368087347, 1e-9);
        close(two.p, 0.20483276469913345, 1e-9);
        assert_eq!(student_mean(&[1.0], 0.95), None);
        // No spread: no width, and nothing shown.
        let same = student_mean(&[0.1; 7], 0.95).unwrap();
        assert!(same.interval.is_degenerate() && same.p == 1.0, "{same:?}");
    }

    /// NumPy: `e = a - r*b; se = sqrt(e @ e / (n-1) / n) / b.mean()` with `r = a.sum()/b.sum()`, and
    /// `scipy.stats.t.ppf(0.975, n-1)`.
    #[test]
    fn ratios_equal_numpy() {
        let a = [3.0, 10.0, 4.5, 0.5, 7.0, 2.0, 9.0, 1.0];
        let b = [2.0, 4.0, 3.0, 1.0, 5.0, 2.0, 3.0, 1.0];
        let items: Vec<(f64, f64)> = a.into_iter().zip(b).collect();
        let m = student_ratio(&items, 0.95).unwrap();
        close(m.standard_error, 0.2842295635598777, 1e-9);
        close(m.interval.lo, 1.0898086428914424, 1e-9);
        close(m.interval.hi, 2.4340008809180813, 1e-9);
    }
}
