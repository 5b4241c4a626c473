//! Question-blind heuristics: rules that see no model, and most of them no question. A model, or a vector,
//! that does no better has shown nothing about truth.

use super::{LEVEL, RESAMPLES, SEED};
use crate::eval::measures::{Kind, Measure};
use crate::eval::results::{Answer, Record};
use crate::stats::{self, Interval};
use std::collections::BTreeSet;

/// A rule and how often it is right.
#[derive(Debug, Clone, PartialEq)]
pub struct Surface {
    /// The rule's name.
    pub name: &'static str,
    /// Share of the items on which it is right; where several answers tie, the share of true ones among them counts.
    pub value: f64,
    /// Its interval (percentile bootstrap over items).
    pub interval: Interval,
}

/// Words in lower case, without punctuation.
fn words(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_alphanumeric() && c != '\'').filter(|w| !w.is_empty()).map(str::to_lowercase).collect()
}

/// Jaccard similarity of two sets of words.
fn similarity(a: &BTreeSet<String>, b: &BTreeSet<String>) -> f64 {
    let shared = a.intersection(b).count();
    shared as f64 / (a.len() + b.len() - shared).max(1) as f64
}

/// Scores of an answer under each rule; the answer with the highest score is chosen.
fn scores(answers: &[&Answer]) -> [(&'static str, Vec<f64>); 4] {
    let length = |a: &&Answer| a.text.chars().count() as f64;
    let sets: Vec<BTreeSet<String>> = answers.iter().map(|a| words(&a.text)).collect();
    // The odd one out shares the fewest words with the others.
    let odd = |i: usize| -(0..sets.len()).filter(|&j| j != i).map(|j| similarity(&sets[i], &sets[j])).sum::<f64>();
    [
        ("any answer (chance)", vec![0.0; answers.len()]),
        ("always the shortest", answers.iter().map(|a| -length(a)).collect()),
        ("always the longest", answers.iter().map(length).collect()),
        ("the odd one out", (0..sets.len()).map(odd).collect()),
    ]
}

/// The rules on some items, by the labels of `measure`; nothing for running text.
pub fn surface(records: &[Record], measure: Measure) -> Vec<Surface> {
    let mut results: Vec<(&'static str, Vec<f64>)> = Vec::new();
    for record in records {
        let label = |a: &Answer| if measure.kind == Kind::Mc1 { a.mc1 } else { a.mc1.or(a.label) };
        let answers: Vec<&Answer> = record.answers.iter().filter(|a| label(a).is_some()).collect();
        if answers.is_empty() {
            continue;
        }
        for (rule, (name, scores)) in scores(&answers).into_iter().enumerate() {
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let tied: Vec<bool> =
                answers.iter().zip(&scores).filter(|(_, s)| **s == top).map(|(a, _)| label(a) == Some(true)).collect();
            let right = tied.iter().filter(|&&t| t).count() as f64 / tied.len() as f64;
            match results.get_mut(rule) {
                Some((_, list)) => list.push(right),
                None => results.push((name, vec![right])),
            }
        }
    }
    results
        .into_iter()
        .map(|(name, x)| Surface {
            name,
            value: stats::mean(&x),
            interval: stats::bootstrap_mean(&x, LEVEL, RESAMPLES, SEED),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::results::View;

    fn record(answers: &[(&str, bool)]) -> Record {
        Record {
            item: 0,
            index: 0,
            condition: String::new(),
            question: String::new(),
            category: None,
            answers: answers.iter().map(|&(t, l)| Answer::new(t, l)).collect(),
            views: vec![View { order: None, logprobs: vec![0.0; answers.len()], n_tokens: vec![1; answers.len()] }],
            text: None,
            written: None,
        }
    }

    #[test]
    fn rules_by_hand() {
        let m = Measure { kind: Kind::Accuracy, per_token: false };
        let records = [
            // Shortest: true. Longest: false. Odd one out: the first, true.
            record(&[("It depends.", true), ("The cat sat there.", false), ("The cat lay there for long.", false)]),
            // Shortest: two tie, one of them true. Longest: true.
            record(&[("aa bb", false), ("aa cc", true), ("aa bb cc dd", true)]),
        ];
        let s = surface(&records, m);
        let value = |name: &str| s.iter().find(|s| s.name.contains(name)).unwrap().value;
        assert!((value("chance") - (1.0 / 3.0 + 2.0 / 3.0) / 2.0).abs() < 1e-12);
        assert_eq!((value("shortest"), value("longest")), (0.75, 0.5));
        assert!(value("odd") >= 0.5);
        assert!(surface(&[], m).is_empty());
    }
}
