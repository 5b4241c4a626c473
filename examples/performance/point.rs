//! One measurement.

use bidpo_core::check::long_pair;
use bidpo_core::engine::Engine;
use ggml_grad::llama::{Model, ModelParams, ReferenceContext};
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::path::Path;
use std::time::Instant;

/// Cost of a step on one pair.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Point {
    /// Seconds of forward and backward pass, the best of some.
    pub step: f64,
    /// Of that, seconds outside ggml's computation.
    pub serial: f64,
    /// Seconds of capturing the pair.
    pub capture: f64,
    /// Seconds of llama.cpp's prefill of the same tokens, the best of some.
    pub prefill: f64,
    /// Bytes of inputs and activations.
    pub step_bytes: u64,
    /// Bytes of the captured pair.
    pub captured_bytes: u64,
    /// Bytes of weights.
    pub weights: u64,
    /// The process's peak, mapped weights included; 0 where the system does not say.
    pub peak: u64,
    /// Tokens whose logits are needed.
    pub outputs: u64,
}

/// Measures and prints JSON.
pub fn print(model: &Path, numbers: [&str; 3]) -> Result<(), Box<dyn Error>> {
    let [layer, tokens, threads] = numbers.map(str::parse::<usize>);
    let (layer, tokens, threads) = (layer?, tokens?, threads? as u32);
    let model = Model::load(model, &ModelParams::default())?;
    let pair = long_pair(&model, tokens)?;
    let mut engine = Engine::new(&model, &[layer], tokens, 1, threads)?;
    let started = Instant::now();
    let traced = engine.trace(&pair)?;
    let capture = started.elapsed().as_secs_f64();
    let vector = vec![1e-3f32; engine.n_params()];
    let (mut step, mut serial) = (f64::INFINITY, 0.0);
    engine.take_timings();
    // The first of them warms caches.
    for _ in 0..3 {
        let started = Instant::now();
        engine.run(&traced, &vector, true)?;
        let (wall, compute) = (started.elapsed().as_secs_f64(), engine.take_timings().compute.as_secs_f64());
        if wall < step {
            (step, serial) = (wall, wall - compute);
        }
    }
    let step_bytes = engine.step_bytes(&traced)? as u64;
    let peak = ggml_grad::memory::peak(None).unwrap_or(0);
    let mut reference = ReferenceContext::new(&model, tokens, threads)?;
    let sequence = [[&pair.prompt[..], &pair.chosen, &pair.rejected].concat()];
    let mut prefill = f64::INFINITY;
    for _ in 0..3 {
        prefill = prefill.min(reference.prefill(&sequence)?.as_secs_f64());
    }
    let point = Point {
        step,
        serial,
        capture,
        prefill,
        step_bytes,
        captured_bytes: traced.bytes() as u64,
        weights: model.size(),
        peak,
        outputs: (pair.chosen.len() + pair.rejected.len() - 1) as u64,
    };
    println!("{}", serde_json::to_string(&point)?);
    Ok(())
}
