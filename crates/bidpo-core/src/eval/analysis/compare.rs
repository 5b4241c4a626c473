//! One value with its interval; two conditions on the same items.

use super::{LEVEL, MIN_CLUSTERS, MIN_ITEMS, RESAMPLES, SEED};
use crate::eval::measures::{Kind, Measure};
use crate::stats::{self, Interval};
use std::collections::BTreeSet;

/// A value with its interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Items.
    pub n: usize,
    /// The value.
    pub value: f64,
    /// Its interval: Wilson's for items that are right or wrong, Student's t otherwise; of categories where there are some.
    pub interval: Interval,
    /// Right items, where items are right or wrong.
    pub count: Option<usize>,
    /// Number of categories that the interval counts as clusters; absent where it takes items as independent draws.
    pub clusters: Option<usize>,
}

/// A second condition minus a first one, item by item. Interval and p are one criterion: the interval excludes 0 exactly
/// where p is below 0.05.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Comparison {
    /// Items.
    pub n: usize,
    /// Difference of the values (of the mean log-probability loss a token, nats, for the perplexity).
    pub difference: f64,
    /// Its interval: Tango's score interval for items that are right or wrong, Student's t otherwise; of categories where
    /// there are some.
    pub interval: Interval,
    /// Number of categories that interval and p count as clusters.
    pub clusters: Option<usize>,
    /// Items that are higher under the second condition (right under it only).
    pub gained: usize,
    /// Items that are higher under the first.
    pub lost: usize,
    /// Two-sided p of no difference, by the test whose inversion the interval is: McNemar's score test, or Student's t.
    pub p: f64,
    /// Holm's adjustment of it over its family of comparisons, where it belongs to one.
    pub p_holm: Option<f64>,
    /// Exact p beside it, which takes items as independent draws and decides nothing: exact McNemar for items that are right
    /// or wrong, otherwise a randomization test of the mean difference (random signs).
    pub exact_p: f64,
    /// Exact sign test of gained against lost.
    pub sign_p: f64,
    /// Posterior probability that the second condition has the higher value: Jeffreys' prior on the discordant items, or a
    /// Bayesian bootstrap.
    pub higher: f64,
    /// Smallest true difference that this many items would show in 80 % of all runs, at 5 %. Infinite for too few items, 0
    /// for means whose differences are all the same.
    pub detectable: f64,
    /// What that follows from.
    spread: Spread,
}

/// What a minimum detectable difference follows from.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Spread {
    /// Fraction of items that changed, among an effective number of items.
    Changes { changed: f64, effective: f64 },
    /// Standard error of a mean on some degrees of freedom.
    Mean { standard_error: f64, df: f64 },
    /// One item.
    Unknown,
}

impl Spread {
    fn detectable(self, alpha: f64) -> f64 {
        match self {
            Self::Changes { changed, effective } => stats::detectable_proportion(effective, changed, alpha),
            Self::Mean { standard_error, df } => stats::detectable_mean(standard_error, df, alpha),
            Self::Unknown => f64::INFINITY,
        }
    }
}

impl Comparison {
    /// True for too few items to claim anything.
    pub fn is_too_small(&self) -> bool {
        self.n < MIN_ITEMS
    }

    /// Smallest true difference that would be found in 80 % of all runs by a test at `alpha`.
    pub fn detectable_at(&self, alpha: f64) -> f64 {
        self.spread.detectable(alpha)
    }

    /// True where the 95 % interval excludes 0, on enough items, and has a width.
    pub fn is_significant(&self) -> bool {
        !self.is_too_small() && !self.interval.is_degenerate() && self.p < 1.0 - LEVEL
    }
}

fn sums(parts: &[(f64, f64)]) -> (f64, f64) {
    parts.iter().fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y))
}

/// The items' categories, where all have one, there are [`MIN_CLUSTERS`] of them, and some hold several items.
fn clusters<'a>(categories: &[Option<&'a str>], n: usize) -> Option<Vec<&'a str>> {
    let known: Vec<&str> = categories.iter().flatten().copied().collect();
    let distinct = known.iter().collect::<BTreeSet<_>>().len();
    (known.len() == n && (MIN_CLUSTERS..n).contains(&distinct)).then_some(known)
}

