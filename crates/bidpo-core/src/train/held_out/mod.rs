//! Measurement of a vector on held-out pairs, beside the baselines that a claim needs.

mod text;

use crate::engine::{BatchPlan, Direction, Engine, EngineError, PairLogp, Parameters, TracedPair};
use crate::stats::{
    Interval, clustered_difference, clustered_mean, compare_proportions, mcnemar_exact, mean, sign_test, wilson,
};
use crate::train::error::TrainError;
use crate::train::events::Event;
use crate::train::pairs::NamedPair;
use serde::{Serialize, Serializer};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};

/// Groups of held-out pairs from which on anything is said about a vector.
pub const LEAST_GROUPS: usize = 8;

/// Random interventions beside a trained one, where their number is not given. Each costs a forward pass over the test pairs,
/// less than a step on them.
pub const RANDOM_DRAWS: usize = 20;

/// Name of the steered condition.
pub(in crate::train) const STEERED: &str = "vector, scale +1";
/// Name of the system prompt's condition.
pub(in crate::train) const PROMPTED: &str = "system prompt, no vector";

/// Log-probabilities of the held-out pairs under one condition.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// The condition, for example `vector, scale +1`.
    pub name: String,
    /// For each pair: whether the chosen response is more probable than the rejected one (summed log-probabilities).
    pub prefers: Vec<bool>,
    /// For each pair: `log p(chosen) - log p(rejected)`, in nats.
    pub logp_diffs: Vec<f64>,
}

/// A mean difference over pairs with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeanDifference {
    /// The mean, in nats a pair.
    pub mean: f64,
    /// Student's t over the groups of pairs ([`clustered_mean`]); where every pair is a group, the ordinary t interval.
    /// `None` for fewer than two groups, and where the interval would have no width.
    pub interval: Option<Interval>,
}

impl Serialize for MeanDifference {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let (low, high) = (self.interval.map(|i| i.lo), self.interval.map(|i| i.hi));
        serde_json::json!({ "mean": self.mean, "low": low, "high": high }).serialize(to)
    }
}

impl std::fmt::Display for MeanDifference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.interval {
            Some(i) => write!(f, "{:+.2} [{:+.2}, {:+.2}]", self.mean, i.lo, i.hi),
            None => write!(f, "{:+.2}", self.mean),
        }
    }
}

impl Condition {
    /// From the log-probabilities of the pairs.
    pub fn new(name: impl Into<String>, logp: &[PairLogp]) -> Self {
        Self {
            name: name.into(),
            prefers: logp.iter().map(|p| p.gap() > 0.0).collect(),
            logp_diffs: logp.iter().map(PairLogp::gap).collect(),
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
    pub fn mean_logp_diff(&self) -> f64 {
        mean(&self.logp_diffs)
    }

    /// 95 % interval of the preference accuracy (Wilson).
    pub fn interval(&self) -> Interval {
        wilson(self.count(), self.prefers.len(), 0.95)
    }
}

/// The conditions, the first of them unsteered.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldOut {
    /// Unsteered, steered both ways, and a system prompt where one was given.
    pub conditions: Vec<Condition>,
    /// Random vectors of the same norm.
    pub random: Vec<Condition>,
    /// Vectors of further seeds, at scale +1.
    pub seeds: Vec<Condition>,
    /// The group of each pair: near-duplicates count as one where intervals are computed.
    pub groups: Vec<usize>,
    /// There are no rejected answers: a log-probability difference is the log-probability of the chosen answer, and no answer is
    /// preferred.
    pub alone: bool,
    /// An adapter was measured, no vector: text names it so. The conditions' names are keys of files, and stay.
    pub adapter: bool,
}

/// What held-out pairs show of a vector, by the interval of the mean change of the log-probability difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Towards the chosen answers.
    Towards,
    /// Away from them.
    Away,
    /// The interval includes 0.
    NotShown,
    /// Every pair changes alike: there is no interval, and no finding.
    NoInterval,
    /// Fewer than [`LEAST_GROUPS`] groups of pairs.
    TooFew,
}

