//! What a command writes: never a file that it reads, no file of a stranger's, no device; and two runs do not share a checkpoint.

use crate::common::adapters::any_adapter;
use crate::tiny;
use bidpo_core::adapter::{AdapterFile, AdapterKind, CONFIG, WEIGHTS};
use bidpo_core::steer::SteeringVector;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { dir: tempfile::tempdir().unwrap() };
        tiny::model(bench.dir.path(), tiny::q8_0());
        let vector = SteeringVector::single(2, vec![0.1; tiny::WIDTH], "llama").unwrap();
        for name in ["a.gguf", "b.gguf", "a.safetensors", "a.npy"] {
            vector.save(&bench.at(name)).unwrap();
        }
        let pair = |i: usize| {
            format!("{{\"prompt\": \"Is {i} a number?\", \"chosen\": \" Yes, {i}.\", \"rejected\": \" No, {i}.\"}}\n")
        };
        std::fs::write(bench.at("pairs.jsonl"), (0..12).map(pair).collect::<String>()).unwrap();
        std::fs::write(bench.at("notes.gguf"), "my notes\n").unwrap();
        bench
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, args: &[&str]) -> Output {
        tiny::bidpo().current_dir(&self.dir).args(args).output().unwrap()
    }

    /// The command fails with these words, and the file is as it was.
    fn refused(&self, args: &[&str], file: &str, words: &str) {
        let before = std::fs::read(self.at(file)).unwrap();
        let output = self.run(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.contains(words), "{args:?}: {said}");
        assert_eq!(std::fs::read(self.at(file)).unwrap(), before, "{args:?}");
    }

    fn works(&self, args: &[&str]) {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

const TRAIN: [&str; 10] =
    ["train", "-m", "tiny.gguf", "--data", "pairs.jsonl", "--steps", "1", "--layer", "2", "--fresh"];

#[test]
fn inputs_are_never_outputs() {
    let bench = Bench::new();
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, bench.at(name)).unwrap();
    link("tiny.gguf", "link.gguf");
    std::fs::hard_link(bench.at("a.gguf"), bench.at("hard.gguf")).unwrap();
    let words = "would replace the input";
    let train = |out| [&TRAIN[..], &["-o", out]].concat();
    bench.refused(&train("tiny.gguf"), "tiny.gguf", words);
    bench.refused(&train("link.gguf"), "tiny.gguf", words);
    bench.refused(&train("./tiny.gguf"), "tiny.gguf", words);
    for out in ["a.gguf", "hard.gguf"] {
        bench.refused(&["vector", "convert", "a.gguf", "-o", out], out, words);
        bench.refused(&["vector", "scale", "a.gguf", "2", "--force", "-o", out], out, words);
        bench.refused(&["vector", "add", "b.gguf", "a.gguf", "-o", out], out, words);
        bench.refused(&["vector", "average", "a.gguf", "b.gguf", "-o", out], out, words);
    }
    let data = "pairs.jsonl";
    bench.refused(&["extract", "-m", "tiny.gguf", "--layers", "1", "--data", data, "-o", data], data, words);
    bench.refused(
        &["extract", "-m", "tiny.gguf", "--layers", "1", "--data", data, "-o", "link.gguf"],
        "tiny.gguf",
        words,
    );
    bench.refused(&["data", "split", data, "--train", "4", "--valid", "4", "-o", data], data, words);
}

