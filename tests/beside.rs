//! Adapters and vectors that are loaded while something else is trained: reference and policy are llama.cpp's with them, and the
//! gradients are those of central differences.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use bidpo_core::adapter::AdapterFile;
use bidpo_core::data::TokenizedPair;
use bidpo_core::engine::{AdapterRefusal, Background, Engine, EngineError, NotBatched, TracedPair};
use bidpo_core::intervention::LoraSpec;
use bidpo_core::numbers::norm;
use bidpo_core::steer::{ScaledVector, SteeringVector};
use bidpo_core::train::Precision;
use common::adapters::any_adapter;
use common::bench::{Bench, steps, wait};
use ggml_grad::graph::log_sum_exp;
use ggml_grad::llama::{Adapter, Batch, Context, ContextParams, DType, Model, ModelParams};
use ggml_grad::synth;
use std::path::PathBuf;
use std::sync::Arc;

const MATRICES: [&str; 4] = ["attn_q", "attn_v", "attn_output", "ffn_down"];
const SCALE: f32 = 0.7;
const TOKENS: usize = 32;

/// A random model with an adapter on all its blocks and a vector at its layers 1 and 2.
struct Scene {
    _folder: tempfile::TempDir,
    model: Arc<Model>,
    adapter: PathBuf,
    vector: SteeringVector,
}

impl Scene {
    fn new(family: &str, dtype: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        let family = synth::family(family).unwrap();
        synth::write(&path, family, &family.shape(), DType::from_name(dtype).unwrap(), 1).unwrap();
        let adapter = any_adapter(folder.path(), &path, "a", &MATRICES, 2, 2.0);
        let model = Model::load(&path, &ModelParams::default()).unwrap();
        let direction = |k: f32| (0..model.n_embd()).map(|i| 0.2 * (i as f32 * k).sin()).collect::<Vec<f32>>();
        let mut vector = SteeringVector::single(1, direction(0.7), "llama").unwrap();
        vector.directions.insert(2, direction(1.3));
        Self { _folder: folder, model, adapter, vector }
    }

    fn dial(&self, is_adapter: bool) -> ScaledVector {
        let vector = match is_adapter {
            true => SteeringVector::open_adapter(&self.adapter, &self.model).unwrap(),
            false => self.vector.clone(),
        };
        ScaledVector { name: "v".into(), vector: Arc::new(vector), scale: SCALE }
    }

    /// What is loaded: the adapter, the vector, or both.
    fn background(&self, which: &[bool]) -> Background {
        let dials: Vec<ScaledVector> = which.iter().map(|&is_adapter| self.dial(is_adapter)).collect();
        let files: Vec<PathBuf> = which.iter().map(|_| self.adapter.clone()).collect();
        Background::new(&dials, &files, &self.model).unwrap()
    }

    /// `log p(answer | prompt)` by llama.cpp alone, with its own adapter and control vector.
    fn log_prob(&self, which: &[bool], prompt: &[i32], answer: &[i32]) -> f64 {
        let mut ctx = Context::new(&self.model, &ContextParams::exact(64, 1, 1)).unwrap();
        if which.contains(&true) {
            let adapter = Arc::new(Adapter::load(&self.model, &self.adapter).unwrap());
            ctx.set_adapters(&[(adapter, SCALE)]).unwrap();
        }
        if which.contains(&false) {
            let rows: Vec<f32> = self.vector.directions.values().flatten().map(|x| SCALE * x).collect();
            ctx.set_layer_vectors(&[1, 2], &rows).unwrap();
        }
        let mut batch = Batch::new();
        for (i, &token) in prompt.iter().chain(answer).enumerate() {
            batch.add(token, i, &[0], true);
        }
        ctx.decode(&batch).unwrap();
        let one = |(i, &token): (usize, &i32)| {
            let logits = ctx.logits(prompt.len() - 1 + i).unwrap();
            f64::from(logits[token as usize]) - log_sum_exp(logits)
        };
        answer.iter().enumerate().map(one).sum()
    }

    /// The reference is llama.cpp's with what is loaded, the lifted graph equals `llama_decode`, and the gradient at `theta` is that
    /// of central differences.
    fn check(&self, which: &[bool], mut engine: Engine, theta: &[f32]) {
        engine.set_precision(Precision::EXACT);
        let traced = engine.trace(&pair()).unwrap();
        let agreement = engine.compare(&traced).unwrap();
        assert!(agreement.agrees() && agreement.effect > 0.0, "{which:?}: {agreement:?}");
        let bare = self.log_prob(&[], &pair().prompt, &pair().chosen);
        let theirs = self.log_prob(which, &pair().prompt, &pair().chosen);
        let ours = traced.reference().chosen;
        assert!((theirs - bare).abs() > 1e-2 && (theirs - ours).abs() < 1e-4, "{which:?}: {bare} {theirs} {ours}");
        let error = gradient_error(&mut engine, &traced, theta);
        assert!(error < 2e-3, "{which:?}: {error:.1e}");
    }
}

