//! The engine on real models: the lifted graph is llama.cpp's own, and its gradient is the gradient.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use bidpo_core::check::{F32Copy, builtin_pairs, central_differences, middle_layer, random_vector};
use bidpo_core::data::TokenizedPair;
use bidpo_core::engine::{BatchLoss, BatchRun, Engine, EngineError, PairLogp, Parameters, TracedPair, check_model};
use bidpo_core::numbers::median;
use bidpo_core::train::loss;
use ggml_grad::graph::emit::{Backward, Forward, Precision};
use ggml_grad::llama::{Batch, Context, ContextParams, Model, ModelParams, Token};
use std::sync::{Arc, LazyLock};

const BETA: f64 = 0.1;

fn load(name: &str) -> Option<Arc<Model>> {
    Some(Model::load(&common::model(name)?, &ModelParams::default()).unwrap())
}

static SMOL: LazyLock<Option<Arc<Model>>> = LazyLock::new(|| load(common::SMOL));
static GEMMA: LazyLock<Option<Arc<Model>>> = LazyLock::new(|| load(common::GEMMA));

fn models() -> impl Iterator<Item = &'static Arc<Model>> {
    [&SMOL, &GEMMA].into_iter().filter_map(|m| m.as_ref())
}

fn n_tokens(pairs: &[TokenizedPair]) -> usize {
    pairs.iter().map(TokenizedPair::n_tokens).sum()
}

fn engine(model: &Arc<Model>, layer: usize, pairs: &[TokenizedPair]) -> Engine {
    Engine::new(model, &[layer], n_tokens(pairs), pairs.len(), 1).unwrap()
}

/// A forward pass by kernels that give ggml's bits.
const GGMLS: Precision = Precision { forward: Forward::Exact, backward: Backward::Bf16 };

/// A vector of `percent` of the median residual norm, in a fixed direction.
fn vector(n_embd: usize, norms: &[f32], percent: f64) -> Vec<f32> {
    let raw: Vec<f64> = (0..n_embd).map(|i| (i as f64 * 1.7).sin() + 0.3 * (i as f64 * 0.31).cos()).collect();
    let length = raw.iter().map(|x| x * x).sum::<f64>().sqrt();
    raw.iter().map(|x| (x * percent / 100.0 * median(norms).unwrap() / length) as f32).collect()
}

fn log_p(logits: &[f32], token: Token) -> f64 {
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    f64::from(logits[token as usize] - max) - sum.ln()
}

/// `|a - b| / |b|`
fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let length = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    length(&mut a.iter().zip(b).map(|(a, b)| a - b)) / length(&mut b.iter().copied())
}

/// The first steered layer, the middle, and the last, whose entry holds only the rows that predict.
#[test]
fn lifted_logits_equal_llama_decode_at_every_depth() {
    for model in models() {
        let pairs = builtin_pairs(model).unwrap();
        let refs: Vec<&TokenizedPair> = pairs.iter().collect();
        for layer in [1, middle_layer(model), model.n_layer() - 1] {
            let what = format!("{}, layer {layer}", model.architecture());
            let mut engine = engine(model, layer, &pairs);
            let example = engine.trace_batch(&refs).unwrap();
            let a = engine.compare(&example).unwrap();
            assert_eq!((a.unsteered, a.steered), (0.0, 0.0), "{what}");
            assert!(a.effect > 0.05, "{what}: a vector moves logits by {} only", a.effect);
            // The prompt's last token predicts two first tokens; each response's last token predicts nothing.
            let rows: usize = pairs.iter().map(|p| p.chosen.len() + p.rejected.len() - 1).sum();
            assert_eq!(a.n_logits, rows * model.n_vocab(), "{what}");
        }
    }
}

