//! A capture keeps the values that llama.cpp computes, although most of the graph is skipped; and its memory and time are bounded.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use bidpo_core::check::{builtin_pairs, middle_layer};
use bidpo_core::data::{ChatTemplate, PreferenceSet, TemplateChoice, TokenizedPair};
use bidpo_core::engine::{Cache, CacheType, Engine};
use ggml_grad::llama::{Batch, Context, ContextParams, EvalCallback, Model, ModelParams, Node, NodeId};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn models() -> impl Iterator<Item = Arc<Model>> {
    let load = |name| Some(Model::load(&common::model(name)?, &ModelParams::default()).unwrap());
    [common::SMOL, common::GEMMA].into_iter().filter_map(load)
}

/// The batch that a pair makes, laid out by hand: the prompt shared by two sequences, then the responses.
fn batch(pair: &TokenizedPair) -> (Batch, Vec<usize>) {
    let mut batch = Batch::new();
    let mut rows = Vec::new();
    for (i, &t) in pair.prompt.iter().enumerate() {
        let predicts = i + 1 == pair.prompt.len();
        let row = batch.add(t, i, &[0, 1], predicts);
        rows.extend(predicts.then_some(row));
    }
    for (seq, response) in [(0, &pair.chosen), (1, &pair.rejected)] {
        for (i, &t) in response.iter().enumerate() {
            let predicts = i + 1 < response.len();
            let row = batch.add(t, pair.prompt.len() + i, &[seq], predicts);
            rows.extend(predicts.then_some(row));
        }
    }
    (batch, rows)
}

/// The same, asking for the logits of the last row only, as a prefill does.
fn last_row_only(pair: &TokenizedPair) -> Batch {
    let mut batch = Batch::new();
    for (i, &t) in pair.prompt.iter().enumerate() {
        batch.add(t, i, &[0, 1], false);
    }
    for (seq, response) in [(0, &pair.chosen), (1, &pair.rejected)] {
        for (i, &t) in response.iter().enumerate() {
            batch.add(t, pair.prompt.len() + i, &[seq], seq == 1 && i + 1 == response.len());
        }
    }
    batch
}

fn logits(ctx: &Context, rows: &[usize]) -> Vec<Vec<f32>> {
    rows.iter().map(|&r| ctx.logits(r).unwrap().to_vec()).collect()
}

/// Reads one node by name.
struct Reader {
    name: String,
    rows: Vec<f32>,
}

impl EvalCallback for Reader {
    fn wants(&mut self, node: &Node<'_>) -> bool {
        node.name() == self.name
    }

    fn computed(&mut self, node: &Node<'_>) -> bool {
        self.rows = node.read_f32();
        true
    }
}

/// The first, the middle and the last layer, where only the rows that predict are left.
#[test]
fn the_residual_stream_is_that_of_a_plain_decode() {
    for model in models() {
        let pair = builtin_pairs(&model).unwrap().remove(0);
        let mut ctx = Context::new(&model, &ContextParams::exact(pair.n_tokens(), 2, 1)).unwrap();
        for layer in [1, middle_layer(&model), model.n_layer() - 1] {
            let mut reader = Reader { name: format!("l_out-{layer}"), rows: Vec::new() };
            ctx.clear_kv();
            ctx.decode_with_callback(&batch(&pair).0, &mut reader).unwrap();
            // The longer context of the second engine reads more empty cells of the cache.
            for max_tokens in [pair.n_tokens(), 400] {
                let mut engine = Engine::new(&model, &[layer], max_tokens, 1, 1).unwrap();
                for _ in 0..2 {
                    let example = engine.trace(&pair).unwrap();
                    assert!(!reader.rows.is_empty() && example.residual() == reader.rows, "layer {layer}");
                }
            }
        }
    }
}

/// The reference is what the engine gives for vectors of zeros: bit for bit, so that the margin there is 0.
#[test]
fn the_reference_is_the_policy_without_a_vector() {
    for model in models() {
        let pairs = builtin_pairs(&model).unwrap();
        let refs: Vec<&TokenizedPair> = pairs.iter().collect();
        let n = pairs.iter().map(TokenizedPair::n_tokens).sum();
        let mut engine = Engine::new(&model, &[2, middle_layer(&model)], n, pairs.len(), 1).unwrap();
        let example = engine.trace_batch(&refs).unwrap();
        let zeros = vec![0.0; engine.n_params()];
        for want_grads in [false, true] {
            assert_eq!(engine.run(&example, &zeros, want_grads).unwrap().logp, example.references());
        }
    }
}

/// Skips what depends on a node.
struct Skipper {
    from: String,
    above: HashSet<NodeId>,
    n_skipped: usize,
    all: bool,
}

impl EvalCallback for Skipper {
    fn wants(&mut self, _node: &Node<'_>) -> bool {
        false
    }

    fn computed(&mut self, _node: &Node<'_>) -> bool {
        true
    }

