//! Pairs computed together, as those of a training step: the numbers of each are what they are alone.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use bidpo_core::data::{ChatTemplate, Prompt, TemplateChoice, TokenizedPair};
use bidpo_core::engine::{BatchScore, Engine, NotBatched, PairLogp, TracedPair};
use bidpo_core::train::{Backward, Forward, Precision, loss};
use ggml_grad::llama::{Model, ModelParams};
use std::sync::Arc;

/// Of very different lengths; two ask the same, two begin alike.
const PAIRS: [[&str; 3]; 6] = [
    ["Is the sky blue?", "Yes, on a clear day it is.", "No."],
    ["Is the sky blue?", "Yes.", "No, it is green, and it has always been, whatever anybody may tell you about it."],
    ["Is the sea salty, and if it is, how much salt is in a litre of it?", "Thirty-five grams.", "None at all."],
    ["Four", "Five", "Six"],
    [
        "Do cats bark? Answer in one word, or better in a sentence, or in two if one is not enough.",
        "They meow.",
        "They bark loud, at night above all.",
    ],
    ["Is ice cold?", "Ice is cold: it melts above zero degrees.", "Ice is hot."],
];

fn pairs(model: &Model, template: &TemplateChoice) -> Vec<TokenizedPair> {
    let template = ChatTemplate::new(model, template).unwrap();
    let encode = |[p, c, r]: &[&str; 3]| template.encode_pair(model, &Prompt::Text((*p).to_owned()), c, r).unwrap();
    PAIRS.iter().map(encode).collect()
}

/// Engine and pairs, each captured alone; `None` where this CPU lacks the kernels.
fn captured(
    model: &Arc<Model>,
    layer: usize,
    pairs: &[TokenizedPair],
    threads: u32,
) -> Option<(Engine, Vec<TracedPair>)> {
    let longest = pairs.iter().map(TokenizedPair::n_tokens).max().unwrap();
    let mut engine = Engine::new(model, &[layer], longest, 1, threads).unwrap();
    if let Err(reason) = engine.batches_pairs() {
        common::skipped(&reason.to_string());
        return None;
    }
    let examples = pairs.iter().map(|p| engine.trace(p).unwrap()).collect();
    Some((engine, examples))
}

fn models() -> Vec<(Arc<Model>, TemplateChoice)> {
    [(common::SMOL, TemplateChoice::Auto), (common::GEMMA, TemplateChoice::None)]
        .into_iter()
        .filter_map(|(name, template)| {
            Some((Model::load(&common::model(name)?, &ModelParams::default()).unwrap(), template))
        })
        .collect()
}

fn vector(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 37 % 101) as f32 - 50.0) * 2e-3).collect()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    let length = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    length(&mut a.iter().zip(b).map(|(a, b)| a - b)) / length(&mut b.iter().copied())
}

