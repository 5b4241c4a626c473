//! Captured pairs on disk: the same bytes with and without, and nothing that belongs to another capture.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use bidpo_core::check::builtin_pairs;
use bidpo_core::engine::{Cache, CacheType, Engine};
use bidpo_core::layers::Layers;
use bidpo_core::train::{Event, NamedPair, TrainConfig, Trainer, TrainingBudget};
use common::bench::{Bench, PAIRS};
use ggml_grad::llama::{DType, Model, ModelParams};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

const FLAGS: &str = "--steps 3 --batch 4 --cache DIR/cache";

fn stderr(bench: &Bench, out: &str, flags: &str) -> String {
    String::from_utf8(bench.train(out, flags).success().get_output().stderr.clone()).unwrap()
}

/// The files of the bench's cache.
fn entries(bench: &Bench) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(bench.path("cache")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    files
}

fn says(text: &str, reused: usize, written: usize) {
    let line = text.lines().find(|l| l.contains("pairs reused")).unwrap_or_else(|| panic!("no cache line in {text}"));
    let found = line.contains(&format!(": {reused} pairs reused")) && line.contains(&format!(", {written} written"));
    assert!(found, "{line:?}, expected {reused} reused and {written} written");
}

#[test]
fn a_run_from_the_cache_writes_the_same_bytes() {
    let Some(bench) = Bench::new() else { return };
    let n = PAIRS.len();
    bench.train("v.gguf", "--steps 3 --batch 4").success();
    let plain = bench.files("v.gguf");
    for (reused, written) in [(0, n), (n, 0), (n, 0)] {
        says(&stderr(&bench, "v.gguf", FLAGS), reused, written);
        assert!(bench.files("v.gguf") == plain, "{reused} reused: other bytes");
    }
    assert_eq!(entries(&bench).len(), n);

    // Whatever decides the numbers decides the name: nothing is taken for something else.
    says(&stderr(&bench, "w.gguf", &format!("{FLAGS} --layer 25")), 0, n);
    says(&stderr(&bench, "w.gguf", &format!("{FLAGS} --layers 25,26")), 0, n);
    says(&stderr(&bench, "w.gguf", &format!("{FLAGS} --template auto")), 0, n);
    says(&stderr(&bench, "w.gguf", &format!("{FLAGS} --cache-type bf16")), 0, n);
    let mut other = PAIRS;
    other[1][2] = " something else entirely.";
    bench.write("other.jsonl", &other);
    says(&stderr(&bench, "w.gguf", &format!("{FLAGS} --data DIR/other.jsonl")), n - 1, 1);
    // Settings of the run decide nothing that is captured.
    says(&stderr(&bench, "w.gguf", &format!("{FLAGS} --seed 4 --lr 2% --objective dpo")), n, 0);
}

#[test]
fn another_model_is_another_capture() {
    let (a, b) = (Bench::random("llama", "q4_0"), Bench::random("llama", "q8_0"));
    let flags = format!("--steps 1 --layer 1 --cache {}", a.path("cache").display());
    for (bench, reused) in [(&a, 0), (&b, 0), (&a, PAIRS.len()), (&b, PAIRS.len())] {
        says(&stderr(bench, "v.gguf", &flags), reused, PAIRS.len() - reused);
    }
}

/// Values from below the layer that are used above it are stored too.
#[test]
fn models_that_use_values_from_below() {
    for family in ["gemma3n", "qwen3moe"] {
        let bench = Bench::random(family, "q8_0");
        bench.train("v.gguf", "--steps 2 --batch 4 --layer 2").success();
        let plain = bench.files("v.gguf");
        for reused in [0, PAIRS.len()] {
            let text = stderr(&bench, "v.gguf", "--steps 2 --batch 4 --layer 2 --cache DIR/cache");
            says(&text, reused, PAIRS.len() - reused);
            assert!(bench.files("v.gguf") == plain, "{family}: other bytes");
        }
    }
}

