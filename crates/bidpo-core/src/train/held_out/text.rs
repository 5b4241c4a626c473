//! The held-out table and what it shows, as people read it.

use crate::stats::std_dev;
use crate::text::numbers::p_value;
use crate::train::held_out::{Condition, Effect, HeldOut, LEAST_GROUPS, PROMPTED, RandomRange, STEERED};

impl HeldOut {
    /// The table in Markdown, which is also readable in a terminal.
    pub fn table(&self) -> String {
        let mut out = line(&TableRow {
            condition: "condition".into(),
            accuracy: "preference accuracy".into(),
            interval: "95 % interval".into(),
            points: "change, points".into(),
            difference: if self.alone { "log-prob. of the answer, nats" } else { "log-prob. difference, nats" }.into(),
            change: "its change, nats".into(),
        });
        out += &format!("| {} |\n", WIDTHS.map(|w| "-".repeat(w)).join(" | "));
        for (i, c) in self.conditions.iter().enumerate() {
            let row = self.row(c, i == 0);
            let points = |p: &super::Paired| {
                let [low, high] = p.interval.map(|x| 100.0 * x);
                format!("{:+.1} [{low:+.1}, {high:+.1}], p {}", 100.0 * p.difference, p_value(p.p))
            };
            out += &line(&TableRow {
                accuracy: row.preferred.zip(row.accuracy).map_or_else(
                    || "-".to_owned(),
                    |(preferred, accuracy)| format!("{preferred} of {} ({:.1} %)", row.n, 100.0 * accuracy),
                ),
                interval: row
                    .interval
                    .map_or_else(String::new, |[lo, hi]| format!("{:.1} - {:.1} %", 100.0 * lo, 100.0 * hi)),
                points: row.against_unsteered.as_ref().map_or_else(String::new, points),
                difference: format!("{:+.2}", row.mean_logp_diff),
                change: row.logp_diff_change.map_or_else(String::new, |c| c.to_string()),
                condition: self.named(row.condition),
            });
        }
        if let Some(r) = self.random_range() {
            let of = |x: f64| self.conditions[0].mean_logp_diff() + x;
            out += &line(&TableRow {
                condition: self.named(format!("{} random vectors", r.draws)),
                accuracy: match self.alone {
                    true => "-".to_owned(),
                    false => format!("{:.1} to {:.1} %", 100.0 * r.accuracy[0], 100.0 * r.accuracy[1]),
                },
                interval: String::new(),
                points: String::new(),
                difference: format!("{:+.2} to {:+.2}", of(r.min), of(r.max)),
                change: format!("{:+.2} to {:+.2}", r.min, r.max),
            });
        }
        out
    }

    /// Text about a vector as text about what was measured.
    fn named(&self, text: String) -> String {
        match self.adapter {
            true => text.replace(PROMPTED, "system prompt alone").replace("vector", "adapter"),
            false => text,
        }
    }

    /// The table in words: whether there is a difference, and whether a prompt would have done as well. The mean
    /// log-probability difference decides, since the objective trains it; about preference accuracy, a coarser view of it, the
    /// test beside its interval decides.
    pub fn in_words(&self) -> String {
        self.named(self.words())
    }

