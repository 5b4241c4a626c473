//! Benchmarks beside TruthfulQA: MMLU, any multiple choice, running text; splits and the baselines that need one.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use assert_cmd::Command;
use ggml_grad::llama::{Context, ContextParams, Model, ModelParams};
use predicates::prelude::*;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn bidpo(args: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("bidpo"));
    command.args(args).env("BIDPO_THREADS", "1");
    command
}

fn output(command: &mut Command) -> String {
    String::from_utf8(command.assert().success().get_output().stdout.clone()).unwrap()
}

fn summary(command: &mut Command) -> Value {
    serde_json::from_str(&output(command.arg("--json"))).unwrap()
}

fn records(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().skip(1).map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn value(summary: &Value, measure: &str, condition: &str) -> f64 {
    let find = |list: &'_ Value, key: &str, name: &str| -> Value {
        list.as_array().unwrap().iter().find(|v| v[key] == name).unwrap().clone()
    };
    find(&find(&summary["measures"], "measure", measure)["conditions"], "condition", condition)["value"]
        .as_f64()
        .unwrap()
}

#[test]
fn mmlu_with_and_without_examples() {
    let Some(model) = common::model(common::SMOL) else { return };
    let data = common::data("mmlu");
    let dir = tempfile::tempdir().unwrap();
    let run = |shots: &str| {
        let out = dir.path().join(format!("{shots}.jsonl"));
        let mut command = bidpo(&["eval", "mmlu", "--subjects", "gardening,navigation", "--per-subject", "2"]);
        command.args(["--few-shot", shots, "-m", text(&model), "-d", text(&data), "-o", text(&out)]);
        (summary(&mut command), records(&out))
    };
    let ((zero, a), (five, b)) = (run("0"), run("5"));
    for (summary, records) in [(&zero, &a), (&five, &b)] {
        assert_eq!((records.len(), &summary["n"]), (4, &json!(4)));
        let categories: Vec<&str> = records.iter().map(|r| r["category"].as_str().unwrap()).collect();
        assert_eq!(categories, ["gardening", "gardening", "navigation", "navigation"]);
        assert!(records.iter().all(|r| r["views"][0]["logprobs"].as_array().unwrap().len() == 4));
    }
    assert_ne!(a[0]["views"], b[0]["views"], "the examples change nothing");
    // After five examples a letter is what comes next.
    let mass: f64 = b[0]["views"][0]["logprobs"].as_array().unwrap().iter().map(|l| l.as_f64().unwrap().exp()).sum();
    assert!(mass > 0.7, "{mass}");
    let mut unknown = bidpo(&["eval", "mmlu", "--subjects", "alchemy", "-m", text(&model), "-d", text(&data)]);
    unknown.assert().code(1).stderr(predicate::str::contains("no subject is called \"alchemy\""));
}

#[test]
fn any_multiple_choice() {
    let Some(model) = common::model(common::SMOL) else { return };
    let data = common::data("two_answers.csv");
    let base = |more: &[&str]| {
        let mut command = bidpo(&["eval", "choice", "--choices", "answer,false_answer", "--separator", ";"]);
        command.args(["-m", text(&model), "-d", text(&data)]).args(more);
        command
    };
    let plain = summary(&mut base(&["--limit", "4"]));
    assert_eq!((&plain["n"], &plain["protocol"]), (&json!(4), &json!("choice")));
    assert_eq!(plain["manifest"]["prompt"]["form"], "Q: {question}\nA:");
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("r.jsonl");
    let shown = summary(&mut base(&["--show-options", "--limit", "12", "-o", text(&out)]));
    assert_eq!(shown["protocol"], "letter");
    // The column "answer" is always right; its letter is not always the same.
    let right_first = |r: &Value| {
        let order = r["views"][0]["order"].as_array().unwrap().clone();
        assert_eq!(order.len(), 2);
        r["answers"][order[0].as_u64().unwrap() as usize]["label"] == true
    };
    let a = records(&out).iter().filter(|r| right_first(r)).count();
    assert!((2..=10).contains(&a), "A is right in {a} of 12 items");
    base(&["--form", "x"]).assert().code(1).stderr(predicate::str::contains("{question}"));
    base(&["--question", "no_such"])
        .assert()
        .code(1)
        .stderr(predicate::str::contains("two_answers.csv:2: \"no_such\" is missing"));
}

