//! Each published form of preference data through the program: `data convert` on a file of ours in that form (tests/cases/data).

#![allow(clippy::unwrap_used)] // a failure there is the message

use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output};

fn convert(file: &str, out: &Path, more: &[&str]) -> Output {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/data").join(file);
    let mut command = Command::new(env!("CARGO_BIN_EXE_bidpo"));
    command.args(["data", "convert"]).arg(data).arg("-o").arg(out).arg("--json").args(more);
    command.output().unwrap()
}

/// A file of tests/cases/data.
struct Case {
    file: &'static str,
    form: &'static str,
    /// The prompt is a list of messages.
    chat: bool,
    unused: &'static [&'static str],
}

const fn case(file: &'static str, form: &'static str, chat: bool, unused: &'static [&'static str]) -> Case {
    Case { file, form, chat, unused }
}

const GENERAL: &str = "prompt and two answers";
const IMPLICIT: &str = "TRL, implicit prompt";
const DIALOGUES: &str = "dialogues as text (HH-RLHF)";

const SWIFT: &str = "messages with the chosen answer, and a rejected one (ms-swift)";

const CASES: &[Case] = &[
    case("plain.jsonl", GENERAL, false, &[]),
    case("trl-prompt.jsonl", GENERAL, true, &[]),
    case("messages.jsonl", GENERAL, true, &[]),
    case("parts.jsonl", GENERAL, true, &["chosen[].reasoning_content"]),
    case("repeated.jsonl", GENERAL, false, &[]),
    case("names.csv", GENERAL, false, &[]),
    case("crlf.csv", GENERAL, false, &[]),
    case("pandas.json", GENERAL, false, &[]),
    case("trl.jsonl", IMPLICIT, true, &[]),
    case("ultrafeedback.jsonl", "UltraFeedback, binarized", true, &["score_chosen"]),
    case("hh.jsonl", DIALOGUES, true, &[]),
    case("hh-crlf.jsonl", DIALOGUES, true, &[]),
    case("orca.jsonl", "Orca DPO", false, &[]),
    case("distilabel.jsonl", "distilabel", false, &["rating"]),
    case("openai.jsonl", "OpenAI preference", true, &[]),
    case("sharegpt.json", "ShareGPT (LLaMA-Factory)", true, &[]),
    case("argilla.jsonl", "instruction (LLaMA-Factory, Argilla)", false, &["chosen_rating"]),
    case("outputs.json", "instruction and two outputs, the better one first (LLaMA-Factory)", false, &[]),
    case("bipo.csv", "BiPO", false, &[]),
    case("behaviour.json", "Anthropic's evaluations, CAA", false, &[]),
    case("shp.jsonl", "SHP", false, &[]),
    case("saferlhf.jsonl", "PKU-SafeRLHF", false, &[]),
    case("helpsteer.jsonl", "HelpSteer", false, &[]),
    case("arena.jsonl", "two conversations and a winner (Chatbot Arena)", true, &["model_a", "model_b"]),
    case("winner.jsonl", "two answers and a winner", false, &[]),
    case("webgpt.jsonl", "WebGPT comparisons", false, &[]),
    case("summaries.jsonl", "two summaries and a choice", false, &[]),
    case("ranked.jsonl", "ranked answers (Nectar, UltraFeedback)", false, &[]),
    case("ratings.jsonl", "answers and their scores (distilabel)", false, &[]),
    case("swift.jsonl", SWIFT, true, &[]),
    case("swift-messages.jsonl", SWIFT, true, &[]),
    case("swift-query.jsonl", "prompt, answer and a rejected answer (ms-swift)", false, &[]),
    case("chatml.jsonl", DIALOGUES, true, &[]),
    case("nested.jsonl", GENERAL, false, &["data.source"]),
    case("flags.jsonl", "two answers and flags of the winner (Chatbot Arena)", false, &[]),
    case("flags.csv", "two answers and flags of the winner (Chatbot Arena)", true, &["model_a", "model_b"]),
    case("preference.json", "two answers and a winner", false, &["generator_1"]),
    case("label.jsonl", "two answers and a winner", false, &[]),
    case("scores.jsonl", "two scored answers", false, &[]),
    case("ranks.jsonl", "answers and their ranks", false, &[]),
    case("index.jsonl", "answers and the number of the best", false, &[]),
    case("gemini.jsonl", "ranked answers (Nectar, UltraFeedback)", true, &[]),
    case("kto.jsonl", "answers with labels (KTO)", false, &[]),
    case("kto-chat.json", "dialogues with labels (KTO)", true, &[]),
];

/// The same in other containers: JSON Lines under another name, byte order mark and commas, JSON's layouts, UTF-16, compressed, Parquet.
const CONTAINERS: &[Case] = &[
    case("lines.json", GENERAL, true, &[]),
    case("bom.jsonl", GENERAL, false, &[]),
    case("commas.json", GENERAL, false, &[]),
    case("viewer.json", GENERAL, false, &[]),
    case("split.json", GENERAL, false, &[]),
    case("lists.json", GENERAL, false, &[]),
    case("utf16.csv", GENERAL, false, &[]),
    case("blank.ndjson", GENERAL, false, &[]),
    case("plain.jsonl.gz", GENERAL, false, &[]),
    case("plain.jsonl.zst", GENERAL, false, &[]),
    #[cfg(feature = "parquet")]
    case("trl.parquet", IMPLICIT, true, &["score"]),
];

