//! Measurement of a vector on held-out pairs, beside the baselines that a claim needs.

use super::error::TrainError;
use super::events::{Event, NamedPair};
use crate::engine::{BatchPlan, Engine, EngineError, PairLogp, TracedPair};
use crate::stats::{Interval, PairedProportions, bootstrap_mean, compare_proportions, mean, wilson};
use crate::steer::rotated;
use crate::text::numbers::p_value;
use serde::Serialize;
use std::sync::atomic::{AtomicBool, Ordering};

/// Log-probabilities of the held-out pairs under one condition.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// The condition, for example `vector, scale +1`.
    pub name: String,
    /// For each pair: whether the chosen response is more probable than the rejected one (summed log-probabilities).
    pub prefers: Vec<bool>,
    /// For each pair: `log p(chosen) - log p(rejected)`, in nats.
    pub gaps: Vec<f64>,
}

/// A mean difference over pairs with its 95 % interval (percentile bootstrap).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct MeanDifference {
    /// The mean, in nats a pair.
    pub mean: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

impl MeanDifference {
    fn of(from: &Condition, to: &Condition) -> Self {
        let d: Vec<f64> = from.gaps.iter().zip(&to.gaps).map(|(a, b)| b - a).collect();
        let i = bootstrap_mean(&d, 0.95, 10_000, 0);
        Self { mean: mean(&d), low: i.lo, high: i.hi }
    }
}

impl std::fmt::Display for MeanDifference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:+.2} [{:+.2}, {:+.2}]", self.mean, self.low, self.high)
    }
}

impl Condition {
    /// From the log-probabilities of the pairs.
    pub fn new(name: impl Into<String>, logp: &[PairLogp]) -> Self {
        Self {
            name: name.into(),
            prefers: logp.iter().map(|p| p.gap() > 0.0).collect(),
            gaps: logp.iter().map(PairLogp::gap).collect(),
        }
    }

    /// Pairs whose chosen response is preferred.
    pub fn count(&self) -> usize {
        self.prefers.iter().filter(|&&p| p).count()
    }

    /// Preference accuracy: that count over the number of pairs.
    pub fn accuracy(&self) -> f64 {
        self.count() as f64 / self.prefers.len().max(1) as f64
    }

    /// Mean log-probability difference, chosen minus rejected, in nats.
    pub fn mean_gap(&self) -> f64 {
        mean(&self.gaps)
    }

    /// 95 % interval of the preference accuracy (Wilson).
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
    /// Mean log-probability difference, chosen minus rejected, in nats.
    pub mean_gap: f64,
    /// Change of that difference against the unsteered model, on the same pairs.
    pub gap_change: Option<MeanDifference>,
    /// Change of the preference accuracy against the unsteered model, on the same pairs.
    pub against_unsteered: Option<Paired>,
}

/// A paired comparison, for JSON.
#[derive(Debug, Clone, Serialize)]
pub struct Paired {
    /// Difference of the preference accuracies.
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

/// Test pairs of a measurement.
#[derive(Debug, Clone, Copy)]
pub struct HeldOutPairs<'a> {
    /// The pairs.
    pub test: &'a [NamedPair],
    /// The same pairs with a system prompt to compare with, if any.
    pub prompted: Option<&'a [NamedPair]>,
}

