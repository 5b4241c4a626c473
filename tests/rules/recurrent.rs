//! Recurrent layers: convolutions over time and scans.

use super::{Case, Value, assert_close};
use ggml_grad::graph::emit::{Bindings, Data, Executor};
use ggml_grad::graph::grad::differentiate;
use ggml_grad::graph::ir::{Graph, MatrixScan, Shape, contiguous};
use serde_json::Value as Json;
use std::collections::BTreeSet;

/// z[i, t] = sum_k w[k, i] x[t + k, i].  dL/dx[j, i] = sum_k w[k, i] g[i, j - k].
pub fn ssm_conv() -> Vec<BTreeSet<usize>> {
    let (d, n, tokens, sequences) = (4, 18, 5, 2); // more channels than one block
    let mut c = Case::new([d - 1 + tokens, n, sequences, 1]);
    let filters = c.fixed([d, n, 1, 1]);
    let z = c.graph.ssm_conv(c.entry, filters).unwrap();
    vec![c.check("ssm_conv", z)]
}

/// Sizes of a scan.
#[derive(Clone, Copy)]
struct Scan {
    n_state: usize,
    dim: usize,
    n_head: usize,
    n_group: usize,
    tokens: usize,
    sequences: usize,
    /// Numbers of A a head: 1, or one for each of the state.
    decays: usize,
}

impl Scan {
    /// The gradient of y with respect to source `entry` (1: x, 2: dt, 4: B, 5: C), the states at the start being no zeros.
    fn check(self, name: &str, entry: usize) -> BTreeSet<usize> {
        let Self { n_state, dim, n_head, n_group, tokens, sequences, decays } = self;
        let shapes = [
            [n_state, dim, n_head, sequences],
            [dim, n_head, tokens, sequences],
            [n_head, tokens, sequences, 1],
            [decays, n_head, 1, 1],
            [n_state, n_group, tokens, sequences],
            [n_state, n_group, tokens, sequences],
        ];
        let mut c = Case::new(shapes[entry]);
        let mut src: Vec<Value> = Vec::new();
        for (i, ne) in shapes.into_iter().enumerate() {
            let value = match i {
                _ if i == entry => c.entry,
                // Negative, so that states decay.
                3 => {
                    let values = c.random(decays * n_head).iter().map(|x| x.abs() * -0.4 - 0.05).collect();
                    c.given(ne, values)
                }
                _ => c.fixed(ne),
            };
            src.push(value);
        }
        let ids: Vec<i32> = (0..sequences as i32).rev().collect();
        src.push(c.integers(&ids));
        let all = c.graph.ssm_scan(src.try_into().unwrap()).unwrap();
        let y = c.graph.view(all, shapes[1], contiguous(shapes[1]), 0).unwrap();
        c.check(&format!("ssm_scan, {name}, source {entry}"), y)
    }
}

/// h_t = exp(d A) h_(t-1) + d x B,  y = <C, h>,  d = log(1 + exp dt).
pub fn ssm_scan() -> Vec<BTreeSet<usize>> {
    let first = Scan { n_state: 16, dim: 1, n_head: 19, n_group: 1, tokens: 3, sequences: 2, decays: 16 };
    let second = Scan { n_state: 20, dim: 3, n_head: 4, n_group: 2, tokens: 4, sequences: 2, decays: 1 };
    // More tokens than one chunk.
    let long = Scan { n_state: 3, dim: 1, n_head: 1, n_group: 1, tokens: 130, sequences: 1, decays: 3 };
    let mut reached = Vec::new();
    for entry in [1, 2, 4, 5] {
        reached.push(first.check("Mamba 1", entry));
        reached.push(second.check("Mamba 2", entry));
    }
    reached.push(long.check("Mamba 1 in chunks", 2));
    reached.push(Scan { decays: 1, ..long }.check("Mamba 2 in chunks", 1));
    reached
}

/// Shapes of a matrix scan's sources in ggml's order, the states last.
fn shapes(kind: MatrixScan, [n, heads, tokens, sequences]: Shape, queries: usize, gates: usize) -> Vec<Shape> {
    let (all, states) = ([n, heads, tokens * sequences, 1], [n * n * heads, sequences, 1, 1]);
    match kind {
        MatrixScan::Wkv6 => vec![all, all, all, [n, heads, 1, 1], all, states],
        MatrixScan::Wkv7 => [vec![all; 6], vec![states]].concat(),
        MatrixScan::Gated { .. } => [vec![all; 4], vec![states]].concat(),
        MatrixScan::DeltaNet => {
            let query = [n, queries, tokens, sequences];
            let of = |width: usize| [width, heads, tokens, sequences];
            vec![query, query, of(n), of(gates), of(1), [n, n, heads, sequences]]
        }
    }
}

