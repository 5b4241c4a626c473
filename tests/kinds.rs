//! Every kind of intervention: gradients against central differences, rows in company, scopes.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use bidpo_core::check::{kind_differences, random_parameters};
use bidpo_core::data::TokenizedPair;
use bidpo_core::engine::{
    BatchLoss, BatchPlan, BatchRun, BatchScore, Direction, Engine, PairLogp, Parameters, ResponseDerivative,
    ResponseSlopes, RetainedText, TracedPair,
};
use bidpo_core::intervention::{Kind, KindSpec, Scope};
use bidpo_core::numbers::{cosine, dot, median};
use bidpo_core::train::Precision;
use common::random_model::model;
use common::steered::pairs;
use ggml_grad::llama::{DType, Model};
use std::sync::Arc;

const LAYER: usize = 1;

fn specs() -> Vec<KindSpec> {
    let mut specs: Vec<KindSpec> = Kind::EACH.into_iter().map(KindSpec::from).collect();
    specs.push(KindSpec { mean: true, tau: 0.5, ..Kind::PromptGate.into() });
    specs.push(KindSpec { rank: 2, ..Kind::LowRank.into() });
    specs
}

fn engine(model: &Arc<Model>, spec: &KindSpec, scope: &Scope, precision: Precision) -> Engine {
    let longest = pairs().iter().map(TokenizedPair::n_tokens).max().unwrap();
    let mut engine = Engine::new(model, &[LAYER], longest, 1, 1)
        .unwrap()
        .with_intervention(spec.intervention(1, model.n_embd()).unwrap())
        .with_scope(scope.clone());
    engine.set_precision(precision);
    engine
}

#[test]
fn every_part_of_every_kind_agrees_with_central_differences() {
    for family in ["llama", "gemma3", "qwen2"] {
        let (_directory, model) = model(family, DType::F32);
        for spec in specs() {
            let found = kind_differences(&model, LAYER, &spec, &Scope::ALL, &pairs()[..2], 1).unwrap();
            assert!(!found.is_empty() && found.len().is_multiple_of(2));
            for d in found {
                assert!(d.passed() && d.analytic > 0.0, "{family}, {} {}: {d:?}", spec.kind, spec.settings());
            }
        }
    }
}

/// The component that `reps` takes out, through engine and model: along a vector that every row has a positive component of, for
/// the function has a kink where a component is 0.
#[test]
fn a_component_taken_out_agrees_with_central_differences() {
    for family in ["llama", "gemma3"] {
        let (_directory, model) = model(family, DType::F32);
        let mut engine = engine(&model, &KindSpec::default(), &Scope::ALL, Precision::EXACT);
        engine.set_smooth(true);
        let traced = engine.trace(&pairs()[1]).unwrap();
        let n = model.n_embd();
        let mut theta = vec![0f32; n];
        for row in traced.residual().chunks_exact(n) {
            let length = dot(row, row).sqrt() as f32;
            theta.iter_mut().zip(row).for_each(|(v, h)| *v += h / length);
        }
        assert!(
            traced.residual().chunks_exact(n).all(|h| dot(h, &theta) > 0.05 * (dot(h, h) * dot(&theta, &theta)).sqrt())
        );
        let at = Parameters { theta: &theta, direction: Direction::Null };
        let grad = engine.run(&traced, at, true).unwrap().grads.remove(0);
        let (slope, size) = (dot(&grad, &grad).sqrt(), dot(&theta, &theta).sqrt());
        let mut value = |step: f64| {
            let moved: Vec<f32> =
                theta.iter().zip(&grad).map(|(v, g)| (f64::from(*v) + step * size * g / slope) as f32).collect();
            let at = Parameters { theta: &moved, direction: Direction::Null };
            engine.run(&traced, at, false).unwrap().logp[0].gap()
        };
        let mut difference = |h: f64| (value(h) - value(-h)) / (2.0 * h * size);
        let numeric = (4.0 * difference(0.005) - difference(0.01)) / 3.0;
        assert!(slope > 0.0 && (numeric / slope - 1.0).abs() < 5e-3, "{family}: {numeric} for {slope}");
    }
}

