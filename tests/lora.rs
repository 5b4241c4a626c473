//! Adapters in the graph, on random models of many architectures: logits equal to `llama_decode`'s bit for bit with an adapter on
//! the context and without, gradients of every A and B equal to central differences on F32 weights.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use bidpo_core::check::F32Copy;
use bidpo_core::data::TokenizedPair;
use bidpo_core::engine::{AdapterRefusal, Engine, EngineError, Parameters, TracedPair};
use bidpo_core::intervention::{Direction, Intervention, Lora, LoraSpec, TargetName};
use bidpo_core::numbers::norm;
use bidpo_core::train::Precision;
use ggml_grad::llama::{DType, Model, ModelParams};
use ggml_grad::synth;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

const TOKENS: usize = 24;
/// Largest relative error of a gradient.
const LINE: f64 = 2e-3;

struct Random {
    _folder: tempfile::TempDir,
    model: Arc<Model>,
}

fn random(family: &str, dtype: DType) -> Random {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let family = synth::family(family).unwrap();
    synth::write(&path, family, &family.shape(), dtype, 1).unwrap();
    let model = Model::load(&path, &ModelParams::default()).unwrap();
    Random { _folder: folder, model }
}

/// The blocks from 2 on.
fn upper(model: &Model) -> String {
    format!("2-{}", model.n_layer() - 1)
}

fn pair() -> TokenizedPair {
    TokenizedPair { prompt: vec![5, 9, 3, 7], chosen: vec![11, 4, 8], rejected: vec![6, 12] }
}

fn spec(targets: &[&str], blocks: &str) -> LoraSpec {
    LoraSpec {
        rank: 2,
        alpha: Some(3.0),
        targets: targets.iter().map(|t| t.parse().unwrap()).collect(),
        blocks: blocks.parse().unwrap(),
        lr: None,
        with_vectors: false,
    }
}

/// An engine with a pair on every matrix of these blocks where llama.cpp takes one, and the names where it does not.
fn everywhere(model: &Arc<Model>, blocks: &str) -> (Engine, Arc<Lora>, Vec<String>) {
    let mut spec = spec(&["no_such_matrix"], blocks);
    let e = spec.on(model).unwrap_err();
    let bidpo_core::intervention::LoraError::Unknown { known, .. } = e else { panic!("{e}") };
    spec.targets = known.iter().filter(|n| !n.contains("norm")).filter_map(|n| n.parse().ok()).collect();
    let mut ignored: Vec<String> = Vec::new();
    loop {
        // A target may be missing in some blocks: kinds of layers alternate.
        let fits = |t: &TargetName| LoraSpec { targets: vec![t.clone()], ..spec.clone() }.on(model).is_ok();
        spec.targets = spec.targets.iter().filter(|t| fits(t)).cloned().collect();
        let lora = spec.on(model).unwrap();
        let engine = Engine::for_adapter(model, &[spec.layer()], TOKENS, 1, 1).unwrap();
        match engine.with_lora(lora.clone()) {
            Ok(engine) => return (engine, Arc::new(lora), ignored),
            Err(EngineError::Adapter(AdapterRefusal::Ignored { tensors, .. })) => {
                let names =
                    tensors.iter().filter_map(|t| Some(t.strip_suffix(".weight")?.rsplit_once('.')?.1.to_owned()));
                let names: Vec<String> = names.collect();
                spec.targets.retain(|t| !names.contains(&t.matrix));
                ignored.extend(names);
            }
            Err(e) => panic!("{e}"),
        }
    }
}

/// Relative error of the gradient of `log p(chosen) - log p(rejected)` in each matrix, along the gradient there; the largest, and
/// the matrix. Where the numbers happen to lie at a kink (ReLU), two slopes meet: others are tried.
fn worst_matrix(engine: &mut Engine, lora: &Lora, traced: &TracedPair) -> (f64, String) {
    let probe = lora.probe();
    let mut least: BTreeMap<String, f64> = BTreeMap::new();
    let mut worst = (f64::INFINITY, String::new());
    for theta in [probe.clone(), lora.random(&probe, 1), lora.random(&probe, 2)] {
        for (name, error) in errors_at(engine, lora, traced, &theta) {
            let least = least.entry(name).or_insert(error);
            *least = least.min(error);
        }
        worst = least
            .iter()
            .fold((0.0, String::new()), |worst, (name, &e)| if e > worst.0 { (e, name.clone()) } else { worst });
        if worst.0 <= LINE {
            break;
        }
    }
    worst
}

