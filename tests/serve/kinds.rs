//! Every architecture: is it steered row by row as llama.cpp steers it, or refused at start; and does company change an answer.

use bidpo::llama::{Batch, Context, ContextParams, DType, Model, ModelParams, Token};
use bidpo::serve::check_steering;
use bidpo::steer::{ControlVector, SteeringVector, decode_steered};
use bidpo::synth;
use std::sync::Arc;

fn context(model: &Arc<Model>, n_seq: u32) -> Context {
    let params = ContextParams {
        n_ctx: 256 * n_seq,
        n_batch: 64,
        n_seq_max: n_seq,
        n_threads: 1,
        flash_attention: false,
        shared_cache: false,
        ..ContextParams::default()
    };
    Context::new(model, &params).unwrap()
}

fn q8_0() -> DType {
    DType::WEIGHTS.into_iter().find(|t| t.name() == "q8_0").unwrap()
}

/// Logits after two more tokens of each sequence.
fn run(ctx: &mut Context, ids: &[i32], vectors: &[Option<&ControlVector>]) -> Vec<Vec<f32>> {
    for (&id, &v) in ids.iter().zip(vectors) {
        let mut batch = Batch::new();
        for at in 0..9 {
            batch.add((at * 7 + 3) as Token, at, &[id], at == 8);
        }
        decode_steered(ctx, &batch, &[v; 9]).unwrap();
    }
    let mut out = Vec::new();
    for at in 9..11 {
        let mut batch = Batch::new();
        for &id in ids {
            batch.add(at as Token, at, &[id], true);
        }
        decode_steered(ctx, &batch, vectors).unwrap();
        out = (0..ids.len()).map(|row| ctx.logits(row).unwrap().to_vec()).collect();
    }
    out
}

#[test]
fn every_architecture_is_steered_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut steered, mut refused, mut moved) = (0, Vec::new(), Vec::new());
    for family in synth::families().iter().filter(|f| f.name() != "t5") {
        let path = dir.path().join("m.gguf");
        synth::write(&path, family, &family.shape(), q8_0(), 1).unwrap();
        let model = Model::load(&path, &ModelParams { plain_weights: true, ..ModelParams::default() }).unwrap();
        let mut ctx = context(&model, 3);
        if let Err(error) = check_steering(&mut ctx) {
            let error = error.to_string();
            eprintln!("{}: {error}", family.name());
            refused.push(family.name());
            continue;
        }
        steered += 1;
        let (n_layer, n_embd) = (model.n_layer(), model.n_embd());
        let data = (0..(n_layer - 1) * n_embd).map(|i| (i % 5) as f32 * 0.02).collect();
        let v = ControlVector { data, first: 1, last: n_layer - 1 };
        let together = run(&mut ctx, &[0, 1, 2], &[Some(&v), None, Some(&v)]);
        assert_eq!(together[0], together[2], "{}", family.name());
        assert_ne!(together[0], together[1], "{}", family.name());
        for (i, vector) in [(0, Some(&v)), (1, None)] {
            let alone = run(&mut context(&model, 1), &[0], &[vector]);
            let apart = alone[0].iter().zip(&together[i]).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            if apart != 0.0 {
                moved.push((family.name(), apart));
            }
        }
    }
    eprintln!("{steered} steered, refused {refused:?}, moved by company {moved:?}");
    assert!(steered > 40);
}

#[test]
fn a_model_that_cannot_be_steered_is_refused_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let (path, vectors) = (dir.path().join("m.gguf"), dir.path().join("vectors"));
    let family = synth::family("mamba").unwrap();
    synth::write(&path, family, &family.shape(), q8_0(), 1).unwrap();
    let model = Model::load(&path, &ModelParams::default()).unwrap();
    std::fs::create_dir(&vectors).unwrap();
    SteeringVector::single(1, vec![1.0; model.n_embd()], "mamba").unwrap().save(&vectors.join("v.gguf")).unwrap();
    let mut command = assert_cmd::Command::new(assert_cmd::cargo::cargo_bin!("bidpo"));
    command.args(["serve", "--port", "0", "-t", "1", "-m"]).arg(&path).arg("--vectors").arg(&vectors);
    let out = command.timeout(std::time::Duration::from_secs(20)).output().unwrap();
    eprintln!("{out:?}");
}