#[test]
fn scopes_agree_with_central_differences() {
    let (_directory, model) = model("llama", DType::F32);
    for scope in ["prompt", "answer", "first:2", "last:2", "after:1", "first:1+after:2"] {
        for kind in [Kind::Add, Kind::Gate, Kind::LowRank] {
            let scope: Scope = scope.parse().unwrap();
            for d in kind_differences(&model, LAYER, &kind.into(), &scope, &pairs()[..2], 1).unwrap() {
                assert!(d.passed() && d.analytic > 0.0, "{kind}, scope {scope}: {d:?}");
            }
        }
    }
}

/// What a scope leaves out is out: the parts of the two halves add up to the whole for a vector so small that the model is
/// linear in it, and the last answer token alone does not move its own prediction by what comes behind it.
#[test]
fn a_scope_of_everything_is_all_and_parts_are_not() {
    let (_directory, model) = model("llama", DType::F32);
    let spec = KindSpec::default();
    let logp = |scope: &str| {
        let mut engine = engine(&model, &spec, &scope.parse().unwrap(), Precision::EXACT);
        let traced = engine.trace(&pairs()[0]).unwrap();
        let residual = median(&traced.norms()[0]).unwrap();
        let theta = random_parameters(&**engine.intervention(), residual, model.n_embd(), 1);
        engine.run(&traced, &theta, false).unwrap().logp[0]
    };
    let (all, prompt, answer) = (logp("all"), logp("prompt"), logp("answer"));
    assert_eq!(all, logp("prompt+answer"));
    assert!(all != prompt && all != answer && prompt != answer);
    assert_eq!(logp("first:5+after:1"), all);
}

/// The bits of a pair alone, whatever it shares its graph with.
#[test]
fn pairs_in_company_give_what_each_gives_alone() {
    let (_directory, model) = model("llama", DType::from_name("q8_0").unwrap());
    let scopes = ["all", "prompt", "last:2", "answer", "first:2"].map(|s| s.parse::<Scope>().unwrap());
    for (spec, scope) in specs().into_iter().flat_map(|k| scopes.iter().map(move |s| (k, s))) {
        let mut engine = engine(&model, &spec, scope, Precision::default());
        if let Err(reason) = engine.batches_pairs() {
            return common::skipped(&reason.to_string());
        }
        let traced: Vec<TracedPair> = pairs().iter().map(|p| engine.trace(p).unwrap()).collect();
        let members: Vec<&TracedPair> = traced.iter().collect();
        let residual = median(&traced[0].norms()[0]).unwrap();
        let theta = random_parameters(&**engine.intervention(), residual, model.n_embd(), 2);
        let at = Parameters { theta: &theta, direction: Direction::Reverse };
        let batch = engine.run_batch(&members, at, Some(&|margin| 1.0 + margin)).unwrap();
        let mut sum = vec![0.0; theta.len()];
        for (pair, together) in traced.iter().zip(&batch.logp) {
            let alone = engine.run(pair, at, true).unwrap();
            assert_eq!(alone.logp[0], *together, "{}, {scope}", spec.kind);
            let factor = 1.0 + (together.gap() - pair.reference().gap());
            sum.iter_mut().zip(&alone.grads[0]).for_each(|(sum, g)| *sum += factor * g);
        }
        if sum.iter().any(|x| *x != 0.0) {
            let agreement = cosine(&batch.grad, &sum);
            assert!(agreement > 0.999, "{}, {scope}: {agreement}", spec.kind);
        }
        let joined = engine.join(&members).unwrap().expect("these can be joined");
        let rows: usize = traced.iter().map(TracedPair::n_tokens).sum();
        assert!(joined.n_tokens() < rows - traced.len(), "{scope}: no prefix is shared");
    }
}

/// A batch under a loss with a derivative for each response.
fn by_responses(
    engine: &mut Engine,
    members: &[&TracedPair],
    theta: &[f32],
    derivative: ResponseDerivative<'_>,
) -> BatchScore {
    let run = BatchRun { members: members.to_vec(), at: theta.into(), loss: BatchLoss::OfResponses(derivative) };
    engine.run_batches(&[run]).unwrap().remove(0)
}

