//! Numbers that other programs computed, from tests/gold: PyTorch's AdamW and a whole run of BiPO in it, the mean differences of
//! llama.cpp's cvector-generator.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use bidpo_core::data::{TokenizedPair, permutation};
use bidpo_core::engine::{Add, Engine, Intervention};
use bidpo_core::layers::Layers;
use bidpo_core::train::{
    AdamW, Event, LearningRate, NamedPair, Objective, Precision, Schedule, TrainConfig, Trained, Trainer,
    TrainingBudget,
};
use ggml_grad::llama::{DType, Model, ModelParams, Token};
use ggml_grad::synth;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

fn read(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(common::gold(name)).unwrap()).unwrap()
}

fn numbers(list: &Value) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// `|a - b| / |b|`
fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let length = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    length(&mut a.iter().zip(b).map(|(a, b)| a - b)) / length(&mut b.iter().copied())
}

/// The gradient of coordinate `i` at `step`: the formula of tests/gold/adamw.py, exact in binary.
fn gradient(step: i64, i: i64) -> f64 {
    let k = (step * 37 + i * 101 + step * i * 13) % 1024 - 512;
    k as f64 / 64.0 * if (step + i) % 17 == 0 { 50.0 } else { 1.0 }
}

/// A hundred steps with weight decay, warm-up and two blocks with different learning rates, under two schedules.
#[test]
fn a_hundred_steps_of_adamw_equal_pytorch() {
    let gold = read("adamw.json");
    let number = |v: &Value| v.as_f64().unwrap();
    let (steps, warmup) = (number(&gold["steps"]) as usize, number(&gold["warmup"]) as usize);
    let rates = numbers(&gold["rates"]);
    let groups = Add { n_layers: rates.len(), n_embd: 8 / rates.len() }.groups(&rates);
    for schedule in ["cosine", "linear"] {
        let mut opt = AdamW::new(8, number(&gold["weight_decay"]));
        let mut x: Vec<f64> = (0..8).map(|i| (f64::from(i) - 3.5) / 4.0).collect();
        let mut kept = gold[schedule].as_array().unwrap().iter();
        let mut largest = 0f64;
        let mut next = kept.next();
        for step in 0..steps {
            let factor = schedule.parse::<Schedule>().unwrap().factor(step, warmup, steps);
            let g: Vec<f64> = (0..8).map(|i| gradient(step as i64, i)).collect();
            opt.step(&mut x, &g, &groups, factor);
            if let Some(point) = next.filter(|p| p["step"] == step + 1) {
                for (ours, theirs) in x.iter().zip(point["x"].as_array().unwrap()) {
                    largest = largest.max((ours - number(theirs)).abs());
                }
                next = kept.next();
            }
        }
        assert!(next.is_none(), "{schedule}: a step of the reference was not reached");
        eprintln!("{schedule}: largest difference {largest:e}");
        assert!(largest < 1e-12, "{schedule}: {largest:e}");
    }
}

/// Mean differences of the real cvector-generator, directions of unit norm with six digits, from bidpo's activations.
#[test]
fn mean_differences_equal_the_cvector_generators() {
    let folder = tempfile::tempdir().unwrap();
    let random = write_model(&folder.path().join("bipo_run.gguf"));
    let real = common::model(common::SMOL).map(|path| Model::load(&path, &ModelParams::default()).unwrap());
    let gold = read("cvector_generator_mean.json");
    let pairs: Vec<(String, String)> = serde_json::from_value(gold["pairs"].clone()).unwrap();
    let pairs: Vec<_> = pairs.iter().map(|(positive, negative)| (&positive[..], &negative[..])).collect();
    // F32, then activations rounded to 8 bits in each matrix product, which adds up from block to block. Directions of
    // neighbouring blocks are 0.28 and more apart.
    let models = [("bipo_run.gguf", Some(random), 1e-5), (common::SMOL, real, 3e-2)];
    for (name, model, limit) in models {
        let Some(model) = model else { continue };
        let kept = gold["directions"][name].as_object().unwrap();
        let layers: Vec<usize> = kept.keys().map(|n| n.parse().unwrap()).collect();
        for (layer, mut ours) in common::generator::differences(&model, &pairs, &layers) {
            let norm = ours.iter().map(|x| x * x).sum::<f64>().sqrt();
            ours.iter_mut().for_each(|x| *x /= norm);
            let error = distance(&ours, &numbers(&kept[&layer.to_string()]));
            eprintln!("{name}, direction.{layer}: relative error {error:.1e}");
            assert!(error < limit, "{name}, direction.{layer}: relative error {error:.1e}, at most {limit:.0e}");
        }
    }
}

/// The random model of the run in PyTorch, written again from its seed.
fn write_model(path: &Path) -> Arc<Model> {
    let family = synth::family("llama").unwrap();
    synth::write(path, family, &family.shape(), DType::from_name("f32").unwrap(), 1).unwrap();
    Model::load(path, &ModelParams::default()).unwrap()
}

