//! `train --objective sft` on prompts with one answer each.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use common::bench::{Bench, PAIRS};
use serde_json::Value;

/// The rejected answers play no part in the objective: without them losses and vector are the same. (The learning rate is a number:
/// a percentage refers to the norms of all tokens, those of rejected answers included.)
#[test]
fn the_vector_is_that_of_pairs_with_any_rejected_answers() {
    let bench = Bench::random("llama", "f32");
    let line = |[p, c, _]: &[&str; 3]| serde_json::json!({ "prompt": p, "completion": c }).to_string() + "\n";
    std::fs::write(bench.path("alone.jsonl"), PAIRS.iter().map(line).collect::<String>()).unwrap();
    let flags = "--objective sft --layer 1 --steps 4 --batch 3 --lr 0.02 --val 0 --test 0";
    let pairs = bench.summary("pairs.gguf", flags);
    let alone = bench.summary("alone.gguf", &format!("{flags} --data DIR/alone.jsonl"));
    let losses = |s: &Value| -> Vec<f64> {
        s["history"].as_array().unwrap().iter().map(|h| h["train_loss"].as_f64().unwrap()).collect()
    };
    assert_eq!(losses(&pairs).len(), 2);
    assert_eq!(losses(&pairs), losses(&alone));
    assert!(bench.numbers("pairs.gguf") == bench.numbers("alone.gguf"));

    // Held out: the log-probability of the answers, and no preference.
    let s = bench.summary(
        "held.gguf",
        "--objective sft --layer 1 --steps 2 --data DIR/alone.jsonl --val 0 --test 0.5 --random 2",
    );
    let rows = s["heldout"].as_array().unwrap();
    let of = |name: &str| rows.iter().find(|r| r["condition"] == name).unwrap();
    assert!(of("unsteered")["mean_logp_diff"].as_f64().unwrap() < 0.0 && of("unsteered")["accuracy"].is_null());
    assert!(of("vector, scale +1")["logp_diff_change"]["mean"].is_number());
    assert!(s["summary"].as_str().unwrap().contains("3 held-out answers are left"), "{s}");
    let card = String::from_utf8(bench.files("held.gguf").1).unwrap();
    assert!(
        card.contains("log-prob. of the answer, nats") && !card.contains("reference accuracy: the fraction"),
        "{card}"
    );

    let said = bench.fails("no.gguf", "--objective dpo --layer 1 --steps 1 --data DIR/alone.jsonl");
    assert!(said.contains("rejected"), "{said}");
}