/// A loss that weighs the two responses by themselves: with the weights of the margin's loss it gives that loss's gradient, and with
/// other weights the slope of the weighted log-probabilities, by central differences; in company and alone.
#[test]
fn responses_are_weighed_by_themselves() {
    for (dtype, precision) in [("q8_0", Precision::default()), ("f32", Precision::EXACT)] {
        let (_directory, model) = model("llama", DType::from_name(dtype).unwrap());
        let mut engine = engine(&model, &KindSpec::default(), &Scope::ALL, precision);
        engine.set_smooth(true);
        let traced: Vec<TracedPair> = pairs().iter().map(|p| engine.trace(p).unwrap()).collect();
        let members: Vec<&TracedPair> = traced.iter().collect();
        let theta = random_parameters(&**engine.intervention(), 20.0, model.n_embd(), 3);
        let margin = engine.run_batch(&members, &theta, Some(&|margin| 1.0 + margin)).unwrap();
        let references: Vec<f64> = traced.iter().map(|t| t.reference().gap()).collect();
        let by = |i: usize, logp: &PairLogp| {
            let slope = 1.0 + logp.gap() - references[i];
            ResponseSlopes { chosen: slope, rejected: -slope }
        };
        let same = by_responses(&mut engine, &members, &theta, &by);
        assert_eq!(same.logp, margin.logp);
        assert!(cosine(&same.grad, &margin.grad) > 0.9999, "{dtype}");
        // d/dtheta sum_i (0.5 + i) log p(chosen_i) - 0.2 log p(rejected_i)
        let weights = |i: usize, _: &PairLogp| ResponseSlopes { chosen: 0.5 + i as f64, rejected: -0.2 };
        let got = by_responses(&mut engine, &members, &theta, &weights).grad;
        if dtype != "f32" {
            // Rounded activations have no slope: ggml's own kernels and F32 gradients, each pair alone, are the measure.
            let (_directory, model) = self::model("llama", DType::from_name(dtype).unwrap());
            let mut exact = self::engine(&model, &KindSpec::default(), &Scope::ALL, Precision::EXACT);
            let traced: Vec<TracedPair> = pairs().iter().map(|p| exact.trace(p).unwrap()).collect();
            let want = by_responses(&mut exact, &traced.iter().collect::<Vec<_>>(), &theta, &weights).grad;
            assert!(cosine(&got, &want) > 0.99, "{}", cosine(&got, &want));
            continue;
        }
        let length = got.iter().map(|g| g * g).sum::<f64>().sqrt();
        let mut value = |h: f64| -> f64 {
            let moved: Vec<f32> = theta.iter().zip(&got).map(|(x, g)| x + (h * g / length) as f32).collect();
            let logp = engine.run_batch(&members, &moved, None).unwrap().logp;
            logp.iter().enumerate().map(|(i, p)| (0.5 + i as f64) * p.chosen - 0.2 * p.rejected).sum()
        };
        let numeric = (value(0.02) - value(-0.02)) / 0.04;
        assert!((numeric / length - 1.0).abs() < 5e-3, "{dtype}: {length} and {numeric}");
    }
}

/// Divergences in company are those of each text alone, in all bits; the unsteered model differs from itself by nothing.
#[test]
fn retained_texts_in_company_give_what_each_gives_alone() {
    let (_directory, model) = model("llama", DType::from_name("q8_0").unwrap());
    for (spec, scope) in specs().into_iter().flat_map(|k| ["all", "answer"].map(|s| (k, s))) {
        let mut engine = engine(&model, &spec, &scope.parse().unwrap(), Precision::default());
        let texts = pairs().into_iter().map(|p| TokenizedPair { rejected: Vec::new(), ..p });
        let texts: Vec<RetainedText> = texts.map(|t| engine.trace_retained(&t).unwrap()).collect();
        let members: Vec<&RetainedText> = texts.iter().collect();
        let none: Vec<f32> = engine.intervention().initial(0).iter().map(|&x| x as f32).collect();
        let unchanged = engine.diverge(&members, &none, Some(1.0)).unwrap();
        assert!(unchanged.nats.iter().all(|d| *d == 0.0), "{}: {:?}", spec.kind, unchanged.nats);
        assert!(unchanged.grad.iter().all(|g| *g == 0.0), "{}", spec.kind);
        let theta = random_parameters(&**engine.intervention(), 20.0, model.n_embd(), 2);
        let at = Parameters { theta: &theta, direction: Direction::Reverse };
        let together = engine.diverge(&members, at, Some(0.25)).unwrap();
        let mut sum = vec![0.0; theta.len()];
        for (text, nats) in texts.iter().zip(&together.nats) {
            let alone = engine.diverge(&[text], at, Some(0.25)).unwrap();
            assert_eq!(alone.nats, [*nats], "{}, {scope}", spec.kind);
            assert!(*nats >= 0.0);
            sum.iter_mut().zip(&alone.grad).for_each(|(sum, g)| *sum += g);
        }
        assert!(together.nats.iter().any(|d| *d > 0.0), "{}, {scope}", spec.kind);
        let agreement = cosine(&together.grad, &sum);
        assert!(agreement > 0.999, "{}, {scope}: {agreement}", spec.kind);
        assert_eq!(engine.diverge_all(&texts, at, BatchPlan::with_max_tokens(20)).unwrap(), together.nats);
    }
}

