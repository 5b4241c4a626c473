//! Snapshots of texts that people read: the help of every command, a report. `INSTA_UPDATE=always cargo test --release --test
//! snapshots` writes them again; read the difference before you commit it.
#![allow(clippy::unwrap_used)] // helpers of tests: a failure there is the message

use assert_cmd::Command;
use bidpo_core::data::SplitBy;
use bidpo_core::engine::{Add, Agreement, BatchPlan, CacheType, PairLogp};
use bidpo_core::eval::price::{Estimate, Price};
use bidpo_core::stats::Interval;
use bidpo_core::steer::ModelIdentity;
use bidpo_core::train::{Condition, HeldOut, LayerStats, Point, RunSummary, Stop, TrainConfig, Trained, VectorCard};
use serde_json::json;
use std::sync::Arc;

/// The command without the environment variables whose values help pages show.
fn bidpo() -> Command {
    let mut command = Command::cargo_bin("bidpo").unwrap();
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("BIDPO_")) {
        command.env_remove(name);
    }
    command.env("COLUMNS", "100");
    command
}

fn help(path: &[String]) -> String {
    let output = bidpo().args(path).arg("--help").assert().success();
    String::from_utf8(output.get_output().stdout.clone()).unwrap()
}

/// Names under "Commands:" of a help page.
fn subcommands(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").map(str::to_owned).collect()
}

#[test]
fn help_of_every_command() {
    let mut open = vec![Vec::new()];
    let mut pages = 0;
    while let Some(path) = open.pop() {
        let page = help(&path);
        for name in subcommands(&page) {
            open.push([&path[..], &[name]].concat());
        }
        let name = [&["bidpo".to_owned()], &path[..]].concat().join("-");
        insta::assert_snapshot!(format!("help-{name}"), page);
        pages += 1;
    }
    assert!(pages > 25, "only {pages} pages: the list of commands was not understood");
}

/// Results of twelve questions under three conditions, as `eval` writes them.
fn results() -> String {
    let condition = |name: &str| json!({"name": name, "kind": name});
    let manifest = json!({"manifest": {
        "bidpo_results": 1, "bidpo": "0.0.0", "llama_cpp": "0", "benchmark": "truthfulqa", "protocol": "mc1",
        "model": {"file": "m.gguf", "sha256": "x", "name": "m", "architecture": "llama", "quantization": "Q4_1"},
        "data": [], "prompt": {"preset": "qa"}, "selection": null, "items": 12, "seed": 0, "threads": 1,
        "conditions": [condition("unsteered"), {"name": "steered", "kind": "steered", "vectors": [], "layers": "15"},
            {"name": "random vector", "kind": "random", "seed": 0}],
        "shard": "1/1",
    }});
    let mut lines = vec![manifest];
    for item in 0..12 {
        for (name, right) in
            [("unsteered", item % 4 == 0), ("steered", item % 2 == 0), ("random vector", item % 4 == 1)]
        {
            lines.push(json!({
                "item": item, "index": item, "condition": name,
                "question": format!("Is <{item}> & its neighbour even?"), "category": format!("c{}", item % 3),
                "answers": [{"text": "Yes, of course.", "mc1": true}, {"text": "No, it is a number of another kind.", "mc1": false}],
                "views": [{"logprobs": if right { [-1.0, -2.0] } else { [-2.0, -1.0] }, "n_tokens": [4, 9]}],
            }));
        }
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[test]
fn report_in_markdown_and_html() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("results.jsonl"), results()).unwrap();
    let run = bidpo().current_dir(&folder).args(["report", "results.jsonl"]).assert().success();
    bidpo().current_dir(&folder).args(["report", "results.jsonl", "--html", "report.html"]).assert().success();
    insta::assert_snapshot!("report-markdown", String::from_utf8(run.get_output().stdout.clone()).unwrap());
    insta::assert_snapshot!("report-html", std::fs::read_to_string(folder.path().join("report.html")).unwrap());
}

