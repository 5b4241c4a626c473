//! `check` on random models of every architecture and every type of weight: logits equal to `llama_decode`'s bit for bit,
//! gradients equal to central differences on F32 weights. docs/architectures.md holds the whole table, made by
//! `make architectures`.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use bidpo_core::check::{Checks, EngineChecks, SyntheticError, check_synthetic};
use bidpo_core::engine::EngineError;
use ggml_grad::llama::{Batch, Context, ContextParams, DType, EvalCallback, Model, ModelParams, Node};
use ggml_grad::synth::{self, Family, Refusal};
use ggml_grad::trace::TraceError;

fn trained() -> impl Iterator<Item = &'static Family> {
    synth::families().iter().filter(|f| !f.is_refused())
}

/// Runs the checks and prints what was measured. Returns what is wrong, if anything.
fn run(family: &Family, dtype: DType, layers: &[usize], repack: bool) -> Result<EngineChecks, String> {
    let what = format!("{:<18} {:<8} layers {layers:?}", family.name(), dtype.name());
    let checks: Checks = check_synthetic(family, dtype, layers, repack, 1).map_err(|e| format!("{what}: {e}"))?;
    let missing: Vec<&str> = checks.survey.missing().collect();
    let Some(found) = checks.engine.clone() else { return Err(format!("{what}: no rule for {missing:?}")) };
    let d = found.differences.as_ref().expect("there is an F32 copy");
    let cosine = found.cosine_to_f32.expect("there is an F32 copy");
    eprintln!(
        "{what}: gradient {:.1e}, through the type's kernels {cosine:.5}, effect {:.2}",
        d.relative_error, found.agreement.effect
    );
    if !checks.passed() {
        return Err(format!("{what}: {found:?}"));
    }
    // What the rounding of activations may do: to F32, F16 and BF16 weights next to nothing.
    let least = if [DType::F32, DType::F16].contains(&dtype) { 0.999 } else { 0.5 };
    if cosine.is_nan() || cosine < least {
        return Err(format!("{what}: cosine {cosine} between the gradient and that of the F32 copy"));
    }
    Ok(found)
}

fn all_pass(outcomes: impl Iterator<Item = Result<EngineChecks, String>>) -> usize {
    let (mut n, mut wrong) = (0, Vec::new());
    for outcome in outcomes {
        n += 1;
        wrong.extend(outcome.err());
    }
    assert!(wrong.is_empty(), "{} of {n}:\n{}", wrong.len(), wrong.join("\n"));
    n
}

/// Every second family with F32 weights, where nothing but the rules can be wrong, at each of its layers; variants at the
/// first. Two tests, because tests run in parallel.
fn every_second_in_f32(first: usize) {
    let families = trained().skip(first).step_by(2);
    let layers = |f: &'static Family| if f.is_variant() { &f.layers()[..1] } else { f.layers() };
    let cases = families.flat_map(|f| layers(f).iter().map(move |&layer| run(f, DType::F32, &[layer], false)));
    assert!(all_pass(cases) > 80);
}

#[test]
fn every_architecture_in_f32() {
    every_second_in_f32(0);
}

#[test]
fn every_architecture_in_f32_from_the_second() {
    every_second_in_f32(1);
}

/// Every family but for variants with quantized weights, the types dealt out in turn.
#[test]
fn every_architecture_quantized() {
    let types = &DType::WEIGHTS[1..];
    let families = trained().filter(|f| !f.is_variant());
    all_pass(families.enumerate().map(|(i, f)| run(f, types[i % types.len()], &f.layers()[..1], false)));
}

/// Every type of weight: as one matrix, as the matrices of experts, and one for each head.
#[test]
fn every_type() {
    for name in ["llama", "mixtral", "deepseek2"] {
        let family = synth::family(name).unwrap();
        all_pass(DType::WEIGHTS.into_iter().map(|t| run(family, t, &[2], false)));
    }
}