/// Perplexity and divergence against a computation of their own, token by token.
#[test]
fn perplexity_and_divergence() {
    let Some(path) = common::model(common::SMOL) else { return };
    let dir = tempfile::tempdir().unwrap();
    let vector = common::any_vector(dir.path());
    let sample = dir.path().join("t.txt");
    let words = "The cat sat on the mat and looked at the moon. It was a quiet night, and nobody came to the door. ";
    std::fs::write(&sample, words.repeat(3)).unwrap();
    let out = dir.path().join("r.jsonl");
    let mut command =
        bidpo(&["eval", "text", "--window", "24", "--limit", "2", "--scale", "3", "--random", "1", "-m", text(&path)]);
    command.args(["-d", text(&sample), "-v", text(&vector), "-o", text(&out)]);
    command.args([
        "--compare",
        &format!("same={}:3", text(&vector)),
        "--compare",
        &format!("half={}:1.5", text(&vector)),
    ]);
    let summary = summary(&mut command);
    let records = records(&out);
    assert_eq!(records.len(), 6 * 2);
    // A second vector is measured: the same one at the same scale gives the same bits, at half the scale it moves less.
    let kl = |condition: &str| value(&summary, "kl_per_token", condition);
    assert_eq!(kl("same"), kl("steered"));
    assert!(kl("half") > 0.0 && kl("half") < kl("steered"), "{} {}", kl("half"), kl("steered"));
    assert_eq!(
        (value(&summary, "kl_per_token", "unsteered"), value(&summary, "same_top_token", "unsteered")),
        (0.0, 1.0)
    );
    assert!(value(&summary, "kl_per_token", "steered") > 1e-3);

    // The same with plain decodes.
    let model = Model::load(&path, &ModelParams::default()).unwrap();
    let mut tokens = model.tokenize(&words.repeat(3), false, false).unwrap();
    tokens.truncate(48);
    let softmax = |row: &[f32]| -> Vec<f64> {
        let top = row.iter().copied().fold(f32::MIN, f32::max);
        let e: Vec<f64> = row.iter().map(|&x| f64::from(x - top).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.into_iter().map(|x| x / sum).collect()
    };
    let run = |window: &[i32], scale: f32| -> Vec<Vec<f64>> {
        let mut ctx = Context::new(&model, &ContextParams::exact(window.len(), 1, 1)).unwrap();
        let mut data = vec![0.0; (model.n_layer() - 1) * 576];
        data[14 * 576..15 * 576].iter_mut().enumerate().for_each(|(i, x)| *x = scale * ((i % 7) as f32 - 3.0));
        ctx.set_control_vector(&data, 15, 15).unwrap();
        let mut batch = ggml_grad::llama::Batch::new();
        window.iter().enumerate().for_each(|(p, &t)| {
            batch.add(t, p, &[0], true);
        });
        ctx.decode(&batch).unwrap();
        (0..window.len()).map(|r| softmax(ctx.logits(r).unwrap())).collect()
    };
    let bos: Vec<i32> = model.bos().filter(|_| model.adds_bos()).into_iter().collect();
    let (mut nll, mut kl, mut n) = ([0.0, 0.0], 0.0, 0);
    for window in tokens.chunks(24) {
        let window = [&bos[..], window].concat();
        let (p, q) = (run(&window, 0.0), run(&window, 3.0));
        for i in 0..window.len() - 1 {
            let next = window[i + 1] as usize;
            nll[0] -= p[i][next].ln();
            nll[1] -= q[i][next].ln();
            kl += p[i].iter().zip(&q[i]).map(|(a, b)| if *a > 0.0 { a * (a / b).ln() } else { 0.0 }).sum::<f64>();
            n += 1;
        }
    }
    let near = |got: f64, want: f64| assert!((got - want).abs() < 0.05 * want.abs() + 1e-3, "{got} for {want}");
    near(value(&summary, "perplexity", "unsteered").ln(), nll[0] / f64::from(n));
    near(value(&summary, "perplexity", "steered").ln(), nll[1] / f64::from(n));
    near(value(&summary, "kl_per_token", "steered"), kl / f64::from(n));
    let mut caa = bidpo(&["eval", "text", "--baselines", "caa", "-m", "no.gguf", "-d", text(&sample)]);
    caa.assert().code(1).stderr(predicate::str::contains("no training items"));
    command.args(["--baselines", "system"]).assert().code(1).stderr(predicate::str::contains("has no prompt"));
}

/// A CSV of `n` questions in the form of TruthfulQA's.
fn questions(dir: &Path, n: usize) -> PathBuf {
    let path = dir.join("q.csv");
    let row = |i: usize| {
        [
            format!("c{}", i % 3),
            format!("Does topic{i} make thing{i}?"),
            format!("No, {i} does not"),
            format!("Yes, {i} does"),
        ]
    };
    common::truthfulqa_csv(&path, (0..n).map(row));
    path
}

#[test]
fn a_split_gives_the_baselines_their_training_items() {
    let Some(model) = common::model(common::SMOL) else { return };
    let dir = tempfile::tempdir().unwrap();
    let data = questions(dir.path(), 14);
    let split = dir.path().join("split.json");
    let said =
        output(bidpo(&["data", "split", text(&data), "--train", "6", "--valid", "4"]).args(["-o", text(&split)]));
    assert!(said.contains("6 to train on, 4 to choose by, 4 to report on"), "{said}");
    let parts: Value = serde_json::from_str(&std::fs::read_to_string(&split).unwrap()).unwrap();

    let pairs = dir.path().join("pairs.jsonl");
    output(bidpo(&["data", "pairs", text(&data), "--limit", "3"]).args(["--split", text(&split), "-o", text(&pairs)]));
    let set = bidpo_core::data::PreferenceSet::load(&pairs).unwrap();
    let ids: Vec<String> = parts["train"].as_array().unwrap()[..3].iter().map(ToString::to_string).collect();
    assert_eq!(set.pairs.iter().map(|p| p.id.clone()).collect::<Vec<_>>(), ids);

    let out = dir.path().join("r.jsonl");
    let vector = common::any_vector(dir.path());
    let mut command =
        bidpo(&["eval", "truthfulqa", "-p", "pair", "--prompt", "none", "--baselines", "unsteered,caa,shots"]);
    command.args(["--shots", "4", "-m", text(&model), "-d", text(&data), "-v", text(&vector)]);
    command.args(["--split", text(&split), "-o", text(&out)]);
    let summary = summary(&mut command);
    let conditions = summary["manifest"]["conditions"].as_array().unwrap().clone();
    let names: Vec<&str> = conditions.iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["unsteered", "steered", "mean difference (CAA)", "4 solved examples"]);
    assert_eq!(conditions[3]["shot_items"].as_array().unwrap()[..], parts["train"].as_array().unwrap()[..4]);
    assert_eq!(conditions[2]["training_items"], 6);
    let mut test: Vec<u64> = records(&out).iter().map(|r| r["index"].as_u64().unwrap()).collect();
    test.dedup();
    test.truncate(4);
    assert_eq!(json!(test), parts["test"], "the test part is what is measured");
    // Examples of this very form make the answers much more likely.
    let sum = |condition: &str| -> f64 {
        let of = records(&out).into_iter().filter(|r| r["condition"] == condition).collect::<Vec<_>>();
        of.iter().map(|r| r["views"][0]["logprobs"][0].as_f64().unwrap()).sum()
    };
    assert!(sum("4 solved examples") > sum("unsteered") + 4.0);

    // Without --shots: all training items, and the manifest says why they are not more. Of several system prompts the one
    // that does best on the validation items is measured, and nothing else of them.
    let out = dir.path().join("chosen.jsonl");
    let mut command = bidpo(&["eval", "truthfulqa", "-p", "pair", "--prompt", "none", "--baselines", "shots,system"]);
    command.args([
        "-m",
        text(&model),
        "-d",
        text(&data),
        "-v",
        text(&vector),
        "--split",
        text(&split),
        "-o",
        text(&out),
    ]);
    let said = command.assert().success().stderr(predicate::str::contains("6 solved examples of 6 training items"));
    assert!(
        String::from_utf8_lossy(&said.get_output().stderr).contains("The best of 6 system prompts on 4 valid items")
    );
    let manifest = |path: &Path| -> Value {
        let text = std::fs::read_to_string(path).unwrap();
        serde_json::from_str::<Value>(text.lines().next().unwrap()).unwrap()["manifest"].take()
    };
    let conditions = manifest(&out)["conditions"].take();
    let names: Vec<&str> = conditions.as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["steered", "system prompt", "6 solved examples"]);
    assert_eq!(conditions[2]["limited_by"], "training-items");
    assert_eq!(conditions[1]["chosen_on"], json!({"part": "valid", "items": 4, "settings": 6}));
    let by = dir.path().join("chosen.system-prompts.jsonl");
    let (tried, of_valid) = (manifest(&by)["conditions"].take(), self::records(&by));
    let mut items: Vec<u64> = of_valid.iter().map(|r| r["index"].as_u64().unwrap()).collect();
    items.truncate(4);
    assert_eq!(json!(items), parts["valid"], "never the test part");
    let right = |c: &Value| {
        let of = of_valid.iter().filter(|r| r["condition"] == c["name"]);
        of.filter(|r| r["views"][0]["logprobs"][0].as_f64() > r["views"][0]["logprobs"][1].as_f64()).count()
    };
    let tried = tried.as_array().unwrap();
    let most = tried.iter().map(right).max().unwrap();
    assert_eq!(tried.len(), 6);
    assert_eq!(conditions[1]["system"], tried.iter().find(|c| right(c) == most).unwrap()["system"]);

    let other = questions(
        &{
            let d = dir.path().join("o");
            std::fs::create_dir(&d).unwrap();
            d
        },
        15,
    );
    let mut wrong = bidpo(&["eval", "truthfulqa", "-m", text(&model), "-d", text(&other), "--split", text(&split)]);
    wrong.assert().code(1).stderr(predicate::str::contains("SHA-256"));
}

#[test]
fn data_is_looked_into() {
    let dir = tempfile::tempdir().unwrap();
    let data = questions(dir.path(), 30);
    let found: Value = serde_json::from_str(&output(&mut bidpo(&["data", "inspect", text(&data), "--json"]))).unwrap();
    assert_eq!((&found["pairs"], &found["contradictions"]), (&json!(30), &json!([])));
    // "No" is always true in these: a classifier that sees no question finds that out.
    assert_eq!(found["surface_accuracy"], 1.0);
    let said = output(bidpo(&["data", "inspect", "misconceptions"]).args(["--against", text(&data), "--samples", "2"]));
    assert!(said.contains("192 pairs") && said.contains("0 of 192 prompts have a near-duplicate"), "{said}");
    assert_eq!(said.matches("    chosen    ").count(), 2);
    bidpo(&["data", "inspect", "no.jsonl"]).assert().code(1).stderr(predicate::str::contains("no.jsonl"));
}
