//! Scores of questions that share a batch, against each question by itself; and where llama.cpp's own logits are used.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use bidpo_core::data::truthfulqa::TruthfulQa;
use bidpo_core::eval::truthfulqa::{prefix, qa_preamble, question_prompt};
use bidpo_core::eval::{Request, Scorer, ScorerParams, TokenRequest};
use ggml_grad::llama::{Batch, Context, ContextParams, DType, Model, ModelParams};
use std::sync::Arc;

const QUESTIONS: usize = 4;

fn scorer(model: &Arc<Model>, preamble: &str) -> Scorer {
    let params = ScorerParams { n_threads: 1, ..ScorerParams::default() };
    let mut scorer = Scorer::new(model, params, None).unwrap();
    scorer.set_prefix(preamble).unwrap();
    scorer
}

/// Of all answers: the largest and the mean difference, in nats, of questions packed and one by one.
fn packed_against_one_by_one(model: &Arc<Model>) -> (f64, f64) {
    let set = TruthfulQa::load(&common::data("multiple_choice.json")).unwrap();
    let preamble = prefix(&qa_preamble());
    let texts: Vec<(String, Vec<&str>)> = set.questions[..QUESTIONS]
        .iter()
        .map(|q| (question_prompt(&q.text), q.mc2.iter().map(|choice| choice.text.as_str()).collect()))
        .collect();
    let requests: Vec<Request<'_>> = texts.iter().map(|(prompt, answers)| Request { prompt, answers }).collect();
    let mut packing = scorer(model, &preamble);
    let plan = packing.plan(&requests).unwrap();
    assert!(plan.n_packs() < QUESTIONS, "nothing shares a batch");
    let mut packed = Vec::new();
    let done = packing.score_many(&requests, &mut |i, scores| {
        assert_eq!(i, packed.len());
        packed.push(scores);
        true
    });
    assert_eq!(done.unwrap(), QUESTIONS);
    assert_eq!(packing.slow_head(), None, "these models' output heads are ours");

    let mut differences = Vec::new();
    for ((prompt, answers), packed) in texts.iter().zip(&packed) {
        // A scorer of its own: no neighbour, and nothing that one left behind.
        let alone = scorer(model, &preamble).score(prompt, answers).unwrap();
        assert_eq!(alone.len(), packed.len());
        for (a, b) in alone.iter().zip(packed) {
            assert_eq!(a.n_tokens, b.n_tokens);
            differences.push((a.logprob - b.logprob).abs());
        }
    }
    let largest = differences.iter().copied().fold(0.0, f64::max);
    let mean = differences.iter().sum::<f64>() / differences.len() as f64;
    eprintln!("{} answers: largest difference {largest}, mean {mean}", differences.len());
    (largest, mean)
}

/// Neighbours change nothing but the order of sums in attention; a last bit of these now and then flips a rounding of an
/// activation to int8, as between any two ways to run a quantized model (see tests/eval.rs, where 1.5 nats are the bound).
#[test]
fn packed_questions_score_as_one_by_one() {
    for name in [common::SMOL, common::GEMMA] {
        let Some(path) = common::model(name) else { continue };
        let model = Model::load(&path, &ModelParams::default()).unwrap();
        let (largest, mean) = packed_against_one_by_one(&model);
        assert!(largest < 1.5 && mean < 0.3, "{name}: {largest} {mean}");
    }
}

/// With weights in f32 no rounding can flip.
#[test]
fn packed_questions_in_f32() {
    let Some(path) = common::model(common::SMOL) else { return };
    let dir = tempfile::tempdir().unwrap();
    let f32_path = dir.path().join("f32.gguf");
    ggml_grad::llama::to_f32(&path, &f32_path).unwrap();
    let model = Model::load(&f32_path, &ModelParams::default()).unwrap();
    let (largest, _) = packed_against_one_by_one(&model);
    assert!(largest < 1e-3, "{largest}");
}