/// Vectors at several layers at once, the last one and such with a gap between them included.
#[test]
fn several_layers() {
    for name in ["llama", "gemma3", "gemma4", "qwen3moe", "deepseek2"] {
        let family = synth::family(name).unwrap();
        let last = family.shape().n_layer - 1;
        let sets = [(1..=last).collect::<Vec<_>>(), vec![1, last]];
        all_pass(sets.iter().map(|layers| run(family, DType::F32, layers, false)));
    }
}

/// Notes whether a decode reads a weight that the CPU cannot read plainly.
#[derive(Default)]
struct Repacked(usize);

impl EvalCallback for Repacked {
    fn wants(&mut self, node: &Node) -> bool {
        let sources = (0..10).filter_map(|i| node.src(i));
        self.0 += sources.filter(|s| s.weight().is_some() && !s.is_host()).count();
        false
    }

    fn computed(&mut self, _: &Node) -> bool {
        true
    }
}

/// Weights in a form of the CPU's own: forward as they are, backward from a plain copy.
#[test]
fn repacked_weights() {
    let mut met = 0;
    for (name, dtype) in
        [("llama", "q4_0"), ("llama", "q4_k"), ("llama", "iq4_nl"), ("mixtral", "q4_0"), ("gemma3", "q8_0")]
    {
        let (family, dtype) = (synth::family(name).unwrap(), DType::from_name(dtype).unwrap());
        all_pass([run(family, dtype, &[1], true)].into_iter());

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        synth::write(&path, family, &family.shape(), dtype, 1).unwrap();
        let model = Model::load(&path, &ModelParams { plain_weights: false, ..Default::default() }).unwrap();
        let mut batch = Batch::new();
        batch.add(5, 0, &[0], true);
        let mut tap = Repacked::default();
        Context::new(&model, &ContextParams::exact(1, 1, 1)).unwrap().decode_with_callback(&batch, &mut tap).unwrap();
        met += tap.0;
    }
    // On x86 with AVX2 and on ARM llama.cpp repacks these types; elsewhere there is nothing to test.
    let repacks = cfg!(all(target_arch = "x86_64", target_feature = "avx2")) || cfg!(target_arch = "aarch64");
    assert!(!repacks || met > 0, "no weight was repacked: this test tested nothing");
}

/// A model without a residual stream of this kind is refused with the architecture's name.
#[test]
fn refused_architectures() {
    let refused: Vec<&Family> = synth::families().iter().filter(|f| f.is_refused()).collect();
    assert_eq!(refused.len(), 5);
    for family in refused {
        let e = check_synthetic(family, DType::F32, &[1], false, 1).unwrap_err();
        let SyntheticError::Engine(e) = e else { panic!("{e:?}") };
        let by_kind = match family.refusal() {
            Some(Refusal::EncoderDecoder) => matches!(e, EngineError::Trace(TraceError::Unsupported(_))),
            Some(Refusal::NoControlVectors) => e.to_string().contains("does not apply control vectors"),
            Some(Refusal::MissingRule) => e.to_string().contains("LIGHTNING_INDEXER"),
            None => false,
        };
        let message = e.to_string();
        let names_it = family.refusal() == Some(Refusal::MissingRule) || message.contains(family.arch());
        assert!(by_kind && names_it, "{message}");
    }
}

/// The command itself, from pairs to a vector file, on kinds of models that no published model here is of.
#[test]
fn train_from_pairs_to_a_file() {
    for (family, dtype, layers) in
        [("qwen3moe", "q4_k", "1-2"), ("gemma4", "q8_0", "2"), ("deepseek2", "q5_k", "1,3"), ("gpt-oss", "mxfp4", "1")]
    {
        let bench = common::bench::Bench::random(family, dtype);
        let summary = bench.summary("v.gguf", &format!("--layers {layers} --steps 3"));
        let vector = bench.vector("v.gguf");
        let want: bidpo_core::layers::Layers = layers.parse().unwrap();
        assert!(vector.directions.keys().eq(want.iter()), "{family}: {:?}", vector.directions.keys());
        for (layer, direction) in &vector.directions {
            let length = direction.iter().map(|x| x * x).sum::<f32>().sqrt();
            assert!(length.is_finite() && length > 0.0, "{family}, layer {layer}: {length}; {summary}");
        }
    }
}