#[test]
fn adapters_and_their_makers_replace_no_input() {
    let bench = Bench::new();
    let lora = any_adapter(bench.dir.path(), &bench.at("tiny.gguf"), "lora", &["attn_q", "ffn_down"], 2, 1.0);
    std::os::unix::fs::symlink("lora.gguf", bench.at("link.gguf")).unwrap();
    let words = "would replace the input";
    let merge = ["merge", "-m", "tiny.gguf", "--lora", "lora.gguf", "--force", "-o"];
    let ablate = ["vector", "ablate", "a.gguf", "-m", "tiny.gguf", "--force", "-o"];
    let extract = ["extract", "-m", "tiny.gguf", "--layers", "1", "--data", "pairs.jsonl", "--lora", "lora.gguf"];
    let init = [&TRAIN[..], &["--init", "a.gguf", "--force", "-o"]].concat();
    let train = ["train", "-m", "tiny.gguf", "--data", "pairs.jsonl", "--steps", "1", "--fresh", "--force"];
    let train = [&train[..], &["--kind", "lora", "--layers", "1-2", "-o"]].concat();
    for (command, out, file) in [
        (&merge[..], "tiny.gguf", "tiny.gguf"),
        (&merge, "lora.gguf", "lora.gguf"),
        (&merge, "link.gguf", "lora.gguf"),
        (&ablate, "a.gguf", "a.gguf"),
        (&ablate, "tiny.gguf", "tiny.gguf"),
        (&[&extract[..], &["--force", "-o"]].concat(), "link.gguf", "lora.gguf"),
        (&init, "a.gguf", "a.gguf"),
        (&train, "tiny.gguf", "tiny.gguf"),
    ] {
        bench.refused(&[command, &[out]].concat(), file, words);
    }
    // A stranger's files need --force: a model, an adapter of another tool, a PEFT folder.
    bench.refused(&[&merge[..5], &["-o", "a.gguf"]].concat(), "a.gguf", "--force");
    let mut theirs = AdapterFile::load(&lora).unwrap();
    theirs.provenance.entries.clear();
    theirs.save(&bench.at("theirs.gguf"), AdapterKind::F32).unwrap();
    bench.refused(&[&ablate[..5], &["-o", "theirs.gguf"]].concat(), "theirs.gguf", "--force");
    let folder = ["vector", "convert", "lora.gguf", "-m", "tiny.gguf", "-o", "peft"];
    bench.works(&folder);
    bench.works(&folder);
    std::fs::write(bench.at("peft").join(CONFIG), "{\"peft_type\": \"LORA\", \"revision\": null}").unwrap();
    let weights = format!("peft/{WEIGHTS}");
    bench.refused(&folder, &weights, "--force");
    bench.works(&[&folder[..], &["--force"]].concat());
    bench.refused(&["vector", "convert", "peft", "-m", "tiny.gguf", "-o", "tiny.gguf"], "tiny.gguf", words);
}

