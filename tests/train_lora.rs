//! `bidpo train --kind lora`: the command, from pairs to an adapter's file that llama.cpp loads.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use bidpo_core::adapter::{AdapterFile, Target};
use bidpo_core::data::TokenizedPair;
use bidpo_core::engine::{Engine, Parameters, load_adapter};
use bidpo_core::intervention::LoraSpec;
use bidpo_core::train::Precision;
use common::bench::{Bench, steps, wait};
use ggml_grad::graph::log_sum_exp;
use ggml_grad::llama::{Adapter, Batch, Context, ContextParams, Model, ModelParams};
use serde_json::Value;
use std::sync::Arc;

const FLAGS: &str = "--kind lora --rank 2 --layers 1-2 --steps 6 --batch 2 --val 0 --test 0.34 --random 2 --lr 1e-2";

/// `log p(answer | prompt)` by llama.cpp with its own adapter on the context.
fn log_prob(model: &Arc<Model>, adapter: &Arc<Adapter>, scale: f32, prompt: &[i32], answer: &[i32]) -> f64 {
    let mut ctx = Context::new(model, &ContextParams::exact(64, 1, 1)).unwrap();
    ctx.set_adapters(&[(Arc::clone(adapter), scale)]).unwrap();
    let mut batch = Batch::new();
    let tokens: Vec<i32> = prompt.iter().chain(answer).copied().collect();
    for (i, &token) in tokens.iter().enumerate() {
        batch.add(token, i, &[0], true);
    }
    ctx.decode(&batch).unwrap();
    let one = |(i, &token): (usize, &i32)| {
        let logits = ctx.logits(prompt.len() - 1 + i).unwrap();
        f64::from(logits[token as usize]) - log_sum_exp(logits)
    };
    answer.iter().enumerate().map(one).sum()
}

#[test]
fn a_run_gives_an_adapter_that_llama_loads() {
    let bench = Bench::random("llama", "f32");
    let s = bench.summary("a.gguf", FLAGS);
    assert_eq!((s["kind"].as_str(), s["steps"].as_u64()), (Some("lora"), Some(6)));
    assert_eq!(s["adapter"]["matrices"], 14, "seven kinds of matrices in two blocks");
    assert!(s["adapter_norm"].as_f64().unwrap() > 0.0);
    assert_eq!(bench.left(), ["a.gguf", "a.md", "llama.gguf"]);
    let rows = s["heldout"].as_array().unwrap();
    assert_eq!(rows.iter().filter(|r| r["condition"].as_str().unwrap().starts_with("random")).count(), 2);
    assert!(s["price"]["kl_per_token"]["value"].as_f64().unwrap() > 0.0);
    let card = String::from_utf8(bench.files("a.gguf").1).unwrap();
    assert!(card.contains("--lora a.gguf") && card.contains("rank 2, alpha 4, on 14 matrices"), "{card}");

    let file = AdapterFile::load(&bench.path("a.gguf")).unwrap();
    assert_eq!((file.alpha, file.layers(), file.ranks()), (Some(4.0), vec![1, 2], (2, 2)));
    let text = |key: &str| format!("{:?}", file.provenance.entries[key]);
    assert!(
        text("tensors").contains("blk.2.ffn_down.weight") && text("kind").contains("lora"),
        "{:?}",
        file.provenance
    );
    for key in ["model_sha256", "data_sha256", "seed", "objective"] {
        assert!(file.provenance.entries.contains_key(key), "{key}");
    }
    assert!(file.pairs[&Target::of("blk.1.attn_q.weight")].b.iter().any(|&x| x != 0.0));

    // What llama.cpp computes with the file is what the engine was trained on, at scales 1 and -1, and without.
    let model = Model::load(&bench.model, &ModelParams::default()).unwrap();
    let adapter = load_adapter(&model, &file).unwrap();
    let spec = LoraSpec {
        rank: 2,
        alpha: Some(4.0),
        targets: Vec::new(),
        blocks: "1-2".parse().unwrap(),
        lr: None,
        with_vectors: false,
    };
    let lora = spec.on(&model).unwrap();
    let mut theta = Vec::new();
    for (pair, _) in lora.places() {
        let low_rank = &file.pairs[&Target::of(&pair.tensor)];
        theta.extend(low_rank.a.iter().chain(&low_rank.b));
    }
    let mut engine = Engine::for_adapter(&model, &[spec.layer()], 32, 1, 1).unwrap().with_lora(lora).unwrap();
    engine.set_precision(Precision::EXACT);
    let pair = TokenizedPair { prompt: vec![5, 9, 3, 7], chosen: vec![11, 4, 8], rejected: vec![6, 12] };
    let traced = engine.trace(&pair).unwrap();
    for (direction, scale) in
        [(bidpo_core::engine::Direction::Forward, 1.0), (bidpo_core::engine::Direction::Reverse, -1.0)]
    {
        let ours = engine.run(&traced, Parameters { theta: &theta, direction }, false).unwrap().logp[0];
        for (answer, ours) in [(&pair.chosen, ours.chosen), (&pair.rejected, ours.rejected)] {
            let theirs = log_prob(&model, &adapter, scale, &pair.prompt, answer);
            assert!((theirs - ours).abs() < 1e-4, "scale {scale}: {theirs} {ours}");
        }
    }
    let theirs = log_prob(&model, &adapter, 0.0, &pair.prompt, &pair.chosen);
    assert!((theirs - traced.reference().chosen).abs() < 1e-4, "the reference has no adapter");
}

