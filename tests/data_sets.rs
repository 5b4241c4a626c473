//! The shipped preference sets are what data/README.md says: complete, balanced, told apart by meaning only, and free of
//! TruthfulQA's questions. And the files of the BiPO paper load.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use bidpo_core::data::inspect::{PairText, inspect, is_negation};
use bidpo_core::data::similar::{content, similarity, words};
use bidpo_core::data::{PreferencePair, PreferenceSet, Prompt, split};
use std::collections::{BTreeMap, BTreeSet};

fn text(pair: &PreferencePair) -> &str {
    match &pair.prompt {
        Prompt::Text(text) => text,
        Prompt::Messages(_) => panic!("{}: the shipped sets hold plain prompts", pair.origin),
    }
}

/// Both sides of a set: `(chosen, rejected)` of some count over the pairs.
fn both(set: &PreferenceSet, count: impl Fn(&str) -> usize) -> (usize, usize) {
    set.pairs.iter().fold((0, 0), |(a, b), p| (a + count(&p.chosen), b + count(&p.rejected)))
}

#[test]
fn the_sets_are_complete_and_clean() {
    for (name, at_least) in [("misconceptions", 192), ("plain-vs-flowery", 96)] {
        let set = PreferenceSet::builtin(name).unwrap();
        assert!(set.len() >= at_least, "{name} has {} pairs", set.len());
        let mut ids = BTreeSet::new();
        let mut texts = BTreeSet::new();
        for p in &set.pairs {
            assert!(ids.insert(&p.id), "{}: id {} occurs twice", p.origin, p.id);
            for t in [text(p), &p.chosen, &p.rejected] {
                assert!(t.chars().all(|c| c == ' ' || c.is_ascii_graphic()), "{}: not plain ASCII: {t}", p.origin);
                assert!(!t.contains("  ") && t.trim() == t, "{}: stray spaces: {t:?}", p.origin);
                assert!(texts.insert(words(t)), "{}: the text occurs twice: {t}", p.origin);
            }
        }
    }
    let set = PreferenceSet::builtin("misconceptions").unwrap();
    assert_eq!(set.len(), 192);
    let s = split(set.len(), 0, 128, 32, 32).unwrap();
    assert_eq!(s.train.len() + s.valid.len() + s.test.len(), set.len());
}

#[test]
fn length_says_nothing() {
    let set = PreferenceSet::builtin("misconceptions").unwrap();
    let (chosen, rejected) = both(&set, str::len);
    let ratio = chosen as f64 / rejected as f64;
    assert!((0.97..1.03).contains(&ratio), "chosen / rejected characters: {ratio:.3}");
    let shorter = set.pairs.iter().filter(|p| p.chosen.len() < p.rejected.len()).count();
    let longer = set.pairs.iter().filter(|p| p.chosen.len() > p.rejected.len()).count();
    let share = shorter as f64 / (shorter + longer) as f64;
    assert!((0.42..0.58).contains(&share), "the shorter answer is the true one in {share:.3} of the pairs");
    for p in &set.pairs {
        let ratio = p.chosen.len() as f64 / p.rejected.len() as f64;
        assert!(
            (0.66..1.5).contains(&ratio),
            "{}: {} against {} characters",
            p.origin,
            p.chosen.len(),
            p.rejected.len()
        );
    }
    // The style set differs in style, not in how much is said: words, since flowery words are longer ones.
    let style = PreferenceSet::builtin("plain-vs-flowery").unwrap();
    let (flowery, plain) = both(&style, |t| words(t).len());
    let ratio = flowery as f64 / plain as f64;
    assert!((0.85..1.15).contains(&ratio), "flowery / plain words: {ratio:.3}");
}

#[test]
fn negation_and_first_words_say_nothing() {
    let set = PreferenceSet::builtin("misconceptions").unwrap();
    let (a, b) = both(&set, |t| usize::from(words(t).iter().any(|w| is_negation(w))));
    assert!(a.abs_diff(b) <= 12, "answers with a negation: {a} true, {b} false");
    for first in ["yes", "no", "it", "the", "they"] {
        let (a, b) = both(&set, |t| usize::from(words(t).first().is_some_and(|w| w == first)));
        assert!(a.abs_diff(b) <= 6, "answers that begin with {first:?}: {a} true, {b} false");
    }
    let (yes, no) = both(&set, |t| usize::from(words(t).first().is_some_and(|w| w == "yes")));
    assert!(yes.abs_diff(no) <= 4, "Yes is the true answer {yes} times and the false one {no} times");
}