impl HeldOut {
    /// Traces the pairs and measures the vector on them, as [`HeldOut::measure`] does. `observe` is told the beginning and
    /// the notices of the cache.
    ///
    /// # Errors
    /// [`TrainError::Engine`], [`TrainError::Pair`], [`TrainError::Interrupted`].
    pub fn of_pairs(
        engine: &mut Engine,
        pairs: HeldOutPairs<'_>,
        plan: BatchPlan,
        vector: &[f32],
        seed: u64,
        interrupt: &AtomicBool,
        observe: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self, TrainError> {
        observe(Event::Measuring { pairs: pairs.test.len() });
        let mut trace = |pairs: &[NamedPair]| -> Result<Vec<TracedPair>, TrainError> {
            let tokens: Vec<_> = pairs.iter().map(|p| &p.tokens).collect();
            engine
                .trace_each(&tokens, plan, &mut |_| !interrupt.load(Ordering::Relaxed))
                .map_err(|(i, source)| TrainError::Pair { pair: pairs[i].name.clone(), source })?
                .ok_or(TrainError::Interrupted)
        };
        let examples = trace(pairs.test)?;
        let prompted = pairs.prompted.map(&mut trace).transpose()?;
        let heldout = Self::measure(engine, &examples, prompted.as_deref(), plan, vector, seed)?;
        for notice in engine.take_cache_notices() {
            observe(Event::Notice(&notice));
        }
        Ok(heldout)
    }

    /// Scores `examples` unsteered, with the vector (`[n_layers, n_embd]`) added and subtracted, and with a random vector
    /// of the same L2 norm at each layer;
    /// `prompted` are the same pairs with a system prompt before them, unsteered.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn measure(
        engine: &mut Engine,
        examples: &[TracedPair],
        prompted: Option<&[TracedPair]>,
        plan: BatchPlan,
        vector: &[f32],
        seed: u64,
    ) -> Result<Self, EngineError> {
        let reference =
            |examples: &[TracedPair]| -> Vec<PairLogp> { examples.iter().map(TracedPair::reference).collect() };
        let mut conditions = vec![Condition::new("unsteered", &reference(examples))];
        let random = rotated(vector, engine.model().n_embd(), seed);
        let negative: Vec<f32> = vector.iter().map(|x| -x).collect();
        for (name, v) in [("vector, scale +1", vector), ("vector, scale -1", &negative), ("random vector", &random)] {
            conditions.push(Condition::new(name, &engine.score_all(examples, v, plan)?));
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
                    mean_gap: c.mean_gap(),
                    gap_change: (i > 0).then(|| MeanDifference::of(&self.conditions[0], c)),
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
            "| condition                | prefers the chosen answer | 95 % interval  | change, points                | gap, nats | change of the gap, nats    |\n\
             | ------------------------ | ------------------------- | -------------- | ----------------------------- | --------- | -------------------------- |\n",
        );
        for row in self.rows() {
            let share = row.against_unsteered.map_or(String::new(), |p| {
                format!(
                    "{:+.1} [{:+.1}, {:+.1}], p {}",
                    100.0 * p.difference,
                    100.0 * p.interval[0],
                    100.0 * p.interval[1],
                    p_value(p.p)
                )
            });
            out += &format!(
                "| {:<24} | {:<25} | {:<14} | {:<29} | {:<9} | {:<26} |\n",
                row.condition,
                format!("{} of {} ({:.1} %)", row.preferred, row.n, 100.0 * row.accuracy),
                format!("{:.1} - {:.1} %", 100.0 * row.interval[0], 100.0 * row.interval[1]),
                share,
                format!("{:+.2}", row.mean_gap),
                row.gap_change.map_or(String::new(), |c| c.to_string()),
            );
        }
        out
    }

    /// The table in words: whether there is a difference, and whether a prompt would have done as well. The mean
    /// log-probability difference decides, since the objective trains it; preference accuracy is a coarser view of it.
    pub fn in_words(&self) -> String {
        let Some(steered) = self.get("vector, scale +1") else { return String::new() };
        let n = steered.gaps.len();
        let c = MeanDifference::of(&self.conditions[0], steered);
        let mut out = if c.low > 0.0 {
            format!("On {n} held-out pairs the vector moves the model towards the chosen answers: {c} nats a pair")
        } else if c.high < 0.0 {
            format!("On {n} held-out pairs the vector moves the model AWAY from the chosen answers: {c} nats a pair")
        } else {
            format!("No effect that {n} held-out pairs could show: the change of the gap, {c} nats a pair, may be 0")
        };
        if let Some(random) = self.get("random vector") {
            out +=
                &format!(" (a random vector of the same length: {})", MeanDifference::of(&self.conditions[0], random));
        }
        out += ".";
        if let Some(d) = self.against_unsteered(steered) {
            out += &if d.interval.contains(0.0) {
                " Whether it changes which answer is preferred, this many pairs cannot show.".to_owned()
            } else {
                format!(
                    " The share of pairs whose chosen answer is preferred changes by {:+.1} points.",
                    100.0 * d.difference
                )
            };
        }
        if let Some(prompt) = self.get("system prompt, no vector") {
            let c = MeanDifference::of(prompt, steered);
            out += &if c.low > 0.0 {
                format!(" It moves the model further than the system prompt does, by {c} nats.")
            } else if c.high < 0.0 {
                format!(" The system prompt alone moves the model FURTHER ({c} nats): prefer the prompt.")
            } else {
                format!(" Between vector and system prompt these pairs show no difference ({c} nats).")
            };
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(name: &str, gaps: &[f64]) -> Condition {
        let logp: Vec<PairLogp> = gaps.iter().map(|&g| PairLogp { chosen: g, rejected: 0.0 }).collect();
        Condition::new(name, &logp)
    }

    #[test]
    fn words_follow_the_intervals() {
        let held = |a: &[f64], b: &[f64]| HeldOut {
            conditions: vec![condition("unsteered", a), condition("vector, scale +1", b)],
        };
        let up: Vec<f64> = (0..30).map(|i| 1.0 + 0.01 * f64::from(i)).collect();
        let down: Vec<f64> = up.iter().map(|x| -x).collect();
        let better = held(&down, &up);
        assert!(better.in_words().contains("towards") && better.in_words().contains("+100.0 points"));
        assert!(held(&up, &down).in_words().contains("AWAY"));
        assert!(held(&up, &up).in_words().contains("No effect"));
        let mut with_prompt = held(&down, &down);
        with_prompt.conditions.push(condition("system prompt, no vector", &up));
        assert!(with_prompt.in_words().contains("prefer the prompt"), "{}", with_prompt.in_words());
        assert_eq!(with_prompt.rows().len(), 3);
        assert_eq!(with_prompt.rows()[0].preferred, 0);
        assert_eq!(with_prompt.rows()[2].preferred, 30);
    }
}