/// A killed run continues to the same bytes; the checkpoint of another adapter is refused.
#[test]
fn resumed_runs_end_with_the_same_bytes() {
    let bench = Bench::random("llama", "q8_0");
    let whole = bench.uninterrupted("a.gguf", FLAGS);
    let checkpoint = bench.path("a.ckpt");
    let mut child = bench.spawn("a.gguf", FLAGS);
    let begun = wait(&mut child, || steps(&checkpoint) >= 2);
    let _ = child.kill();
    let _ = child.wait();
    if begun {
        let said = bench.fails("a.gguf", &format!("{FLAGS} --resume --alpha 9"));
        assert!(said.contains("another run"), "{said}");
        bench.train("a.gguf", &format!("{FLAGS} --resume")).success();
        assert!(bench.files("a.gguf") == whole, "the resumed run ends with other bytes");
    }
    bench.train("a.gguf", &format!("{FLAGS} --fresh")).success();
    assert!(bench.files("a.gguf") == whole, "the same run gives the same bytes");
}

/// Under every objective the last epoch's loss is below that of a run that does not move, with the same draws (`reps` draws a factor
/// for each pair, so that its epochs cannot be compared with each other); retained texts have a part.
#[test]
fn every_objective() {
    let bench = Bench::random("llama", "q8_0");
    std::fs::write(bench.path("off.txt"), "some words of no topic at all\n\nother words of another kind\n").unwrap();
    for objective in ["bidpo", "dpo", "ipo", "simpo", "sft", "reps"] {
        let run = |lr: &str| {
            let flags = "--kind lora --rank 1 --targets ffn_down,attn_v --layers 1-2 --epochs 4 --batch 6 --val 0 --test 0 --random 0";
            let more = format!("--objective {objective} --retain DIR/off.txt --lr {lr} --fresh");
            bench.summary(&format!("{objective}.gguf"), &format!("{flags} {more}"))
        };
        let last = |s: &Value| s["history"].as_array().unwrap().last().unwrap()["train_loss"].as_f64().unwrap();
        let (still, s) = (run("1e-12"), run("1e-2"));
        assert!(last(&s) < last(&still) - 1e-4, "{objective}: {} {}", last(&s), last(&still));
        assert!(s["retained"]["kl"].as_f64().unwrap() >= 0.0, "{objective}");
    }
}

/// An adapter and a vector below it, in two files; all blocks; one matrix of one block.
#[test]
fn with_a_vector_in_all_blocks_and_in_one() {
    let bench = Bench::random("llama", "q8_0");
    let few = "--steps 3 --batch 2 --val 0 --test 0";
    let s = bench.summary("both.gguf", &format!("--kind lora+add --rank 2 --layers 2 {few}"));
    assert_eq!(s["kind"], "lora+add");
    let vector = bench.vector("both.vector.gguf");
    assert_eq!(vector.directions.keys().copied().collect::<Vec<_>>(), [1]);
    assert!(vector.directions[&1].iter().any(|&x| x != 0.0));
    assert_eq!(AdapterFile::load(&bench.path("both.gguf")).unwrap().layers(), [2]);

    let said = bench.train("all.gguf", &format!("--kind lora --rank 1 --layers 0-2 {few}")).success();
    let said = String::from_utf8_lossy(&said.get_output().stderr).into_owned();
    assert!(said.contains("note: the adapter begins at block 0"), "{said}");
    assert_eq!(AdapterFile::load(&bench.path("all.gguf")).unwrap().layers(), [0, 1, 2]);
}

