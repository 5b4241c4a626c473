//! NaN in the cache of one sequence harms no other request, nor the next one there.

use crate::common::adapters::any_adapter;
use crate::server::Server;
use crate::tiny;
use bidpo_core::layers::Layers;
use bidpo_core::steer::{ControlVector, SteeringVector, decode_steered};
use ggml_grad::llama::{Batch, Context, ContextParams, GgufFile, LlamaError, Model, ModelParams, Sampler};
use ggml_grad::llama::{SamplerParams, Token};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;

/// Logits behind a few tokens of one sequence.
fn logits(ctx: &mut Context, seq: i32) -> Result<Vec<f32>, LlamaError> {
    run(ctx, seq, 40, None)
}

fn run(ctx: &mut Context, seq: i32, n: usize, steering: Option<&ControlVector>) -> Result<Vec<f32>, LlamaError> {
    let mut batch = Batch::new();
    for at in 0..n {
        batch.add(260 + at as Token % 30, at, &[seq], at + 1 == n);
    }
    decode_steered(ctx, &batch, &vec![steering; n])?;
    Ok(ctx.logits(n - 1)?.to_vec())
}

#[test]
fn a_cleared_sequence_computes_the_same_bits_again() {
    let dir = tempfile::tempdir().unwrap();
    let model = Model::load(&tiny::model(dir.path(), tiny::q8_0()), &ModelParams::default()).unwrap();
    let params = ContextParams {
        n_ctx: 768,
        n_seq_max: 3,
        n_threads: 1,
        flash_attention: false,
        shared_cache: false,
        ..ContextParams::default()
    };
    let mut ctx = Context::new(&model, &params).unwrap();
    let before = logits(&mut ctx, 1).unwrap();
    let beside = logits(&mut ctx, 2).unwrap();
    // Each layer's sum is finite; the residual stream is not.
    let data = vec![3e38; 3 * tiny::WIDTH];
    let poison = ControlVector::constant(data, 1, 3);
    ctx.kv_remove(1, 0);
    assert!(run(&mut ctx, 1, 90, Some(&poison)).unwrap().iter().any(|x| x.is_nan()));
    assert!(matches!(ctx.finite_logits(89), Err(LlamaError::NotFinite { .. })));
    let mut sampler = Sampler::new(tiny::VOCABULARY, &SamplerParams::default());
    assert!(matches!(sampler.sample(&ctx, 89), Err(LlamaError::NotFinite { .. })));

    // The premise: llama.cpp removes cells, and the NaN stays behind.
    ctx.kv_remove(1, 0);
    assert!(logits(&mut ctx, 1).unwrap().iter().all(|x| x.is_nan()));
    assert!(ctx.clear_sequence(1).unwrap());
    assert_eq!(logits(&mut ctx, 1).unwrap(), before);
    ctx.finite_logits(39).unwrap();
    ctx.kv_remove(2, 0);
    assert_eq!(logits(&mut ctx, 2).unwrap(), beside);

    // One cache for all: it is said that the data are still there.
    let mut shared = Context::new(&model, &ContextParams { shared_cache: true, ..params }).unwrap();
    assert!(!shared.clear_sequence(1).unwrap());
}

