//! `bidpo` in a folder, with short prices and one thread.

use assert_cmd::Command;
use std::path::Path;
use std::process::Output;

/// Runs a command, arguments parted by spaces.
pub fn bidpo(folder: &Path, args: &str) -> Output {
    let mut command = Command::cargo_bin("bidpo").unwrap();
    command
        .current_dir(folder)
        .env("BIDPO_THREADS", "1")
        .env("BIDPO_NEUTRAL_PASSAGES", "2")
        .args(args.split_whitespace());
    command.output().unwrap()
}

/// What a successful command prints on stdout. Arguments are parted by spaces.
pub fn ok(folder: &Path, args: &str) -> String {
    let out = bidpo(folder, args);
    assert!(out.status.success(), "{args}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// What a command that fails prints on stderr.
pub fn failed(folder: &Path, args: &str) -> String {
    let out = bidpo(folder, args);
    assert!(!out.status.success(), "{args} should fail");
    String::from_utf8_lossy(&out.stderr).into_owned()
}
