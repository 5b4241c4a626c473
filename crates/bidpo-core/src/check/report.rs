//! The checks as one JSON object.

use super::{
    BATCH_COSINE, BatchParity, Checks, DEVICE_COSINE, Differences, EngineChecks, GoldResult, LIMIT, Rounding,
    TransposedCopies,
};
use crate::engine::{Agreement, OpCount};
use ggml_grad::llama::Model;
use serde::Serialize;
use std::collections::BTreeMap;

/// The checks of a model, for JSON. Keys of 0.1.0 are kept beside those in the field's terms.
#[derive(Debug, Serialize)]
pub struct CheckReport<'a> {
    model: String,
    architecture: String,
    layers: &'a [usize],
    ops: &'a BTreeMap<&'static str, OpCount>,
    logits: Option<&'a Agreement>,
    devices: Option<Devices<'a>>,
    placement: String,
    gradient: Option<Gradient<'a>>,
    gradient_on_devices: Option<DeviceGradient>,
    reduced_precision: Option<Rounding>,
    rounded_for_speed: Option<Rounding>,
    batched_pairs: Option<Limited<'a, BatchParity>>,
    pairs_together: Option<Limited<'a, BatchParity>>,
    pairs_not_joined: Option<String>,
    step_bytes: Option<usize>,
    reference: &'a [GoldResult],
    gold: &'a [GoldResult],
    passed: bool,
}

/// A measurement with the limit that it was judged by.
#[derive(Debug, Serialize)]
struct Limited<'a, T: Serialize> {
    #[serde(flatten)]
    measured: &'a T,
    limit: f64,
}

#[derive(Debug, Serialize)]
struct Gradient<'a> {
    #[serde(flatten)]
    differences: Limited<'a, Differences>,
    vectors_tried: u64,
    cosine_quantized_to_f32: Option<f64>,
}

#[derive(Debug, Serialize)]
struct DeviceGradient {
    cosine_to_cpu: f64,
    limit: f64,
}

#[derive(Debug, Serialize)]
struct Devices<'a> {
    activation_bytes: Vec<DeviceBytes<'a>>,
    #[serde(flatten)]
    transposed: &'a TransposedCopies,
}

#[derive(Debug, Serialize)]
struct DeviceBytes<'a> {
    device: &'a str,
    bytes: usize,
}

impl<'a> CheckReport<'a> {
    /// Of the checks of a model and its comparisons with reference files.
    pub fn new(model: &Model, checks: &'a Checks, references: &'a [GoldResult]) -> Self {
        let engine = checks.engine.as_ref();
        let batch = |e: &'a EngineChecks| e.batch.parity().map(|measured| Limited { measured, limit: BATCH_COSINE });
        let gradient = |e: &'a EngineChecks| {
            e.differences.as_ref().map(|measured| Gradient {
                differences: Limited { measured, limit: LIMIT },
                vectors_tried: e.points,
                cosine_quantized_to_f32: e.cosine_to_f32,
            })
        };
        let devices = |e: &'a EngineChecks| Devices {
            activation_bytes: e.device_bytes.iter().map(|(device, &bytes)| DeviceBytes { device, bytes }).collect(),
            transposed: &e.transposed,
        };
        Self {
            model: model.path().display().to_string(),
            architecture: model.architecture(),
            layers: &checks.layers,
            ops: &checks.survey.ops,
            logits: engine.map(|e| &e.agreement),
            devices: engine.map(devices),
            placement: model.placement().to_string(),
            gradient: engine.and_then(gradient),
            gradient_on_devices: engine
                .and_then(|e| e.cosine_to_cpu)
                .map(|cosine_to_cpu| DeviceGradient { cosine_to_cpu, limit: DEVICE_COSINE }),
            reduced_precision: engine.and_then(|e| e.rounding),
            rounded_for_speed: engine.and_then(|e| e.rounding),
            batched_pairs: engine.and_then(batch),
            pairs_together: engine.and_then(batch),
            pairs_not_joined: engine.and_then(|e| e.batch.skipped()).map(ToString::to_string),
            step_bytes: engine.map(|e| e.step_bytes),
            reference: references,
            gold: references,
            passed: checks.passed() && references.iter().all(|r| r.passed),
        }
    }

    /// True if all is well.
    pub fn passed(&self) -> bool {
        self.passed
    }
}