/// One line of a held-out table, for JSON.
#[derive(Debug, Clone, Serialize)]
pub struct HeldOutRow {
    /// The condition.
    pub condition: String,
    /// Pairs whose chosen response is preferred; `None` for answers alone, as the next ones.
    pub preferred: Option<usize>,
    /// Pairs.
    pub n: usize,
    /// `preferred / n`.
    pub accuracy: Option<f64>,
    /// Its 95 % interval (Wilson).
    pub interval: Option<[f64; 2]>,
    /// Mean log-probability difference, chosen minus rejected, in nats.
    pub mean_logp_diff: f64,
    /// The same under its name of bidpo 0.2.0.
    pub mean_gap: f64,
    /// Change of that difference against the unsteered model, on the same pairs.
    pub logp_diff_change: Option<MeanDifference>,
    /// The same under its name of bidpo 0.2.0.
    pub gap_change: Option<MeanDifference>,
    /// Change of the preference accuracy against the unsteered model, on the same pairs.
    pub against_unsteered: Option<Paired>,
}

/// A paired comparison, for JSON.
#[derive(Debug, Clone, Serialize)]
pub struct Paired {
    /// Difference of the preference accuracies.
    pub difference: f64,
    /// Its 95 % interval, as in reports: Tango's score interval; with near-duplicates among the pairs for their effective
    /// number, with t ([`clustered_difference`]).
    pub interval: [f64; 2],
    /// Pairs gained.
    pub gained: usize,
    /// Pairs lost.
    pub lost: usize,
    /// Two-sided p by the score test of which the interval is the inversion: McNemar's.
    pub p: f64,
    /// Exact p beside it, which decides nothing: McNemar's, with near-duplicates among the pairs the sign test over groups.
    pub exact_p: f64,
}

/// The random vectors beside the trained one, for JSON.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RandomRange {
    /// Vectors drawn.
    pub draws: usize,
    /// Smallest mean change of the log-probability difference, nats.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// Place of the trained vector among all of them by that change, 1 for the largest.
    pub rank: usize,
    /// Smallest and largest preference accuracy.
    pub accuracy: [f64; 2],
}

/// Test pairs of a measurement.
#[derive(Debug, Clone, Copy)]
pub struct HeldOutPairs<'a> {
    /// The pairs.
    pub test: &'a [NamedPair],
    /// The group of each.
    pub groups: &'a [usize],
    /// The same pairs with a system prompt to compare with, if any.
    pub prompted: Option<&'a [NamedPair]>,
    /// Random interventions of the same kind and size to compare with.
    pub random: usize,
    /// Parameters of further seeds.
    pub seeds: &'a [Vec<f32>],
    /// Also measure with the vector's component taken out ([`Direction::Null`]).
    pub nulled: bool,
}

/// Traces pairs for a measurement.
fn trace(
    engine: &mut Engine,
    pairs: &[NamedPair],
    plan: BatchPlan,
    interrupt: &AtomicBool,
) -> Result<Vec<TracedPair>, TrainError> {
    let tokens: Vec<_> = pairs.iter().map(|p| &p.tokens).collect();
    engine
        .trace_each(&tokens, plan, &mut |_| !interrupt.load(Ordering::Relaxed))
        .map_err(|(i, source)| TrainError::Pair { pair: pairs[i].name.clone(), source })?
        .ok_or(TrainError::Interrupted)
}

fn references(examples: &[TracedPair]) -> Vec<PairLogp> {
    examples.iter().map(TracedPair::reference).collect()
}