fn pair() -> TokenizedPair {
    TokenizedPair { prompt: vec![5, 9, 3, 7], chosen: vec![11, 4, 8], rejected: vec![6, 12] }
}

fn spec(blocks: &str) -> LoraSpec {
    LoraSpec {
        rank: 2,
        alpha: Some(3.0),
        targets: Vec::new(),
        blocks: blocks.parse().unwrap(),
        lr: None,
        with_vectors: false,
    }
}

/// Relative error of the slope of `log p(chosen) - log p(rejected)` along the gradient.
fn gradient_error(engine: &mut Engine, traced: &TracedPair, theta: &[f32]) -> f64 {
    engine.set_smooth(true);
    let gradient = engine.run(traced, theta, true).unwrap().grads.swap_remove(0);
    let length = norm(&gradient);
    let size = norm(&theta.iter().map(|&x| f64::from(x)).collect::<Vec<_>>());
    let mut gap = |h: f64| {
        let moved: Vec<f32> =
            theta.iter().zip(&gradient).map(|(&x, g)| (f64::from(x) + h * size * g / length) as f32).collect();
        engine.run(traced, &moved, false).unwrap().logp[0].gap()
    };
    let errors = [0.1, 0.02, 0.005].map(|h| {
        let mut slope = |h: f64| (gap(h) - gap(-h)) / (2.0 * h * size);
        let numeric = (4.0 * slope(h / 2.0) - slope(h)) / 3.0;
        (numeric - length).abs() / length
    });
    errors.into_iter().fold(f64::INFINITY, f64::min)
}

/// A vector trained with an adapter, with another vector at its own layer and above, and with both.
#[test]
fn vectors_beside_adapters_and_vectors() {
    for family in ["llama", "gemma2", "qwen3moe"] {
        let scene = Scene::new(family, "f32");
        for (which, layer) in [(&[true][..], 1), (&[false], 1), (&[true, false], 2)] {
            let engine = Engine::new(&scene.model, &[layer], TOKENS, 1, 1).unwrap();
            let engine = engine.with_background(scene.background(which)).unwrap();
            let theta: Vec<f32> = (0..engine.n_params()).map(|i| 0.1 * (i as f32 * 0.37).cos()).collect();
            scene.check(which, engine, &theta);
        }
    }
}

/// An adapter trained under a vector: from the vector's layer on, above it, and from the embeddings on.
#[test]
fn adapters_under_vectors() {
    let scene = Scene::new("llama", "f32");
    for blocks in ["2", "1-2", "0-2"] {
        let lora = spec(blocks).on(&scene.model).unwrap();
        let theta = lora.probe();
        let engine = Engine::for_adapter(&scene.model, &[spec(blocks).layer()], TOKENS, 1, 1).unwrap();
        let engine = engine.with_background(scene.background(&[false])).unwrap().with_lora(lora).unwrap();
        scene.check(&[false], engine, &theta);
    }
}

/// With quantized weights the graph is llama.cpp's too. Pairs are computed one by one.
#[test]
fn quantized_weights() {
    let scene = Scene::new("llama", "q4_0");
    let engine = Engine::new(&scene.model, &[1], 64, 3, 1).unwrap();
    let mut engine = engine.with_background(scene.background(&[true, false])).unwrap();
    let traced = engine.trace(&pair()).unwrap();
    assert!(engine.compare(&traced).unwrap().agrees());
    assert_eq!(engine.batches_pairs(), Err(NotBatched::Beside));
}

#[test]
fn what_does_not_go_together_is_refused() {
    let scene = Scene::new("llama", "f32");
    let engine = Engine::for_adapter(&scene.model, &[1], TOKENS, 1, 1).unwrap();
    let engine = engine.with_background(scene.background(&[true])).unwrap();
    let refused = engine.with_lora(spec("2").on(&scene.model).unwrap()).unwrap_err();
    assert!(matches!(refused, EngineError::Adapter(AdapterRefusal::Beside)), "{refused}");
    let mut scoped = scene.dial(false);
    Arc::make_mut(&mut scoped.vector).set_scope("answer".parse().unwrap());
    let refused = Background::new(&[scoped], &[PathBuf::new()], &scene.model).unwrap_err();
    assert!(matches!(refused, EngineError::Adapter(AdapterRefusal::NotConstant { .. })), "{refused}");
    assert!(refused.to_string().contains("--constant"), "{refused}");
}

