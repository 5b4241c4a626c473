//! Recurrent layers: convolutions over time and scans.

use super::{Case, Value};
use ggml_grad::graph::emit::Data;
use ggml_grad::graph::ir::{MatrixScan, Shape, contiguous};
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
