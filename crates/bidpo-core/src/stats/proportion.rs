//! Intervals of a single proportion.

use super::{Interval, z};
use statrs::function::beta::beta_reg;

/// Wilson's score interval for `k` successes of `n` (Wilson 1927, JASA 22:209; without continuity correction).
pub fn wilson(k: usize, n: usize, level: f64) -> Interval {
    assert!(k <= n && n > 0, "a proportion of {k} of {n}");
    wilson_at(k as f64, n as f64, z(level))
}

/// The same for counts that need not be whole and any quantile `z` in the place of the normal one.
pub(super) fn wilson_at(k: f64, n: f64, z: f64) -> Interval {
    let p = k / n;
    let denominator = 1.0 + z * z / n;
    let centre = (p + z * z / (2.0 * n)) / denominator;
    let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt() / denominator;
    Interval {
        lo: if k == 0.0 { 0.0 } else { (centre - half).max(0.0) },
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

/// Clopper and Pearson's interval for `k` successes of `n`, the inversion of the exact binomial test that doubles the smaller
/// tail (Clopper and Pearson 1934, Biometrika 26:404). It covers at least its level, mostly more.
pub fn clopper_pearson(k: usize, n: usize, level: f64) -> Interval {
    assert!(k <= n && n > 0, "a proportion of {k} of {n}");
    let (kf, rest, tail) = (k as f64, (n - k) as f64, (1.0 - level) / 2.0);
    Interval {
        lo: if k == 0 { 0.0 } else { beta_quantile(kf, rest + 1.0, tail) },
        hi: if k == n { 1.0 } else { beta_quantile(kf + 1.0, rest, 1.0 - tail) },
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

#[cfg(test)]
mod tests {
    use super::super::close;
    use super::*;

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

    /// SciPy 1.17.1: `binomtest(k, n).proportion_ci(method="exact")`.
    #[test]
    fn clopper_pearson_equals_scipy() {
        for (k, n, lo, hi) in [
            (37, 150, 0.18000648527084237, 0.32361002008890766),
            (0, 12, 0.0, 0.26464846939705117),
            (12, 12, 0.7353515306029488, 1.0),
            (5, 9, 0.21200850677859587, 0.863004337734836),
        ] {
            let i = clopper_pearson(k, n, 0.95);
            close(i.lo, lo, 1e-9);
            close(i.hi, hi, 1e-9);
        }
        // One criterion with the sign test.
        for n in 1..40 {
            for k in 0..=n {
                let p = super::super::sign_test(k, n - k);
                assert_eq!(clopper_pearson(k, n, 0.95).contains(0.5), p >= 0.05, "{k} of {n}");
            }
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
}
