//! `bidpo train` in a folder of its own.

use super::SMOL;
use assert_cmd::Command;
use bidpo_core::steer::SteeringVector;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Small enough that a step takes a fraction of a second.
pub const PAIRS: [[&str; 3]; 6] = [
    ["Is the sky blue?", " Yes, it is.", " No, never."],
    ["Do cats bark?", " They meow.", " They bark loud."],
    ["Is ice cold?", " Ice is cold.", " Ice is hot."],
    ["What is two plus two?", " Four.", " Five."],
    ["Is fire hot?", " Fire burns.", " Fire is wet."],
    ["Do fish swim?", " Fish swim.", " Fish walk."],
];

/// All neutral passages take longer than a test's own training.
const NEUTRAL_PASSAGES: (&str, &str) = ("BIDPO_NEUTRAL_PASSAGES", "2");

/// A folder with `prefs.jsonl` in it, and the model.
pub struct Bench {
    dir: tempfile::TempDir,
    pub model: PathBuf,
}

/// Vector and card.
pub type Files = (Vec<u8>, Vec<u8>);

impl Bench {
    pub fn new() -> Option<Self> {
        Self::with(SMOL)
    }

    pub fn with(model: &str) -> Option<Self> {
        let bench = Self { dir: tempfile::tempdir().unwrap(), model: super::model(model)? };
        bench.write("prefs.jsonl", &PAIRS);
        Some(bench)
    }

    /// With a random model of a family.
    pub fn random(family: &str, dtype: &str) -> Self {
        let family = ggml_grad::synth::family(family).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let bench = Self { model: dir.path().join(format!("{}.gguf", family.name())), dir };
        let dtype = ggml_grad::llama::DType::from_name(dtype).unwrap();
        ggml_grad::synth::write(&bench.model, family, &family.shape(), dtype, 1).unwrap();
        bench.write("prefs.jsonl", &PAIRS);
        bench
    }

    pub fn write(&self, name: &str, pairs: &[[&str; 3]]) {
        let line =
            |[p, c, r]: &[&str; 3]| serde_json::json!({ "prompt": p, "chosen": c, "rejected": r }).to_string() + "\n";
        std::fs::write(self.path(name), pairs.iter().map(line).collect::<String>()).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `bidpo train` near the top of the model, so that steps are cheap; a checkpoint after every one.
    pub fn arguments(&self, out: &str, flags: &str) -> Vec<std::ffi::OsString> {
        let mut args: Vec<std::ffi::OsString> = vec!["train".into(), "--model".into(), self.model.clone().into()];
        args.extend(["--output".into(), self.path(out).into()]);
        if !flags.contains("--data") {
            args.extend(["--data".into(), self.path("prefs.jsonl").into()]);
        }
        if !flags.contains("--template") {
            args.extend(["--template".into(), "none".into()]);
        }
        if !flags.contains("--layer") {
            args.extend(["--layer".into(), "26".into()]);
        }
        args.extend(["--threads", "1", "--checkpoint-every", "1"].map(Into::into));
        args.extend(
            flags.split_whitespace().map(|f| f.replace("DIR/", &format!("{}/", self.dir.path().display())).into()),
        );
        args
    }

    pub fn train(&self, out: &str, flags: &str) -> assert_cmd::assert::Assert {
        let assert = Command::new(assert_cmd::cargo::cargo_bin!("bidpo"))
            .args(self.arguments(out, flags))
            .env(NEUTRAL_PASSAGES.0, NEUTRAL_PASSAGES.1)
            .assert();
        let stderr = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(!stderr.contains("panicked"), "{stderr}");
        assert
    }

    pub fn summary(&self, out: &str, flags: &str) -> Value {
        let assert = self.train(out, &format!("{flags} --json")).success();
        serde_json::from_slice(&assert.get_output().stdout).unwrap()
    }

    /// A run that must fail with code 1; what it said.
    pub fn fails(&self, out: &str, flags: &str) -> String {
        String::from_utf8(self.train(out, flags).code(1).get_output().stderr.clone()).unwrap()
    }

    pub fn spawn(&self, out: &str, flags: &str) -> Child {
        std::process::Command::new(assert_cmd::cargo::cargo_bin!("bidpo"))
            .args(self.arguments(out, flags))
            .env(NEUTRAL_PASSAGES.0, NEUTRAL_PASSAGES.1)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    pub fn files(&self, out: &str) -> Files {
        let read = |p: &Path| std::fs::read(p).unwrap_or_else(|e| panic!("{}: {e}", p.display()));
        (read(&self.path(out)), read(&self.path(out).with_extension("md")))
    }

    /// A run to its end, as the reference for one that is interrupted: its vector and card, which are removed again.
    pub fn uninterrupted(&self, out: &str, flags: &str) -> Files {
        self.train(out, flags).success();
        let files = self.files(out);
        for name in [PathBuf::from(out), Path::new(out).with_extension("md")] {
            std::fs::remove_file(self.dir.path().join(name)).unwrap();
        }
        files
    }

    pub fn vector(&self, out: &str) -> SteeringVector {
        SteeringVector::load(&self.path(out)).unwrap()
    }

    pub fn numbers(&self, out: &str) -> Vec<f32> {
        self.vector(out).directions.values().next().unwrap().clone()
    }

    /// Files in the folder beside the data.
    pub fn left(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|n| !n.ends_with("l")).collect();
        names.sort();
        names
    }
}

/// Waits until `done`, at most a minute; false if the child ended before.
pub fn wait(child: &mut Child, done: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
        if done() {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("nothing happened for a minute");
}

/// Steps in a checkpoint.
pub fn steps(path: &Path) -> usize {
    let Ok(bytes) = std::fs::read(path) else { return 0 };
    // Written atomically: whenever there is one, it is whole.
    let (_, meta) = safetensors::SafeTensors::read_metadata(&bytes).expect("a whole checkpoint");
    let state = &meta.metadata().as_ref().unwrap()["state"];
    // A line with the checksum stands first, but in files of 0.2.0.
    let json = state.split_once('\n').map_or(state.as_str(), |(_, json)| json);
    let state: Value = serde_json::from_str(json).unwrap();
    state["step"].as_u64().unwrap() as usize
}