    fn words(&self) -> String {
        let (Some(steered), Some(effect)) = (self.get(STEERED), self.effect()) else { return String::new() };
        let (n, groups) = (steered.logp_diffs.len(), self.n_groups());
        let one = if self.alone { "answer" } else { "pair" };
        let pairs = match n {
            _ if groups < n => format!("{n} held-out {one}s ({groups} groups of near-duplicates)"),
            1 => format!("1 held-out {one}"),
            _ => format!("{n} held-out {one}s"),
        };
        let c = self.change(&self.conditions[0], steered);
        let mut out = match effect {
            Effect::TooFew => {
                let (are, too) = if n == 1 { ("is", "it is") } else { ("are", "they are") };
                return format!(
                    "Only {pairs} {are} left to measure on, and {too} too few to say anything about the vector: at least \
                     {LEAST_GROUPS}, none of them near-duplicates, are needed. A sixth of {} pairs is enough, and a larger \
                     --test holds out more.",
                    6 * LEAST_GROUPS
                );
            }
            Effect::NoInterval => format!(
                "All of the {pairs} change alike, by {:+.2} nats: that gives no interval, and so no finding",
                c.mean
            ),
            Effect::Towards if self.alone => {
                format!("The vector makes the chosen answers more probable: {c} nats an answer, on {pairs}")
            }
            Effect::Away if self.alone => {
                format!("The vector makes the chosen answers LESS probable: {c} nats an answer, on {pairs}")
            }
            Effect::NotShown if self.alone => format!(
                "No effect shown: the change of the answers' log-probability, {c} nats an answer on {pairs}, may be 0"
            ),
            Effect::Towards => {
                format!("The vector moves the model towards the chosen answers: {c} nats a pair, on {pairs}")
            }
            Effect::Away => {
                format!("The vector moves the model AWAY from the chosen answers: {c} nats a pair, on {pairs}")
            }
            Effect::NotShown => format!(
                "No effect shown: the change of the log-probability difference, {c} nats a pair on {pairs}, may be 0"
            ),
        };
        if let Some(r) = self.random_range() {
            out += &random_words(r);
        }
        out += ".";
        if self.alone {
            out += " There are no rejected answers: whether other answers became more probable too was not measured.";
        } else {
            out += &self.accuracy_words();
        }
        out += &match self.get(PROMPTED) {
            Some(prompt) => {
                let c = self.change(prompt, steered);
                match c.interval {
                    Some(i) if i.lo > 0.0 => {
                        format!(" It moves the model further than the system prompt does, by {c} nats.")
                    }
                    Some(i) if i.hi < 0.0 => {
                        format!(" The system prompt alone moves the model FURTHER ({c} nats): prefer the prompt.")
                    }
                    _ => format!(" Between vector and system prompt these pairs show no difference ({c} nats)."),
                }
            }
            None => " No system prompt was compared: a prompt may do as well. --baseline-prompt \"TEXT\" compares one."
                .into(),
        };
        out
    }

    /// What the pairs show of preference accuracy.
    fn accuracy_words(&self) -> String {
        let Some((steered, d)) = self.get(STEERED).and_then(|s| Some((s, self.against_unsteered(s)?))) else {
            return String::new();
        };
        let (unsteered, n) = (&self.conditions[0], steered.prefers.len());
        let end = match (unsteered.count(), steered.count()) {
            (0, 0) => Some(("none", "0")),
            (a, b) if a == n && b == n => Some(("all", "100")),
            _ => None,
        };
        if let Some((of, percent)) = end {
            // Far from 0: even the nearest of many pairs would stay on its side.
            let far = |c: &Condition| c.mean_logp_diff().abs() > FAR * std_dev(&c.logp_diffs);
            let pairs = if far(unsteered) && far(steered) { "no number of pairs" } else { "none of these pairs" };
            return format!(
                " The unsteered model prefers the chosen answer in {of} of the pairs and so does the steered one: preference \
                 accuracy is at {percent} %, {:+.1} nats from where it changes, and {pairs} would show a change.",
                unsteered.mean_logp_diff()
            );
        }
        let change = format!("{:+.1} points, p {}", 100.0 * d.difference, p_value(d.p));
        if d.p < 0.05 {
            format!(" Preference accuracy changes: {change}.")
        } else {
            format!(" Whether it changes which answer is preferred, these pairs do not show ({change}).")
        }
    }
}

/// Standard deviations of the log-probability difference beyond which a mean is far from 0.
const FAR: f64 = 4.0;

fn random_words(r: RandomRange) -> String {
    format!(
        "; {} random vectors of the same norm change it by {:+.2} to {:+.2}, and the vector ranks {} of {}",
        r.draws,
        r.min,
        r.max,
        r.rank,
        r.draws + 1
    )
}

/// Widths of the table's columns.
const WIDTHS: [usize; 6] = [24, 21, 14, 29, 26, 22];

struct TableRow {
    condition: String,
    accuracy: String,
    interval: String,
    points: String,
    difference: String,
    change: String,
}

