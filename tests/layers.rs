//! `bidpo train --layers`: several directions trained together, from the flag to llama.cpp's own control vector.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use assert_cmd::Command;
use bidpo_core::engine::Engine;
use bidpo_core::layers::Layers;
use bidpo_core::steer::{ScaledVector, SteeringVector, combine};
use bidpo_core::train::{NamedPair, Precision, TrainConfig, TrainError, Trainer};
use common::bench::{Bench, PAIRS, steps, wait};
use ggml_grad::llama::{Batch, Context, ContextParams, Model, ModelParams, Token};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

#[test]
fn several_layers_train_together() {
    let Some(bench) = Bench::new() else { return };
    let flags = "--steps 4 --batch 3 --val 0 --test 0.34 --layers 25-26,28";
    let s = bench.summary("v.gguf", flags);
    assert_eq!(bench.left(), ["v.gguf", "v.md"]);
    let vector = bench.vector("v.gguf");
    assert_eq!(vector.layers(), [25, 26, 28], "exactly those that were asked for");
    assert!(s["layer"].is_null() && s["lr"].is_null() && s["residual_norm_median"].is_null(), "{s}");
    let rows = s["layers"].as_array().unwrap();
    let (mut percents, mut squares) = (0.0, 0.0);
    for (row, layer) in rows.iter().zip([25, 26, 28]) {
        let number = |key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key} in {row}"));
        let (norm, median) = (number("norm"), number("residual_norm_median"));
        assert_eq!(row["layer"], layer);
        assert!(norm > 0.0 && (norm - vector.norm(layer)).abs() < 1e-6, "layer {layer}: {norm}");
        // A step of 1 %, shared by three layers, each in its own units.
        assert!((number("lr") - 0.01 * median / 576f64.sqrt() / 3.0).abs() < 1e-9 * median, "{row}");
        // What a reader of the file finds is what the run said.
        assert_eq!(vector.residual_norm(layer), Some(median));
        assert_eq!(vector.provenance.number(&format!("lr.{layer}")), row["lr"].as_f64());
        percents += number("norm_percent");
        squares += norm * norm;
    }
    let percent = s["norm_percent"].as_f64().unwrap();
    assert!((percent - percents / 3.0).abs() < 1e-9 && (s["norm"].as_f64().unwrap() - squares.sqrt()).abs() < 1e-6);
    assert!((vector.percent_of_scale(1.0).unwrap() - percent).abs() < 1e-6);
    assert_eq!(vector.provenance.str("layers"), Some("25-26,28"));
    for key in ["layer", "lr", "residual_norm_median"] {
        assert!(!vector.provenance.entries.contains_key(key), "bidpo.{key} would speak of one layer");
    }
    let names: Vec<_> = s["heldout"].as_array().unwrap().iter().map(|c| c["condition"].clone()).collect();
    assert!(names.contains(&"random vector 10".into()) && names.contains(&"vector, scale -1".into()), "{names:?}");
    let (file, card) = bench.files("v.gguf");
    let card = String::from_utf8(card).unwrap();
    for text in ["| layers | 25-26,28,", "| 28 | ", "(the mean over the layers)"] {
        assert!(card.contains(text), "{text:?} in {card}");
    }
    let mut show = Command::new(assert_cmd::cargo::cargo_bin!("bidpo"));
    show.args(["vector", "show"]).arg(bench.path("v.gguf"));
    let show = String::from_utf8(show.assert().success().get_output().stdout.clone()).unwrap();
    for text in ["25-26,28 (3 of them)", "norm at 25", "norm at 28", "% of the residual norm (mean over the layers)"] {
        assert!(show.contains(text), "{text:?} in {show}");
    }

    // Once more, with the list spelled in another way: the same bytes. With a length: the mean over the layers.
    bench.train("v.gguf", &flags.replace("25-26,28", "28,26,25")).success();
    assert!(bench.files("v.gguf") == (file, card.into_bytes()), "two runs, two results");
    let s = bench.summary("v.gguf", &format!("{flags} --renorm 5%"));
    assert!((s["norm_percent"].as_f64().unwrap() - 5.0).abs() < 1e-5, "{s}");
    let longer = bench.vector("v.gguf");
    assert!((longer.scale_for_percent(2.5).unwrap() - 0.5).abs() < 1e-6);
    for layer in [25, 26, 28] {
        let factor = longer.norm(layer) / vector.norm(layer);
        assert!((factor * percent / 5.0 - 1.0).abs() < 1e-5, "one factor for all layers: {factor} at {layer}");
    }
}

