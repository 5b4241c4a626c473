//! From a run's records to its results: estimates with intervals, paired comparisons, question-blind heuristics, and a
//! summary in sentences.

mod compare;
mod cut_off;
mod families;
mod judged;
mod randoms;
mod style;
mod summary;
mod surface;

pub(crate) use compare::difference_unit;
pub use compare::{Comparison, Estimate, compare, estimate};
pub use cut_off::{CUT_OFF_LIMIT, CutOff};
pub use families::{Claim, FALLBACK};
pub use randoms::RandomVectors;
pub use style::{Gain, Split};
pub(crate) use summary::difference as difference_text;
pub use surface::{BestRule, FOLDS, Surface, SurfaceRules, surface};

use super::conditions::{STEERED, UNSTEERED};
use super::items::Protocol;
use super::judging::PairwiseResult;
use super::measures::{Kind, Measure};
use crate::eval::results::{ConditionFacts, ConditionKind, Manifest, Record, Run};
use std::collections::BTreeSet;

/// Confidence level of every interval.
pub const LEVEL: f64 = 0.95;
/// Resamples of a bootstrap, draws of a randomisation test.
pub const RESAMPLES: usize = 10_000;
/// Fewest items that anything is claimed from.
pub const MIN_ITEMS: usize = 8;
/// Fewest categories that intervals count as clusters.
pub const MIN_CLUSTERS: usize = 10;
/// Seed of them: fixed, so that the same results give the same values.
pub const SEED: u64 = 0;

/// Reason why a run cannot be analysed.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {reason}")]
pub struct AnalysisError {
    /// The results file.
    pub file: String,
    /// Why.
    pub reason: String,
}

/// One condition's values under one measure.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The condition.
    pub condition: String,
    /// Its kind in the manifest.
    pub kind: ConditionKind,
    /// The value.
    pub estimate: Estimate,
    /// This condition minus the unsteered model.
    pub against_unsteered: Option<Comparison>,
    /// The steered model minus this condition.
    pub steered_against: Option<Comparison>,
}

/// All conditions under one measure.
#[derive(Debug, Clone, PartialEq)]
pub struct MeasureTable {
    /// The measure.
    pub measure: Measure,
    /// The conditions, in the manifest's order.
    pub rows: Vec<Row>,
}

impl MeasureTable {
    /// A condition's row.
    pub fn row(&self, condition: &str) -> Option<&Row> {
        self.rows.iter().find(|r| r.condition == condition)
    }
}

/// An item whose answer under the steered model is another one than under the unsteered model; in a match, a pair that the
/// judge decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Changed {
    /// Its place in the data, from 0.
    pub index: usize,
    /// The question.
    pub question: String,
    /// The answer preferred unsteered, and its place among the item's.
    pub before: String,
    /// The answer preferred steered.
    pub after: String,
    /// The item's value unsteered and steered.
    pub values: (f64, f64),
}

/// A run's values.
#[derive(Debug, Clone, PartialEq)]
pub struct Analysis {
    /// Manifest of the run.
    pub manifest: Manifest,
    /// The protocol.
    pub protocol: Protocol,
    /// The tables; the first is the one that conclusions are drawn from.
    pub tables: Vec<MeasureTable>,
    /// Number of categories of the items; 0 where some have none.
    pub categories: usize,
    /// Results of question-blind heuristics.
    pub surface: SurfaceRules,
    /// The vector's effect under the first measure without the items' own questions.
    pub gains: Vec<Gain>,
    /// The vector's effect by whether the best question-blind rule is right.
    pub split: Option<Split>,
    /// The vector among random ones, under the first measure.
    pub randoms: Option<RandomVectors>,
    /// Items whose preferred answer changed.
    pub changed: Vec<Changed>,
    /// Results of pairwise judging.
    pub verdicts: Vec<PairwiseResult>,
}

