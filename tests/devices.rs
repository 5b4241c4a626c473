//! Models whose layers lie on devices. Workers on loopback stand in for them: their memory cannot be read through a pointer,
//! their graphs come in splits, and their buffers are no host buffers. With `BIDPO_TEST_GPU=1` this machine's GPU takes their
//! place.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use assert_cmd::Command;
use bidpo_core::adapter::AdapterFile;
use bidpo_core::check::{Gold, builtin_pairs};
use bidpo_core::data::TokenizedPair;
use bidpo_core::engine::Engine;
use bidpo_core::intervention::LoraSpec;
use bidpo_core::steer::SteeringVector;
use bidpo_core::train::Precision;
use common::{GEMMA, SMOL};
use ggml_grad::graph::emit::Forward;
use ggml_grad::llama::{DType, Model, ModelParams, Offload};
use predicates::prelude::*;
use serde_json::Value;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

/// Tests that talk to workers from this process run alone: ggml's sockets are inherited by whatever process is started in the
/// meantime, and a worker waits for the client that it believes is still there.
static IN_PROCESS: RwLock<()> = RwLock::new(());

fn alone() -> RwLockWriteGuard<'static, ()> {
    IN_PROCESS.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// For tests whose clients are processes of their own.
fn beside_others() -> RwLockReadGuard<'static, ()> {
    IN_PROCESS.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A worker on loopback; it ends with the test.
struct Worker {
    child: Child,
    endpoint: String,
}

impl Worker {
    fn start() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self::at(&free.to_string())
    }

    fn at(endpoint: &str) -> Self {
        let child = std::process::Command::new(assert_cmd::cargo::cargo_bin!("bidpo"))
            .args(["worker", "--threads", "1", "--device", "CPU", "--listen", endpoint])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let worker = Self { child, endpoint: endpoint.to_owned() };
        let start = Instant::now();
        while TcpStream::connect(endpoint).is_err() {
            assert!(start.elapsed() < Duration::from_secs(30), "no worker at {endpoint}");
            std::thread::sleep(Duration::from_millis(20));
        }
        worker
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
    }
}

fn bidpo() -> Command {
    let mut command = Command::cargo_bin("bidpo").unwrap();
    command.env("BIDPO_THREADS", "1").env("BIDPO_NEUTRAL_PASSAGES", "2");
    command
}

/// A placement of layers: its name, the library's options and the command line's flags.
struct Place {
    name: &'static str,
    offload: Offload,
    flags: Vec<String>,
    /// Bits must be equal: the devices compute with this machine's CPU.
    exact: bool,
}

