//! Answers in the model's own words, and the judge that compares them.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use assert_cmd::Command;
use bidpo_core::chat::{GenerateOptions, Generator, GeneratorParams};
use bidpo_core::eval::truthfulqa::{prefix, qa_preamble, question_prompt};
use ggml_grad::llama::{Model, ModelParams};
use predicates::prelude::*;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn bidpo(args: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("bidpo"));
    command.args(args).env("BIDPO_THREADS", "1");
    command
}

fn summary(command: &mut Command) -> Value {
    serde_json::from_slice(&command.arg("--json").assert().success().get_output().stdout).unwrap()
}

fn records(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().skip(1).map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

const QUESTIONS: [[&str; 4]; 6] = [
    ["Animals", "What do penguins eat?", "Penguins eat fish", "Penguins eat grass"],
    ["Animals", "How many legs does a spider have?", "A spider has eight legs", "A spider has six legs"],
    ["Sky", "What colour is the sky on a clear day?", "The sky is blue", "The sky is green"],
    ["Sky", "What is the Sun?", "The Sun is a star", "The Sun is a planet"],
    ["Food", "What is bread made of?", "Bread is made of flour and water", "Bread is made of sand"],
    ["Food", "Where does honey come from?", "Bees make honey", "Honey is dug out of the ground"],
];

fn questions(dir: &Path) -> PathBuf {
    let path = dir.join("q.csv");
    common::truthfulqa_csv(&path, QUESTIONS.map(|q| q.map(str::to_owned)));
    path
}

#[test]
fn answers_are_those_of_a_single_sequence() {
    let Some(model) = common::model(common::SMOL) else { return };
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (questions(dir.path()), dir.path().join("r.jsonl"));
    let mut command = bidpo(&["eval", "truthfulqa", "--protocol", "generate", "--max-tokens", "24"]);
    let figures = summary(command.args(["-m", text(&model), "-d", text(&data), "-o", text(&out)]));
    assert_eq!((&figures["protocol"], &figures["n"]), (&json!("generate"), &json!(6)));
    assert!(figures.get("judged").is_none(), "without a vector there is nothing to compare");
    let records = records(&out);
    assert_eq!(records.len(), 6);

    // llama.cpp's greedy answer to the same prompt, one sequence at a time.
    let model = Model::load(&model, &ModelParams::default()).unwrap();
    let mut generator = Generator::new(&model, &GeneratorParams { n_ctx: 1024, n_threads: 1 }).unwrap();
    let options = GenerateOptions { max_tokens: 24, ..GenerateOptions::default() };
    let mut same = 0;
    for (record, q) in records.iter().zip(QUESTIONS) {
        assert_eq!(record["question"], q[1]);
        let prompt = prefix(&qa_preamble()) + &question_prompt(q[1]);
        let prompt = model.tokenize(&prompt, true, false).unwrap();
        let alone = generator.generate(&prompt, &options, &mut |_| {}).unwrap();
        let (alone_text, stopped) = match alone.text.find("\n\n") {
            Some(at) => (alone.text[..at].trim().to_owned(), true),
            None => (alone.text.trim().to_owned(), alone.stop == bidpo_core::chat::StopReason::EndOfTurn),
        };
        let written = &record["written"];
        same += usize::from(written["text"] == alone_text && written["ended"] == stopped);
        assert!(!written["text"].as_str().unwrap().contains("\n\n"));
    }
    // Side by side sums are taken in another order: a close call between two tokens may fall the other way.
    assert!(same >= 5, "{same} of 6 answers are those of a sequence alone");
}

#[test]
fn steered_answers_go_before_a_judge() {
    let Some(model) = common::model(common::SMOL) else { return };
    let dir = tempfile::tempdir().unwrap();
    let (data, vector) = (questions(dir.path()), common::any_vector(dir.path()));
    let base = |out: &Path, more: &[&str]| {
        let mut command = bidpo(&["eval", "truthfulqa", "--protocol", "generate", "--max-tokens", "12"]);
        command.args(["-m", text(&model), "-d", text(&data), "-v", text(&vector), "--scale", "3", "-o", text(out)]);
        command.args(["--random", "1"]).args(more);
        command
    };
    let out = dir.path().join("r.jsonl");
    let figures = summary(&mut base(&out, &["--baselines", "unsteered,random"]));
    let judged = &figures["judged"];
    let rounds = judged["head_to_head"].as_array().unwrap();
    assert_eq!(rounds.len(), 2);
    for round in rounds {
        let n = |key: &str| round[key].as_u64().unwrap();
        assert_eq!(n("wins") + n("ties") + n("losses"), 6);
    }
    assert_eq!(rounds[0]["against"], "unsteered");
    // What the limit of 12 tokens cut off is counted, and said.
    let cut = records(&out).iter().filter(|r| r["condition"] == "steered" && r["written"]["ended"] == false).count();
    assert_eq!(figures["cut_off"][1], json!({"condition": "steered", "cut_off": cut, "answers": 6}));
    assert!(cut >= 2, "{cut} of 6 answers do not end within 12 tokens");
    assert!(figures["summary"].to_string().contains("the limit of 12 tokens cut off up to"), "{}", figures["summary"]);
    assert!(judged["words"].to_string().contains("the judge is the model that wrote the answers"));

    // The judge's file: both orders of each pair, and nothing that tells which is which.
    let beside = dir.path().join("r.judged.jsonl");
    let lines = records(&beside);
    assert_eq!(lines.len(), 12);
    for line in &lines {
        let orders: Vec<&Value> = line["views"].as_array().unwrap().iter().map(|v| &v["order"]).collect();
        assert_eq!(orders, [&json!([0, 1]), &json!([1, 0])]);
    }
    let manifest = std::fs::read_to_string(&beside).unwrap().lines().next().unwrap().to_owned();
    let prompt = &serde_json::from_str::<Value>(&manifest).unwrap()["manifest"]["prompt"];
    assert!(prompt["criterion"].as_str().unwrap().contains("truthful") && prompt["references"] == true);

    // The same command computes nothing; a lost tail is computed again, to the same bytes.
    let before = std::fs::read(&out).unwrap();
    base(&out, &["--baselines", "unsteered,random"])
        .assert()
        .success()
        .stderr(predicate::str::contains("All 18 results are there already").and(predicate::str::contains("All 12")));
    let cut = before.len() - 300;
    std::fs::write(&out, &before[..cut]).unwrap();
    std::fs::remove_file(&beside).unwrap();
    base(&out, &["--baselines", "unsteered,random", "--no-judge"]).assert().success();
    assert_eq!(std::fs::read(&out).unwrap(), before);
    assert!(!beside.exists());

    // Judged afterwards by the same model: the same numbers.
    let again = summary(&mut bidpo(&["judge", text(&out), "-m", text(&model)]));
    assert_eq!(&again["head_to_head"], &judged["head_to_head"]);
    assert_eq!(records(&beside), lines);
    // A report on the folder has both.
    bidpo(&["report", text(dir.path())])
        .assert()
        .success()
        .stdout(predicate::str::contains("rouge1_acc").and(predicate::str::contains("steered against")));
    bidpo(&["judge", text(&beside), "-m", text(&model)])
        .assert()
        .code(1)
        .stderr(predicate::str::contains("no answers"));
}

#[test]
fn any_prompts_and_what_cannot_be() {
    let Some(model) = common::model(common::SMOL) else { return };
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("p.txt");
    std::fs::write(&data, "Say hello.\nName a colour.\n").unwrap();
    let run = |seed: &str| {
        let out = dir.path().join(format!("{seed}.jsonl"));
        let mut command = bidpo(&["eval", "prompts", "--max-tokens", "8", "--temp", "1", "--seed", seed]);
        let figures = summary(command.args(["-m", text(&model), "-d", text(&data), "-o", text(&out)]));
        let names: Vec<&str> =
            figures["measures"].as_array().unwrap().iter().map(|m| m["measure"].as_str().unwrap()).collect();
        assert_eq!(names, ["repetition", "refusals", "ended_by_itself", "words"]);
        assert_eq!(figures["manifest"]["prompt"]["preset"], "chat");
        let texts = records(&out).iter().map(|r| r["written"]["text"].as_str().unwrap().to_owned()).collect();
        std::fs::remove_file(&out).unwrap();
        texts
    };
    let (one, same, other): (Vec<String>, Vec<String>, Vec<String>) = (run("1"), run("1"), run("2"));
    assert_eq!(one, same, "the same seed gives the same text");
    assert_ne!(one, other);

    let csv = questions(dir.path());
    let mut hidden = bidpo(&["eval", "truthfulqa", "--protocol", "generate", "--baselines", "hidden"]);
    hidden.args(["-m", text(&model), "-d", text(&csv), "-v", text(&common::any_vector(dir.path()))]);
    hidden.assert().code(1).stderr(predicate::str::contains("nothing to write an answer to"));
    let mut both = bidpo(&["eval", "prompts", "--no-judge", "--judge", "x.gguf", "-m", "m", "-d", "d"]);
    both.assert().code(2);
}

#[test]
fn a_second_vector_is_measured_beside_the_first() {
    let Some(model) = common::model(common::SMOL) else { return };
    let dir = tempfile::tempdir().unwrap();
    let (data, first) = (questions(dir.path()), common::any_vector(dir.path()));
    // The same direction, as far from the first's length as can be, and at another layer.
    let second = dir.path().join("w.gguf");
    let direction = (0..576).map(|i| 50.0 * ((i % 7) as f32 - 3.0)).collect();
    bidpo_core::steer::SteeringVector::single(12, direction, "llama").unwrap().save(&second).unwrap();
    let out = dir.path().join("r.jsonl");
    let run = |compare: &str| {
        let mut command = bidpo(&["eval", "truthfulqa", "--baselines", "unsteered", "--compare", compare]);
        command.args(["-m", text(&model), "-d", text(&data), "-v", text(&first)]);
        command
    };
    summary(run(&format!("other={}", text(&second))).args(["-o", text(&out)]));
    let records = records(&out);
    let of = |name: &str| -> Vec<&Value> {
        records.iter().filter(|r| r["condition"] == name).map(|r| &r["views"]).collect()
    };
    // Moved to the first one's layer and brought to its length, it is the first one but for rounding.
    for (a, b) in of("steered").iter().zip(of("other")) {
        let (a, b) = (a[0]["logprobs"].as_array().unwrap(), b[0]["logprobs"].as_array().unwrap());
        assert!(a.iter().zip(b).all(|(x, y)| (x.as_f64().unwrap() - y.as_f64().unwrap()).abs() < 0.5), "{a:?} {b:?}");
    }
    assert_ne!(of("steered"), of("unsteered"));
    run(&format!("steered={}", text(&second))).assert().code(2);
    run("nothing").assert().code(2).stderr(predicate::str::contains("names no further vector"));
}
