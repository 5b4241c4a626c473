//! Long sequences: the gradient is right at 2,048 tokens, and its memory does not grow with tokens squared times heads times
//! layers.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

use bidpo_core::check::{F32Copy, LIMIT, central_differences, gradient, long_pair, random_vector};
use bidpo_core::engine::{Engine, TracedBatch};
use ggml_grad::graph::AttentionMemory;
use ggml_grad::graph::emit::{Backward, Forward, Precision};
use ggml_grad::llama::{DType, Model, ModelParams};
use ggml_grad::synth::{self, Shape};
use std::sync::Arc;
use tempfile::TempDir;

const TOKENS: usize = 2048;
const LAYER: usize = 1;
const HEADS: usize = 4;

/// A model, with the folder of its file.
fn tiny(n_layer: usize) -> (Arc<Model>, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let family = synth::family("llama").unwrap();
    let shape = Shape { n_layer, n_embd: 128, n_head: HEADS, n_head_kv: 2, head_dim: 32, n_ff: 256, ..family.shape() };
    synth::write(&path, family, &shape, DType::from_name("q8_0").unwrap(), 1).unwrap();
    (Model::load(&path, &ModelParams::default()).unwrap(), folder)
}

/// Engine and example of one pair. What is kept of scores matters where attention is not one op: by ggml's kernels.
fn captured(model: &Arc<Model>, n_tokens: usize, memory: AttentionMemory) -> (Engine, TracedBatch) {
    captured_by(Forward::Exact, model, n_tokens, memory)
}

fn captured_by(
    forward: Forward,
    model: &Arc<Model>,
    n_tokens: usize,
    memory: AttentionMemory,
) -> (Engine, TracedBatch) {
    let pair = long_pair(model, n_tokens).unwrap();
    assert_eq!(pair.n_tokens(), n_tokens);
    let mut engine = Engine::new(model, &[LAYER], n_tokens, 1, 1).unwrap();
    engine.set_precision(Precision { forward, backward: Backward::F32 });
    engine.set_attention_memory(memory);
    let example = engine.trace_batch(&[&pair]).unwrap();
    (engine, example)
}

/// At 2,048 tokens: logits equal, the gradient that of the kept scores and that of central differences.
#[test]
fn right_at_two_thousand_tokens() {
    let (model, _folder) = tiny(4);
    let (mut again, example) = captured(&model, TOKENS, AttentionMemory { keep: 0, chunk: 32 << 20 });
    let agreement = again.compare(&example).unwrap();
    assert_eq!((agreement.unsteered, agreement.steered, agreement.zero), (0.0, 0.0, 0.0));

    let at = random_vector(&again, &example, 1);
    let (mut kept, all) = captured(&model, TOKENS, AttentionMemory { keep: usize::MAX, chunk: 0 });
    let (a, b) = (gradient(&mut again, &example, &at).unwrap(), gradient(&mut kept, &all, &at).unwrap());
    let length = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let error = length(&mut a.iter().zip(&b).map(|(a, b)| a - b)) / length(&mut b.iter().copied());
    assert!(error <= 1e-5, "computed again against kept: {error:.1e}");

    let copy = F32Copy::new(&model).unwrap();
    for forward in [Forward::Exact, Forward::Fast] {
        let (mut engine, example) = captured_by(forward, copy.model(), TOKENS, AttentionMemory::default());
        let d = central_differences(&mut engine, &example, &at, 2, 1).unwrap();
        eprintln!("{forward:?}: {d:?}");
        assert!(d.relative_error <= LIMIT, "{forward:?}: {d:?}");
    }
}

/// Bytes of one layer's scores.
fn scores(n_tokens: usize) -> usize {
    4 * n_tokens * n_tokens * HEADS
}

#[test]
fn attention_memory_does_not_grow_with_the_layers() {
    let bytes = |model: &Arc<Model>, n_tokens, memory| {
        let (mut engine, example) = captured(model, n_tokens, memory);
        engine.step_bytes(&example).unwrap()
    };
    let ((few, _a), (many, _b)) = (tiny(6), tiny(10));
    let all = AttentionMemory { keep: usize::MAX, chunk: 0 };
    // If stored, each of the four layers more costs at least its scores ...
    let kept = bytes(&many, TOKENS, all) - bytes(&few, TOKENS, all);
    assert!(kept > 4 * scores(TOKENS), "{kept}");
    // ... by default the four together cost less than the scores of one: what else they keep.
    let default = AttentionMemory::default();
    let (a, b) = (bytes(&few, TOKENS, default), bytes(&many, TOKENS, default));
    eprintln!("{TOKENS} tokens: {a} bytes with 6 blocks, {b} with 10; kept, {kept} more");
    assert!(b - a < scores(TOKENS), "{a} {b}");
    // As one op it keeps none, not even those of one layer.
    let one = |model| {
        let (mut engine, example) = captured_by(Forward::Fast, model, TOKENS, all);
        engine.step_bytes(&example).unwrap()
    };
    let (c, d) = (one(&few), one(&many));
    eprintln!("as one op: {c} bytes with 6 blocks, {d} with 10");
    assert!(c + scores(TOKENS) < a && d - c < scores(TOKENS), "{c} {d}");
    // Short sequences keep their scores: computing them again would only take time.
    assert_eq!(bytes(&many, 100, default), bytes(&many, 100, all));
}

/// A pair that is longer than what the engine was made for is refused, not cut.
#[test]
fn more_tokens_than_one_pass_takes_are_refused() {
    let (model, _folder) = tiny(3);
    let pair = long_pair(&model, 300).unwrap();
    let mut engine = Engine::new(&model, &[LAYER], 200, 1, 1).unwrap();
    let e = engine.trace_batch(&[&pair]).unwrap_err().to_string();
    assert!(e.contains("300") && e.contains("tokens"), "{e}");
}