#[test]
fn log_probabilities_are_those_alone_to_the_bit() {
    for (model, template) in models() {
        let pairs = pairs(&model, &template);
        for (layer, threads) in [(model.n_layer() / 2, 2), (model.n_layer() - 3, 1)] {
            let Some((mut engine, examples)) = captured(&model, layer, &pairs, threads) else { return };
            let v = vector(engine.n_params());
            for added in [vec![0.0; v.len()], v] {
                let alone: Vec<PairLogp> =
                    examples.iter().map(|e| engine.run(e, &added, false).unwrap().logp[0]).collect();
                for size in [2, 3, 6] {
                    for (group, alone) in examples.chunks(size).zip(alone.chunks(size)) {
                        let members: Vec<&TracedPair> = group.iter().collect();
                        let joined = engine.join(&members).unwrap().expect("these can be joined");
                        let rows: usize = group.iter().map(|e| e.n_tokens()).sum();
                        // The last token of each response predicts nothing.
                        assert!(joined.n_tokens() <= rows - 2 * size, "{} rows of {rows}", joined.n_tokens());
                        for slope in [None, Some(&(|m: f64| loss(1.0, 0.1, m).slope) as &(dyn Fn(f64) -> f64 + Sync))] {
                            let together = engine.run_batch(&members, &added, slope).unwrap().logp;
                            assert_eq!(together, alone, "layer {layer}, {size} pairs");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_gradient_is_the_weighted_sum_of_theirs() {
    for (model, template) in models() {
        let pairs = pairs(&model, &template);
        let Some((mut engine, examples)) = captured(&model, model.n_layer() / 2, &pairs, 2) else { return };
        let v = vector(engine.n_params());
        // A slope steep enough that the pairs count very differently.
        let slope = |margin: f64| loss(1.0, 2.0, margin).slope;
        let members: Vec<&TracedPair> = examples.iter().collect();
        let sum = engine.run_batch(&members, &v, Some(&slope)).unwrap().grad;
        let mut want = vec![0.0; v.len()];
        let mut slopes = Vec::new();
        for e in &examples {
            let alone = engine.run(e, &v, true).unwrap();
            let s = slope(alone.logp[0].gap() - e.reference().gap());
            want.iter_mut().zip(&alone.grads[0]).for_each(|(sum, g)| *sum += s * g);
            slopes.push(s.abs());
        }
        slopes.sort_by(f64::total_cmp);
        assert!(slopes[0] < 0.7 * slopes[5], "the slopes are all alike: {slopes:?}");
        // The backward pass rounds to 16 bits.
        assert!(distance(&sum, &want) < 1e-2, "{}", distance(&sum, &want));
        // Reversed, the pairs lie elsewhere in the batch.
        let reversed: Vec<&TracedPair> = examples.iter().rev().collect();
        let again = engine.run_batch(&reversed, &v, Some(&slope)).unwrap().grad;
        assert!(distance(&again, &sum) < 1e-2, "{}", distance(&again, &sum));
        assert_eq!(engine.run_batch(&members, &v, Some(&slope)).unwrap().grad, sum, "twice the same, two results");
    }
}

#[test]
fn captured_in_groups_is_captured_alone() {
    for (model, template) in models() {
        let pairs = pairs(&model, &template);
        let Some((mut engine, examples)) = captured(&model, model.n_layer() / 2, &pairs, 1) else { return };
        let plan = engine.plan_batches(&examples[0], 10_000).unwrap().plan;
        assert!(plan.max_tokens() > 100);
        let sizes: Vec<usize> = pairs.iter().map(TokenizedPair::n_tokens).collect();
        assert!(plan.batches(&sizes).len() < pairs.len());
        let tokens: Vec<&TokenizedPair> = pairs.iter().collect();
        let mut seen = 0;
        let each = engine
            .trace_each(&tokens, plan, &mut |_| {
                seen += 1;
                true
            })
            .unwrap()
            .expect("nobody stops it");
        assert_eq!((seen, each.len()), (tokens.len(), tokens.len()));
        for (a, b) in each.iter().zip(&examples) {
            assert_eq!(a.reference(), b.reference());
            assert_eq!(a.norms(), b.norms());
            assert!(a.residual() == b.residual());
        }
        assert!(engine.trace_each(&[&pairs[0]], plan, &mut |_| false).unwrap().is_none());
    }
}

/// Pairs that cannot be joined are computed one by one, and the reason is known.
#[test]
fn what_cannot_be_joined_is_computed_alone() {
    let Some((model, template)) = models().into_iter().next() else { return };
    let pairs = pairs(&model, &template);
    let longest = pairs.iter().map(TokenizedPair::n_tokens).max().unwrap();
    let exact = Precision { forward: Forward::Exact, backward: Backward::F32 };
    let n_layer = model.n_layer();
    // Exactly; and at the last layer, where only rows that predict are there.
    for (layer, precision) in [(n_layer - 4, exact), (n_layer - 1, Precision::default())] {
        let mut engine = Engine::new(&model, &[layer], longest, 1, 2).unwrap();
        engine.set_precision(precision);
        let examples: Vec<TracedPair> = pairs.iter().take(3).map(|p| engine.trace(p).unwrap()).collect();
        let members: Vec<&TracedPair> = examples.iter().collect();
        assert!(engine.join(&members).unwrap().is_none());
        if precision == exact {
            assert!(matches!(engine.batches_pairs(), Err(NotBatched::Precision)));
        }
        let v = vector(engine.n_params());
        let BatchScore { logp, grad: sum } = engine.run_batch(&members, &v, Some(&|_| -0.5)).unwrap();
        let mut want = vec![0.0; v.len()];
        for (e, logp) in examples.iter().zip(&logp) {
            let alone = engine.run(e, &v, true).unwrap();
            assert_eq!(alone.logp[0], *logp);
            want.iter_mut().zip(&alone.grads[0]).for_each(|(sum, g)| *sum += -0.5 * g);
        }
        assert_eq!(sum, want);
    }
}