/// Computes a run's values.
///
/// # Errors
/// [`AnalysisError`] for records that lack what the protocol's measures need.
pub fn analyse(run: &Run) -> Result<Analysis, AnalysisError> {
    let file = run.files.first().map_or("the run".into(), |f| f.display().to_string());
    let fail = |reason: String| AnalysisError { file: file.clone(), reason };
    let protocol: Protocol = run.manifest.protocol.parse().map_err(fail)?;
    if run.manifest.items == 0 {
        return Err(fail("it holds no items".into()));
    }
    let mut tables = Vec::new();
    let gated = run.records.iter().flatten().any(|r| r.text.is_some_and(|t| t.gate.is_some()));
    for measure in Measure::of(protocol).into_iter().filter(|m| gated || !m.is_of_gates()) {
        tables.push(table(run, measure).map_err(fail)?);
    }
    let records = run.under(UNSTEERED).or(run.records.first().map(Vec::as_slice)).unwrap_or_default();
    let headline = tables[0].measure;
    // No rule chooses among answers that are written, or judged.
    let chooses = !protocol.writes() && protocol != Protocol::Judge;
    let surface = if chooses { surface(records, headline) } else { SurfaceRules::default() };
    let mut gains = style::gains(run, headline).map_err(fail)?;
    for (i, table) in tables.iter_mut().enumerate() {
        families::correct(&mut table.rows, if i == 0 { &mut gains } else { &mut [] });
    }
    let categories: Option<BTreeSet<&str>> = records.iter().map(|r| r.category.as_deref()).collect();
    Ok(Analysis {
        protocol,
        categories: categories.map_or(0, |c| c.len()),
        split: match &surface.best {
            Some(best) => style::split(run, headline, best).map_err(fail)?,
            None => None,
        },
        surface,
        gains,
        randoms: RandomVectors::of(&tables[0]),
        verdicts: if protocol == Protocol::Judge { verdicts(run).map_err(fail)? } else { Vec::new() },
        changed: if protocol == Protocol::Judge {
            decided(run, tables[0].measure).map_err(fail)?
        } else {
            changed(run, tables[0].measure).map_err(fail)?
        },
        tables,
        manifest: run.manifest.clone(),
    })
}

/// A measure's parts for each item, and the items' categories.
fn parts(measure: Measure, records: &[Record]) -> Result<Vec<(f64, f64)>, String> {
    records.iter().map(|r| measure.parts(r)).collect()
}

fn table(run: &Run, measure: Measure) -> Result<MeasureTable, String> {
    let all: Vec<Vec<(f64, f64)>> = run.records.iter().map(|r| parts(measure, r)).collect::<Result<_, _>>()?;
    let place = |name: &str| run.manifest.conditions.iter().position(|c| c.name == name);
    let (unsteered, steered) = (place(UNSTEERED), place(STEERED));
    let categories: Vec<Option<&str>> =
        run.records.first().map_or_else(Vec::new, |r| r.iter().map(|r| r.category.as_deref()).collect());
    let rows: Vec<Row> = run
        .manifest
        .conditions
        .iter()
        .enumerate()
        .map(|(i, c)| Row {
            condition: c.name.clone(),
            kind: c.kind.clone(),
            estimate: estimate(measure, &all[i], &categories),
            against_unsteered: unsteered.filter(|&u| u != i).map(|u| compare(measure, &all[u], &all[i], &categories)),
            steered_against: steered
                .filter(|&s| s != i && Some(i) != unsteered)
                .map(|s| compare(measure, &all[i], &all[s], &categories)),
        })
        .collect();
    Ok(MeasureTable { measure, rows })
}

fn verdicts(run: &Run) -> Result<Vec<PairwiseResult>, String> {
    let against = |c: &ConditionFacts| match &c.kind {
        ConditionKind::Match { against, .. } => against.clone(),
        _ => c.name.clone(),
    };
    run.manifest.conditions.iter().zip(&run.records).map(|(c, r)| PairwiseResult::of(&against(c), r)).collect()
}

/// The pairs of the first match that the judge decided: the other answer, the steered one, and the preference for it.
fn decided(run: &Run, measure: Measure) -> Result<Vec<Changed>, String> {
    let mut out = Vec::new();
    for record in run.records.first().into_iter().flatten() {
        let (preference, [steered, other]) = (measure.parts(record)?.0, &record.answers[..]) else { continue };
        if preference != 0.5 {
            out.push(Changed {
                index: record.index,
                question: record.question.clone(),
                before: other.text.clone(),
                after: steered.text.clone(),
                values: (1.0 - preference, preference),
            });
        }
    }
    Ok(out)
}

