//! The rules that meet a frozen weight, on the weights of the real models in their own types.
//!
//! `z = W y` for a quantized W has the gradient `W^T g`. The oracle is the product in f64 with the de-quantized weight.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use ggml_grad::graph::emit::{Bindings, Data, Executor, Precision};
use ggml_grad::graph::grad::differentiate;
use ggml_grad::graph::ir::{Elem, Graph, Value};
use ggml_grad::llama::{Batch, Context, ContextParams, DType, EvalCallback, Model, ModelParams, Node, Weight};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

/// Notes the weights that a decode uses, by name.
#[derive(Default)]
struct Weights(BTreeMap<String, Weight>);

impl EvalCallback for Weights {
    fn wants(&mut self, node: &Node) -> bool {
        for source in (0..10).filter_map(|i| node.src(i)) {
            if let Some(weight) = source.weight() {
                self.0.insert(source.name(), weight);
            }
        }
        false
    }

    fn computed(&mut self, _: &Node) -> bool {
        true
    }
}

fn weights(model: &std::sync::Arc<Model>) -> BTreeMap<String, Weight> {
    let mut ctx = Context::new(model, &ContextParams::exact(1, 1, 1)).unwrap();
    let mut batch = Batch::new();
    batch.add(0, 0, &[0], true);
    let mut tap = Weights::default();
    ctx.decode_with_callback(&batch, &mut tap).unwrap();
    tap.0
}

/// Runs a graph of one weight, nothing rounded for speed; input 0 and on are `data`.
fn run(graph: &Graph, weight: &Weight, data: &[&Data], read: Value, threads: u32) -> Vec<f32> {
    run_in(Precision::EXACT, graph, weight, data, read, threads)
}

fn run_in(precision: Precision, graph: &Graph, weight: &Weight, data: &[&Data], read: Value, threads: u32) -> Vec<f32> {
    let bind = Bindings { inputs: data.to_vec(), weights: std::slice::from_ref(weight), labels: &[], weigh: None };
    let mut exec = Executor::new(threads).unwrap();
    exec.set_precision(precision);
    exec.run(graph, &bind, &[], &[read]).unwrap().values.remove(0)
}

fn random(n: usize, rng: &mut ChaCha8Rng) -> Data {
    Data::F32((0..n).map(|_| rng.random_range(-1.0..1.0)).collect())
}

fn floats(data: &Data) -> &[f32] {
    match data {
        Data::F32(x) => x,
        other => panic!("{other:?}"),
    }
}

/// The weight's numbers as ggml de-quantizes them, `[n, k]`: rows looked up as token embeddings are.
fn dequantized(weight: &Weight) -> Vec<f32> {
    let [_, n, ..] = weight.node().ne();
    let mut graph = Graph::new();
    let (w, _) = graph.weight(weight.node().ne(), elem(weight));
    let (ids, _) = graph.input([n, 1, 1, 1], Elem::I32);
    let rows = graph.get_rows(w, ids).unwrap();
    run(&graph, weight, &[&Data::I32((0..n as i32).collect())], rows, 1)
}

fn elem(weight: &Weight) -> Elem {
    if weight.node().dtype() == DType::F32 { Elem::F32 } else { Elem::Weight }
}

/// `|a - b| / |b|`
fn distance(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let length = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    length(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - b)) / length(&mut b.iter().copied())
}

