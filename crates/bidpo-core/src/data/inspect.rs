//! Facts about preference pairs to know before training on them: duplicates, balance, contradictions, what the
//! surface gives away, overlap with evaluation sets.

use super::similar::{NearPairs, near_pairs, words};
use super::truthfulqa::Question;
use super::{PreferencePair, permutation};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The texts of a pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairText {
    /// Its place in the file.
    pub place: String,
    /// The prompt, all of its messages in one text.
    pub prompt: String,
    /// The answer to prefer.
    pub chosen: String,
    /// The answer to avoid.
    pub rejected: String,
}

impl From<&PreferencePair> for PairText {
    fn from(p: &PreferencePair) -> Self {
        Self {
            place: p.origin.clone(),
            prompt: p.prompt.text(),
            chosen: p.chosen.clone(),
            rejected: p.rejected.clone(),
        }
    }
}

impl From<&Question> for PairText {
    /// The best answer against the best incorrect one; in files without them, the first true one against the first false one.
    fn from(q: &Question) -> Self {
        let pair = q.binary.as_ref().map(|[a, b]| (a.text.clone(), b.text.clone()));
        let first = |truth: bool| q.mc1.iter().find(|c| c.is_true == truth).map(|c| c.text.clone());
        let (chosen, rejected) = pair.or_else(|| first(true).zip(first(false))).unwrap_or_default();
        Self { place: String::new(), prompt: q.text.clone(), chosen, rejected }
    }
}

/// A figure of the chosen and of the rejected answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Balance {
    /// Name of the count.
    pub what: String,
    /// Of the chosen answers.
    pub chosen: f64,
    /// Of the rejected answers.
    pub rejected: f64,
    /// Difference in standard errors of the paired difference; beyond 3 chance is an unlikely explanation.
    pub z: f64,
}

/// Result of [`inspect`].
#[derive(Debug, Clone, PartialEq)]
pub struct Inspection {
    /// Pairs.
    pub n: usize,
    /// Pairs that repeat an earlier one word for word: (earlier, later).
    pub repeated: Vec<(usize, usize)>,
    /// Prompts that ask nearly the same, with their similarity.
    pub near: NearPairs,
    /// Pairs of one prompt where one pair chooses what the other rejects.
    pub contradictions: Vec<(usize, usize)>,
    /// Empty prompts.
    pub empty_prompts: usize,
    /// Lengths, negations, first words.
    pub balance: Vec<Balance>,
    /// Share of held-out pairs on whose right side a classifier falls that knows single words, first words and lengths of
    /// the answers and never sees the prompt (naive Bayes, 10 folds); 0.5 is chance. `None` for fewer than 20 pairs.
    pub surface: Option<f64>,
}

/// Standard errors beyond which a difference of chosen and rejected answers is said.
const NOT_CHANCE: f64 = 3.0;
/// Accuracy of [`Inspection::surface`] beyond which it is said.
const GIVES_AWAY: f64 = 0.65;

impl Inspection {
    /// Warnings for training on these pairs.
    pub fn warnings(&self) -> Vec<String> {
        let mut out = Vec::new();
        match self.contradictions.len() {
            0 => {}
            1 => out.push("two pairs contradict each other: one chooses what the other rejects".to_owned()),
            n => out.push(format!("{n} times one pair chooses what another pair of the same prompt rejects")),
        }
        for b in self.balance.iter().filter(|b| b.z.abs() > NOT_CHANCE) {
            let (more, less) = (b.chosen.max(b.rejected), b.chosen.min(b.rejected));
            let side = if b.chosen > b.rejected { "chosen" } else { "rejected" };
            match b.what.as_str() {
                "characters" => out.push(format!(
                    "the {side} answers are the longer ones, {more:.0} characters against {less:.0}: the vector may learn length"
                )),
                NEGATION => out.push(format!(
                    "{:.0} % of the {side} answers hold a negation, of the others {:.0} %: the vector may learn to deny",
                    100.0 * more,
                    100.0 * less
                )),
                _ => {}
            }
        }
        if let Some(surface) = self.surface.filter(|&s| s > GIVES_AWAY) {
            out.push(format!(
                "a classifier that never sees the prompt tells the two answers apart in {:.0} % of held-out pairs: what the \
                 vector learns may be their wording",
                100.0 * surface
            ));
        }
        out
    }
}