/// `--init` begins with the file: a run that does not move gives it back, one that does begins with its loss.
#[test]
fn a_run_begins_with_a_file() {
    let bench = Bench::random("llama", "q8_0");
    let of =
        |more: &str| format!("--kind lora --rank 2 --layers 1-2 --batch 6 --val 0 --test 0 --random 0 --fresh {more}");
    let first = |s: &Value| s["history"][0]["train_loss"].as_f64().unwrap();
    let cold = first(&bench.summary("a.gguf", &of("--steps 8 --lr 1e-2")));
    let warm = bench.summary("b.gguf", &of("--steps 1 --lr 1e-12 --alpha 8 --init DIR/a.gguf"));
    assert!(first(&warm) < cold - 1e-3, "{} {cold}", first(&warm));
    let (a, b) = (AdapterFile::load(&bench.path("a.gguf")).unwrap(), AdapterFile::load(&bench.path("b.gguf")).unwrap());
    assert_eq!((a.alpha, b.alpha, a.pairs.len()), (Some(4.0), Some(8.0), 14));
    for (target, pair) in &a.pairs {
        let same = &b.pairs[target];
        let near = |x: f32, y: f32| (x - y).abs() <= 1e-6 * (1.0 + x.abs());
        assert!(pair.a.iter().zip(&same.a).all(|(x, y)| near(*x, *y)), "{target}");
        // Twice the factor, half the numbers.
        assert!(pair.b.iter().zip(&same.b).all(|(x, y)| near(*x, 2.0 * y)), "{target}");
    }
    let card = String::from_utf8(bench.files("b.gguf").1).unwrap();
    assert!(card.contains("a.gguf (SHA-256 "), "{card}");
    // Further matrices begin as ever.
    bench.train("wide.gguf", &of("--steps 1 --init DIR/a.gguf").replace("1-2", "0-2")).success();
    bench.train("v.gguf", "--layer 1 --steps 1 --val 0 --test 0").success();
    for (flags, words) in [
        (of("--steps 1 --init DIR/a.gguf").replace("--rank 2", "--rank 3"), "has rank 2 in it, and rank 3 is trained"),
        (of("--steps 1 --init DIR/a.gguf").replace("1-2", "2"), "give --layers and --targets"),
        (of("--steps 1 --init DIR/v.gguf"), "v.gguf"),
        ("--layer 1 --steps 1 --init DIR/a.gguf".into(), "a.gguf"),
    ] {
        let said = bench.fails("no.gguf", &flags);
        assert!(said.contains(words), "{flags}: {said}");
    }
}

#[test]
fn what_cannot_be_trained_is_refused_before_the_first_step() {
    let bench = Bench::random("deepseek2", "f32");
    for (flags, words) in [
        ("--kind lora --layers 2 --targets attn_q_a", "llama.cpp ignores an adapter on blk.2."),
        ("--kind lora --layers 2 --targets attn_x", "its blocks have"),
        ("--kind lora --layers 2 --targets token_embd", "outside the blocks"),
        ("--kind lora --layers 9 --targets attn_output", "has the blocks 0 to"),
        ("--kind lora --layers 2 --targets attn_output --rank 100000", "rank 100000 does not fit"),
        ("--kind lora --layers 2 --targets attn_output,attn_output@2", "named twice"),
        ("--kind lora --layers 2 --scope answer", "at every position"),
        ("--kind lora --layers 2 --renorm 5", "--renorm"),
        ("--kind lora --layers 2 --lr 1%", "no part of the residual stream"),
        ("--kind lora+add --layers 1 --targets attn_output", "block 2 or higher"),
        ("--kind add --layer 1 --targets attn_q", "belong to kind lora"),
    ] {
        let said = bench.fails("a.gguf", &format!("{flags} --steps 1"));
        assert!(said.contains(words), "{flags}: {said}");
    }
}