#[test]
fn a_broken_file_is_told_and_computed_again() {
    let Some(bench) = Bench::new() else { return };
    stderr(&bench, "v.gguf", FLAGS);
    let good = bench.files("v.gguf");
    for (at, file) in entries(&bench).iter().enumerate().take(3) {
        let whole = std::fs::read(file).unwrap();
        let mut broken = whole.clone();
        match at {
            0 => broken.truncate(whole.len() / 2),
            1 => *broken.last_mut().unwrap() ^= 1,
            _ => broken = std::fs::read(&entries(&bench)[4]).unwrap(),
        }
        std::fs::write(file, broken).unwrap();
        let text = stderr(&bench, "v.gguf", FLAGS);
        says(&text, PAIRS.len() - 1, 1);
        assert!(text.contains("cannot be used") && text.contains(&*file.file_name().unwrap().to_string_lossy()));
        assert!(bench.files("v.gguf") == good && std::fs::read(file).unwrap() == whole, "file {at}");
    }
    let text = bench.fails("v.gguf", "--steps 1 --cache DIR/prefs.jsonl");
    assert!(text.contains("as a cache"), "{text}");
}

#[test]
fn bf16_halves_it_and_says_what_it_rounds() {
    let Some(bench) = Bench::new() else { return };
    let size = |bench: &Bench| entries(bench).iter().map(|f| f.metadata().unwrap().len()).sum::<u64>() as f64;
    bench.train("v.gguf", FLAGS).success();
    let (exact, f32_size) = (bench.numbers("v.gguf"), size(&bench));
    std::fs::remove_dir_all(bench.path("cache")).unwrap();
    let flags = format!("{FLAGS} --cache-type bf16");
    let text = stderr(&bench, "v.gguf", &flags);
    assert!(text.contains("bf16 rounding") && size(&bench) < 0.6 * f32_size, "{text}");
    let first = bench.files("v.gguf");
    let text = stderr(&bench, "v.gguf", &flags);
    says(&text, PAIRS.len(), 0);
    assert!(text.contains("bf16 rounding") && bench.files("v.gguf") == first, "{text}");
    let rounded = bench.numbers("v.gguf");
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(x * y)).sum::<f64>();
    let cosine = dot(&exact, &rounded) / (dot(&exact, &exact) * dot(&rounded, &rounded)).sqrt();
    eprintln!("cosine of the vectors from f32 and bf16: {cosine}");
    assert!(exact != rounded && cosine > 0.9, "{cosine}");
    assert!(bench.vector("v.gguf").provenance.entries.contains_key("captured_as"));
}

/// Should something decide the numbers that the key does not tell, the first pair shows it.
#[test]
fn a_cache_that_holds_other_numbers_is_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let run = |seed: u64, cache: bool| {
        let family = ggml_grad::synth::family("llama").unwrap();
        let path = dir.path().join(format!("{seed}.gguf"));
        ggml_grad::synth::write(&path, family, &family.shape(), DType::from_name("q8_0").unwrap(), seed).unwrap();
        let model: Arc<Model> = Model::load(&path, &ModelParams::default()).unwrap();
        let pairs: Vec<NamedPair> = builtin_pairs(&model)
            .unwrap()
            .into_iter()
            .map(|tokens| NamedPair { name: format!("{} tokens", tokens.n_tokens()), tokens })
            .collect();
        let longest = pairs.iter().map(|p| p.tokens.n_tokens()).max().unwrap();
        let mut engine = Engine::new(&model, &[1], longest, 1, 1).unwrap();
        if cache {
            // The mistake: two models, one name.
            engine =
                engine.with_cache(Some(Cache::open(&dir.path().join("cache"), CacheType::F32, "one model").unwrap()));
        }
        let config = TrainConfig { budget: TrainingBudget::Steps(2), ..TrainConfig::new(Layers::one(1)) };
        let mut notices = Vec::new();
        let never = AtomicBool::new(false);
        let trained = Trainer { engine: &mut engine, config: &config, checkpoints: None, interrupt: &never }.train(
            &pairs,
            &[],
            &mut |event| {
                if let Event::Notice(text) = event {
                    notices.push(text.to_owned());
                }
            },
        );
        (trained.unwrap().vector, notices)
    };
    assert!(run(1, true).1.is_empty());
    let (vector, notices) = run(2, true);
    assert!(notices.len() == 1 && notices[0].contains("other numbers"), "{notices:?}");
    assert_eq!(vector, run(2, false).0);
}
