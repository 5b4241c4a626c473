//! Interventions: how parameters change the residual stream at the hook points, and the gradient of the parameters.
//!
//! The engine computes log-probabilities for the additions that [`Intervention::additions`] returns, reads the gradient of each
//! row at each hook point, and hands it to [`Intervention::vjp`]. A kind of intervention is one implementation; engine
//! and trainer know the trait alone.

use std::fmt::Debug;

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

/// A change of the residual stream with parameters.
pub trait Intervention: Debug + Send + Sync {
    /// Number of parameters.
    fn n_params(&self) -> usize;

    /// Additions at each hook point for the parameters `theta`, lowest layer first. `residual`: the residual stream at the
    /// lowest hook point, `[n_rows, n_embd]`.
    fn additions(&self, theta: &[f32], residual: &[f32]) -> Vec<Addition>;

    /// Vector-Jacobian product: adds to `grads` (one `[n_params]` for each pair) the gradients of `theta` that follow from the
    /// gradients at each hook point, lowest layer first.
    fn vjp(&self, theta: &[f32], residual: &[f32], gradients: &[RowGradients<'_>], grads: &mut [Vec<f64>]);
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
    fn n_params(&self) -> usize {
        self.n_layers * self.n_embd
    }

    fn additions(&self, theta: &[f32], _residual: &[f32]) -> Vec<Addition> {
        debug_assert_eq!(theta.len(), self.n_params());
        theta.chunks_exact(self.n_embd).map(|v| Addition::Broadcast(v.to_vec())).collect()
    }

    /// The vector is added to every row, so its gradient is the sum over a pair's rows.
    fn vjp(&self, _theta: &[f32], _residual: &[f32], gradients: &[RowGradients<'_>], grads: &mut [Vec<f64>]) {
        for (layer, at) in gradients.iter().enumerate() {
            for (row, pair) in at.rows.chunks_exact(self.n_embd).zip(at.pair) {
                for (sum, x) in grads[*pair][layer * self.n_embd..].iter_mut().zip(row) {
                    *sum += f64::from(*x / at.scale); // a power of two: exact
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn add_sums_the_rows_of_each_pair() {
        let add = Add { n_layers: 2, n_embd: 2 };
        let theta = [1.0, 2.0, 3.0, 4.0];
        let want = [Addition::Broadcast(vec![1.0, 2.0]), Addition::Broadcast(vec![3.0, 4.0])];
        assert_eq!(add.additions(&theta, &[]), want);
        let lower = RowGradients { rows: &[2.0, 4.0, 6.0, 8.0, 10.0, 12.0], scale: 2.0, pair: &[0, 1, 0] };
        let upper = RowGradients { rows: &[1.0, -1.0], scale: 1.0, pair: &[1] };
        let mut grads = vec![vec![0.0; 4]; 2];
        add.vjp(&theta, &[], &[lower, upper], &mut grads);
        assert_eq!(grads, [[6.0, 8.0, 0.0, 0.0], [3.0, 4.0, 1.0, -1.0]]);
    }
}
