//! The cost model: what a step takes is a sum of terms, each a size times a constant of the machine.

use crate::Measured;
use crate::plan::{Measurement, Sizes};

/// A step to predict: model, layer, tokens of the pair, output rows among them.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    pub model: Sizes,
    pub layer: usize,
    pub tokens: f64,
    pub outputs: f64,
}

impl Step {
    pub fn of(m: &Measured) -> Self {
        let Measurement { model, layer, tokens, .. } = m.plan;
        Self { model, layer, tokens: tokens as f64, outputs: m.point.outputs as f64 }
    }

    fn above(&self) -> f64 {
        self.model.above(self.layer) as f64
    }

    /// Terms of the time: products with the blocks' weights, with the output matrix, attention, and what is done element by
    /// element.
    pub fn time_terms(&self) -> [f64; 4] {
        let m = &self.model;
        [
            self.tokens * self.above() * m.block_params() / 1e12,
            self.outputs * m.head_params() / 1e12,
            self.tokens * self.tokens * self.above() * m.n_embd as f64 / 1e12,
            self.tokens * self.above() * m.n_embd as f64 / 1e12,
        ]
    }

    /// Terms of the memory of inputs and activations: streams and feed-forward values of all blocks above, logits,
    /// attention scores, and one.
    pub fn memory_terms(&self) -> [f64; 5] {
        let m = &self.model;
        let per_layer = 4.0 * self.tokens * self.tokens * m.n_head as f64;
        let kept = self.above() * per_layer;
        // src/graph/attention.rs: beyond 128 MB in all they are computed again, those of one layer at a time.
        let scores = if kept <= f64::from(128 << 20) { kept } else { per_layer + f64::from(32 << 20) };
        [
            4.0 * self.tokens * self.above() * m.n_embd as f64 / 1e9,
            4.0 * self.tokens * self.above() * m.n_ff as f64 / 1e9,
            4.0 * self.outputs * m.n_vocab as f64 / 1e9,
            scores / 1e9,
            1.0,
        ]
    }
}

/// The constants.
pub struct Costs {
    /// Seconds for each of [`Step::time_terms`].
    pub time: Vec<f64>,
    /// Gigabytes for each of [`Step::memory_terms`].
    pub memory: Vec<f64>,
    /// The largest difference of a process's peak to weights, captured pair and activations together, bytes.
    pub rest: f64,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

impl Costs {
    pub fn fit(points: &[&Measured]) -> Self {
        let rows = |terms: &dyn Fn(&Step) -> Vec<f64>| -> Vec<Vec<f64>> {
            points.iter().map(|m| terms(&Step::of(m))).collect()
        };
        let times: Vec<f64> = points.iter().map(|m| m.point.step).collect();
        let bytes: Vec<f64> = points.iter().map(|m| m.point.step_bytes as f64 / 1e9).collect();
        let rest = points
            .iter()
            .filter(|m| m.point.peak > 0)
            .map(|m| {
                let p = &m.point;
                p.peak as f64 - (p.weights + p.captured_bytes + p.step_bytes) as f64
            })
            .fold(0.0, f64::max);
        Self {
            time: relative_least_squares(&rows(&|s| s.time_terms().to_vec()), &times),
            memory: relative_least_squares(&rows(&|s| s.memory_terms().to_vec()), &bytes),
            rest,
        }
    }

    /// Seconds.
    pub fn seconds(&self, step: &Step) -> f64 {
        dot(&self.time, &step.time_terms())
    }

    /// Bytes of inputs and activations.
    pub fn bytes(&self, step: &Step) -> f64 {
        1e9 * dot(&self.memory, &step.memory_terms())
    }
}

/// Constants, none below zero, that make the relative errors' squares smallest. `rows` and `y` as measured.
pub fn relative_least_squares(rows: &[Vec<f64>], y: &[f64]) -> Vec<f64> {
    let n = rows.first().map_or(0, Vec::len);
    let mut active: Vec<usize> = (0..n).collect();
    loop {
        let scaled: Vec<Vec<f64>> =
            rows.iter().zip(y).map(|(row, y)| active.iter().map(|&j| row[j] / y).collect()).collect();
        let solution = least_squares(&scaled);
        // A constant below zero has no meaning: the term goes, and the rest is fitted again.
        let worst = (0..active.len()).min_by(|&a, &b| solution[a].total_cmp(&solution[b]));
        match worst.filter(|&i| solution[i] < 0.0) {
            Some(i) => drop(active.remove(i)),
            None => {
                let mut all = vec![0.0; n];
                active.iter().zip(&solution).for_each(|(&j, &x)| all[j] = x);
                return all;
            }
        }
    }
}

/// Least squares for a right side of ones, by the normal equations with columns scaled to length one.
fn least_squares(rows: &[Vec<f64>]) -> Vec<f64> {
    let n = rows.first().map_or(0, Vec::len);
    let scale: Vec<f64> =
        (0..n).map(|j| rows.iter().map(|r| r[j] * r[j]).sum::<f64>().sqrt().max(f64::MIN_POSITIVE)).collect();
    let mut a = vec![vec![0.0; n + 1]; n];
    for row in rows {
        for i in 0..n {
            for j in 0..n {
                a[i][j] += row[i] / scale[i] * row[j] / scale[j];
            }
            a[i][n] += row[i] / scale[i];
        }
    }
    for i in 0..n {
        let pivot = (i..n).max_by(|&p, &q| a[p][i].abs().total_cmp(&a[q][i].abs())).unwrap_or(i);
        a.swap(i, pivot);
        let upper = a[i].clone();
        for row in a.iter_mut().skip(i + 1) {
            let factor = row[i] / upper[i];
            row.iter_mut().zip(&upper).for_each(|(x, u)| *x -= factor * u);
        }
    }
    let mut x = vec![0.0; n];
    for i in (0..n).rev() {
        let rest: f64 = (i + 1..n).map(|j| a[i][j] * x[j]).sum();
        x[i] = (a[i][n] - rest) / a[i][i];
    }
    x.iter().zip(&scale).map(|(x, s)| x / s).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_are_found_again() {
        let rows: Vec<Vec<f64>> = (1..9).map(|i| vec![f64::from(i), f64::from(i * i), 1.0]).collect();
        let y: Vec<f64> = rows.iter().map(|r| 3.0 * r[0] + 0.5 * r[1] + 2.0 * r[2]).collect();
        let x = relative_least_squares(&rows, &y);
        assert!(x.iter().zip([3.0, 0.5, 2.0]).all(|(x, e)| (x - e).abs() < 1e-9), "{x:?}");
    }

    #[test]
    fn none_is_below_zero() {
        let rows: Vec<Vec<f64>> = (1..9).map(|i| vec![f64::from(i), 1.0]).collect();
        let y: Vec<f64> = rows.iter().map(|r| 3.0 * r[0] - 1.0).collect();
        let x = relative_least_squares(&rows, &y);
        assert!(x[1] == 0.0 && x[0] > 2.0 && x[0] < 3.0, "{x:?}");
    }
}