#[test]
fn one_layer_is_the_same_either_way() {
    let Some(bench) = Bench::new() else { return };
    bench.train("v.gguf", "--steps 2 --batch 3 --layer 27").success();
    let one = bench.files("v.gguf");
    bench.train("v.gguf", "--steps 2 --batch 3 --layers 27").success();
    assert!(bench.files("v.gguf") == one);
}

#[test]
fn a_killed_run_of_several_layers_goes_on_to_the_same_bytes() {
    let Some(bench) = Bench::new() else { return };
    let flags = "--steps 16 --batch 2 --val 0.17 --patience 0 --layers 26,28-29";
    let whole = bench.uninterrupted("v.gguf", flags);
    let checkpoint = bench.path("v.ckpt");
    let mut child = bench.spawn("v.gguf", flags);
    let hit = wait(&mut child, || steps(&checkpoint) >= 3);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(hit && checkpoint.exists(), "the run ended before it could be killed");
    // Another layer is another run, also where the number of layers is the same.
    for layers in ["26,28", "26-27,29", "26"] {
        let said = bench.fails("v.gguf", &format!("{} --resume", flags.replace("26,28-29", layers)));
        assert!(said.contains("v.ckpt belongs to another run") && said.contains("layers"), "{said}");
    }
    bench.train("v.gguf", &format!("{flags} --resume")).success();
    assert!(bench.files("v.gguf") == whole, "the resumed run ends with other bytes");
}

/// The first layer that can be steered and the last, alone and inside a range.
#[test]
fn every_layer_of_the_model_can_be_trained() {
    let Some(bench) = Bench::new() else { return };
    let pairs: Vec<[&str; 3]> = PAIRS[..2].to_vec();
    bench.write("prefs.jsonl", &pairs);
    for (layers, want) in [("1", vec![1]), ("29", vec![29]), ("1,29", vec![1, 29]), ("1-29", (1..=29).collect())] {
        bench.train("v.gguf", &format!("--steps 1 --batch 2 --objective dpo --layers {layers}")).success();
        let vector = bench.vector("v.gguf");
        assert_eq!(vector.layers(), want);
        assert!(want.iter().all(|&l| vector.norm(l) > 0.0), "{layers}: a gradient reaches every layer");
    }
}

#[test]
fn lists_that_cannot_be_trained_say_why() {
    let Some(bench) = Bench::new() else { return };
    for (layers, code, parts) in [
        ("0-3", 1, ["layer 0 is out of range", "1 to 29"]),
        ("28-30", 1, ["layer 30 is out of range", "1 to 29"]),
        ("20-10", 2, ["the first layer lies above the last", "10-20"]),
        ("5,5", 2, ["layer 5 is named twice", "once"]),
        ("5-9,7", 2, ["layer 7 is named twice", "once"]),
        ("", 2, ["no layer is named", "10-20"]),
        ("5,x", 2, ["is not a list of layers", "5,9,12-14"]),
        ("15 --layer 15", 2, ["cannot be used with", "--layer"]),
    ] {
        let assert = bench.train("v.gguf", &format!("--steps 1 --layers={layers}")).code(code);
        let said = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
        assert!(parts.iter().all(|p| said.contains(p)), "{layers}: {said}");
    }
    assert!(bench.left().is_empty(), "{:?}", bench.left());
}

fn log_p(logits: &[f32], token: Token) -> f64 {
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    f64::from(logits[token as usize] - max) - sum.ln()
}