fn trained(layers: &[usize]) -> Trained {
    let stats = |&layer: &usize| LayerStats { layer, median_norm: 100.0, mean_norm: 250.0, lr: 0.5 };
    let point = |step: usize, valid_loss: f64| Point {
        step,
        train_loss: 0.65 - 0.001 * step as f64,
        valid_loss: Some(valid_loss),
        valid_accuracy: Some(0.625),
        retained_kl: None,
        retain_weight: None,
        norm: 0.5 * step as f64,
        percent: 0.5 * step as f64,
    };
    Trained {
        kind: Default::default(),
        scope: Default::default(),
        intervention: Arc::new(Add { n_layers: layers.len(), n_embd: 4 }),
        vector: [3.0, 4.0, 0.0, 0.0].repeat(layers.len()),
        summary: RunSummary {
            layers: layers.iter().map(stats).collect(),
            n_embd: 4,
            adapter: None,
            total_steps: 16,
            batch_plan: BatchPlan::UNBATCHED,
            agreement: Agreement::default(),
            cache_bytes: 0,
            captured_as: CacheType::F32,
            train_tokens: 900,
            alone: false,
        },
        history: vec![point(8, 0.66), point(16, 0.64)],
        steps: 16,
        best_step: 16,
        untrained_loss: 2f64.ln(),
        retained: None,
        stop: Stop::Finished,
    }
}

/// A card with everything that was measured, and one of a run over several layers that shows nothing.
#[test]
fn cards() {
    let model = ModelIdentity {
        name: "Example 1M".into(),
        architecture: "llama".into(),
        quantization: "Q4_0".into(),
        sha256: "0123456789abcdef".repeat(4),
    };
    let condition = |name: &str, shift: f64| {
        let pair = |i: u32| PairLogp { chosen: -30.0 + shift + (1.7 * f64::from(i)).sin(), rejected: -30.0 };
        Condition::new(name, &(0..16).map(pair).collect::<Vec<_>>())
    };
    let heldout = HeldOut {
        conditions: vec![
            condition("unsteered", -0.4),
            condition("vector, scale +1", 0.9),
            condition("vector, scale -1", -1.2),
            condition("system prompt, no vector", 0.1),
        ],
        random: (0..10).map(|i| condition("random vector", -0.7 + 0.05 * f64::from(i))).collect(),
        seeds: Vec::new(),
        groups: (0..16).map(|i| i / 2).collect(),
        alone: false,
        adapter: false,
    };
    let estimate = |value: f64, lo: f64, hi: f64| Estimate { value, interval: Some(Interval { lo, hi }) };
    let price = Price {
        passages: 24,
        not_finite: 0,
        tokens: 2900,
        kl_per_token: estimate(0.0612, 0.0541, 0.0683),
        perplexity_unsteered: 20.0,
        perplexity_steered: 20.4,
        perplexity_change: estimate(0.02, 0.004, 0.036),
        changed_top_tokens: estimate(0.142, 0.128, 0.156),
    };
    let (one, config) = (trained(&[15]), TrainConfig::new("15".parse().unwrap()));
    let card = VectorCard {
        config: &config,
        trained: &one,
        model: &model,
        template: ("gguf", "fedcba9876543210"),
        data: ("pairs.jsonl", "00112233445566778899"),
        split: [64, 16, 16],
        split_by: SplitBy::Groups,
        vector: &one.vector,
        heldout: Some(&heldout),
        baseline_prompt: Some("Answer well."),
        prompts_tried: 2,
        price: Some(&price),
        retained: None,
        beside: &[],
        range: None,
        seeds: None,
        threads: 2,
        cpu: "avx2",
    };
    insta::assert_snapshot!("card", card.card("example.gguf").unwrap());
    let mut several = trained(&[10, 15]);
    several.history.iter_mut().for_each(|p| p.valid_loss = p.valid_loss.map(|x| x + 0.1));
    let config = TrainConfig::new("10,15".parse().unwrap());
    let card = VectorCard {
        config: &config,
        trained: &several,
        split: [80, 16, 0],
        vector: &several.vector,
        heldout: None,
        baseline_prompt: None,
        threads: 1,
        ..card
    };
    insta::assert_snapshot!("card-several-layers", card.card("example.gguf").unwrap());
}
