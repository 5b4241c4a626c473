//! Resampling.

use super::Interval;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Percentile bootstrap interval of the mean of `x`: the means of `resamples` samples drawn with replacement by `seed`
/// (Efron and Tibshirani 1993, chapter 13; quantiles interpolated linearly).
///
/// # Panics
/// For no values, or fewer than two resamples.
pub fn bootstrap_mean(x: &[f64], level: f64, resamples: usize, seed: u64) -> Interval {
    assert!(!x.is_empty() && resamples > 1, "a bootstrap of {} values, {resamples} times", x.len());
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let n = x.len();
    let means = (0..resamples).map(|_| (0..n).map(|_| x[rng.random_range(0..n)]).sum::<f64>() / n as f64).collect();
    percentiles(means, level)
}

/// The same for a ratio of sums, `sum(numerator) / sum(denominator)`, whose items (pairs) are drawn together: a mean over
/// tokens, say, where each item has its own number of them.
///
/// # Panics
/// For no items, fewer than two resamples, or a denominator that is not positive.
pub fn bootstrap_ratio(items: &[(f64, f64)], level: f64, resamples: usize, seed: u64) -> Interval {
    assert!(!items.is_empty() && resamples > 1, "a bootstrap of {} values, {resamples} times", items.len());
    assert!(items.iter().all(|i| i.1 > 0.0), "a ratio needs positive denominators");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let n = items.len();
    let one = |_| {
        let (mut a, mut b) = (0.0, 0.0);
        for _ in 0..n {
            let (x, y) = items[rng.random_range(0..n)];
            a += x;
            b += y;
        }
        a / b
    };
    percentiles((0..resamples).map(one).collect(), level)
}

/// Posterior probability that the mean of `x` is above 0, by the Bayesian bootstrap: weights from Dirichlet(1, ..., 1),
/// `draws` times by `seed` (Rubin 1981, Annals of Statistics 9:130). A mean of exactly 0 counts half. 1/2 where all of `x`
/// are 0.
///
/// # Panics
/// For no values or no draws.
pub fn bayes_advantage(x: &[f64], draws: usize, seed: u64) -> f64 {
    assert!(!x.is_empty() && draws > 0, "a bootstrap of {} values, {draws} times", x.len());
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut above = 0.0;
    for _ in 0..draws {
        // Exponential weights: Dirichlet up to a positive factor, which the sign does not need.
        let sum: f64 = x.iter().map(|v| -v * (1.0 - rng.random::<f64>()).ln()).sum();
        above += if sum > 0.0 {
            1.0
        } else if sum < 0.0 {
            0.0
        } else {
            0.5
        };
    }
    above / draws as f64
}

/// Randomization test of a mean of paired differences: the two-sided p of |mean| among means with random signs. All sign
/// patterns are enumerated where there are no more of them than `draws`; otherwise `draws` of them are drawn by `seed`, the
/// observed one counted in (Fisher 1935; Phipson and Smyth 2010, Stat. Appl. Genet. Mol. Biol. 9:39).
///
/// # Panics
/// For no draws.
pub fn sign_flip(x: &[f64], draws: usize, seed: u64) -> f64 {
    assert!(draws > 0, "a test without draws");
    let observed = x.iter().sum::<f64>().abs();
    // Rounding must not tell equal sums apart.
    let bar = observed - 1e-12 * x.iter().map(|v| v.abs()).sum::<f64>();
    if let Some(patterns) = u32::try_from(x.len()).ok().and_then(|n| 1usize.checked_shl(n)).filter(|&n| n <= draws) {
        let sum = |pattern: usize| -> f64 {
            x.iter().enumerate().map(|(i, v)| if pattern >> i & 1 == 1 { -v } else { *v }).sum()
        };
        return (0..patterns).filter(|&p| sum(p).abs() >= bar).count() as f64 / patterns as f64;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let extreme = (0..draws)
        .filter(|_| x.iter().map(|v| if rng.random::<bool>() { *v } else { -*v }).sum::<f64>().abs() >= bar)
        .count();
    (extreme + 1) as f64 / (draws + 1) as f64
}

/// The middle `level` of some values.
fn percentiles(mut values: Vec<f64>, level: f64) -> Interval {
    values.sort_by(f64::total_cmp);
    let last = values.len() - 1;
    let quantile = |q: f64| {
        let at = q * last as f64;
        let i = at.floor() as usize;
        let next = values[(i + 1).min(last)];
        values[i] + (at - i as f64) * (next - values[i])
    };
    let tail = (1.0 - level) / 2.0;
    Interval { lo: quantile(tail), hi: quantile(1.0 - tail) }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// SciPy 1.17.1: `bootstrap((a, b), lambda a, b: a.sum() / b.sum(), paired=True, vectorized=False,
    /// n_resamples=100000, method="percentile")` gives (1.2188, 2.2800).
    #[test]
    fn ratio_agrees_with_scipy() {
        let a = [3.0, 10.0, 4.5, 0.5, 7.0, 2.0, 9.0, 1.0];
        let b = [2.0, 4.0, 3.0, 1.0, 5.0, 2.0, 3.0, 1.0];
        let items: Vec<(f64, f64)> = a.into_iter().zip(b).collect();
        let i = bootstrap_ratio(&items, 0.95, 50_000, 3);
        assert!((i.lo - 1.2188).abs() < 0.02 && (i.hi - 2.2800).abs() < 0.02, "{i:?}");
    }

    /// NumPy 2: `(rng.dirichlet(np.ones(6), 1000000) @ x > 0).mean()` gives 0.7072.
    #[test]
    fn bayesian_bootstrap_agrees_with_numpy() {
        let x = [0.4, -0.3, 0.25, 0.1, -0.2, 0.05];
        let p = bayes_advantage(&x, 100_000, 1);
        assert!((p - 0.7072).abs() < 0.006, "{p}");
        assert!((bayes_advantage(&x.map(|v| -v), 100_000, 1) - (1.0 - p)).abs() < 1e-12);
        assert_eq!(bayes_advantage(&[0.0; 4], 100, 0), 0.5);
    }

    /// SciPy 1.17.1: `permutation_test((x, zeros), lambda a, b: np.mean(a - b), permutation_type="samples")`, exact over
    /// all 256 sign patterns, gives 0.0859375.
    #[test]
    fn sign_flips_agree_with_scipy() {
        let x = [0.3, 0.1, -0.05, 0.4, 0.2, -0.1, 0.15, 0.02];
        // 256 patterns are enumerated, and drawn where fewer draws are allowed.
        assert_eq!(sign_flip(&x, 256, 4), 0.0859375);
        let drawn: f64 = (0..400).map(|seed| sign_flip(&x, 255, seed)).sum::<f64>() / 400.0;
        assert!((drawn - 0.0859375).abs() < 0.006 && drawn != 0.0859375, "{drawn}");
        assert_eq!(sign_flip(&[0.0; 5], 100, 0), 1.0);
        // Eight values of one sign: 2 of 256 patterns are as extreme.
        assert_eq!(sign_flip(&[0.1; 8], 10_000, 0), 2.0 / 256.0);
    }
}
