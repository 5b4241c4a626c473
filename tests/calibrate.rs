//! `bidpo calibrate` and `train --calibrate`: the ends of the range against `bidpo eval text`, what is written, what is refused.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use assert_cmd::Command;
use bidpo_core::adapter::AdapterFile;
use bidpo_core::intervention::{Kind, KindSpec};
use bidpo_core::steer::{RowChanges, SteeringVector};
use common::adapters::any_adapter;
use common::bench::Bench;
use serde_json::Value;
use std::path::Path;

const LAYER: usize = 1;

fn bidpo(args: &[&str]) -> assert_cmd::assert::Assert {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("bidpo"));
    let assert = command.args(args).env("BIDPO_THREADS", "1").env("BIDPO_NEUTRAL_PASSAGES", "2").assert();
    let said = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(!said.contains("panicked"), "{said}");
    assert
}

fn said(assert: &assert_cmd::assert::Assert) -> String {
    String::from_utf8_lossy(&assert.get_output().stderr).into_owned()
}

fn json(assert: &assert_cmd::assert::Assert) -> Value {
    serde_json::from_slice(&assert.get_output().stdout).unwrap()
}

/// KL on the first two neutral passages at a scale, as `eval text` measures it.
fn kl_at(model: &str, vector: &str, scale: f64) -> f64 {
    let vector = format!("{vector}:{scale}");
    let assert =
        bidpo(&["eval", "text", "-m", model, "-v", &vector, "--limit", "2", "--baselines", "unsteered", "--json"]);
    let results = json(&assert.success());
    let tables = results["measures"].as_array().unwrap();
    let kl = tables.iter().find(|t| t["measure"].as_str().unwrap().contains("kl")).unwrap();
    let rows = kl["conditions"].as_array().unwrap();
    rows.iter().find(|row| row["condition"] == "steered").unwrap()["value"].as_f64().unwrap()
}

/// A direction, `[n_embd]`.
fn direction(n: usize, size: f32) -> Vec<f32> {
    (0..n).map(|i| size * ((i * 7 % 5) as f32 - 2.0)).collect()
}

/// A vector of bidpo's and one of another tool.
fn vectors(bench: &Bench, n_embd: usize) {
    let mut own = SteeringVector::single(LAYER, direction(n_embd, 0.01), "llama").unwrap();
    own.save(&bench.path("foreign.gguf")).unwrap();
    own.provenance.set_str("version", "0.2.0");
    own.provenance.set_str("data_name", "kept");
    own.provenance.set_float("residual_norm_median", 1.0);
    own.save(&bench.path("own.gguf")).unwrap();
    // A gate, half open everywhere.
    let spec = KindSpec::from(Kind::Gate);
    let theta = [vec![0.0; n_embd + 1], direction(n_embd, 0.01)].concat();
    let rows = Some(RowChanges { spec, layer: LAYER, n_embd, theta });
    let gate = SteeringVector { directions: [].into(), rows, ..own };
    gate.save(&bench.path("gate.gguf")).unwrap();
}

/// Width of the random model's residual stream.
fn width() -> usize {
    ggml_grad::synth::family("llama").unwrap().shape().n_embd
}

