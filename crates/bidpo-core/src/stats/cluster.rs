//! Items that come in groups: questions of one category are more alike than two questions drawn at random.

use super::paired::score_interval;
use super::proportion::wilson_at;
use super::student::residuals;
use super::{Interval, MeanEstimate, mean, t_quantile, t_two_sided};
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

/// A proportion, or a difference of paired proportions, whose uncertainty counts groups.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClusteredScore {
    /// Number of groups.
    pub groups: usize,
    /// Variance of the mean relative to that of as many independent items; 1 where all items are the same.
    pub design_effect: f64,
    /// Degrees of freedom of t.
    pub df: f64,
    /// Score interval with `n / design_effect` items and the quantile of t.
    pub interval: Interval,
    /// Of a difference: two-sided p of 0 by the score test, of which the interval is the inversion. A proportion has no
    /// value that it would be tested against.
    pub p: Option<f64>,
}

/// Smallest design effect that is believed: fewer effective items than five times those there are.
const LEAST_EFFECT: f64 = 0.2;

/// Design effect and degrees of freedom for `x`, by [`clustered_mean`].
fn design<G: Ord>(x: &[f64], groups: &[G], level: f64) -> Option<(Clustered, f64, f64)> {
    let c = clustered_mean(x, groups, level)?;
    let (m, n) = (mean(x), x.len() as f64);
    let independent = x.iter().map(|v| (v - m).powi(2)).sum::<f64>() / n / n;
    Some(if c.estimate.standard_error > 0.0 {
        (c, (c.estimate.standard_error.powi(2) / independent).max(LEAST_EFFECT), c.estimate.df.max(1.0))
    } else {
        (c, 1.0, n - 1.0)
    })
}

/// Proportion of items that are right (1, not 0): Wilson's interval for the effective number of items, with t in the place
/// of the normal quantile (Kott and Carr 1997, J. Official Stat. 13:43; Franco et al. 2019, J. Surv. Stat. Methodol. 7:334).
/// `None` for fewer than two groups.
///
/// # Panics
/// If there is not one group for each item.
pub fn clustered_proportion<G: Ord>(right: &[f64], groups: &[G], level: f64) -> Option<ClusteredScore> {
    let (c, design_effect, df) = design(right, groups, level)?;
    let (k, n) = (right.iter().sum::<f64>() / design_effect, right.len() as f64 / design_effect);
    let interval = wilson_at(k, n, t_quantile(0.5 + level / 2.0, df));
    Some(ClusteredScore { groups: c.groups, design_effect, df, interval, p: None })
}

/// Difference of paired proportions from each item's -1, 0 or 1: Tango's interval in the same way. `None` for fewer than
/// two groups.
///
/// # Panics
/// If there is not one group for each item.
pub fn clustered_difference<G: Ord>(change: &[f64], groups: &[G], level: f64) -> Option<ClusteredScore> {
    let (c, design_effect, df) = design(change, groups, level)?;
    let count = |sign: f64| change.iter().filter(|&&x| x == sign).count() as f64 / design_effect;
    let (gained, lost, n) = (count(1.0), count(-1.0), change.len() as f64 / design_effect);
    let interval = score_interval(gained, lost, n, t_quantile(0.5 + level / 2.0, df));
    let p = if gained + lost > 0.0 { t_two_sided((gained - lost) / (gained + lost).sqrt(), df) } else { 1.0 };
    Some(ClusteredScore { groups: c.groups, design_effect, df, interval, p: Some(p) })
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

    /// NumPy and SciPy: the design effect from CR2 with full matrices, `statsmodels.stats.proportion_confint(k / deff,
    /// n / deff, alpha=2 * norm.sf(t.ppf(0.975, df)), method="wilson")`, `brentq` on Tango's statistic, `t.sf`.
    #[test]
    fn score_intervals_equal_scipy() {
        let x = [1.0, 0.0, 1.0, 0.0, 0.0, -1.0, 1.0, 1.0, 0.0, 0.0, 1.0, -1.0];
        let g = [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3];
        let y = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0];
        let h = [0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4];
        let d = clustered_difference(&x, &g, 0.95).unwrap();
        close(d.design_effect, 1.2746666666666673, 1e-9);
        close(d.interval.lo, -0.5181630492697776, 1e-6);
        close(d.interval.hi, 0.7806363517714439, 1e-6);
        close(d.p.unwrap(), 0.39463333563932834, 1e-8);
        let p = clustered_proportion(&y, &h, 0.95).unwrap();
        close(p.design_effect, 3.7342657342657306, 1e-9);
        close(p.interval.lo, 0.0828746246257463, 1e-8);
        close(p.interval.hi, 0.9171253753742536, 1e-8);
        assert_eq!(p.p, None);
        // Nothing right, nothing changed: as many independent items.
        let none = clustered_proportion(&[0.0; 16], &h, 0.95).unwrap();
        assert_eq!((none.design_effect, none.interval.lo), (1.0, 0.0));
        assert!(none.interval.hi > 0.2 && clustered_difference(&[0.0; 16], &h, 0.95).unwrap().p == Some(1.0));
    }
}