/// Makes the embedding of a token infinite: the scale of the first block of its row, an f16 in Q8_0.
fn spoil_token(path: &Path, token: Token) {
    let file = GgufFile::open(path).unwrap();
    let (_, dtype, ne) = file.tensors().find(|t| t.0 == "token_embd.weight").unwrap();
    assert_eq!((dtype, ne[0]), (tiny::q8_0(), tiny::WIDTH));
    let mut row = Vec::new();
    file.read_pieces("token_embd.weight", 34 * tiny::VOCABULARY, &mut |piece| row.extend_from_slice(piece)).unwrap();
    let row = &row[34 * token as usize..][..34];
    let mut bytes = std::fs::read(path).unwrap();
    let places: Vec<usize> = (0..bytes.len() - 34).filter(|&at| &bytes[at..at + 34] == row).collect();
    let [at] = places[..] else { panic!("the row is there {} times", places.len()) };
    bytes[at..at + 2].copy_from_slice(&0x7c00u16.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_request_that_gets_nan_is_answered_500_and_no_other_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let path = tiny::model(dir.path(), tiny::q8_0());
    let model: Arc<Model> = Model::load(&path, &ModelParams::default()).unwrap();
    let token = *model.tokenize("Z", false, false).unwrap().last().unwrap();
    assert_eq!(model.token_bytes(token, false), b"Z");
    drop(model);
    spoil_token(&path, token);

    let server = Server::start(&path, &["--slots", "2"]);
    let good = |more| {
        let (status, answer) = server.complete("tea is a drink", &more);
        assert_eq!(status, 200, "{answer}");
        answer["choices"].clone()
    };
    let before = good(json!({"max_tokens": 1}));
    let scores = good(json!({"max_tokens": 0, "echo": true, "logprobs": 1}));
    for round in 0..3 {
        // In an answer's prompt, in a score, at the end and in the middle, in a prompt of several pieces.
        for prompt in ["Z", "tea Z is", &format!("{} Z {}", "tea ".repeat(60), "is ".repeat(60))] {
            for more in
                [json!({}), json!({"n": 2, "temperature": 1}), json!({"max_tokens": 0, "echo": true, "logprobs": 1})]
            {
                let (status, answer) = server.complete(prompt, &more);
                assert_eq!(status, 500, "{round} {prompt} {more}: {answer}");
                assert!(answer["error"]["message"].as_str().unwrap().contains("not finite"), "{answer}");
            }
        }
        assert_eq!(good(json!({"max_tokens": 1})), before, "{round}");
        assert_eq!(good(json!({"max_tokens": 0, "echo": true, "logprobs": 1})), scores);
    }
}

#[test]
fn scales_beyond_what_f32_holds_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = tiny::model(dir.path(), tiny::q8_0());
    let vectors = dir.path().join("vectors");
    std::fs::create_dir(&vectors).unwrap();
    let layers: Layers = "1-3".parse().unwrap();
    let vector = SteeringVector::from_layers(&layers, &vec![0.2; 3 * tiny::WIDTH], "llama").unwrap();
    vector.save(&vectors.join("three.gguf")).unwrap();
    let server = Server::start(&path, &["--slots", "1", "--vectors", vectors.to_str().unwrap()]);
    let steer = |scales: &[f32]| {
        let list: Vec<_> = scales.iter().map(|s| json!({"vector": "three", "scale": s})).collect();
        server.complete("tea is", &json!({"steering": list}))
    };
    let before = steer(&[0.0]);
    assert_eq!(before.0, 200, "{}", before.1);
    for scales in [&[3e38][..], &[-1e30], &[1e19], &[2e11, 2e11], &[2e38, 2e38]] {
        let (status, answer) = steer(scales);
        assert_eq!(status, 400, "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains("too large"), "{answer}");
    }
    assert_eq!(steer(&[1e11]).0, 200);
    assert_eq!(steer(&[0.0]).1["choices"], before.1["choices"]);
    let mut generate = tiny::bidpo();
    generate.args(["generate", "-n", "2", "--prompt", "tea", "--scale", "3e38", "-m"]).arg(&path);
    let output = generate.arg("--vector").arg(vectors.join("three.gguf")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("too large"), "{output:?}");
}

/// An adapter's scale has no bound that could be told beforehand: what it makes of a model is seen in the logits.
#[test]
fn an_adapter_that_makes_nan_is_answered_500_and_harms_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let path = tiny::model(dir.path(), tiny::q8_0());
    let vectors = dir.path().join("vectors");
    std::fs::create_dir(&vectors).unwrap();
    let adapter = any_adapter(&vectors, &path, "a", &["attn_k", "attn_v", "ffn_down"], 2, 1.0);
    let server = Server::start(&path, &["--slots", "2", "--vectors", vectors.to_str().unwrap()]);
    let good = |more| {
        let (status, answer) = server.complete("tea is a drink", &more);
        assert_eq!(status, 200, "{answer}");
        answer["choices"].clone()
    };
    let asked = [json!({"logprobs": 1}), json!({"logprobs": 1, "steering": [{"vector": "a", "scale": 0.5}]})];
    let alone = asked.clone().map(good);
    assert_ne!(alone[0], alone[1], "the adapter does something");
    let long = "tea is ".repeat(40);
    let by_field = |scale: f32| json!({"lora": [{"id": 0, "scale": scale}], "max_tokens": 3});
    let by_name = |scale: f32| json!({"steering": [{"vector": "a", "scale": scale}], "max_tokens": 3});
    std::thread::scope(|scope| {
        // Good requests all the while, in the other slot.
        let (asked, alone) = (&asked, &alone);
        let company = scope.spawn(move || {
            for i in 0..24 {
                assert_eq!(good(asked[i % 2].clone()), alone[i % 2], "in company, {i}");
            }
        });
        for scale in [1e30, -1e30, 3e38] {
            for (prompt, steering) in [("tea", by_name(scale)), (&long, by_field(scale))] {
                let (status, answer) = server.complete(prompt, &steering);
                assert_eq!(status, 500, "{scale}: {answer}");
                assert!(answer["error"]["message"].as_str().unwrap().contains("not finite"), "{answer}");
            }
        }
        company.join().unwrap();
    });
    // Each slot was used by those, with the same prompt among others.
    for _ in 0..4 {
        assert_eq!(asked.clone().map(good), alone);
    }
    // The sum of two scales, and a scale that no f32 holds.
    for scales in [["3e38", "3e38"], ["1e39", "0"]] {
        let list: Vec<serde_json::Value> =
            scales.iter().map(|s| json!({"vector": "a", "scale": s.parse::<f64>().unwrap()})).collect();
        assert_eq!(server.complete("tea", &json!({"steering": list})).0, 400, "{scales:?}");
    }
    let mut generate = tiny::bidpo();
    generate.args(["generate", "-n", "2", "--prompt", "tea", "-m"]).arg(&path);
    let output = generate.arg("--lora").arg(format!("{}:1e30", adapter.display())).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("not finite"), "{output:?}");
}
