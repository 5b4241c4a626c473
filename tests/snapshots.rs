//! Snapshots of texts that people read: the help of every command, a report. `INSTA_UPDATE=always cargo test --release --test
//! snapshots` writes them again; read the difference before you commit it.
#![allow(clippy::unwrap_used)] // helpers of tests: a failure there is the message

use assert_cmd::Command;
use serde_json::json;

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