const LAYER: usize = 1;
const BETA: f64 = 0.5;
const RATE: f64 = 0.03;
const DECAY: f64 = 0.05;
const BATCH: usize = 4;
const EPOCHS: usize = 6;

/// Six pairs of tokens by a formula, of different lengths; each prompt begins with BOS.
fn pairs() -> Vec<TokenizedPair> {
    let tokens = |n: usize, a: usize| (0..n).map(|i| (3 + (i * i * 31 + i * 17 + a * 53) % 314) as Token).collect();
    let pair = |k: usize| {
        let prompt: Vec<Token> = tokens(4 + k, k);
        TokenizedPair {
            prompt: [vec![1], prompt].concat(),
            chosen: tokens(3 + k % 3, k + 100),
            rejected: tokens(3 + k % 4, k + 200),
        }
    };
    (0..6).map(pair).collect()
}

/// Pairs and directions of each step for seed 0, by the description in docs/training.md: for each epoch its stream of ChaCha8.
fn steps(objective: Objective, n: usize) -> Vec<Vec<(usize, f64)>> {
    let epoch = |epoch: u64| {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        rng.set_stream(epoch + 1);
        let order = permutation(n, rng.next_u64());
        let members: Vec<(usize, f64)> = order
            .into_iter()
            .map(|pair| (pair, if objective == Objective::Bidpo && rng.next_u32() & 1 == 1 { -1.0 } else { 1.0 }))
            .collect();
        members.chunks(BATCH).map(<[_]>::to_vec).collect::<Vec<_>>()
    };
    (0..EPOCHS as u64).flat_map(epoch).collect()
}

/// Writes the model and the input of tests/gold/bipo_run.py into `target/tmp`.
#[test]
#[ignore = "only to compute tests/gold/bipo_run.json again"]
fn write_the_input_of_bipo_run() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    write_model(&folder.join("bipo_run.gguf"));
    let pairs = pairs();
    let tokens: Vec<_> = pairs.iter().map(|p| json!([p.prompt, p.chosen, p.rejected])).collect();
    let runs: serde_json::Map<String, Value> = [Objective::Dpo, Objective::Bidpo]
        .map(|o| (o.name().to_owned(), json!(steps(o, pairs.len()))))
        .into_iter()
        .collect();
    let input = json!({
        "layer": LAYER, "beta": BETA, "lr": RATE, "weight_decay": DECAY, "warmup": 2, "pairs": tokens, "runs": runs,
    });
    std::fs::write(folder.join("bipo_run_input.json"), input.to_string()).unwrap();
}

/// A training run with exact kernels; the loss of each step too.
fn train(model: &Arc<Model>, objective: Objective) -> (Trained, Vec<f64>) {
    let config = TrainConfig {
        objective,
        beta: BETA,
        learning_rate: LearningRate::Absolute(RATE),
        weight_decay: DECAY,
        warmup_ratio: 0.15, // 1.8 of 12 steps, rounded up
        batch: BATCH,
        budget: TrainingBudget::Epochs(EPOCHS),
        precision: Precision::EXACT,
        ..TrainConfig::new(Layers::one(LAYER))
    };
    let pairs: Vec<NamedPair> =
        pairs().into_iter().enumerate().map(|(i, tokens)| NamedPair { name: format!("pair {i}"), tokens }).collect();
    let longest = pairs.iter().map(|p| p.tokens.n_tokens()).max().unwrap();
    let mut engine = Engine::new(model, &config.layers, longest, 1, 1).unwrap();
    let never = AtomicBool::new(false);
    let mut trainer = Trainer { engine: &mut engine, config: &config, checkpoints: None, interrupt: &never };
    let mut losses = Vec::new();
    let trained = trainer.train(&pairs, &[], &mut |event| {
        if let Event::Step(report) = event {
            losses.push(report.loss);
        }
    });
    (trained.unwrap(), losses)
}

/// Twelve steps of BiPO and of DPO in PyTorch, in f64 from the model's weights to the vector.
#[test]
fn a_whole_run_of_bipo_equals_pytorch() {
    let folder = tempfile::tempdir().unwrap();
    let model = write_model(&folder.path().join("bipo_run.gguf"));
    let gold = read("bipo_run.json");
    for objective in [Objective::Dpo, Objective::Bidpo] {
        let (trained, losses) = train(&model, objective);
        let kept = &gold[objective.name()];
        let expected = numbers(&kept["losses"]);
        assert_eq!(losses.len(), expected.len());
        let largest = losses.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        let vector: Vec<f64> = trained.vector.iter().map(|&x| f64::from(x)).collect();
        let error = distance(&vector, &numbers(&kept["vector"]));
        eprintln!("{objective}: losses within {largest:.1e}, vector's relative error {error:.1e}");
        let fallen = expected[0] - expected[expected.len() - 1];
        assert!(fallen > 0.1, "{objective}: the loss fell by {fallen} only, which tests little");
        assert!(largest < 1e-5, "{objective}: a loss differs by {largest:.1e}");
        assert!(error < 1e-4, "{objective}: the vector's relative error is {error:.1e}");
    }
}
