//! Items that come in groups: questions of one category are more alike than two questions drawn at random.

use super::{Interval, mean};
use statrs::distribution::{ContinuousCDF, StudentsT};
use std::collections::BTreeMap;

/// A mean whose uncertainty counts groups, not items.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clustered {
    /// Number of groups.
    pub groups: usize,
    /// Standard error of the mean.
    pub standard_error: f64,
    /// Interval of the mean, by Student's t with `groups - 1` degrees of freedom.
    pub interval: Interval,
}

/// The mean of `x` with cluster-robust standard error: the sandwich estimator of a regression on a constant, with the
/// factor G / (G - 1) for G groups (Liang and Zeger 1986, Biometrika 73:13; CR1 in Cameron and Miller 2015, J. Human
/// Resources 50:317). `None` for fewer than two groups.
///
/// # Panics
/// If there is not one group for each value.
pub fn clustered_mean<G: Ord>(x: &[f64], groups: &[G], level: f64) -> Option<Clustered> {
    assert_eq!(x.len(), groups.len(), "one group for each value");
    let m = mean(x);
    let mut sums: BTreeMap<&G, f64> = BTreeMap::new();
    for (v, g) in x.iter().zip(groups) {
        *sums.entry(g).or_default() += v - m;
    }
    let n_groups = sums.len();
    if n_groups < 2 {
        return None;
    }
    let g = n_groups as f64;
    let standard_error = (g / (g - 1.0) * sums.values().map(|s| s * s).sum::<f64>()).sqrt() / x.len() as f64;
    let t = StudentsT::new(0.0, 1.0, g - 1.0).ok()?.inverse_cdf(0.5 + level / 2.0);
    let half = t * standard_error;
    Some(Clustered { groups: n_groups, standard_error, interval: Interval { lo: m - half, hi: m + half } })
}

#[cfg(test)]
mod tests {
    use super::super::close;
    use super::*;

    /// statsmodels 0.15.0: `OLS(x, ones).fit(cov_type="cluster", cov_kwds={"groups": g}, use_t=True)`, its `bse` and
    /// `conf_int()`. (Its factor is G / (G - 1) * (n - 1) / (n - k), k = 1: the same.)
    #[test]
    fn clustered_mean_equals_statsmodels() {
        let x = [1.0, 0.0, 1.0, 0.0, 0.0, -1.0, 1.0, 1.0, 0.0, 0.0, 1.0, -1.0];
        let g = [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3];
        let c = clustered_mean(&x, &g, 0.95).unwrap();
        assert_eq!(c.groups, 4);
        close(c.standard_error, 0.23323410588537044, 1e-9);
        close(c.interval.lo, -0.4922550185410462, 1e-7);
        close(c.interval.hi, 0.9922550185410464, 1e-7);
        assert!(clustered_mean(&x, &[7; 12], 0.95).is_none());
    }
}