fn line(row: &TableRow) -> String {
    let cells = [&row.condition, &row.accuracy, &row.interval, &row.points, &row.difference, &row.change];
    let padded: Vec<String> = cells.iter().zip(WIDTHS).map(|(cell, width)| format!("{cell:<width$}")).collect();
    format!("| {} |\n", padded.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::PairLogp;
    use crate::stats::mcnemar_score;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use rand_distr::{Distribution, StandardNormal, StudentT};

    fn condition(name: &str, diffs: &[f64]) -> Condition {
        let logp: Vec<PairLogp> = diffs.iter().map(|&g| PairLogp { chosen: g, rejected: 0.0 }).collect();
        Condition::new(name, &logp)
    }

    fn held(a: &[f64], b: &[f64]) -> HeldOut {
        HeldOut {
            adapter: false,
            conditions: vec![condition("unsteered", a), condition(STEERED, b)],
            random: Vec::new(),
            seeds: Vec::new(),
            groups: (0..a.len()).collect(),
            alone: false,
        }
    }

    #[test]
    fn answers_alone_are_not_preferred() {
        let (low, high): (Vec<f64>, Vec<f64>) =
            (0..30).map(|i| (-9.0 - 0.1 * f64::from(i), -8.0 - 0.09 * f64::from(i))).unzip();
        let held = HeldOut { alone: true, ..held(&low, &high) };
        let of_adapter = HeldOut { adapter: true, ..held.clone() };
        assert!(of_adapter.in_words().starts_with("The adapter makes") && !of_adapter.table().contains("vector"));
        let (said, table) = (held.in_words(), held.table());
        assert!(
            said.contains("makes the chosen answers more probable: +1.") && said.contains("30 held-out answers"),
            "{said}"
        );
        assert!(!said.contains("ccuracy") && table.contains("log-prob. of the answer, nats"), "{said} {table}");
        let row = serde_json::to_value(&held.rows()[1]).unwrap();
        assert!(
            row["accuracy"].is_null() && row["against_unsteered"].is_null() && row["mean_logp_diff"].is_number(),
            "{row}"
        );
    }

    #[test]
    fn words_follow_the_intervals() {
        let up: Vec<f64> = (0..30).map(|i| 1.0 + 0.01 * f64::from(i)).collect();
        let down: Vec<f64> = up.iter().map(|x| -x).collect();
        let better = held(&down, &up);
        let said = better.in_words();
        assert!(said.contains("towards") && said.contains("+100.0 points, p < 0.001"), "{said}");
        assert!(said.contains("No system prompt was compared") && said.contains("--baseline-prompt"), "{said}");
        assert!(held(&up, &down).in_words().contains("AWAY"));
        // Nothing changes: no interval of no width.
        let said = held(&up, &up).in_words();
        assert!(said.contains("no interval, and so no finding") && !said.contains('['), "{said}");
        let mut with_prompt = held(&down, &down);
        with_prompt.conditions.push(condition(PROMPTED, &up));
        assert!(with_prompt.in_words().contains("prefer the prompt"), "{}", with_prompt.in_words());
        assert_eq!(with_prompt.rows().len(), 3);
        assert_eq!(with_prompt.rows()[0].preferred, Some(0));
        assert_eq!(with_prompt.rows()[2].preferred, Some(30));
    }

    #[test]
    fn few_pairs_are_no_finding() {
        let (a, b): (Vec<f64>, Vec<f64>) =
            (0..7).map(|i| (f64::from(i), f64::from(i) + 5.0 + 0.1 * f64::from(i % 3))).unzip();
        let said = held(&a, &b).in_words();
        assert!(said.starts_with("Only 7 held-out pairs are left") && said.contains("at least 8"), "{said}");
        assert!(!said.contains("towards"), "{said}");
        assert!(held(&a[..1], &b[..1]).in_words().starts_with("Only 1 held-out pair is left"));
        // Thirty copies of seven pairs are seven.
        let copies = |x: &[f64]| (0..30).map(|i| x[i % 7]).collect::<Vec<_>>();
        let mut many = held(&copies(&a), &copies(&b));
        assert_eq!(many.effect(), Some(Effect::Towards));
        many.groups = (0..30).map(|i| i % 7).collect();
        assert_eq!(many.effect(), Some(Effect::TooFew));
        assert!(many.in_words().contains("30 held-out pairs (7 groups of near-duplicates)"), "{}", many.in_words());
    }

    #[test]
    fn floors_and_ceilings_are_named() {
        let deep: Vec<f64> = (0..20).map(|i| -100.0 - f64::from(i)).collect();
        let less: Vec<f64> = deep.iter().map(|x| x + 30.0 + (x * 0.7).sin()).collect();
        let said = held(&deep, &less).in_words();
        assert!(said.contains("in none of the pairs") && said.contains("no number of pairs"), "{said}");
        let high: Vec<f64> = less.iter().map(|x| -x).collect();
        assert!(held(&high, &high).in_words().contains("in all of the pairs"));
        // All on one side, but not far from the other.
        let near: Vec<f64> = (0..20).map(|i| -0.1 - 0.2 * f64::from(i)).collect();
        assert!(held(&near, &near).in_words().contains("none of these pairs would show"));
    }

    /// Interval and p are one criterion, those of reports; groups count once: three gained pairs of one group are one gain.
    #[test]
    fn groups_count_once() {
        let a: Vec<f64> = (0..24).map(|i| -1.0 - 0.1 * f64::from(i)).collect();
        let b: Vec<f64> = a.iter().enumerate().map(|(i, x)| if i < 18 { 1.0 } else { *x }).collect();
        let mut h = held(&a, &b);
        let of = |h: &HeldOut| h.against_unsteered(&h.conditions[1]).unwrap();
        let alone = of(&h);
        assert!((alone.exact_p - 2.0 * 0.5f64.powi(18)).abs() < 1e-15);
        assert_eq!(alone.p, mcnemar_score(18, 0));
        h.groups = (0..24).map(|i| i / 3).collect();
        let grouped = of(&h);
        assert!((grouped.exact_p - 2.0 * 0.5f64.powi(6)).abs() < 1e-15, "six groups gained");
        assert!(grouped.p > alone.p && grouped.interval[0] < alone.interval[0], "{grouped:?} {alone:?}");
        // Four gained of 24 pairs: p is below 0.05 exactly where the interval excludes 0.
        for gained in 0..8 {
            let b: Vec<f64> = a.iter().enumerate().map(|(i, x)| if i < gained { 1.0 } else { *x }).collect();
            let d = of(&held(&a, &b));
            assert_eq!(d.p < 0.05, d.interval[0] > 0.0, "{d:?}");
        }
    }

    #[test]
    fn random_vectors_are_a_range_and_a_rank() {
        let a: Vec<f64> = (0..16).map(f64::from).collect();
        let plus = |d: f64| a.iter().map(|x| x + d + 0.1 * (x * 1.3).sin()).collect::<Vec<_>>();
        let mut h = held(&a, &plus(2.0));
        h.random = (0..10).map(|i| condition("random", &plus(-1.0 + 0.5 * f64::from(i)))).collect();
        let r = h.random_range().unwrap();
        // -1, -0.5, ..., 3.5: 2, 2.5, 3 and 3.5 are not below.
        assert_eq!((r.draws, r.rank), (10, 5));
        assert!(h.in_words().contains("10 random vectors of the same norm change it by -1.0"), "{}", h.in_words());
        assert!(h.in_words().contains("ranks 5 of 11"), "{}", h.in_words());
        assert!(h.table().lines().last().unwrap().starts_with("| 10 random vectors "), "{}", h.table());
        let widths: std::collections::BTreeSet<usize> = h.table().lines().map(str::len).collect();
        assert_eq!(widths.len(), 1, "{}", h.table());
    }

    /// A vector that changes nothing on average is said to change something in at most 6 % of cases, whatever the number of
    /// pairs; below eight never. Student's t with 3 degrees of freedom stands for log-probabilities with outliers.
    #[test]
    fn a_null_is_seldom_a_finding() {
        let mut rng = ChaCha8Rng::seed_from_u64(17);
        let heavy = StudentT::new(3.0).unwrap();
        const RUNS: usize = 4000;
        for n in [2, 7, 8, 12, 16, 32] {
            for tails in ["normal", "t3"] {
                let mut found = 0;
                for _ in 0..RUNS {
                    let mut draw = || -> f64 {
                        if tails == "t3" { heavy.sample(&mut rng) } else { StandardNormal.sample(&mut rng) }
                    };
                    let (a, b): (Vec<f64>, Vec<f64>) = (0..n)
                        .map(|_| {
                            let level = 3.0 * draw();
                            (level, level + draw())
                        })
                        .unzip();
                    let effect = held(&a, &b).effect();
                    found += usize::from(matches!(effect, Some(Effect::Towards | Effect::Away)));
                }
                let rate = found as f64 / RUNS as f64;
                if n < LEAST_GROUPS {
                    assert_eq!(found, 0, "{n} pairs");
                } else {
                    assert!(rate <= 0.06, "{n} pairs, {tails}: {rate}");
                    assert!(rate >= 0.02, "{n} pairs, {tails}: {rate}: the test can no longer fail");
                }
            }
        }
    }
}
