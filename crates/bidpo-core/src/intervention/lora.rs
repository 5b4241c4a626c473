//! Low-rank changes of the model's matrices: LoRA (Hu et al. 2021, arXiv 2106.09685, equation 3).
//!
//! `y = W x + c B A x` with `c = alpha / rank`, for matrices of many layers, which the graph itself multiplies with: nothing is added
//! to the residual stream, unless a vector is trained beside them.

use super::{Add, Addition, Intervention, Matrix, NamedTensor, ParameterGroup, Parameters, RowGradients, Stream};
use crate::numbers::norm;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use std::ops::Range;

/// A matrix of the model that a pair of low-rank matrices changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adapted {
    /// The tensor's name, for example `blk.15.ffn_down.weight`.
    pub tensor: String,
    /// Width of what the matrix reads.
    pub n_in: usize,
    /// Width of what it writes.
    pub n_out: usize,
    /// Matrices of a mixture of experts; 1 for a plain one.
    pub n_experts: usize,
}

/// Which of a pair's two matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    A,
    B,
}

/// Low-rank pairs of one rank; `theta` is, for each pair in order, A `[n_experts, rank, n_in]` and B `[n_experts, n_out, rank]`,
/// behind the vectors of [`Add`] where there are any.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    /// The matrices.
    pub pairs: Vec<Adapted>,
    /// Rank of each pair.
    pub rank: usize,
    /// The factor on `B A` is `alpha / rank`.
    pub alpha: f32,
    /// Learning rate of the matrices.
    pub lr: f64,
    /// Vectors that are trained with them.
    pub add: Option<Add>,
}

impl Lora {
    /// Parameters of the vectors.
    pub fn n_vectors(&self) -> usize {
        self.add.map_or(0, |add| add.n_params())
    }

    /// The places of A and B of each pair in the parameters.
    pub fn places(&self) -> impl Iterator<Item = (&Adapted, [Range<usize>; 2])> {
        let mut at = self.n_vectors();
        self.pairs.iter().map(move |pair| {
            let (a, b) = (pair.n_experts * self.rank * pair.n_in, pair.n_experts * pair.n_out * self.rank);
            let start = at;
            at += a + b;
            (pair, [start..start + a, start + a..at])
        })
    }

    /// The Frobenius norm of each pair's `c B A`, by `|B A|^2 = sum((B^T B) * (A A^T))`; of experts, of all of them together.
    pub fn pair_norms(&self, theta: &[f64]) -> Vec<f64> {
        let norm = |(pair, [a, b]): (&Adapted, [Range<usize>; 2])| {
            self.product(pair, [&theta[a.clone()]; 2], [&theta[b.clone()]; 2])
        };
        self.places().map(norm).map(|x| x.max(0.0).sqrt()).collect()
    }

    /// `<c B_1 A_1, c B_2 A_2>`, element by element and summed.
    fn product(&self, pair: &Adapted, [a1, a2]: [&[f64]; 2], [b1, b2]: [&[f64]; 2]) -> f64 {
        let (rank, n_in) = (self.rank, pair.n_in);
        let c = f64::from(self.alpha) / rank as f64;
        let mut sum = 0.0;
        for expert in 0..pair.n_experts {
            let a = |m: &'_ [f64]| m[expert * rank * n_in..(expert + 1) * rank * n_in].to_vec();
            let b = |m: &'_ [f64]| m[expert * pair.n_out * rank..(expert + 1) * pair.n_out * rank].to_vec();
            let (a1, a2, b1, b2) = (a(a1), a(a2), b(b1), b(b2));
            let mut of_b = vec![0.0; rank * rank]; // B_1^T B_2
            for (x, y) in b1.chunks_exact(rank).zip(b2.chunks_exact(rank)) {
                for (i, x) in x.iter().enumerate() {
                    of_b[i * rank..(i + 1) * rank].iter_mut().zip(y).for_each(|(sum, y)| *sum += x * y);
                }
            }
            for (i, x) in a1.chunks_exact(n_in).enumerate() {
                for (j, y) in a2.chunks_exact(n_in).enumerate() {
                    let of_a: f64 = x.iter().zip(y).map(|(x, y)| x * y).sum();
                    sum += of_b[i * rank + j] * of_a;
                }
            }
        }
        c * c * sum
    }