/// A model that scales its logits behind the output matrix: our head does not know that, says so, and llama.cpp's logits
/// are used.
#[test]
fn logits_of_llama_cpp_where_the_graph_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let family = ggml_grad::synth::family("granite").unwrap();
    ggml_grad::synth::write(&path, family, &family.shape(), DType::F32, 1).unwrap();
    let model = Model::load(&path, &ModelParams::default()).unwrap();
    let (preamble, prompt) = ("The river rises in the hills.", " Where does it end?");
    let answers = ["In the sea.", "In a lake."];
    let mut scorer = scorer(&model, preamble);
    let scores = scorer.score(prompt, &answers).unwrap();
    let reason = scorer.slow_head().expect("llama.cpp's logits");
    assert!(reason.contains("behind the output matrix") && reason.contains("SCALE"), "{reason}");

    for (answer, score) in answers.iter().zip(scores) {
        let want = log_prob(&model, &format!("{preamble}{prompt}"), answer);
        assert!((score.logprob - want).abs() < 1e-3, "{answer:?}: {} for {want}", score.logprob);
    }
}

/// The log-probability of an answer after a text, from llama.cpp's logits in one decode.
fn log_prob(model: &Arc<Model>, text: &str, answer: &str) -> f64 {
    let n_context = model.tokenize(text, true, false).unwrap().len();
    let whole = model.tokenize(&format!("{text} {answer}"), true, false).unwrap();
    let mut ctx = Context::new(model, &ContextParams::exact(whole.len(), 1, 1)).unwrap();
    let mut batch = Batch::new();
    for (p, &t) in whole.iter().enumerate() {
        batch.add(t, p, &[0], true);
    }
    ctx.decode(&batch).unwrap();
    let of_token = |p: usize| {
        let logits = ctx.logits(p).unwrap();
        let max = f64::from(logits.iter().copied().fold(f32::MIN, f32::max));
        let sum: f64 = logits.iter().map(|&z| (f64::from(z) - max).exp()).sum();
        f64::from(logits[whole[p + 1] as usize]) - max - sum.ln()
    };
    (n_context - 1..whole.len() - 1).map(of_token).sum()
}

/// With a recurrent state each answer begins with a copy of the prefix's state, whatever was scored before.
#[test]
fn recurrent_models_score_as_llama_cpp_decodes() {
    for family in ["mamba", "mamba2", "jamba", "falcon-h1", "lfm2", "rwkv6", "rwkv7", "qwen3next"] {
        let (_folder, model) = common::random_model::model(family, DType::F32);
        let preamble = "The river rises in the hills. It flows south.";
        let mut scorer = scorer(&model, preamble);
        let prompts: [(&str, &[&str]); 2] =
            [(" Where does it end?", &["In the sea.", "In a lake.", "In the"]), (" How long?", &["A year.", "Long."])];
        let requests: Vec<Request<'_>> = prompts.iter().map(|&(prompt, answers)| Request { prompt, answers }).collect();
        let mut found = Vec::new();
        scorer
            .score_many(&requests, &mut |_, scores| {
                found.push(scores);
                true
            })
            .unwrap();
        for ((prompt, answers), scores) in prompts.iter().zip(&found) {
            for (answer, score) in answers.iter().zip(scores) {
                let want = log_prob(&model, &format!("{preamble}{prompt}"), answer);
                assert!((score.logprob - want).abs() < 1e-3, "{family}, {answer:?}: {} for {want}", score.logprob);
            }
        }
        // A context that is not what the prefix begins with, and one that is the prefix itself.
        let tokens = |text: &str| model.tokenize(text, true, false).unwrap();
        for text in ["The river is long.", preamble] {
            let (context, whole) = (tokens(text), tokens(&format!("{text} And wide.")));
            let answer = whole[context.len()..].to_vec();
            let plan = scorer.plan_tokens(&[TokenRequest { context, answers: vec![answer] }]).unwrap();
            let score = scorer.run_pack(&plan, 0).unwrap()[0][0].logprob;
            let want = log_prob(&model, text, "And wide.");
            assert!((score - want).abs() < 1e-3, "{family}, after {text:?}: {score} for {want}");
        }
    }
}
