//! Steering row by row: the same bits as llama.cpp's own control vector; and a sequence among others gets the same bits as alone.

use crate::common;

use bidpo_core::steer::{ControlVector, decode_steered};
use ggml_grad::llama::{Batch, Context, ContextParams, Model, ModelParams, Token};
use std::sync::Arc;

fn load(name: &str) -> Option<Arc<Model>> {
    Some(Model::load(&common::model(name)?, &ModelParams { plain_weights: true, ..ModelParams::default() }).unwrap())
}

/// A context as the server makes it.
fn context(model: &Arc<Model>, n_seq: u32) -> Context {
    let params = ContextParams {
        n_ctx: 512 * n_seq,
        n_batch: 256,
        n_seq_max: n_seq,
        flash_attention: false,
        shared_cache: false,
        ..ContextParams::default()
    };
    Context::new(model, &params).unwrap()
}

/// A vector over `first..=last` that means nothing, a few percent of the residual stream.
fn vector(model: &Model, first: usize, last: usize, seed: usize) -> ControlVector {
    let (n_layer, n_embd) = (model.n_layer(), model.n_embd());
    let mut data = vec![0.0f32; (n_layer - 1) * n_embd];
    for (i, x) in data[(first - 1) * n_embd..last * n_embd].iter_mut().enumerate() {
        *x = ((i * 7919 + seed * 104_729) % 23) as f32 / 23.0 - 0.5;
    }
    ControlVector::constant(data, first, last)
}

const TEXTS: [&str; 3] = [
    "The old bridge over the river was built of oak by three brothers who never",
    "A violin has four strings, and the bow that",
    "To make tea, first boil the water, then warm the pot and take care that the leaves are",
];

fn prompts(model: &Model) -> Vec<Vec<Token>> {
    TEXTS.iter().map(|t| model.tokenize(&t.repeat(6), true, false).unwrap()).collect()
}

/// The vector added at a position of a sequence.
type Steer<'a> = &'a dyn Fn(usize) -> Option<&'a ControlVector>;

/// Logits behind the prompt and behind each of `n - 1` greedy tokens, of every sequence: `[n_seq][n][n_vocab]`. Prompts are
/// computed one by one in pieces of `piece` tokens, answers together; sequence i is `ids[i]` of the context.
fn run(
    ctx: &mut Context,
    prompts: &[Vec<Token>],
    steer: &[Steer<'_>],
    ids: &[i32],
    n: usize,
    piece: usize,
) -> Vec<Vec<Vec<f32>>> {
    let mut logits: Vec<Vec<Vec<f32>>> = vec![Vec::new(); prompts.len()];
    for (s, prompt) in prompts.iter().enumerate() {
        let mut row = 0;
        let mut at = 0;
        for part in prompt.chunks(piece) {
            let mut batch = Batch::new();
            let mut rows = Vec::new();
            for &t in part {
                row = batch.add(t, at, &[ids[s]], at + 1 == prompt.len());
                rows.push(steer[s](at));
                at += 1;
            }
            decode_steered(ctx, &batch, &rows).unwrap();
        }
        logits[s].push(ctx.logits(row).unwrap().to_vec());
    }
    for k in 1..n {
        let mut batch = Batch::new();
        let mut rows = Vec::new();
        for (s, prompt) in prompts.iter().enumerate() {
            let at = prompt.len() + k - 1;
            batch.add(best(logits[s].last().unwrap()), at, &[ids[s]], true);
            rows.push(steer[s](at));
        }
        decode_steered(ctx, &batch, &rows).unwrap();
        for (s, l) in logits.iter_mut().enumerate() {
            l.push(ctx.logits(s).unwrap().to_vec());
        }
    }
    logits
}

fn best(logits: &[f32]) -> Token {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as Token
}

#[test]
fn row_by_row_gives_the_bits_of_the_control_vector() {
    for name in [common::SMOL, common::GEMMA] {
        let Some(model) = load(name) else { continue };
        let top = model.n_layer() - 1;
        let prompt = &prompts(&model)[..1];
        let mut ctx = context(&model, 1);
        let nothing = run(&mut ctx, prompt, &[&|_| None], &[0], 4, 256);
        // The last block's output has the rows whose logits are asked for only; 1-top has every layer at once.
        for (first, last) in [(top / 2, top / 2), (1, top), (top, top)] {
            let v = vector(&model, first, last, 1);
            ctx.clear_kv();
            let by_row = run(&mut ctx, prompt, &[&|_| Some(&v)], &[0], 4, 256);
            v.apply(&mut ctx).unwrap();
            let by_llama = run(&mut ctx, prompt, &[&|_| None], &[0], 4, 256);
            ctx.clear_control_vector();
            assert!(by_row == by_llama, "{name}, layers {first}-{last}");
            assert!(by_row != nothing, "{name}, layers {first}-{last}: the vector does nothing");
        }
        assert!(run(&mut ctx, prompt, &[&|_| None], &[0], 4, 256) == nothing, "{name}: a vector stayed");
    }
}

#[test]
fn company_changes_no_bit() {
    for name in [common::SMOL, common::GEMMA] {
        let Some(model) = load(name) else { continue };
        let top = model.n_layer() - 1;
        let (a, b) = (vector(&model, 1, top, 1), vector(&model, top / 2, top / 2, 2));
        let prompts = prompts(&model);
        let n_prompt = prompts[2].len();
        // Every row, no row, and the answer's rows only.
        let steer: [Steer<'_>; 3] = [&|_| Some(&a), &|_| None, &|at| (at + 1 >= n_prompt).then_some(&b)];
        let together = run(&mut context(&model, 3), &prompts, &steer, &[0, 1, 2], 8, 64);
        for s in 0..3 {
            let alone = run(&mut context(&model, 1), &prompts[s..=s], &steer[s..=s], &[0], 8, 64);
            assert!(alone[0] == together[s], "{name}, sequence {s}");
        }
    }
}

#[test]
fn what_cannot_be_steered_is_refused() {
    let Some(model) = load(common::SMOL) else { return };
    let mut ctx = context(&model, 1);
    let mut batch = Batch::new();
    batch.add(1, 0, &[0], true);
    assert!(decode_steered(&mut ctx, &batch, &[]).unwrap_err().to_string().contains("0 steered rows for 1 tokens"));
    let short = ControlVector::constant(vec![0.0; 7], 1, 1);
    assert!(decode_steered(&mut ctx, &batch, &[Some(&short)]).is_err());
}