#[test]
fn weights_that_no_file_holds_are_not_merged() {
    let bench = Bench::new();
    any_adapter(bench.dir.path(), &bench.at("tiny.gguf"), "lora", &["attn_q"], 2, 1.0);
    let merge = |model: &str, scale: &str| {
        let lora = format!("lora.gguf:{scale}");
        let output = bench.run(&["merge", "-m", model, "--lora", &lora, "-o", "merged.gguf"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{scale}: {said}");
        said
    };
    for scale in ["1e30", "3e38", "-3e38"] {
        let said = merge("tiny.gguf", scale);
        assert!(said.contains(".attn_q.weight cannot be merged") && said.contains("scale too large"), "{said}");
        assert!(!bench.at("merged.gguf").exists());
    }
    // Weights that a file holds, and no prediction: values of 1e20 times an output matrix of 1e20.
    bench.works(&["synth", "--arch", "llama", "--type", "f32", "-o", "f32.gguf"]);
    any_adapter(bench.dir.path(), &bench.at("f32.gguf"), "lora", &["attn_v", "attn_output"], 2, 1.0);
    let said = merge("f32.gguf", "1e22");
    assert!(said.contains("merged.gguf is written") && said.contains("not finite"), "{said}");
}

#[test]
fn links_that_lead_nowhere_are_no_outputs() {
    let bench = Bench::new();
    for (to, name) in
        [("one.gguf", "two.gguf"), ("two.gguf", "one.gguf"), ("missing/x.gguf", "far.gguf"), (".", "dir.gguf")]
    {
        std::os::unix::fs::symlink(to, bench.at(name)).unwrap();
    }
    for out in ["one.gguf", "far.gguf", "dir.gguf", "notes.gguf/x.gguf"] {
        let commands: [&[&str]; 3] =
            [&["vector", "convert", "a.gguf"], &TRAIN, &["synth", "--arch", "llama", "--layers", "1"]];
        for command in commands {
            let output = bench.run(&[command, &["-o", out]].concat());
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{command:?} {out}: {said}");
            assert!(said.contains(out) && !said.contains("panicked"), "{command:?}: {said}");
        }
    }
    assert_eq!(std::fs::read(bench.at("notes.gguf")).unwrap(), b"my notes\n");
}

#[test]
fn strangers_files_need_force_and_repeated_commands_do_not() {
    let bench = Bench::new();
    let commands: [&[&str]; 5] = [
        &["vector", "convert", "a.gguf"],
        &["vector", "add", "a.gguf", "b.gguf"],
        &["synth", "--arch", "llama", "--layers", "1"],
        &["extract", "-m", "tiny.gguf", "--layers", "1", "--data", "pairs.jsonl"],
        &["data", "split", "pairs.jsonl", "--train", "4", "--valid", "4"],
    ];
    for (i, command) in commands.iter().enumerate() {
        let to = |out: &'static str| [command, &["-o", out][..]].concat();
        bench.refused(&to("notes.gguf"), "notes.gguf", "--force");
        if i != 2 {
            bench.refused(&to("tiny.gguf"), "tiny.gguf", if i == 3 { "input" } else { "--force" });
        }
        let fresh: &'static str = format!("out{i}.gguf").leak();
        bench.works(&to(fresh));
        bench.works(&to(fresh));
        std::fs::write(bench.at("theirs.gguf"), "their notes").unwrap();
        bench.works(&[&to("theirs.gguf")[..], &["--force"]].concat());
    }
}

#[test]
fn links_stay_links_and_devices_devices() {
    let bench = Bench::new();
    std::os::unix::fs::symlink("target.gguf", bench.at("link.gguf")).unwrap();
    for _ in 0..2 {
        bench.works(&["vector", "convert", "a.gguf", "-o", "link.gguf"]);
        assert!(bench.at("link.gguf").is_symlink() && bench.at("target.gguf").is_file());
    }
    assert_eq!(std::fs::read(bench.at("target.gguf")).unwrap(), std::fs::read(bench.at("a.gguf")).unwrap());
    let output = bench.run(&["vector", "convert", "a.gguf", "-o", "/dev/null"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("device"), "{output:?}");
    use std::os::unix::fs::FileTypeExt;
    assert!(std::fs::metadata("/dev/null").unwrap().file_type().is_char_device());
}

#[test]
fn the_umask_is_kept() {
    let bench = Bench::new();
    for (mask, mode) in [("077", 0o600), ("002", 0o664), ("022", 0o644)] {
        let out = format!("{mask}.gguf");
        let line = format!("umask {mask} && exec \"$0\" vector convert a.gguf -o {out}");
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &line]).arg(assert_cmd::cargo::cargo_bin!("bidpo")).current_dir(&bench.dir);
        assert!(shell.output().unwrap().status.success());
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(std::fs::metadata(bench.at(&out)).unwrap().permissions().mode() & 0o777, mode, "{mask}");
    }
}

#[test]
fn two_runs_do_not_share_a_checkpoint() {
    let bench = Bench::new();
    let lock = ggml_grad::files::LockFile::take(&bench.at("v.ckpt.lock")).unwrap().unwrap();
    let train = [&TRAIN[..], &["-o", "v.gguf"]].concat();
    let output = bench.run(&train);
    assert!(String::from_utf8_lossy(&output.stderr).contains("is being trained by another bidpo"), "{output:?}");
    drop(lock);
    // The file that a killed run leaves is no lock.
    std::fs::write(bench.at("v.ckpt.lock"), "").unwrap();
    bench.works(&train);
    let left: Vec<_> = std::fs::read_dir(&bench.dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    let gone = |name: &&std::ffi::OsString| Path::new(name).extension().is_some_and(|e| e == "lock" || e == "ckpt");
    assert!(!left.iter().any(|name| gone(&name)), "{left:?}");
}

/// As above with two processes, the second by another name of the file; and the lock of one that is killed is free.
#[test]
fn a_run_in_progress_is_left_alone() {
    let bench = Bench::new();
    std::os::unix::fs::symlink("v.gguf", bench.at("other.gguf")).unwrap();
    let long =
        ["train", "-m", "tiny.gguf", "--data", "pairs.jsonl", "--layer", "2", "--epochs", "100000", "--patience", "0"];
    let mut first = tiny::bidpo();
    first.current_dir(&bench.dir).args(long).args(["--fresh", "-o", "v.gguf"]).stderr(Stdio::null());
    let mut first = first.stdout(Stdio::null()).spawn().unwrap();
    let started = Instant::now();
    while !bench.at("v.ckpt").exists() {
        assert!(started.elapsed() < Duration::from_secs(60) && first.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(20));
    }
    for out in ["other.gguf", "./v.gguf"] {
        let output = bench.run(&[&TRAIN[..], &["-o", out]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains("is being trained by another bidpo"), "{out}: {said}");
    }
    assert!(first.try_wait().unwrap().is_none());
    first.kill().unwrap();
    first.wait().unwrap();
    bench.works(&[&TRAIN[..], &["-o", "v.gguf"]].concat());
}
