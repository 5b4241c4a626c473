//! One figure with its interval; two conditions on the same items.

use super::{LEVEL, RESAMPLES, SEED};
use crate::eval::measures::{Kind, Measure};
use crate::stats::{self, Clustered, Interval};

/// A figure with its interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Items.
    pub n: usize,
    /// The figure.
    pub value: f64,
    /// Its interval: Wilson's for items that are right or wrong, a percentile bootstrap over items otherwise.
    pub interval: Interval,
    /// Right items, where items are right or wrong.
    pub count: Option<usize>,
}

/// A second condition minus a first one, item by item.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// Difference of the figures (of the mean log-probability loss a token, nats, for the perplexity).
    pub difference: f64,
    /// Its interval: Bonett and Price's for items that are right or wrong, a percentile bootstrap over items otherwise.
    pub interval: Interval,
    /// Items that are higher under the second condition (right under it only).
    pub gained: usize,
    /// Items that are higher under the first.
    pub lost: usize,
    /// Exact McNemar p for items that are right or wrong; otherwise that of a randomisation test of the mean difference
    /// (random signs).
    pub p: f64,
    /// Holm's adjustment of it over all conditions of the table.
    pub p_holm: Option<f64>,
    /// Exact sign test of gained against lost.
    pub sign_p: f64,
    /// Posterior probability that the second condition has the higher figure: Jeffreys' prior on the discordant items, or a
    /// Bayesian bootstrap.
    pub higher: f64,
    /// The difference with categories as clusters, where the items have at least two.
    pub clustered: Option<Clustered>,
    /// Smallest true difference that this many items would show in 80 % of all runs, at 5 %. Infinite for too few items, 0
    /// for means whose differences are all the same.
    pub detectable: f64,
}

impl Comparison {
    /// True where the 95 % interval excludes 0.
    pub fn is_significant(&self) -> bool {
        !self.interval.contains(0.0)
    }
}

fn sums(parts: &[(f64, f64)]) -> (f64, f64) {
    parts.iter().fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y))
}

/// The figure of some items.
///
/// # Panics
/// For no items.
pub fn estimate(measure: Measure, parts: &[(f64, f64)]) -> Estimate {
    let n = parts.len();
    let (a, b) = sums(parts);
    let value = measure.finish(a / b);
    if measure.is_binary() {
        let k = a.round() as usize;
        return Estimate { n, value, interval: stats::wilson(k, n, LEVEL), count: Some(k) };
    }
    let i = stats::bootstrap_ratio(parts, LEVEL, RESAMPLES, SEED);
    let interval = Interval { lo: measure.finish(i.lo), hi: measure.finish(i.hi) };
    Estimate { n, value, interval, count: None }
}

/// `second` minus `first`. The denominators (1, or an item's number of tokens) are the same under both.
///
/// # Panics
/// For no items, or lists of different lengths.
pub fn compare(
    measure: Measure,
    first: &[(f64, f64)],
    second: &[(f64, f64)],
    categories: &[Option<&str>],
) -> Comparison {
    assert_eq!(first.len(), second.len(), "a paired comparison needs the same items");
    let n = first.len();
    let d: Vec<(f64, f64)> = first.iter().zip(second).map(|(a, b)| (b.0 - a.0, b.1)).collect();
    let (sum, weight) = sums(&d);
    // An item's part in the difference: the mean of these is the difference.
    let x: Vec<f64> = d.iter().map(|d| d.0 * n as f64 / weight).collect();
    let gained = x.iter().filter(|&&v| v > 0.0).count();
    let lost = x.iter().filter(|&&v| v < 0.0).count();
    let known: Vec<&str> = categories.iter().flatten().copied().collect();
    let clustered = if known.len() == n { stats::clustered_mean(&x, &known, LEVEL) } else { None };
    let binary = measure.is_binary();
    Comparison {
        difference: sum / weight,
        interval: if binary {
            stats::paired_difference(gained, lost, n, LEVEL)
        } else {
            stats::bootstrap_ratio(&d, LEVEL, RESAMPLES, SEED)
        },
        gained,
        lost,
        p: if binary { stats::mcnemar_exact(gained, lost) } else { stats::sign_flip(&x, RESAMPLES, SEED) },
        p_holm: None,
        sign_p: stats::sign_test(gained, lost),
        higher: if binary {
            stats::posterior_advantage(gained, lost)
        } else {
            stats::bayes_advantage(&x, RESAMPLES, SEED)
        },
        clustered,
        detectable: if binary {
            stats::detectable_proportion(n as f64, (gained + lost) as f64 / n as f64, 1.0 - LEVEL)
        } else if let Some(m) = stats::student_ratio(&d, LEVEL) {
            stats::detectable_mean(m.standard_error, m.df, 1.0 - LEVEL)
        } else {
            f64::INFINITY
        },
    }
}

/// The unit of a measure's difference.
pub(crate) fn difference_unit(measure: Measure) -> &'static str {
    match measure.kind {
        Kind::Perplexity | Kind::Divergence => "nats a token",
        Kind::Words => "words",
        _ => "points",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MASS: Measure = Measure { kind: Kind::Mc2, per_token: false };

    #[test]
    fn masses_are_compared_by_their_means() {
        let ones = |x: &[f64]| x.iter().map(|&v| (v, 1.0)).collect::<Vec<_>>();
        let (a, b) = (ones(&[0.25, 0.5, 0.0]), ones(&[0.5, 0.75, 0.25]));
        assert_eq!(estimate(MASS, &b).value, 0.5);
        let c = compare(MASS, &a, &b, &[None; 3]);
        // Every item gains the same: the bootstrap interval is that one point.
        assert_eq!((c.difference, c.interval), (0.25, Interval { lo: 0.25, hi: 0.25 }));
        assert_eq!((c.gained, c.lost, c.higher, c.detectable, c.clustered), (3, 0, 1.0, 0.0, None));
        assert!(c.is_significant() && !compare(MASS, &a, &a, &[None; 3]).is_significant());
        // Three items cannot have a small p: two of the eight sign patterns are as extreme as this one.
        assert!((c.p - 0.25).abs() < 0.02, "{}", c.p);
    }

    #[test]
    fn perplexity_weighs_by_tokens() {
        let m = Measure { kind: Kind::Perplexity, per_token: false };
        let (a, b) = ([(10.0, 10.0), (40.0, 20.0)], [(20.0, 10.0), (40.0, 20.0)]);
        assert!((estimate(m, &a).value - (50.0f64 / 30.0).exp()).abs() < 1e-12);
        let c = compare(m, &a, &b, &[None; 2]);
        assert!((c.difference - 1.0 / 3.0).abs() < 1e-12, "{}", c.difference);
        assert_eq!((c.gained, c.lost), (1, 0));
    }
}
