//! The gradient of each part of an intervention's parameters against central differences.

use super::LIMIT;
use crate::data::TokenizedPair;
use crate::engine::{Engine, EngineError, RetainedText, TracedBatch, batch_tokens};
use crate::intervention::{Direction, Intervention, KindSpec, LoraSpec, NamedTensor, Parameters, Scope};
use crate::numbers::{median, norm};
use crate::train::Precision;
use ggml_grad::llama::Model;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde::Serialize;
use std::ops::Range;
use std::sync::Arc;

/// Steps along a direction, in units of the part's size: short ones for parts with curvature, long ones where rounding is near.
const STEPS: [f64; 6] = [3.0, 1.0, 0.3, 0.1, 0.03, 0.01];
/// Size of the parameters compared at, in first steps of Adam.
const SIZE: f64 = 3.0;

/// The slope along one direction of a part.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PartDifference {
    /// Tensor of the part.
    pub part: String,
    /// `add` or `subtract`: the direction in which the intervention was applied.
    pub applied: &'static str,
    /// `preference`: the slope of `log p(chosen) - log p(rejected)`. `divergence`: that of the divergence from the unsteered
    /// model on a text.
    pub of: &'static str,
    /// Slope by the gradient.
    pub analytic: f64,
    /// Slope by central differences.
    pub numeric: f64,
    /// `|numeric - analytic| / |analytic|`, less what the rounding of the log-probabilities to F32 explains.
    pub relative_error: f64,
}

impl PartDifference {
    /// Written so that NaN fails.
    pub fn passed(&self) -> bool {
        self.relative_error <= LIMIT
    }
}

/// Random parameters about those that a run begins with, so that every part has an effect.
pub fn random_parameters(intervention: &dyn Intervention, residual: f64, n_embd: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut theta = intervention.initial(seed);
    for group in intervention.groups(&[rate(residual, n_embd)]) {
        for x in &mut theta[group.params] {
            *x += SIZE * group.lr * rng.sample::<f64, _>(StandardNormal);
        }
    }
    theta.iter().map(|&x| x as f32).collect()
}

/// The learning rate whose [`SIZE`] steps make a vector of 5 % of the residual norm.
fn rate(residual: f64, n_embd: usize) -> f64 {
    0.05 * residual / (n_embd as f64).sqrt() / SIZE
}

/// A number that depends on the parameters.
enum Measured {
    /// `log p(chosen) - log p(rejected)`, summed over the pairs.
    Preference(TracedBatch),
    /// The divergence from the unsteered model on a text.
    Divergence(RetainedText),
}

impl Measured {
    fn name(&self) -> &'static str {
        match self {
            Self::Preference(_) => "preference",
            Self::Divergence(_) => "divergence",
        }
    }

    fn value(&self, engine: &mut Engine, at: Parameters<'_>) -> Result<f64, EngineError> {
        match self {
            Self::Preference(pairs) => Ok(engine.run(pairs, at, false)?.logp.iter().map(|p| p.gap()).sum()),
            Self::Divergence(text) => Ok(engine.diverge(&[text], at, None)?.nats.iter().sum()),
        }
    }

    /// The gradient, and the size of the numbers that are summed in F32.
    fn gradient(&self, engine: &mut Engine, at: Parameters<'_>) -> Result<(Vec<f64>, f64), EngineError> {
        match self {
            Self::Preference(pairs) => {
                let scored = engine.run(pairs, at, true)?;
                let mut grad = vec![0.0; at.theta.len()];
                scored.grads.iter().for_each(|g| grad.iter_mut().zip(g).for_each(|(sum, g)| *sum += g));
                Ok((grad, scored.logp.iter().map(|p| p.chosen.abs() + p.rejected.abs()).sum()))
            }
            Self::Divergence(text) => {
                // A prediction is a difference of logits, which are of the size of a log-probability.
                let size = (text.n_predictions() as f64) * (engine.model().n_vocab() as f64).ln();
                Ok((engine.diverge(&[text], at, Some(1.0))?.grad, size))
            }
        }
    }
}

/// Directions in which an intervention is applied.
const BOTH: [(Direction, &str); 2] = [(Direction::Forward, "add"), (Direction::Reverse, "subtract")];

/// Compares the gradient of every part of a kind with central differences of `log p(chosen) - log p(rejected)`, summed over
/// the pairs, and of the divergence from the unsteered model on the first pair's chosen response: along the gradient's own
/// part, applied forward and reversed. `model` should hold F32 weights.
///
/// # Errors
/// [`EngineError`].
pub fn kind_differences(
    model: &Arc<Model>,
    layer: usize,
    spec: &KindSpec,
    scope: &Scope,
    pairs: &[TokenizedPair],
    n_threads: u32,
) -> Result<Vec<PartDifference>, EngineError> {
    let n_embd = model.n_embd();
    let intervention = spec.intervention(1, n_embd).map_err(|e| EngineError::Model(e.to_string()))?;
    let n_tokens = batch_tokens(model, &pairs.iter().collect::<Vec<_>>());
    let mut engine = Engine::new(model, &[layer], n_tokens, pairs.len(), n_threads)?
        .with_intervention(Arc::clone(&intervention))
        .with_scope(scope.clone());
    engine.set_precision(Precision::EXACT);
    engine.set_smooth(true);
    let traced = engine.trace_batch(&pairs.iter().collect::<Vec<_>>())?;
    let residual = median(&traced.norms()[0]).unwrap_or(1.0);
    let theta = random_parameters(&*intervention, residual, n_embd, 1);
    let groups = intervention.groups(&[rate(residual, n_embd)]);
    let size = |part: &Range<usize>| {
        let group = groups.iter().find(|g| g.params.contains(&part.start));
        group.map_or(1.0, |g| SIZE * g.lr * (part.len() as f64).sqrt())
    };
    let measured = measured(&mut engine, &traced, pairs, &theta)?;
    let mut found = Vec::new();
    for (of, applied) in measured.iter().flat_map(|m| BOTH.map(|d| (m, d))) {
        found.extend(parts(&mut engine, of, &theta, applied, &size)?);
    }
    Ok(found)
}