/// All on one worker; the upper third on two, the rest on the CPU; the output and two layers on one.
fn places(a: &Worker, b: &Worker, n_layer: usize) -> Vec<Place> {
    let place = |name, workers: &[&Worker], layers: Option<usize>| {
        let workers: Vec<String> = workers.iter().map(|w| w.endpoint.clone()).collect();
        let mut flags = vec!["--rpc".to_owned(), workers.join(",")];
        if let Some(n) = layers {
            flags.extend(["--gpu-layers".to_owned(), n.to_string()]);
        }
        let offload = Offload { n_gpu_layers: layers.map(|n| n as u32), workers, ..Offload::default() };
        Place { name, offload, flags, exact: true }
    };
    if std::env::var_os("BIDPO_TEST_GPU").is_some() {
        // Workers would share the model with the GPU.
        let gpu = |name, layers: Option<usize>| Place {
            name,
            offload: Offload { n_gpu_layers: layers.map(|n| n as u32), ..Offload::default() },
            flags: layers.map_or(Vec::new(), |n| vec!["--gpu-layers".to_owned(), n.to_string()]),
            exact: false,
        };
        return vec![gpu("GPU", None), gpu("CPU and GPU", Some(n_layer / 3))];
    }
    vec![
        place("one worker", &[a], None),
        place("CPU and two workers", &[a, b], Some(n_layer / 3)),
        place("the last layers", &[a], Some(3)),
    ]
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn load(path: &Path, offload: &Offload) -> Arc<Model> {
    Model::load(path, &ModelParams { offload: offload.clone(), ..ModelParams::default() }).unwrap()
}

/// Lifted logits against `llama_decode` on the same devices, the gradient against the one on the CPU, and the reference
/// gradients.
fn graphs_agree(name: &str, n_layer: usize, layer: usize, gold: &str) {
    let Some(path) = common::model(name) else { return };
    let gold = Gold::load(&common::gold(gold)).unwrap();
    let (a, b) = (Worker::start(), Worker::start());
    let gradient = |model: &Arc<Model>, exact: Option<bool>| {
        let pairs = builtin_pairs(model).unwrap();
        let mut engine = Engine::new(model, &[layer], pairs[0].n_tokens(), 1, 1).unwrap();
        // ggml's kernels on the CPU, as on the workers.
        engine.set_precision(Precision { forward: Forward::Exact, ..Precision::default() });
        let example = engine.trace(&pairs[0]).unwrap();
        if let Some(exact) = exact {
            let agreement = engine.verify(&example).unwrap();
            assert!(agreement.on_devices);
            if exact {
                assert_eq!((agreement.unsteered, agreement.steered, agreement.zero), (0.0, 0.0, 0.0));
            }
        }
        let v: Vec<f32> = (0..model.n_embd()).map(|i| ((i * 37 % 100) as f32 - 50.0) / 100.0).collect();
        engine.run(&example, &v, true).unwrap()
    };
    let want = gradient(&load(&path, &Offload::none()), None);
    for place in places(&a, &b, n_layer) {
        let model = load(&path, &place.offload);
        assert!(model.placement().is_offloaded(), "{}: {}", place.name, model.placement());
        let got = gradient(&model, Some(place.exact));
        let cosine = cosine(&got.grads[0], &want.grads[0]);
        let difference = (got.logp[0].chosen - want.logp[0].chosen).abs();
        eprintln!("{name} on {}: 1 - cosine {:e}, {difference} nats", place.name, 1.0 - cosine);
        // On the CPU's kernels: int8 activations may fall to the other side where sums run in another order. A GPU's kernels
        // round in other places throughout.
        let (limit, nats) = if place.exact { (1e-4, 0.02) } else { (3e-2, 4.0) };
        assert!(1.0 - cosine < limit, "{name} on {}: gradient, 1 - cosine {:e}", place.name, 1.0 - cosine);
        assert!(difference < nats, "{name} on {}: {difference} nats", place.name);
        // The reference takes up to half a minute on one thread. The other places are compared with the CPU above.
        if place.name == "CPU and two workers" || !place.exact {
            let r = gold.compare(&model, false, Precision::default(), 1).unwrap();
            assert!(r.passed, "{name} on {}: {r:?}", place.name);
        }
    }
}

#[test]
fn graphs_of_smollm2_on_devices() {
    let _alone = alone();
    graphs_agree(SMOL, 30, 15, "smol_il15_vr_Dp1.json");
}

#[test]
fn graphs_of_gemma_on_devices() {
    let _alone = alone();
    graphs_agree(GEMMA, 18, 9, "gemma_il9_vr_Dm1.json");
}

/// The divergence of a retained text and its gradient on every placement against those on the CPU, and its slope along the
/// gradient on the devices themselves.
#[test]
fn retained_texts_on_devices() {
    let _alone = alone();
    let Some(path) = common::model(SMOL) else { return };
    let (a, b) = (Worker::start(), Worker::start());
    let diverge = |model: &Arc<Model>| {
        let pair = builtin_pairs(model).unwrap().remove(0);
        let text = TokenizedPair { rejected: Vec::new(), ..pair };
        let mut engine = Engine::new(model, &[15], text.n_tokens(), 1, 1).unwrap();
        engine.set_precision(Precision { forward: Forward::Exact, ..Precision::default() });
        let retained = engine.trace_retained(&text).unwrap();
        let v: Vec<f32> = (0..model.n_embd()).map(|i| ((i * 37 % 100) as f32 - 50.0) / 25.0).collect();
        let zero = engine.diverge(&[&retained], &vec![0.0; v.len()], None).unwrap().nats[0];
        assert!(zero.abs() < 1e-5, "{zero} nats without a vector");
        let at = engine.diverge(&[&retained], &v, Some(0.5)).unwrap();
        let alone = engine.diverge(&[&retained], &v, None).unwrap();
        assert_eq!((at.nats.len(), alone.grad.len()), (1, 0));
        assert!((at.nats[0] - alone.nats[0]).abs() <= 1e-6 * at.nats[0]);
        at
    };
    let want = diverge(&load(&path, &Offload::none()));
    assert!(want.nats[0] > 0.1, "{want:?}");
    for place in places(&a, &b, 30) {
        let got = diverge(&load(&path, &place.offload));
        let cosine = cosine(&got.grad, &want.grad);
        let relative = (got.nats[0] / want.nats[0] - 1.0).abs();
        eprintln!("{}: 1 - cosine {:e}, divergence {} for {}", place.name, 1.0 - cosine, got.nats[0], want.nats[0]);
        let (limit, nats) = if place.exact { (1e-3, 0.02) } else { (3e-2, 0.1) };
        assert!(1.0 - cosine < limit && relative < nats, "{}: 1 - cosine {:e}, {relative}", place.name, 1.0 - cosine);
        let norm = |g: &[f64]| g.iter().map(|x| x * x).sum::<f64>().sqrt();
        let ratio = norm(&got.grad) / norm(&want.grad);
        assert!((ratio - 1.0).abs() < 10.0 * nats, "{}: norms' ratio {ratio}", place.name);
    }
}

/// An adapter that is trained, on every placement: lifted logits against `llama_decode`, the gradient of all matrices against the one
/// on the CPU, and with copies of the weights in F16, whose gradients are scaled; the divergence of a retained text.
#[test]
fn adapters_on_devices() {
    let _alone = alone();
    let Some(path) = common::model(SMOL) else { return };
    let (a, b) = (Worker::start(), Worker::start());
    let spec = LoraSpec {
        rank: 2,
        alpha: Some(3.0),
        targets: Vec::new(),
        blocks: "18-29".parse().unwrap(),
        lr: None,
        with_vectors: false,
    };
    let gradients = |model: &Arc<Model>, exact: Option<bool>, dtype: Option<DType>| {
        let pair = builtin_pairs(model).unwrap().remove(0);
        let engine = Engine::for_adapter(model, &[spec.layer()], pair.n_tokens(), 1, 1).unwrap();
        let lora = spec.on(model).unwrap();
        let mut engine = engine.with_lora(lora.clone()).unwrap();
        engine.set_precision(Precision { forward: Forward::Exact, ..Precision::default() });
        engine.set_transposed_type(dtype);
        let example = engine.trace(&pair).unwrap();
        if let Some(exact) = exact {
            let agreement = engine.verify(&example).unwrap();
            assert!(agreement.on_devices && agreement.effect > 0.0);
            if exact {
                assert_eq!((agreement.unsteered, agreement.steered), (0.0, 0.0));
            }
        }
        let theta = lora.probe();
        let scored = engine.run(&example, &theta, true).unwrap();
        let text = TokenizedPair { rejected: Vec::new(), ..pair };
        let retained = engine.trace_retained(&text).unwrap();
        let diverged = engine.diverge(&[&retained], &theta, Some(0.5)).unwrap();
        (scored, diverged)
    };
    let cpu = load(&path, &Offload::none());
    let want = gradients(&cpu, None, None);
    assert!(want.1.nats[0] > 0.0, "{:?}", want.1.nats);
    let norm = |g: &[f64]| g.iter().map(|x| x * x).sum::<f64>().sqrt();
    let check = |what: &str, exact: bool, got: &[f64], want: &[f64]| {
        let (cosine, ratio) = (cosine(got, want), norm(got) / norm(want));
        eprintln!("{what}: 1 - cosine {:e}, norms' ratio {ratio}", 1.0 - cosine);
        let (limit, width) = if exact { (1e-3, 0.02) } else { (3e-2, 0.1) };
        assert!(1.0 - cosine < limit && (ratio - 1.0).abs() < width, "{what}: {cosine} {ratio}");
    };
    for place in places(&a, &b, 30) {
        let model = load(&path, &place.offload);
        let got = gradients(&model, Some(place.exact), None);
        check(place.name, place.exact, &got.0.grads[0], &want.0.grads[0]);
        check(&format!("{}, retained", place.name), place.exact, &got.1.grad, &want.1.grad);
        if place.name == "one worker" || !place.exact {
            let scaled = gradients(&model, None, Some(DType::F16));
            check(&format!("{}, F16 copies", place.name), place.exact, &scaled.0.grads[0], &want.0.grads[0]);
        }
    }
}

#[test]
fn f16_copies_do_not_underflow() {
    let _alone = alone();
    let Some(path) = common::model(SMOL) else { return };
    let worker = Worker::start();
    let offload = Offload { workers: vec![worker.endpoint.clone()], ..Offload::default() };
    let model = load(&path, &offload);
    let pairs = builtin_pairs(&model).unwrap();
    let mut gradients = Vec::new();
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let mut engine = Engine::new(&model, &[15], pairs[0].n_tokens(), 1, 1).unwrap();
        engine.set_transposed_type(Some(dtype));
        let example = engine.trace(&pairs[0]).unwrap();
        assert!(model.transposed_copies().2.contains(&dtype.name()));
        let notices = engine.take_notices();
        assert!(notices.len() == 1 && notices[0].contains(&dtype.name()), "{notices:?}");
        gradients.push(engine.run(&example, &vec![0.25; model.n_embd()], true).unwrap().grads.remove(0));
    }
    let norm = |g: &[f64]| g.iter().map(|x| x * x).sum::<f64>().sqrt();
    for g in &gradients[1..] {
        assert!(1.0 - cosine(g, &gradients[0]) < 1e-4, "1 - cosine {:e}", 1.0 - cosine(g, &gradients[0]));
        assert!((norm(g) / norm(&gradients[0]) - 1.0).abs() < 1e-2, "a scale was not taken back");
    }
}

