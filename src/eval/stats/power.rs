//! What a number of items could have shown: the smallest true difference that a two-sided test at 5 % finds in 80 % of
//! all runs.

use super::z;

/// Two-sided error of the test.
const ALPHA: f64 = 0.05;
/// `Phi^-1(0.8)`: the two-sided quantile of level 0.6.
fn z_power() -> f64 {
    z(0.6)
}

/// Smallest detectable difference of two paired proportions on `n` items of which a share `discordant` changes: solves
/// `d sqrt(n) = z_{1 - alpha/2} sqrt(psi) + z_{power} sqrt(psi - d^2)` (Connor 1987, Biometrics 43:207, McNemar's test) for
/// d. At most `discordant`: there is no larger difference among so few changes.
pub fn detectable_proportion(n: usize, discordant: f64) -> f64 {
    let psi = discordant.clamp(0.0, 1.0);
    let root_n = (n as f64).sqrt();
    // The right side falls with d, the left side rises.
    let short = |d: f64| d * root_n < z(1.0 - ALPHA) * psi.sqrt() + z_power() * (psi - d * d).max(0.0).sqrt();
    if short(psi) {
        return psi;
    }
    let (mut lo, mut hi) = (0.0, psi);
    for _ in 0..100 {
        let mid = 0.5 * (lo + hi);
        if short(mid) { lo = mid } else { hi = mid }
    }
    0.5 * (lo + hi)
}

/// Smallest detectable mean of `n` differences with standard deviation `sd`: `(z_{1 - alpha/2} + z_{power}) sd / sqrt(n)`.
pub fn detectable_mean(n: usize, sd: f64) -> f64 {
    (z(1.0 - ALPHA) + z_power()) * sd / (n as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::super::close;
    use super::*;

    /// SciPy 1.17.1: `brentq(lambda d: d*sqrt(n) - norm.ppf(.975)*sqrt(psi) - norm.ppf(.8)*sqrt(psi-d*d), 0, psi)`, and
    /// `(norm.ppf(.975) + norm.ppf(.8)) * sd / sqrt(n)`.
    #[test]
    fn detectable_differences_equal_scipy() {
        for (n, psi, d) in
            [(278, 0.1, 0.05291007652148047), (817, 0.25, 0.04893684583041727), (100, 0.3, 0.1516470912146709)]
        {
            close(detectable_proportion(n, psi), d, 1e-9);
        }
        close(detectable_mean(278, 0.21), 0.035285862225073766, 1e-9);
        // Two changed items of a hundred: not even both in one direction would be found.
        assert_eq!(detectable_proportion(100, 0.02), 0.02);
    }
}
