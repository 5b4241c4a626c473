//! Question-blind heuristics: rules that see no model, and most of them no question. A model, or a vector,
//! that does no better has shown nothing about truth.

use super::{LEVEL, MIN_ITEMS};
use crate::eval::measures::{Kind, Measure};
use crate::eval::results::{Answer, Record};
use crate::stats::{self, Interval};
use crate::text::{is_negated, words};
use std::collections::BTreeSet;

/// A rule and how often it is right.
#[derive(Debug, Clone, PartialEq)]
pub struct Surface {
    /// The rule's name.
    pub name: String,
    /// Fraction of the items on which it is right; where several answers tie, the fraction of true ones among them counts.
    pub value: f64,
    /// Its interval (Wilson's where no answers tie, otherwise Student's t).
    pub interval: Interval,
}

/// The best of all rules and ordered pairs of rules, chosen on other items than those it is tried on.
#[derive(Debug, Clone, PartialEq)]
pub struct BestRule {
    /// The rule that is best on all items.
    pub name: String,
    /// Number of rules that it was chosen among.
    pub rules: usize,
    /// Accuracy on items that took no part in choosing: in each of [`FOLDS`] folds, that of the rule which is best on the
    /// other folds.
    pub value: f64,
    /// Its interval (Wilson's where no answers tie, otherwise Student's t).
    pub interval: Interval,
    /// True where the interval of the difference from chance lies above 0.
    pub beats_chance: bool,
    /// For each record, whether the rule chosen on the other folds picks a true answer alone; absent for records without
    /// labels.
    pub right: Vec<Option<bool>>,
}

/// Question-blind heuristics on some items.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SurfaceRules {
    /// Single rules, chance first.
    pub rules: Vec<Surface>,
    /// The best rule; absent for fewer than twice as many items as folds.
    pub best: Option<BestRule>,
}

/// Folds of the choice of a rule: item i is in fold i modulo this.
pub const FOLDS: usize = 10;

/// Single rules. Chance ties all answers.
const RULES: [&str; 6] =
    ["any answer (chance)", "always the shortest", "always the longest", "the odd one out", "negated", "not negated"];
/// Names in an ordered pair: `negated, then longest`.
const SHORT: [&str; 6] = ["any", "shortest", "longest", "odd one out", "negated", "not negated"];

/// A rule: an answer's first score decides, ties are broken by the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    first: usize,
    second: Option<usize>,
}

impl Rule {
    fn name(self) -> String {
        match self.second {
            None => RULES[self.first].to_owned(),
            Some(second) => format!("{}, then {}", SHORT[self.first], SHORT[second]),
        }
    }

    /// All single rules, then all ordered pairs of different ones.
    fn all() -> Vec<Self> {
        let single = (0..RULES.len()).map(|first| Self { first, second: None });
        let pair = |first| move |second| Self { first, second: Some(second) };
        let pairs = (1..RULES.len()).flat_map(|first| (1..RULES.len()).map(pair(first)));
        // A rule after itself, or after its opposite, breaks no tie.
        let useful = |r: &Self| r.second != Some(r.first) && !(r.first >= 4 && r.second >= Some(4));
        single.chain(pairs.filter(useful)).collect()
    }

    /// The answers that the rule picks, by the scores of [`scores`].
    fn picks(self, scores: &[Vec<f64>]) -> Vec<usize> {
        let best = |among: Vec<usize>, scores: &[f64]| -> Vec<usize> {
            let top = among.iter().map(|&i| scores[i]).fold(f64::NEG_INFINITY, f64::max);
            among.into_iter().filter(|&i| scores[i] == top).collect()
        };
        let picked = best((0..scores[0].len()).collect(), &scores[self.first]);
        match self.second {
            None => picked,
            Some(second) => best(picked, &scores[second]),
        }
    }
}

/// Jaccard similarity of two sets of words.
fn similarity(a: &BTreeSet<String>, b: &BTreeSet<String>) -> f64 {
    let shared = a.intersection(b).count();
    shared as f64 / (a.len() + b.len() - shared).max(1) as f64
}

