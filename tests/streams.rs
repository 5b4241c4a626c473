//! Closed and full streams: `| head`, a closed pager, a full disk.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // a failure there is the message

use std::fs::File;
use std::process::{Command, Output, Stdio};

fn run(args: &[&str], stdout: Stdio, stderr: Stdio) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bidpo"));
    command.args(args).stdout(stdout).stderr(stderr).output().unwrap()
}

/// A pipe whose reader has left.
fn closed() -> Stdio {
    std::io::pipe().unwrap().1.into()
}

fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

/// Commands that print one thing, many lines, JSON, a text that ends without a line break, and help.
fn commands(model: &str) -> [Vec<&str>; 9] {
    [
        vec!["synth", "--list"],
        vec!["data", "inspect", "misconceptions"],
        vec!["data", "inspect", "plain-vs-flowery", "--json"],
        vec!["doctor"],
        vec!["--version"],
        vec!["train", "--help"],
        vec!["generate", "-t", "1", "-m", model, "-p", "Hi", "-n", "2"],
        vec!["generate", "-t", "1", "-m", model, "-p", "Hi", "-n", "2", "--json"],
        vec!["template", "-m", model, "-p", "Hi"],
    ]
}

#[test]
fn closed_and_full_streams_end_a_command_with_the_right_code() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("m.gguf");
    let model = model.to_str().unwrap();
    assert!(run(&["synth", "--arch", "llama", "-o", model], Stdio::null(), Stdio::null()).status.success());
    for args in commands(model) {
        let gone = run(&args, closed(), Stdio::piped());
        let said = String::from_utf8_lossy(&gone.stderr).into_owned();
        assert_eq!(gone.status.code(), Some(0), "{args:?}: {said}");
        assert!(!said.contains("panicked") && !said.contains("pipe"), "{args:?}: {said}");

        let disk = run(&args, full(), Stdio::piped());
        let said = String::from_utf8_lossy(&disk.stderr).into_owned();
        assert_eq!(disk.status.code(), Some(1), "{args:?}: {said}");
        assert_eq!(said.matches("cannot write to standard output: No space left").count(), 1, "{args:?}: {said}");

        for stderr in [closed(), full()] {
            let deaf = run(&args, Stdio::piped(), stderr);
            assert_eq!(deaf.status.code(), Some(0), "{args:?}");
            assert!(!deaf.stdout.is_empty(), "{args:?}");
        }
    }
    // A failure stays one, whoever hears of it.
    for stderr in [closed(), full()] {
        assert_eq!(run(&["vector", "show", "missing.gguf"], Stdio::piped(), stderr).status.code(), Some(1));
    }
}

/// llama.cpp's log goes through C++, which no panic may cross.
#[test]
fn a_verbose_log_that_nobody_reads_does_not_abort() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("m.gguf");
    let model = model.to_str().unwrap();
    assert!(run(&["synth", "--arch", "llama", "-o", model], Stdio::null(), Stdio::null()).status.success());
    let args = ["generate", "--verbose", "-t", "1", "-m", model, "-p", "Hi", "-n", "1"];
    assert_eq!(run(&args, Stdio::piped(), closed()).status.code(), Some(0));
}