/// The same against a plain context made here: no tap, no marker, no layout of the engine's.
#[test]
fn a_plain_context_gives_the_same_logits() {
    for model in models() {
        let pair = builtin_pairs(model).unwrap().remove(0);
        let (layer, n_embd, n_vocab) = (middle_layer(model), model.n_embd(), model.n_vocab());
        let mut engine = engine(model, layer, std::slice::from_ref(&pair));
        let example = engine.trace(&pair).unwrap();
        engine.set_precision(GGMLS);
        let by_ggml = engine.trace(&pair).unwrap();
        let n = pair.n_tokens();
        let mut ctx = Context::new(model, &ContextParams::exact(n, 2, 1)).unwrap();
        for percent in [0.0, 5.0, -20.0] {
            let v = vector(n_embd, &example.norms()[0], percent);
            let mut data = vec![0.0; (model.n_layer() - 1) * n_embd];
            data[(layer - 1) * n_embd..layer * n_embd].copy_from_slice(&v);
            ctx.set_control_vector(&data, layer, layer).unwrap();
            let mut batch = Batch::new();
            let mut rows = Vec::new(); // of the batch, in its order
            for (i, &t) in pair.prompt.iter().enumerate() {
                rows.push(batch.add(t, i, &[0, 1], true));
            }
            rows.drain(..rows.len() - 1);
            for (seq, response) in [(0, &pair.chosen), (1, &pair.rejected)] {
                for (i, &t) in response.iter().enumerate() {
                    let row = batch.add(t, pair.prompt.len() + i, &[seq], true);
                    if i + 1 < response.len() {
                        rows.push(row);
                    }
                }
            }
            ctx.decode(&batch).unwrap();
            let lifted = engine.logits(&example, &v).unwrap();
            assert_eq!(lifted.len(), rows.len() * n_vocab);
            for (ours, &row) in lifted.chunks_exact(n_vocab).zip(&rows) {
                assert!(ours == ctx.logits(row).unwrap(), "{}, {percent} %, row {row}", model.architecture());
            }
            // The summed log-probabilities, by hand.
            let exact = engine.run(&by_ggml, &v, false).unwrap().logp[0];
            engine.set_precision(Precision::default());
            let scored = engine.run(&example, &v, false).unwrap().logp[0];
            engine.set_precision(GGMLS);
            let mut want = PairLogp::default();
            let first = ctx.logits(pair.prompt.len() - 1).unwrap();
            want.chosen += log_p(first, pair.chosen[0]);
            want.rejected += log_p(first, pair.rejected[0]);
            for (i, &t) in pair.chosen.iter().enumerate().skip(1) {
                want.chosen += log_p(ctx.logits(pair.prompt.len() + i - 1).unwrap(), t);
            }
            for (i, &t) in pair.rejected.iter().enumerate().skip(1) {
                want.rejected += log_p(ctx.logits(pair.prompt.len() + pair.chosen.len() + i - 1).unwrap(), t);
            }
            // Sums in another order move a response by tenths of a nat, llama.cpp's own two kinds of attention as well.
            for (got, limit) in [(exact, 1e-4), (scored, 1.0)] {
                for (got, want) in [(got.chosen, want.chosen), (got.rejected, want.rejected)] {
                    assert!((got - want).abs() < limit, "{}, {percent} %: {got} for {want}", model.architecture());
                }
            }
            if percent == 0.0 {
                let r = example.reference();
                assert!((r.chosen - scored.chosen).abs() < 1e-9 && (r.rejected - scored.rejected).abs() < 1e-9);
            }
        }
    }
}

/// Vectors of several layers lie one after the other, lowest layer first.
fn joint(n_embd: usize, norms: &[Vec<f32>], percent: f64) -> Vec<f32> {
    norms.iter().enumerate().flat_map(|(i, n)| vector(n_embd, n, percent * (1.0 - 0.3 * i as f64))).collect()
}

/// Several layers at once, the first, the middle and the last of the model, and two with a gap between them: the same
/// logits as a plain context on which llama.cpp adds all of them.
#[test]
fn several_layers_give_the_same_logits() {
    for model in models() {
        let pair = builtin_pairs(model).unwrap().remove(0);
        let (n_embd, n_vocab, n) = (model.n_embd(), model.n_vocab(), pair.n_tokens());
        let mut ctx = Context::new(model, &ContextParams::exact(n, 2, 1)).unwrap();
        for layers in [vec![1, middle_layer(model), model.n_layer() - 1], vec![5, 9]] {
            let what = format!("{}, layers {layers:?}", model.architecture());
            let mut engine = Engine::new(model, &layers, n, 1, 1).unwrap();
            assert_eq!((engine.layers(), engine.n_params()), (&layers[..], layers.len() * n_embd));
            let example = engine.trace(&pair).unwrap();
            assert_eq!(example.norms().len(), layers.len());
            let a = engine.compare(&example).unwrap();
            assert_eq!((a.unsteered, a.steered), (0.0, 0.0), "{what}");
            for percent in [0.0, 4.0, -10.0] {
                let v = joint(n_embd, example.norms(), percent);
                let mut data = vec![0.0; (model.n_layer() - 1) * n_embd];
                for (&layer, v) in layers.iter().zip(v.chunks(n_embd)) {
                    data[(layer - 1) * n_embd..layer * n_embd].copy_from_slice(v);
                }
                ctx.set_control_vector(&data, layers[0], layers[layers.len() - 1]).unwrap();
                let mut batch = Batch::new();
                let mut rows = Vec::new(); // those that predict a token of a response
                for (i, &t) in pair.prompt.iter().enumerate() {
                    let row = batch.add(t, i, &[0, 1], i + 1 == pair.prompt.len());
                    rows.extend((i + 1 == pair.prompt.len()).then_some(row));
                }
                for (seq, response) in [(0, &pair.chosen), (1, &pair.rejected)] {
                    for (i, &t) in response.iter().enumerate() {
                        let predicts = i + 1 < response.len();
                        let row = batch.add(t, pair.prompt.len() + i, &[seq], predicts);
                        rows.extend(predicts.then_some(row));
                    }
                }
                ctx.decode(&batch).unwrap();
                let lifted = engine.logits(&example, &v).unwrap();
                assert_eq!(lifted.len(), rows.len() * n_vocab);
                for (ours, &row) in lifted.chunks_exact(n_vocab).zip(&rows) {
                    assert!(ours == ctx.logits(row).unwrap(), "{what}, {percent} %, row {row}");
                }
            }
        }
    }
}