#[test]
fn the_ends_of_the_range_are_the_largest_scales_within_the_budget() {
    let bench = Bench::random("llama", "f32");
    vectors(&bench, width());
    let model = bench.model.to_str().unwrap();
    for name in ["own.gguf", "gate.gguf"] {
        let file = bench.path(name);
        let file = file.to_str().unwrap();
        let budget = 0.25 * kl_at(model, file, 3.0);
        let out = json(&bidpo(&["calibrate", "-m", model, file, "--budget", &budget.to_string(), "--json"]).success());
        let vector = SteeringVector::load(Path::new(file)).unwrap();
        let range = vector.measured_range().unwrap();
        assert_eq!((range.budget, vector.provenance.str("data_name")), (budget, Some("kept")));
        for (end, scale) in [("low", range.low), ("high", range.high)] {
            assert_eq!(out[end]["scale"].as_f64(), Some(scale));
            assert!(scale != 0.0 && (scale > 0.0) == (end == "high") && out[end]["at_limit"] == false, "{out}");
            let kl = kl_at(model, file, scale);
            assert!((kl - out[end]["price"]["kl_per_token"]["value"].as_f64().unwrap()).abs() < 1e-6 * kl, "{out}");
            assert!(kl <= budget && kl_at(model, file, 1.05 * scale) > budget, "{name}, {end}: {kl} of {budget}");
        }
        // A larger budget gives a wider range.
        let first = std::fs::read(file).unwrap();
        let copy = bench.path("wide.gguf");
        bidpo(&["calibrate", "-m", model, file, "--budget", &(2.0 * budget).to_string(), "-o", copy.to_str().unwrap()])
            .success();
        let wide = SteeringVector::load(&copy).unwrap().measured_range().unwrap();
        assert!(wide.low < range.low && wide.high > range.high, "{wide:?} {range:?}");
        assert!(std::fs::read(file).unwrap() == first, "-o leaves the file alone");

        let shown = bidpo(&["vector", "show", file]).success();
        let shown = String::from_utf8_lossy(&shown.get_output().stdout).into_owned();
        assert!(shown.contains("safe range") && shown.contains(&range.in_words()), "{shown}");
        let note = |scale: f64| {
            let steered = format!("{file}:{scale}");
            said(
                &bidpo(&["generate", "-m", model, "--template", "none", "-p", "Rain", "-n", "1", "-v", &steered])
                    .success(),
            )
        };
        assert!(note(1.1 * range.high).contains("the measured range in which KL"), "{}", note(1.1 * range.high));
        assert!(!note(range.low).contains("range"), "{}", note(range.low));
    }
}

#[test]
fn files_of_other_tools_stay_as_they_are() {
    let bench = Bench::random("llama", "f32");
    vectors(&bench, width());
    let (model, file) = (bench.model.to_str().unwrap(), bench.path("foreign.gguf"));
    let (before, file) = (std::fs::read(&file).unwrap(), file.to_str().unwrap());
    let refused = |more: &[&str]| {
        let assert = bidpo(&[&["calibrate", "-m", model, file, "--budget", "0.001"], more].concat()).failure();
        said(&assert)
    };
    assert!(refused(&[]).contains("was not written by bidpo") && refused(&["-o", file]).contains("-o FILE.gguf"));
    let npy = bench.path("v.npy");
    assert!(refused(&["-o", npy.to_str().unwrap()]).contains("would not hold the range"));
    assert!(refused(&["-o", model]).contains("would replace the input"));
    let copy = bench.path("copy.gguf");
    bidpo(&["calibrate", "-m", model, file, "--budget", "0.001", "-o", copy.to_str().unwrap()]).success();
    assert!(SteeringVector::load(&copy).unwrap().measured_range().is_some());
    assert!(std::fs::read(file).unwrap() == before);
    // Nothing to find: a vector of zeros.
    let zero = bench.path("zero.gguf");
    let mut v = SteeringVector::single(LAYER, vec![0.0; width()], "llama").unwrap();
    v.provenance.set_float("residual_norm_median", 1.0);
    v.save(&zero).unwrap();
    let assert = bidpo(&["calibrate", "-m", model, zero.to_str().unwrap()]).failure();
    assert!(said(&assert).contains("the vector is zero"), "{}", said(&assert));
    for bad in ["0", "-1", "nan", "much"] {
        let assert = bidpo(&["calibrate", "-m", model, file, "--budget", bad]).code(2);
        assert!(said(&assert).contains("is not a budget"), "{}", said(&assert));
    }
}

