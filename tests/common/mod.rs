//! What the integration tests share: where models and reference files lie.
#![allow(dead_code)]

pub mod bench;

use std::path::PathBuf;

/// The llama-architecture test model.
pub const SMOL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
/// The gemma-architecture test model.
pub const GEMMA: &str = "gemma-3-270m-q4_k_m.gguf";

/// A test model by file name: `$BIDPO_MODELS`, else `$XDG_CACHE_HOME/bidpo/models`, else `~/.cache/bidpo/models`.
///
/// None, with the reason printed, where it is absent; a panic instead if `BIDPO_REQUIRE_MODELS` is set.
pub fn model(name: &str) -> Option<PathBuf> {
    let dir = std::env::var_os("BIDPO_MODELS")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("XDG_CACHE_HOME").map(|d| PathBuf::from(d).join("bidpo/models")))
        .or_else(|| std::env::var_os("HOME").map(|d| PathBuf::from(d).join(".cache/bidpo/models")));
    let path = dir.unwrap_or_default().join(name);
    if path.is_file() {
        return Some(path);
    }
    assert!(
        std::env::var_os("BIDPO_REQUIRE_MODELS").is_none(),
        "BIDPO_REQUIRE_MODELS is set and {} is missing",
        path.display()
    );
    eprintln!("SKIPPED: {} is missing", path.display());
    None
}

/// A reference file of `../shared/`, or None with the reason printed.
pub fn shared(rel: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared").join(rel);
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: {} is missing", path.display());
    None
}

/// Writes a CSV in the form of TruthfulQA's: of each question its category, itself, the right and the wrong answer.
pub fn truthfulqa_csv(path: &std::path::Path, questions: impl IntoIterator<Item = [String; 4]>) {
    let mut out = csv::Writer::from_path(path).unwrap();
    let header =
        ["Category", "Question", "Best Answer", "Best Incorrect Answer", "Correct Answers", "Incorrect Answers"];
    out.write_record(header).unwrap();
    for [category, question, right, wrong] in questions {
        out.write_record([&category, &question, &right, &wrong, &right, &wrong]).unwrap();
    }
    out.flush().unwrap();
}