/// The mean of `parts` (a ratio of sums), with its number of clusters.
fn mean_of(parts: &[(f64, f64)], categories: &[Option<&str>]) -> Option<(stats::MeanEstimate, Option<usize>)> {
    if let Some(c) = clusters(categories, parts.len()).and_then(|g| stats::clustered_ratio(parts, &g, LEVEL)) {
        return Some((c.estimate, Some(c.groups)));
    }
    Some((stats::student_ratio(parts, LEVEL)?, None))
}

/// The value of some items.
///
/// # Panics
/// For no items.
pub fn estimate(measure: Measure, parts: &[(f64, f64)], categories: &[Option<&str>]) -> Estimate {
    let n = parts.len();
    let (a, b) = sums(parts);
    let value = measure.finish(a / b);
    if measure.is_binary() {
        let k = a.round() as usize;
        let right: Vec<f64> = parts.iter().map(|p| p.0).collect();
        let clustered = clusters(categories, n).and_then(|g| stats::clustered_proportion(&right, &g, LEVEL));
        let (interval, clusters) =
            clustered.map_or_else(|| (stats::wilson(k, n, LEVEL), None), |c| (c.interval, Some(c.groups)));
        return Estimate { n, value, interval, count: Some(k), clusters };
    }
    // One item has no spread: its interval has no width, which says so.
    let (interval, clusters) = mean_of(parts, categories)
        .map_or((Interval { lo: a / b, hi: a / b }, None), |(m, clusters)| (m.interval, clusters));
    // A fraction is from 0 to 1; a lead is a difference of fractions.
    let fraction = measure.is_share() && !matches!(measure.kind, Kind::Lead(_));
    let bounds = if fraction { (0.0, 1.0) } else { (f64::NEG_INFINITY, f64::INFINITY) };
    let finish = |x: f64| measure.finish(x.clamp(bounds.0, bounds.1));
    Estimate {
        n,
        value,
        interval: Interval { lo: finish(interval.lo), hi: finish(interval.hi) },
        count: None,
        clusters,
    }
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
    let d: Vec<(f64, f64)> = first.iter().zip(second).map(|(a, b)| (b.0 - a.0, b.1)).collect();
    if measure.is_binary() { of_changes(&d, categories) } else { of_differences(&d, categories) }
}

/// A comparison from each item's -1, 0 or 1.
fn of_changes(d: &[(f64, f64)], categories: &[Option<&str>]) -> Comparison {
    let n = d.len();
    let x: Vec<f64> = d.iter().map(|d| d.0).collect();
    let gained = x.iter().filter(|&&v| v > 0.0).count();
    let lost = x.iter().filter(|&&v| v < 0.0).count();
    let clustered = clusters(categories, n).and_then(|g| stats::clustered_difference(&x, &g, LEVEL));
    let changed = (gained + lost) as f64 / n as f64;
    let effective = n as f64 / clustered.map_or(1.0, |c| c.design_effect);
    let spread = Spread::Changes { changed, effective };
    Comparison {
        n,
        difference: (gained as f64 - lost as f64) / n as f64,
        interval: clustered.map_or_else(|| stats::paired_difference(gained, lost, n, LEVEL), |c| c.interval),
        clusters: clustered.map(|c| c.groups),
        gained,
        lost,
        p: clustered.and_then(|c| c.p).unwrap_or_else(|| stats::mcnemar_score(gained, lost)),
        p_holm: None,
        exact_p: stats::mcnemar_exact(gained, lost),
        sign_p: stats::sign_test(gained, lost),
        higher: stats::posterior_advantage(gained, lost),
        detectable: spread.detectable(1.0 - LEVEL),
        spread,
    }
}