fn errors_at(engine: &mut Engine, lora: &Lora, traced: &TracedPair, theta: &[f32]) -> Vec<(String, f64)> {
    engine.set_smooth(true);
    let frozen = engine.freeze_choices(traced.as_ref(), theta).unwrap();
    let mut scored = engine.run(&frozen, theta, true).unwrap();
    let gradient = scored.grads.swap_remove(0);
    // What the rounding of log-probabilities to F32 explains.
    let rounding = f64::from(f32::EPSILON) / 2.0 * (scored.logp[0].chosen.abs() + scored.logp[0].rejected.abs());
    let places = lora
        .places()
        .flat_map(|(pair, [a, b])| [(format!("{}.lora_a", pair.tensor), a), (format!("{}.lora_b", pair.tensor), b)]);
    let largest = norm(&gradient);
    let mut errors = Vec::new();
    for (name, place) in places {
        let along = &gradient[place.clone()];
        let length = norm(along);
        // Of experts that no token chose.
        if length < 1e-4 * largest {
            continue;
        }
        let size = norm(&theta[place.clone()].iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
        let mut gap = |h: f64| {
            let mut moved = theta.to_vec();
            for (x, g) in moved[place.clone()].iter_mut().zip(along) {
                *x = (f64::from(*x) + h * size * g / length) as f32;
            }
            engine.run(&frozen, &moved, false).unwrap().logp[0].gap()
        };
        let mut best = f64::INFINITY;
        for h in [0.2, 0.05, 0.01] {
            let mut slope = |h: f64| (gap(h) - gap(-h)) / (2.0 * h * size);
            let numeric = (4.0 * slope(h / 2.0) - slope(h)) / 3.0;
            let error = ((numeric - length).abs() - rounding / (h * size)).max(0.0) / length;
            best = if error.is_nan() { f64::INFINITY } else { best.min(error) };
            if best < LINE / 2.0 {
                break;
            }
        }
        errors.push((name, best));
    }
    engine.set_smooth(false);
    errors
}

fn check_families(families: impl Iterator<Item = &'static synth::Family>, least: usize) {
    let (mut wrong, mut n) = (Vec::new(), 0);
    for family in families.filter(|f| !f.is_refused()) {
        let name = family.name();
        let random = random(name, DType::F32);
        let (mut engine, lora, ignored) = everywhere(&random.model, &upper(&random.model));
        engine.set_precision(Precision::EXACT);
        let traced = engine.trace(&pair()).unwrap();
        let agreement = engine.compare(&traced).unwrap();
        let (error, at) = worst_matrix(&mut engine, &lora, &traced);
        eprintln!(
            "{name:<12} {} pairs, largest error {error:.1e} at {at}, effect {:.2}, ignored {ignored:?}",
            lora.pairs.len(),
            agreement.effect
        );
        if !(agreement.agrees() && agreement.effect > 0.0 && error <= LINE) {
            wrong.push(format!("{name}: {error:.1e} at {at}, {agreement:?}"));
        }
        n += 1;
    }
    assert!(wrong.is_empty() && n >= least, "{n}: {}", wrong.join("\n"));
}

/// Every third kind of model.
#[test]
fn every_matrix_on_twenty_architectures() {
    check_families(synth::families().iter().filter(|f| !f.is_variant()).step_by(3), 18);
}

#[test]
#[ignore = "half a minute: the other kinds of models"]
fn every_matrix_on_every_architecture() {
    check_families(synth::families().iter(), 50);
}

/// All blocks: the graph begins at the tokens' embeddings.
#[test]
fn all_blocks() {
    for name in ["llama", "gemma3", "gpt2", "qwen3moe"] {
        let random = random(name, DType::F32);
        let (mut engine, lora, _) = everywhere(&random.model, &format!("0-{}", random.model.n_layer() - 1));
        engine.set_precision(Precision::EXACT);
        let traced = engine.trace(&pair()).unwrap();
        let agreement = engine.compare(&traced).unwrap();
        let (error, at) = worst_matrix(&mut engine, &lora, &traced);
        assert!(agreement.agrees() && agreement.effect > 0.0, "{name}: {agreement:?}");
        assert!(error <= 2e-3, "{name}: {error:.1e} at {at}");
    }
}

/// With quantized weights the graph is still llama.cpp's, and pairs joined in one graph have the log-probabilities that each has
/// alone.
#[test]
fn quantized_weights_and_joined_pairs() {
    let random = random("llama", DType::from_name("q4_0").unwrap());
    let spec = LoraSpec { targets: Vec::new(), ..spec(&[], &upper(&random.model)) };
    let lora = spec.on(&random.model).unwrap();
    let theta = lora.probe();
    let engine = Engine::for_adapter(&random.model, &[spec.layer()], 64, 3, 1).unwrap();
    let mut engine = engine.with_lora(lora.clone()).unwrap();
    let other = TokenizedPair { prompt: vec![5, 9, 3, 7, 2, 2], chosen: vec![1], rejected: vec![6, 3, 3] };
    let traced: Vec<TracedPair> = [pair(), other].iter().map(|p| engine.trace(p).unwrap()).collect();
    assert!(engine.compare(&traced[0]).unwrap().agrees());
    let members: Vec<&TracedPair> = traced.iter().collect();
    if let Err(reason) = engine.batches_pairs() {
        // One by one, then: the numbers are compared all the same.
        common::skipped(&reason.to_string());
    }
    let derivative = |_: f64| 1.0;
    let joined = engine.run_batch(&members, &theta, Some(&derivative)).unwrap();
    let mut sum = vec![0.0; lora.n_params()];
    for (one, logp) in traced.iter().zip(&joined.logp) {
        let alone = engine.run(one, &theta, true).unwrap();
        assert_eq!(alone.logp[0], *logp);
        sum.iter_mut().zip(&alone.grads[0]).for_each(|(sum, g)| *sum += g);
    }
    let apart: Vec<f64> = sum.iter().zip(&joined.grad).map(|(a, b)| a - b).collect();
    assert!(norm(&apart) < 0.02 * norm(&sum), "{} of {}", norm(&apart), norm(&sum));
    // Without B nothing changes; the reverse has another sign.
    let nothing: Vec<f32> = lora.initial(0).iter().map(|&x| x as f32).collect();
    assert_eq!(engine.run(&traced[0], &nothing, false).unwrap().logp[0], traced[0].reference());
    let back = Parameters { theta: &theta, direction: Direction::Reverse };
    let [forward, back] = [Parameters::from(&theta), back].map(|at| engine.run(&traced[0], at, false).unwrap().logp[0]);
    assert!(forward != back);
}

/// Latent attention multiplies without looking for an adapter.
#[test]
fn ignored_matrices_are_refused() {
    let random = random("deepseek2", DType::F32);
    let (_, _, ignored) = everywhere(&random.model, &upper(&random.model));
    assert!(!ignored.is_empty());
    let spec = spec(&[&format!("{}@2", ignored[0])], "2");
    let engine = Engine::for_adapter(&random.model, &[spec.layer()], TOKENS, 1, 1).unwrap();
    let e = engine.with_lora(spec.on(&random.model).unwrap()).unwrap_err();
    let EngineError::Adapter(AdapterRefusal::Ignored { tensors, architecture }) = &e else { panic!("{e}") };
    assert_eq!((tensors.len(), architecture.as_str()), (1, "deepseek2"));
    assert!(e.to_string().contains("--targets"), "{e}");
}

/// The gradients of every A and B on SmolLM2 in F32, as PyTorch and peft compute them (tests/gold/lora_gradient.py).
#[test]
fn gradients_equal_those_of_peft() {
    let Some(path) = common::model(common::SMOL) else { return };
    let gold: Value = serde_json::from_slice(&std::fs::read(common::gold("lora_gradient.json")).unwrap()).unwrap();
    let tokens =
        |key: &str| -> Vec<i32> { gold[key].as_array().unwrap().iter().map(|t| t.as_i64().unwrap() as i32).collect() };
    let number = |v: &Value| v.as_f64().unwrap();
    let copy = F32Copy::new(&Model::load(&path, &ModelParams::default()).unwrap()).unwrap();
    let lora = LoraSpec {
        rank: gold["rank"].as_u64().unwrap() as usize,
        alpha: Some(number(&gold["alpha"]) as f32),
        ..spec(&[], &tokens("blocks").iter().map(i32::to_string).collect::<Vec<_>>().join(","))
    };
    let layer = lora.layer();
    let lora = lora.on(copy.model()).unwrap();
    // The script's numbers, exact in binary.
    let mut theta = vec![0.0f32; lora.n_params()];
    for (matrix, (pair, [a, b])) in lora.places().enumerate() {
        for (place, columns, shift) in [(a, pair.n_in, 0), (b, lora.rank, 5)] {
            for (at, x) in theta[place].iter_mut().enumerate() {
                let number = (at / columns * 131 + at % columns * 17 + matrix * 7 + shift) % 1024;
                *x = (number as f32 - 512.0) / 16384.0;
            }
        }
    }
    let mut engine = Engine::for_adapter(copy.model(), &[layer], 64, 1, 1).unwrap().with_lora(lora.clone()).unwrap();
    engine.set_precision(Precision::EXACT);
    let pair = TokenizedPair { prompt: tokens("prompt"), chosen: tokens("chosen"), rejected: tokens("rejected") };
    let traced = engine.trace(&pair).unwrap();
    let scored = engine.run(&traced, &theta, true).unwrap();
    assert!((scored.logp[0].gap() - number(&gold["difference"])).abs() < 1e-3, "{}", scored.logp[0].gap());
    let places = lora.places().flat_map(|(pair, [a, b])| [(&pair.tensor, "a", a), (&pair.tensor, "b", b)]);
    let matrices = gold["matrices"].as_array().unwrap();
    assert_eq!(matrices.len(), 2 * lora.pairs.len());
    let mut worst = 0f64;
    for ((tensor, side, place), want) in places.zip(matrices) {
        assert_eq!(want["name"], format!("{tensor}.lora_{side}"));
        let gradient = &scored.grads[0][place];
        let (length, size) = (number(&want["norm"]), (gradient.len() as f64).sqrt());
        worst = worst.max((norm(gradient) - length).abs() / length);
        for (at, value) in want["at"].as_array().unwrap().iter().zip(want["values"].as_array().unwrap()) {
            let off = (gradient[at.as_u64().unwrap() as usize] - number(value)).abs();
            // Of the size of an element.
            worst = worst.max(off / (length / size));
        }
    }
    eprintln!("largest difference to peft: {worst:.1e}");
    assert!(worst < 2e-3, "{worst}");
}
