//! What reports print is what happens: coverage of every interval, false claims in a null world, printed power. The quick
//! versions run in the normal suite; `cargo test --release --test coverage -- --ignored` runs the simulation of
//! docs/evaluation.md against its limits.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

#[allow(dead_code)]
#[path = "../examples/coverage/simulation.rs"]
mod simulation;

use simulation::{Cell, Power, coverage, false_claims, power};

/// Limits of a cell's coverage, percent. docs/evaluation.md says why the exceptions are some.
fn limits(cell: &Cell) -> (f64, f64) {
    let few_can_change = cell.what.contains("paired difference");
    let skewed = cell.what.contains("log-normal") || cell.what.contains("logit shifted");
    let few_categories = cell.what.contains("proportion in categories");
    match cell.n {
        8 | 20 if few_can_change => (93.5, 100.0),
        8 | 20 if few_categories => (92.5, 97.5),
        8 if skewed => (91.5, 96.5),
        20 if skewed => (92.5, 96.5),
        _ => (93.5, 96.5),
    }
}

/// Three standard errors of a simulated share near `percent`.
fn noise(percent: f64, replicates: usize) -> f64 {
    let p = (percent / 100.0).clamp(0.02, 0.98);
    300.0 * (p * (1.0 - p) / replicates as f64).sqrt()
}

fn check(coverage: &[Cell], claims: &[Cell], power: &[Power], replicates: usize, runs: usize) {
    for cell in coverage {
        let ((lo, hi), noise) = (limits(cell), noise(95.0, replicates));
        assert!((lo - noise..=hi + noise).contains(&cell.percent), "{cell:?}: limits {lo} to {hi}");
    }
    for cell in claims {
        assert!(cell.percent <= 6.0 + noise(6.0, runs), "{cell:?}: at most 6 % of summaries may hold a false claim");
    }
    for p in power {
        let noise = noise(80.0, replicates);
        // With 50 items the formula's normal approximation is rough, towards a power that is too small.
        let above = if p.n == 50 { 9.0 } else { 5.0 };
        assert!((75.0 - noise..=80.0 + above + noise).contains(&p.found), "{p:?}: printed is 80 %");
        assert!((p.five_points_found - p.five_points).abs() <= 5.0 + noise, "{p:?}");
    }
}

#[test]
fn a_few_replicates_stay_within_the_limits() {
    let (replicates, runs) = (300, 60);
    let claims: Vec<Cell> = false_claims(runs, 1);
    check(&coverage(replicates, 1), &claims, &power(replicates, 1), replicates, runs);
}

#[test]
#[ignore = "minutes: the whole simulation of docs/evaluation.md"]
fn the_whole_simulation_stays_within_the_limits() {
    let (replicates, runs) = (10_000, 2_000);
    check(&coverage(replicates, 0), &false_claims(runs, 0), &power(replicates, 0), replicates, runs);
}