#[test]
fn no_word_gives_an_answer_away() {
    // Answers that hold a word, true against false: for a word with no lean the difference over sqrt(n) has a standard
    // deviation of 1. Among the some 400 words that occur five times, 3.5 is rare by chance and 4.5 does not happen.
    let set = PreferenceSet::builtin("misconceptions").unwrap();
    let mut counts: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for p in &set.pairs {
        for w in words(&p.chosen).into_iter().collect::<BTreeSet<_>>() {
            counts.entry(w).or_default().0 += 1.0;
        }
        for w in words(&p.rejected).into_iter().collect::<BTreeSet<_>>() {
            counts.entry(w).or_default().1 += 1.0;
        }
    }
    for (word, (a, b)) in counts {
        let z = (a - b) / f64::sqrt(a + b);
        assert!(z.abs() < 3.5, "{word:?} stands in {a} true and {b} false answers");
    }
}

/// Accuracy of a classifier that never sees the prompt.
fn surface(set: &str) -> f64 {
    let set = PreferenceSet::builtin(set).unwrap();
    inspect(&set.pairs.iter().map(PairText::from).collect::<Vec<_>>()).surface.unwrap()
}

#[test]
fn the_surface_does_not_tell_true_from_false() {
    let accuracy = surface("misconceptions");
    println!("surface classifier on misconceptions: {:.1} %", 100.0 * accuracy);
    assert!(accuracy <= 0.62, "a classifier that understands nothing is right in {:.1} %", 100.0 * accuracy);
    // The test can fail: the style set is meant to be told apart by its surface, and is.
    let style = surface("plain-vs-flowery");
    println!("surface classifier on plain-vs-flowery: {:.1} %", 100.0 * style);
    assert!(style >= 0.9, "plain and flowery answers are told apart in {:.1} % only", 100.0 * style);
}

#[test]
fn no_question_comes_from_truthfulqa() {
    let (Some(csv_file), Some(json_file)) =
        (common::third_party("truthfulqa/TruthfulQA.csv"), common::third_party("truthfulqa/mc_task.json"))
    else {
        return;
    };
    let mut theirs: BTreeSet<String> = BTreeSet::new();
    let mut reader = csv::Reader::from_path(csv_file).unwrap();
    let column = reader.headers().unwrap().iter().position(|h| h == "Question").unwrap();
    theirs.extend(reader.records().map(|r| r.unwrap()[column].to_owned()));
    let items: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(json_file).unwrap()).unwrap();
    theirs.extend(items.as_array().unwrap().iter().map(|i| i["question"].as_str().unwrap().to_owned()));
    assert!(theirs.len() >= 817, "{} questions", theirs.len());
    let theirs: Vec<_> = theirs.iter().map(|q| (q, content(q))).collect();
    let mut nearest: Vec<(f64, &str, &str)> = Vec::new();
    let sets = PreferenceSet::BUILTIN.map(|n| PreferenceSet::builtin(n).unwrap());
    for p in sets.iter().flat_map(|s| &s.pairs) {
        let ours = content(text(p));
        let (score, question) =
            theirs.iter().map(|(q, c)| (similarity(&ours, c), q.as_str())).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
        nearest.push((score, text(p), question));
    }
    nearest.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (score, ours, question) in &nearest[..15] {
        println!("{score:.2}  {ours}  |  {question}");
    }
    let (score, ours, question) = nearest[0];
    assert!(score < 0.6, "{ours:?} is close to TruthfulQA's {question:?} ({score:.2})");
    // The measure can see a paraphrase.
    let (a, b) =
        ("What happens if you swallow watermelon seeds?", "What happens to someone who swallows a watermelon seed?");
    assert!(similarity(&content(a), &content(b)) >= 0.6);
}

#[test]
fn the_files_of_the_bipo_paper_load() {
    // Counts taken with Python's csv module.
    for (name, n, n_duplicates, n_empty) in [("power-seeking", 642, 2, 2), ("wealth-seeking", 623, 4, 1)] {
        let Some(path) = common::third_party(&format!("bipo/{name}/train.csv")) else { return };
        let set = PreferenceSet::load(&path).unwrap();
        assert_eq!((set.len(), set.n_duplicates(), set.n_empty_prompts()), (n, n_duplicates, n_empty));
        // The origin is the line on which the pair starts, fields with line breaks included.
        let lines: Vec<String> = std::fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
        for p in &set.pairs {
            let line: usize = p.origin.rsplit_once(':').unwrap().1.parse().unwrap();
            let start: String = text(p).lines().next().unwrap_or("").chars().take_while(|&c| c != '"').collect();
            assert!(lines[line - 1].trim_start_matches('"').starts_with(&start), "{}: {start}", p.origin);
        }
    }
}
