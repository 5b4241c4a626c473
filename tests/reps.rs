//! `train --objective reps`: factors, the removal of the component, a run that was stopped.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use bidpo_core::engine::Engine;
use bidpo_core::layers::Layers;
use bidpo_core::train::{
    CheckpointPlan, Event, LearningRate, NamedPair, Objective, RunInputs, TrainConfig, TrainError, Trained, Trainer,
    TrainingBudget,
};
use common::bench::Bench;
use common::random_model::model;
use common::steered::pairs;
use ggml_grad::llama::DType;
use serde_json::Value;
use std::sync::atomic::{AtomicBool, Ordering};

/// A run that was stopped draws the same factors when it goes on: the same bytes as without a stop. Other factors are another run.
#[test]
fn a_stopped_run_goes_on_to_the_same_bytes() {
    let (folder, model) = model("llama", DType::F32);
    let named: Vec<NamedPair> =
        pairs().into_iter().enumerate().map(|(i, tokens)| NamedPair { name: i.to_string(), tokens }).collect();
    let run = |name: &str, resume: bool, factors: &[f32], stop_after: usize| -> Result<Trained, TrainError> {
        let config = TrainConfig {
            objective: Objective::Reps,
            factors: factors.to_vec(),
            budget: TrainingBudget::Steps(12),
            learning_rate: LearningRate::Percent(3.0),
            batch: 2,
            ..TrainConfig::new(Layers::one(1))
        };
        let mut engine = Engine::new(&model, &[1], 16, 1, 1).unwrap();
        let plan = CheckpointPlan { path: folder.path().join(name), resume, inputs: RunInputs::default() };
        let interrupt = AtomicBool::new(false);
        let mut trainer =
            Trainer { engine: &mut engine, config: &config, checkpoints: Some(&plan), interrupt: &interrupt };
        trainer.train(&named, &named[..2], &mut |event: Event<'_>| {
            if let Event::Step(s) = event {
                interrupt.store(s.step == stop_after, Ordering::Relaxed);
            }
        })
    };
    let whole = run("whole.ckpt", false, &Objective::FACTORS, usize::MAX).unwrap();
    assert_eq!(run("parts.ckpt", false, &Objective::FACTORS, 5).unwrap().steps, 5);
    assert!(matches!(run("parts.ckpt", true, &[1.0], usize::MAX), Err(TrainError::Checkpoint(_))), "other factors");
    let parts = run("parts.ckpt", true, &Objective::FACTORS, usize::MAX).unwrap();
    assert!(parts.vector == whole.vector && parts.history == whole.history);
    assert!(run("ones.ckpt", false, &[1.0], usize::MAX).unwrap().vector != whole.vector);
    // The loss over both directions falls.
    let best = whole.best_valid_loss().unwrap();
    assert!(best < whole.untrained_loss, "{best} for {}", whole.untrained_loss);
}

#[test]
fn the_command_measures_the_removal_and_refuses_what_has_none() {
    let bench = Bench::random("llama", "f32");
    let flags = "--objective reps --layer 1 --steps 3 --batch 3 --random 1 --val 0 --test 0.5";
    let summary = bench.summary("v.gguf", &format!("{flags} --factors 0.5,1,1.5"));
    let rows = summary["heldout"].as_array().unwrap();
    let of =
        |name: &str| -> &Value { rows.iter().find(|r| r["condition"] == name).unwrap_or_else(|| panic!("{rows:?}")) };
    let removed = of("vector's component taken out")["mean_logp_diff"].as_f64().unwrap();
    assert!(removed.is_finite() && removed != of("vector, scale -1")["mean_logp_diff"].as_f64().unwrap());
    assert_eq!(bench.vector("v.gguf").provenance.str("factors"), Some("0.5,1,1.5"));
    for (given, want) in [
        ("--objective reps --layers 1,2 --steps 1", "give one with --layer"),
        ("--objective dpo --layer 1 --steps 1 --factors 1", "--factors belongs to reps"),
    ] {
        let said = bench.fails("no.gguf", given);
        assert!(said.contains(want), "{given}: {said}");
    }
}
