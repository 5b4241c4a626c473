//! A kind of intervention made here, a linear gate, through engine and trainer: they know the trait alone.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use bidpo_core::check::random_vector;
use bidpo_core::data::TokenizedPair;
use bidpo_core::engine::{
    Addition, Direction, Engine, Intervention, NamedTensor, ParameterGroup, Parameters, RowGradients, Stream,
    TracedPair,
};
use bidpo_core::layers::Layers;
use bidpo_core::numbers::{cosine, norm};
use bidpo_core::train::{LearningRate, NamedPair, Precision, TrainConfig, Trained, Trainer, TrainingBudget};
use common::random_model::model;
use common::steered::pairs;
use ggml_grad::llama::{DType, Model};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const LAYER: usize = 1;

/// `h' = h + (w.h + b) v`, row by row; theta is `[w, b, v]`. With `w` 0 and `b` 1 it is `h + v`.
#[derive(Debug, Clone, Copy)]
struct LinearGate {
    n_embd: usize,
    /// `w` and `b` are trained too.
    trains_gate: bool,
}

impl LinearGate {
    fn parts<'a>(&self, theta: &'a [f32]) -> (&'a [f32], f64, &'a [f32]) {
        let (w, rest) = theta.split_at(self.n_embd);
        (w, f64::from(rest[0]), &rest[1..])
    }

    fn gate(&self, theta: &[f32], row: &[f32]) -> f64 {
        let (w, b, _) = self.parts(theta);
        b + dot(w, row)
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

impl Intervention for LinearGate {
    fn kind(&self) -> &'static str {
        "linear-gate"
    }

    fn n_params(&self) -> usize {
        2 * self.n_embd + 1
    }

    fn initial(&self, _seed: u64) -> Vec<f64> {
        let mut theta = vec![0.0; self.n_params()];
        theta[self.n_embd] = 1.0;
        theta
    }

    fn groups(&self, rates: &[f64]) -> Vec<ParameterGroup> {
        let n = self.n_embd;
        let lr = if self.trains_gate { 1e-3 } else { 0.0 };
        vec![ParameterGroup { params: 0..n + 1, lr }, ParameterGroup { params: n + 1..2 * n + 1, lr: rates[0] }]
    }

    fn additions(&self, at: Parameters<'_>, stream: &Stream<'_>) -> Vec<Addition> {
        let residual = stream.rows;
        let (_, _, v) = self.parts(at.theta);
        let mut rows = Vec::with_capacity(residual.len());
        for row in residual.chunks_exact(self.n_embd) {
            let gate = at.direction.sign() * self.gate(at.theta, row);
            rows.extend(v.iter().map(|x| (gate * f64::from(*x)) as f32));
        }
        vec![Addition::Rows(rows)]
    }

    /// dw = sum_t (g_t.v) h_t, db = sum_t g_t.v, dv = sum_t gate_t g_t.
    fn vjp(&self, at: Parameters<'_>, stream: &Stream<'_>, gradients: &[RowGradients<'_>], grads: &mut [Vec<f64>]) {
        let residual = stream.rows;
        let (n, (_, _, v)) = (self.n_embd, self.parts(at.theta));
        let of = &gradients[0];
        let rows = of.rows.chunks_exact(n).zip(residual.chunks_exact(n)).zip(of.pair);
        for ((g, h), &pair) in rows {
            let g: Vec<f32> = g.iter().map(|x| at.direction.sign() as f32 * x / of.scale).collect();
            let (along, gate) = (dot(&g, v), self.gate(at.theta, h));
            let (dw, rest) = grads[pair].split_at_mut(n);
            dw.iter_mut().zip(h).for_each(|(sum, h)| *sum += along * f64::from(*h));
            rest[0] += along;
            rest[1..].iter_mut().zip(&g).for_each(|(sum, g)| *sum += gate * f64::from(*g));
        }
    }

    fn norms(&self, theta: &[f64], _residual: &[f64]) -> Vec<f64> {
        vec![theta[self.n_embd].abs() * norm(&theta[self.n_embd + 1..])]
    }

    fn scaled(&self, theta: &[f64], factor: f64) -> Vec<f64> {
        theta.iter().enumerate().map(|(i, x)| if i > self.n_embd { factor * x } else { *x }).collect()
    }

    fn random(&self, theta: &[f32], _seed: u64) -> Vec<f32> {
        theta.to_vec()
    }

    fn tensors(&self, theta: &[f32], layers: &[usize]) -> Vec<NamedTensor> {
        let (w, b, v) = self.parts(theta);
        let tensor = |name: &str, data: &[f32]| NamedTensor {
            name: format!("{name}.{}", layers[0]),
            shape: vec![data.len()],
            data: data.to_vec(),
        };
        vec![tensor("gate.weight", w), tensor("gate.bias", &[b as f32]), tensor("vector", v)]
    }
}

fn engine(model: &Arc<Model>, precision: Precision) -> Engine {
    let longest = pairs().iter().map(TokenizedPair::n_tokens).max().unwrap();
    let mut engine = Engine::new(model, &[LAYER], longest, 1, 1).unwrap();
    engine.set_precision(precision);
    engine
}

fn gated(model: &Arc<Model>, precision: Precision, trains_gate: bool) -> (Engine, LinearGate) {
    let gate = LinearGate { n_embd: model.n_embd(), trains_gate };
    (engine(model, precision).with_intervention(Arc::new(gate)), gate)
}

/// A vector of 5 % of the residual norm, and parameters of a gate about it: `w` moves the gate by about a half between rows.
fn parameters(engine: &Engine, traced: &TracedPair) -> (Vec<f32>, Vec<f32>) {
    let n = engine.model().n_embd();
    let v = random_vector(engine, traced.as_ref(), 1);
    let length = traced.norms()[0].iter().map(|&x| f64::from(x)).sum::<f64>() / traced.norms()[0].len() as f64;
    let w = (0..n).map(|i| (((i as f64) * 1.3).sin() / length) as f32);
    let theta = w.chain([0.7]).chain(v.iter().copied()).collect();
    (v, theta)
}

fn held(v: &[f32]) -> Vec<f32> {
    let w = vec![0.0; v.len()];
    w.into_iter().chain([1.0]).chain(v.iter().copied()).collect()
}

/// The residual stream that an intervention is given is the model's: that of another decode, read off its nodes.
#[test]
fn the_traced_residual_stream_is_the_models_own() {
    let (_directory, model) = model("llama", DType::F32);
    let mut engine = engine(&model, Precision::EXACT);
    let traced = engine.trace(&pairs()[0]).unwrap();
    let n = model.n_embd();
    assert_eq!(traced.residual().len(), pairs()[0].n_tokens() * n);
    // Through ggml-grad's public face, at another set of layers: the same bits, and no marker in the smallest components.
    let mut tracer =
        ggml_grad::trace::Tracer::new(&model, &ggml_grad::trace::TraceOptions { n_threads: 1, ..Default::default() })
            .unwrap();
    let trace = tracer.trace(&pairs()[0].prompt, &[LAYER]).unwrap();
    let rows = trace.residual(LAYER).unwrap().data;
    assert_eq!(rows[..], traced.residual()[..rows.len()]);
    // A layer above, where a marker would be added to the stream by the graph: its stream is the lowest of another trace.
    let upper = tracer.trace(&pairs()[0].prompt, &[LAYER, LAYER + 1]).unwrap().residual(LAYER + 1).unwrap();
    let lowest = tracer.trace(&pairs()[0].prompt, &[LAYER + 1]).unwrap().residual(LAYER + 1).unwrap();
    assert_eq!(upper.data, lowest.data);
}

#[test]
fn a_gate_held_at_one_is_add() {
    for family in ["llama", "gemma3"] {
        let (_directory, model) = model(family, DType::F32);
        let mut added = engine(&model, Precision::EXACT);
        let (mut gated, gate) = gated(&model, Precision::EXACT, true);
        let n = model.n_embd();
        for pair in &pairs() {
            let (a, b) = (added.trace(pair).unwrap(), gated.trace(pair).unwrap());
            let (v, _) = parameters(&added, &a);
            for direction in [Direction::Forward, Direction::Reverse] {
                let want = added.run(&a, Parameters { theta: &v, direction }, true).unwrap();
                let theta = held(&v);
                let got = gated.run(&b, Parameters { theta: &theta, direction }, true).unwrap();
                assert_eq!(got.logp, want.logp, "{family}");
                assert_eq!(got.grads[0].len(), gate.n_params());
                assert_eq!(got.grads[0][n + 1..], want.grads[0][..], "{family}, {direction:?}");
            }
        }
    }
}

/// Slopes of the engine's own forward pass along random directions of w, of b and of v, measured by stepping to both sides.
#[test]
fn the_gradient_of_a_gate_agrees_with_central_differences() {
    for family in ["llama", "gemma3", "qwen2"] {
        let (_directory, model) = model(family, DType::F32);
        let (mut engine, gate) = gated(&model, Precision::EXACT, true);
        engine.set_smooth(true);
        let n = model.n_embd();
        for direction in [Direction::Forward, Direction::Reverse] {
            let traced = engine.trace(&pairs()[1]).unwrap();
            let (_, theta) = parameters(&engine, &traced);
            let grad = engine.run(&traced, Parameters { theta: &theta, direction }, true).unwrap().grads.remove(0);
            for block in [0..n, n..n + 1, n + 1..gate.n_params()] {
                let size = norm(&theta[block.clone()].iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
                // Along the gradient's own part: the slope is its norm.
                let slope = norm(&grad[block.clone()]);
                let mut at = |step: f64| {
                    let mut moved = theta.clone();
                    for i in block.clone() {
                        moved[i] += (step * size * grad[i] / slope) as f32;
                    }
                    engine.run(&traced, Parameters { theta: &moved, direction }, false).unwrap().logp[0].gap()
                };
                let mut difference = |h: f64| (at(h) - at(-h)) / (2.0 * h * size);
                // Richardson: the error is of fourth order in the step.
                let numeric = (4.0 * difference(0.02) - difference(0.04)) / 3.0;
                assert!(slope > 0.0 && (numeric / slope - 1.0).abs() < 5e-3, "{family} {block:?}: {numeric}, {slope}");
            }
        }
    }
}

/// Pairs in one graph share the rows of their common prompt prefix: a gate sees the same rows there.
#[test]
fn a_batch_of_gated_pairs_gives_what_each_gives_alone() {
    let (_directory, model) = model("llama", DType::from_name("q8_0").unwrap());
    let (mut engine, gate) = gated(&model, Precision::default(), true);
    if let Err(reason) = engine.batches_pairs() {
        return common::skipped(&reason.to_string());
    }
    let traced: Vec<TracedPair> = pairs().iter().map(|p| engine.trace(p).unwrap()).collect();
    let members: Vec<&TracedPair> = traced.iter().collect();
    let joined = engine.join(&members).unwrap().expect("these can be joined");
    let rows: usize = traced.iter().map(TracedPair::n_tokens).sum();
    assert!(joined.n_tokens() < rows - 2 * traced.len(), "{} of {rows}: no prefix is shared", joined.n_tokens());
    let (_, theta) = parameters(&engine, &traced[0]);
    let at = Parameters { theta: &theta, direction: Direction::Reverse };
    let batch = engine.run_batch(&members, at, Some(&|margin| 1.0 + margin)).unwrap();
    let mut sum = vec![0.0; gate.n_params()];
    for (pair, together) in traced.iter().zip(&batch.logp) {
        let alone = engine.run(pair, at, true).unwrap();
        assert_eq!(alone.logp[0], *together);
        let factor = 1.0 + (together.gap() - pair.reference().gap());
        sum.iter_mut().zip(&alone.grads[0]).for_each(|(sum, g)| *sum += factor * g);
    }
    let n = model.n_embd();
    for block in [0..n, n + 1..gate.n_params()] {
        let agreement = cosine(&batch.grad[block.clone()], &sum[block.clone()]);
        assert!(agreement > 0.999, "{block:?}: {agreement}");
    }
    assert!((batch.grad[n] / sum[n] - 1.0).abs() < 0.02, "{} for {}", batch.grad[n], sum[n]);
}

fn train(engine: &mut Engine) -> Trained {
    let named = |(i, tokens): (usize, TokenizedPair)| NamedPair { name: format!("pair {i}"), tokens };
    let pairs: Vec<NamedPair> = pairs().into_iter().enumerate().map(named).collect();
    let config = TrainConfig {
        learning_rate: LearningRate::Percent(1.0),
        budget: TrainingBudget::Steps(12),
        batch: 2,
        precision: Precision::EXACT,
        ..TrainConfig::new(Layers::one(LAYER))
    };
    let never = AtomicBool::new(false);
    let mut trainer = Trainer { engine, config: &config, checkpoints: None, interrupt: &never };
    trainer.train(&pairs, &pairs, &mut |_| {}).unwrap()
}

/// Twelve steps of BiDPO, both directions among them.
#[test]
fn training_a_gate_held_at_one_trains_adds_vector() {
    let (_directory, model) = model("llama", DType::F32);
    let added = train(&mut engine(&model, Precision::EXACT));
    let held = train(&mut gated(&model, Precision::EXACT, false).0);
    let n = model.n_embd();
    assert!(norm(&added.vector.iter().map(|&x| f64::from(x)).collect::<Vec<_>>()) > 0.0);
    assert_eq!((&held.vector[..n], held.vector[n]), (&vec![0.0; n][..], 1.0));
    assert_eq!(held.vector[n + 1..], added.vector[..]);
    assert_eq!(held.history, added.history);
    // Renormalised, the change has that size; what is written is what the kind says.
    let scaled = held.renormalised(Some(7.0));
    let theta: Vec<f64> = scaled.iter().map(|&x| f64::from(x)).collect();
    assert!(
        (held.summary.percent_of_norms(&held.intervention.norms(&theta, &held.summary.medians())) - 7.0).abs() < 1e-5
    );
    assert_eq!(held.tensors(None)[2].data, added.vector);
    assert_eq!(added.steering_vector(None, "llama").unwrap().directions[&LAYER], added.vector);
    let error = held.steering_vector(None, "llama").unwrap_err().to_string();
    assert!(error.contains("linear-gate") && error.contains("gate.weight.1"), "{error}");
}

#[test]
fn training_a_gate_moves_all_of_it_and_lowers_the_loss() {
    let (_directory, model) = model("llama", DType::F32);
    let (mut engine, gate) = gated(&model, Precision::EXACT, true);
    let trained = train(&mut engine);
    let n = gate.n_embd;
    let moved = |range: std::ops::Range<usize>, from: f32| trained.vector[range].iter().all(|&x| x != from);
    assert!(moved(0..n, 0.0) && moved(n..n + 1, 1.0) && moved(n + 1..gate.n_params(), 0.0));
    let losses: Vec<f64> = trained.history.iter().filter_map(|p| p.valid_loss).collect();
    assert!(losses.last().unwrap() < &2f64.ln() && losses.last() < losses.first(), "{losses:?}");
}