/// With nothing added at the other layers, a layer's part of the joint gradient is the gradient of that layer alone.
#[test]
fn a_part_of_the_joint_gradient_is_that_layers_own() {
    for model in models() {
        let pair = builtin_pairs(model).unwrap().remove(0);
        let (n_embd, n) = (model.n_embd(), pair.n_tokens());
        let layers = [1, 5, 9, model.n_layer() - 1];
        let mut together = Engine::new(model, &layers, n, 1, 1).unwrap();
        // What lies below another layer goes through other kernels: with those that give the same bits.
        together.set_precision(GGMLS);
        let example = together.trace(&pair).unwrap();
        for (i, &layer) in layers.iter().enumerate() {
            let what = format!("{}, layer {layer}", model.architecture());
            let v = vector(n_embd, &example.norms()[i], 5.0);
            let mut padded = vec![0.0; together.n_params()];
            padded[i * n_embd..(i + 1) * n_embd].copy_from_slice(&v);
            let joint = together.run(&example, &padded, true).unwrap();
            let mut alone = engine(model, layer, std::slice::from_ref(&pair));
            alone.set_precision(GGMLS);
            let own = alone.trace(&pair).unwrap();
            assert_eq!(own.norms()[0], example.norms()[i], "{what}");
            let own = alone.run(&own, &v, true).unwrap();
            let part = &joint.grads[0][i * n_embd..(i + 1) * n_embd];
            let apart = distance(part, &own.grads[0]);
            eprintln!("{what}: gradients within {apart:.1e}");
            assert!(apart <= 1e-6 && joint.logp[0] == own.logp[0], "{what}: {apart:.1e}");
            // The other layers' parts are gradients too, of vectors that are zero so far.
            assert!(joint.grads[0].chunks(n_embd).all(|g| g.iter().any(|&x| x != 0.0)), "{what}");
        }
    }
}

/// A prompt that two responses share gives what each response alone gives, and a pair among others what it gives alone.
/// llama.cpp rounds activations to 8 bits before each product with a quantized weight: where a sum runs in another order
/// a rounding may flip, so the quantized models carry noise here. The tight lines are in `smol_in_f32`, `gemma_in_f32`.
#[test]
fn scores_are_batch_invariant() {
    for model in models() {
        let pairs = builtin_pairs(model).unwrap();
        let line = if model.architecture() == "gemma3" { 1.0 } else { 0.3 };
        let mut engine = engine(model, middle_layer(model), &pairs);
        let together = engine.trace_batch(&pairs.iter().collect::<Vec<_>>()).unwrap();
        for (pair, all) in pairs.iter().zip(together.references()) {
            let alone = engine.trace(pair).unwrap().reference();
            for (a, b) in [(alone.chosen, all.chosen), (alone.rejected, all.rejected)] {
                assert!((a - b).abs() < line, "{}: {a} alone, {b} together", model.architecture());
            }
            for (response, shared) in [(&pair.chosen, alone.chosen), (&pair.rejected, alone.rejected)] {
                let mut ctx = Context::new(model, &ContextParams::exact(pair.n_tokens(), 1, 1)).unwrap();
                let mut batch = Batch::new();
                for (i, &t) in pair.prompt.iter().chain(response).enumerate() {
                    batch.add(t, i, &[0], true);
                }
                ctx.decode(&batch).unwrap();
                let own: f64 = response
                    .iter()
                    .enumerate()
                    .map(|(i, &t)| log_p(ctx.logits(pair.prompt.len() + i - 1).unwrap(), t))
                    .sum();
                assert!((own - shared).abs() < line, "{}: {own}, shared {shared}", model.architecture());
            }
        }
    }
}

