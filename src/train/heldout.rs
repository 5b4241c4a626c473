//! What a vector does on pairs it was not trained on, beside the baselines that a claim needs.

use super::engine::{Engine, EngineError, Example, PairLogp};
use crate::eval::stats::{Interval, PairedProportions, compare_proportions, wilson};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// One condition on the held-out pairs.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// What was done, for example `vector +1`.
    pub name: String,
    /// For each pair: is the chosen response more probable than the rejected one (summed log-probabilities)?
    pub prefers: Vec<bool>,
    /// Mean of `log p(chosen) - log p(rejected)`, in nats.
    pub mean_gap: f64,
}

impl Condition {
    /// From the log-probabilities of the pairs.
    pub fn new(name: impl Into<String>, logp: &[PairLogp]) -> Self {
        Self {
            name: name.into(),
            prefers: logp.iter().map(|p| p.gap() > 0.0).collect(),
            mean_gap: logp.iter().map(PairLogp::gap).sum::<f64>() / logp.len().max(1) as f64,
        }
    }

    /// Pairs whose chosen response is preferred.
    pub fn count(&self) -> usize {
        self.prefers.iter().filter(|&&p| p).count()
    }

    /// That count as a share.
    pub fn accuracy(&self) -> f64 {
        self.count() as f64 / self.prefers.len().max(1) as f64
    }

    /// 95 % interval of the share (Wilson).
    pub fn interval(&self) -> Interval {
        wilson(self.count(), self.prefers.len(), 0.95)
    }
}

/// The conditions, the first of them unsteered.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldOut {
    /// Unsteered, steered both ways, a random vector, and a system prompt where one was given.
    pub conditions: Vec<Condition>,
}

/// One line of a held-out table, for JSON.
#[derive(Debug, Clone, Serialize)]
pub struct HeldOutRow {
    /// The condition.
    pub condition: String,
    /// Pairs whose chosen response is preferred.
    pub preferred: usize,
    /// Pairs.
    pub n: usize,
    /// `preferred / n`.
    pub accuracy: f64,
    /// Its 95 % interval (Wilson).
    pub interval: [f64; 2],
    /// Mean gap of the log-probabilities, nats.
    pub mean_gap: f64,
    /// Against the unsteered model, on the same pairs.
    pub against_unsteered: Option<Paired>,
}

/// A paired comparison, for JSON.
#[derive(Debug, Clone, Serialize)]
pub struct Paired {
    /// Difference of the shares.
    pub difference: f64,
    /// Its 95 % interval (Bonett and Price).
    pub interval: [f64; 2],
    /// Pairs gained.
    pub gained: usize,
    /// Pairs lost.
    pub lost: usize,
    /// Exact McNemar p, two-sided.
    pub p: f64,
}

