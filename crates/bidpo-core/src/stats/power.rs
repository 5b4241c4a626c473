//! Minimum detectable difference: the smallest true difference that a two-sided test finds in 80 % of all runs; and the
//! power at a given difference.

use super::{t_quantile, z};
use statrs::function::erf::erfc;

/// Power that a minimum detectable difference is stated for.
const POWER: f64 = 0.8;

/// Smallest detectable difference of two paired proportions on `n` items (which need not be whole, where items are alike)
/// by a two-sided test at `alpha`. `seen` is the fraction of items that change without it: the difference comes on top of
/// these, so the fraction of discordant items is `psi = seen + d`. Solves
/// `d sqrt(n) = z_{1 - alpha/2} sqrt(psi) + z_{power} sqrt(psi - d^2)` (Connor 1987, Biometrics 43:207, McNemar's test) for
/// d. Infinite where no difference would be found.
pub fn detectable_proportion(n: f64, seen: f64, alpha: f64) -> f64 {
    let seen = seen.clamp(0.0, 1.0);
    let z_power = z(2.0 * POWER - 1.0);
    let short = |d: f64| {
        let psi = seen + d;
        d * n.sqrt() < z(1.0 - alpha) * psi.sqrt() + z_power * (psi - d * d).max(0.0).sqrt()
    };
    let (mut lo, mut hi) = (0.0, 1.0 - seen);
    if short(hi) {
        return f64::INFINITY;
    }
    for _ in 0..100 {
        let mid = 0.5 * (lo + hi);
        if short(mid) { lo = mid } else { hi = mid }
    }
    0.5 * (lo + hi)
}

/// Power of the same test at a difference `d`, with `psi` the fraction of discordant items, `d` included:
/// `Phi((d sqrt(n) - z_{1 - alpha/2} sqrt(psi)) / sqrt(psi - d^2))`.
pub fn power_proportion(n: f64, psi: f64, d: f64, alpha: f64) -> f64 {
    let statistic = (d.abs() * n.sqrt() - z(1.0 - alpha) * psi.sqrt()) / (psi - d * d).sqrt();
    0.5 * erfc(-statistic / std::f64::consts::SQRT_2)
}

/// Smallest detectable mean where the mean's standard error is known on `df` degrees of freedom:
/// `(t_{1 - alpha/2} + t_{power}) standard_error`.
pub fn detectable_mean(standard_error: f64, df: f64, alpha: f64) -> f64 {
    (t_quantile(1.0 - alpha / 2.0, df) + t_quantile(POWER, df)) * standard_error
}

#[cfg(test)]
mod tests {
    use super::super::close;
    use super::*;

    /// SciPy 1.17.1: `brentq(lambda d: d*sqrt(n) - norm.ppf(1-alpha/2)*sqrt(psi+d) - norm.ppf(.8)*sqrt(psi+d-d*d), 0,
    /// 1-psi)`, `norm.cdf` of the statistic, and `(t.ppf(.975, n-1) + t.ppf(.8, n-1)) * sd / sqrt(n)`.
    #[test]
    fn detectable_differences_equal_scipy() {
        for (n, seen, alpha, d) in [
            (278.0, 0.1, 0.05, 0.06872765480395625),
            (817.0, 0.25, 0.05, 0.05396030631657403),
            (100.0, 0.3, 0.05, 0.19474379843958406),
            (150.0, 0.04, 0.05, 0.07794280582645834),
            (150.0, 0.0, 0.05, 0.05150870320178658),
            (278.0, 0.1, 0.01, 0.08853712519864414),
        ] {
            close(detectable_proportion(n, seen, alpha), d, 1e-9);
            close(power_proportion(n, seen + d, d, alpha), 0.8, 1e-9);
        }
        close(power_proportion(278.0, 0.15, 0.05, 0.05), 0.5769820892353844, 1e-9);
        close(detectable_mean(0.1, 7.0, 0.05), 0.1 * (2.364624251592784 + 0.8960296443137653), 1e-9);
        assert_eq!(detectable_proportion(3.0, 0.4, 0.05), f64::INFINITY);
    }
}
