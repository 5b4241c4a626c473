//! From items to figures: the measure with its interval, and the paired comparison with the unsteered model.

use super::items::{Correct, Item};
use super::stats::{self, Interval};

/// Confidence level of every interval.
pub const LEVEL: f64 = 0.95;
/// Resamples of a bootstrap.
pub const RESAMPLES: usize = 10_000;
/// Seed of a bootstrap: fixed, so that the same items give the same figures.
pub const SEED: u64 = 0;

/// A mean over items with its interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measure {
    /// Accuracy, or mean mass.
    pub value: f64,
    /// Wilson's interval for an accuracy, a percentile bootstrap for a mean mass.
    pub interval: Interval,
    /// Right items, where items are right or wrong.
    pub right: Option<usize>,
}

/// Steered minus unsteered on the same items.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// Difference of the two measures.
    pub value: f64,
    /// Its interval: Bonett and Price for proportions, a percentile bootstrap over items for masses.
    pub interval: Interval,
    /// Items gained and lost, and the exact McNemar p, where items are right or wrong.
    pub discordant: Option<(usize, usize, f64)>,
}

impl Difference {
    /// True where the interval leaves out 0.
    pub fn is_shown(&self) -> bool {
        !self.interval.contains(0.0)
    }
}

/// The figures of one run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// Items.
    pub n: usize,
    /// The measure.
    pub measure: Measure,
    /// The unsteered model on the same items.
    pub baseline: Option<Measure>,
    /// The paired comparison.
    pub difference: Option<Difference>,
}

/// Computes the figures; `None` for no items. The comparison is there if every item has a baseline.
pub fn summarize(items: &[Item]) -> Option<Summary> {
    if items.is_empty() {
        return None;
    }
    let steered: Vec<Correct> = items.iter().map(|i| i.correct).collect();
    let unsteered: Option<Vec<Correct>> = items.iter().map(|i| i.baseline.as_ref().map(|b| b.correct)).collect();
    let difference = unsteered.as_ref().map(|unsteered| compare(unsteered, &steered));
    Some(Summary { n: items.len(), measure: measure(&steered), baseline: unsteered.map(|u| measure(&u)), difference })
}

/// All items as right or wrong, or `None` if one is a mass.
fn rights(results: &[Correct]) -> Option<Vec<bool>> {
    results.iter().map(|c| if let Correct::Right(right) = c { Some(*right) } else { None }).collect()
}

fn values(results: &[Correct]) -> Vec<f64> {
    results.iter().map(|c| c.value()).collect()
}

fn measure(results: &[Correct]) -> Measure {
    match rights(results) {
        Some(rights) => {
            let k = rights.iter().filter(|&&r| r).count();
            let n = rights.len();
            Measure { value: k as f64 / n as f64, interval: stats::wilson(k, n, LEVEL), right: Some(k) }
        }
        None => {
            let x = values(results);
            Measure { value: stats::mean(&x), interval: stats::bootstrap_mean(&x, LEVEL, RESAMPLES, SEED), right: None }
        }
    }
}

fn compare(first: &[Correct], second: &[Correct]) -> Difference {
    let paired = rights(first).zip(rights(second)).and_then(|(a, b)| stats::compare_proportions(&a, &b, LEVEL));
    match paired {
        Some(c) => Difference { value: c.difference, interval: c.interval, discordant: Some((c.gained, c.lost, c.p)) },
        None => {
            let x: Vec<f64> = values(first).iter().zip(values(second)).map(|(a, b)| b - a).collect();
            Difference {
                value: stats::mean(&x),
                interval: stats::bootstrap_mean(&x, LEVEL, RESAMPLES, SEED),
                discordant: None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::items::ItemBaseline;

    fn item(correct: Correct, baseline: Option<Correct>) -> Item {
        Item {
            index: 0,
            question: String::new(),
            category: None,
            protocol: String::new(),
            correct,
            answers: Vec::new(),
            baseline: baseline.map(|correct| ItemBaseline { correct, logprobs: Vec::new() }),
        }
    }

    #[test]
    fn rights_and_masses() {
        assert!(summarize(&[]).is_none());
        let r = |a, b| item(Correct::Right(a), Some(Correct::Right(b)));
        let s = summarize(&[r(true, false), r(true, true), r(false, false), r(false, true)]).unwrap();
        assert_eq!((s.measure.value, s.measure.right, s.baseline.unwrap().value), (0.5, Some(2), 0.5));
        let d = s.difference.unwrap();
        assert_eq!((d.value, d.discordant), (0.0, Some((1, 1, 1.0))));
        assert!(!d.is_shown());

        let m = |a, b| item(Correct::Mass(a), Some(Correct::Mass(b)));
        let s = summarize(&[m(0.5, 0.25), m(0.75, 0.5), m(0.25, 0.0)]).unwrap();
        assert_eq!((s.measure.value, s.baseline.unwrap().value), (0.5, 0.25));
        let d = s.difference.unwrap();
        // Every item gains the same: the bootstrap interval is that one point.
        assert_eq!((d.value, d.interval, d.discordant), (0.25, Interval { lo: 0.25, hi: 0.25 }, None));
        assert!(d.is_shown());
        assert!(summarize(&[item(Correct::Mass(0.5), None)]).unwrap().difference.is_none());
    }
}