const NEGATION: &str = "with a negation";

pub use crate::text::is_negation;

/// Looks at some pairs.
pub fn inspect(pairs: &[PairText]) -> Inspection {
    let mut seen: HashMap<(&str, &str, &str), usize> = HashMap::new();
    let mut repeated = Vec::new();
    for (i, p) in pairs.iter().enumerate() {
        match seen.entry((&p.prompt, &p.chosen, &p.rejected)) {
            std::collections::hash_map::Entry::Occupied(e) => repeated.push((*e.get(), i)),
            std::collections::hash_map::Entry::Vacant(e) => {
                e.insert(i);
            }
        }
    }
    let mut by_prompt: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    pairs.iter().enumerate().for_each(|(i, p)| by_prompt.entry(p.prompt.trim()).or_default().push(i));
    let contradictions = contradictions(pairs, by_prompt.values());
    let prompts: Vec<String> = pairs.iter().map(|p| p.prompt.clone()).collect();
    Inspection {
        n: pairs.len(),
        repeated,
        near: near_pairs(&prompts, super::similar::NEAR),
        contradictions,
        empty_prompts: pairs.iter().filter(|p| p.prompt.trim().is_empty()).count(),
        balance: balance(pairs),
        surface: (pairs.len() >= 20).then(|| surface(pairs)),
    }
}

/// Pairs of one prompt, (earlier, later), where one chooses what the other rejects.
fn contradictions<'a>(pairs: &[PairText], same_prompt: impl Iterator<Item = &'a Vec<usize>>) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for same in same_prompt.filter(|s| s.len() > 1) {
        let mut choosing: HashMap<&str, Vec<usize>> = HashMap::new();
        let mut rejecting: HashMap<&str, Vec<usize>> = HashMap::new();
        for &j in same {
            let (chosen, rejected) = (pairs[j].chosen.trim(), pairs[j].rejected.trim());
            let earlier = rejecting.get(chosen).into_iter().chain(choosing.get(rejected)).flatten();
            let earlier: BTreeSet<usize> = earlier.copied().collect();
            found.extend(earlier.into_iter().map(|i| (i, j)));
            choosing.entry(chosen).or_default().push(j);
            rejecting.entry(rejected).or_default().push(j);
        }
    }
    found.sort_unstable();
    found
}

fn balance(pairs: &[PairText]) -> Vec<Balance> {
    let of = |what: &str, f: &dyn Fn(&str) -> f64| {
        let (a, b): (Vec<f64>, Vec<f64>) = pairs.iter().map(|p| (f(&p.chosen), f(&p.rejected))).unzip();
        let n = pairs.len() as f64;
        let mean = |x: &[f64]| x.iter().sum::<f64>() / n;
        let d: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a - b).collect();
        let m = mean(&d);
        let error = (d.iter().map(|x| (x - m).powi(2)).sum::<f64>() / (n - 1.0).max(1.0) / n).sqrt();
        let z = if m == 0.0 {
            0.0
        } else if error > 0.0 {
            m / error
        } else {
            f64::INFINITY.copysign(m)
        };
        Balance { what: what.into(), chosen: mean(&a), rejected: mean(&b), z }
    };
    let flag = |b: bool| f64::from(u8::from(b));
    let mut out = vec![
        of("characters", &|t| t.chars().count() as f64),
        of("words", &|t| words(t).len() as f64),
        of(NEGATION, &|t| flag(words(t).iter().any(|w| is_negation(w)))),
    ];
    // The first words that occur most.
    let mut firsts: BTreeMap<String, usize> = BTreeMap::new();
    for t in pairs.iter().flat_map(|p| [&p.chosen, &p.rejected]) {
        if let Some(w) = words(t).first() {
            *firsts.entry(w.clone()).or_default() += 1;
        }
    }
    let mut firsts: Vec<(String, usize)> = firsts.into_iter().filter(|f| f.1 >= pairs.len().div_ceil(20)).collect();
    firsts.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    for (first, _) in firsts.into_iter().take(6) {
        out.push(of(&format!("beginning with {first:?}"), &|t| flag(words(t).first() == Some(&first))));
    }
    out
}

