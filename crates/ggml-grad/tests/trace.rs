//! The public face: gradients against central differences, log-probabilities and logits against llama.cpp's own.

#![allow(clippy::unwrap_used, unreachable_pub)] // a failure here is the message

#[path = "../../../tests/common/random_model.rs"]
mod random_model;

use ggml_grad::graph::emit::Precision;
use ggml_grad::graph::log_sum_exp;
use ggml_grad::llama::{Batch, Context, ContextParams, DType, Model};
use ggml_grad::trace::{LayerRows, Target, TraceError, TraceOptions, Tracer};
use random_model::model;
use std::sync::Arc;

const TOKENS: [i32; 9] = [1, 300, 17, 290, 310, 45, 300, 271, 303];

fn tracer(model: &Arc<Model>, precision: Precision) -> Tracer {
    Tracer::new(model, &TraceOptions { max_tokens: 32, n_threads: 1, precision, ..TraceOptions::default() }).unwrap()
}

fn targets() -> Vec<(Target, f32)> {
    vec![
        (Target { position: 8, token: 270 }, 1.0),
        (Target { position: 3, token: 310 }, 0.5),
        (Target { position: 8, token: 299 }, -2.0),
    ]
}

#[test]
fn the_gradient_agrees_with_central_differences_at_each_layer() {
    let (_directory, model) = model("llama", DType::F32);
    let mut trace = tracer(&model, Precision::EXACT).trace(&TOKENS, &[2, 1]).unwrap();
    assert_eq!(trace.layers(), [1, 2]);
    let gradient = trace.backward(&targets()).unwrap();
    let only: Vec<Target> = targets().iter().map(|t| t.0).collect();
    for rows in &gradient.layers {
        let n_embd = model.n_embd();
        assert_eq!(rows.positions, (0..TOKENS.len()).collect::<Vec<_>>());
        // A vector added at every row: its derivative is the sum over the rows.
        let sum: Vec<f64> =
            (0..n_embd).map(|i| rows.data.chunks_exact(n_embd).map(|row| f64::from(row[i])).sum()).collect();
        let norm = sum.iter().map(|g| g * g).sum::<f64>().sqrt();
        let step = 0.02 / norm; // along the gradient, by a length of 0.02
        let mut objective = |sign: f64| {
            let vector: Vec<f32> = sum.iter().map(|g| (sign * step * g) as f32).collect();
            trace.set_vector(rows.layer, &vector).unwrap();
            let log_probs = trace.forward(&only).unwrap();
            targets().iter().zip(log_probs).map(|((_, weight), l)| f64::from(*weight) * l).sum::<f64>()
        };
        let slope = (objective(1.0) - objective(-1.0)) / 0.04;
        objective(0.0);
        assert!((slope / norm - 1.0).abs() < 2e-3, "layer {}: {slope} and {norm}", rows.layer);
    }
    let lower = gradient.layers.iter().map(|l| l.row(8).unwrap().to_vec()).collect::<Vec<_>>();
    assert_ne!(lower[0], lower[1]);
}

#[test]
fn log_probabilities_and_logits_are_those_of_llama_decode_bit_for_bit() {
    for (family, dtype) in [("llama", "q4_k"), ("gemma2", "q8_0"), ("qwen3moe", "f32")] {
        let (_directory, model) = model(family, DType::from_name(dtype).unwrap());
        let trace = tracer(&model, Precision::EXACT).trace(&TOKENS, &[1]).unwrap();
        let parity = trace.verify().unwrap();
        assert_eq!((parity.max_difference, parity.n_logits), (0.0, TOKENS.len() * model.n_vocab()), "{family}");

        // A context without any control vector: the marker is below the rounding of the residual stream.
        let mut ctx = Context::new(&model, &ContextParams::exact(32, 1, 1)).unwrap();
        let mut batch = Batch::new();
        for (i, &t) in TOKENS.iter().enumerate() {
            batch.add(t, i, &[0], true);
        }
        ctx.decode(&batch).unwrap();
        let only: Vec<Target> = targets().iter().map(|t| t.0).collect();
        let log_probs = trace.forward(&only).unwrap();
        for (target, log_prob) in only.iter().zip(&log_probs) {
            let logits = ctx.logits(target.position).unwrap();
            let expected = f64::from(logits[target.token as usize]) - log_sum_exp(logits);
            assert_eq!(log_prob.to_bits(), expected.to_bits(), "{family}: {log_prob} and {expected}");
        }
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let all = trace.logits().unwrap();
        for (i, row) in all.chunks_exact(model.n_vocab()).enumerate() {
            assert_eq!(bits(row), bits(ctx.logits(i).unwrap()), "{family}, row {i}");
        }
        assert_eq!(trace.backward(&targets()).unwrap().log_probs, log_probs);
    }
}

