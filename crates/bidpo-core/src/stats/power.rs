//! Minimum detectable difference: the smallest true difference that a two-sided test at 5 % finds in 80 % of
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
/// d. Where so few changes cannot make a difference that would be found, even all in one direction, the smallest one needs
/// more of them: it is that of `psi = d`, as few changes as a difference can have. Infinite for so few items that no
/// difference would be found.
pub fn detectable_proportion(n: usize, discordant: f64) -> f64 {
    let psi = discordant.clamp(0.0, 1.0);
    let root_n = (n as f64).sqrt();
    // The right side falls with d, the left side rises.
    let short = |d: f64, psi: f64| d * root_n < z(1.0 - ALPHA) * psi.sqrt() + z_power() * (psi - d * d).max(0.0).sqrt();
    if !short(psi, psi) {
        return root(0.0, psi, |d| short(d, psi));
    }
    if short(1.0, 1.0) {
        return f64::INFINITY;
    }
    root(psi, 1.0, |d| short(d, d))
}

/// Point at which `below` changes from true to false.
fn root(mut lo: f64, mut hi: f64, below: impl Fn(f64) -> bool) -> f64 {
    for _ in 0..100 {
        let mid = 0.5 * (lo + hi);
        if below(mid) { lo = mid } else { hi = mid }
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
        // Changes that would not be found even all in one direction: the root of the same equation with psi = d
        // (bisection in Python with `statistics.NormalDist().inv_cdf`).
        for (n, d) in [(40, 0.18493135050770038), (60, 0.1257565734082015), (150, 0.05150870320178656)] {
            // None changed, one is added on each side.
            close(detectable_proportion(n, 2.0 / (n + 2) as f64), d, 1e-9);
        }
        close(detectable_proportion(100, 0.02), 0.07665613424623571, 1e-9);
        // Without a jump where the one becomes the other.
        close(detectable_proportion(100, 0.0766), detectable_proportion(100, 0.0767), 1e-3);
        assert_eq!(detectable_proportion(3, 0.4), f64::INFINITY);
    }
}