/// Mean log-probability difference, chosen minus rejected, of pairs under the unsteered model, in nats: how well their system
/// prompt does.
///
/// # Errors
/// [`TrainError::Pair`], [`TrainError::Interrupted`].
pub fn mean_logp_diff(
    engine: &mut Engine,
    pairs: &[NamedPair],
    plan: BatchPlan,
    interrupt: &AtomicBool,
) -> Result<f64, TrainError> {
    let examples = trace(engine, pairs, plan, interrupt)?;
    Ok(mean(&references(&examples).iter().map(PairLogp::gap).collect::<Vec<_>>()))
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
        let examples = trace(engine, pairs.test, plan, interrupt)?;
        let prompted = pairs.prompted.map(|p| trace(engine, p, plan, interrupt)).transpose()?;
        let mut heldout = Self::measure(engine, &examples, prompted.as_deref(), plan, vector, (seed, pairs.random))?;
        heldout.groups = pairs.groups.to_vec();
        for (i, vector) in pairs.seeds.iter().enumerate() {
            let name = format!("vector of another seed {}", i + 1);
            heldout.seeds.push(Condition::new(name, &engine.score_all(&examples, vector, plan)?));
        }
        if pairs.nulled {
            let at = Parameters { theta: vector, direction: Direction::Null };
            let scored = engine.score_all(&examples, at, plan)?;
            heldout.conditions.insert(3, Condition::new("vector's component taken out", &scored));
        }
        for notice in engine.take_cache_notices() {
            observe(Event::Notice(&notice));
        }
        Ok(heldout)
    }

    /// Scores `examples` unsteered, with the vector (`[n_layers, n_embd]`) added and subtracted, and with so many random vectors
    /// of the same L2 norm at each layer, drawn by a seed and the numbers after it;
    /// `prompted` are the same pairs with a system prompt before them, unsteered. Each pair is a group.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn measure(
        engine: &mut Engine,
        examples: &[TracedPair],
        prompted: Option<&[TracedPair]>,
        plan: BatchPlan,
        vector: &[f32],
        (seed, draws): (u64, usize),
    ) -> Result<Self, EngineError> {
        let mut conditions = vec![Condition::new("unsteered", &references(examples))];
        for (name, direction) in [(STEERED, Direction::Forward), ("vector, scale -1", Direction::Reverse)] {
            let at = Parameters { theta: vector, direction };
            conditions.push(Condition::new(name, &engine.score_all(examples, at, plan)?));
        }
        let mut random = Vec::with_capacity(draws);
        for draw in 0..draws {
            let v = engine.intervention().random(vector, seed.wrapping_add(draw as u64));
            random.push(Condition::new(format!("random vector {}", draw + 1), &engine.score_all(examples, &v, plan)?));
        }
        if let Some(prompted) = prompted {
            conditions.push(Condition::new(PROMPTED, &references(prompted)));
        }
        let alone = examples.iter().all(|pair| pair.tokens().rejected.is_empty()) && !examples.is_empty();
        Ok(Self {
            conditions,
            random,
            seeds: Vec::new(),
            groups: (0..examples.len()).collect(),
            alone,
            adapter: engine.has_adapter(),
        })
    }

    /// A condition by name.
    pub fn get(&self, name: &str) -> Option<&Condition> {
        self.conditions.iter().find(|c| c.name == name)
    }

    /// Groups of pairs.
    pub fn n_groups(&self) -> usize {
        self.groups.iter().collect::<BTreeSet<_>>().len()
    }

    /// Mean change of the log-probability difference from one condition to another, on the same pairs.
    pub fn change(&self, from: &Condition, to: &Condition) -> MeanDifference {
        let d: Vec<f64> = from.logp_diffs.iter().zip(&to.logp_diffs).map(|(a, b)| b - a).collect();
        let interval = clustered_mean(&d, &self.groups, 0.95).map(|c| c.estimate).filter(|e| e.standard_error > 0.0);
        MeanDifference { mean: mean(&d), interval: interval.map(|e| e.interval) }
    }

    /// What the pairs show of the vector.
    pub fn effect(&self) -> Option<Effect> {
        let steered = self.get(STEERED)?;
        if self.n_groups() < LEAST_GROUPS {
            return Some(Effect::TooFew);
        }
        let Some(i) = self.change(&self.conditions[0], steered).interval else { return Some(Effect::NoInterval) };
        Some(if i.lo > 0.0 {
            Effect::Towards
        } else if i.hi < 0.0 {
            Effect::Away
        } else {
            Effect::NotShown
        })
    }

    /// Mean change of the log-probability difference under the vector, and under those of further seeds.
    pub fn seed_changes(&self) -> Option<Vec<f64>> {
        let own = self.get(STEERED)?;
        Some([own].into_iter().chain(&self.seeds).map(|c| self.change(&self.conditions[0], c).mean).collect())
    }

    /// The random vectors beside the trained one, if there are any.
    pub fn random_range(&self) -> Option<RandomRange> {
        let own = self.change(&self.conditions[0], self.get(STEERED)?).mean;
        let changes: Vec<f64> = self.random.iter().map(|c| self.change(&self.conditions[0], c).mean).collect();
        let ends = |values: &[f64]| {
            values.iter().fold([f64::INFINITY, f64::NEG_INFINITY], |[lo, hi], &x| [lo.min(x), hi.max(x)])
        };
        let [min, max] = ends(&changes);
        (!changes.is_empty()).then(|| RandomRange {
            draws: changes.len(),
            min,
            max,
            rank: 1 + changes.iter().filter(|&&c| c >= own).count(),
            accuracy: ends(&self.random.iter().map(Condition::accuracy).collect::<Vec<_>>()),
        })
    }

    /// A condition's preference accuracy against the unsteered model's, on the same pairs.
    pub fn against_unsteered(&self, condition: &Condition) -> Option<Paired> {
        let first = &self.conditions[0].prefers;
        let d = compare_proportions(first, &condition.prefers, 0.95)?;
        let mut paired = Paired {
            difference: d.difference,
            interval: [d.interval.lo, d.interval.hi],
            gained: d.gained,
            lost: d.lost,
            p: d.p,
            exact_p: mcnemar_exact(d.gained, d.lost),
        };
        if self.n_groups() < self.groups.len() {
            // Pairs of one group are no independent ones.
            let change: Vec<f64> =
                first.iter().zip(&condition.prefers).map(|(a, b)| f64::from(*b) - f64::from(*a)).collect();
            let mut of_group: BTreeMap<usize, f64> = BTreeMap::new();
            self.groups.iter().zip(&change).for_each(|(g, c)| *of_group.entry(*g).or_default() += c);
            let count = |sign: f64| of_group.values().filter(|&&c| c * sign > 0.0).count();
            paired.exact_p = sign_test(count(1.0), count(-1.0));
            // A single group shows nothing.
            let clustered = clustered_difference(&change, &self.groups, 0.95);
            paired.interval = clustered.map_or([-1.0, 1.0], |c| [c.interval.lo, c.interval.hi]);
            paired.p = clustered.and_then(|c| c.p).unwrap_or(1.0);
        }
        Some(paired)
    }

    /// The table as rows for JSON, each random vector and each further seed one.
    pub fn rows(&self) -> Vec<HeldOutRow> {
        self.conditions
            .iter()
            .chain(&self.random)
            .chain(&self.seeds)
            .enumerate()
            .map(|(i, c)| self.row(c, i == 0))
            .collect()
    }

    pub(in crate::train) fn row(&self, c: &Condition, unsteered: bool) -> HeldOutRow {
        let interval = c.interval();
        let change = (!unsteered).then(|| self.change(&self.conditions[0], c));
        HeldOutRow {
            condition: c.name.clone(),
            preferred: (!self.alone).then(|| c.count()),
            n: c.prefers.len(),
            accuracy: (!self.alone).then(|| c.accuracy()),
            interval: (!self.alone).then_some([interval.lo, interval.hi]),
            mean_logp_diff: c.mean_logp_diff(),
            mean_gap: c.mean_logp_diff(),
            logp_diff_change: change,
            gap_change: change,
            against_unsteered: (!unsteered && !self.alone).then(|| self.against_unsteered(c)).flatten(),
        }
    }
}