/// A comparison of means (ratios of sums) from each item's difference and weight.
///
/// # Panics
/// For no items.
pub(super) fn of_differences(d: &[(f64, f64)], categories: &[Option<&str>]) -> Comparison {
    let n = d.len();
    let (sum, weight) = sums(d);
    // An item's part in the difference: the mean of these is the difference.
    let x: Vec<f64> = d.iter().map(|d| d.0 * n as f64 / weight).collect();
    let gained = x.iter().filter(|&&v| v > 0.0).count();
    let lost = x.iter().filter(|&&v| v < 0.0).count();
    let mean = mean_of(d, categories);
    let at = sum / weight;
    let spread = mean.map_or(Spread::Unknown, |(m, _)| Spread::Mean { standard_error: m.standard_error, df: m.df });
    Comparison {
        n,
        difference: at,
        interval: mean.map_or(Interval { lo: at, hi: at }, |(m, _)| m.interval),
        clusters: mean.and_then(|(_, clusters)| clusters),
        gained,
        lost,
        p: mean.map_or(1.0, |(m, _)| m.p),
        p_holm: None,
        exact_p: stats::sign_flip(&x, RESAMPLES, SEED),
        sign_p: stats::sign_test(gained, lost),
        higher: stats::bayes_advantage(&x, RESAMPLES, SEED),
        detectable: spread.detectable(1.0 - LEVEL),
        spread,
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
    const RIGHT: Measure = Measure { kind: Kind::Mc1, per_token: false };

    fn ones(x: &[f64]) -> Vec<(f64, f64)> {
        x.iter().map(|&v| (v, 1.0)).collect()
    }

    #[test]
    fn masses_are_compared_by_their_means() {
        let (a, b) = (ones(&[0.25, 0.5, 0.0]), ones(&[0.5, 0.75, 0.25]));
        assert_eq!(estimate(MASS, &b, &[None; 3]).value, 0.5);
        let c = compare(MASS, &a, &b, &[None; 3]);
        // Every item gains the same: the interval is that one point, and shows nothing.
        assert_eq!((c.difference, c.interval, c.p), (0.25, Interval { lo: 0.25, hi: 0.25 }, 1.0));
        assert_eq!((c.gained, c.lost, c.higher, c.detectable), (3, 0, 1.0, 0.0));
        assert!(c.interval.is_degenerate() && !c.is_significant());
        // Three items cannot have a small p: two of the eight sign patterns are as extreme as this one.
        assert_eq!(c.exact_p, 0.25);
        let many = |x: f64| ones(&(0..300).map(|i| x + f64::from(i) / 1000.0).collect::<Vec<_>>());
        assert!(!compare(MASS, &many(0.0), &many(1e-5), &[None; 300]).is_significant());
    }

    #[test]
    fn few_items_show_nothing() {
        let (none, all) = (ones(&[0.0; 7]), ones(&[1.0; 7]));
        let c = compare(RIGHT, &none, &all, &[None; 7]);
        assert!(c.p < 0.05 && c.is_too_small() && !c.is_significant());
        assert!(compare(RIGHT, &ones(&[0.0; 8]), &ones(&[1.0; 8]), &[None; 8]).is_significant());
    }

    /// Items of a category that are all alike are worth one item.
    #[test]
    fn categories_are_clusters() {
        let right: Vec<f64> = (0..120).map(|i| f64::from(u8::from((i / 10) % 2 == 0))).collect();
        let names: Vec<String> = (0..120).map(|i| format!("c{}", i / 10)).collect();
        let of =
            |n: usize| -> Vec<Option<&str>> { names.iter().map(|c| (c != "c0" || n == 12).then_some(&**c)).collect() };
        let (alone, grouped) = (estimate(RIGHT, &ones(&right), &of(11)), estimate(RIGHT, &ones(&right), &of(12)));
        assert_eq!((alone.clusters, grouped.clusters), (None, Some(12)));
        let width = |e: Estimate| e.interval.hi - e.interval.lo;
        assert!(width(grouped) > 3.0 * width(alone), "{} {}", width(grouped), width(alone));
        let zero = ones(&[0.0; 120]);
        let (a, g) = (compare(RIGHT, &zero, &ones(&right), &of(11)), compare(RIGHT, &zero, &ones(&right), &of(12)));
        assert!(g.p > a.p && g.clusters == Some(12) && g.detectable > a.detectable);
        let g = compare(MASS, &zero, &ones(&right), &of(12));
        assert_eq!((g.clusters, g.p < 0.05), (Some(12), !g.interval.contains(0.0)));
    }

    #[test]
    fn perplexity_weighs_by_tokens() {
        let m = Measure { kind: Kind::Perplexity, per_token: false };
        let (a, b) = ([(10.0, 10.0), (40.0, 20.0)], [(20.0, 10.0), (40.0, 20.0)]);
        assert!((estimate(m, &a, &[None; 2]).value - (50.0f64 / 30.0).exp()).abs() < 1e-12);
        let c = compare(m, &a, &b, &[None; 2]);
        assert!((c.difference - 1.0 / 3.0).abs() < 1e-12, "{}", c.difference);
        assert_eq!((c.gained, c.lost), (1, 0));
    }
}
