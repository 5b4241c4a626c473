//! Two conditions on the same items, each item right or wrong.

use super::{Interval, normal_two_sided, z};
use statrs::function::beta::{beta_reg, ln_beta};

/// Exact McNemar test: the two-sided binomial p of `gained` against `lost` discordant pairs under probability 1/2
/// (McNemar 1947; the exact conditional test). 1 where there are none.
pub fn mcnemar_exact(gained: usize, lost: usize) -> f64 {
    let n = gained + lost;
    let k = gained.min(lost);
    if 2 * k == n {
        return 1.0;
    }
    // P(X <= k) for X ~ Binomial(n, 1/2).
    (2.0 * beta_reg((n - k) as f64, k as f64 + 1.0, 0.5)).min(1.0)
}

/// Sign test: the two-sided exact binomial p of `wins` against `losses`; ties are left out (Dixon and Mood 1946, JASA
/// 41:557). The same figure as the exact McNemar test, under the name that goes with values instead of rights.
pub fn sign_test(wins: usize, losses: usize) -> f64 {
    mcnemar_exact(wins, losses)
}

/// Posterior probability that the second condition is the better one: that a discordant item is more often gained than
/// lost, P(theta > 1/2) for `gained` of `gained + lost` under Jeffreys' prior Beta(1/2, 1/2). 1/2 where nothing is
/// discordant.
pub fn posterior_advantage(gained: usize, lost: usize) -> f64 {
    // 1 - I_{1/2}(a, b) = I_{1/2}(b, a)
    beta_reg(lost as f64 + 0.5, gained as f64 + 0.5, 0.5)
}

/// Density at `theta` (0 to 1, both left out) of that posterior, Beta(gained + 1/2, lost + 1/2).
pub fn posterior_density(gained: usize, lost: usize, theta: f64) -> f64 {
    let (a, b) = (gained as f64 + 0.5, lost as f64 + 0.5);
    ((a - 1.0) * theta.ln() + (b - 1.0) * (-theta).ln_1p() - ln_beta(a, b)).exp()
}

/// McNemar's score test without continuity correction: the two-sided normal p of `(gained - lost) / sqrt(gained + lost)`
/// (McNemar 1947, Psychometrika 12:153). 1 where nothing is discordant. [`paired_difference`] is its inversion: the interval
/// excludes 0 exactly where p is below 1 - level. Its size, averaged over the number of discordant pairs, stays near the
/// nominal one, where the exact conditional test's is far below (Fagerland et al. 2013, BMC Med. Res. Methodol. 13:91).
pub fn mcnemar_score(gained: usize, lost: usize) -> f64 {
    if gained + lost == 0 {
        return 1.0;
    }
    normal_two_sided((gained as f64 - lost as f64) / ((gained + lost) as f64).sqrt())
}

/// Score interval of the difference of two paired proportions, (gained - lost) / n (Tango 1998, Stat. Med. 17:891): the
/// differences that the score test does not reject.
///
/// # Panics
/// For more discordant pairs than pairs, or no pairs.
pub fn paired_difference(gained: usize, lost: usize, n: usize, level: f64) -> Interval {
    assert!(gained + lost <= n && n > 0, "{gained} gained and {lost} lost of {n}");
    score_interval(gained as f64, lost as f64, n as f64, z(level))
}

/// The same for counts that need not be whole and any quantile `z` in the place of the normal one.
pub(super) fn score_interval(b: f64, c: f64, n: f64, z: f64) -> Interval {
    // The statistic at a difference d, squared against z^2: the variance uses the maximum likelihood estimate q of the
    // probability of a loss under d, the larger root of 2 n q^2 + ((2 n - b + c) d - b - c) q - c d (1 - d).
    let rejects = |d: f64| {
        let linear = (2.0 * n - b + c) * d - b - c;
        let q = ((linear * linear + 8.0 * n * c * d * (1.0 - d)).max(0.0).sqrt() - linear) / (4.0 * n);
        let variance = n * (2.0 * q + d * (1.0 - d)).max(0.0);
        (b - c - n * d).powi(2) > z * z * variance
    };
    let estimate = (b - c) / n;
    // From the estimate outwards the test rejects from one point on.
    let end = |outer: f64| {
        if !rejects(outer) {
            return outer;
        }
        let (mut inside, mut outside) = (estimate, outer);
        for _ in 0..100 {
            let middle = 0.5 * (inside + outside);
            if rejects(middle) { outside = middle } else { inside = middle }
        }
        inside
    };
    Interval { lo: end(-1.0), hi: end(1.0) }
}

/// Two conditions on the same items, each right or wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairedProportions {
    /// Items.
    pub n: usize,
    /// Right under the second condition only.
    pub gained: usize,
    /// Right under the first condition only.
    pub lost: usize,
    /// Second minus first, as a fraction.
    pub difference: f64,
    /// Its interval ([`paired_difference`]).
    pub interval: Interval,
    /// McNemar's score test ([`mcnemar_score`]), of which the interval is the inversion.
    pub p: f64,
}

