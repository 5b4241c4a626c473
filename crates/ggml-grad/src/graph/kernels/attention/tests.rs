//! The kernels of every instruction set against f64.

use super::*;
use crate::graph::kernels::cpu::tests::at_every_level;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Extents of an attention.
#[derive(Debug, Clone, Copy)]
struct Shape {
    k: usize,
    k_v: usize,
    heads: usize,
    heads_kv: usize,
    n: usize,
    n_kv: usize,
}

/// Its numbers, each contiguous: `[rows, heads, k]`; the mask `[n, padded]`.
struct Numbers {
    shape: Shape,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    g: Vec<f32>,
    mask: Vec<f32>,
    padded: usize,
    scale: f32,
}

impl Numbers {
    fn new(shape: Shape, sees: &dyn Fn(usize, usize) -> bool, rng: &mut ChaCha8Rng) -> Self {
        let padded = shape.n_kv.next_multiple_of(LANES) + LANES;
        let mut some = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.5f32..1.5)).collect() };
        let Shape { k, k_v, heads, heads_kv, n, n_kv } = shape;
        let (q, keys, v, g) =
            (some(k * heads * n), some(k * heads_kv * n_kv), some(k_v * heads_kv * n_kv), some(k_v * heads * n));
        let bias = some(n * padded);
        let mask = (0..n * padded)
            .map(|i| {
                let (row, column) = (i / padded, i % padded);
                // Not only 0 and nothing: biases by position come this way.
                if column < n_kv && sees(row, column) { 0.1 * bias[i] } else { f32::NEG_INFINITY }
            })
            .collect();
        Self { shape, q, k: keys, v, g, mask, padded, scale: 1.0 / (k as f32).sqrt() }
    }

    /// Result and gradients of queries, keys and values of `sum of result g`.
    fn reference(&self) -> [Vec<f64>; 4] {
        let Shape { k, k_v, heads, heads_kv, n, n_kv } = self.shape;
        let at = |x: &[f32], i: usize| f64::from(x[i]);
        let mut out = [
            vec![0.0; k_v * heads * n],
            vec![0.0; k * heads * n],
            vec![0.0; k * heads_kv * n_kv],
            vec![0.0; k_v * heads_kv * n_kv],
        ];
        for head in 0..heads {
            let kv = head / (heads / heads_kv);
            for row in 0..n {
                let (q, o) = ((row * heads + head) * k, (row * heads + head) * k_v);
                let key = |column: usize| ((column * heads_kv + kv) * k, (column * heads_kv + kv) * k_v);
                let score = |column: usize| {
                    let dot: f64 = (0..k).map(|i| at(&self.q, q + i) * at(&self.k, key(column).0 + i)).sum();
                    dot * f64::from(self.scale) + at(&self.mask, row * self.padded + column)
                };
                let scores: Vec<f64> = (0..n_kv).map(score).collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
                let p: Vec<f64> = scores.iter().map(|s| (s - top).exp() / sum).collect();
                let dp: Vec<f64> = (0..n_kv)
                    .map(|column| (0..k_v).map(|i| at(&self.g, o + i) * at(&self.v, key(column).1 + i)).sum())
                    .collect();
                let mean: f64 = p.iter().zip(&dp).map(|(p, d)| p * d).sum();
                for column in 0..n_kv {
                    let (key, value) = key(column);
                    let ds = p[column] * (dp[column] - mean) * f64::from(self.scale);
                    for i in 0..k_v {
                        out[0][o + i] += p[column] * at(&self.v, value + i);
                        out[3][value + i] += p[column] * at(&self.g, o + i);
                    }
                    for i in 0..k {
                        out[1][q + i] += ds * at(&self.k, key + i);
                        out[2][key + i] += ds * at(&self.q, q + i);
                    }
                }
            }
        }
        out
    }

    /// The same by the kernels, with so many workers one after the other.
    fn kernels(&self, nth: usize) -> [Vec<f32>; 4] {
        let Shape { k, k_v, heads, heads_kv, n, n_kv } = self.shape;
        let heads_of = |x: &[f32], k, heads, rows| Heads::at_memory(x.as_ptr().cast_mut(), k, heads, rows);
        let sources = Sources {
            q: heads_of(&self.q, k, heads, n),
            k: heads_of(&self.k, k, heads_kv, n_kv),
            v: heads_of(&self.v, k_v, heads_kv, n_kv),
            mask: Mask { data: self.mask.as_ptr(), stride: self.padded },
            scale: self.scale,
            group: heads / heads_kv,
            kernels: kernels(),
        };
        let g = heads_of(&self.g, k_v, heads, n);
        let mut out = vec![f32::NAN; k_v * heads * n];
        let mut for_q = vec![f32::NAN; backward_q_floats(k, heads, n)];
        let mut for_kv = vec![f32::NAN; (k + k_v) * heads_kv * n_kv];
        // SAFETY: numbers of these shapes; a worker has ended before the next begins, and each pass before the next.
        unsafe {
            let to = Heads::at_memory(out.as_mut_ptr(), k_v, heads, n);
            (0..nth).for_each(|ith| sources.forward(to, ith, nth));
            (0..nth).for_each(|ith| sources.backward_q(g, for_q.as_mut_ptr(), ith, nth));
            (0..nth).for_each(|ith| sources.backward_kv(g, for_q.as_ptr(), for_kv.as_mut_ptr(), ith, nth));
        }
        let for_v = for_kv.split_off(k * heads_kv * n_kv);
        for_q.truncate(k * heads * n);
        [out, for_q, for_kv, for_v]
    }
}