/// As [`kind_differences`], of every A and B of an adapter, on the first pair: the preference with the adapter, the divergence
/// with its reverse.
///
/// # Errors
/// [`EngineError`], among them [`crate::engine::AdapterRefusal`].
pub fn adapter_differences(
    model: &Arc<Model>,
    spec: &LoraSpec,
    pairs: &[TokenizedPair],
    n_threads: u32,
) -> Result<Vec<PartDifference>, EngineError> {
    let Some(pair) = pairs.first() else { return Ok(Vec::new()) };
    let lora = spec.on(model).map_err(|e| EngineError::Model(e.to_string()))?;
    let theta = lora.probe();
    let mut engine = Engine::for_adapter(model, &[spec.layer()], pair.n_tokens(), 1, n_threads)?.with_lora(lora)?;
    engine.set_precision(Precision::EXACT);
    engine.set_smooth(true);
    let traced = engine.trace_batch(&[pair])?;
    let size =
        |part: &Range<usize>| norm(&theta[part.clone()].iter().map(|&x| f64::from(x)).collect::<Vec<f64>>()) / 3.0;
    let measured = measured(&mut engine, &traced, pairs, &theta)?;
    let mut found = Vec::new();
    for (of, applied) in measured.iter().zip(BOTH) {
        found.extend(parts(&mut engine, of, &theta, applied, &size)?);
    }
    Ok(found)
}

/// The numbers that are differentiated, with the choices of experts that they have under these parameters.
fn measured(
    engine: &mut Engine,
    traced: &TracedBatch,
    pairs: &[TokenizedPair],
    theta: &[f32],
) -> Result<Vec<Measured>, EngineError> {
    let mut measured = vec![Measured::Preference(engine.freeze_choices(traced, theta)?)];
    if let Some(pair) = pairs.first() {
        let text = engine.trace_retained(&TokenizedPair { rejected: Vec::new(), ..pair.clone() })?;
        measured.push(Measured::Divergence(engine.freeze_retained(&text, theta)?));
    }
    Ok(measured)
}

/// The slopes of a number along the gradient of each part; `size` of a part scales the steps.
fn parts(
    engine: &mut Engine,
    of: &Measured,
    theta: &[f32],
    (direction, applied): (Direction, &'static str),
    size_of: &dyn Fn(&Range<usize>) -> f64,
) -> Result<Vec<PartDifference>, EngineError> {
    let at = Parameters { theta, direction };
    let (grad, size) = of.gradient(engine, at)?;
    let rounding = f64::from(f32::EPSILON) / 2.0 * size;
    let mut first = 0;
    let mut found = Vec::new();
    let tensors = engine.intervention().tensors(theta, engine.layers());
    for NamedTensor { name, data, .. } in tensors {
        let part = first..first + data.len();
        first = part.end;
        let analytic = norm(&grad[part.clone()]);
        // Experts that no token was given to.
        if analytic == 0.0 && engine.intervention().lora().is_some() {
            continue;
        }
        let unit: Vec<f64> = grad[part.clone()].iter().map(|g| g / analytic).collect();
        let size = size_of(&part);
        let (mut best, mut relative_error) = (f64::NAN, f64::INFINITY);
        for step in STEPS {
            let numeric = slope(engine, of, at, part.start, &unit, step * size)?;
            let error = ((numeric - analytic).abs() - rounding / (step * size)).max(0.0) / analytic;
            if best.is_nan() || error < relative_error {
                (best, relative_error) = (numeric, error);
            }
            if relative_error <= LIMIT / 4.0 {
                break;
            }
        }
        found.push(PartDifference { part: name, applied, of: of.name(), analytic, numeric: best, relative_error });
    }
    Ok(found)
}

/// The slope along `unit` from parameter `first` on: differences over `h` and half of it, extrapolated.
fn slope(
    engine: &mut Engine,
    of: &Measured,
    at: Parameters<'_>,
    first: usize,
    unit: &[f64],
    h: f64,
) -> Result<f64, EngineError> {
    let mut value = |s: f64| -> Result<f64, EngineError> {
        let mut moved = at.theta.to_vec();
        moved[first..].iter_mut().zip(unit).for_each(|(x, u)| *x = (f64::from(*x) + s * u) as f32);
        of.value(engine, Parameters { theta: &moved, ..at })
    };
    let mut difference = |h: f64| -> Result<f64, EngineError> { Ok((value(h)? - value(-h)?) / (2.0 * h)) };
    let (wide, narrow) = (difference(h)?, difference(h / 2.0)?);
    Ok((4.0 * narrow - wide) / 3.0)
}
