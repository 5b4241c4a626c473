//! Bad input, command by command: what is said names the file, the value and the limit; the exit code is 1 (2 for wrong
//! usage); nothing is written; nothing panics.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use assert_cmd::Command;
use bidpo_core::steer::SteeringVector;
use ggml_grad::llama::DType;
use ggml_grad::synth;
use std::path::PathBuf;

const SMOL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// A folder of files to go wrong with.
struct Bench {
    dir: tempfile::TempDir,
    model: PathBuf,
}

impl Bench {
    fn new() -> Option<Self> {
        let model = common::model(SMOL)?;
        let bench = Self { dir: tempfile::tempdir().unwrap(), model };
        let whole = std::fs::read(&bench.model).unwrap();
        let pair = |p: &str, c: &str, r: &str| {
            serde_json::json!({ "prompt": p, "chosen": c, "rejected": r }).to_string() + "\n"
        };
        let good = pair("Is the sky blue?", " Yes, it is.", " No, never.");
        let vector = |name: &str, layer: usize, n: usize| {
            SteeringVector::single(layer, vec![0.5; n], "llama").unwrap().save(&bench.path(name)).unwrap();
            std::fs::read(bench.path(name)).unwrap()
        };
        let steering = vector("v.gguf", 20, 576);
        vector("wide.gguf", 20, 640);
        vector("deep.gguf", 33, 576);
        // Cut in the header, and in the weights.
        for (name, bytes) in [
            ("header.gguf", &whole[..1_000_000]),
            ("weights.gguf", &whole[..whole.len() / 2]),
            ("text.gguf", b"hello, I am no model\n".as_slice()),
            ("empty.gguf", b""),
            ("vcut.gguf", &steering[..steering.len() - 100]),
            ("pairs.jsonl", good.as_bytes()),
            ("json.jsonl", format!("{good}\n{{\"prompt\": \"a\",\n").as_bytes()),
            ("keys.jsonl", b"{\"prompt\": \"a\", \"chosen\": \"b\"}\n"),
            ("empty-chosen.jsonl", format!("{good}{}", pair("a", " ", "b")).as_bytes()),
            ("empty-rejected.jsonl", format!("{good}{}", pair("a", "b", "")).as_bytes()),
            ("same.jsonl", format!("{good}{}", pair("a", "b", " b")).as_bytes()),
            ("no-prompt.jsonl", format!("{good}{}", pair("", "b", "c")).as_bytes()),
            ("long.jsonl", format!("{good}{}", pair("a", &" word".repeat(9000), "c")).as_bytes()),
            ("none.jsonl", b"\n"),
            ("latin1.jsonl", b"{\"prompt\": \"caf\xe9\"}\n"),
            ("pairs.txt", good.as_bytes()),
            ("word.txt", b"hello\n"),
            ("long.txt", "word ".repeat(9000).as_bytes()),
            ("blank.txt", b"\n \n"),
            ("object.json", b"{}"),
            ("cut.json", b"[{\"question\": "),
            ("bad.jinja", b"{% for m in messages %}"),
        ] {
            std::fs::write(bench.path(name), bytes).unwrap();
        }
        std::fs::create_dir(bench.path("folder.gguf")).unwrap();
        Some(bench)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn files(&self) -> Vec<(PathBuf, u64)> {
        let entry = |e: std::io::Result<std::fs::DirEntry>| {
            let e = e.unwrap();
            (e.path(), e.metadata().unwrap().len())
        };
        let mut files: Vec<_> = std::fs::read_dir(self.dir.path()).unwrap().map(entry).collect();
        files.sort();
        files
    }

    /// Runs `bidpo` with these words, M standing for the model and DIR/ for the folder: it must fail with that code, say
    /// all of `parts` on stderr and nothing on stdout, and write nothing.
    fn fails(&self, code: i32, line: &str, parts: &[&str]) {
        let before = self.files();
        let word = |w: &str| {
            if w == "M" {
                self.model.display().to_string()
            } else {
                w.replace("DIR/", &format!("{}/", self.dir.path().display()))
            }
        };
        let assert = Command::new(assert_cmd::cargo::cargo_bin!("bidpo"))
            .args(line.split_whitespace().map(word))
            .env("BIDPO_THREADS", "1")
            .assert();
        let output = assert.get_output();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "bidpo {line}\n{said}");
        for part in parts {
            assert!(said.contains(part), "bidpo {line}\nexpected {part:?} in:\n{said}");
        }
        assert!(!said.contains("panicked"), "bidpo {line}\n{said}");
        assert!(output.stdout.is_empty(), "bidpo {line}\n{}", String::from_utf8_lossy(&output.stdout));
        // The system's reason once, not once for each layer of the program.
        assert!(said.matches("os error").count() <= 1, "bidpo {line}\n{said}");
        assert_eq!(self.files(), before, "bidpo {line} wrote something");
    }
}

