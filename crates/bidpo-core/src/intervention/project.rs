//! Changes along one direction.
//!
//! | kind | h' |
//! | --- | --- |
//! | `project` | `h - s (u . h) u`: with s = 1 the direction is removed (directional ablation; Arditi et al. 2024, arXiv 2406.11717, eq. 4) |
//! | `clamp` | `h + s (c - u . h) u`: with s = 1 the component along the direction becomes c |
//!
//! `u = a / |a|`. Both begin with s = 0, under which no row changes. With d = c - u . h and g the derivative with respect to h':
//! `ds = d (g . u)`, `dc = s (g . u)`, `du = s (d g - (g . u) h)`, and `da = (du - (du . u) u) / |a|`.

use super::{ParameterGroup, Part, RowKind};
use crate::numbers::{dot, norm};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

/// Learning rate of s.
const STRENGTH_RATE: f64 = 0.02;
/// Angle, in radians, by which the first step of Adam turns the direction.
const TURN: f64 = 0.1;

/// A change along one direction; theta is `[a, s]`, and `[a, s, c]` for a clamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Project {
    /// Width of the residual stream.
    pub n_embd: usize,
    /// The component is moved to a trained value instead of 0.
    pub clamps: bool,
}

/// The parts of theta.
struct Parts {
    u: Vec<f64>,
    length: f64,
    s: f64,
    c: f64,
}

impl Project {
    fn read(&self, theta: &[f64]) -> Parts {
        let (a, rest) = theta.split_at(self.n_embd);
        let length = norm(a).max(f64::MIN_POSITIVE);
        Parts { u: a.iter().map(|x| x / length).collect(), length, s: rest[0], c: rest.get(1).copied().unwrap_or(0.0) }
    }
}

impl RowKind for Project {
    fn name(&self) -> &'static str {
        if self.clamps { "clamp" } else { "project" }
    }

    fn n_embd(&self) -> usize {
        self.n_embd
    }

    fn parts(&self) -> Vec<Part> {
        let n = self.n_embd;
        let mut parts = vec![
            Part { name: "axis", params: 0..n, shape: vec![n] },
            Part { name: "strength", params: n..n + 1, shape: vec![1] },
        ];
        if self.clamps {
            parts.push(Part { name: "level", params: n + 1..n + 2, shape: vec![1] });
        }
        parts
    }

    /// A random unit vector, strength 0.
    fn initial(&self, seed: u64) -> Vec<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut theta: Vec<f64> = (&mut rng).sample_iter(StandardNormal).take(self.n_embd).collect();
        let length = norm(&theta);
        theta.iter_mut().for_each(|x| *x /= length);
        theta.resize(self.n_params(), 0.0);
        theta
    }

    fn groups(&self, rate: f64) -> Vec<ParameterGroup> {
        let n = self.n_embd;
        let mut groups = vec![
            ParameterGroup { params: 0..n, lr: TURN / (n as f64).sqrt() },
            ParameterGroup { params: n..n + 1, lr: STRENGTH_RATE },
        ];
        if self.clamps {
            // The norm of a vector's step: c is a length along u.
            groups.push(ParameterGroup { params: n + 1..n + 2, lr: rate * (n as f64).sqrt() });
        }
        groups
    }

    fn change(&self, theta: &[f64], h: &[f32], _score: f64, out: &mut [f64]) {
        let Parts { u, s, c, .. } = self.read(theta);
        let move_by = s * (c - dot(&u, &wide(h)));
        out.iter_mut().zip(&u).for_each(|(out, u)| *out = move_by * u);
    }

    fn vjp(&self, theta: &[f64], h: &[f32], _score: f64, g: &[f64], grad: &mut [f64]) -> f64 {
        let (n, Parts { u, length, s, c }) = (self.n_embd, self.read(theta));
        let h = wide(h);
        let (along, d) = (dot(g, &u), c - dot(&u, &h));
        let du: Vec<f64> = g.iter().zip(&h).map(|(g, h)| s * (d * g - along * h)).collect();
        let radial = dot(&du, &u);
        for ((sum, du), u) in grad.iter_mut().zip(&du).zip(&u) {
            *sum += (du - radial * u) / length;
        }
        grad[n] += d * along;
        if self.clamps {
            grad[n + 1] += s * along;
        }
        0.0
    }

    /// Of a row whose components are independent: `|u . h|` is `residual / sqrt(n_embd)` then.
    fn norm(&self, theta: &[f64], residual: f64) -> f64 {
        let Parts { s, c, .. } = self.read(theta);
        s.abs() * c.hypot(residual / (self.n_embd as f64).sqrt())
    }

    fn scaled(&self, theta: &[f64], factor: f64) -> Vec<f64> {
        let mut out = theta.to_vec();
        out[self.n_embd] *= factor;
        out
    }

    fn constant(&self, _theta: &[f64]) -> Option<Vec<f64>> {
        None
    }
}

fn wide(h: &[f32]) -> Vec<f64> {
    h.iter().map(|&x| f64::from(x)).collect()
}