/// Loss and gradient with respect to v of one pair, for direction d.
fn gradient(engine: &mut Engine, pair: &TokenizedPair, d: f64, v: &[f32]) -> (f64, Vec<f64>) {
    let example = engine.trace(pair).unwrap();
    let added: Vec<f32> = v.iter().map(|x| d as f32 * x).collect();
    let scored = engine.run(&example, &added, true).unwrap();
    let l = loss(d, BETA, scored.logp[0].gap() - example.reference().gap());
    (l.value, scored.grads[0].iter().map(|g| l.slope * g).collect())
}

/// With f32 weights nothing is rounded to 8 bits, so everything can be held to a tight line.
#[test]
fn smol_in_f32() {
    let Some(model) = SMOL.as_ref() else { return };
    let copy = F32Copy::new(model).unwrap();
    let model = copy.model();
    let pairs = builtin_pairs(model).unwrap();
    let refs: Vec<&TokenizedPair> = pairs.iter().collect();
    for layer in [15, 29] {
        let mut engine = engine(model, layer, &pairs);
        let example = engine.trace_batch(&refs).unwrap();
        let a = engine.compare(&example).unwrap();
        assert_eq!((a.unsteered, a.steered), (0.0, 0.0), "layer {layer}");

        let at = random_vector(&engine, &example, 1);
        let d = central_differences(&mut engine, &example, &at, 4, 1).unwrap();
        eprintln!("layer {layer}: {d:?}");
        assert!(d.relative_error <= 5e-4 && d.cosine >= 1.0 - 1e-6, "layer {layer}: {d:?}");

        // Several pairs in one capture against each alone: log-probabilities and gradients.
        let v = vector(model.n_embd(), &example.norms()[0], 5.0);
        let together = engine.run(&example, &v, true).unwrap();
        for (i, pair) in pairs.iter().enumerate() {
            let one = engine.trace(pair).unwrap();
            let alone = engine.run(&one, &v, true).unwrap();
            let gap = (alone.logp[0].gap() - together.logp[i].gap()).abs();
            let apart = distance(&together.grads[i], &alone.grads[0]);
            eprintln!("layer {layer}, pair {i}: gap within {gap:.1e}, gradient within {apart:.1e}");
            assert!(gap <= 2e-4 && apart <= 1e-4, "layer {layer}, pair {i}: gap {gap:.1e}, gradient {apart:.1e}");
        }

        // d = -1 is DPO with the responses exchanged and the vector negated; d(-v) = -dv turns the gradient around.
        let pair = &pairs[1];
        let swapped =
            TokenizedPair { prompt: pair.prompt.clone(), chosen: pair.rejected.clone(), rejected: pair.chosen.clone() };
        let minus: Vec<f32> = v.iter().map(|x| -x).collect();
        let (down, g_down) = gradient(&mut engine, pair, -1.0, &v);
        let (dpo, g_dpo) = gradient(&mut engine, &swapped, 1.0, &minus);
        let turned: Vec<f64> = g_dpo.iter().map(|g| -g).collect();
        let apart = distance(&g_down, &turned);
        eprintln!("layer {layer}: loss {down} and {dpo}, gradients within {apart:.1e}");
        assert!((down - dpo).abs() <= 1e-5 && apart <= 1e-4, "layer {layer}: {down} {dpo}, gradients {apart:.1e}");
        // And it is no other one: the plain direction has another loss and another gradient.
        let (up, g_up) = gradient(&mut engine, pair, 1.0, &v);
        assert!((up - down).abs() > 1e-3 && distance(&g_up, &g_down) > 0.1, "layer {layer}: {up} {down}");
    }
}

/// Batches side by side, on a thread each, and what is left over on both threads: the bits of one after the other on one thread.
#[test]
fn batches_side_by_side_have_the_same_bits() {
    let Some(model) = SMOL.as_ref() else { return };
    let pairs = builtin_pairs(model).unwrap();
    let (layer, longest) = (model.n_layer() - 2, n_tokens(&pairs));
    let theta = vec![0.01; model.n_embd()];
    let slope = |margin: f64| 1.0 + margin;
    let scores = [1, 2].map(|threads| {
        let mut engine = Engine::new(model, &[layer], longest, 1, threads).unwrap();
        engine.set_tokens_at_once(usize::MAX);
        assert_eq!(engine.batches_at_once(), threads as usize);
        let traced: Vec<TracedPair> = pairs.iter().map(|p| engine.trace(p).unwrap()).collect();
        let (at, loss) = (Parameters::from(&theta), BatchLoss::OfMargins(&slope));
        // Of three pairs and of two, which are joined where the CPU can, and of one.
        let members = [&traced[..], &traced[1..], &traced[..1]].map(|some| some.iter().collect());
        let runs = members.map(|members| BatchRun { members, at, loss });
        let scores = engine.run_batches(&runs).unwrap();
        scores.into_iter().map(|s| (s.logp, s.grad)).collect::<Vec<_>>()
    });
    assert!(scores[0].iter().all(|(_, grad)| grad.iter().any(|g| *g != 0.0)));
    assert_eq!(scores[0], scores[1]);
}

