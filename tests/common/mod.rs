//! Shared by the integration tests: models, reference files, data, and the record of skipped tests.
#![allow(dead_code)]

pub mod adapters;
pub mod bench;
pub mod generator;
pub mod in_folder;
pub mod random_model;
pub mod raw_gguf;
pub mod steered;

use std::io::Write;
use std::path::{Path, PathBuf};

/// The llama-architecture test model.
pub const SMOL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
/// The gemma-architecture test model.
pub const GEMMA: &str = "gemma-3-270m-q4_k_m.gguf";

/// A test model by file name: `$BIDPO_MODELS`, else `$XDG_CACHE_HOME/bidpo/models`, else `~/.cache/bidpo/models`.
///
/// `None` where it is absent, and the test is recorded as skipped; a panic instead if `BIDPO_REQUIRE_MODELS` is set.
pub fn model(name: &str) -> Option<PathBuf> {
    let dir = std::env::var_os("BIDPO_MODELS")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("XDG_CACHE_HOME").map(|d| PathBuf::from(d).join("bidpo/models")))
        .or_else(|| std::env::var_os("HOME").map(|d| PathBuf::from(d).join(".cache/bidpo/models")));
    let path = dir.unwrap_or_default().join(name);
    if path.is_file() {
        return Some(path);
    }
    missing(&format!("the model {} is missing (make models-all)", path.display()));
    None
}

/// Records a skipped test for want of something that `make test` fetches or installs: with `BIDPO_REQUIRE_MODELS` set, a panic.
pub fn missing(what: &str) {
    assert!(std::env::var_os("BIDPO_REQUIRE_MODELS").is_none(), "BIDPO_REQUIRE_MODELS is set, and {what}");
    skipped(what);
}

/// Records that the test which runs now is skipped, and why: on stderr, and as a line of `target/tmp/skipped-tests.txt`, which
/// `make test` prints at its end.
pub fn skipped(reason: &str) {
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    let line = format!("{}::{test}: {reason}", env!("CARGO_CRATE_NAME"));
    eprintln!("SKIPPED {line}");
    let list = Path::new(env!("CARGO_TARGET_TMPDIR")).join("skipped-tests.txt");
    // One write of a line at most a few hundred bytes long: tests that run at the same time do not mix theirs.
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(list).unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// A file of `tests/gold`: reference values that other programs computed.
///
/// # Panics
///
/// The file is missing: it belongs to the repository.
pub fn gold(rel: &str) -> PathBuf {
    in_repository("tests/gold", rel)
}

/// A file or folder of `tests/data`: small data sets for tests, in the forms of well-known ones.
///
/// # Panics
///
/// The file is missing: it belongs to the repository.
pub fn data(rel: &str) -> PathBuf {
    in_repository("tests/data", rel)
}

fn in_repository(folder: &str, rel: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(rel);
    assert!(path.exists(), "{} is missing: it belongs to the repository", path.display());
    path
}

/// Third-party data in `../shared/data`, beside the repository; `None` where it is absent, and the test is recorded as skipped.
pub fn third_party(rel: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data").join(rel);
    if path.exists() {
        return Some(path);
    }
    skipped(&format!("../shared/data/{rel} is missing"));
    None
}

/// A program that an environment variable names; `None` where it names none, and the test is recorded as skipped.
pub fn program(variable: &str) -> Option<PathBuf> {
    let Some(path) = std::env::var_os(variable).map(PathBuf::from) else {
        skipped(&format!("{variable} names no program (scripts/llama_server.sh builds it)"));
        return None;
    };
    assert!(path.is_file(), "{variable} names {}, which is no file", path.display());
    Some(path)
}

/// The folder of the Python packages of scripts/setup.sh; `None` where they are absent, and the test is recorded as skipped.
pub fn python_folder() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let folder = cache
        .or_else(|| std::env::var_os("HOME").map(|d| PathBuf::from(d).join(".cache")))?
        .join("bidpo/python-packages");
    if !folder.join("complete").is_file() {
        missing(&format!("Python packages are missing in {} (BIDPO_SETUP_TESTS=1 scripts/setup.sh)", folder.display()));
        return None;
    }
    Some(folder)
}

/// Python with the packages of scripts/setup.sh, about to run tests/interop/peers.py.
pub fn python_packages() -> Option<std::process::Command> {
    let folder = python_folder()?;
    let mut command = std::process::Command::new("python3");
    command.env("PYTHONPATH", folder).env("PYTHONDONTWRITEBYTECODE", "1");
    command.arg(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/interop/peers.py"));
    Some(command)
}

/// The Python that has OpenAI's client, from scripts/setup.sh.
pub fn python_with_openai() -> Option<PathBuf> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/openai-client/bin/python");
    if python.exists() {
        return Some(python);
    }
    missing(&format!("{} is missing (BIDPO_SETUP_TESTS=1 scripts/setup.sh)", python.display()));
    None
}

/// The name of the browser's program.
pub fn chromium() -> Option<&'static str> {
    let works = |name: &&str| {
        std::process::Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success())
    };
    let found = ["chromium", "chromium-browser", "google-chrome"].into_iter().find(works);
    if found.is_none() {
        missing("chromium is missing (BIDPO_SETUP_TESTS=1 scripts/setup.sh)");
    }
    found
}

/// The text of axe-core, which finds what keeps people from using a page, from scripts/setup.sh.
pub fn axe() -> Option<String> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::var_os("HOME").map(|d| PathBuf::from(d).join(".cache")))?;
    let path = cache.join("bidpo/axe/axe_playwright_python/axe.min.js");
    let text = std::fs::read_to_string(&path).ok();
    if text.is_none() {
        missing(&format!("{} is missing (BIDPO_SETUP_TESTS=1 scripts/setup.sh)", path.display()));
    }
    text
}

/// Writes a CSV in the form of TruthfulQA's: of each question its category, itself, the right and the wrong answer.
pub fn truthfulqa_csv(path: &Path, questions: impl IntoIterator<Item = [String; 4]>) {
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
pub fn any_vector(dir: &Path) -> PathBuf {
    let path = dir.join("v.gguf");
    let direction = (0..576).map(|i| (i % 7) as f32 - 3.0).collect();
    bidpo_core::steer::SteeringVector::single(15, direction, "llama").unwrap().save(&path).unwrap();
    path
}
