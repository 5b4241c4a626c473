//! `--model` and `--vector` by name, through the program.
#![allow(clippy::unwrap_used)] // helpers of tests: a failure there is the message

use assert_cmd::Command;
use predicates::prelude::PredicateBooleanExt as _;
use predicates::str::contains;
use std::path::Path;

fn bidpo(folder: &Path, args: &[&str]) -> assert_cmd::assert::Assert {
    let mut command = Command::cargo_bin("bidpo").unwrap();
    command.current_dir(folder).env("BIDPO_MODELS", folder.join("models")).env("BIDPO_THREADS", "1");
    command.env("XDG_CACHE_HOME", folder.join("cache")).env("HOME", folder).args(args).assert()
}

#[test]
fn models_and_vectors_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    for name in ["models", "cache", "vectors"] {
        std::fs::create_dir(here.join(name)).unwrap();
    }
    for model in ["models/Small-Llama.gguf", "models/other-a.gguf", "models/other-b.gguf"] {
        bidpo(here, &["synth", "--arch", "llama", "--type", "q8_0", "-o", model]).success();
    }
    let file = ggml_grad::llama::Model::load(&here.join("models/Small-Llama.gguf"), &Default::default()).unwrap();
    for of in ["Small-Llama", "other-a"] {
        let vector = bidpo_core::steer::SteeringVector::single(1, vec![0.5; file.n_embd()], "llama").unwrap();
        vector.save(&here.join(format!("vectors/warm.{of}.gguf"))).unwrap();
    }
    let answer = ["-p", "a", "-n", "1", "--template", "none"];
    let generate = |model: &str, rest: &[&str]| bidpo(here, &[&["generate", "-m", model], rest, &answer[..]].concat());
    generate("small", &["-v", "warm:0.5"])
        .success()
        .stderr(contains("model small:").and(contains("Small-Llama.gguf")))
        .stderr(contains("vector warm: vectors/warm.Small-Llama.gguf"));
    generate("other-b", &["-v", "warm"]).failure().code(1).stderr(contains("warm.Small-Llama.gguf, warm.other-a.gguf"));
    generate("other", &[]).failure().code(2).stderr(contains("other-a.gguf, other-b.gguf"));
    generate("mistral", &[]).failure().code(1).stderr(contains("mistral"));
    // Commands that load no model, and further vectors beside the one under test.
    let warm = "warm.Small-Llama";
    bidpo(here, &["vector", "show", warm])
        .success()
        .stderr(contains("vector warm.Small-Llama: vectors/warm.Small-Llama.gguf"));
    bidpo(here, &["vector", "convert", warm, "-o", "w.npy"]).success();
    bidpo(here, &["vector", "compare", warm, "warm.other-a"]).success();
    bidpo(here, &["vector", "show", "warm"])
        .failure()
        .code(2)
        .stderr(contains("warm.Small-Llama.gguf, warm.other-a.gguf"));
    bidpo(here, &["vector", "show", "cold"]).failure().code(1).stderr(contains("cold"));
    std::fs::write(here.join("q.jsonl"), "{\"question\": \"a\", \"c\": [\"b\", \"d\"], \"answer\": 0}\n".repeat(2))
        .unwrap();
    let eval = |compare: &str| {
        let data =
            ["--data", "q.jsonl", "--choices", "c", "--baselines", "unsteered", "--random", "1", "--compare", compare];
        bidpo(here, &[&["eval", "choice", "-m", "small", "-v", "warm"], &data[..]].concat())
    };
    eval("other=warm.other-a").success().stderr(contains("vector warm.other-a: vectors/warm.other-a.gguf"));
    eval("other=cold").failure().code(1).stderr(contains("cold"));
    let sweep = ["sweep", "-m", "small", "-v", "warm:2", "--data", "q.jsonl", "-o", "s"];
    bidpo(here, &sweep).failure().code(1).stderr(contains("a sweep chooses the scale itself: give warm"));
    bidpo(here, &["bench", "-m", "other"]).failure().code(2).stderr(contains("other-a.gguf, other-b.gguf"));
    bidpo(here, &["bench", "-m", "mistral"]).failure().stderr(contains("mistral"));
    std::fs::copy(here.join("models/other-a.gguf"), here.join("small")).unwrap();
    let found = generate("small", &[]).success();
    assert!(!String::from_utf8_lossy(&found.get_output().stderr).contains("model small:"), "a path is meant first");
}