fn features(answer: &str) -> BTreeSet<String> {
    let words = words(answer);
    let mut out: BTreeSet<String> = words.iter().cloned().collect();
    out.insert(format!("<first> {}", words.first().map_or("", String::as_str)));
    out.insert(format!("<start> {}", words[..words.len().min(2)].join(" ")));
    out.insert(format!("<last> {}", words.last().map_or("", String::as_str)));
    out.insert(format!("<length> {}", answer.chars().count() / 12));
    out.insert(format!("<words> {}", words.len() / 3));
    out.insert(format!("<negations> {}", words.iter().filter(|w| is_negation(w)).count()));
    out.insert(format!("<commas> {}", answer.matches(',').count()));
    out
}

/// Naive Bayes with add-one smoothing, cross-validated over 10 folds, averaged over five foldings; ties count half. Pairs of one prompt share a fold.
fn surface(pairs: &[PairText]) -> f64 {
    const FOLDS: usize = 10;
    const REPEATS: u64 = 5;
    let all: Vec<[BTreeSet<String>; 2]> = pairs.iter().map(|p| [features(&p.chosen), features(&p.rejected)]).collect();
    let mut ids: BTreeMap<&str, usize> = BTreeMap::new();
    let group: Vec<usize> = pairs
        .iter()
        .map(|p| {
            let next = ids.len();
            *ids.entry(p.prompt.trim()).or_insert(next)
        })
        .collect();
    // Features as numbers, in each answer in the order of their names; counts over all pairs, of chosen and rejected answers.
    let mut names: HashMap<&str, usize> = HashMap::new();
    let numbered: Vec<[Vec<usize>; 2]> = all
        .iter()
        .map(|sides| {
            [0, 1].map(|side| {
                let sides: &[BTreeSet<String>; 2] = sides;
                sides[side]
                    .iter()
                    .map(|name| {
                        let next = names.len();
                        *names.entry(name).or_insert(next)
                    })
                    .collect()
            })
        })
        .collect();
    let count = |counts: &mut [[f64; 2]], pairs: &[usize], by: f64| {
        for &i in pairs {
            for (side, features) in numbered[i].iter().enumerate() {
                features.iter().for_each(|&f| counts[f][side] += by);
            }
        }
    };
    let mut counts = vec![[0.0f64; 2]; names.len()];
    count(&mut counts, &(0..pairs.len()).collect::<Vec<_>>(), 1.0);
    let mut right = 0.0;
    for seed in 0..REPEATS {
        let order = permutation(ids.len(), seed);
        for f in 0..FOLDS {
            let fold: Vec<usize> = (0..pairs.len()).filter(|&i| order[group[i]] % FOLDS == f).collect();
            // The fold's own pairs are not counted while they are told apart.
            count(&mut counts, &fold, -1.0);
            let score = |features: &[usize]| -> f64 {
                let seen = features.iter().map(|&f| counts[f]).filter(|[a, b]| a + b > 0.0);
                seen.map(|[a, b]| ((a + 1.0) / (b + 1.0)).ln()).sum()
            };
            for &i in &fold {
                let [a, b] = [0, 1].map(|side: usize| score(&numbered[i][side]));
                right += if a > b {
                    1.0
                } else if a < b {
                    0.0
                } else {
                    0.5
                };
            }
            count(&mut counts, &fold, 1.0);
        }
    }
    right / (REPEATS as usize * pairs.len()) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::PreferenceSet;
    use crate::data::similar::nearest;

    fn triple(prompt: &str, chosen: &str, rejected: &str) -> PairText {
        PairText { place: String::new(), prompt: prompt.into(), chosen: chosen.into(), rejected: rejected.into() }
    }

    #[test]
    fn faults_are_found() {
        let pairs = [
            triple("Is glass a liquid?", "It is a solid.", "It is a liquid."),
            triple("Is glass a liquid?", "It is a solid.", "It is a liquid."),
            triple("Is glass a liquid?", "It is a liquid.", "It is a solid."),
            triple("Is it true that glass is a liquid?", "No.", "Yes."),
            triple(" ", "No.", "Yes."),
        ];
        let i = inspect(&pairs);
        assert_eq!((i.repeated.as_slice(), i.empty_prompts, i.surface), (&[(0, 1)][..], 1, None));
        assert_eq!(i.contradictions, [(0, 2), (1, 2)]);
        assert!(i.warnings()[0].starts_with("2 times one pair chooses"), "{:?}", i.warnings());
        assert!(i.near.listed.iter().any(|n| (n.0, n.1) == (0, 3)), "{:?}", i.near);
        let ours = ["Glass: liquid?".to_owned(), "Who are you?".to_owned()];
        assert_eq!(nearest(&ours, &[pairs[0].prompt.clone()], 0.6).len(), 1);
        // No content word in it, and yet the same question.
        let theirs = ["", "Are you who?", "who are you"].map(str::to_owned);
        assert_eq!(nearest(&ours, &theirs, 0.6), [(1, 2, 1.0)]);
        assert!(nearest(&["".to_owned()], &theirs, 0.6).is_empty());
    }

    /// Also where all prompts are of one template, or one prompt.
    #[test]
    fn ten_thousand_pairs_are_inspected_and_grouped() {
        for prompt in [
            (|i| format!("question{i} about topic{}", i % 700)) as fn(usize) -> String,
            |i| format!("Please write a short poem about topic{i}"),
            |_| "One prompt".to_owned(),
        ] {
            let pairs: Vec<PairText> = (0..10_000)
                .map(|i| {
                    triple(&prompt(i), &format!("It is thing{i} and other things{}", i % 90), &format!("No, it is {i}"))
                })
                .collect();
            let found = inspect(&pairs);
            let groups = crate::data::PairGroups::new(&pairs, crate::data::SplitBy::Groups);
            let one_kind = !prompt(0).starts_with("question");
            assert_eq!((groups.n_pairs(), found.near.more), (10_000, prompt(0).starts_with("Please")), "{}", prompt(0));
            assert!(!one_kind || groups.largest() == 10_000, "{}", prompt(0));
        }
    }

    #[test]
    fn the_built_in_sets_are_what_they_are_meant_to_be() {
        let look = |name: &str| {
            let set = PreferenceSet::builtin(name).unwrap();
            inspect(&set.pairs.iter().map(PairText::from).collect::<Vec<_>>())
        };
        let (facts, style) = (look("misconceptions"), look("plain-vs-flowery"));
        assert_eq!((facts.repeated.len(), facts.contradictions.len(), facts.empty_prompts), (0, 0, 0));
        let z = |i: &Inspection, what: &str| i.balance.iter().find(|b| b.what == what).unwrap().z;
        assert!(z(&facts, "characters").abs() < 3.0 && z(&facts, "with a negation").abs() < 3.0);
        // One cannot be told apart by its surface, the other is meant to be.
        assert!(facts.surface.unwrap() < 0.65, "{:?}", facts.surface);
        assert!(style.surface.unwrap() > 0.9, "{:?}", style.surface);
        assert_eq!(facts.warnings(), Vec::<String>::new());
        let said = style.warnings().join("\n");
        assert!(said.contains("never sees the prompt") && said.contains("may learn length"), "{said}");
    }
}
