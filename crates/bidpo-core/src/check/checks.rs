//! All checks that need no reference from outside, in one go.

use super::batch_parity::batch_parity;
use super::difference::{gradient, random_vector, total};
use super::{BatchCheck, BatchParity, Differences, central_differences};
use crate::data::TokenizedPair;
use crate::engine::{Agreement, Engine, EngineError, Survey, TracedBatch, batch_tokens};
use crate::numbers::{cosine, norm};
use crate::train::Precision;
use ggml_grad::llama::{DType, Model, ModelParams};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Largest relative error of the gradient against central differences on F32 weights that counts as right. The models
/// tried reach 1e-5 to 1e-3.
pub const LIMIT: f64 = 2e-3;

/// Least cosine of the gradient on devices to the CPU's. CUDA's quantized products were measured at 0.987 and 0.998.
pub const DEVICE_COSINE: f64 = 0.9;

/// Least cosine of the gradient through transposed copies that are rounded to the one through copies in F32. 0.99998 is
/// usual.
const DEVICE_ROUNDING_COSINE: f64 = 0.999;

/// Vectors to compare the gradient at, at most.
const POINTS: u64 = 3;

/// The checks of a model at some layers.
#[derive(Debug, Clone)]
pub struct Checks {
    /// The layers, lowest first.
    pub layers: Vec<usize>,
    /// The ops above the lowest layer and their rules.
    pub survey: Survey,
    /// Everything else; None where a rule is missing.
    pub engine: Option<EngineChecks>,
}

/// The checks that need a rule for every op.
#[derive(Debug, Clone)]
pub struct EngineChecks {
    /// Lifted graph and `llama_decode`.
    pub agreement: Agreement,
    /// The gradient and central differences on an F32 copy; None without one.
    pub differences: Option<Differences>,
    /// Vectors at which the gradient was compared: more than one if the first lay at a kink.
    pub points: u64,
    /// Cosine of the angle between the gradient through the model's own kernels and that of the F32 copy, at one vector:
    /// what the rounding of quantized kernels does to it. None without a copy.
    pub cosine_to_f32: Option<f64>,
    /// Cosine of the angle between the gradient on devices and the one that the CPU gives with the same file, at one vector.
    /// None where no weight lies on a device.
    pub cosine_to_cpu: Option<f64>,
    /// Effect of the reduced-precision kernels, against ggml's forward pass and a backward pass in F32; None where they do
    /// the same.
    pub rounding: Option<Rounding>,
    /// Pairs in one batch against each pair alone.
    pub batch: BatchCheck,
    /// Bytes of inputs and activations that the gradient took.
    pub step_bytes: usize,
    /// Tokens of the pairs.
    pub n_tokens: usize,
    /// Devices in use beside the CPU, with the bytes of activations that the gradient took there.
    pub device_bytes: BTreeMap<String, usize>,
    /// Transposed copies of weights on devices.
    pub transposed: TransposedCopies,
}

/// Transposed copies of weights, which the backward pass on devices reads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TransposedCopies {
    /// Number of copies.
    #[serde(rename = "transposed_copies")]
    pub count: usize,
    /// Their bytes.
    #[serde(rename = "transposed_bytes")]
    pub bytes: u64,
    /// Their types.
    #[serde(rename = "transposed_types")]
    pub types: Vec<String>,
}

/// Differences between the default kernels and those that round nothing for speed, at a vector of 5 % of the residual norm.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rounding {
    /// Largest difference of a response's log-probability, in nats.
    pub log_probability: f64,
    /// The same between llama.cpp's two kinds of attention, of which the fused one also rounds keys and values to 16 bits. None
    /// where weights lie on devices, and where llama.cpp cannot run the model with fused attention (PLM).
    pub fused_attention: Option<f64>,
    /// Cosine of the angle between the gradients.
    pub cosine: f64,
    /// Norm of the gradients' difference over the gradient's norm.
    pub relative_error: f64,
}

impl EngineChecks {
    /// Every logit equal, with and without a vector; on devices, as close as rounding makes them.
    pub fn exact(&self) -> bool {
        self.agreement.agrees()
    }

    /// A vector of zeros changes nothing.
    pub fn zero_vector_is_noop(&self) -> bool {
        self.agreement.zero_vector_is_noop()
    }

    /// A vector changes something.
    pub fn has_effect(&self) -> bool {
        self.agreement.effect > 0.0
    }

    /// On devices, the gradient is the CPU's but for rounding.
    pub fn devices_agree(&self) -> bool {
        let rounding = self.rounding.filter(|_| self.agreement.on_devices);
        self.cosine_to_cpu.is_none_or(|c| c >= DEVICE_COSINE)
            && rounding.is_none_or(|r| r.cosine >= DEVICE_ROUNDING_COSINE)
    }

    /// The gradient is that of the function, as far as it was compared. Written so that NaN fails.
    pub fn gradient_matches(&self) -> bool {
        self.differences.as_ref().is_none_or(|d| d.relative_error <= LIMIT)
    }

    /// Pairs have the same log-probabilities in any batch.
    pub fn batch_invariant(&self) -> bool {
        self.batch.parity().is_none_or(BatchParity::passed)
    }
}