/// For each of [`RULES`], a score of every answer; the answer with the highest score is chosen.
fn scores(answers: &[&Answer]) -> Vec<Vec<f64>> {
    let length: Vec<f64> = answers.iter().map(|a| a.text.chars().count() as f64).collect();
    let sets: Vec<BTreeSet<String>> = answers.iter().map(|a| words(&a.text).into_iter().collect()).collect();
    // The odd one out shares the fewest words with the others.
    let odd = |i: usize| -(0..sets.len()).filter(|&j| j != i).map(|j| similarity(&sets[i], &sets[j])).sum::<f64>();
    let negated: Vec<f64> = answers.iter().map(|a| f64::from(u8::from(is_negated(&a.text)))).collect();
    let minus = |x: &[f64]| x.iter().map(|x| -x).collect::<Vec<_>>();
    vec![
        vec![0.0; answers.len()],
        minus(&length),
        length,
        (0..sets.len()).map(odd).collect(),
        minus(&minus(&negated)),
        minus(&negated),
    ]
}

/// The rules on some items, by the labels of `measure`; nothing for running text.
pub fn surface(records: &[Record], measure: Measure) -> SurfaceRules {
    let rules = Rule::all();
    // For each record with labels, the fraction of true answers among those that each rule picks.
    let mut places = Vec::new();
    let mut right: Vec<Vec<f64>> = Vec::new(); // [items, rules]
    for (place, record) in records.iter().enumerate() {
        let label = |a: &Answer| if measure.kind == Kind::Mc1 { a.mc1 } else { a.mc1.or(a.label) };
        let answers: Vec<&Answer> = record.answers.iter().filter(|a| label(a).is_some()).collect();
        if answers.is_empty() {
            continue;
        }
        let scores = scores(&answers);
        let share = |rule: &Rule| {
            let picked = rule.picks(&scores);
            let truths = picked.iter().filter(|&&i| label(answers[i]) == Some(true)).count();
            truths as f64 / picked.len() as f64
        };
        places.push(place);
        right.push(rules.iter().map(share).collect());
    }
    if right.is_empty() {
        return SurfaceRules::default();
    }
    let column = |rule: usize| right.iter().map(|r| r[rule]).collect::<Vec<f64>>();
    let single = (0..RULES.len()).map(|rule| {
        let (value, interval) = accuracy(&column(rule));
        Surface { name: rules[rule].name(), value, interval }
    });
    SurfaceRules { rules: single.collect(), best: best(&rules, &right, &places, records.len()) }
}

/// The best rule, cross-validated. `right` is `[items, rules]`, `places` the record of each item.
fn best(rules: &[Rule], right: &[Vec<f64>], places: &[usize], n_records: usize) -> Option<BestRule> {
    if right.len() < (2 * FOLDS).max(MIN_ITEMS) {
        return None;
    }
    // The first of equals, so that a single rule comes before a pair.
    let choose = |without: Option<usize>| {
        let used = || (0..right.len()).filter(|i| without.is_none_or(|fold| i % FOLDS != fold));
        let sum = |rule: usize| used().map(|i| right[i][rule]).sum::<f64>();
        (1..rules.len()).rev().max_by(|&a, &b| sum(a).total_cmp(&sum(b)))
    };
    let by_fold: Vec<usize> = (0..FOLDS).map(|fold| choose(Some(fold))).collect::<Option<_>>()?;
    let out_of_fold: Vec<f64> = right.iter().enumerate().map(|(i, r)| r[by_fold[i % FOLDS]]).collect();
    let (value, interval) = accuracy(&out_of_fold);
    let over_chance: Vec<f64> = out_of_fold.iter().zip(right).map(|(x, r)| x - r[0]).collect();
    let mut of_records = vec![None; n_records];
    places.iter().zip(&out_of_fold).for_each(|(&place, &x)| of_records[place] = Some(x == 1.0));
    Some(BestRule {
        name: rules[choose(None)?].name(),
        rules: rules.len() - 1,
        value,
        interval,
        beats_chance: stats::student_mean(&over_chance, LEVEL).is_some_and(|m| m.interval.lo > 0.0),
        right: of_records,
    })
}