/// `bidpo ARGS`, its stdout.
fn run(args: &[&str], flags: &[String]) -> String {
    let output = bidpo().args(args).args(flags).assert().success();
    String::from_utf8(output.get_output().stdout.clone()).unwrap()
}

#[test]
fn the_same_vector_is_trained() {
    let _guard = beside_others();
    let Some(path) = common::model(SMOL) else { return };
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (path.to_str().unwrap(), folder.path().join("v.gguf"));
    let data = folder.path().join("prefs.jsonl");
    let line =
        |[p, c, r]: &[&str; 3]| serde_json::json!({ "prompt": p, "chosen": c, "rejected": r }).to_string() + "\n";
    std::fs::write(&data, common::bench::PAIRS.iter().map(line).collect::<String>()).unwrap();
    let train = |flags: &[String]| {
        let fixed = "--steps 3 --batch 4 --layer 15 --val 0 --test 0 --forward exact --backward f32 --fresh";
        let mut args = vec!["train", "-m", model, "-o", out.to_str().unwrap(), "-d", data.to_str().unwrap()];
        args.extend(fixed.split(' '));
        run(&args, flags);
        let vector = SteeringVector::load(&out).unwrap();
        vector.directions[&15].iter().map(|&x| f64::from(x)).collect::<Vec<f64>>()
    };
    let want = train(&["--gpu-layers".into(), "0".into()]);
    let (a, b) = (Worker::start(), Worker::start());
    for place in places(&a, &b, 30) {
        let got = train(&place.flags);
        // Adam divides by the size of the gradient: where a number of it is next to 0, rounding decides its sign. With
        // nothing rounded for speed a CPU and a worker differ by 2e-5; a GPU, whose gradient is off by 1e-2, by 5e-2.
        let limit = if place.exact { 1e-3 } else { 0.15 };
        eprintln!("{}: 1 - cosine {:e}", place.name, 1.0 - cosine(&got, &want));
        assert!(1.0 - cosine(&got, &want) < limit, "{}: 1 - cosine {:e}", place.name, 1.0 - cosine(&got, &want));
    }
}

