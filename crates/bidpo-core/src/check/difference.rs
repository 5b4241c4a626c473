//! The gradient against central differences of the lifted graph.

use super::LIMIT;
use crate::engine::{Engine, EngineError, Scored, TracedBatch};
use crate::numbers::{cosine, median, norm};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Steps in percent of the median residual norm. In gemma the slope along the gradient changes by a third within 1 %; below
/// 0.1 % rounding takes over. In a model with kinks (ReLU) some directions want a shorter one: fewer lie within the step.
const STEPS_PERCENT: [f64; 3] = [0.2, 0.05, 0.0125];

/// Slopes along the gradient and random directions against central differences.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Differences {
    /// Directions tried: the gradient's own, then random ones.
    pub directions: usize,
    /// `|numeric - analytic| / |analytic|` over all directions.
    pub relative_error: f64,
    /// Cosine of the angle between the two lists of slopes.
    pub cosine: f64,
    /// Smallest step that was needed, in percent of the median residual norm.
    pub step_percent: f64,
}

/// Random directions that move every layer by the same share of its own median residual norm.
struct Random {
    rng: ChaCha8Rng,
    units: Vec<f64>,
    n_embd: usize,
}

impl Random {
    fn new(traced: &TracedBatch, n_embd: usize, seed: u64) -> Self {
        let units = traced.norms().iter().map(|norms| median(norms).unwrap_or(0.0)).collect();
        Self { rng: ChaCha8Rng::seed_from_u64(seed), units, n_embd }
    }

    fn next(&mut self, share: f64) -> Vec<f64> {
        let n = self.units.len() * self.n_embd;
        let mut x: Vec<f64> = (0..n).map(|_| self.rng.random::<f64>() - 0.5).collect();
        for (part, unit) in x.chunks_exact_mut(self.n_embd).zip(&self.units) {
            let norm = norm(part);
            part.iter_mut().for_each(|a| *a *= share * unit / norm);
        }
        x
    }
}

/// A pseudo-random vector of 5 % of the median residual norm at each layer, `[n_layers, n_embd]`.
pub fn random_vector(engine: &Engine, traced: &TracedBatch, seed: u64) -> Vec<f32> {
    let mut random = Random::new(traced, engine.model().n_embd(), seed);
    random.next(0.05).iter().map(|&a| a as f32).collect()
}

/// The gradient of all pairs' `log p(chosen) - log p(rejected)` at `vectors`, added up.
///
/// # Errors
/// Those of [`Engine::run`].
pub fn gradient(engine: &mut Engine, traced: &TracedBatch, vectors: &[f32]) -> Result<Vec<f64>, EngineError> {
    Ok(total(&engine.run(traced, vectors, true)?))
}

/// The gradients of a run's pairs, added up.
pub(super) fn total(scored: &Scored) -> Vec<f64> {
    let mut g = vec![0.0; scored.grads.first().map_or(0, Vec::len)];
    for pair in &scored.grads {
        for (sum, x) in g.iter_mut().zip(pair) {
            *sum += x;
        }
    }
    g
}

/// Compares the gradient of all pairs' `log p(chosen) - log p(rejected)` at a vector with slopes measured by stepping to
/// both sides, extrapolated from two step lengths (Richardson: the error is of fourth order in the step).
///
/// Tight only on a model with F32 weights: through quantized kernels the function is a staircase. So is ggml's GELU, which
/// is computed without its table here ([`Engine::set_smooth`]). Choices of experts stay
/// as they are at the vector: see [`Engine::freeze_choices`].
///
/// # Errors
/// Those of [`Engine::run`].
pub fn central_differences(
    engine: &mut Engine,
    traced: &TracedBatch,
    at: &[f32],
    n_random: usize,
    seed: u64,
) -> Result<Differences, EngineError> {
    let mut random = Random::new(traced, engine.model().n_embd(), seed);
    let traced = &engine.freeze_choices(traced, at)?;
    let directions: Vec<Vec<f64>> = (0..n_random).map(|_| random.next(1.0)).collect();
    engine.set_smooth(true);
    let found = compare(engine, traced, at, &random.units, directions);
    engine.set_smooth(false);
    found
}

fn compare(
    engine: &mut Engine,
    traced: &TracedBatch,
    at: &[f32],
    units: &[f64],
    mut directions: Vec<Vec<f64>>,
) -> Result<Differences, EngineError> {
    let g = gradient(engine, traced, at)?;
    // The gradient's own direction, of the length that the random ones have.
    let scale = norm(units) / norm(&g);
    directions.insert(0, g.iter().map(|x| x * scale).collect());
    let analytic: Vec<f64> = directions.iter().map(|u| u.iter().zip(&g).map(|(a, b)| a * b).sum()).collect();
    // What each direction may be off by if all are together within half the limit.
    let near = LIMIT / 2.0 * norm(&analytic) / (directions.len() as f64).sqrt();
    let mut step_percent = STEPS_PERCENT[0];
    let mut numeric = Vec::with_capacity(directions.len());
    for (u, &expected) in directions.iter().zip(&analytic) {
        let mut best: Option<f64> = None;
        for &step in &STEPS_PERCENT {
            let n = slope(engine, traced, at, u, step / 100.0)?;
            if best.is_none_or(|b| (n - expected).abs() < (b - expected).abs()) {
                best = Some(n);
                step_percent = f64::min(step_percent, step);
            }
            // Written so that NaN goes on.
            if best.is_some_and(|b| (b - expected).abs() <= near) {
                break;
            }
        }
        numeric.extend(best);
    }
    let diff: Vec<f64> = numeric.iter().zip(&analytic).map(|(a, b)| a - b).collect();
    Ok(Differences {
        directions: directions.len(),
        relative_error: norm(&diff) / norm(&analytic),
        cosine: cosine(&numeric, &analytic),
        step_percent,
    })
}

/// The slope along `u`: differences over `h` and half of it to both sides, extrapolated.
fn slope(engine: &mut Engine, traced: &TracedBatch, at: &[f32], u: &[f64], h: f64) -> Result<f64, EngineError> {
    let mut gap = |s: f64| -> Result<f64, EngineError> {
        let x: Vec<f32> = at.iter().zip(u).map(|(&v, u)| (f64::from(v) + s * u) as f32).collect();
        Ok(engine.run(traced, &x, false)?.logp.iter().map(|p| p.gap()).sum())
    };
    let mut difference = |h: f64| -> Result<f64, EngineError> { Ok((gap(h)? - gap(-h)?) / (2.0 * h)) };
    let (wide, narrow) = (difference(h)?, difference(h / 2.0)?);
    Ok((4.0 * narrow - wide) / 3.0)
}