/// Compares two conditions item by item; `None` for no items.
///
/// # Panics
/// If the two lists differ in length.
pub fn compare_proportions(first: &[bool], second: &[bool], level: f64) -> Option<PairedProportions> {
    assert_eq!(first.len(), second.len(), "a paired comparison needs the same items");
    let n = first.len();
    let gained = first.iter().zip(second).filter(|&(&a, &b)| !a && b).count();
    let lost = first.iter().zip(second).filter(|&(&a, &b)| a && !b).count();
    (n > 0).then(|| PairedProportions {
        n,
        gained,
        lost,
        difference: (gained as f64 - lost as f64) / n as f64,
        interval: paired_difference(gained, lost, n, level),
        p: mcnemar_score(gained, lost),
    })
}

#[cfg(test)]
mod tests {
    use super::super::close;
    use super::*;

    /// SciPy 1.17.1: `binomtest(min(b, c), b + c, 0.5).pvalue`.
    #[test]
    fn mcnemar_equals_scipy() {
        for (b, c, p) in [
            (5, 3, 0.7265625),
            (0, 0, 1.0),
            (4, 4, 1.0),
            (10, 2, 0.03857421875),
            (0, 7, 0.015625),
            (61, 40, 0.046044066929342785),
        ] {
            close(mcnemar_exact(b, c), p, 1e-10);
            close(mcnemar_exact(c, b), p, 1e-10);
        }
    }

    /// SciPy 1.17.1: `brentq` on the score statistic, its nuisance parameter found by `minimize_scalar` on the trinomial
    /// log-likelihood. The first row is the example of Fagerland et al. 2014 (airway hyper-responsiveness), who print
    /// [-0.517, -0.026].
    #[test]
    fn paired_difference_equals_scipy() {
        for (b, c, n, lo, hi) in [
            (1, 7, 21, -0.5172322764213774, -0.026003032480868504),
            (0, 0, 100, -0.0369934982, 0.0369934982),
            (12, 5, 150, -0.007971557082974787, 0.10666562063875908),
            (4, 0, 50, 0.0029445929359725818, 0.18838246918352528),
            (20, 9, 278, 0.0017037674771289485, 0.08054517943164091),
            (30, 10, 40, 0.1961207736323547, 0.7162576264952778),
        ] {
            for (b, c, lo, hi) in [(b, c, lo, hi), (c, b, -hi, -lo)] {
                let i = paired_difference(b, c, n, 0.95);
                close(i.lo, lo, 1e-7);
                close(i.hi, hi, 1e-7);
            }
        }
        assert_eq!(paired_difference(8, 0, 8, 0.95).hi, 1.0);
    }

    /// statsmodels 0.15.0: `mcnemar([[0, b], [c, 0]], exact=False, correction=False).pvalue`.
    #[test]
    fn score_test_equals_statsmodels() {
        for (b, c, p) in [
            (5, 3, 0.47950012218695337),
            (10, 2, 0.020921335337794035),
            (0, 7, 0.008150971593502705),
            (61, 40, 0.03665571555141613),
            (20, 9, 0.04108722452782139),
        ] {
            close(mcnemar_score(b, c), p, 1e-9);
            close(mcnemar_score(c, b), p, 1e-9);
        }
        assert_eq!(mcnemar_score(0, 0), 1.0);
    }

    /// The interval excludes 0 exactly where p is below 0.05, on every table of some sizes.
    #[test]
    fn interval_and_test_are_one_criterion() {
        for n in [8, 21, 60] {
            for b in 0..=n {
                for c in 0..=n - b {
                    let excludes = !paired_difference(b, c, n, 0.95).contains(0.0);
                    assert_eq!(excludes, mcnemar_score(b, c) < 0.05, "{b} and {c} of {n}");
                }
            }
        }
    }

    /// SciPy 1.17.1: `beta.sf(0.5, g + 0.5, l + 0.5)` and `beta.pdf(t, g + 0.5, l + 0.5)`.
    #[test]
    fn posterior_equals_scipy() {
        for (g, l, p) in [
            (5, 3, 0.758689939247779),
            (0, 0, 0.5),
            (12, 2, 0.9973912849822398),
            (0, 7, 0.0015017735386984319),
            (61, 40, 0.9819348508511719),
        ] {
            close(posterior_advantage(g, l), p, 1e-10);
            close(posterior_advantage(l, g), 1.0 - p, 1e-10);
        }
        for (g, l, t, d) in
            [(5, 3, 0.6, 2.354605496785163), (0, 7, 0.01, 14.23480598678847), (61, 40, 0.5, 0.8914925030952174)]
        {
            close(posterior_density(g, l, t), d, 1e-10);
        }
    }

    #[test]
    fn comparison_counts() {
        let first = [true, true, false, false, false];
        let second = [true, false, true, true, false];
        let c = compare_proportions(&first, &second, 0.95).unwrap();
        assert_eq!((c.n, c.gained, c.lost), (5, 2, 1));
        close(c.difference, 0.2, 1e-12);
        assert_eq!(c.p, mcnemar_score(2, 1));
        assert!(compare_proportions(&[], &[], 0.95).is_none());
    }
}