#[test]
fn the_same_adapter_is_trained() {
    let _guard = beside_others();
    let bench = common::bench::Bench::random("llama", "q8_0");
    let train = |flags: &[String]| {
        let fixed = "--kind lora --rank 2 --layers 1-2 --steps 3 --batch 4 --val 0 --test 0 --forward exact --backward f32 --fresh";
        bench.train("a.gguf", &format!("{fixed} {}", flags.join(" "))).success();
        let file = AdapterFile::load(&bench.path("a.gguf")).unwrap();
        file.pairs.values().flat_map(|p| p.a.iter().chain(&p.b)).map(|&x| f64::from(x)).collect::<Vec<f64>>()
    };
    let want = train(&["--gpu-layers".into(), "0".into()]);
    let (a, b) = (Worker::start(), Worker::start());
    for place in places(&a, &b, 6) {
        let got = train(&place.flags);
        let limit = if place.exact { 1e-3 } else { 0.15 };
        eprintln!("{}: 1 - cosine {:e}", place.name, 1.0 - cosine(&got, &want));
        assert!(1.0 - cosine(&got, &want) < limit, "{}: 1 - cosine {:e}", place.name, 1.0 - cosine(&got, &want));
    }
}

#[test]
fn extraction_evaluation_and_answers_are_the_same() {
    let _guard = beside_others();
    let Some(path) = common::model(SMOL) else { return };
    let data = common::data("multiple_choice.json");
    let folder = tempfile::tempdir().unwrap();
    let (model, out) = (path.to_str().unwrap(), folder.path().join("acts.safetensors"));
    let prompts = folder.path().join("prompts.txt");
    std::fs::write(&prompts, "What is the capital of France?\nThe spider has eight legs.\n").unwrap();
    let vector = "vectors/plain-vs-flowery.SmolLM2-135M-Instruct.Q4_1.gguf";
    let all = |flags: &[String]| {
        run(
            &[
                "extract",
                "-m",
                model,
                "-d",
                prompts.to_str().unwrap(),
                "-o",
                out.to_str().unwrap(),
                "--layers",
                "3,20,29",
            ],
            flags,
        );
        let bytes = std::fs::read(&out).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: Vec<_> = file.iter().filter(|(_, t)| t.dtype() == safetensors::Dtype::F32).collect();
        tensors.sort_by_key(|(name, _)| name.to_string());
        let float = |b: &[u8]| f64::from(f32::from_le_bytes(b.try_into().unwrap()));
        let numbers: Vec<f64> = tensors.iter().flat_map(|(_, t)| t.data().chunks_exact(4).map(float)).collect();
        let scores = run(
            &[
                "eval",
                "truthfulqa",
                "-m",
                model,
                "-d",
                data.to_str().unwrap(),
                "--protocol",
                "mc2",
                "--limit",
                "3",
                "--json",
            ],
            flags,
        );
        let scores: Value = serde_json::from_str(&scores).unwrap();
        let ask =
            ["generate", "-m", model, "-p", "What is the capital of France?", "-n", "24", "--temp", "0", "--json"];
        let answer = |more: &[&str]| {
            let text = run(&[&ask[..], more].concat(), flags);
            serde_json::from_str::<Value>(&text).unwrap()["text"].as_str().unwrap().to_owned()
        };
        let texts = (answer(&[]), answer(&["--vector", vector, "--scale", "2"]));
        (numbers, scores, texts)
    };
    let want = all(&["--gpu-layers".into(), "0".into()]);
    assert_ne!(want.2.0, want.2.1, "the vector does nothing");
    let (a, b) = (Worker::start(), Worker::start());
    for place in places(&a, &b, 30) {
        let got = all(&place.flags);
        let distance = |a: &[f64], b: &[f64]| {
            let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
            norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut a.iter().copied())
        };
        assert_eq!(got.0.len(), want.0.len());
        let limit = if place.exact { 1e-6 } else { 0.1 };
        eprintln!(
            "{}: residual streams differ by {:e}, {} and {}",
            place.name,
            distance(&want.0, &got.0),
            want.1,
            got.1
        );
        assert!(distance(&want.0, &got.0) <= limit, "{}: {:e}", place.name, distance(&want.0, &got.0));
        let mc2 = |v: &Value| {
            let value = &v["measures"][0]["conditions"][0]["value"];
            value.as_f64().unwrap_or_else(|| panic!("{v}"))
        };
        // On the CPU attention is a kernel of ours: sums in another order, then int8 rounding.
        let limit = if place.exact { 0.02 } else { 0.05 };
        assert!((mc2(&want.1) - mc2(&got.1)).abs() < limit, "{}: {} and {}", place.name, want.1, got.1);
        if place.exact {
            assert_eq!(got.2, want.2, "{}", place.name);
        }
    }
}

