//! Simulations of what the reports print: how often intervals cover, how often summaries claim what is not there, and how
//! often a difference of the printed size is found. No model is run.

use bidpo_core::eval::analysis::{Analysis, analyse, compare, estimate};
use bidpo_core::eval::measures::{Kind, Measure};
use bidpo_core::eval::results::Run;
use bidpo_core::stats;
use bidpo_core::text::Table;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

/// Numbers of items that coverage is simulated for.
pub const SIZES: [usize; 6] = [8, 20, 50, 150, 278, 817];
const LEVEL: f64 = 0.95;
const RIGHT: Measure = Measure { kind: Kind::Mc1, per_token: false };
/// Sizes of TruthfulQA's 37 categories.
const CATEGORIES: [usize; 37] = [
    3, 5, 6, 6, 8, 8, 9, 9, 9, 10, 10, 11, 13, 14, 14, 14, 15, 16, 16, 17, 18, 18, 19, 21, 21, 22, 23, 24, 24, 26, 26,
    30, 31, 55, 55, 64, 100,
];

/// One simulated frequency of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// What was simulated.
    pub what: String,
    /// Number of items.
    pub n: usize,
    /// The frequency, in percent.
    pub percent: f64,
}

/// A standard normal number (Box and Muller).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
    (-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()
}

fn share(n: usize, mut one: impl FnMut() -> bool) -> f64 {
    100.0 * (0..n).filter(|_| one()).count() as f64 / n as f64
}

/// Something that intervals are made of, with the true value.
struct Source {
    name: &'static str,
    /// Draws `n` items' values and says whether the printed interval covers the truth.
    covers: fn(&mut ChaCha8Rng, usize) -> bool,
}

/// Coverage of every printed kind of interval.
pub fn coverage(replicates: usize, seed: u64) -> Vec<Cell> {
    let sources = [
        Source { name: "proportion, p uniform in 0.03 to 0.97 (Wilson)", covers: proportion },
        Source {
            name: "paired difference, psi uniform in 0.05 to 0.4, d uniform in 0 to psi / 2 (Tango)",
            covers: paired,
        },
        Source { name: "mean of normal values (Student)", covers: |r, n| mean(r, n, normal, 0.0) },
        Source { name: "mean mass, U-shaped like MC2 (Student)", covers: |r, n| mean(r, n, mass, MASS_MEAN) },
        Source {
            name: "difference of masses, logit shifted by 0.5 (Student)",
            covers: |r, n| mean(r, n, mass_change, MASS_CHANGE),
        },
        Source {
            name: "mean of log-normal values, sigma 0.5 (Student)",
            covers: |r, n| mean(r, n, log_normal, LOG_NORMAL),
        },
        Source { name: "proportion in categories, sd of their rates 0 (clusters)", covers: |r, n| level(r, n, 0.0) },
        Source {
            name: "proportion in categories, sd of their rates 0.18 (clusters)",
            covers: |r, n| level(r, n, 0.18),
        },
        Source { name: "paired difference in categories, sd of theirs 0 (clusters)", covers: |r, n| change(r, n, 0.0) },
        Source {
            name: "paired difference in categories, sd of theirs 0.06 (clusters)",
            covers: |r, n| change(r, n, 0.06),
        },
    ];
    let mut out = Vec::new();
    for (i, source) in sources.iter().enumerate() {
        for n in SIZES {
            let mut rng = ChaCha8Rng::seed_from_u64(seed ^ ((i as u64) << 32 | n as u64));
            let percent = share(replicates, || (source.covers)(&mut rng, n));
            out.push(Cell { what: source.name.to_owned(), n, percent });
        }
    }
    out
}

fn proportion(rng: &mut ChaCha8Rng, n: usize) -> bool {
    let p = rng.random_range(0.03..0.97);
    let parts: Vec<(f64, f64)> = (0..n).map(|_| (f64::from(u8::from(rng.random_bool(p))), 1.0)).collect();
    estimate(RIGHT, &parts, &vec![None; n]).interval.contains(p)
}

