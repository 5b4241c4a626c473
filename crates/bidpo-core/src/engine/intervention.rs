//! Interventions: how parameters change the residual stream at the hook points, and the gradient of the parameters.
//!
//! The engine computes log-probabilities for the additions that [`Intervention::additions`] returns, reads the gradient of each
//! row at each hook point, and hands it to [`Intervention::vjp`]. The trainer asks for everything else: the first
//! parameters, their learning rates, the size of the change and the tensors of the file. A kind of intervention is one
//! implementation; engine and trainer know the trait alone.

use crate::numbers::norm;
use std::fmt::Debug;
use std::ops::Range;

/// Direction of an intervention. BiDPO trains one whose reverse has the opposite effect (Cao et al. 2024, arXiv 2406.00045,
/// eq. 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Direction {
    /// The change is added.
    #[default]
    Forward,
    /// The change is subtracted.
    Reverse,
}

impl Direction {
    /// +1 or -1.
    pub fn sign(self) -> f64 {
        match self {
            Self::Forward => 1.0,
            Self::Reverse => -1.0,
        }
    }
}

/// Parameters of an intervention, with the direction in which they are applied.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parameters<'a> {
    /// `[n_params]`
    pub theta: &'a [f32],
    /// The direction.
    pub direction: Direction,
}

impl<'a> From<&'a [f32]> for Parameters<'a> {
    fn from(theta: &'a [f32]) -> Self {
        Self { theta, direction: Direction::Forward }
    }
}

impl<'a> From<&'a Vec<f32>> for Parameters<'a> {
    fn from(theta: &'a Vec<f32>) -> Self {
        Self::from(&theta[..])
    }
}

/// Values added at one hook point.
#[derive(Debug, Clone, PartialEq)]
pub enum Addition {
    /// The same vector on every row, `[n_embd]`: broadcast in the graph.
    Broadcast(Vec<f32>),
    /// One vector for each row, `[n_rows, n_embd]`. Only at the lowest hook point, whose rows are known before the graph
    /// runs.
    Rows(Vec<f32>),
}

/// Gradient at the rows of one hook point.
#[derive(Debug, Clone, Copy)]
pub struct RowGradients<'a> {
    /// Derivative with respect to each row, `[n_rows, n_embd]`, times `scale`.
    pub rows: &'a [f32],
    /// Factor on `rows`: a power of two, 1 except on devices.
    pub scale: f32,
    /// For each row: index of the gradient that it counts towards.
    pub pair: &'a [usize],
}

/// Parameters that share a learning rate.
#[derive(Debug, Clone, PartialEq)]
pub struct ParameterGroup {
    /// The parameters.
    pub params: Range<usize>,
    /// Learning rate before the schedule's factor.
    pub lr: f64,
}

/// A tensor of an intervention's file.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// For example `direction.15`, the name by which llama.cpp finds a layer's control vector.
    pub name: String,
    /// Row-major.
    pub shape: Vec<usize>,
    /// The elements.
    pub data: Vec<f32>,
}

/// A change of the residual stream with parameters.
pub trait Intervention: Debug + Send + Sync {
    /// The kind, as checkpoints name it.
    fn kind(&self) -> &'static str;

    /// Number of parameters.
    fn n_params(&self) -> usize;

    /// Parameters before the first step, under which the residual stream stays as it is. `seed`: the run's, for kinds that begin
    /// at random.
    fn initial(&self, seed: u64) -> Vec<f64>;

    /// Groups of parameters that together cover all, in order. `rates`: for each layer, lowest first, the learning rate of a
    /// vector that is added there, in the units of the residual stream.
    fn groups(&self, rates: &[f64]) -> Vec<ParameterGroup>;

    /// Additions at each hook point, lowest layer first, in the direction asked for. `residual`: the model's residual stream
    /// at the lowest hook point, `[n_rows, n_embd]`.
    fn additions(&self, at: Parameters<'_>, residual: &[f32]) -> Vec<Addition>;

    /// Vector-Jacobian product: adds to `grads` (one `[n_params]` for each pair) the gradients of `theta` that follow from the
    /// gradients at each hook point, lowest layer first.
    fn vjp(&self, at: Parameters<'_>, residual: &[f32], gradients: &[RowGradients<'_>], grads: &mut [Vec<f64>]);

    /// Size of the change at each layer, lowest first: the L2 norm of what is added to a row, at most where rows differ.
    fn norms(&self, theta: &[f64]) -> Vec<f64>;

    /// Parameters whose change is `factor` times that of `theta`.
    fn scaled(&self, theta: &[f64], factor: f64) -> Vec<f64>;

    /// Tensors of the file for these parameters at `layers`, lowest first. Only a change that llama.cpp can make by itself
    /// holds `direction.N`.
    fn tensors(&self, theta: &[f32], layers: &[usize]) -> Vec<NamedTensor>;
}

