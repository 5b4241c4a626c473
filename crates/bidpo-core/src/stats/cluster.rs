//! Items that come in groups: questions of one category are more alike than two questions drawn at random.

use super::student::residuals;
use super::{MeanEstimate, mean};
use std::collections::BTreeMap;

/// A mean whose uncertainty counts groups, not items.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clustered {
    /// Number of groups.
    pub groups: usize,
    /// The mean with its interval.
    pub estimate: MeanEstimate,
}

/// The mean of `x` with a cluster-robust standard error. `None` for fewer than two groups.
///
/// The variance is the bias-reduced sandwich estimator CR2 of a regression on a constant (Bell and McCaffrey 2002, Survey
/// Methodology 28:169): the sum over groups of `s^2 / (1 - n_g / n)` over `n^2`, where `s` is a group's sum of residuals and
/// `n_g` its size. The degrees of freedom of t are Satterthwaite's under equal correlation within groups, the correlation
/// estimated from the residuals by analysis of variance (Imbens and Kolesar 2016, Rev. Econ. Stat. 98:701).
///
/// # Panics
/// If there is not one group for each value.
pub fn clustered_mean<G: Ord>(x: &[f64], groups: &[G], level: f64) -> Option<Clustered> {
    let items: Vec<(f64, f64)> = x.iter().map(|&v| (v, 1.0)).collect();
    clustered_ratio(&items, groups, level)
}

/// The same for a ratio of sums, `sum(numerator) / sum(denominator)`, by linearization.
///
/// # Panics
/// As [`clustered_mean`].
pub fn clustered_ratio<G: Ord>(items: &[(f64, f64)], groups: &[G], level: f64) -> Option<Clustered> {
    assert_eq!(items.len(), groups.len(), "one group for each value");
    let (a, b) = items.iter().fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y));
    let ratio = a / b;
    let residuals = residuals(items, ratio);
    let mut by_group: BTreeMap<&G, Group> = BTreeMap::new();
    for (&e, g) in residuals.iter().zip(groups) {
        let group = by_group.entry(g).or_default();
        group.size += 1.0;
        group.sum += e;
    }
    let list: Vec<Group> = by_group.into_values().collect();
    if list.len() < 2 {
        return None;
    }
    let n = items.len() as f64;
    let square = |x: f64| x * x;
    let variance = list.iter().map(|g| square(g.sum) / (1.0 - g.size / n)).sum::<f64>() / square(n);
    let total: f64 = residuals.iter().map(|e| square(*e)).sum();
    // Rounding of values that are all the same is no spread.
    let scale = mean(&items.iter().map(|i| i.0.abs()).collect::<Vec<_>>()) * n / b;
    let error = if variance.sqrt() <= 1e-12 * scale { 0.0 } else { variance.sqrt() };
    let df = degrees_of_freedom(&list, correlation(&list, total));
    Some(Clustered { groups: list.len(), estimate: MeanEstimate::new(ratio, error, df, level) })
}

/// One group: its number of items, the sum of their residuals.
#[derive(Debug, Clone, Copy, Default)]
struct Group {
    size: f64,
    sum: f64,
}

/// Correlation of two items of a group, by one-way analysis of variance, 0 where it would be negative; `total` is the sum
/// of the squared residuals.
fn correlation(groups: &[Group], total: f64) -> f64 {
    let (k, n) = (groups.len() as f64, groups.iter().map(|g| g.size).sum::<f64>());
    let between = groups.iter().map(|g| g.sum * g.sum / g.size).sum::<f64>();
    let within = (total - between).max(0.0) / (n - k).max(1.0);
    let between = between / (k - 1.0);
    // Mean size of a group, corrected for unequal sizes.
    let size = (n - groups.iter().map(|g| g.size * g.size).sum::<f64>() / n) / (k - 1.0);
    let denominator = between + (size - 1.0) * within;
    if denominator > 0.0 { ((between - within) / denominator).clamp(0.0, 1.0) } else { 0.0 }
}

/// Satterthwaite's degrees of freedom of the variance: `trace(M)^2 / trace(M^2)`, where M is the covariance matrix of the
/// groups' adjusted sums of residuals if items of a group correlate with `rho`.
fn degrees_of_freedom(groups: &[Group], rho: f64) -> f64 {
    let n: f64 = groups.iter().map(|g| g.size).sum();
    // Variance of a group's sum, and of the sum of all.
    let own: Vec<f64> = groups.iter().map(|g| g.size * (1.0 - rho) + rho * g.size * g.size).collect();
    let all: f64 = own.iter().sum();
    let share: Vec<f64> = groups.iter().map(|g| g.size / n).collect();
    // Covariance of the sums of residuals g and h, a residual sum being own sum minus share times the sum of all.
    let entry = |g: usize, h: usize| {
        let mut c = share[g] * share[h] * all - share[h] * own[g] - share[g] * own[h];
        if g == h {
            c += own[g];
        }
        c / ((1.0 - share[g]) * (1.0 - share[h])).sqrt()
    };
    let k = groups.len();
    let trace: f64 = (0..k).map(|g| entry(g, g)).sum();
    let squares: f64 = (0..k).flat_map(|g| (0..k).map(move |h| (g, h))).map(|(g, h)| entry(g, h).powi(2)).sum();
    trace * trace / squares
}

#[cfg(test)]
mod tests {
    use super::super::close;
    use super::*;

    /// NumPy: CR2 with full matrices (`A_g = (I - H_gg)^(-1/2)` by `eigh`, the degrees of freedom from the eigenvalues of
    /// `G' Omega G`), and `scipy.stats.t.ppf(0.975, df)`.
    #[test]
    fn clustered_mean_equals_full_matrices() {
        let x = [1.0, 0.0, 1.0, 0.0, 0.0, -1.0, 1.0, 1.0, 0.0, 0.0, 1.0, -1.0];
        let g = [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3];
        let y = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0];
        let h = [0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4];
        let check = |x: &[f64], g: &[i32], groups, error, df, lo, hi| {
            let c = clustered_mean(x, g, 0.95).unwrap();
            assert_eq!(c.groups, groups);
            close(c.estimate.standard_error, error, 1e-9);
            close(c.estimate.df, df, 1e-9);
            close(c.estimate.interval.lo, lo, 1e-8);
            close(c.estimate.interval.hi, hi, 1e-8);
        };
        check(&x, &g, 4, 0.23521070144462838, 2.77366343948526, -0.5343162497408174, 1.0343162497408174);
        check(&y, &h, 5, 0.24155310409494232, 3.0878472465077165, -0.25650442513125715, 1.2565044251312572);
        assert!(clustered_mean(&x, &[7; 12], 0.95).is_none());
        // Groups of one item each: Student's t.
        let alone: Vec<usize> = (0..12).collect();
        let student = super::super::student_mean(&x, 0.95).unwrap();
        let c = clustered_mean(&x, &alone, 0.95).unwrap().estimate;
        close(c.standard_error, student.standard_error, 1e-12);
        close(c.df, 11.0, 1e-12);
    }
}