#[test]
fn a_worker_that_dies_leaves_the_checkpoint() {
    let _guard = beside_others();
    let Some(path) = common::model(SMOL) else { return };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("v.gguf");
    let checkpoint = folder.path().join("v.ckpt");
    let mut worker = Worker::start();
    let fixed = "-d misconceptions --layer 27 --batch 4 --val 0 --test 0.9 --checkpoint-every 1 --steps";
    let train = |steps: &str| {
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin!("bidpo"));
        command.env("BIDPO_THREADS", "1").args(["train", "-m"]).arg(&path).arg("-o").arg(&out);
        command
            .args(fixed.split(' '))
            .arg(steps)
            .args(["--rpc", &worker.endpoint])
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    };
    let mut command = train("200");
    let child = command.spawn().unwrap();
    let start = Instant::now();
    while !checkpoint.exists() {
        assert!(start.elapsed() < Duration::from_secs(120), "no checkpoint");
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut again = train("200");
    worker.stop();
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("worker") && said.contains("v.ckpt") && said.contains("--resume"), "{said}");
    assert!(!out.exists(), "half a vector");
    // On with a new worker: it starts where the checkpoint is, and its next one is whole.
    let steps = |said: &str| said.lines().find_map(|l| l.strip_prefix("resuming after step ")?.parse::<usize>().ok());
    worker = Worker::at(&worker.endpoint);
    let written = std::fs::metadata(&checkpoint).unwrap().modified().unwrap();
    let child = again.arg("--resume").spawn().unwrap();
    while std::fs::metadata(&checkpoint).is_ok_and(|m| m.modified().unwrap() == written) {
        assert!(start.elapsed() < Duration::from_secs(240), "no step after the resumption");
        std::thread::sleep(Duration::from_millis(20));
    }
    worker.stop();
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(steps(&said).is_some_and(|n| n >= 1), "{said}");
}