const FEW: &str = "--steps 4 --batch 2 --val 0 --test 0.34 --random 0";

/// The command: card and provenance name the files, the price is that of what was trained alone, and a checkpoint belongs to what was
/// loaded.
#[test]
fn the_command() {
    let bench = Bench::random("llama", "q8_0");
    let folder = bench.path("");
    any_adapter(&folder, &bench.model, "strong", &MATRICES, 2, 40.0);
    let train = format!("--layer 1 {FEW}");
    let alone = bench.summary("alone.gguf", &train);
    let s = bench.summary("v.gguf", &format!("{train} --lr 1e-6 --lora DIR/strong.gguf:0.5"));
    let file = &s["beside"][0];
    assert_eq!(
        (&file["file"], &file["scale"], &file["is_adapter"]),
        (&"strong.gguf".into(), &0.5.into(), &true.into())
    );
    let kl = |s: &serde_json::Value| s["price"]["kl_per_token"]["value"].as_f64().unwrap();
    assert!(kl(&s) < 1e-4, "a vector of nearly nothing moves the model with the adapter by {}", kl(&s));
    let unsteered = |s: &serde_json::Value| s["heldout"][0]["mean_logp_diff"].as_f64().unwrap();
    assert!((unsteered(&s) - unsteered(&alone)).abs() > 1e-3, "the table is of the model with the adapter");
    let vector = bench.vector("v.gguf");
    let told = |key: &str| vector.provenance.str(key).map(str::to_owned);
    assert_eq!((told("beside.1.kind"), told("beside.1.file")), (Some("lora".into()), Some("strong.gguf".into())));
    assert_eq!(told("beside.1.sha256").as_deref(), file["sha256"].as_str());
    let card = String::from_utf8(bench.files("v.gguf").1).unwrap();
    assert!(card.contains("LoRA adapter strong.gguf at scale 0.5"), "{card}");
    assert!(card.contains("--vector v.gguf:1 --lora strong.gguf:0.5\n"), "{card}");

    // An adapter under that vector; both files again.
    let lora = format!("--kind lora --rank 1 --layers 2 {FEW}");
    let s = bench.summary("a.gguf", &format!("{lora} --vector DIR/alone.gguf:2 --retain builtin --retain-batch 1"));
    assert_eq!((&s["beside"][0]["is_adapter"], &s["beside"][0]["scale"]), (&false.into(), &2.0.into()));
    let adapter = AdapterFile::load(&bench.path("a.gguf")).unwrap();
    assert_eq!(adapter.provenance.str("beside.1.file"), Some("alone.gguf"));
    let card = String::from_utf8(bench.files("a.gguf").1).unwrap();
    assert!(card.contains("--control-vector-scaled alone.gguf:2\n"), "{card}");
    for (flags, words) in [
        (format!("{lora} --lora DIR/strong.gguf"), "bidpo merge"),
        (format!("{train} --lora DIR/strong.gguf:0"), "leave it out"),
        (format!("{train} --lora DIR/strong.gguf:5%"), "plain number"),
        (format!("{train} --lora DIR/alone.gguf"), "control vector"),
    ] {
        let said = bench.train("x.gguf", &flags).failure();
        let said = String::from_utf8_lossy(&said.get_output().stderr).into_owned();
        assert!(said.contains(words), "{flags}: {said}");
    }
    let said = bench.fails("strong.gguf", &format!("{train} --lora DIR/strong.gguf"));
    assert!(said.contains("would replace"), "{said}");
}

/// A run with an adapter resumes to the same bytes with the same adapter only.
#[test]
fn resumed_with_the_same_files_only() {
    let bench = Bench::random("llama", "q8_0");
    any_adapter(&bench.path(""), &bench.model, "warm", &MATRICES, 2, 4.0);
    let flags = format!("--layer 1 {FEW} --lora DIR/warm.gguf");
    let whole = bench.uninterrupted("v.gguf", &flags);
    let checkpoint = bench.path("v.ckpt");
    let mut child = bench.spawn("v.gguf", &flags);
    let begun = wait(&mut child, || steps(&checkpoint) >= 1);
    let _ = child.kill();
    let _ = child.wait();
    if begun && checkpoint.exists() {
        for other in [format!("--layer 1 {FEW}"), format!("{flags}:0.5")] {
            let said = bench.fails("v.gguf", &format!("{other} --resume"));
            assert!(said.contains("another run"), "{said}");
        }
        bench.train("v.gguf", &format!("{flags} --resume")).success();
        assert!(bench.files("v.gguf") == whole, "the resumed run ends with other bytes");
    }
}
