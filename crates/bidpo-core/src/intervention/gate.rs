//! A vector behind a gate that the residual stream opens.
//!
//! | kind | h' |
//! | --- | --- |
//! | `gate` | `h + sigmoid((w . n(h) + b) / tau) v`, each row by itself |
//! | `linear-gate` | `h + (w . n(h) + b) v` (CLAS, arXiv 2604.24693) |
//! | `prompt-gate` | `gate`, decided by the prompt and held for the answer (CAST, arXiv 2409.05907, but trained) |
//!
//! n(h) is the row divided by its root mean square. With the gate s(z), z = w . n(h) + b, and g the derivative with respect to
//! h': `dv = s g`, `dz = s'(z) (g . v)`, `dw = dz n(h)`, `db = dz`.

use super::row_kind::normalised;
use super::{ParameterGroup, Part, Pool, RowKind};
use crate::numbers::{dot, norm};

/// Largest change of a gate's argument by the first step of Adam: it moves each component of w by the learning rate, and
/// n(h) has components of size 1.
const FIRST_STEP: f64 = 1.0;
/// Learning rate of b.
const BIAS_RATE: f64 = 0.05;

/// A gated vector; theta is `[w, b, v]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gate {
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Temperature of the sigmoid; `None` for a linear gate.
    pub tau: Option<f64>,
    /// Rows that decide.
    pub pool: Pool,
}

impl Gate {
    /// Opening and its derivative at an argument z.
    fn at(&self, z: f64) -> (f64, f64) {
        match self.tau {
            None => (z, 1.0),
            Some(tau) => {
                let s = 1.0 / (1.0 + (-z / tau).exp());
                (s, s * (1.0 - s) / tau)
            }
        }
    }

    fn v<'a>(&self, theta: &'a [f64]) -> &'a [f64] {
        &theta[self.n_embd + 1..]
    }
}

impl RowKind for Gate {
    fn name(&self) -> &'static str {
        match (self.tau, self.pool) {
            (None, _) => "linear-gate",
            (_, Pool::Each) => "gate",
            _ => "prompt-gate",
        }
    }

    fn n_embd(&self) -> usize {
        self.n_embd
    }

    fn parts(&self) -> Vec<Part> {
        let n = self.n_embd;
        vec![
            Part { name: "gate.weight", params: 0..n, shape: vec![n] },
            Part { name: "gate.bias", params: n..n + 1, shape: vec![1] },
            Part { name: "vector", params: n + 1..2 * n + 1, shape: vec![n] },
        ]
    }

    /// A gate that is half open everywhere (a linear one: open), before a vector of zeros.
    fn initial(&self, _seed: u64) -> Vec<f64> {
        let mut theta = vec![0.0; 2 * self.n_embd + 1];
        theta[self.n_embd] = if self.tau.is_none() { 1.0 } else { 0.0 };
        theta
    }

    fn with_constant(&self, seed: u64, v: &[f64]) -> Option<Vec<f64>> {
        let mut theta = self.initial(seed);
        theta[self.n_embd + 1..].copy_from_slice(v);
        Some(theta)
    }

    fn groups(&self, rate: f64) -> Vec<ParameterGroup> {
        let n = self.n_embd;
        vec![
            ParameterGroup { params: 0..n, lr: FIRST_STEP / n as f64 },
            ParameterGroup { params: n..n + 1, lr: BIAS_RATE },
            ParameterGroup { params: n + 1..2 * n + 1, lr: rate },
        ]
    }

    fn pool(&self) -> Pool {
        self.pool
    }

    fn score(&self, theta: &[f64], h: &[f32]) -> f64 {
        theta.iter().zip(normalised(h)).map(|(w, x)| w * x).sum()
    }

    fn score_vjp(&self, h: &[f32], slope: f64, grad: &mut [f64]) {
        grad.iter_mut().zip(normalised(h)).for_each(|(sum, x)| *sum += slope * x);
    }

    fn opening(&self, theta: &[f64], score: f64) -> Option<f64> {
        Some(self.at(score + theta[self.n_embd]).0)
    }

    fn change(&self, theta: &[f64], _h: &[f32], score: f64, out: &mut [f64]) {
        let (open, _) = self.at(score + theta[self.n_embd]);
        out.iter_mut().zip(self.v(theta)).for_each(|(out, v)| *out = open * v);
    }

    fn vjp(&self, theta: &[f64], _h: &[f32], score: f64, g: &[f64], grad: &mut [f64]) -> f64 {
        let n = self.n_embd;
        let (open, slope) = self.at(score + theta[n]);
        let along = slope * dot(g, self.v(theta));
        grad[n] += along;
        grad[n + 1..].iter_mut().zip(g).for_each(|(sum, g)| *sum += open * g);
        along
    }

    /// A linear gate has no end: its root mean square over rows whose components are independent is taken.
    fn norm(&self, theta: &[f64], _residual: f64) -> f64 {
        let open = match self.tau {
            Some(_) => 1.0,
            None => norm(&theta[..=self.n_embd]),
        };
        open * norm(self.v(theta))
    }

    fn scaled(&self, theta: &[f64], factor: f64) -> Vec<f64> {
        let v = |(i, x): (usize, &f64)| if i > self.n_embd { factor * x } else { *x };
        theta.iter().enumerate().map(v).collect()
    }

    fn constant(&self, theta: &[f64]) -> Option<Vec<f64>> {
        let open = if self.tau.is_some() { 1.0 } else { theta[self.n_embd] };
        Some(self.v(theta).iter().map(|v| open * v).collect())
    }
}
