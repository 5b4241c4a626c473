//! Intervals and paired comparisons. All are two-sided; `level` is the confidence level, for example 0.95.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use statrs::function::beta::beta_reg;
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
fn z(level: f64) -> f64 {
    std::f64::consts::SQRT_2 * erfc_inv(1.0 - level)
}

/// Wilson's score interval for `k` successes of `n` (Wilson 1927, JASA 22:209; without continuity correction).
pub fn wilson(k: usize, n: usize, level: f64) -> Interval {
    assert!(k <= n && n > 0, "a proportion of {k} of {n}");
    let (kf, nf, z) = (k as f64, n as f64, z(level));
    let p = kf / nf;
    let denominator = 1.0 + z * z / nf;
    let centre = (p + z * z / (2.0 * nf)) / denominator;
    let half = z * (p * (1.0 - p) / nf + z * z / (4.0 * nf * nf)).sqrt() / denominator;
    Interval {
        lo: if k == 0 { 0.0 } else { (centre - half).max(0.0) },
        hi: if k == n { 1.0 } else { (centre + half).min(1.0) },
    }
}

/// Jeffreys' interval for `k` successes of `n`: the middle of Beta(k + 1/2, n - k + 1/2), its lower end 0 for k = 0 and
/// its upper end 1 for k = n (Brown, Cai, DasGupta 2001, Statistical Science 16:101).
pub fn jeffreys(k: usize, n: usize, level: f64) -> Interval {
    assert!(k <= n && n > 0, "a proportion of {k} of {n}");
    let (a, b, tail) = (k as f64 + 0.5, (n - k) as f64 + 0.5, (1.0 - level) / 2.0);
    Interval {
        lo: if k == 0 { 0.0 } else { beta_quantile(a, b, tail) },
        hi: if k == n { 1.0 } else { beta_quantile(a, b, 1.0 - tail) },
    }
}

/// Quantile `p` of Beta(a, b): the regularised incomplete beta function is monotone, so bisection finds it to the last
/// bits wherever it lies.
fn beta_quantile(a: f64, b: f64, p: f64) -> f64 {
    let (mut lo, mut hi) = (0.0f64, 1.0f64);
    for _ in 0..200 {
        let mid = 0.5 * (lo + hi);
        if mid <= lo || mid >= hi {
            break;
        }
        if beta_reg(a, b, mid) < p { lo = mid } else { hi = mid }
    }
    0.5 * (lo + hi)
}

/// The mean of `x`; NaN for none.
pub fn mean(x: &[f64]) -> f64 {
    x.iter().sum::<f64>() / x.len() as f64
}

/// Percentile bootstrap interval of the mean of `x`: the means of `resamples` samples drawn with replacement by `seed`
/// (Efron and Tibshirani 1993, chapter 13; quantiles interpolated linearly).
pub fn bootstrap_mean(x: &[f64], level: f64, resamples: usize, seed: u64) -> Interval {
    assert!(!x.is_empty() && resamples > 1, "a bootstrap of {} values, {resamples} times", x.len());
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let n = x.len();
    let mut means: Vec<f64> =
        (0..resamples).map(|_| (0..n).map(|_| x[rng.random_range(0..n)]).sum::<f64>() / n as f64).collect();
    means.sort_by(f64::total_cmp);
    let quantile = |q: f64| {
        let at = q * (resamples - 1) as f64;
        let i = at.floor() as usize;
        let next = means[(i + 1).min(resamples - 1)];
        means[i] + (at - i as f64) * (next - means[i])
    };
    let tail = (1.0 - level) / 2.0;
    Interval { lo: quantile(tail), hi: quantile(1.0 - tail) }
}

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

