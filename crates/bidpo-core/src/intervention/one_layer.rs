//! A kind of row changes as an intervention that can be trained.

use super::{
    Addition, Intervention, NamedTensor, ParameterGroup, Parameters, Pool, RowGradients, RowKind, Stream, random_of,
};
use std::sync::Arc;

/// A [`RowKind`] at the engine's only layer.
#[derive(Debug, Clone)]
pub struct OneLayer(pub Arc<dyn RowKind>);

impl OneLayer {
    /// Score for each row; `None` for rows that no decision reaches: those of a prompt that decides for its answer.
    fn scores(&self, theta: &[f64], stream: &Stream<'_>) -> Vec<Option<f64>> {
        let row = |i: usize| &stream.rows[i * self.0.n_embd()..(i + 1) * self.0.n_embd()];
        let own = |i: usize| self.0.score(theta, row(i));
        let n_rows = stream.rows.len() / self.0.n_embd();
        if self.0.pool() == Pool::Each {
            return (0..n_rows).map(|i| Some(own(i))).collect();
        }
        let held: Vec<f64> = stream
            .prompts
            .iter()
            .map(|prompt| {
                let deciding = deciding(self.0.pool(), prompt);
                deciding.iter().map(|&i| own(i)).sum::<f64>() / deciding.len() as f64
            })
            .collect();
        stream.places.iter().map(|place| place.is_answer().then(|| held[place.sequence])).collect()
    }
}

/// Rows of a prompt that decide for its answer.
fn deciding(pool: Pool, prompt: &[usize]) -> &[usize] {
    match pool {
        Pool::Mean => prompt,
        Pool::Each | Pool::Last => &prompt[prompt.len() - 1..],
    }
}

fn wide(theta: &[f32]) -> Vec<f64> {
    theta.iter().map(|&x| f64::from(x)).collect()
}

impl Intervention for OneLayer {
    fn kind(&self) -> &'static str {
        self.0.name()
    }

    fn n_params(&self) -> usize {
        self.0.n_params()
    }

    fn initial(&self, seed: u64) -> Vec<f64> {
        self.0.initial(seed)
    }

    fn groups(&self, rates: &[f64]) -> Vec<ParameterGroup> {
        self.0.groups(rates[0])
    }

    fn additions(&self, at: Parameters<'_>, stream: &Stream<'_>) -> Vec<Addition> {
        let (theta, n) = (wide(at.theta), self.0.n_embd());
        let mut out = Vec::with_capacity(stream.rows.len());
        let mut change = vec![0.0; n];
        let prepared = self.0.prepared(&theta);
        for (h, score) in stream.rows.chunks_exact(n).zip(self.scores(&theta, stream)) {
            match score {
                Some(score) => {
                    self.0.change(&prepared, h, score, &mut change);
                    out.extend(change.iter().map(|x| (at.direction.factor() * x) as f32));
                }
                None => out.extend(std::iter::repeat_n(0.0, n)),
            }
        }
        vec![Addition::Rows(out)]
    }

    fn vjp(&self, at: Parameters<'_>, stream: &Stream<'_>, gradients: &[RowGradients<'_>], grads: &mut [Vec<f64>]) {
        let (theta, n) = (wide(at.theta), self.0.n_embd());
        let of = &gradients[0];
        let factor = at.direction.factor();
        let row = |i: usize| &stream.rows[i * n..(i + 1) * n];
        let mut g = vec![0.0; n];
        let prepared = self.0.prepared(&theta);
        let mut sums = vec![vec![0.0; theta.len()]; grads.len()];
        // For each sequence: derivative with respect to its decision, and the gradient that it counts towards.
        let mut held = vec![(0.0, 0); stream.prompts.len()];
        for (i, score) in self.scores(&theta, stream).into_iter().enumerate() {
            let Some(score) = score else { continue };
            let pair = of.pair[i];
            g.iter_mut().zip(&of.rows[i * n..(i + 1) * n]).for_each(|(g, x)| *g = factor * f64::from(x / of.scale));
            let slope = self.0.vjp(&prepared, row(i), score, &g, &mut sums[pair]);
            match self.0.pool() {
                Pool::Each => self.0.score_vjp(row(i), slope, &mut grads[pair]),
                Pool::Last | Pool::Mean => {
                    let of = &mut held[stream.places[i].sequence];
                    *of = (of.0 + slope, pair);
                }
            }
        }
        for (grad, mut sum) in grads.iter_mut().zip(sums) {
            self.0.prepared_vjp(&theta, &mut sum);
            grad.iter_mut().zip(sum).for_each(|(grad, x)| *grad += x);
        }
        if self.0.pool() == Pool::Each {
            return;
        }
        for ((slope, pair), prompt) in held.into_iter().zip(stream.prompts) {
            let rows = deciding(self.0.pool(), prompt);
            for &i in rows {
                self.0.score_vjp(row(i), slope / rows.len() as f64, &mut grads[pair]);
            }
        }
    }

    fn norms(&self, theta: &[f64], residual: &[f64]) -> Vec<f64> {
        vec![self.0.norm(theta, residual.first().copied().unwrap_or(1.0))]
    }

    fn scaled(&self, theta: &[f64], factor: f64) -> Vec<f64> {
        self.0.scaled(theta, factor)
    }

    fn random(&self, theta: &[f32], seed: u64) -> Vec<f32> {
        random_of(&*self.0, theta, seed)
    }

    fn tensors(&self, theta: &[f32], layers: &[usize]) -> Vec<NamedTensor> {
        let tensor = |part: super::Part| NamedTensor {
            name: format!("{}.{}", part.name, layers[0]),
            data: theta[part.params].to_vec(),
            shape: part.shape,
        };
        self.0.parts().into_iter().map(tensor).collect()
    }
}