/// Every command that loads a model says the same of a file that is none.
#[test]
fn models_that_cannot_be_loaded() {
    let Some(bench) = Bench::new() else { return };
    let commands = [
        "train --data DIR/pairs.jsonl -o DIR/out.gguf",
        "generate --prompt hi",
        "chat",
        "extract --data DIR/word.txt --layers 1 -o DIR/out.safetensors",
        "check --no-f32",
    ];
    for command in commands {
        let on = |model: &str, parts: &[&str]| bench.fails(1, &format!("{command} --model DIR/{model}"), parts);
        on("missing.gguf", &["cannot read", "missing.gguf", "No such file"]);
        on("text.gguf", &["text.gguf is not a GGUF file", "starts with \"hell\""]);
        on("empty.gguf", &["empty.gguf is not a GGUF file"]);
        on("folder.gguf", &["folder.gguf: it is a directory"]);
        on("header.gguf", &["cannot load", "header.gguf", "cut short or damaged"]);
        on("weights.gguf", &["cannot load", "weights.gguf", "cut short or damaged"]);
        on("v.gguf", &["cannot load", "v.gguf", "control vector", "--vector"]);
        bench.fails(2, command, &["required", "--model"]);
    }
}

#[test]
fn wrong_usage_is_code_2() {
    let Some(bench) = Bench::new() else { return };
    bench.fails(2, "", &["Usage: bidpo"]);
    bench.fails(2, "teach", &["unrecognized subcommand 'teach'"]);
    for (flags, part) in [
        ("--template wrong", "no template is named wrong; use auto, none, chatml"),
        ("--layer x", "--layer"),
        ("--lr 0", "auto, a positive number, or a percentage"),
        ("--lr nan", "auto, a positive number, or a percentage"),
        ("--beta 0", "must be a positive number"),
        ("--warmup 1.5", "at least 0 and below 1"),
        ("--val 1", "at least 0 and below 1"),
        ("--renorm x", "a positive percentage such as 5%"),
        ("--clip 0", "must be a positive number"),
        ("--steps 0", "a whole number of at least 1"),
        ("--batch 0", "a whole number of at least 1"),
        ("--objective ppo", "bidpo, dpo, ipo, simpo, sft or reps"),
        ("--schedule stairs", "cosine, linear or constant"),
        ("--steps 3 --epochs 2", "cannot be used with"),
        ("--resume --fresh", "cannot be used with"),
        ("--threads 513", "1..=512"),
    ] {
        bench.fails(2, &format!("train --model M --data DIR/pairs.jsonl -o DIR/out.gguf {flags}"), &[part]);
    }
    for (flags, part) in [
        ("", "--prompt"),
        ("--prompt a --prompt-file b", "cannot be used with"),
        ("--prompt a --scale 2", "--vector"),
        ("--prompt a --vector DIR/v.gguf --scale much", "a number (1.5, -2) or a percentage"),
        ("--prompt a --vector DIR/v.gguf --layers 5-2", "the first layer lies above the last"),
        ("--prompt a --max-tokens 0", "--max-tokens"),
    ] {
        bench.fails(2, &format!("generate --model M {flags}"), &[part]);
    }
    bench.fails(2, "chat --model M --template wrong", &["no template is named wrong"]);
    bench.fails(
        2,
        "extract --model M --data DIR/word.txt --layers x -o DIR/o.safetensors",
        &["\"x\" is not a list of layers"],
    );
    bench.fails(
        2,
        "extract --model M --data DIR/word.txt --layers 1 --positions middle -o DIR/o",
        &["last, all, mean"],
    );
    bench.fails(
        2,
        "eval truthfulqa --model M --data DIR/object.json --protocol mc9",
        &["mc, mc1, mc2, mc3, binary, pair, letter"],
    );
    bench.fails(2, "vector show", &["<FILE>"]);
    bench.fails(2, "check --model M --layer x", &["--layer"]);
}