#[test]
fn training_measures_the_range_too() {
    let bench = Bench::random("llama", "f32");
    let flags = "--layer 1 --steps 4 --batch 3 --lr 4%";
    let s = bench.summary("v.gguf", &format!("{flags} --calibrate 1e-3"));
    let range = bench.vector("v.gguf").measured_range().unwrap();
    assert_eq!((s["safe_range"]["high"]["scale"].as_f64(), range.budget), (Some(range.high), 1e-3));
    assert!(String::from_utf8(bench.files("v.gguf").1).unwrap().contains("Safe range, measured: scales -"));
    // The command finds the same.
    let (model, file) = (bench.model.clone(), bench.path("v.gguf"));
    let before = std::fs::read(&file).unwrap();
    bidpo(&["calibrate", "-m", model.to_str().unwrap(), file.to_str().unwrap(), "--budget", "1e-3"]).success();
    assert!(std::fs::read(&file).unwrap() == before);
    assert_eq!(bench.summary("w.gguf", flags)["safe_range"], Value::Null);
    assert_eq!(bench.vector("w.gguf").measured_range(), None);
}

/// Adapters have a range too, from a training and from the command; beside a loaded adapter the price is against the model with it.
#[test]
fn adapters_have_a_range() {
    let bench = Bench::random("llama", "f32");
    let flags = "--kind lora --rank 2 --layers 1-2 --steps 6 --batch 2 --val 0 --test 0 --random 0 --lr 1e-2";
    let s = bench.summary("a.gguf", &format!("{flags} --calibrate 1e-3"));
    let (model, path) = (bench.model.to_str().unwrap(), bench.path("a.gguf"));
    let file = path.to_str().unwrap();
    let high = AdapterFile::load(&path).unwrap().provenance.number("safe_scale_high").unwrap();
    assert_eq!(
        (s["safe_range"]["high"]["scale"].as_f64(), &s["safe_range"]["high"]["at_limit"]),
        (Some(high), &false.into())
    );
    assert!(kl_at(model, file, high) <= 1e-3 && kl_at(model, file, 1.05 * high) > 1e-3, "{high}");
    assert!(String::from_utf8(bench.files("a.gguf").1).unwrap().contains("Safe range, measured: scales -"));
    let before = std::fs::read(&path).unwrap();
    bidpo(&["calibrate", "-m", model, file, "--budget", "1e-3"]).success();
    assert!(std::fs::read(&path).unwrap() == before, "the command finds the same");
    let strong = format!("{file}:{}", 1.1 * high);
    let assert =
        bidpo(&["generate", "-m", model, "--template", "none", "-p", "Rain", "-n", "1", "--lora", &strong]).success();
    assert!(said(&assert).contains("the measured range in which KL"), "{}", said(&assert));

    // Another tool's adapter stays as it is; what is loaded beside it takes part on both sides.
    let foreign = any_adapter(&bench.path(""), &bench.model, "foreign", &["ffn_down"], 2, 1.0);
    let foreign = foreign.to_str().unwrap();
    let refused = |more: &[&str]| {
        said(&bidpo(&[&["calibrate", "-m", model, foreign, "--budget", "1e-3"], more].concat()).failure())
    };
    assert!(refused(&[]).contains("was not written by bidpo"));
    assert!(refused(&["--convention", "generator"]).contains("no directions"));
    assert!(refused(&["-o", bench.path("x.safetensors").to_str().unwrap()]).contains("ends in .gguf"));
    let high_of = |name: &str, more: &[&str]| {
        let out = bench.path(name);
        let args = ["calibrate", "-m", model, foreign, "--budget", "1e-3", "-o", out.to_str().unwrap()];
        bidpo(&[&args[..], more].concat()).success();
        AdapterFile::load(&out).unwrap().provenance.number("safe_scale_high").unwrap()
    };
    let (alone, beside) = (high_of("alone.gguf", &[]), high_of("beside.gguf", &["--lora", &format!("{file}:3")]));
    assert!(alone > 0.0 && beside > 0.0 && alone != beside, "{alone} {beside}");
}