/// A joint vector, written to a file, loaded and put on a plain context as llama.cpp's own control vector, gives the
/// log-probabilities that the engine trained with: at every scale, and with every direction taking part.
#[test]
fn llama_cpp_applies_what_was_trained() {
    let Some(path) = common::model(common::SMOL) else { return };
    let model = Model::load(&path, &ModelParams::default()).unwrap();
    let pairs: Vec<NamedPair> = PAIRS
        .iter()
        .map(|[p, c, r]| {
            let tokens = |text: &str| model.tokenize(text, false, false).unwrap();
            let tokens = bidpo_core::data::TokenizedPair { prompt: tokens(p), chosen: tokens(c), rejected: tokens(r) };
            NamedPair { name: (*p).to_owned(), tokens }
        })
        .collect();
    let layers: Layers = "9,15-16,29".parse().unwrap();
    let longest = pairs.iter().map(|p| p.tokens.n_tokens()).max().unwrap();
    let mut engine = Engine::new(&model, &layers, longest, 1, 1).unwrap();
    let config = TrainConfig {
        budget: bidpo_core::train::TrainingBudget::Steps(4),
        batch: 3,
        learning_rate: "4%".parse().unwrap(),
        ..TrainConfig::new(layers.clone())
    };
    let never = AtomicBool::new(false);
    let trained = Trainer { engine: &mut engine, config: &config, checkpoints: None, interrupt: &never }
        .train(&pairs, &[], &mut |_| {})
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("v.gguf");
    SteeringVector::from_layers(&layers, &trained.vector, "llama").unwrap().save(&file).unwrap();
    let vector = Arc::new(SteeringVector::load(&file).unwrap());
    assert_eq!(vector.directions.values().flatten().copied().collect::<Vec<_>>(), trained.vector);

    let pair = &pairs[0].tokens;
    // By the kernels whose bits are llama_decode's.
    engine.set_precision(Precision::EXACT);
    let example = engine.trace(pair).unwrap();
    let mut ctx = Context::new(&model, &ContextParams::exact(pair.n_tokens(), 2, 1)).unwrap();
    let mut score = |steered: &[ScaledVector], at: Option<&Layers>| {
        match combine(steered, at, &model).unwrap() {
            Some(cv) => cv.apply(&mut ctx).unwrap(),
            None => ctx.clear_control_vector(),
        }
        ctx.clear_kv();
        let mut batch = Batch::new();
        for (i, &t) in pair.prompt.iter().enumerate() {
            batch.add(t, i, &[0, 1], true);
        }
        for (seq, response) in [(0, &pair.chosen), (1, &pair.rejected)] {
            for (i, &t) in response.iter().enumerate() {
                batch.add(t, pair.prompt.len() + i, &[seq], true);
            }
        }
        ctx.decode(&batch).unwrap();
        let (last, mut row, mut sums) = (pair.prompt.len() - 1, pair.prompt.len(), [0.0; 2]);
        for (sum, response) in sums.iter_mut().zip([&pair.chosen, &pair.rejected]) {
            for (i, &t) in response.iter().enumerate() {
                let from = if i == 0 { last } else { row + i - 1 };
                *sum += log_p(ctx.logits(from).unwrap(), t);
            }
            row += response.len();
        }
        sums
    };
    let dial = |scale| vec![ScaledVector { name: "v".into(), vector: Arc::clone(&vector), scale }];
    let mut seen = Vec::new();
    for scale in [0.0f32, 1.0, -1.0, 2.5] {
        let added: Vec<f32> = trained.vector.iter().map(|x| scale * x).collect();
        let ours = engine.run(&example, &added, false).unwrap().logp[0];
        let theirs = score(&dial(scale), None);
        for (a, b) in [(ours.chosen, theirs[0]), (ours.rejected, theirs[1])] {
            assert!((a - b).abs() < 1e-4, "scale {scale}: {a} by the engine, {b} by llama.cpp");
        }
        seen.push(theirs);
    }
    // Each direction counts: without any of them the result is another one.
    let whole = seen[1];
    for &layer in layers.iter() {
        let without = Layers::new(layers.iter().copied().filter(|&l| l != layer)).unwrap();
        let moved = score(&dial(1.0), Some(&without)).iter().zip(whole).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(moved > 1e-3, "layer {layer} moves the log-probabilities by {moved} only");
    }

    // Settings and engine must speak of the same layers.
    let other = TrainConfig::new("9,15-16".parse().unwrap());
    let error = Trainer { engine: &mut engine, config: &other, checkpoints: None, interrupt: &never }
        .train(&pairs, &[], &mut |_| {})
        .unwrap_err();
    assert!(matches!(&error, TrainError::Config(text) if text.contains("9,15-16")), "{error}");
}