#[test]
fn preference_pairs_that_cannot_be_used() {
    let Some(bench) = Bench::new() else { return };
    for (file, parts) in [
        ("json.jsonl", ["json.jsonl:3", "not JSON"]),
        ("keys.jsonl", ["keys.jsonl:1", "the key \"rejected\" is missing"]),
        ("empty-chosen.jsonl", ["empty-chosen.jsonl:2", "\"chosen\" is empty"]),
        ("empty-rejected.jsonl", ["empty-rejected.jsonl:2", "\"rejected\" is empty"]),
        ("same.jsonl", ["same.jsonl:2", "chosen and rejected are the same"]),
        ("none.jsonl", ["none.jsonl", "no preference pairs"]),
        ("latin1.jsonl", ["latin1.jsonl:1", "UTF-8"]),
        ("word.txt", ["word.txt", "unknown kind of file"]),
        ("missing.jsonl", ["missing.jsonl", "No such file"]),
        // These two need the model's tokenizer; SmolLM2 has no BOS and a context of 8192.
        ("no-prompt.jsonl", ["no-prompt.jsonl:2", "the prompt is empty"]),
        ("long.jsonl", ["long.jsonl:2", "the model's context is 8192"]),
    ] {
        bench.fails(1, &format!("train --model M --template none --strict --data DIR/{file} -o DIR/out.gguf"), &parts);
    }
    bench.fails(1, "train --model M --data honesty -o DIR/out.gguf", &["\"honesty\"", "misconceptions"]);
    bench.fails(1, "train --model M --data DIR/pairs.jsonl --val 0.9 -o DIR/out.gguf", &["leave no training pair"]);
}

#[test]
fn layers_templates_and_outputs_of_train() {
    let Some(bench) = Bench::new() else { return };
    let train = "train --data DIR/pairs.jsonl";
    for layer in [0, 30, 99] {
        let parts = [&format!("layer {layer} is out of range"), SMOL, "30 layers", "1 to 29"];
        bench.fails(1, &format!("{train} --model M -o DIR/out.gguf --layer {layer}"), &parts);
    }
    bench.fails(
        1,
        &format!("{train} --model M -o DIR/out.gguf --template DIR/no.jinja"),
        &["no.jinja", "No such file"],
    );
    bench.fails(1, &format!("{train} --model M -o DIR/out.gguf --template DIR/bad.jinja"), &["bad.jinja"]);
    // Where the result cannot be written is found before anything else is looked at: the model does not exist.
    let early = format!("{train} --model DIR/missing.gguf");
    bench.fails(
        1,
        &format!("{early} -o DIR/no/where/out.gguf"),
        &["cannot write", "out.gguf", "there is no directory"],
    );
    bench.fails(1, &format!("{early} -o DIR/folder.gguf"), &["cannot write", "folder.gguf", "it is a directory"]);
    bench.fails(1, &format!("{early} -o DIR/out.bin"), &["out.bin", "must end in .gguf"]);
    bench.fails(
        1,
        &format!("{early} -o /proc/out.gguf"),
        &["cannot write /proc/out.gguf", "no file can be created in the directory /proc"],
    );
    bench.fails(1, &format!("{early} -o DIR/out.gguf --resume"), &["no checkpoint", "out.ckpt"]);
}