/// The keys that a query sees in a pair whose responses share a prompt.
fn pair(prompt: usize, chosen: usize) -> impl Fn(usize, usize) -> bool {
    move |row, column| column <= row && (column < prompt || (row < prompt + chosen) == (column < prompt + chosen))
}

#[test]
fn results_and_gradients_are_those_of_attention() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let shape = |k, k_v, heads, heads_kv, n, n_kv| Shape { k, k_v, heads, heads_kv, n, n_kv };
    for (shape, prompt, chosen) in [
        (shape(64, 64, 3, 1, 90, 90), 40, 30),
        (shape(16, 48, 4, 4, 7, 7), 3, 2),
        (shape(80, 80, 2, 1, 33, 33), 33, 0),
        (shape(256, 256, 1, 1, 50, 50), 2, 1),
        (shape(32, 16, 6, 2, 5, 100), 1, 0),
    ] {
        // With more keys than queries these are the last.
        let (sees, ahead) = (pair(prompt, chosen), shape.n_kv - shape.n);
        let numbers = Numbers::new(shape, &|row, column| column < ahead || sees(row, column - ahead), &mut rng);
        let want = numbers.reference();
        at_every_level(|level| {
            let one = numbers.kernels(1);
            for (what, (got, want)) in ["result", "queries", "keys", "values"].into_iter().zip(one.iter().zip(&want)) {
                for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
                    let error = (f64::from(got) - want).abs();
                    assert!(error <= 2e-5 * (1.0 + want.abs()), "{level}, {shape:?}: {what} {i}: {got} for {want}");
                }
            }
            for nth in [2, 3, 16] {
                assert!(numbers.kernels(nth) == one, "{level}, {shape:?}: {nth} workers give other bits");
            }
        });
    }
}

/// As ggml has it: a query that sees nothing has no result, and says so.
#[test]
fn a_query_that_sees_nothing_is_no_number() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let shape = Shape { k: 16, k_v: 16, heads: 1, heads_kv: 1, n: 20, n_kv: 20 };
    for hidden in [vec![3], (0..20).collect::<Vec<usize>>()] {
        let numbers = Numbers::new(shape, &|row, column| column <= row && !hidden.contains(&row), &mut rng);
        at_every_level(|level| {
            let [out, ..] = numbers.kernels(1);
            for (row, out) in out.chunks_exact(16).enumerate() {
                assert_eq!(out.iter().any(|x| x.is_nan()), hidden.contains(&row), "{level}, row {row}: {out:?}");
            }
        });
    }
}
