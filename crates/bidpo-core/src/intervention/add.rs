//! A constant vector at each layer.
//!
//! `h' = h + f v` with a factor f, or, for [`Direction::Null`], `h' = h - c v` with `c = max(h . v, 0) / |v|^2` (Wu et al. 2025,
//! arXiv 2505.20809, `Phi_Null`). With g the derivative with respect to h', `dv = f g`; where h . v > 0, that of the null is
//! `dv = (2 c (g . v) v - (g . v) h) / |v|^2 - c g`.

use super::{Addition, Direction, Intervention, NamedTensor, ParameterGroup, Parameters, RowGradients, Stream};
use crate::numbers::{dot, norm};
use crate::steer::rotated;

/// `h' = h + v` with one vector for each layer; `theta` is `[n_layers, n_embd]`, lowest layer first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Add {
    /// Number of steered layers.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
}

/// The component of a row along `v`, in units of `v`, where it is positive; `None` elsewhere.
fn component(h: &[f32], v: &[f32], square: f64) -> Option<f64> {
    let along = dot(h, v);
    (along > 0.0 && square > 0.0).then(|| along / square)
}

impl Add {
    /// The vector of a change that takes its component out.
    fn nulled<'a>(&self, theta: &'a [f32]) -> (&'a [f32], f64) {
        let v = &theta[..self.n_embd];
        (v, dot(v, v))
    }

    /// Only the rows of the lowest layer are known before the graph runs: at several layers the engine refuses the second.
    fn null_additions(&self, theta: &[f32], stream: &Stream<'_>) -> Vec<Addition> {
        let (v, square) = self.nulled(theta);
        let rows = stream.rows.chunks_exact(self.n_embd).flat_map(|h| {
            let c = component(h, v, square).unwrap_or(0.0);
            v.iter().map(move |x| (-c * f64::from(*x)) as f32)
        });
        std::iter::once(Addition::Rows(rows.collect()))
            .chain((1..self.n_layers).map(|_| Addition::Rows(Vec::new())))
            .collect()
    }

    fn null_vjp(&self, theta: &[f32], stream: &Stream<'_>, gradients: &RowGradients<'_>, grads: &mut [Vec<f64>]) {
        let (v, square) = self.nulled(theta);
        let n = self.n_embd;
        for ((h, g), pair) in stream.rows.chunks_exact(n).zip(gradients.rows.chunks_exact(n)).zip(gradients.pair) {
            let Some(c) = component(h, v, square) else { continue };
            let scale = f64::from(gradients.scale);
            let gv = dot(g, v) / scale;
            for (((sum, g), h), v) in grads[*pair].iter_mut().zip(g).zip(h).zip(v) {
                *sum += gv * (2.0 * c * f64::from(*v) - f64::from(*h)) / square - c * f64::from(*g) / scale;
            }
        }
    }
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

    fn additions(&self, at: Parameters<'_>, stream: &Stream<'_>) -> Vec<Addition> {
        debug_assert_eq!(at.theta.len(), self.n_params());
        if at.direction == Direction::Null {
            return self.null_additions(at.theta, stream);
        }
        let factor = at.direction.factor() as f32;
        let layers = at.theta.chunks_exact(self.n_embd);
        layers.map(|v| Addition::Broadcast(v.iter().map(|x| factor * x).collect())).collect()
    }

    /// The vector is added to every row, so its gradient is the sum over a pair's rows.
    fn vjp(&self, at: Parameters<'_>, stream: &Stream<'_>, gradients: &[RowGradients<'_>], grads: &mut [Vec<f64>]) {
        if at.direction == Direction::Null {
            return self.null_vjp(at.theta, stream, &gradients[0], grads);
        }
        let factor = at.direction.factor();
        for (layer, at) in gradients.iter().enumerate() {
            for (row, pair) in at.rows.chunks_exact(self.n_embd).zip(at.pair) {
                for (sum, x) in grads[*pair][layer * self.n_embd..].iter_mut().zip(row) {
                    // The scale is a power of two: the division is exact.
                    *sum += factor * f64::from(*x / at.scale);
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

    /// Rows against and across the vector stay as they are; one along it loses its component. The gradient against central
    /// differences, with rows of both signs.
    #[test]
    fn the_null_takes_the_component_out() {
        let add = Add { n_layers: 1, n_embd: 3 };
        let theta = [0.5, -1.0, 2.0];
        let rows = [1.0, 0.3, 0.7, -1.0, 2.0, -0.4, 2.0, 0.4, 0.0, 0.2, -3.0, 0.1];
        let stream = Stream { rows: &rows, ..Stream::default() };
        let change = |theta: &[f32]| match &add.additions(Parameters { theta, direction: Direction::Null }, &stream)[0]
        {
            Addition::Rows(rows) => rows.clone(),
            Addition::Broadcast(_) => panic!("one change for all rows"),
        };
        let changed = change(&theta);
        for (i, (h, c)) in rows.chunks_exact(3).zip(changed.chunks_exact(3)).enumerate() {
            let after: Vec<f32> = h.iter().zip(c).map(|(h, c)| h + c).collect();
            let (before, after) = (dot(h, &theta), dot(&after, &theta));
            assert!(if before > 0.0 { after.abs() < 1e-6 } else { after == before }, "row {i}: {before}, {after}");
        }
        assert_eq!(change(&[0.0; 3]), [0.0; 12]);
        let g = [0.3, -0.2, 0.9, 1.1, 0.4, -0.5, -0.7, 0.2, 0.6, 0.8, -0.1, 0.5];
        let loss =
            |theta: &[f32]| change(theta).iter().zip(&g).map(|(x, g)| f64::from(*x) * f64::from(*g)).sum::<f64>();
        let at = Parameters { theta: &theta, direction: Direction::Null };
        let scaled = g.map(|x| 4.0 * x);
        let mut grads = vec![vec![0.0; 3]];
        add.vjp(at, &stream, &[RowGradients { rows: &scaled, scale: 4.0, pair: &[0; 4] }], &mut grads);
        for i in 0..3 {
            let h = 1e-2;
            let [above, below] = [h, -h].map(|h| {
                let mut moved = theta;
                moved[i] += h;
                loss(&moved)
            });
            let numeric = (above - below) / (2.0 * f64::from(h));
            assert!((numeric - grads[0][i]).abs() < 2e-3, "{i}: {numeric}, {}", grads[0][i]);
        }
        // The change does not depend on the vector's length.
        let radial: f64 = grads[0].iter().zip(&theta).map(|(g, v)| g * f64::from(*v)).sum();
        assert!(radial.abs() < 1e-6, "{radial}");
    }

    #[test]
    fn a_factor_scales_change_and_gradient() {
        let add = Add { n_layers: 1, n_embd: 2 };
        let at = Parameters { theta: &[1.0, -2.0], direction: Direction::Times(1.5) };
        assert_eq!(add.additions(at, &Stream::default()), [Addition::Broadcast(vec![1.5, -3.0])]);
        let mut grads = vec![vec![0.0; 2]];
        add.vjp(at, &Stream::default(), &[RowGradients { rows: &[2.0, 4.0], scale: 2.0, pair: &[0] }], &mut grads);
        assert_eq!(grads, [[1.5, 3.0]]);
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