impl HeldOut {
    /// Scores `examples` unsteered, with the vector added and subtracted, and with a random vector of the same length;
    /// `prompted` are the same pairs with a system prompt before them, unsteered.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn measure(
        engine: &mut Engine,
        examples: &[Example],
        prompted: Option<&[Example]>,
        vector: &[f32],
        seed: u64,
    ) -> Result<Self, EngineError> {
        let reference = |examples: &[Example]| -> Vec<PairLogp> {
            examples.iter().flat_map(|e| e.reference.iter().copied()).collect()
        };
        let mut conditions = vec![Condition::new("unsteered", &reference(examples))];
        let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(u64::MAX);
        // Sums of twelve uniform numbers: close enough to a normal distribution for a direction without preference.
        let raw: Vec<f64> =
            (0..vector.len()).map(|_| (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0).collect();
        let norm = raw.iter().map(|x| x * x).sum::<f64>().sqrt();
        let random: Vec<f32> = raw.iter().map(|x| (x / norm * length) as f32).collect();
        let negative: Vec<f32> = vector.iter().map(|x| -x).collect();
        for (name, v) in [("vector, scale +1", vector), ("vector, scale -1", &negative), ("random vector", &random)] {
            let mut logp = Vec::with_capacity(examples.len());
            for e in examples {
                logp.extend(engine.run(e, v, false)?.logp);
            }
            conditions.push(Condition::new(name, &logp));
        }
        if let Some(prompted) = prompted {
            conditions.push(Condition::new("system prompt, no vector", &reference(prompted)));
        }
        Ok(Self { conditions })
    }

    /// A condition by name.
    pub fn get(&self, name: &str) -> Option<&Condition> {
        self.conditions.iter().find(|c| c.name == name)
    }

    /// A condition against the unsteered model, on the same pairs.
    pub fn against_unsteered(&self, condition: &Condition) -> Option<PairedProportions> {
        compare_proportions(&self.conditions[0].prefers, &condition.prefers, 0.95)
    }

    /// The table as rows for JSON.
    pub fn rows(&self) -> Vec<HeldOutRow> {
        self.conditions
            .iter()
            .enumerate()
            .map(|(i, c)| {
                let interval = c.interval();
                HeldOutRow {
                    condition: c.name.clone(),
                    preferred: c.count(),
                    n: c.prefers.len(),
                    accuracy: c.accuracy(),
                    interval: [interval.lo, interval.hi],
                    mean_gap: c.mean_gap,
                    against_unsteered: (i > 0).then(|| self.against_unsteered(c)).flatten().map(|d| Paired {
                        difference: d.difference,
                        interval: [d.interval.lo, d.interval.hi],
                        gained: d.gained,
                        lost: d.lost,
                        p: d.p,
                    }),
                }
            })
            .collect()
    }

    /// The table in Markdown, which is also readable in a terminal.
    pub fn table(&self) -> String {
        let mut out = String::from(
            "| condition                | prefers the chosen answer | 95 % interval  | mean gap (nats) | against unsteered                   |\n\
             | ------------------------ | ------------------------- | -------------- | --------------- | ----------------------------------- |\n",
        );
        for row in self.rows() {
            let against = row.against_unsteered.map_or(String::new(), |p| {
                format!(
                    "{:+.1} [{:+.1}, {:+.1}] points, p {}",
                    100.0 * p.difference,
                    100.0 * p.interval[0],
                    100.0 * p.interval[1],
                    p_value(p.p)
                )
            });
            out += &format!(
                "| {:<24} | {:<25} | {:<14} | {:<15} | {:<35} |\n",
                row.condition,
                format!("{} of {} ({:.1} %)", row.preferred, row.n, 100.0 * row.accuracy),
                format!("{:.1} - {:.1} %", 100.0 * row.interval[0], 100.0 * row.interval[1]),
                format!("{:+.2}", row.mean_gap),
                against
            );
        }
        out
    }

    /// What the table says, in words: whether there is a difference, and whether a prompt would have done as well.
    pub fn in_words(&self) -> String {
        let Some(steered) = self.get("vector, scale +1") else { return String::new() };
        let Some(d) = self.against_unsteered(steered) else { return String::new() };
        let mut out = if d.interval.contains(0.0) {
            format!("No difference that {} held-out pairs could show: the interval of the change holds 0.", d.n)
        } else if d.difference > 0.0 {
            format!("On {} held-out pairs the vector raises the share of preferred answers.", d.n)
        } else {
            format!("On {} held-out pairs the vector LOWERS the share of preferred answers.", d.n)
        };
        if let Some(prompt) = self.get("system prompt, no vector") {
            let c = compare_proportions(&prompt.prefers, &steered.prefers, 0.95).expect("same pairs, not empty");
            out += &if c.interval.lo > 0.0 {
                format!(" It does better than the system prompt ({:+.1} points).", 100.0 * c.difference)
            } else if c.interval.hi < 0.0 {
                format!(" The system prompt alone does BETTER ({:+.1} points): use that.", -100.0 * c.difference)
            } else {
                format!(
                    " Between vector and system prompt these pairs show no difference ({:+.1} points, interval {:+.1} to {:+.1}).",
                    100.0 * c.difference,
                    100.0 * c.interval.lo,
                    100.0 * c.interval.hi
                )
            };
        }
        out
    }
}

fn p_value(p: f64) -> String {
    if p < 0.001 { "< 0.001".into() } else { format!("{p:.3}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(name: &str, prefers: &[bool]) -> Condition {
        Condition { name: name.into(), prefers: prefers.to_vec(), mean_gap: 0.0 }
    }

    #[test]
    fn words_follow_the_interval() {
        let held = |a: &[bool], b: &[bool]| HeldOut {
            conditions: vec![condition("unsteered", a), condition("vector, scale +1", b)],
        };
        let (yes, no) = ([true; 30], [false; 30]);
        assert!(held(&no, &yes).in_words().contains("raises"));
        assert!(held(&yes, &no).in_words().contains("LOWERS"));
        assert!(held(&yes, &yes).in_words().contains("No difference"));
        let mut with_prompt = held(&no, &no);
        with_prompt.conditions.push(condition("system prompt, no vector", &yes));
        assert!(with_prompt.in_words().contains("alone does BETTER"));
    }
}