/// Mean and its interval: Wilson's where no answers tie, Student's t within 0 and 1 otherwise.
fn accuracy(x: &[f64]) -> (f64, Interval) {
    let value = stats::mean(x);
    if x.iter().all(|&v| v == 0.0 || v == 1.0) {
        return (value, stats::wilson(x.iter().filter(|&&v| v == 1.0).count(), x.len(), LEVEL));
    }
    let i = stats::student_mean(x, LEVEL).map_or(Interval { lo: value, hi: value }, |m| m.interval);
    (value, Interval { lo: i.lo.max(0.0), hi: i.hi.min(1.0) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::results::View;

    const ACCURACY: Measure = Measure { kind: Kind::Accuracy, per_token: false };

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
        let records = [
            // Shortest: true. Longest: false. Odd one out: the first, true.
            record(&[("It depends.", true), ("The cat sat there.", false), ("The cat lay there for long.", false)]),
            // Shortest: two tie, one of them true. Longest: true.
            record(&[("aa bb", false), ("aa cc", true), ("aa bb cc dd", true)]),
            // Negated: the last two tie, one of them true.
            record(&[("Yes it is.", false), ("No.", false), ("It isn\u{2019}t so.", true)]),
        ];
        let s = surface(&records, ACCURACY);
        let value = |name: &str| s.rules.iter().find(|s| s.name.contains(name)).unwrap().value;
        assert!((value("chance") - (1.0 / 3.0 + 2.0 / 3.0 + 1.0 / 3.0) / 3.0).abs() < 1e-12);
        assert_eq!((value("shortest"), value("longest")), (0.5, 2.0 / 3.0));
        assert_eq!((s.rules[4].name.as_str(), s.rules[5].name.as_str()), ("negated", "not negated"));
        // By "negated" nothing tells the answers of the first two apart.
        assert!((s.rules[4].value - (1.0 / 3.0 + 2.0 / 3.0 + 0.5) / 3.0).abs() < 1e-12);
        assert!(s.best.is_none(), "three items choose no rule");
        assert_eq!(surface(&[], ACCURACY), SurfaceRules::default());
    }

    /// The true answer is the longer one of the negated ones: a pair of rules finds it, on items that did not choose it.
    #[test]
    fn pairs_of_rules_are_cross_validated() {
        let mut records: Vec<Record> = (0..40)
            .map(|i| {
                let long = format!("No, this is not what the {i} of them do.");
                record(&[
                    (&long, true),
                    ("No, not they.", false),
                    ("They do this on every single day of the week.", false),
                ])
            })
            .collect();
        records.push(Record { answers: Vec::new(), ..records[0].clone() });
        let best = surface(&records, ACCURACY).best.unwrap();
        assert_eq!((best.name.as_str(), best.value, best.rules), ("negated, then longest", 1.0, 23));
        assert!(best.right[..40].iter().all(|r| *r == Some(true)) && best.right[40].is_none());
        // A rule that is the best by chance on all items is not better than chance on others: labels without any relation.
        let mut state = 7u64;
        let mut draw = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        };
        let noise: Vec<Record> = (0..60)
            .map(|_| {
                let texts: Vec<String> = (0..4).map(|_| "x".repeat(3 + draw() as usize % 40)).collect();
                let truth = draw() as usize % 4;
                let answers: Vec<(&str, bool)> =
                    texts.iter().enumerate().map(|(i, t)| (t.as_str(), i == truth)).collect();
                record(&answers)
            })
            .collect();
        let found = surface(&noise, ACCURACY);
        let best = found.best.unwrap();
        let in_sample = found.rules.iter().map(|r| r.value).fold(0.0, f64::max);
        assert!(best.value <= in_sample + 1e-12 && !best.beats_chance, "{best:?}");
    }
}