impl Checks {
    /// True if all is well.
    pub fn passed(&self) -> bool {
        self.engine.as_ref().is_some_and(|e| {
            e.exact()
                && e.zero_vector_is_noop()
                && e.has_effect()
                && e.gradient_matches()
                && e.devices_agree()
                && e.batch_invariant()
        })
    }
}

/// Effect of the reduced-precision kernels on these pairs. Leaves the engine as it was.
fn rounding(
    engine: &mut Engine,
    pairs: &[&TokenizedPair],
    traced: &TracedBatch,
) -> Result<Option<Rounding>, EngineError> {
    let at = random_vector(engine, traced, 1);
    let fast = engine.run(traced, &at, true)?;
    let precision = engine.precision();
    engine.set_precision(Precision::EXACT);
    let exact = engine.trace_batch(pairs).and_then(|traced| engine.run(&traced, &at, true));
    engine.set_precision(precision);
    // Copies that only this comparison needs.
    if precision != Precision::EXACT {
        engine.model().forget_transposed(DType::F32);
    }
    let exact = exact?;
    let log_probability = fast
        .logp
        .iter()
        .zip(&exact.logp)
        .map(|(a, b)| (a.chosen - b.chosen).abs().max((a.rejected - b.rejected).abs()))
        .fold(0.0, f64::max);
    let (g, want) = (total(&fast), total(&exact));
    let difference: Vec<f64> = g.iter().zip(&want).map(|(a, b)| a - b).collect();
    if log_probability == 0.0 && g == want {
        return Ok(None);
    }
    let relative_error = norm(&difference) / norm(&want);
    let on_cpu = !engine.is_on_devices();
    let fused_attention = if on_cpu { engine.fused_attention_difference(pairs, &at)? } else { None };
    Ok(Some(Rounding { log_probability, fused_attention, cosine: cosine(&g, &want), relative_error }))
}

/// See [`EngineChecks::cosine_to_cpu`].
fn cosine_to_cpu(
    engine: &mut Engine,
    pairs: &[&TokenizedPair],
    traced: &TracedBatch,
    n_threads: u32,
) -> Result<Option<f64>, EngineError> {
    if !engine.is_on_devices() {
        return Ok(None);
    }
    let at = random_vector(engine, traced, 1);
    let here = gradient(engine, traced, &at)?;
    let model = Model::load(engine.model().path(), &ModelParams::default())?;
    let n_tokens = batch_tokens(&model, pairs);
    let mut cpu = Engine::new(&model, engine.layers(), n_tokens, pairs.len(), n_threads)?;
    let traced = cpu.trace_batch(pairs)?;
    Ok(Some(cosine(&here, &gradient(&mut cpu, &traced, &at)?)))
}

/// Checks `model` at `layers` on some pairs. `f32`: an F32 copy of it, for the gradient.
///
/// # Errors
/// [`EngineError`]: a model that cannot be steered, an op that cannot be lifted, memory. A check that fails is no error.
pub fn check(
    model: &Arc<Model>,
    f32: Option<&Arc<Model>>,
    layers: &[usize],
    pairs: &[TokenizedPair],
    n_threads: u32,
) -> Result<Checks, EngineError> {
    let refs: Vec<&TokenizedPair> = pairs.iter().collect();
    let n_tokens = batch_tokens(model, &refs);
    let mut engine = Engine::new(model, layers, n_tokens, pairs.len(), n_threads)?;
    let survey = engine.survey(&refs)?;
    let mut checks = Checks { layers: engine.layers().to_vec(), survey, engine: None };
    if checks.survey.missing().next().is_some() {
        return Ok(checks);
    }
    let traced = engine.trace_batch(&refs)?;
    let (count, bytes, types) = model.transposed_copies(); // before copies in F32 are made, to compare with
    let mut found = EngineChecks {
        agreement: engine.compare(&traced)?,
        differences: None,
        points: 1,
        cosine_to_f32: None,
        cosine_to_cpu: cosine_to_cpu(&mut engine, &refs, &traced, n_threads)?,
        rounding: rounding(&mut engine, &refs, &traced)?,
        batch: batch_parity(&mut engine, &refs)?,
        step_bytes: engine.step_bytes(&traced)?,
        n_tokens,
        device_bytes: engine.step_device_bytes().into_iter().collect(),
        transposed: TransposedCopies { count, bytes, types },
    };
    if let Some(f32) = f32 {
        let at = random_vector(&engine, &traced, 1);
        let g = gradient(&mut engine, &traced, &at)?;
        let mut engine = Engine::new(f32, layers, n_tokens, pairs.len(), n_threads)?;
        let traced = engine.trace_batch(&refs)?;
        found.cosine_to_f32 = Some(cosine(&g, &gradient(&mut engine, &traced, &at)?));
        // Where the vector happens to lie at a kink (ReLU), the two sides have two slopes and the gradient is that of one of
        // them. Another vector will not; a wrong rule is wrong at each.
        let mut best = central_differences(&mut engine, &traced, &at, 6, 1)?;
        for seed in 2..=POINTS {
            if best.relative_error <= LIMIT {
                break;
            }
            let at = random_vector(&engine, &traced, seed);
            let d = central_differences(&mut engine, &traced, &at, 6, 1)?;
            found.points = seed;
            if d.relative_error < best.relative_error {
                best = d;
            }
        }
        found.differences = Some(best);
    }
    checks.engine = Some(found);
    Ok(checks)
}