/// Numbers of a source in a range in which states neither vanish nor grow.
fn tamed(kind: MatrixScan, source: usize, x: f32) -> f32 {
    match (kind, source) {
        // Decays.
        (MatrixScan::Wkv6, 4) | (MatrixScan::Wkv7, 1) | (MatrixScan::Gated { .. }, 3) => 0.65 + 0.2 * x,
        (MatrixScan::DeltaNet, 3) => -0.4 + 0.2 * x,
        // The delta rule.
        (MatrixScan::Wkv7, 4 | 5) => 0.1 * x,
        (MatrixScan::DeltaNet, 1) => 0.3 * x,
        (MatrixScan::DeltaNet, 4) => 0.5 + 0.3 * x,
        _ => x,
    }
}

/// The gradient of y with respect to each source, the states at the start being no zeros.
pub fn matrix_scans() -> Vec<BTreeSet<usize>> {
    let mut reached = Vec::new();
    let mut check = |kind: MatrixScan, ne: Shape, queries: usize, gates: usize, sources: &[usize]| {
        for &entry in sources {
            let shapes = shapes(kind, ne, queries, gates);
            let mut c = Case::new(shapes[entry]);
            let mut src = Vec::new();
            for (i, &ne) in shapes.iter().enumerate() {
                let values: Vec<f32> = c.random(ne.iter().product()).into_iter().map(|x| tamed(kind, i, x)).collect();
                if i == entry {
                    c.data[0] = Data::F32(values);
                    src.push(c.entry);
                } else {
                    src.push(c.given(ne, values));
                }
            }
            let all = c.graph.matrix_scan(kind, &src).unwrap();
            let y = c.graph.view(all, ne, contiguous(ne), 0).unwrap();
            reached.push(c.check(&format!("{kind:?} {ne:?}, source {entry}"), y));
        }
    };
    // ggml wants heads of whole vectors, and for RWKV 7 of several.
    let (short, long) = ([16, 2, 3, 2], [16, 1, 70, 1]);
    check(MatrixScan::Wkv6, short, 0, 0, &[0, 1, 2, 4]);
    check(MatrixScan::Wkv7, [64, 2, 2, 1], 0, 0, &[0, 1, 2, 3, 4, 5]);
    check(MatrixScan::Gated { scale: 0.25 }, short, 0, 0, &[0, 1, 2, 3]);
    // Two heads of v for one of q and k; a gate a head, or one for each number of the key.
    check(MatrixScan::DeltaNet, short, 1, 1, &[0, 1, 2, 3, 4]);
    check(MatrixScan::DeltaNet, short, 2, 16, &[1, 3]);
    check(MatrixScan::DeltaNet, long, 1, 1, &[3, 4]);
    reached
}

/// The numbers of tests/gold/recurrent.py.
fn numbers(ne: &[usize], which: u64, low: f64, high: f64) -> Vec<f32> {
    let n: usize = ne.iter().product();
    let part = |i: u64| ((i * 7919 + which * 104_729 + i * i * 31) % 1024) as f64 / 1024.0;
    (0..n as u64).map(|i| (low + (high - low) * part(i)) as f32).collect()
}

/// The values and gradients of a layer against PyTorch's autograd of the published recurrence. `graph` gives y and, in the order
/// of their names in the file, the sources with gradients.
fn compare(gold: &Json, name: &str, (mut c, y, sources): (Case, Value, &[(&str, Value)])) {
    let list = |v: &Json| v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<f64>>();
    let seed = numbers(&c.graph.ne(y), 100, -1.0, 1.0);
    let seed = c.given(c.graph.ne(y), seed);
    let wrt: Vec<Value> = sources.iter().map(|s| s.1).collect();
    let grads = differentiate(&mut c.graph, y, seed, &wrt).unwrap();
    let mut exec = Executor::new(1).unwrap();
    let bind = Bindings { inputs: c.data.iter().collect(), ..Default::default() };
    let y = c.graph.contiguous(y);
    let read: Vec<Value> = std::iter::once(y).chain(grads).collect();
    let found = exec.run(&c.graph, &bind, &[], &read).unwrap().values;
    let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
    assert_close(&format!("{name}: y"), &wide(&found[0]), &list(&gold[name]["y"]), 1e-5);
    for ((source, _), grad) in sources.iter().zip(&found[1..]) {
        let want = list(&gold[name]["gradients"][*source]);
        assert_close(&format!("{name}: {source}"), &wide(grad), &want, 1e-5);
    }
}