#[test]
fn vectors_that_do_not_fit() {
    let Some(bench) = Bench::new() else { return };
    for command in ["generate --prompt hi --max-tokens 1 --model M", "chat --model M"] {
        let on = |flags: &str, parts: &[&str]| bench.fails(1, &format!("{command} {flags}"), parts);
        on("--vector DIR/missing.gguf", &["missing.gguf", "No such file"]);
        on("--vector DIR/text.gguf", &["text.gguf is not a GGUF file"]);
        on("--vector DIR/vcut.gguf", &["vcut.gguf"]);
        on("--vector M", &[SMOL, "not a control vector", "--model"]);
        on("--vector DIR/wide.gguf", &["wide", "640", "576"]);
        on("--vector DIR/deep.gguf", &["deep", "33", "29"]);
        on("--vector DIR/v.gguf --layers 30-40", &["30-40", "1-29"]);
        on("--vector DIR/v.gguf --layers 1-5", &["layer 20", "1-5"]);
        on("--vector DIR/v.gguf --scale 1 --scale 2", &["2 scales for 1 vector"]);
    }
    for (file, part) in [
        ("missing.gguf", "No such file"),
        ("text.gguf", "is not a GGUF file"),
        ("folder.gguf", "folder"),
        ("vcut.gguf", "vcut.gguf"),
        ("weights.gguf", "is truncated"),
    ] {
        bench.fails(1, &format!("vector show DIR/{file}"), &[file, part]);
    }
}

#[test]
fn prompts_data_and_references_of_the_other_commands() {
    let Some(bench) = Bench::new() else { return };
    bench.fails(1, "generate --model M --prompt-file DIR/missing.txt", &["missing.txt", "No such file"]);
    bench.fails(1, "generate --model M --prompt-file DIR/blank.txt", &["the prompt is empty"]);
    bench.fails(1, "generate --model M --ctx 256 --prompt-file DIR/long.txt", &["256", "token"]);

    let extract = |flags: &str, parts: &[&str]| bench.fails(1, &format!("extract --model M {flags}"), parts);
    extract("--data DIR/missing.txt --layers 1 -o DIR/o.safetensors", &["missing.txt", "No such file"]);
    extract("--data DIR/blank.txt --layers 1 -o DIR/o.safetensors", &["blank.txt", "no prompt"]);
    extract("--data DIR/word.txt --layers 30 -o DIR/o.safetensors", &["layer 30", "0 to 29"]);
    extract("--data DIR/word.txt --layers 1 -o DIR/no/o.safetensors", &["cannot write", "there is no directory"]);
    extract("--data DIR/long.txt --layers 1 -o DIR/o.safetensors", &["9001 tokens", "8192"]);

    let eval = "eval truthfulqa --model M --protocol mc1";
    bench.fails(1, &format!("{eval} --data DIR/missing.json"), &["missing.json", "No such file"]);
    bench.fails(1, &format!("{eval} --data DIR/object.json"), &["object.json", "no file of TruthfulQA"]);
    bench.fails(1, &format!("{eval} --data DIR/cut.json"), &["cut.json"]);
    bench.fails(1, &format!("{eval} --data DIR/word.txt"), &["word.txt", "no question"]);

    for layer in [0, 30] {
        bench.fails(1, &format!("check --model M --no-f32 --layer {layer}"), &[&format!("layer {layer}"), "1 to 29"]);
    }
    bench.fails(1, "check --model M --no-f32 --gold DIR/missing.json", &["missing.json", "No such file"]);
    bench.fails(1, "check --model M --no-f32 --gold DIR/object.json", &["object.json is not a reference file"]);
    bench.fails(1, "check --model M --no-f32 --gold DIR/cut.json", &["cut.json is not a reference file"]);
}

/// Architectures that cannot be trained on, from small random models.
#[test]
fn encoder_models_are_refused() {
    let Some(bench) = Bench::new() else { return };
    let family = synth::family("t5").unwrap();
    synth::write(&bench.path("t5.gguf"), family, &family.shape(), DType::F16, 1).unwrap();
    for command in ["train --data DIR/pairs.jsonl -o DIR/out.gguf", "check --no-f32"] {
        let words = ["t5.gguf", "is an encoder-decoder model (t5)", "bidpo trains on"];
        bench.fails(1, &format!("{command} --model DIR/t5.gguf --layer 1"), &words);
    }
}