#[test]
fn every_form_gives_its_pair() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out.jsonl");
    for Case { file, form, chat, unused } in CASES.iter().chain(CONTAINERS) {
        // Each file has a name of its own: what is written over is another run's.
        let out = out.with_file_name(format!("{file}.out.jsonl"));
        let run = convert(file, &out, &[]);
        let stderr = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{file}: {stderr}");
        let said: Value = serde_json::from_slice(&run.stdout).unwrap();
        assert_eq!((&said["reading"]["form"], &said["reading"]["unused"]), (&json!(form), &json!(unused)), "{file}");
        let written = std::fs::read_to_string(&out).unwrap();
        let pair: Value = serde_json::from_str(written.lines().next().unwrap()).unwrap();
        let text = "Name a fruit.";
        let prompt = if *chat { json!([{ "role": "user", "content": text }]) } else { json!(text) };
        assert_eq!(pair, json!({ "id": "1", "prompt": prompt, "chosen": "A pear.", "rejected": "A brick." }), "{file}");
        assert!(stderr.contains(form), "{file}: {stderr}");
        assert!(unused.iter().all(|column| stderr.contains(column)), "{file}: {stderr}");
    }
}

/// The table of docs/compatibility.md is made of the files above: `UPDATE_DOCS=1` writes it.
#[test]
fn the_documented_samples_are_the_tested_ones() {
    const BEGIN: &str = "<!-- made by tests/data_forms.rs -->\n";
    const END: &str = "<!-- end -->\n";
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut table = "| form | sample |\n| --- | --- |\n".to_owned();
    for Case { file, form, .. } in CASES {
        let text = std::fs::read_to_string(root.join("tests/cases/data").join(file)).unwrap();
        let lines: Vec<String> = text.lines().map(|line| format!("`{line}`")).collect();
        writeln!(table, "| {form} | {} |", lines.join("<br>")).unwrap();
    }
    let page = root.join("docs/compatibility.md");
    let text = std::fs::read_to_string(&page).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (now, after) = rest.split_once(END).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&page, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
    } else {
        assert_eq!(now, table, "docs/compatibility.md: run this test with UPDATE_DOCS=1");
    }
}

#[test]
fn numbers_are_answers_and_the_nearest_form_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let read = |name: &str, text: &str| {
        let file = dir.path().join(name);
        std::fs::write(&file, text).unwrap();
        let out = dir.path().join(format!("{name}.out.jsonl"));
        let run = convert(file.to_str().unwrap(), &out, &[]);
        (std::fs::read_to_string(&out).unwrap_or_default(), String::from_utf8_lossy(&run.stderr).into_owned())
    };
    let (pair, stderr) = read("sum.jsonl", "{\"prompt\": \"2 + 2?\", \"chosen\": 4, \"rejected\": 5}\n");
    let pair: Value = serde_json::from_str(&pair).unwrap_or_else(|e| panic!("{e}: {stderr}"));
    assert_eq!((&pair["chosen"], &pair["rejected"]), (&json!("4"), &json!("5")));
    // A prompt of one word may begin an answer of its own right.
    let (pair, _) =
        read("word.jsonl", "{\"prompt\": \"Yes\", \"chosen\": \"Yes it is.\", \"rejected\": \"Yes no.\"}\n");
    assert!(pair.contains("\"Yes it is.\""), "{pair}");
    // Columns that no form has are not taken for the nearest form's.
    let (_, stderr) = read("other.csv", "prompt,left,right\nName a fruit.,A pear.,A brick.\n");
    assert!(stderr.contains("--chosen-key") && stderr.contains("\"left\", \"right\""), "{stderr}");
    let (_, stderr) = read("half.csv", "prompt,chosen\nName a fruit.,A pear.\n");
    assert!(stderr.contains("the key \"rejected\" is missing"), "{stderr}");
}

/// The split is computed from TRL's rule by hand; the texts that share nothing are refused.
#[test]
fn texts_without_a_prompt_are_split_where_they_part() {
    let dir = tempfile::tempdir().unwrap();
    let (file, out) = (dir.path().join("text.jsonl"), dir.path().join("out.jsonl"));
    let row = |chosen: &str, rejected: &str| json!({ "chosen": chosen, "rejected": rejected }).to_string();
    std::fs::write(&file, row("A fruit is a pear.", "A fruit is a brick.")).unwrap();
    let run = convert(file.to_str().unwrap(), &out, &[]);
    let stderr = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(run.status.success() && stderr.contains("note: text.jsonl: 1 pair without a prompt"), "{stderr}");
    let said: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(
        (&said["reading"]["form"], &said["reading"]["implicit"]),
        (&json!("TRL, implicit prompt as text"), &json!(1))
    );
    let pair: Value = serde_json::from_str(&std::fs::read_to_string(&out).unwrap()).unwrap();
    assert_eq!(pair, json!({ "id": "1", "prompt": "A fruit is a", "chosen": " pear.", "rejected": " brick." }));
    std::fs::write(&file, row("Pears are.", "Bricks are.")).unwrap();
    let run = convert(file.to_str().unwrap(), &out, &[]);
    let stderr = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(
        run.status.code() == Some(1) && stderr.contains("text.jsonl:1") && stderr.contains("--prompt-key"),
        "{stderr}"
    );
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