    fn skips(&mut self, node: &Node<'_>) -> bool {
        let above = (0..10).filter_map(|i| node.src(i)).any(|s| self.above.contains(&s.id()));
        if above || node.name() == self.from {
            self.above.insert(node.id());
        }
        self.n_skipped += usize::from(above || self.all);
        above || self.all
    }
}

/// llama.cpp runs the same graph again for a batch of the same shape: what a tap skipped must be computed then.
#[test]
fn a_decode_after_a_skipped_one_computes_everything() {
    for model in models() {
        let pair = builtin_pairs(&model).unwrap().remove(0);
        let (batch, rows) = batch(&pair);
        let mut fresh = Context::new(&model, &ContextParams::exact(pair.n_tokens(), 2, 1)).unwrap();
        fresh.decode(&batch).unwrap();
        let want = logits(&fresh, &rows);
        let mut turned = pair.clone();
        turned.prompt.reverse();
        let (other, _) = self::batch(&turned);
        let mut ctx = Context::new(&model, &ContextParams::exact(pair.n_tokens(), 2, 1)).unwrap();
        for all in [false, true] {
            let from = format!("l_out-{}", middle_layer(&model));
            let mut skipper = Skipper { from, above: HashSet::new(), n_skipped: 0, all };
            // Another batch of the same shape first, so that what lies in memory is not the right answer by chance.
            ctx.clear_kv();
            ctx.decode(&other).unwrap();
            ctx.clear_kv();
            ctx.decode_with_callback(&batch, &mut skipper).unwrap();
            assert!(skipper.n_skipped > 100, "{} nodes skipped", skipper.n_skipped);
            assert!(logits(&ctx, &rows) != want, "nothing was skipped");
            ctx.clear_kv();
            ctx.decode(&batch).unwrap();
            assert!(logits(&ctx, &rows) == want, "{}: another decode than a fresh one", model.architecture());
        }
    }
}

/// Time of a capture over that of a plain prefill of the same tokens, alternating. Not a test: prints what it measures.
#[test]
#[ignore = "measures; run it alone: cargo test --release --test capture -- --ignored --nocapture"]
fn cost_of_a_capture() {
    for model in models() {
        let template = ChatTemplate::new(&model, &TemplateChoice::None).unwrap();
        let set = PreferenceSet::open(Path::new("misconceptions")).unwrap();
        let pairs: Vec<TokenizedPair> = set.pairs[..12]
            .iter()
            .map(|p| template.encode_pair(&model, &p.prompt, &p.chosen, &p.rejected).unwrap())
            .collect();
        let longest = pairs.iter().map(TokenizedPair::n_tokens).max().unwrap();
        let mut engine = Engine::new(&model, &[middle_layer(&model)], longest, 1, 0).unwrap();
        let mut plain = Context::new(&model, &ContextParams::exact(longest, 2, 0)).unwrap();
        let zeros = vec![0.0; model.n_embd()];
        let (mut times, mut bytes, mut nodes) = ([Duration::ZERO; 7], 0, 0);
        let folder = tempfile::tempdir().unwrap();
        for pair in pairs.iter().chain(&pairs) {
            let (batch, _) = batch(pair);
            let last = last_row_only(pair);
            for (slot, b) in [(0, &batch), (1, &last)] {
                plain.clear_kv();
                let start = Instant::now();
                plain.decode(b).unwrap();
                times[slot] += start.elapsed();
            }
            let start = Instant::now();
            let example = engine.trace(pair).unwrap();
            times[2] += start.elapsed();
            let start = Instant::now();
            engine.run(&example, &zeros, false).unwrap();
            times[3] += start.elapsed();
            let start = Instant::now();
            engine.run(&example, &zeros, true).unwrap();
            times[4] += start.elapsed();
            engine = engine.with_cache(Some(Cache::open(folder.path(), CacheType::F32, "").unwrap()));
            engine.trace(pair).unwrap();
            let start = Instant::now();
            engine.trace(pair).unwrap();
            times[5] += start.elapsed();
            engine.take_cache();
            let start = Instant::now();
            engine.step_bytes(&example).unwrap();
            times[6] += start.elapsed();
            bytes += example.as_ref().bytes();
            nodes += example.as_ref().n_nodes();
        }
        let n: usize = pairs.iter().map(TokenizedPair::n_tokens).sum();
        let ms = times.map(|t| t.as_secs_f64() * 500.0 / pairs.len() as f64);
        eprintln!(
            "{}: {:.0} tokens a pair, {} threads; ms a pair: prefill {:.1} (logits of the last row only {:.1}), capture {:.1} (from the cache \
             {:.1}), forward {:.1}, gradient {:.1} (making and laying out its graph {:.2}); capture / prefill {:.3} ({:.3}); {} KB and {} nodes",
            model.architecture(),
            n as f64 / pairs.len() as f64,
            plain.n_threads(),
            ms[0],
            ms[1],
            ms[2],
            ms[5],
            ms[3],
            ms[4],
            ms[6],
            ms[2] / ms[0],
            ms[2] / ms[1],
            bytes / 2000 / pairs.len(),
            nodes / 2 / pairs.len()
        );
    }
}