fn changed(run: &Run, measure: Measure) -> Result<Vec<Changed>, String> {
    let (Some(before), Some(after)) = (run.under(UNSTEERED), run.under(STEERED)) else { return Ok(Vec::new()) };
    let mut out = Vec::new();
    for (b, a) in before.iter().zip(after) {
        let value = |r: &Record| measure.parts(r).map(|(a, b)| a / b);
        if let (Some(x), Some(y)) = (&b.written, &a.written) {
            if x.text != y.text {
                out.push(Changed {
                    index: b.index,
                    question: b.question.clone(),
                    before: x.text.clone(),
                    after: y.text.clone(),
                    values: (value(b)?, value(a)?),
                });
            }
            continue;
        }
        let (Some(x), Some(y)) = (measure.chosen(b), measure.chosen(a)) else { continue };
        let values = (value(b)?, value(a)?);
        if x != y || (measure.kind == Kind::Orders && values.0 != values.1) {
            out.push(Changed {
                index: b.index,
                question: b.question.clone(),
                before: b.answers[x].text.clone(),
                after: a.answers[y].text.clone(),
                values,
            });
        }
    }
    Ok(out)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::results::{Answer, ConditionFacts, ModelFacts, Shard, View, test_kind};
    use super::*;
    use crate::stats;
    use serde_json::{Value, json};

    /// A run of right and wrong items under some conditions: `(name, kind, right)`.
    pub(crate) fn run_of(conditions: &[(&str, &str, &[bool])]) -> Run {
        let n = conditions[0].2.len();
        let manifest = Manifest {
            bidpo_results: 1,
            bidpo: "0".into(),
            llama_cpp: "0".into(),
            benchmark: "truthfulqa".into(),
            protocol: "mc1".into(),
            model: ModelFacts {
                file: "m.gguf".into(),
                sha256: "x".into(),
                name: "m".into(),
                architecture: "llama".into(),
                quantization: "Q4_1".into(),
            },
            data: Vec::new(),
            prompt: json!({"preset": "qa"}),
            selection: Value::Null,
            items: n,
            seed: 0,
            threads: 0,
            bits_depend_on_threads: None,
            cpu: None,
            computed_with: Vec::new(),
            conditions: conditions.iter().map(|(name, kind, _)| ConditionFacts::new(*name, test_kind(kind))).collect(),
            shard: Shard::WHOLE,
        };
        let record = |name: &str, i: usize, right: bool| Record {
            item: i,
            index: i,
            condition: name.into(),
            question: format!("Question <{i}>?"),
            category: Some(format!("c{}", i % 4)),
            answers: vec![
                Answer { text: "True & short.".into(), label: None, mc1: Some(true) },
                Answer { text: "A false answer of some length.".into(), label: None, mc1: Some(false) },
            ],
            views: vec![View {
                order: None,
                logprobs: if right { vec![-1.0, -2.0] } else { vec![-2.0, -1.0] },
                n_tokens: vec![1, 1],
            }],
            text: None,
            written: None,
        };
        let records = conditions
            .iter()
            .map(|(name, _, right)| right.iter().enumerate().map(|(i, &r)| record(name, i, r)).collect())
            .collect();
        Run { manifest, records, files: vec!["r.jsonl".into()] }
    }

    pub(crate) fn bits(n: usize, right: impl Fn(usize) -> bool) -> Vec<bool> {
        (0..n).map(right).collect()
    }

    #[test]
    fn tables_compare_on_the_same_items() {
        let (u, s) = (bits(40, |i| i % 2 == 0), bits(40, |i| i % 2 == 0 || i < 10));
        let run =
            run_of(&[("unsteered", "unsteered", &u), ("steered", "steered", &s), ("random vector", "random", &u)]);
        let a = analyse(&run).unwrap();
        let t = &a.tables[0];
        assert_eq!(
            (t.row("unsteered").unwrap().estimate.count, t.row("steered").unwrap().estimate.count),
            (Some(20), Some(25))
        );
        let c = t.row("steered").unwrap().against_unsteered.unwrap();
        assert_eq!((c.gained, c.lost, c.difference), (5, 0, 0.125));
        // The primary comparison is not corrected; four categories are too few for clusters.
        assert_eq!((c.p, c.p_holm, c.clusters), (stats::mcnemar_score(5, 0), None, None));
        assert_eq!(c.exact_p, stats::mcnemar_exact(5, 0));
        assert_eq!(t.row("random vector").unwrap().against_unsteered.unwrap().p_holm, None);
        assert_eq!(t.row("random vector").unwrap().steered_against.unwrap().gained, 5);
        assert!(t.row("unsteered").unwrap().against_unsteered.is_none());
        assert_eq!(a.changed.len(), 5);
        assert_eq!(
            (a.changed[0].before.as_str(), a.changed[0].after.as_str()),
            ("A false answer of some length.", "True & short.")
        );
    }
}