/// Numbers of gained and lost items.
fn changes(rng: &mut ChaCha8Rng, n: usize, psi: f64, d: f64) -> (usize, usize) {
    let (mut gained, mut lost) = (0, 0);
    for _ in 0..n {
        let u: f64 = rng.random();
        gained += usize::from(u < (psi + d) / 2.0);
        lost += usize::from((psi + d) / 2.0 <= u && u < psi);
    }
    (gained, lost)
}

fn paired(rng: &mut ChaCha8Rng, n: usize) -> bool {
    let psi = rng.random_range(0.05..0.4);
    let d = rng.random_range(0.0..psi / 2.0);
    let (gained, lost) = changes(rng, n, psi, d);
    stats::paired_difference(gained, lost, n, LEVEL).contains(d)
}

fn mean(rng: &mut ChaCha8Rng, n: usize, draw: fn(&mut ChaCha8Rng) -> f64, truth: f64) -> bool {
    let x: Vec<f64> = (0..n).map(|_| draw(rng)).collect();
    stats::student_mean(&x, LEVEL).is_some_and(|m| m.interval.contains(truth))
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// A mass whose logit has a standard deviation of 3, as MC2 on TruthfulQA: most items are near 0 or 1.
fn mass(rng: &mut ChaCha8Rng) -> f64 {
    sigmoid(3.0 * normal(rng))
}
const MASS_MEAN: f64 = 0.5;

/// Change of a mass if its logit is shifted by 0.5, with noise of standard deviation 1.
fn mass_change(rng: &mut ChaCha8Rng) -> f64 {
    let logit = 3.0 * normal(rng);
    sigmoid(logit + 0.5 + normal(rng)) - sigmoid(logit)
}
/// `E sigmoid(0.5 + sqrt(10) z) - 1/2`, by numerical integration.
const MASS_CHANGE: f64 = 0.05496980682039476;

fn log_normal(rng: &mut ChaCha8Rng) -> f64 {
    (0.5 * normal(rng)).exp()
}
/// `exp(0.5^2 / 2)`.
const LOG_NORMAL: f64 = 1.133_148_453_066_826_3;

/// A category for each of `n` items: TruthfulQA's questions without replacement (with, beyond their number).
fn categories(rng: &mut ChaCha8Rng, n: usize) -> Vec<usize> {
    let mut all: Vec<usize> = CATEGORIES.iter().enumerate().flat_map(|(c, &size)| vec![c; size]).collect();
    let first = all.len();
    while all.len() < n {
        all.push(all[rng.random_range(0..first)]);
    }
    for i in 0..n {
        let j = rng.random_range(i..all.len());
        all.swap(i, j);
    }
    all.truncate(n);
    all
}

fn names() -> Vec<String> {
    (0..CATEGORIES.len()).map(|c| format!("c{c:02}")).collect()
}

/// A proportion of 0.4 whose categories' rates have standard deviation `sd`.
fn level(rng: &mut ChaCha8Rng, n: usize, sd: f64) -> bool {
    // Two values, so that the mean over categories is known exactly.
    let rates: Vec<f64> = (0..CATEGORIES.len()).map(|_| 0.4 + if rng.random() { sd } else { -sd }).collect();
    let of = categories(rng, n);
    let parts: Vec<(f64, f64)> = of.iter().map(|&c| (f64::from(u8::from(rng.random_bool(rates[c]))), 1.0)).collect();
    let names = names();
    let labels: Vec<Option<&str>> = of.iter().map(|&c| Some(names[c].as_str())).collect();
    estimate(RIGHT, &parts, &labels).interval.contains(0.4)
}

/// A difference of 5 points with 20 % changed items, whose categories' differences have standard deviation `sd`.
fn change(rng: &mut ChaCha8Rng, n: usize, sd: f64) -> bool {
    let d: Vec<f64> = (0..CATEGORIES.len()).map(|_| 0.05 + if rng.random() { sd } else { -sd }).collect();
    let of = categories(rng, n);
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for &c in &of {
        let (gained, lost) = changes(rng, 1, 0.2, d[c]);
        // Of unchanged items both are right.
        first.push((1.0 - gained as f64, 1.0));
        second.push((1.0 - lost as f64, 1.0));
    }
    let names = names();
    let labels: Vec<Option<&str>> = of.iter().map(|&c| Some(names[c].as_str())).collect();
    compare(RIGHT, &first, &second, &labels).interval.contains(0.05)
}

/// Other conditions of a null world, as their kinds stand in results files.
fn others(n: usize) -> Vec<serde_json::Value> {
    let all = [
        json!({"kind": "flipped"}),
        json!({"kind": "system", "system": "Be right."}),
        json!({"kind": "caa", "training_items": 256}),
        json!({"kind": "shots", "shots": 1, "shot_items": [0]}),
        json!({"kind": "other vector", "file": "a", "sha256": "a", "scale": null, "length": "the steered vector's"}),
        json!({"kind": "other vector", "file": "b", "sha256": "b", "scale": null, "length": "the steered vector's"}),
        json!({"kind": "hidden"}),
        json!({"kind": "hidden-steered"}),
        json!({"kind": "swapped", "seed": 0}),
        json!({"kind": "swapped-steered", "seed": 0}),
    ];
    let random = (0..10).map(|seed| json!({"kind": "random", "seed": seed}));
    all.into_iter().chain(random).take(n).collect()
}

/// A run in which every condition changes items at random: a fraction `psi` of them, as many for the better as for the
/// worse.
fn null_run(rng: &mut ChaCha8Rng, n: usize, psi: f64, n_others: usize) -> Run {
    const RATE: f64 = 0.4;
    let truth: Vec<bool> = (0..n).map(|_| rng.random_bool(RATE)).collect();
    let mut conditions =
        vec![json!({"name": "unsteered", "kind": "unsteered"}), json!({"name": "steered", "kind": "steered"})];
    for (i, mut condition) in others(n_others).into_iter().enumerate() {
        condition["name"] = format!("other {i}").into();
        conditions.push(condition);
    }
    let manifest = json!({
        "bidpo_results": 1, "bidpo": "0", "llama_cpp": "0", "benchmark": "truthfulqa", "protocol": "mc1",
        "model": {"file": "m", "sha256": "x", "name": "m", "architecture": "llama", "quantization": "Q4_1"},
        "data": [], "prompt": null, "selection": null, "items": n, "seed": 0, "threads": 1, "conditions": conditions,
        "shard": "1/1",
    });
    let manifest = serde_json::from_value(manifest).expect("a manifest as this version writes it");
    let mut records = Vec::new();
    for (c, condition) in conditions.iter().enumerate() {
        let name = condition["name"].as_str().unwrap_or_default();
        for (item, &before) in truth.iter().enumerate() {
            // A changed item is drawn anew: it differs with probability 2 RATE (1 - RATE).
            let drawn = c > 0 && rng.random_bool(psi / (2.0 * RATE * (1.0 - RATE)));
            let right = if drawn { rng.random_bool(RATE) } else { before };
            let record = json!({
                "item": item, "index": item, "condition": name, "question": "", "answers": [
                    {"text": "a", "mc1": true}, {"text": "b", "mc1": false}],
                "views": [{"logprobs": if right { [-1.0, -2.0] } else { [-2.0, -1.0] }, "n_tokens": [1, 1]}],
            });
            records.push(serde_json::from_value(record).expect("a record as this version writes it"));
        }
    }
    Run::new(&manifest, records, Vec::new()).expect("all items are there")
}

fn analysis(run: &Run) -> Analysis {
    analyse(run).expect("records with all that the measure needs")
}

/// Share of summaries that claim anything where every difference is 0. The conditions: 3 or 6 others, and 20 (with the
/// questions hidden and swapped, and ten random vectors).
pub fn false_claims(replicates: usize, seed: u64) -> Vec<Cell> {
    let mut out = Vec::new();
    for n_others in [3, 6, 20] {
        for (n, psi) in [(50, 0.1), (150, 0.05), (150, 0.16), (278, 0.16), (817, 0.1)] {
            let mut rng = ChaCha8Rng::seed_from_u64(seed ^ (n_others * 10_000 + n) as u64);
            let percent = share(replicates, || !analysis(&null_run(&mut rng, n, psi, n_others)).claims().is_empty());
            out.push(Cell {
                what: format!("{n_others} other conditions, {:.0} % changed items", 100.0 * psi),
                n,
                percent,
            });
        }
    }
    out
}

/// Printed power against found differences.
#[derive(Debug, Clone, PartialEq)]
pub struct Power {
    /// Number of items.
    pub n: usize,
    /// Fraction of items that change without any difference.
    pub churn: f64,
    /// Mean minimum detectable difference that a null run prints; infinite ones are left out.
    pub printed: f64,
    /// How often a difference of that size on top of the churn is found, in percent; 80 is printed.
    pub found: f64,
    /// Power at 5 points by the formula, in percent.
    pub five_points: f64,
    /// How often 5 points on top of the churn are found, in percent.
    pub five_points_found: f64,
}

/// Power for several numbers of items and fractions of changed items.
pub fn power(replicates: usize, seed: u64) -> Vec<Power> {
    let mut out = Vec::new();
    for n in [50, 150, 278, 817] {
        for churn in [0.02, 0.04, 0.08, 0.16, 0.3] {
            let mut rng = ChaCha8Rng::seed_from_u64(seed ^ (n as u64) << 8 ^ (churn * 1000.0) as u64);
            let mut printed = Vec::new();
            let is_found = |rng: &mut ChaCha8Rng, d: f64| {
                let (gained, lost) = changes(rng, n, (churn + d).min(1.0), d);
                stats::mcnemar_score(gained, lost) < 1.0 - LEVEL && gained > lost
            };
            let found = share(replicates, || {
                let (gained, lost) = changes(&mut rng, n, churn, 0.0);
                let d = stats::detectable_proportion(n as f64, (gained + lost) as f64 / n as f64, 1.0 - LEVEL);
                printed.push(d);
                is_found(&mut rng, d)
            });
            out.push(Power {
                n,
                churn,
                printed: stats::mean(&printed),
                found,
                five_points: 100.0 * stats::power_proportion(n as f64, churn + 0.05, 0.05, 1.0 - LEVEL),
                five_points_found: share(replicates, || is_found(&mut rng, 0.05)),
            });
        }
    }
    out
}

/// Cells as a table: a row for each `what`, a column for each number of items.
fn by_size(heading: &str, cells: &[Cell]) -> Table {
    let mut sizes: Vec<usize> = cells.iter().map(|c| c.n).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let mut names: Vec<&str> = Vec::new();
    cells.iter().filter(|c| !names.contains(&c.what.as_str())).collect::<Vec<_>>().iter().for_each(|c| {
        if !names.contains(&c.what.as_str()) {
            names.push(&c.what);
        }
    });
    let header = [heading.to_owned()].into_iter().chain(sizes.iter().map(|n| format!("n = {n}")));
    let rows = names.iter().map(|name| {
        let of = |n: &usize| cells.iter().find(|c| c.what == *name && c.n == *n);
        let values = sizes.iter().map(|n| of(n).map_or_else(String::new, |c| format!("{:.1}", c.percent)));
        [(*name).to_owned()].into_iter().chain(values).collect()
    });
    Table::new(header).with(rows.collect::<Vec<Vec<String>>>())
}

/// The tables of docs/evaluation.md.
pub fn markdown(replicates: usize, seed: u64) -> String {
    let runs = (replicates / 5).max(1);
    let coverage = by_size("coverage of the 95 % interval, %", &coverage(replicates, seed)).compact();
    let claims = by_size("summaries with a false claim, %", &false_claims(runs, seed)).compact();
    let power = power(replicates, seed);
    let header = [
        "n",
        "changed without any difference, %",
        "printed minimum detectable effect, points",
        "found, %",
        "5 points by the formula, %",
        "5 points found, %",
    ];
    let rows = power.iter().map(|p| {
        vec![
            p.n.to_string(),
            format!("{:.0}", 100.0 * p.churn),
            format!("{:.1}", 100.0 * p.printed),
            format!("{:.1}", p.found),
            format!("{:.1}", p.five_points),
            format!("{:.1}", p.five_points_found),
        ]
    });
    let power = Table::new(header).with(rows.collect::<Vec<_>>()).compact();
    format!("{replicates} replicates a cell, {runs} for the summaries, seed {seed}.\n\n{coverage}\n{claims}\n{power}")
}