/// Interval of the difference of two paired proportions, (gained - lost) / n: Wald's with one pair added to each discordant
/// cell (Bonett and Price 2012, J. Educ. Behav. Stat. 37:479; recommended by Fagerland et al. 2014, Stat. Med. 33:2850).
pub fn paired_difference(gained: usize, lost: usize, n: usize, level: f64) -> Interval {
    assert!(gained + lost <= n && n > 0, "{gained} gained and {lost} lost of {n}");
    let m = n as f64 + 2.0;
    let (p, q) = ((gained as f64 + 1.0) / m, (lost as f64 + 1.0) / m);
    let d = p - q;
    let half = z(level) * ((p + q - d * d) / m).sqrt();
    Interval { lo: (d - half).max(-1.0), hi: (d + half).min(1.0) }
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
    /// Exact McNemar p ([`mcnemar_exact`]).
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
        p: mcnemar_exact(gained, lost),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64, eps: f64) {
        assert!((a - b).abs() <= eps * b.abs().max(1e-3), "{a} is not {b}");
    }

    /// SciPy 1.17.1: `binomtest(k, n).proportion_ci(method="wilson")`.
    #[test]
    fn wilson_equals_scipy() {
        for (k, n, lo, hi) in [
            (37, 150, 0.18458162955288543, 0.3214032942602734),
            (0, 12, 0.0, 0.24249400665524085),
            (12, 12, 0.7575059933447592, 1.0),
            (5, 9, 0.2666512934954931, 0.8112214789023354),
            (400, 817, 0.4554472333576108, 0.5238423117581732),
        ] {
            let i = wilson(k, n, 0.95);
            close(i.lo, lo, 1e-10);
            close(i.hi, hi, 1e-10);
        }
    }

    /// SciPy 1.17.1: `beta.ppf([0.025, 0.975], k + 0.5, n - k + 0.5)`; the ends at k = 0 and k = n by definition.
    #[test]
    fn jeffreys_equals_scipy() {
        for (k, n, lo, hi) in [
            (37, 150, 0.18296574688298856, 0.3200351037849776),
            (0, 12, 0.0, 0.18530593831248504),
            (12, 12, 0.8146940616875149, 1.0),
            (5, 9, 0.25409386787461596, 0.8270322433271518),
            (400, 817, 0.45540575638104, 0.5238599783199914),
        ] {
            let i = jeffreys(k, n, 0.95);
            close(i.lo, lo, 1e-9);
            close(i.hi, hi, 1e-9);
        }
    }

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

    /// The formula of Bonett and Price evaluated with NumPy and `scipy.stats.norm.ppf(0.975)` (SciPy 1.17.1); the first
    /// row is the example of Fagerland et al. 2014 (airway hyper-responsiveness, 1 and 7 discordant of 21).
    #[test]
    fn paired_difference_values() {
        for (b, c, n, lo, hi) in [
            (1, 7, 21, -0.5083593066664394, -0.013379823768343235),
            (0, 0, 100, -0.027174584791170155, 0.027174584791170155),
            (12, 5, 150, -0.009674335242677141, 0.10177959840057188),
        ] {
            let i = paired_difference(b, c, n, 0.95);
            close(i.lo, lo, 1e-9);
            close(i.hi, hi, 1e-9);
        }
    }

    /// SciPy 1.17.1: `bootstrap((x,), np.mean, n_resamples=100000, method="percentile")` gives (0.2717, 0.5708) for three
    /// seeds, the last digit moving by 8.
    #[test]
    fn bootstrap_agrees_with_scipy() {
        let x = [0.12, 0.5, 0.33, 0.91, 0.07, 0.66, 0.48, 0.25, 0.73, 0.02, 0.58, 0.39];
        let i = bootstrap_mean(&x, 0.95, 50_000, 7);
        assert!((i.lo - 0.2717).abs() < 0.004 && (i.hi - 0.5708).abs() < 0.004, "{i:?}");
        assert_eq!(i, bootstrap_mean(&x, 0.95, 50_000, 7));
        assert_ne!(i, bootstrap_mean(&x, 0.95, 50_000, 8));
        assert_eq!(bootstrap_mean(&[0.25; 5], 0.95, 100, 0), Interval { lo: 0.25, hi: 0.25 });
    }

    #[test]
    fn comparison_counts() {
        let first = [true, true, false, false, false];
        let second = [true, false, true, true, false];
        let c = compare_proportions(&first, &second, 0.95).unwrap();
        assert_eq!((c.n, c.gained, c.lost), (5, 2, 1));
        close(c.difference, 0.2, 1e-12);
        assert_eq!(c.p, 1.0);
        assert!(compare_proportions(&[], &[], 0.95).is_none());
    }
}
