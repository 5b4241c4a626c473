//! Where a gate begins: at a fit that tells the rows of training pairs from those of retained texts.
//!
//! A gate that begins half open everywhere has two ways to keep retained texts as they are, to shut everywhere or to tell the
//! texts apart, and the first is the nearer one. With n(h) what the gate reads of a row, the fit is the ridge regression of the
//! class y (1 for pairs, 0 for texts), both classes with the same weight:
//!
//! `mean_y mean_i loss(y, w . n(h_i) + b) + RIDGE |w|^2`,
//!
//! logistic for a sigmoid gate (whose argument is divided by tau), of squares for a linear one. It is approached by [`STEPS`] steps
//! of Adam with a falling rate, on centred rows, from w = 0. They move no component of w further than 1: classes that a
//! single component tells apart do not make the gate as steep as they could.

use crate::engine::{ParameterGroup, RetainedText, TracedPair};
use crate::intervention::{Kind, KindSpec, Place, Pool, Scope, Stream, normalised};
use crate::numbers::dot;
use crate::train::optimizer::{AdamW, Schedule};

/// Weight of |w|^2. A larger one tells less, and holds for other texts better.
const RIDGE: f64 = 0.01;
/// Steps of the fit.
const STEPS: usize = 200;
/// Learning rates of w and of b.
const RATES: [f64; 2] = [0.01, 0.2];
/// Rows of a class, at most: evenly spaced ones of more.
const MOST: usize = 4096;

/// A fit.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GateFit {
    /// `[n_embd]`
    pub(crate) w: Vec<f64>,
    /// The bias.
    pub(crate) b: f64,
    /// Fraction of the rows (or prompts) of pairs, and of retained texts, on their side.
    pub(crate) right: [f64; 2],
}

impl GateFit {
    /// Fits the gate of `kind` to pairs and retained texts; `None` for kinds without a gate, and for rows whose places are not
    /// known.
    pub(in crate::train) fn of(
        kind: &KindSpec,
        scope: &Scope,
        n_embd: usize,
        pairs: &[TracedPair],
        texts: &[RetainedText],
    ) -> Option<Self> {
        let rows = kind.rows(n_embd).ok()??;
        if !matches!(kind.kind, Kind::Gate | Kind::LinearGate | Kind::PromptGate) {
            return None;
        }
        // Inside, what matters is the answer: what pairs and texts share, such as a system prompt, counts as outside.
        let inside = |p: Place| p.is_answer() && scope.covers(p);
        let outside = |p: Place| scope.covers(p);
        let on: Vec<Vec<f64>> = pairs.iter().flat_map(|p| read(rows.pool(), n_embd, p.stream(), &inside)).collect();
        let off: Vec<Vec<f64>> = texts.iter().flat_map(|t| read(rows.pool(), n_embd, t.stream(), &outside)).collect();
        let tau = matches!(kind.kind, Kind::Gate | Kind::PromptGate).then_some(kind.tau);
        fit(&spaced(on), &spaced(off), tau)
    }

    /// Writes it into the parameters of a gate, `[w, b, v]`.
    pub(in crate::train) fn write(&self, theta: &mut [f64]) {
        let n = self.w.len();
        theta[..n].copy_from_slice(&self.w);
        theta[n] = self.b;
    }
}

/// True for the parameters of a gate that reads nothing yet.
pub(in crate::train) fn is_blind(theta: &[f64], n_embd: usize) -> bool {
    theta.iter().take(n_embd).all(|&w| w == 0.0)
}

/// What a gate reads of a traced text: one vector for each row that decides for itself, or for each prompt.
fn read(pool: Pool, n_embd: usize, stream: Stream<'_>, of: &dyn Fn(Place) -> bool) -> Vec<Vec<f64>> {
    let row = |i: usize| normalised(&stream.rows[i * n_embd..(i + 1) * n_embd]).collect::<Vec<f64>>();
    match pool {
        Pool::Each => (0..stream.places.len()).filter(|&i| of(stream.places[i])).map(row).collect(),
        Pool::Last => stream.prompts.iter().filter_map(|p| p.last()).map(|&i| row(i)).collect(),
        Pool::Mean => stream.prompts.iter().map(|p| mean(&p.iter().map(|&i| row(i)).collect::<Vec<_>>())).collect(),
    }
}

fn spaced(rows: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let n = rows.len();
    if n <= MOST {
        return rows;
    }
    rows.into_iter().enumerate().filter(|(i, _)| (i * MOST) / n != ((i + 1) * MOST) / n).map(|(_, row)| row).collect()
}

fn mean(rows: &[Vec<f64>]) -> Vec<f64> {
    let mut sum = vec![0.0; rows.first().map_or(0, Vec::len)];
    rows.iter().for_each(|row| sum.iter_mut().zip(row).for_each(|(s, x)| *s += x));
    sum.iter().map(|s| s / rows.len() as f64).collect()
}

