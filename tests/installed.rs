//! What comes with an installed program: completions, manual pages, the self-test, the long version.
#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use assert_cmd::Command;
use predicates::prelude::PredicateBooleanExt as _;
use predicates::str::contains;
use std::path::Path;
use std::process::Stdio;

fn bidpo(args: &[&str]) -> assert_cmd::assert::Assert {
    Command::cargo_bin("bidpo").unwrap().env("BIDPO_THREADS", "1").args(args).assert()
}

fn output(args: &[&str]) -> String {
    String::from_utf8(bidpo(args).success().get_output().stdout.clone()).unwrap()
}

/// What bash offers for the last of `words` after reading the file `completions`.
fn offered(completions: &Path, words: &[&str]) -> String {
    let script = format!(
        "source '{}'\nCOMP_WORDS=({})\nCOMP_CWORD={}\n_bidpo bidpo '{}' '{}'\necho \"${{COMPREPLY[@]}}\"",
        completions.display(),
        words.join(" "),
        words.len() - 1,
        words[words.len() - 1],
        words[words.len() - 2]
    );
    let output = std::process::Command::new("bash").args(["--norc", "-c", &script]).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[cfg(unix)]
#[test]
fn bash_completes_commands_and_options() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, output(&["completions", "bash"])).unwrap();
    let script = file.path();
    assert_eq!(offered(script, &["bidpo", "calib"]), "calibrate");
    assert_eq!(offered(script, &["bidpo", "train", "--obj"]), "--objective");
    assert_eq!(offered(script, &["bidpo", "vector", "conv"]), "convert");
    for shell in ["zsh", "fish", "powershell", "elvish"] {
        assert!(output(&["completions", shell]).contains("calibrate"), "{shell}");
    }
    bidpo(&["completions", "ksh"]).code(2).stderr(contains("ksh").and(contains("bash")));
}

/// groff says nothing against the pages, and they hold what the help says.
#[test]
fn manual_pages() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man/man1");
    bidpo(&["man", "-o", pages.to_str().unwrap()]).success().stdout("");
    let names: Vec<_> =
        std::fs::read_dir(&pages).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    for name in ["bidpo.1", "bidpo-train.1", "bidpo-vector-show.1", "bidpo-eval-truthfulqa.1"] {
        assert!(names.iter().any(|n| n == name), "no {name} in {names:?}");
    }
    assert!(!names.iter().any(|n| n.contains("probe") || n.contains("first-token")), "{names:?}");
    let train = std::fs::read_to_string(pages.join("bidpo-train.1")).unwrap();
    assert!(train.contains("preference pairs") && train.contains("objective"));
    let groff = std::process::Command::new("groff").arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if groff.is_err() {
        common::skipped("groff is not installed: manual pages were not set");
        return;
    }
    for name in names {
        let set = std::process::Command::new("groff")
            .args(["-man", "-Tutf8", "-ww"])
            .arg(pages.join(&name))
            .output()
            .unwrap();
        assert!(set.status.success() && set.stderr.is_empty(), "{name}: {}", String::from_utf8_lossy(&set.stderr));
    }
}

#[test]
fn the_self_test_checks_three_models() {
    let report: serde_json::Value = serde_json::from_str(&output(&["self-test", "--json"])).unwrap();
    assert_eq!(report["passed"], true);
    let models = report["models"].as_array().unwrap();
    assert_eq!(models.len(), 3);
    for model in models {
        assert_eq!(model["logits"]["max_difference"], 0.0, "{model}");
        assert!(model["gradient"]["relative_error"].as_f64().unwrap() < 2e-3, "{model}");
    }
}

#[test]
fn the_long_version_names_build_and_cpu() {
    assert_eq!(output(&["--version"]).trim(), format!("bidpo {}", env!("CARGO_PKG_VERSION")));
    let long = output(&["--version", "--verbose"]);
    for label in ["bidpo ", "llama.cpp ", "backends ", "this CPU ", "kernels "] {
        assert!(long.lines().any(|line| line.starts_with(label)), "{long}");
    }
}