/// `h' = h + v` with one vector for each layer; `theta` is `[n_layers, n_embd]`, lowest layer first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Add {
    /// Number of steered layers.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
}

impl Intervention for Add {
    fn kind(&self) -> &'static str {
        "add"
    }

    fn n_params(&self) -> usize {
        self.n_layers * self.n_embd
    }

    fn initial(&self, _seed: u64) -> Vec<f64> {
        vec![0.0; self.n_params()]
    }

    fn groups(&self, rates: &[f64]) -> Vec<ParameterGroup> {
        let group = |(i, &lr): (usize, &f64)| ParameterGroup { params: i * self.n_embd..(i + 1) * self.n_embd, lr };
        rates.iter().enumerate().map(group).collect()
    }

    fn additions(&self, at: Parameters<'_>, _residual: &[f32]) -> Vec<Addition> {
        debug_assert_eq!(at.theta.len(), self.n_params());
        let sign = at.direction.sign() as f32;
        let layers = at.theta.chunks_exact(self.n_embd);
        layers.map(|v| Addition::Broadcast(v.iter().map(|x| sign * x).collect())).collect()
    }

    /// The vector is added to every row, so its gradient is the sum over a pair's rows.
    fn vjp(&self, at: Parameters<'_>, _residual: &[f32], gradients: &[RowGradients<'_>], grads: &mut [Vec<f64>]) {
        let sign = at.direction.sign() as f32;
        for (layer, at) in gradients.iter().enumerate() {
            let scale = sign * at.scale; // plus or minus a power of two: the division is exact
            for (row, pair) in at.rows.chunks_exact(self.n_embd).zip(at.pair) {
                for (sum, x) in grads[*pair][layer * self.n_embd..].iter_mut().zip(row) {
                    *sum += f64::from(*x / scale);
                }
            }
        }
    }

    fn norms(&self, theta: &[f64]) -> Vec<f64> {
        theta.chunks_exact(self.n_embd).map(norm).collect()
    }

    fn scaled(&self, theta: &[f64], factor: f64) -> Vec<f64> {
        theta.iter().map(|x| x * factor).collect()
    }

    fn tensors(&self, theta: &[f32], layers: &[usize]) -> Vec<NamedTensor> {
        let tensor = |(layer, v): (&usize, &[f32])| NamedTensor {
            name: format!("direction.{layer}"),
            shape: vec![self.n_embd],
            data: v.to_vec(),
        };
        layers.iter().zip(theta.chunks_exact(self.n_embd)).map(tensor).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADD: Add = Add { n_layers: 2, n_embd: 2 };

    #[test]
    fn add_sums_the_rows_of_each_pair() {
        let theta = [1.0, 2.0, 3.0, 4.0];
        let at = Parameters::from(&theta[..]);
        let want = [Addition::Broadcast(vec![1.0, 2.0]), Addition::Broadcast(vec![3.0, 4.0])];
        assert_eq!(ADD.additions(at, &[]), want);
        let lower = RowGradients { rows: &[2.0, 4.0, 6.0, 8.0, 10.0, 12.0], scale: 2.0, pair: &[0, 1, 0] };
        let upper = RowGradients { rows: &[1.0, -1.0], scale: 1.0, pair: &[1] };
        let mut grads = vec![vec![0.0; 4]; 2];
        ADD.vjp(at, &[], &[lower, upper], &mut grads);
        assert_eq!(grads, [[6.0, 8.0, 0.0, 0.0], [3.0, 4.0, 1.0, -1.0]]);
    }

    #[test]
    fn the_reverse_subtracts() {
        let theta = [1.0, -2.0, 0.5, 4.0];
        let at = Parameters { theta: &theta, direction: Direction::Reverse };
        assert_eq!(ADD.additions(at, &[])[0], Addition::Broadcast(vec![-1.0, 2.0]));
        let lower = RowGradients { rows: &[2.0, 4.0], scale: 2.0, pair: &[0] };
        let mut grads = vec![vec![0.0; 4]];
        ADD.vjp(at, &[], &[lower], &mut grads);
        assert_eq!(grads, [[-1.0, -2.0, 0.0, 0.0]]);
    }

    #[test]
    fn each_layer_is_a_group_and_a_tensor() {
        let groups = ADD.groups(&[0.1, 0.7]);
        assert_eq!(groups, [ParameterGroup { params: 0..2, lr: 0.1 }, ParameterGroup { params: 2..4, lr: 0.7 }]);
        assert_eq!(ADD.norms(&[3.0, 4.0, 0.0, 2.0]), [5.0, 2.0]);
        let tensors = ADD.tensors(&[3.0, 4.0, 0.0, 2.0], &[5, 9]);
        let names: Vec<(&str, &[f32])> = tensors.iter().map(|t| (t.name.as_str(), &t.data[..])).collect();
        assert_eq!(names, [("direction.5", &[3.0, 4.0][..]), ("direction.9", &[0.0, 2.0])]);
    }
}
