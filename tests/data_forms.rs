//! Each published form of preference data through the program: `data convert` on a file of ours in that form (tests/cases/data).

#![allow(clippy::unwrap_used)] // a failure there is the message

use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Output};

fn convert(file: &str, out: &Path, more: &[&str]) -> Output {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/data").join(file);
    let mut command = Command::new(env!("CARGO_BIN_EXE_bidpo"));
    command.args(["data", "convert"]).arg(data).arg("-o").arg(out).arg("--json").args(more);
    command.output().unwrap()
}

#[test]
fn every_form_gives_its_pair() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.jsonl");
    let text = json!("Name a fruit.");
    let chat = json!([{ "role": "user", "content": "Name a fruit." }]);
    for (file, form, prompt, unused) in [
        ("trl.jsonl", "TRL, implicit prompt", &chat, json!([])),
        #[cfg(feature = "parquet")]
        ("trl.parquet", "TRL, implicit prompt", &chat, json!(["score"])),
        ("ultrafeedback.jsonl", "UltraFeedback, binarized", &chat, json!(["score_chosen"])),
        ("hh.jsonl", "dialogues as text (HH-RLHF)", &chat, json!([])),
        ("orca.jsonl", "Orca DPO", &text, json!([])),
        ("openai.jsonl", "OpenAI preference", &chat, json!([])),
        ("sharegpt.json", "ShareGPT (LLaMA-Factory)", &chat, json!([])),
        ("argilla.jsonl", "instruction (LLaMA-Factory, Argilla)", &text, json!(["chosen_rating"])),
        ("behaviour.json", "Anthropic's evaluations, CAA", &text, json!([])),
        ("shp.jsonl", "SHP", &text, json!([])),
        ("saferlhf.jsonl", "PKU-SafeRLHF", &text, json!([])),
        ("ranked.jsonl", "ranked answers (Nectar, UltraFeedback)", &text, json!([])),
        ("kto.jsonl", "answers with labels (KTO)", &text, json!([])),
        ("lines.json", "prompt and two answers", &chat, json!([])),
        ("crlf.csv", "prompt and two answers", &text, json!([])),
    ] {
        let run = convert(file, &out, &[]);
        let stderr = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{file}: {stderr}");
        let said: Value = serde_json::from_slice(&run.stdout).unwrap();
        assert_eq!((&said["reading"]["form"], &said["reading"]["unused"]), (&json!(form), &unused), "{file}");
        let written = std::fs::read_to_string(&out).unwrap();
        let pair: Value = serde_json::from_str(written.lines().next().unwrap()).unwrap();
        assert_eq!(pair, json!({ "id": "1", "prompt": prompt, "chosen": "A pear.", "rejected": "A brick." }), "{file}");
        assert!(stderr.contains(form), "{file}: {stderr}");
    }
}

#[test]
fn a_bad_row_is_named_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.jsonl");
    let run = convert("crlf.csv", &out, &[]);
    let said: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!((&said["pairs"], &said["reading"]["skipped"]["count"]), (&json!(1), &json!(1)));
    let stderr = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(stderr.contains("1 of 2 rows") && stderr.contains("crlf.csv:3: \"chosen\" is empty"), "{stderr}");
    let strict = convert("crlf.csv", &out, &["--strict"]);
    let stderr = String::from_utf8_lossy(&strict.stderr).into_owned();
    assert!(strict.status.code() == Some(1) && stderr.contains("crlf.csv:3: \"chosen\" is empty"), "{stderr}");
}