/// A graph without inputs.
fn empty() -> Case {
    let mut c = Case::new([1, 1, 1, 1]);
    (c.graph, c.data) = (Graph::new(), Vec::new());
    c
}

#[test]
fn gradients_equal_pytorch() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gold/recurrent.json");
    let gold: Json = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    for name in ["mamba", "mamba2"] {
        let size = |key: &str| gold[name][key].as_u64().unwrap() as usize;
        let [tokens, heads, dim, groups, state] = ["tokens", "heads", "dim", "groups", "state"].map(size);
        let mut c = empty();
        let mut input = |ne: [usize; 4], which, low, high| c.given(ne, numbers(&ne, which, low, high));
        let x = input([dim, heads, tokens, 1], 1, -1.5, 1.5);
        let dt = input([heads, tokens, 1, 1], 2, -2.0, 2.0);
        let a = input([size("decays"), heads, 1, 1], 3, -1.25, -0.25);
        let b = input([state, groups, tokens, 1], 4, -1.5, 1.5);
        let out = input([state, groups, tokens, 1], 5, -1.5, 1.5);
        let start = c.given([state, dim, heads, 1], vec![0.0; state * dim * heads]);
        let ids = c.integers(&[0]);
        let all = c.graph.ssm_scan([start, x, dt, a, b, out, ids]).unwrap();
        let ne = c.graph.ne(x);
        let y = c.graph.view(all, ne, contiguous(ne), 0).unwrap();
        compare(&gold, name, (c, y, &[("x", x), ("dt", dt), ("b", b), ("c", out)]));
    }
    // In the order of ggml's sources, each with the range of its numbers, as in the script.
    let plain = |name: &'static str, low: f64, high: f64| (name, low, high);
    let wide = |name| plain(name, -1.0, 1.0);
    let (decay, small) = (plain("w", 0.5, 1.0), |name, size: f64| plain(name, -size, size));
    let cases = [
        ("wkv6", MatrixScan::Wkv6, vec![wide("k"), wide("v"), wide("r"), wide("u"), decay]),
        ("wkv7", MatrixScan::Wkv7, vec![wide("r"), decay, wide("k"), wide("v"), small("a", 0.125), small("b", 0.125)]),
        ("gated", MatrixScan::Gated { scale: 0.25 }, vec![wide("k"), wide("v"), wide("q"), plain("g", 0.5, 1.0)]),
        (
            "delta_net",
            MatrixScan::DeltaNet,
            vec![wide("q"), small("k", 0.5), wide("v"), plain("g", -1.0, 0.0), plain("beta", 0.0, 1.0)],
        ),
        (
            "delta_net_by_key",
            MatrixScan::DeltaNet,
            vec![wide("q"), small("k", 0.5), wide("v"), plain("g", -1.0, 0.0), plain("beta", 0.0, 1.0)],
        ),
    ];
    for (name, kind, sources) in cases {
        let size = |key: &str| gold[name][key].as_u64().unwrap() as usize;
        let ne = [size("n"), 1, size("tokens"), 1];
        let gates = if name == "delta_net_by_key" { 16 } else { 1 };
        let mut c = empty();
        let shapes = shapes(kind, ne, 1, gates);
        let mut src = Vec::new();
        for (i, (&shape, &(_, low, high))) in shapes.iter().zip(&sources).enumerate() {
            src.push(c.given(shape, numbers(&shape, i as u64 + 1, low, high)));
        }
        let states = shapes[shapes.len() - 1];
        let start = c.given(states, vec![0.0; states.iter().product()]);
        let all = [&src[..], &[start]].concat();
        let scan = c.graph.matrix_scan(kind, &all).unwrap();
        let y = c.graph.view(scan, ne, contiguous(ne), 0).unwrap();
        // u is a weight of the model.
        let named: Vec<(&str, Value)> = sources.iter().map(|s| s.0).zip(src).filter(|(name, _)| *name != "u").collect();
        compare(&gold, name, (c, y, &named));
    }
}
