//! Changes of single rows at one layer.

use super::ParameterGroup;
use crate::steer::rotated;
use std::fmt::Debug;
use std::ops::Range;

/// The rows that a gate reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pool {
    /// Each row decides for itself.
    #[default]
    Each,
    /// The prompt's last row decides for the answer.
    Last,
    /// The mean over the prompt's rows decides for the answer.
    Mean,
}

/// Some of the parameters, with the name of their tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// The tensor's name in a file, without the layer.
    pub name: &'static str,
    /// The parameters.
    pub params: Range<usize>,
    /// Row-major.
    pub shape: Vec<usize>,
}

/// A change of the residual stream at one layer, of each row by itself; a gate may read other rows ([`Pool`]).
///
/// A row h becomes `h + change(theta, h, s)`, where s is the score of the rows that decide.
pub trait RowKind: Debug + Send + Sync {
    /// Name of the kind.
    fn name(&self) -> &'static str;

    /// Width of the residual stream.
    fn n_embd(&self) -> usize;

    /// Parts of the parameters, in order; together all of them.
    fn parts(&self) -> Vec<Part>;

    /// Parameters under which no row changes.
    fn initial(&self, seed: u64) -> Vec<f64>;

    /// Parameters that begin with the constant vector `v`: a gate half open before it, a linear gate and an edit that add it
    /// everywhere. `None` for a kind that holds no vector.
    fn with_constant(&self, _seed: u64, _v: &[f64]) -> Option<Vec<f64>> {
        None
    }

    /// Groups of parameters by learning rate. `rate`: that of a vector that is added.
    fn groups(&self, rate: f64) -> Vec<ParameterGroup>;

    /// Rows that decide.
    fn pool(&self) -> Pool {
        Pool::Each
    }

    /// Score of a row; linear in what the gate reads of it, so that a mean of scores is the score of a mean.
    fn score(&self, _theta: &[f64], _h: &[f32]) -> f64 {
        0.0
    }

    /// Adds `slope` times the derivative of [`RowKind::score`] to `grad`.
    fn score_vjp(&self, _h: &[f32], _slope: f64, _grad: &mut [f64]) {}

    /// Opening of the gate at a score; `None` for a kind without one.
    fn opening(&self, _theta: &[f64], _score: f64) -> Option<f64> {
        None
    }

    /// What [`RowKind::change`] and [`RowKind::vjp`] take in place of theta: as long, worked out once for all rows.
    fn prepared(&self, theta: &[f64]) -> Vec<f64> {
        theta.to_vec()
    }

    /// Turns the gradient of the prepared parameters, summed over rows, into that of theta.
    fn prepared_vjp(&self, _theta: &[f64], _grad: &mut [f64]) {}

    /// The change of row `h` into `out`, `[n_embd]`, under prepared parameters.
    fn change(&self, theta: &[f64], h: &[f32], score: f64, out: &mut [f64]);

    /// Adds the gradient of the prepared parameters that follows from `g`, the derivative with respect to the changed row, to
    /// `grad`. Returns the derivative with respect to the score.
    fn vjp(&self, theta: &[f64], h: &[f32], score: f64, g: &[f64], grad: &mut [f64]) -> f64;

    /// L2 norm of the change where the gate is fully open, or of a row of norm `residual`.
    fn norm(&self, theta: &[f64], residual: f64) -> f64;

    /// Parameters whose change is `factor` times as large.
    fn scaled(&self, theta: &[f64], factor: f64) -> Vec<f64>;

    /// The constant vector that is nearest: the change with a fully open gate. `None` where there is none.
    fn constant(&self, theta: &[f64]) -> Option<Vec<f64>>;

    /// Number of parameters.
    fn n_params(&self) -> usize {
        self.parts().last().map_or(0, |part| part.params.end)
    }
}

/// A row divided by its root mean square: what gates read. The norms of a few rows, the first one above all, are a hundred
/// times the median, and a gate must not open by size (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4, without gain).
pub fn normalised(h: &[f32]) -> impl Iterator<Item = f64> + '_ {
    let square: f64 = h.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let factor = 1.0 / (square / h.len().max(1) as f64 + 1e-12).sqrt();
    h.iter().map(move |&x| factor * f64::from(x))
}

/// Random parameters of the same size: every part that lives in the residual stream under one random rotation.
pub fn random_of(kind: &dyn RowKind, theta: &[f32], seed: u64) -> Vec<f32> {
    let n = kind.n_embd();
    let turned: Vec<Range<usize>> =
        kind.parts().into_iter().filter(|p| p.shape.last() == Some(&n)).map(|p| p.params).collect();
    let vectors: Vec<f32> = turned.iter().flat_map(|p| theta[p.clone()].iter().copied()).collect();
    let mut out = theta.to_vec();
    let mut rotated = rotated(&vectors, n, seed).into_iter();
    for params in turned {
        out[params].iter_mut().for_each(|x| *x = rotated.next().unwrap_or(*x));
    }
    out
}
