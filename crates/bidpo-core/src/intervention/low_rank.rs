//! An edit in a subspace of low rank: LoReFT (Wu et al. 2024, arXiv 2404.03592, eq. 2).
//!
//! `h' = h + R^T (W h + b - R h)`, R of rank r with orthonormal rows. Here W - R = D is trained, which is 0 at first, and R is the
//! orthonormal factor of a matrix A: `A^T = R^T U`, U upper triangular (Gram-Schmidt on the rows of A). With y = D h + b and g the
//! derivative with respect to h': `dy = R g`, `dD = dy h^T`, `db = dy`, `dR = y g^T`; from R to A by the reverse of a QR
//! factorization (Walter & Lehmann 2010, arXiv 1001.1654, eq. 3.9).

use super::{ParameterGroup, Part, RowKind};
use crate::numbers::{dot, norm};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

/// Angle, in radians, by which the first step of Adam turns a row of R.
const TURN: f64 = 0.02;

/// An edit of rank r; theta is `[A, D, b]`, A and D `[rank, n_embd]`, b `[rank]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LowRank {
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Dimensions of the subspace.
    pub rank: usize,
}

/// Orthonormal rows `r`, `[rank, n_embd]`, with `a_i = sum_j u[j][i] r_j`.
struct Factored {
    r: Vec<Vec<f64>>,
    u: Vec<Vec<f64>>,
}

fn factored(a: &[f64], n: usize) -> Factored {
    let rank = a.len() / n;
    let mut out = Factored { r: Vec::with_capacity(rank), u: vec![vec![0.0; rank]; rank] };
    for (i, row) in a.chunks_exact(n).enumerate() {
        let mut rest = row.to_vec();
        for (j, q) in out.r.iter().enumerate() {
            let c = dot(&rest, q);
            out.u[j][i] = c;
            rest.iter_mut().zip(q).for_each(|(x, q)| *x -= c * q);
        }
        let length = norm(&rest).max(f64::MIN_POSITIVE);
        out.u[i][i] = length;
        out.r.push(rest.into_iter().map(|x| x / length).collect());
    }
    out
}

impl Factored {
    /// Gradient of A from that of R, both `[rank, n_embd]`: with the columns Q = R^T,
    /// `dA^T = (dQ + Q copyltu(-dQ^T Q)) U^-T`, where copyltu mirrors the lower triangle.
    fn vjp(&self, dr: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let rank = self.r.len();
        let m = |i: usize, j: usize| -dot(&dr[i.max(j)], &self.r[i.min(j)]);
        let mut x: Vec<Vec<f64>> = dr.to_vec();
        for (j, x) in x.iter_mut().enumerate() {
            for i in 0..rank {
                let c = m(i, j);
                x.iter_mut().zip(&self.r[i]).for_each(|(x, q)| *x += c * q);
            }
        }
        // Y U^T = X: column by column from the last one.
        for j in (0..rank).rev() {
            for k in j + 1..rank {
                let (before, after) = x.split_at_mut(k);
                before[j].iter_mut().zip(&after[0]).for_each(|(x, y)| *x -= self.u[j][k] * y);
            }
            x[j].iter_mut().for_each(|x| *x /= self.u[j][j]);
        }
        x
    }
}

impl LowRank {
    /// `D h + b`
    fn inner(&self, theta: &[f64], h: &[f64]) -> Vec<f64> {
        let (size, n) = (self.rank * self.n_embd, self.n_embd);
        let (d, b) = (&theta[size..2 * size], &theta[2 * size..]);
        d.chunks_exact(n).zip(b).map(|(d, b)| dot(d, h) + b).collect()
    }
}

