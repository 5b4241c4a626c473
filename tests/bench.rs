//! `bidpo bench`: what it prints has its form, and what cannot be measured says why. No test looks at a time.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use assert_cmd::Command;
use common::bench::Bench;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use serde_json::Value;
use std::path::Path;

fn bidpo() -> Command {
    let mut command = Command::cargo_bin("bidpo").unwrap();
    command.env("BIDPO_THREADS", "1");
    command
}

fn report(model: &Path, more: &[&str]) -> Value {
    let output = bidpo().args(["bench", "--json", "--rounds", "1", "--model"]).arg(model).args(more).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn positive(value: &Value, path: &[&str]) -> f64 {
    let found = path.iter().fold(value, |v, key| &v[*key]).as_f64();
    found.filter(|x| *x > 0.0).unwrap_or_else(|| panic!("{path:?} is no positive number in {value:#}"))
}

#[test]
fn a_step_is_measured_against_prefill() {
    let Some(model) = common::model(common::SMOL) else { return };
    let report = report(&model, &["--only", "step"]);
    let model = &report["models"][0];
    assert_eq!((&model["layer"], &model["n_pairs"]), (&15.into(), &8.into()));
    assert!((900.0..1600.0).contains(&positive(model, &["unique_tokens"])), "{model:#}");
    let lines = model["lines"].as_array().unwrap();
    assert_eq!((lines.len(), &lines[0]["name"], &lines[0]["limit"]), (1, &"step".into(), &0.4.into()));
    let measured = &lines[0]["outcome"]["measured"];
    let ratio = positive(measured, &["ours", "median"]) / positive(measured, &["reference", "median"]);
    assert!((ratio - positive(measured, &["ratio", "median"])).abs() < 1e-9);
    assert_eq!(lines[0]["verdict"], if ratio <= 0.4 { "within" } else { "over" });
    let split = &model["split"];
    for part in ["build", "upload", "compute", "forward", "read", "optimizer", "serial"] {
        positive(split, &[part]);
    }
    assert!(positive(split, &["compute"]) < positive(split, &["wall"]));
}

/// Everything at once on a random model: each line is there, in its order.
#[test]
fn every_line_has_its_place() {
    let bench = Bench::random("llama", "q8_0");
    let report = report(&bench.model, &["--layer", "1"]);
    let lines = report["models"][0]["lines"].as_array().unwrap();
    let names: Vec<&str> = lines.iter().map(|l| l["name"].as_str().unwrap()).collect();
    let before = ["step", "first-epoch", "extract", "truthfulqa", "generate", "memory", "lora-memory", "start"];
    let busy = ["busy", "together"];
    let kinds = ["gate", "linear-gate", "prompt-gate", "project", "clamp", "lowrank", "lora", "retained"];
    assert_eq!(names, [&before[..], &busy, &kinds, &["pytorch", "pytorch-lora"]].concat());
    for line in lines {
        let name = line["name"].as_str().unwrap();
        let unmeasured = line["outcome"]["not_measured"].as_str();
        match name {
            "truthfulqa" => assert_eq!(unmeasured, Some("needs --truthfulqa")),
            "pytorch" | "pytorch-lora" => assert!(unmeasured.unwrap().contains("--pytorch")),
            // A difference of two times: on a busy machine it may be below 0.
            "retained" => assert!(line["outcome"]["measured"]["ratio"]["median"].is_number()),
            "memory" | "lora-memory" if !cfg!(target_os = "linux") => {}
            _ => drop(positive(line, &["outcome", "measured", "ratio", "median"])),
        }
        if ["step", "memory"].contains(&name) {
            assert_eq!(line["verdict"], "no_limit", "no limit was set for this model");
        }
    }
    assert_eq!(report["models"][0]["threads"]["threads"], 1);
}

#[test]
fn truthfulqa_in_one_pass() {
    let bench = Bench::random("llama", "q8_0");
    let file = bench.path("mc.json");
    let question = |q: &str| serde_json::json!({ "question": q, "mc1_targets": { "Yes.": 1, "No.": 0 }, "mc2_targets": { "Yes.": 1, "Maybe.": 1, "No.": 0 } });
    std::fs::write(&file, serde_json::json!([question("Is it?"), question("Was it?")]).to_string()).unwrap();
    let report = report(
        &bench.model,
        &["--layer", "1", "--only", "truthfulqa", "--questions", "1", "--truthfulqa", file.to_str().unwrap()],
    );
    let line = &report["models"][0]["lines"][0];
    positive(line, &["outcome", "measured", "ratio", "median"]);
    assert!(line["what"].as_str().unwrap().contains("1 question"), "{line:#}");
}

#[test]
fn pairs_go_to_a_file_and_a_result_comes_back() {
    let bench = Bench::random("llama", "q8_0");
    let file = bench.path("pairs.json");
    bidpo()
        .args(["bench", "--layer", "1", "--model"])
        .arg(&bench.model)
        .arg("--write-pairs")
        .arg(&file)
        .assert()
        .success();
    let written: bidpo_core::bench::PairFile = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!((written.model.as_str(), written.layer, written.pairs.len()), ("llama.gguf", 1, 8));
    let unique: usize = written.pairs.iter().map(|p| p.prompt.len() + p.chosen.len() + p.rejected.len()).sum();

    let result = bench.path("pytorch.json");
    let mut peer = serde_json::json!({
        "model": "llama.gguf", "layer": 1, "threads": 1, "unique_tokens": unique, "f32_ms": [2000.0, 1000.0, 3000.0],
    });
    let line = |peer: &Value| {
        std::fs::write(&result, peer.to_string()).unwrap();
        let more = ["--layer", "1", "--only", "pytorch", "--pytorch", result.to_str().unwrap()];
        report(&bench.model, &more)["models"][0]["lines"][0].clone()
    };
    let compared = line(&peer);
    assert_eq!(positive(&compared, &["outcome", "measured", "reference", "median"]), 2000.0);
    assert_eq!(compared["limit"], 0.1);
    // A file of an older version has no step of an adapter.
    let adapted = |peer: &Value| {
        std::fs::write(&result, peer.to_string()).unwrap();
        let more = ["--layer", "1", "--only", "pytorch-lora", "--pytorch", result.to_str().unwrap()];
        report(&bench.model, &more)["models"][0]["lines"][0].clone()
    };
    assert!(adapted(&peer)["outcome"]["not_measured"].as_str().unwrap().contains("no step of an adapter"));
    peer["lora"] = serde_json::json!({ "lora_rank": 8, "threads": 1, "f32_ms": [5000.0] });
    assert_eq!(positive(&adapted(&peer), &["outcome", "measured", "reference", "median"]), 5000.0);
    // A result of another layer is not compared with, and one of other tokens is a mistake.
    peer["layer"] = 2.into();
    assert!(line(&peer)["outcome"]["not_measured"].as_str().unwrap().contains("layer 2"));
    peer["layer"] = 1.into();
    peer["unique_tokens"] = 7.into();
    std::fs::write(&result, peer.to_string()).unwrap();
    let mut command = bidpo();
    command
        .args(["bench", "--layer", "1", "--only", "pytorch", "--model"])
        .arg(&bench.model)
        .arg("--pytorch")
        .arg(&result);
    command.assert().code(1).stderr(contains("7 unique tokens"));
}

#[test]
fn bad_flags_say_what_there_is() {
    let bench = Bench::random("llama", "q8_0");
    let fails = |code: i32, more: &[&str], says: &str| {
        let assert = bidpo().arg("bench").arg("--model").arg(&bench.model).args(more).assert().code(code);
        assert.stderr(contains(says)).stdout("");
    };
    fails(2, &["--only", "speed"], "first-epoch");
    fails(2, &["--rounds", "0"], "--rounds");
    fails(2, &["--threads", "513"], "--threads");
    fails(1, &["--layer", "99", "--json"], "99");
    fails(1, &["--layer", "1", "--json", "--only", "truthfulqa", "--truthfulqa", "no-such-file"], "no-such-file");
    fails(1, &["--layer", "1", "--json", "--only", "pytorch", "--pytorch", "no-such-file"], "no-such-file");
    let second = bench.model.clone();
    fails(1, &["--model", second.to_str().unwrap(), "--write-pairs", "x.json"], "one --model");
    bidpo().arg("bench").assert().code(2).stderr(contains("--model"));
}

/// A model whose weights are larger than any memory: the header of a GGUF file with one tensor of a million by a million
/// floats, and a file as long as it says that takes no room on the disk.
#[test]
#[cfg(target_os = "linux")]
fn weights_larger_than_memory_are_refused_before_they_are_loaded() {
    let bench = Bench::random("llama", "q8_0");
    let mut header = b"GGUF".to_vec();
    let text = |bytes: &mut Vec<u8>, s: &str| {
        bytes.extend((s.len() as u64).to_le_bytes());
        bytes.extend(s.as_bytes());
    };
    header.extend(3u32.to_le_bytes());
    header.extend(1u64.to_le_bytes()); // tensors
    header.extend(1u64.to_le_bytes()); // keys
    text(&mut header, "general.architecture");
    header.extend(8u32.to_le_bytes()); // a text
    text(&mut header, "llama");
    text(&mut header, "blk.0.ffn_up.weight");
    header.extend(2u32.to_le_bytes());
    header.extend([1u64 << 20, 1u64 << 20].map(u64::to_le_bytes).concat());
    header.extend(0u32.to_le_bytes()); // F32
    header.extend(0u64.to_le_bytes());
    let model = bench.path("huge.gguf");
    std::fs::write(&model, header).unwrap();
    let train = |more: &[&str]| {
        let mut command = bidpo();
        command.arg("train").arg("--model").arg(&model).arg("--output").arg(bench.path("v.gguf")).args(more);
        command.assert().code(1)
    };
    let file = std::fs::OpenOptions::new().write(true).open(&model).unwrap();
    if file.set_len(1 << 43).is_err() {
        eprintln!("note: this file system has no files of 8 TB; the header alone is enough for the check");
    }
    train(&[]).stderr(contains("4398.05 GB").and(contains("are free")).and(contains("--allow-swap")));
    // The flag leads past the check, to what llama.cpp says of such a model.
    train(&["--allow-swap"]).stderr(contains("llama.cpp cannot load"));
    assert!(!bench.path("v.gguf").exists());
}