#[test]
fn what_is_not_there_is_said() {
    let _guard = beside_others();
    let Some(path) = common::model(SMOL) else { return };
    let ask = |flags: &[&str]| {
        let mut command = bidpo();
        command.arg("generate").arg("-m").arg(&path).args(["-p", "Hi", "-n", "1"]).args(flags);
        command.assert()
    };
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    ask(&["--rpc", &gone])
        .code(1)
        .stderr(predicate::str::contains("no worker answers").and(predicate::str::contains(&gone)));
    ask(&["--rpc", "nowhere"]).code(1).stderr(predicate::str::contains("HOST:PORT"));
    ask(&["--device", "Abacus0"])
        .code(1)
        .stderr(predicate::str::contains("Abacus0").and(predicate::str::contains("CPU")));
    ask(&["--gpu-layers", "some"]).code(2);
    ask(&["--split-mode", "atoms"]).code(2);
    ask(&["--device", "none"]).success();
    // A worker serves one client; the second is told so.
    let worker = Worker::start();
    let busy = TcpStream::connect(&worker.endpoint).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    ask(&["--rpc", &worker.endpoint]).code(1).stderr(predicate::str::contains("one client at a time"));
    drop(busy);
    ask(&["--rpc", &worker.endpoint]).success().stderr(predicate::str::contains("layers 0-29 and the output on RPC0"));
    // Its own mistakes.
    bidpo()
        .args(["worker", "--listen", &worker.endpoint])
        .assert()
        .code(1)
        .stderr(predicate::str::contains("cannot listen"));
    bidpo().args(["worker", "--listen", "50052"]).assert().code(1).stderr(predicate::str::contains("HOST:PORT"));
    bidpo().args(["doctor", "--rpc", &worker.endpoint]).assert().success().stdout(predicate::str::contains("RPC0"));
}

#[test]
fn a_worker_that_others_reach_says_so() {
    let _guard = beside_others();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin!("bidpo"))
        .args(["worker", "--threads", "1", "--listen", &format!("0.0.0.0:{free}")])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    child.kill().unwrap();
    let said = child.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&said.stderr).contains("no authentication"), "{said:?}");
}

/// Experts, attention sinks, soft caps, latent attention, values that skip layers, fused matrices.
#[test]
fn other_architectures_on_a_worker() {
    let _guard = beside_others();
    let worker = Worker::start();
    let folder = tempfile::tempdir().unwrap();
    for family in ["mixtral", "gpt-oss", "gemma2", "gemma4", "deepseek2", "phi3"] {
        let family = ggml_grad::synth::family(family).unwrap();
        let path = folder.path().join(format!("{}.gguf", family.name()));
        ggml_grad::synth::write(&path, family, &family.shape(), DType::from_name("q8_0").unwrap(), 1).unwrap();
        let flags = ["--rpc".to_owned(), worker.endpoint.clone()];
        let found: Value =
            serde_json::from_str(&run(&["check", "-m", path.to_str().unwrap(), "--no-f32", "--json"], &flags)).unwrap();
        assert_eq!(found["logits"]["max_difference"], 0.0, "{}", family.name());
        assert_eq!(found["logits"]["max_difference_steered"], 0.0, "{}", family.name());
        let cosine = found["gradient_on_devices"]["cosine_to_cpu"].as_f64().unwrap();
        assert!(1.0 - cosine < 1e-3, "{}: against the CPU 1 - cosine {:e}", family.name(), 1.0 - cosine);
        let rounded = found["rounded_for_speed"]["cosine"].as_f64().unwrap_or(1.0);
        assert!(1.0 - rounded < 1e-3, "{}: 1 - cosine {:e}", family.name(), 1.0 - rounded);
    }
}