impl RowKind for LowRank {
    fn name(&self) -> &'static str {
        "lowrank"
    }

    fn n_embd(&self) -> usize {
        self.n_embd
    }

    fn parts(&self) -> Vec<Part> {
        let (r, n) = (self.rank, self.n_embd);
        vec![
            Part { name: "lowrank.basis", params: 0..r * n, shape: vec![r, n] },
            Part { name: "lowrank.edit", params: r * n..2 * r * n, shape: vec![r, n] },
            Part { name: "lowrank.bias", params: 2 * r * n..2 * r * n + r, shape: vec![r] },
        ]
    }

    /// Random rows of about unit length, and no edit.
    fn initial(&self, seed: u64) -> Vec<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let size = 1.0 / (self.n_embd as f64).sqrt();
        let mut theta: Vec<f64> =
            (&mut rng).sample_iter(StandardNormal).take(self.rank * self.n_embd).map(|x: f64| size * x).collect();
        theta.resize(self.n_params(), 0.0);
        theta
    }

    /// The vector's axis becomes the first row of A, and its norm the first component of b.
    fn with_constant(&self, seed: u64, v: &[f64]) -> Option<Vec<f64>> {
        let mut theta = self.initial(seed);
        let length = norm(v).max(f64::MIN_POSITIVE);
        theta.iter_mut().zip(v).for_each(|(a, v)| *a = v / length);
        theta[2 * self.rank * self.n_embd] = length;
        Some(theta)
    }

    /// A step of b moves the row as a step of a vector does; one of D as well, for a row whose components agree with it.
    fn groups(&self, rate: f64) -> Vec<ParameterGroup> {
        let (size, n) = (self.rank * self.n_embd, self.n_embd as f64);
        let share = 1.0 / (self.rank as f64).sqrt();
        vec![
            ParameterGroup { params: 0..size, lr: TURN / n.sqrt() },
            ParameterGroup { params: size..2 * size, lr: 0.01 * share / n.sqrt() },
            ParameterGroup { params: 2 * size..2 * size + self.rank, lr: rate * n.sqrt() * share },
        ]
    }

    /// `[R, D, b]`
    fn prepared(&self, theta: &[f64]) -> Vec<f64> {
        let size = self.rank * self.n_embd;
        let mut prepared = factored(&theta[..size], self.n_embd).r.concat();
        prepared.extend(&theta[size..]);
        prepared
    }

    fn prepared_vjp(&self, theta: &[f64], grad: &mut [f64]) {
        let (size, n) = (self.rank * self.n_embd, self.n_embd);
        let dr: Vec<Vec<f64>> = grad[..size].chunks_exact(n).map(<[f64]>::to_vec).collect();
        let da = factored(&theta[..size], n).vjp(&dr);
        grad.chunks_exact_mut(n).zip(da).for_each(|(to, da)| to.copy_from_slice(&da));
    }

    fn change(&self, theta: &[f64], h: &[f32], _score: f64, out: &mut [f64]) {
        let h: Vec<f64> = h.iter().map(|&x| f64::from(x)).collect();
        out.fill(0.0);
        for (y, r) in self.inner(theta, &h).into_iter().zip(theta.chunks_exact(self.n_embd)) {
            out.iter_mut().zip(r).for_each(|(out, r)| *out += y * r);
        }
    }

    fn vjp(&self, theta: &[f64], h: &[f32], _score: f64, g: &[f64], grad: &mut [f64]) -> f64 {
        let (size, n) = (self.rank * self.n_embd, self.n_embd);
        let h: Vec<f64> = h.iter().map(|&x| f64::from(x)).collect();
        for (i, (y, r)) in self.inner(theta, &h).into_iter().zip(theta.chunks_exact(n)).enumerate() {
            grad[i * n..(i + 1) * n].iter_mut().zip(g).for_each(|(sum, g)| *sum += y * g);
            let dy = dot(r, g);
            grad[size + i * n..size + (i + 1) * n].iter_mut().zip(&h).for_each(|(sum, h)| *sum += dy * h);
            grad[2 * size + i] += dy;
        }
        0.0
    }

    /// Of a row whose components are independent.
    fn norm(&self, theta: &[f64], residual: f64) -> f64 {
        let size = self.rank * self.n_embd;
        let edit = norm(&theta[size..2 * size]) * residual / (self.n_embd as f64).sqrt();
        edit.hypot(norm(&theta[2 * size..]))
    }

    fn scaled(&self, theta: &[f64], factor: f64) -> Vec<f64> {
        let size = self.rank * self.n_embd;
        theta.iter().enumerate().map(|(i, x)| if i < size { *x } else { factor * x }).collect()
    }

    fn constant(&self, theta: &[f64]) -> Option<Vec<f64>> {
        let size = self.rank * self.n_embd;
        let basis = factored(&theta[..size], self.n_embd);
        let mut v = vec![0.0; self.n_embd];
        for (b, r) in theta[2 * size..].iter().zip(&basis.r) {
            v.iter_mut().zip(r).for_each(|(v, r)| *v += b * r);
        }
        Some(v)
    }
}
