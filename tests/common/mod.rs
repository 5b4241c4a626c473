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

/// A program that an environment variable names, or None with the reason printed.
pub fn program(variable: &str) -> Option<PathBuf> {
    let Some(path) = std::env::var_os(variable).map(PathBuf::from) else {
        eprintln!("SKIPPED: {variable} names no program (scripts/llama_server.sh builds it)");
        return None;
    };
    assert!(path.is_file(), "{variable} names {}, which is no file", path.display());
    Some(path)
}

/// Python with the packages of scripts/setup.sh, about to run tests/interop/peers.py; None, with the reason printed, where
/// they are absent.
pub fn python_packages() -> Option<std::process::Command> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let folder = cache
        .or_else(|| std::env::var_os("HOME").map(|d| PathBuf::from(d).join(".cache")))?
        .join("bidpo/python-packages");
    if !folder.join("complete").is_file() {
        let required = std::env::var_os("BIDPO_REQUIRE_MODELS").is_some();
        assert!(!required, "BIDPO_REQUIRE_MODELS is set and there are no Python packages in {}", folder.display());
        eprintln!("SKIPPED: no Python packages in {} (BIDPO_SETUP_TESTS=1 scripts/setup.sh)", folder.display());
        return None;
    }
    let mut command = std::process::Command::new("python3");
    command.env("PYTHONPATH", folder).env("PYTHONDONTWRITEBYTECODE", "1");
    command.arg(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/interop/peers.py"));
    Some(command)
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

/// A vector for layer 15 of [`SMOL`] that means nothing and changes some answers, `v.gguf` in a folder.
pub fn any_vector(dir: &std::path::Path) -> PathBuf {
    let path = dir.join("v.gguf");
    let direction = (0..576).map(|i| (i % 7) as f32 - 3.0).collect();
    bidpo_core::steer::SteeringVector::single(15, direction, "llama").unwrap().save(&path).unwrap();
    path
}