/// The gradient of `sum(g * W y)` with respect to y is `W^T g`: one weight of each type in each model.
#[test]
fn the_product_with_a_transposed_weight() {
    const M: usize = 7;
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut types = Vec::new();
    for name in [common::SMOL, common::GEMMA] {
        let Some(path) = common::model(name) else { continue };
        let model = Model::load(&path, &ModelParams::default()).unwrap();
        let mut seen = Vec::new();
        for (name, weight) in &weights(&model) {
            let [k, n, ..] = weight.node().ne();
            // One of each type; the embedding is too large for a quick product in f64.
            if n == 1 || n > 4096 || seen.contains(&(weight.node().dtype(), k)) {
                continue;
            }
            seen.push((weight.node().dtype(), k));
            types.push(weight.node().dtype().name());
            let mut graph = Graph::new();
            let (y, _) = graph.input([k, M, 1, 1], Elem::F32);
            let (seed, _) = graph.input([n, M, 1, 1], Elem::F32);
            let (w, _) = graph.weight(weight.node().ne(), elem(weight));
            let z = graph.mul_mat(w, y, 0).unwrap();
            let grad = differentiate(&mut graph, z, seed, &[y]).unwrap()[0];
            let (y, g) = (random(k * M, &mut rng), random(n * M, &mut rng));
            let got = run(&graph, weight, &[&y, &g], grad, 1);

            let values = dequantized(weight); // [n, k]
            let mut want = vec![0.0f64; M * k];
            for (g, want) in floats(&g).chunks_exact(n).zip(want.chunks_exact_mut(k)) {
                for (g, row) in g.iter().zip(values.chunks_exact(k)) {
                    for (sum, x) in want.iter_mut().zip(row) {
                        *sum += f64::from(*g) * f64::from(*x);
                    }
                }
            }
            let error = distance(&got, &want);
            eprintln!("{name} ({}, {n} rows of {k}): {error:.1e}", weight.node().dtype().name());
            assert!(error <= 1e-6, "{name} ({}): relative error {error:.2e}", weight.node().dtype().name());
            // BF16: independent roundings of 2^-8 at most on both sides of each product.
            let rounded = distance(&run_in(Precision::default(), &graph, weight, &[&y, &g], grad, 1), &want);
            assert!(rounded <= 4e-3, "{name} ({}): relative error {rounded:.2e}", weight.node().dtype().name());
            // <g, W y> = <W^T g, y>, the left side by llama.cpp's own kernels, which round y to 8 bits.
            let forward = run(&graph, weight, &[&y, &g], z, 1);
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            let size = dot(&forward, &forward).sqrt() * dot(floats(&g), floats(&g)).sqrt();
            let gap = (dot(&forward, floats(&g)) - dot(&got, floats(&y))).abs() / size;
            assert!(gap <= 2e-3, "{name}: <g, W y> and <W^T g, y> differ by {gap:.2e} of their size");

            for threads in [2, 3] {
                assert_eq!(run(&graph, weight, &[&y, &g], grad, threads), got, "{name}: {threads} threads");
            }
        }
    }
    types.sort();
    types.dedup();
    eprintln!("types: {types:?}");
    let both = common::model(common::SMOL).is_some() && common::model(common::GEMMA).is_some();
    assert!(!both || types.len() >= 4, "too few types to mean much: {types:?}");
}

/// `z = x w` for a norm's weight w, a plain F32 row repeated over the rows of x: dL/dx = g w.
#[test]
fn the_weight_of_a_norm() {
    let Some(path) = common::model(common::SMOL) else { return };
    let model = Model::load(&path, &ModelParams::default()).unwrap();
    let weight = &weights(&model)["blk.20.ffn_norm.weight"];
    let k = weight.node().ne()[0];
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let mut graph = Graph::new();
    let (x, _) = graph.input([k, 3, 1, 1], Elem::F32);
    let (seed, _) = graph.input([k, 3, 1, 1], Elem::F32);
    let (w, _) = graph.weight(weight.node().ne(), elem(weight));
    let z = graph.mul(x, w).unwrap();
    let grad = differentiate(&mut graph, z, seed, &[x]).unwrap()[0];
    let (x, g) = (random(k * 3, &mut rng), random(k * 3, &mut rng));
    let got = run(&graph, weight, &[&x, &g], grad, 1);
    let scale = weight.node().read_f32();
    let want: Vec<f32> = floats(&g).iter().enumerate().map(|(i, g)| g * scale[i % k]).collect();
    assert_eq!(got, want);
}
