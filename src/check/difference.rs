//! The gradient against central differences of the lifted graph.

use crate::train::{Engine, EngineError, Example, median};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What the comparison found.
#[derive(Debug, Clone, PartialEq)]
pub struct Differences {
    /// Directions tried: the gradient's own, then random ones.
    pub directions: usize,
    /// `|numeric - analytic| / |analytic|` over all directions.
    pub relative_error: f64,
    /// Cosine of the angle between the two lists of slopes.
    pub cosine: f64,
    /// Step, in percent of the median residual norm.
    pub step_percent: f64,
}

/// Compares the gradient of each pair's `log p(chosen) - log p(rejected)` at a random vector with slopes measured by
/// stepping to both sides, extrapolated from two step lengths (Richardson: the error is of fourth order in the step).
///
/// Tight only on a model with F32 weights: through quantized kernels the function is a staircase.
///
/// # Errors
/// Those of [`Engine::run`].
pub fn central_differences(
    engine: &mut Engine,
    example: &Example,
    n_random: usize,
    seed: u64,
) -> Result<Differences, EngineError> {
    // In gemma the slope along the gradient changes by a third within 1 %; below 0.1 % rounding takes over.
    const STEP_PERCENT: f64 = 0.2;
    let n = engine.n_params();
    let n_embd = engine.model().n_embd();
    // Every layer moves by the same share of its own residual norm.
    let units: Vec<f64> = example.norms.iter().map(|norms| median(norms)).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut random = |share: f64| -> Vec<f64> {
        let mut x: Vec<f64> = (0..n).map(|_| rng.random::<f64>() - 0.5).collect();
        for (part, unit) in x.chunks_exact_mut(n_embd).zip(&units) {
            let norm = crate::train::length(part);
            part.iter_mut().for_each(|a| *a *= share * unit / norm);
        }
        x
    };
    let v = random(0.05);
    let gap = |engine: &mut Engine, x: &[f64]| -> Result<f64, EngineError> {
        let x: Vec<f32> = x.iter().map(|&a| a as f32).collect();
        Ok(engine.run(example, &x, false)?.logp.iter().map(|p| p.gap()).sum())
    };
    let at: Vec<f32> = v.iter().map(|&a| a as f32).collect();
    let scored = engine.run(example, &at, true)?;
    let mut g = vec![0.0; n];
    for pair in &scored.grads {
        for (sum, x) in g.iter_mut().zip(pair) {
            *sum += x;
        }
    }
    // The gradient's own direction, of the length that the random ones have.
    let scale = units.iter().map(|u| u * u).sum::<f64>().sqrt() / crate::train::length(&g);
    let mut directions = vec![g.iter().map(|x| x * scale).collect::<Vec<f64>>()];
    directions.extend((0..n_random).map(|_| random(1.0)));
    let (mut numeric, mut analytic) = (Vec::new(), Vec::new());
    for u in &directions {
        let mut slope = |h: f64| -> Result<f64, EngineError> {
            let to = |s: f64| v.iter().zip(u).map(|(v, u)| v + s * h * u).collect::<Vec<f64>>();
            Ok((gap(engine, &to(1.0))? - gap(engine, &to(-1.0))?) / (2.0 * h))
        };
        let h = STEP_PERCENT / 100.0;
        let (wide, narrow) = (slope(h)?, slope(h / 2.0)?);
        numeric.push((4.0 * narrow - wide) / 3.0);
        analytic.push(u.iter().zip(&g).map(|(a, b)| a * b).sum::<f64>());
    }
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let diff: Vec<f64> = numeric.iter().zip(&analytic).map(|(a, b)| a - b).collect();
    Ok(Differences {
        directions: directions.len(),
        relative_error: (dot(&diff, &diff) / dot(&analytic, &analytic)).sqrt(),
        cosine: dot(&numeric, &analytic) / (dot(&numeric, &numeric) * dot(&analytic, &analytic)).sqrt(),
        step_percent: STEP_PERCENT,
    })
}