/// The divergence against its definition, from the lifted graph's logits.
#[test]
fn divergence_is_that_of_the_logits() {
    for family in ["llama", "gemma2"] {
        let (_directory, model) = model(family, DType::F32);
        let mut engine = engine(&model, &KindSpec::default(), &Scope::ALL, Precision::EXACT);
        let pair = TokenizedPair { rejected: Vec::new(), ..pairs()[0].clone() };
        let text = engine.trace_retained(&pair).unwrap();
        let traced = engine.trace(&pair).unwrap();
        let theta = random_parameters(&**engine.intervention(), 20.0, model.n_embd(), 5);
        let zeros = vec![0.0; theta.len()];
        let [p, q] = [&zeros, &theta].map(|v| engine.logits(&traced, v).unwrap());
        let logs = |z: &[f32]| {
            let max = z.iter().fold(f64::MIN, |m, &z| m.max(f64::from(z)));
            let log_z = max + z.iter().map(|&z| (f64::from(z) - max).exp()).sum::<f64>().ln();
            z.iter().map(|&z| f64::from(z) - log_z).collect::<Vec<f64>>()
        };
        let rows = p.chunks(model.n_vocab()).zip(q.chunks(model.n_vocab()));
        let want: f64 =
            rows.map(|(p, q)| logs(p).iter().zip(logs(q)).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()).sum();
        let got = engine.diverge(&[&text], &theta, None).unwrap().nats[0];
        assert!(want > 1e-3 && (got - want).abs() < 1e-4 * want, "{family}: {got} for {want}");
    }
}

/// A gate that is fully open adds the vector, to the last bit, in both directions.
#[test]
fn an_open_gate_is_add() {
    for family in ["llama", "gemma3"] {
        let (_directory, model) = model(family, DType::F32);
        let n = model.n_embd();
        let mut added = engine(&model, &KindSpec::default(), &Scope::ALL, Precision::EXACT);
        let traced = added.trace(&pairs()[0]).unwrap();
        let residual = median(&traced.norms()[0]).unwrap();
        let v = random_parameters(&**added.intervention(), residual, n, 1);
        for (kind, bias) in [(Kind::Gate, 1e3), (Kind::LinearGate, 1.0)] {
            let mut gated = engine(&model, &kind.into(), &Scope::ALL, Precision::EXACT);
            let theta: Vec<f32> = std::iter::repeat_n(0.0, n).chain([bias]).chain(v.iter().copied()).collect();
            let pair = gated.trace(&pairs()[0]).unwrap();
            for direction in [Direction::Forward, Direction::Reverse] {
                let want = added.run(&traced, Parameters { theta: &v, direction }, true).unwrap();
                let got = gated.run(&pair, Parameters { theta: &theta, direction }, true).unwrap();
                assert_eq!(got.logp, want.logp, "{family}, {kind}");
                assert_eq!(got.grads[0][n + 1..], want.grads[0][..], "{family}, {kind}");
            }
        }
    }
}

#[test]
fn no_kind_changes_anything_before_the_first_step() {
    let (_directory, model) = model("llama", DType::F32);
    for spec in specs() {
        let mut engine = engine(&model, &spec, &Scope::ALL, Precision::EXACT);
        let traced = engine.trace(&pairs()[0]).unwrap();
        let theta: Vec<f32> = engine.intervention().initial(3).iter().map(|&x| x as f32).collect();
        let run = engine.run(&traced, &theta, true).unwrap();
        assert_eq!(run.logp[0], traced.reference(), "{}", spec.kind);
        assert!(run.grads[0].iter().any(|g| *g != 0.0), "{}: nothing would ever be trained", spec.kind);
    }
}
