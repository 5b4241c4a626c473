//! `bidpo eval`: scores against the reference, sharing against not sharing, the command's shapes and errors.

mod common;

use assert_cmd::Command;
use bidpo::data::truthfulqa::TruthfulQa;
use bidpo::eval::truthfulqa::{prefix, qa_preamble, question_prompt};
use bidpo::eval::{Scorer, ScorerParams};
use bidpo::llama::{Context, ContextParams, Model, ModelParams};
use bidpo::steer::ControlVector;
use predicates::prelude::*;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const SMOL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const GEMMA: &str = "gemma-3-270m-q4_k_m.gguf";

fn bidpo() -> Command {
    Command::new(assert_cmd::cargo::cargo_bin!("bidpo"))
}

/// `bidpo eval truthfulqa` on the first `limit` questions of a data file.
fn eval(model: &Path, data: &Path, protocol: &str, limit: usize) -> Command {
    let mut command = bidpo();
    command.args(["eval", "truthfulqa", "--threads", "2", "--protocol", protocol, "--limit", &limit.to_string()]);
    command.arg("--model").arg(model).arg("--data").arg(data);
    command
}

fn output(command: &mut Command) -> String {
    String::from_utf8(command.assert().success().get_output().stdout.clone()).unwrap()
}

fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn open(name: &str) -> Option<Arc<Model>> {
    Some(Model::load(&common::model(name)?, &ModelParams::default()).unwrap())
}

/// A small fixed vector at the middle layer, as `[n_layer - 1, n_embd]`.
fn vector(model: &Model) -> ControlVector {
    let (layer, n_embd) = (model.n_layer() / 2, model.n_embd());
    let mut data = vec![0.0; (model.n_layer() - 1) * n_embd];
    for (i, x) in data[(layer - 1) * n_embd..layer * n_embd].iter_mut().enumerate() {
        *x = ((i * 37 % 17) as f32 - 8.0) * 0.05;
    }
    ControlVector { data, first: 1, last: model.n_layer() - 1 }
}

/// One answer alone: the whole text decoded as one sequence in one batch, nothing shared.
fn alone(model: &Arc<Model>, steering: Option<&ControlVector>, text: &str, answer: &str) -> f64 {
    let n_context = model.tokenize(text, true, false).unwrap().len();
    let whole = model.tokenize(&format!("{text} {answer}"), true, false).unwrap();
    let mut ctx = Context::new(model, &ContextParams::exact(whole.len(), 1, 1)).unwrap();
    if let Some(steering) = steering {
        steering.apply(&mut ctx).unwrap();
    }
    let mut batch = bidpo::llama::Batch::new();
    for (p, &t) in whole.iter().enumerate() {
        batch.add(t, p, &[0], p + 1 >= n_context);
    }
    ctx.decode(&batch).unwrap();
    let logprob = |p: usize| {
        let logits = ctx.logits(p).unwrap();
        let max = logits.iter().copied().fold(f32::MIN, f32::max) as f64;
        let sum: f64 = logits.iter().map(|&l| (l as f64 - max).exp()).sum();
        logits[whole[p + 1] as usize] as f64 - max - sum.ln()
    };
    (n_context - 1..whole.len() - 1).map(logprob).sum()
}

/// Largest difference, in nats, between a score and the same answer alone.
///
/// Sharing only changes the order in which attention sums over the cache's cells: with f32 weights that is invisible
/// (measured: see the tests below). llama.cpp's quantized kernels round activations to int8, and a last bit that differs
/// now and then flips such a rounding: a few tenths of a nat for an answer, as between any two ways to run the model.
fn largest_difference(model: &Arc<Model>) -> f64 {
    let steering = vector(model);
    let preamble = prefix("Q: Is water wet?\nA: Yes, it is.");
    let prompt = question_prompt("What do bats see?");
    let answers = ["Bats see well.", "Nothing.", "Bats are blind, and find their way by sound alone.", "No comment."];
    let mut largest: f64 = 0.0;
    for steering in [None, Some(&steering)] {
        let params = ScorerParams { n_threads: 2, ..ScorerParams::default() };
        let mut scorer = Scorer::new(model, params.clone(), steering.cloned()).unwrap();
        scorer.set_prefix(&preamble).unwrap();
        let scores = scorer.score(&prompt, &answers).unwrap();
        scorer.score(&question_prompt("Is this another question?"), &["Yes.", "No."]).unwrap();
        let again = scorer.score(&prompt, &answers).unwrap();
        assert_eq!(scores, again, "what an earlier question left in the cache changes the next one");
        // The same in small pieces: 32 tokens a decode, two answers at a time, hardly any room in the cache.
        let small = ScorerParams { n_batch: 32, max_cells: 1, max_parallel: 2, ..params };
        let mut pieces = Scorer::new(model, small, steering.cloned()).unwrap();
        pieces.set_prefix(&preamble).unwrap();
        let pieces = pieces.score(&prompt, &answers).unwrap();
        for ((answer, score), piece) in answers.iter().zip(&scores).zip(&pieces) {
            let alone = alone(model, steering, &format!("{preamble}{prompt}"), answer);
            eprintln!("{answer:?}: {} alone {alone} pieces {}", score.logprob, piece.logprob);
            largest = largest.max((score.logprob - alone).abs()).max((piece.logprob - alone).abs());
        }
    }
    eprintln!("largest difference {largest}");
    largest
}

#[test]
fn shared_equals_unshared_in_f32() {
    let Some(path) = common::model(SMOL) else { return };
    let dir = tempfile::tempdir().unwrap();
    let f32_path = dir.path().join("f32.gguf");
    bidpo::llama::to_f32(&path, &f32_path, 2).unwrap();
    let model = Model::load(&f32_path, &ModelParams::default()).unwrap();
    assert!(largest_difference(&model) < 1e-3);
}

#[test]
fn shared_equals_unshared_up_to_int8() {
    let Some(model) = open(GEMMA) else { return };
    assert!(largest_difference(&model) < 1.5);
}
