//! The dial that ships: the vector trained on plain against flowery prose changes what the model writes, in both directions.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use assert_cmd::Command;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// Questions that are in neither preference set.
const QUESTIONS: [&str; 6] = [
    "Describe an old wooden bridge.",
    "What is a violin?",
    "Tell me about a walk in the forest.",
    "How do I make a cup of tea?",
    "What does a baker do?",
    "Write two sentences about the sea.",
];

fn words(text: &str) -> HashSet<String> {
    text.split(|c: char| !c.is_alphanumeric() && c != '\'').filter(|w| !w.is_empty()).map(str::to_lowercase).collect()
}

/// A judge that never saw the model: naive Bayes over the words of the preference set (flowery against plain, Laplace
/// smoothing). Positive: flowery.
struct Judge(HashMap<String, f64>);

impl Judge {
    fn new() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/plain-vs-flowery.jsonl");
        let (mut counts, mut n) = (HashMap::<String, [f64; 2]>::new(), 0.0);
        for line in std::fs::read_to_string(path).unwrap().lines() {
            let pair: serde_json::Value = serde_json::from_str(line).unwrap();
            n += 1.0;
            for (i, key) in ["chosen", "rejected"].into_iter().enumerate() {
                for word in words(pair[key].as_str().unwrap()) {
                    counts.entry(word).or_default()[i] += 1.0;
                }
            }
        }
        Self(
            counts
                .into_iter()
                .map(|(w, [a, b])| (w, ((a + 1.0) / (n + 2.0)).ln() - ((b + 1.0) / (n + 2.0)).ln()))
                .collect(),
        )
    }

    /// Mean weight of the words it knows.
    fn score(&self, text: &str) -> f64 {
        let known: Vec<f64> = words(text).iter().filter_map(|w| self.0.get(w).copied()).collect();
        known.iter().sum::<f64>() / known.len().max(1) as f64
    }
}

#[test]
fn the_shipped_style_dial_turns_both_ways() {
    let Some(model) = common::model(common::SMOL) else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let vector = root.join("vectors/plain-vs-flowery.SmolLM2-135M-Instruct.Q4_1.gguf");
    let judge = Judge::new();
    let mut sums = [0.0; 3];
    for question in QUESTIONS {
        let out = Command::cargo_bin("bidpo")
            .unwrap()
            .args([
                "generate",
                "--json",
                "-n",
                "48",
                "--repeat-penalty",
                "1.1",
                "--scales=-1,0,1",
                "--prompt",
                question,
            ])
            .arg("--model")
            .arg(&model)
            .arg("--vector")
            .arg(&vector)
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let answers: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        for (i, sum) in sums.iter_mut().enumerate() {
            let text = answers[i]["text"].as_str().unwrap();
            let score = judge.score(text);
            eprintln!("scale {:+}: {score:+.3} {text:?}", i as i32 - 1);
            *sum += score / QUESTIONS.len() as f64;
        }
    }
    let [minus, zero, plus] = sums;
    eprintln!("mean score: {minus:+.3} at -1, {zero:+.3} at 0, {plus:+.3} at +1");
    assert!(plus > zero + 0.1 && zero > minus + 0.1, "{minus} {zero} {plus}");
}

#[test]
fn the_shipped_vectors_fit_their_models() {
    for model in [common::SMOL, common::GEMMA] {
        for set in ["misconceptions", "plain-vs-flowery"] {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors");
            let stem = format!("{set}.{}", model.trim_end_matches(".gguf"));
            let out = Command::cargo_bin("bidpo")
                .unwrap()
                .args(["vector", "show", "--json"])
                .arg(root.join(format!("{stem}.gguf")))
                .output()
                .unwrap();
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            let text = String::from_utf8(out.stdout).unwrap();
            let hash = bidpo_fetch::models::known(model).unwrap().sha256();
            assert!(text.contains(hash), "{stem}: made for a model that bidpo does not fetch: {text}");
            let card = std::fs::read_to_string(root.join(format!("{stem}.md"))).unwrap();
            assert!(card.contains(hash) && card.contains("held-out pairs"), "{card}");
        }
    }
}