/// The fit of rows inside against rows outside; `tau` of a sigmoid gate. `None` where a class is empty.
fn fit(on: &[Vec<f64>], off: &[Vec<f64>], tau: Option<f64>) -> Option<GateFit> {
    if on.is_empty() || off.is_empty() {
        return None;
    }
    let centre: Vec<f64> = mean(on).iter().zip(mean(off)).map(|(a, b)| (a + b) / 2.0).collect();
    let n = centre.len();
    let centred = |(row, y): (&Vec<f64>, f64)| (row.iter().zip(&centre).map(|(x, c)| x - c).collect::<Vec<f64>>(), y);
    let rows: Vec<(Vec<f64>, f64)> =
        on.iter().map(|row| (row, 1.0)).chain(off.iter().map(|row| (row, 0.0))).map(centred).collect();
    let weight = |y: f64| 0.5 / if y == 1.0 { on.len() } else { off.len() } as f64;
    let open = |z: f64| if tau.is_some() { 1.0 / (1.0 + (-z).exp()) } else { z };
    let groups = [(0..n, RATES[0]), (n..n + 1, RATES[1])].map(|(params, lr)| ParameterGroup { params, lr });
    let mut theta = vec![0.0; n + 1];
    let mut optimizer = AdamW::new(n + 1, 0.0);
    for step in 0..STEPS {
        let (w, b) = (&theta[..n], theta[n]);
        let mut grad: Vec<f64> = w.iter().map(|w| 2.0 * RIDGE * w).chain([0.0]).collect();
        for (row, y) in &rows {
            let slope = weight(*y) * (open(dot(row, w) + b) - y);
            grad.iter_mut().zip(row).for_each(|(g, x)| *g += slope * x);
            grad[n] += slope;
        }
        optimizer.step(&mut theta, &grad, &groups, Schedule::Linear.factor(step, 0, STEPS));
    }
    let half = if tau.is_some() { 0.0 } else { 0.5 };
    let side = |class: f64| {
        let of = rows.iter().filter(|(_, y)| *y == class);
        let right = of.clone().filter(|(row, _)| (dot(row, &theta[..n]) + theta[n] > half) == (class == 1.0)).count();
        right as f64 / of.count() as f64
    };
    let right = [side(1.0), side(0.0)];
    let scale = tau.unwrap_or(1.0);
    let b = scale * (theta[n] - dot(&theta[..n], &centre));
    theta.truncate(n);
    theta.iter_mut().for_each(|w| *w *= scale);
    Some(GateFit { w: theta, b, right })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use rand_distr::StandardNormal;

    /// Two clouds whose means differ along one axis, far from the origin.
    fn cloud(mean: f64, n: usize, seed: u64) -> Vec<Vec<f64>> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut row = || {
            let mut row: Vec<f64> = (&mut rng).sample_iter(StandardNormal).take(6).collect();
            row[2] += mean;
            row[4] += 30.0;
            row
        };
        (0..n).map(|_| row()).collect()
    }

    /// The gradient of the objective, by its definition.
    fn slope(on: &[Vec<f64>], off: &[Vec<f64>], fit: &GateFit, tau: Option<f64>) -> Vec<f64> {
        let scale = tau.unwrap_or(1.0);
        let w: Vec<f64> = fit.w.iter().map(|w| w / scale).collect();
        let mut grad: Vec<f64> = w.iter().map(|w| 2.0 * RIDGE * w).chain([0.0]).collect();
        for (rows, y) in [(on, 1.0), (off, 0.0)] {
            for row in rows {
                let z = dot(row, &w) + fit.b / scale;
                let open = if tau.is_some() { 1.0 / (1.0 + (-z).exp()) } else { z };
                let slope = 0.5 / rows.len() as f64 * (open - y);
                row.iter().enumerate().for_each(|(i, x)| grad[i] += slope * x);
                grad[6] += slope;
            }
        }
        grad
    }

    /// Where the minimum is within reach of the steps.
    #[test]
    fn the_fit_is_a_minimum() {
        let (on, off) = (cloud(0.3, 400, 1), cloud(0.0, 300, 2));
        for tau in [Some(1.0), Some(0.25), None] {
            let fit = fit(&on, &off, tau).unwrap();
            let grad = slope(&on, &off, &fit, tau);
            assert!(grad.iter().all(|g| g.abs() < 5e-3), "{tau:?}: {grad:?}");
        }
        assert_eq!(fit(&on, &[], Some(1.0)), None);
    }

    #[test]
    fn the_fit_tells_classes_apart() {
        let (on, off) = (cloud(4.0, 90, 1), cloud(0.0, 30, 2));
        for tau in [Some(1.0), Some(0.25), None] {
            let fit = fit(&on, &off, tau).unwrap();
            assert!(fit.right.iter().all(|&r| r > 0.9), "{tau:?}: {:?}", fit.right);
            assert!(fit.w[2] > 3.0 * fit.w[0].abs(), "{tau:?}: {:?}", fit.w);
        }
    }

    #[test]
    fn rows_are_spaced_evenly() {
        let rows: Vec<Vec<f64>> = (0..MOST + 100).map(|i| vec![i as f64]).collect();
        let kept = spaced(rows);
        assert!(kept.len() == MOST && kept.windows(2).all(|w| w[1][0] - w[0][0] <= 2.0));
    }
}