/// ggml evaluates GELU through a table of 16-bit floats, a staircase under the differences: a wider line.
#[test]
fn gemma_in_f32() {
    let Some(model) = GEMMA.as_ref() else { return };
    let copy = F32Copy::new(model).unwrap();
    let pairs = builtin_pairs(copy.model()).unwrap();
    for (layer, line) in [(9, 1e-2), (17, 1e-3)] {
        let mut engine = engine(copy.model(), layer, &pairs[..1]);
        let example = engine.trace_batch(&[&pairs[0]]).unwrap();
        let at = random_vector(&engine, &example, 1);
        let d = central_differences(&mut engine, &example, &at, 2, 1).unwrap();
        eprintln!("layer {layer}: {d:?}");
        assert!(d.relative_error <= line && d.cosine >= 1.0 - 1e-5, "layer {layer}: {d:?}");
    }
    let mut engine = engine(copy.model(), 9, &pairs);
    let together = engine.trace_batch(&pairs.iter().collect::<Vec<_>>()).unwrap().references().to_vec();
    for (pair, all) in pairs.iter().zip(&together) {
        let alone = engine.trace(pair).unwrap().reference();
        let apart = (alone.chosen - all.chosen).abs().max((alone.rejected - all.rejected).abs());
        eprintln!("alone and together within {apart:.1e}");
        assert!(apart <= 5e-2, "{alone:?} alone, {all:?} together");
    }
}

/// The error, without printing a whole example where there is none.
fn refused(result: Result<TracedPair, EngineError>) -> EngineError {
    match result {
        Ok(_) => panic!("an unusable pair was captured"),
        Err(error) => error,
    }
}

#[test]
fn what_cannot_be_trained_on_is_an_error_of_its_kind() {
    for model in models() {
        let n_layer = model.n_layer();
        for layer in [0, n_layer, n_layer + 7, usize::MAX] {
            let from_check = check_model(model, layer).unwrap_err();
            let from_new = Engine::new(model, &[layer], 8, 1, 1).unwrap_err();
            for error in [from_check, from_new] {
                let EngineError::Model(text) = error else { panic!("{error:?}") };
                assert!(
                    text.contains(&format!("layer {layer}")) && text.contains(&(n_layer - 1).to_string()),
                    "{text}"
                );
            }
        }
    }
    let Some(model) = SMOL.as_ref() else { return };
    let good = builtin_pairs(model).unwrap().remove(0);
    let mut engine = engine(model, 20, std::slice::from_ref(&good));
    for part in 0..2 {
        let mut pair = good.clone();
        [&mut pair.prompt, &mut pair.chosen][part].clear();
        let error = refused(engine.trace(&pair));
        assert!(matches!(error, EngineError::Pair(_)), "{error:?}");
    }
    // A pair with one response: that one's log-probability is what it is beside another.
    let one = engine.trace(&TokenizedPair { rejected: Vec::new(), ..good.clone() }).unwrap().reference();
    let both = engine.trace(&good).unwrap().reference();
    assert!(one.rejected == 0.0 && (one.chosen - both.chosen).abs() <= 5e-2, "{one:?}, {both:?}");
    let n_vocab = model.n_vocab();
    for token in [-1, n_vocab as Token, Token::MAX, Token::MIN] {
        for part in 0..3 {
            let mut pair = good.clone();
            [&mut pair.prompt, &mut pair.chosen, &mut pair.rejected][part][0] = token;
            let text = refused(engine.trace(&pair)).to_string();
            assert!(text.contains(&format!("token {token}")) && text.contains(&n_vocab.to_string()), "{text}");
        }
    }
    let mut long = good.clone();
    long.chosen = good.chosen.iter().copied().cycle().take(2000).collect();
    let text = refused(engine.trace(&long)).to_string();
    assert!(text.contains(&long.n_tokens().to_string()), "{text}");
    // The engine still works.
    let example = engine.trace(&good).unwrap();
    engine.verify(&example).unwrap();
}
