//! A constant vector at each layer.

use super::{Addition, Intervention, NamedTensor, ParameterGroup, Parameters, RowGradients, Stream};
use crate::numbers::norm;
use crate::steer::rotated;

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

    fn additions(&self, at: Parameters<'_>, _stream: &Stream<'_>) -> Vec<Addition> {
        debug_assert_eq!(at.theta.len(), self.n_params());
        let sign = at.direction.sign() as f32;
        let layers = at.theta.chunks_exact(self.n_embd);
        layers.map(|v| Addition::Broadcast(v.iter().map(|x| sign * x).collect())).collect()
    }

    /// The vector is added to every row, so its gradient is the sum over a pair's rows.
    fn vjp(&self, at: Parameters<'_>, _stream: &Stream<'_>, gradients: &[RowGradients<'_>], grads: &mut [Vec<f64>]) {
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

    fn norms(&self, theta: &[f64], _residual: &[f64]) -> Vec<f64> {
        theta.chunks_exact(self.n_embd).map(norm).collect()
    }

    fn scaled(&self, theta: &[f64], factor: f64) -> Vec<f64> {
        theta.iter().map(|x| x * factor).collect()
    }

    fn random(&self, theta: &[f32], seed: u64) -> Vec<f32> {
        rotated(theta, self.n_embd, seed)
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
    use crate::intervention::Direction;

    const ADD: Add = Add { n_layers: 2, n_embd: 2 };

    #[test]
    fn add_sums_the_rows_of_each_pair() {
        let theta = [1.0, 2.0, 3.0, 4.0];
        let at = Parameters::from(&theta[..]);
        let want = [Addition::Broadcast(vec![1.0, 2.0]), Addition::Broadcast(vec![3.0, 4.0])];
        assert_eq!(ADD.additions(at, &Stream::default()), want);
        let lower = RowGradients { rows: &[2.0, 4.0, 6.0, 8.0, 10.0, 12.0], scale: 2.0, pair: &[0, 1, 0] };
        let upper = RowGradients { rows: &[1.0, -1.0], scale: 1.0, pair: &[1] };
        let mut grads = vec![vec![0.0; 4]; 2];
        ADD.vjp(at, &Stream::default(), &[lower, upper], &mut grads);
        assert_eq!(grads, [[6.0, 8.0, 0.0, 0.0], [3.0, 4.0, 1.0, -1.0]]);
    }

    #[test]
    fn the_reverse_subtracts() {
        let theta = [1.0, -2.0, 0.5, 4.0];
        let at = Parameters { theta: &theta, direction: Direction::Reverse };
        assert_eq!(ADD.additions(at, &Stream::default())[0], Addition::Broadcast(vec![-1.0, 2.0]));
        let lower = RowGradients { rows: &[2.0, 4.0], scale: 2.0, pair: &[0] };
        let mut grads = vec![vec![0.0; 4]];
        ADD.vjp(at, &Stream::default(), &[lower], &mut grads);
        assert_eq!(grads, [[-1.0, -2.0, 0.0, 0.0]]);
    }

    #[test]
    fn each_layer_is_a_group_and_a_tensor() {
        let groups = ADD.groups(&[0.1, 0.7]);
        assert_eq!(groups, [ParameterGroup { params: 0..2, lr: 0.1 }, ParameterGroup { params: 2..4, lr: 0.7 }]);
        assert_eq!(ADD.norms(&[3.0, 4.0, 0.0, 2.0], &[1.0, 1.0]), [5.0, 2.0]);
        let tensors = ADD.tensors(&[3.0, 4.0, 0.0, 2.0], &[5, 9]);
        let names: Vec<(&str, &[f32])> = tensors.iter().map(|t| (t.name.as_str(), &t.data[..])).collect();
        assert_eq!(names, [("direction.5", &[3.0, 4.0][..]), ("direction.9", &[0.0, 2.0])]);
    }
}