#[test]
fn fast_kernels_stay_close_to_the_exact_ones() {
    let (_directory, model) = model("llama", DType::from_name("q8_0").unwrap());
    let exact = tracer(&model, Precision::EXACT).trace(&TOKENS, &[1, 2]).unwrap().backward(&targets()).unwrap();
    let fast = tracer(&model, Precision::default()).trace(&TOKENS, &[1, 2]).unwrap().backward(&targets()).unwrap();
    for (a, b) in exact.layers.iter().zip(&fast.layers) {
        assert!(cosine(&a.data, &b.data) > 0.999, "layer {}: {}", a.layer, cosine(&a.data, &b.data));
    }
}

#[test]
fn rows_that_llama_cpp_drops_at_the_last_layer_are_left_out() {
    let (_directory, model) = model("llama", DType::F32);
    let last = model.n_layer() - 1;
    let mut batch = Batch::new();
    for (i, &t) in TOKENS.iter().enumerate() {
        batch.add(t, i, &[0], i == 3 || i == 8);
    }
    let mut tracer = tracer(&model, Precision::EXACT);
    let some = tracer.trace_batch(&batch, &[1, last]).unwrap();
    let all = tracer.trace(&TOKENS, &[1, last]).unwrap();
    assert_eq!(some.verify().unwrap().max_difference, 0.0);
    let (some_grad, all_grad) = (some.backward(&targets()).unwrap(), all.backward(&targets()).unwrap());
    assert_eq!(some_grad.layers[1].positions, [3, 8]);
    assert_eq!(some_grad.layers[0].positions.len(), TOKENS.len());
    let close = |a: &LayerRows, b: &LayerRows, p: usize| cosine(a.row(p).unwrap(), b.row(p).unwrap()) > 0.999_99;
    for (a, b) in some_grad.layers.iter().zip(&all_grad.layers) {
        assert!(close(a, b, 3) && close(a, b, 8));
    }
    let residual = some.residual(last).unwrap();
    assert_eq!(residual.positions, [3, 8]);
    assert!(close(&residual, &all.residual(last).unwrap(), 8) && residual.row(0).is_none());
    let error = some.forward(&[Target { position: 0, token: 5 }]).unwrap_err();
    assert!(matches!(error, TraceError::Position { position: 0, n_outputs: 2, .. }), "{error}");
}

#[test]
fn what_cannot_be_traced_is_a_typed_error() {
    let (_directory, dense) = model("llama", DType::F32);
    let mut tracer = tracer(&dense, Precision::EXACT);
    for layers in [&[][..], &[0], &[1, 1], &[dense.n_layer()]] {
        assert!(matches!(tracer.trace(&TOKENS, layers), Err(TraceError::Layers { .. })), "{layers:?}");
    }
    let mut trace = tracer.trace(&TOKENS, &[1]).unwrap();
    assert!(matches!(trace.forward(&[]), Err(TraceError::NoTarget)));
    let far = Target { position: 0, token: dense.n_vocab() as i32 };
    assert!(matches!(trace.forward(&[far]), Err(TraceError::Token { .. })));
    assert!(matches!(trace.residual(2), Err(TraceError::NotTraced { layer: 2, .. })));
    assert!(matches!(trace.set_vector(1, &[0.0]), Err(TraceError::Width { found: 1, .. })));
    let (_directory, encoder) = model("t5", DType::F32);
    let refused = Tracer::new(&encoder, &TraceOptions::default()).unwrap_err();
    assert!(matches!(&refused, TraceError::Unsupported(_)) && refused.to_string().contains("t5"), "{refused}");
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