    /// Name of a matrix in the adapter's file and in the graph.
    fn name(pair: &Adapted, side: Side) -> String {
        format!("{}.lora_{}", pair.tensor, if side == Side::A { 'a' } else { 'b' })
    }

    /// A as peft draws it (Kaiming's uniform distribution with `a = sqrt(5)`): within `1 / sqrt(n_in)` of 0.
    fn draw_a(rng: &mut ChaCha8Rng, n_in: usize, a: &mut [f64]) {
        let bound = 1.0 / (n_in as f64).sqrt();
        a.iter_mut().for_each(|x| *x = f64::from(rng.random_range(-bound..bound) as f32));
    }

    /// Parameters under which every matrix does something: for comparing graphs.
    pub fn probe(&self) -> Vec<f32> {
        let mut theta = self.initial(0);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let places: Vec<[Range<usize>; 2]> = self.places().map(|(_, places)| places).collect();
        for [_, b] in places {
            // Of the size that the factor makes of 0.05 / sqrt(rank).
            let bound = 0.05 * (self.rank as f64).sqrt() / f64::from(self.alpha);
            theta[b].iter_mut().for_each(|x| *x = rng.random_range(-bound..bound));
        }
        theta.iter().map(|&x| x as f32).collect()
    }
}

impl Intervention for Lora {
    fn kind(&self) -> &'static str {
        if self.add.is_some() { "lora+add" } else { "lora" }
    }

    fn n_params(&self) -> usize {
        self.places().last().map_or(self.n_vectors(), |(_, [_, b])| b.end)
    }

    fn initial(&self, seed: u64) -> Vec<f64> {
        let mut theta = vec![0.0; self.n_params()];
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(2);
        let places: Vec<(usize, Range<usize>)> = self.places().map(|(pair, [a, _])| (pair.n_in, a)).collect();
        for (n_in, a) in places {
            Self::draw_a(&mut rng, n_in, &mut theta[a]);
        }
        theta
    }

    fn groups(&self, rates: &[f64]) -> Vec<ParameterGroup> {
        let mut groups = self.add.map_or_else(Vec::new, |add| add.groups(rates));
        groups.push(ParameterGroup { params: self.n_vectors()..self.n_params(), lr: self.lr });
        groups
    }

    fn additions(&self, at: Parameters<'_>, stream: &Stream<'_>) -> Vec<Addition> {
        let theta = &at.theta[..self.n_vectors()];
        self.add.map_or_else(Vec::new, |add| add.additions(Parameters { theta, ..at }, stream))
    }

    fn vjp(&self, at: Parameters<'_>, stream: &Stream<'_>, gradients: &[RowGradients<'_>], grads: &mut [Vec<f64>]) {
        if let Some(add) = self.add {
            let theta = &at.theta[..self.n_vectors()];
            add.vjp(Parameters { theta, ..at }, stream, gradients, grads);
        }
    }

    fn changes_rows(&self) -> bool {
        self.add.is_some()
    }

    fn lora(&self) -> Option<&Lora> {
        Some(self)
    }

    /// The direction's factor is on B: the reverse has -B, `y = W x - c B A x`.
    fn matrices(&self, at: Parameters<'_>) -> Vec<Matrix> {
        let factor = at.direction.factor() as f32;
        let both = |(pair, [a, b]): (&Adapted, [Range<usize>; 2])| {
            let b: Vec<f32> = at.theta[b].iter().map(|x| factor * x).collect();
            [
                Matrix { name: Self::name(pair, Side::A), values: at.theta[a].to_vec() },
                Matrix { name: Self::name(pair, Side::B), values: b },
            ]
        };
        self.places().flat_map(both).collect()
    }

    fn matrices_vjp(&self, at: Parameters<'_>, gradients: &[&[f32]], grad: &mut [f64]) {
        let factor = at.direction.factor();
        let places = self.places().flat_map(|(_, [a, b])| [(a, 1.0), (b, factor)]);
        for ((place, factor), gradient) in places.zip(gradients) {
            grad[place].iter_mut().zip(*gradient).for_each(|(sum, x)| *sum += factor * f64::from(*x));
        }
    }

    /// At the lowest layer the norm of all pairs' `c B A` together; with vectors, theirs.
    fn norms(&self, theta: &[f64], residual: &[f64]) -> Vec<f64> {
        match self.add {
            Some(add) => add.norms(&theta[..self.n_vectors()], residual),
            None => vec![norm(&self.pair_norms(theta))],
        }
    }

    fn scaled(&self, theta: &[f64], factor: f64) -> Vec<f64> {
        let mut scaled = theta.to_vec();
        scaled[..self.n_vectors()].iter_mut().for_each(|x| *x *= factor);
        for (_, [_, b]) in self.places() {
            scaled[b].iter_mut().for_each(|x| *x *= factor);
        }
        scaled
    }

    /// A and B of normal numbers, B scaled so that each pair's `B A` has the norm that it has here.
    fn random(&self, theta: &[f32], seed: u64) -> Vec<f32> {
        let n = self.n_vectors();
        let mut drawn: Vec<f64> =
            self.add.map_or_else(Vec::new, |add| add.random(&theta[..n], seed).into_iter().map(f64::from).collect());
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(3);
        drawn.extend((&mut rng).sample_iter::<f64, _>(StandardNormal).take(self.n_params() - n));
        let own: Vec<f64> = theta.iter().map(|&x| f64::from(x)).collect();
        let (want, have) = (self.pair_norms(&own), self.pair_norms(&drawn));
        for (i, (_, [_, b])) in self.places().enumerate() {
            let factor = if have[i] > 0.0 { want[i] / have[i] } else { 0.0 };
            drawn[b].iter_mut().for_each(|x| *x *= factor);
        }
        drawn.into_iter().map(|x| x as f32).collect()
    }

    fn tensors(&self, theta: &[f32], layers: &[usize]) -> Vec<NamedTensor> {
        let mut tensors = self.add.map_or_else(Vec::new, |add| add.tensors(&theta[..self.n_vectors()], layers));
        for (pair, [a, b]) in self.places() {
            let shape = |rows: usize, columns: usize| match pair.n_experts {
                1 => vec![rows, columns],
                n => vec![n, rows, columns],
            };
            for (side, shape, place) in
                [(Side::A, shape(self.rank, pair.n_in), a), (Side::B, shape(pair.n_out, self.rank), b)]
            {
                tensors.push(NamedTensor { name: Self::name(pair, side), shape, data: theta[place].to_vec() });
            }
        }
        tensors
    }

    fn matrix_product(&self, a: &[f32], b: &[f32]) -> f64 {
        let wide = |theta: &[f32]| theta.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
        let (one, two) = (wide(a), wide(b));
        let each = self
            .places()
            .map(|(pair, [a, b])| self.product(pair, [&one[a.clone()], &two[a]], [&one[b.clone()], &two[b]]));
        each.sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intervention::Direction;

    fn lora() -> Lora {
        let pair = |tensor: &str, n_in, n_out, n_experts| Adapted { tensor: tensor.into(), n_in, n_out, n_experts };
        Lora {
            pairs: vec![pair("blk.1.attn_q.weight", 3, 2, 1), pair("blk.2.ffn_up_exps.weight", 2, 3, 2)],
            rank: 2,
            alpha: 6.0,
            lr: 1e-3,
            add: None,
        }
    }

    /// The norms and products of the pairs' whole matrices.
    #[test]
    fn norms_and_products_are_those_of_the_matrices() {
        let lora = lora();
        let theta = |k: f64| (0..lora.n_params()).map(|i| (i as f64 * k).sin()).collect::<Vec<f64>>();
        let (one, two) = (theta(0.7), theta(1.3));
        let whole = |theta: &[f64]| -> Vec<Vec<f64>> {
            let places = lora.places().map(|(pair, [a, b])| {
                let (a, b, r) = (&theta[a], &theta[b], lora.rank);
                let mut out = Vec::new();
                for e in 0..pair.n_experts {
                    for o in 0..pair.n_out {
                        for i in 0..pair.n_in {
                            let one = |j: usize| b[(e * pair.n_out + o) * r + j] * a[(e * r + j) * pair.n_in + i];
                            out.push(3.0 * (0..r).map(one).sum::<f64>());
                        }
                    }
                }
                out
            });
            places.collect()
        };
        for (norm, whole) in lora.pair_norms(&one).iter().zip(whole(&one)) {
            assert!((norm - crate::numbers::norm(&whole)).abs() < 1e-12, "{norm}");
        }
        let want: f64 = whole(&one).concat().iter().zip(whole(&two).concat()).map(|(a, b)| a * b).sum();
        let narrow = |theta: &[f64]| theta.iter().map(|&x| x as f32).collect::<Vec<f32>>();
        assert!((lora.matrix_product(&narrow(&one), &narrow(&two)) - want).abs() < 1e-5);
    }

    #[test]
    fn it_begins_without_a_change_and_random_ones_have_its_size() {
        let lora = lora();
        assert_eq!(lora.n_params(), 2 * 5 + 4 * 5);
        let begin = lora.initial(3);
        assert!(begin != lora.initial(4) && begin == lora.initial(3));
        assert_eq!(lora.norms(&begin, &[1.0]), [0.0]);
        let bound = 1.0 / 3f64.sqrt();
        assert!(begin[..6].iter().all(|x| x.abs() <= bound && *x != 0.0) && begin[6..10].iter().all(|&x| x == 0.0));
        let probe = lora.probe();
        let random = lora.random(&probe, 9);
        let wide = |theta: &[f32]| lora.pair_norms(&theta.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>());
        for (a, b) in wide(&probe).iter().zip(wide(&random)) {
            assert!(*a > 0.0 && (a - b).abs() < 1e-5 * a, "{a} {b}");
        }
        let doubled = lora.scaled(&begin.iter().zip(&probe).map(|(_, &p)| f64::from(p)).collect::<Vec<f64>>(), 2.0);
        let narrow: Vec<f32> = doubled.iter().map(|&x| x as f32).collect();
        assert!((wide(&narrow)[0] - 2.0 * wide(&probe)[0]).abs() < 1e-6);
    }

    #[test]
    fn the_reverse_has_the_other_sign_of_b() {
        let lora = lora();
        let theta = lora.probe();
        let (forward, back) = (
            lora.matrices(Parameters::from(&theta)),
            lora.matrices(Parameters { theta: &theta, direction: Direction::Reverse }),
        );
        assert_eq!(forward[0], back[0]);
        assert!(forward[1].values.iter().zip(&back[1].values).all(|(a, b)| *a == -b));
        assert_eq!(forward[2].name, "blk.2.ffn_up_exps.weight.lora_a");
        let gradients: Vec<Vec<f32>> = forward.iter().map(|m| vec![1.0; m.values.len()]).collect();
        let gradients: Vec<&[f32]> = gradients.iter().map(Vec::as_slice).collect();
        let mut grad = vec![0.0; lora.n_params()];
        lora.matrices_vjp(Parameters { theta: &theta, direction: Direction::Reverse }, &gradients, &mut grad);
        assert_eq!((&grad[..6], &grad[6..10]), (&[1.0; 6][..], &[-1.0; 4][..]));
        let twice = Parameters { theta: &theta, direction: Direction::Times(2.0) };
        let doubled = lora.matrices(twice);
        assert!(
            doubled[0] == forward[0] && forward[1].values.iter().zip(&doubled[1].values).all(|(a, b)| 2.0 * a == *b)
        );
        let mut grad = vec![0.0; lora.n_params()];
        lora.matrices_vjp(twice, &gradients, &mut grad);
        assert_eq!((&grad[..6], &grad[6..10]), (&[1.0; 6][..], &[2.0; 4][..]));
    }
}
