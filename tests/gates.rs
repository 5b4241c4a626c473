//! Interventions in use: what training computed is what a decode does; in company, in a conversation, in files and commands.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use bidpo_core::chat::{GenerateOptions, Generator, GeneratorParams};
use bidpo_core::check::random_parameters;
use bidpo_core::data::{ChatTemplate, Prompt, TemplateChoice, TemplateSettings, TokenizedPair};
use bidpo_core::engine::Engine;
use bidpo_core::extract::Extractor;
use bidpo_core::intervention::{Kind, KindSpec, Scope, random_of};
use bidpo_core::layers::Layers;
use bidpo_core::numbers::{dot, median};
use bidpo_core::steer::{ControlVector, GateMemory, ScaledVector, SteeringVector, combine, decode_steered_with};
use bidpo_core::train::{
    CheckpointPlan, Event, NamedPair, Precision, Retain, RunInputs, TrainConfig, TrainError, Trainer, TrainingBudget,
    retained_sha256,
};
use common::in_folder::{bidpo, failed, ok};
use common::random_model::{self, model_at};
use common::steered::{self, control, logp};
use ggml_grad::llama::{Batch, Context, ContextParams, DType, Model, Token};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const LAYER: usize = 1;

fn write(path: &Path) {
    model_at(path, "llama", DType::F32);
}

fn model() -> (tempfile::TempDir, Arc<Model>) {
    random_model::model("llama", DType::F32)
}

fn vector(model: &Model, spec: KindSpec, scope: &Scope, theta: Vec<f32>) -> SteeringVector {
    steered::vector(model, LAYER, spec, scope, theta)
}

fn pair() -> TokenizedPair {
    TokenizedPair { prompt: vec![1, 300, 17, 290, 310], chosen: vec![45, 300, 271], rejected: vec![303, 280, 281, 17] }
}

fn specs() -> Vec<KindSpec> {
    let mut specs: Vec<KindSpec> = Kind::EACH.into_iter().map(KindSpec::from).collect();
    specs.push(KindSpec { mean: true, tau: 0.5, ..Kind::PromptGate.into() });
    specs
}

#[test]
fn a_decode_does_what_training_computed() {
    let (_directory, model) = model();
    for scope in ["all", "prompt", "answer", "first:2", "last:2", "after:1"] {
        let scope: Scope = scope.parse().unwrap();
        for spec in specs() {
            let mut engine = Engine::new(&model, &[LAYER], 64, 1, 1)
                .unwrap()
                .with_intervention(spec.intervention(1, model.n_embd()).unwrap())
                .with_scope(scope.clone());
            engine.set_precision(Precision::EXACT);
            let traced = engine.trace(&pair()).unwrap();
            let residual = median(&traced.norms()[0]).unwrap();
            let theta = random_parameters(&**engine.intervention(), residual, model.n_embd(), 2);
            let want = engine.run(&traced, &theta, false).unwrap().logp[0];
            let control = control(&model, vector(&model, spec, &scope, theta), 1.0);
            let got = [&pair().chosen, &pair().rejected].map(|r| logp(&model, &control, &pair().prompt, r));
            for (got, want, reference) in
                [(got[0], want.chosen, traced.reference().chosen), (got[1], want.rejected, traced.reference().rejected)]
            {
                assert!((got - want).abs() < 1e-4, "{} {scope}: {got} for {want}, unsteered {reference}", spec.kind);
            }
        }
    }
}

/// A fully open gate and a scope of everything give llama.cpp's own control vector, bit for bit; scale 2 is twice the change.
#[test]
fn an_open_gate_gives_the_bits_of_the_control_vector() {
    let (_directory, model) = model();
    let n = model.n_embd();
    let v: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin()).collect();
    let constant = |scale| control(&model, vector(&model, KindSpec::default(), &Scope::ALL, v.clone()), scale);
    let theta: Vec<f32> = std::iter::repeat_n(0.0, n).chain([1e3]).chain(v.iter().copied()).collect();
    for scale in [1.0, -0.3, 2.0] {
        let want = logp(&model, &constant(scale), &pair().prompt, &pair().chosen);
        let gate = control(&model, vector(&model, Kind::Gate.into(), &Scope::ALL, theta.clone()), scale);
        assert_eq!(logp(&model, &gate, &pair().prompt, &pair().chosen), want, "{scale}");
        let everywhere = "prompt+answer".parse().unwrap();
        let parts = control(&model, vector(&model, KindSpec::default(), &everywhere, v.clone()), scale);
        assert_eq!(logp(&model, &parts, &pair().prompt, &pair().chosen), want, "{scale}");
    }
    // Two at one layer: both read the stream as it arrives, and add up.
    let dials = |vectors: &[SteeringVector]| {
        let dials: Vec<ScaledVector> = vectors
            .iter()
            .map(|v| ScaledVector { name: "v".into(), vector: Arc::new(v.clone()), scale: 1.0 })
            .collect();
        combine(&dials, None, &model).unwrap().unwrap()
    };
    let gate = vector(&model, Kind::Gate.into(), &Scope::ALL, theta);
    let one = vector(&model, KindSpec::default(), &Scope::ALL, v.clone());
    let both = logp(&model, &dials(&[one, gate]), &pair().prompt, &pair().chosen);
    let twice = logp(&model, &constant(2.0), &pair().prompt, &pair().chosen);
    assert!((both - twice).abs() < 1e-5, "{both} for {twice}");
}

/// Three sequences in one context, two of them steered differently: each has the logits that it has alone.
#[test]
fn an_answer_is_the_same_alone_and_in_company() {
    let (_directory, model) = model();
    let all = |spec: KindSpec| {
        let theta = random_parameters(&*spec.intervention(1, model.n_embd()).unwrap(), 20.0, model.n_embd(), 1);
        control(&model, vector(&model, spec, &Scope::ALL, theta), 1.0)
    };
    let steerings = [Some(all(Kind::PromptGate.into())), None, Some(all(Kind::Gate.into()))];
    let run = |ids: &[usize]| -> Vec<Vec<f32>> {
        let params = ContextParams { n_seq_max: 3, shared_cache: false, ..ContextParams::exact(256 * 3, 3, 1) };
        let mut ctx = Context::new(&model, &params).unwrap();
        let mut memory = GateMemory::default();
        let mut out = Vec::new();
        for (seq, &id) in ids.iter().enumerate() {
            let mut batch = Batch::new();
            for at in 0..6 {
                let row = batch.add((at * 7 + 3 + id) as Token, at, &[seq as i32], at == 5);
                batch.set_prompt(row, 6);
            }
            decode_steered_with(&mut ctx, &batch, &[steerings[id].as_ref(); 6], &mut memory).unwrap();
        }
        for at in 6..9 {
            let mut batch = Batch::new();
            for seq in 0..ids.len() {
                let row = batch.add(at as Token, at, &[seq as i32], true);
                batch.set_prompt(row, 6);
            }
            let rows: Vec<Option<&ControlVector>> = ids.iter().map(|&id| steerings[id].as_ref()).collect();
            decode_steered_with(&mut ctx, &batch, &rows, &mut memory).unwrap();
            out = (0..ids.len()).map(|row| ctx.logits(row).unwrap().to_vec()).collect();
        }
        out
    };
    let together = run(&[0, 1, 2]);
    // With F32 weights ggml sums a row among others in another order: by rounding, no more.
    for (id, among) in together.iter().enumerate() {
        let alone = &run(&[id])[0];
        let moved = alone.iter().zip(among).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(moved < 1e-5, "sequence {id}: {moved}");
    }
    let unsteered: f32 = together[0].iter().zip(&together[1]).map(|(a, b)| (a - b).abs()).sum();
    assert!(unsteered > 0.1, "{unsteered}");
}

/// A cached answer is part of the next prompt, where a scope or a prompt gate treats it differently: what is reused must not
/// change the next answer.
#[test]
fn a_conversation_is_the_same_with_and_without_the_cache() {
    let (_directory, model) = model();
    for (spec, scope) in [
        (KindSpec::from(Kind::PromptGate), "all"),
        (KindSpec { mean: true, ..Kind::PromptGate.into() }, "all"),
        (KindSpec::default(), "answer"),
        (KindSpec::default(), "last:3"),
        (KindSpec::from(Kind::Gate), "all"),
    ] {
        let theta = random_parameters(&*spec.intervention(1, model.n_embd()).unwrap(), 60.0, model.n_embd(), 1);
        let control = control(&model, vector(&model, spec, &scope.parse().unwrap(), theta), 2.0);
        let params = GeneratorParams { n_ctx: 128, n_threads: 1 };
        let options = GenerateOptions { max_tokens: 8, ..GenerateOptions::default() };
        let mut warm = Generator::new(&model, &params).unwrap();
        warm.set_steering(Some(control.clone())).unwrap();
        let first = warm.generate(&[1, 300, 17, 290], &options, &mut |_| {}).unwrap();
        let next: Vec<Token> = [1, 300, 17, 290].into_iter().chain(first.tokens.clone()).chain([45, 46, 281]).collect();
        let cached = warm.generate(&next, &options, &mut |_| {}).unwrap();
        let mut fresh = Generator::new(&model, &params).unwrap();
        fresh.set_steering(Some(control)).unwrap();
        let anew = fresh.generate(&next, &options, &mut |_| {}).unwrap();
        assert_eq!(cached.tokens, anew.tokens, "{} {scope}", spec.kind);
        let trace = warm.gates();
        assert_eq!(trace.gates.len(), usize::from(spec.kind != Kind::Add));
        for gate in &trace.gates {
            assert_eq!((gate.at.len(), trace.tokens.len()), (trace.tokens.len(), gate.at.len()));
            let open: Vec<f64> = gate.at.iter().flatten().copied().collect();
            assert!(open.iter().all(|x| (0.0..=1.0).contains(x)), "{open:?}");
            if spec.kind == Kind::PromptGate {
                assert_eq!(gate.at.iter().take_while(|x| x.is_none()).count(), next.len() - 1);
                assert!(open.windows(2).all(|w| w[0] == w[1]), "held: {open:?}");
            }
        }
    }
}

#[test]
fn every_kind_trains_and_is_used_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let f = folder.path();
    write(&f.join("m.gguf"));
    let line = |i: usize| format!("{{\"prompt\":\"a{i} b\",\"chosen\":\"c{i} d\",\"rejected\":\"e f{i}\"}}\n");
    std::fs::write(f.join("p.jsonl"), (0..6).map(line).collect::<String>()).unwrap();
    let train =
        "train -m m.gguf --data p.jsonl --template none -l 1 --steps 3 --batch 2 --val 0 --test 0.34 --fresh --json";
    for kind in ["gate", "linear-gate", "prompt-gate", "project", "clamp", "lowrank"] {
        let s: Value = serde_json::from_str(&ok(f, &format!("{train} --kind {kind} -o {kind}.gguf"))).unwrap();
        assert_eq!(s["kind"], kind);
        let shown = ok(f, &format!("vector show {kind}.gguf"));
        assert!(shown.contains(&format!("kind             {kind}")) && shown.contains("every position"), "{shown}");
        let answer = |extra: &str| -> Value {
            let args = format!("generate -m m.gguf -p hello --template none -n 4 --json{extra}");
            serde_json::from_str(&ok(f, &args)).unwrap()
        };
        answer(&format!(" -v {kind}.gguf -s 3 --scope answer"));
        let card = std::fs::read_to_string(f.join(format!("{kind}.md"))).unwrap();
        assert!(card.contains(&format!("kind {kind}")) && card.contains("export --constant"), "{card}");
    }
    ok(f, &format!("{train} --kind gate -o again.gguf"));
    let bytes = |name: &str| std::fs::read(f.join(name)).unwrap();
    assert_eq!(bytes("again.gguf"), bytes("gate.gguf"), "the same run gives the same bytes");
    // Scopes: a constant vector with a scope holds no direction.N either.
    ok(f, &format!("{train} --scope answer -o answer.gguf"));
    let file = ggml_grad::llama::GgufFile::open(&f.join("answer.gguf")).unwrap();
    assert!(file.tensors().map(|t| t.0.to_owned()).eq(["vector.1".to_owned()]));
    assert!(ok(f, "vector show answer.gguf").contains("scope answer"));
    // What llama.cpp can run of it.
    ok(f, "vector export --constant gate.gguf -o constant.gguf");
    let shown: Value = serde_json::from_str(&ok(f, "vector show --json constant.gguf")).unwrap();
    assert_eq!((&shown[0]["runs_in_llama_cpp"], &shown[0]["kind"]), (&true.into(), &"add".into()));
    let error = failed(f, "vector export --constant project.gguf -o no.gguf");
    assert!(error.contains("no constant vector is near it"), "{error}");
    for args in ["vector convert gate.gguf -o no.npy", "vector add gate.gguf gate.gguf -o no.gguf"] {
        assert!(failed(f, args).contains("export --constant"), "{args}");
    }
    for (args, want) in [
        ("--kind gate --layers 1,2", "changes one layer, and 2 were given"),
        ("--scope answer --layers 1,2", "a scope takes one layer"),
        ("--kind lowrank --rank 100000", "does not fit a residual stream"),
        ("--kind prompt-gate --decided-by mean -l 2", "cannot be at layer 2"),
        ("--kind project --tau 2", "--tau belongs to gate"),
        ("--kind sluice", "there is no kind of intervention"),
        ("--scope sometimes", "is no scope"),
    ] {
        let args = format!("train -m m.gguf --data p.jsonl --template none --steps 1 --fresh -o no.gguf {args}");
        let error = failed(f, &args);
        assert!(error.contains(want), "{args}: {error}");
    }
}

/// Retained texts: what is reported is what the finished file does to them, a budget is met, and a run that was stopped goes
/// on to the same bytes.
#[test]
fn retained_texts_change_less() {
    let folder = tempfile::tempdir().unwrap();
    let f = folder.path();
    write(&f.join("m.gguf"));
    let line = |i: usize| format!("{{\"prompt\":\"a{i} b\",\"chosen\":\"c{i} d\",\"rejected\":\"e f{i}\"}}\n");
    std::fs::write(f.join("p.jsonl"), (0..6).map(line).collect::<String>()).unwrap();
    let off = |i: usize| format!("{{\"prompt\":\"x y{i}\",\"response\":\"z w{i} u\"}}\n");
    std::fs::write(f.join("off.jsonl"), (0..4).map(off).collect::<String>()).unwrap();
    let ask: String = (0..6).map(|i| format!("{{\"prompt\":\"a{i} b\"}}\n")).collect();
    std::fs::write(f.join("ask.jsonl"), format!("{{\"prompt\":\"x y\"}}\n{ask}")).unwrap();
    let train = "train -m m.gguf --data p.jsonl --template none -l 1 --batch 2 --val 0 --test 0.34 --json";
    let summary = |extra: &str| -> Value { serde_json::from_str(&ok(f, &format!("{train} {extra}"))).unwrap() };
    for kind in ["add", "gate"] {
        let free = summary(&format!(
            "--kind {kind} --lr 5% --steps 12 --retain off.jsonl --retain-weight 1e-9 -o free.gguf --fresh"
        ));
        let kl = free["retained"]["kl"].as_f64().unwrap();
        let budget = kl / 3.0;
        let run = format!(
            "--kind {kind} --lr 5% --steps 40 --retain off.jsonl --retain-weight 0.5 --retain-kl {budget} -o kept.gguf"
        );
        let kept = summary(&format!("{run} --fresh"));
        let reached = kept["retained"]["kl"].as_f64().unwrap();
        assert!(kl > 0.0 && reached <= 1.3 * budget, "{kind}: {reached} of {kl}, budget {budget}");
        assert_eq!(kept["retained"]["predictions"], free["retained"]["predictions"]);
        let card = std::fs::read_to_string(f.join("kept.md")).unwrap();
        assert!(
            card.contains("| retained texts | off.jsonl (SHA-256 ") && card.contains("On the 4 retained texts"),
            "{card}"
        );
    }
    // The unsteered model answers; four of the prompts are trained on.
    let out = bidpo(f, &format!("{train} --steps 2 --retain ask.jsonl -o asked.gguf --fresh"));
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success() && said.contains("answers 7 retained prompts"), "{said}");
    assert!(said.contains("warning: 4 of 7 retained texts have the prompt of a training pair"), "{said}");
    // A budget that cannot be met in a step.
    let out = bidpo(f, &format!("{train} --steps 2 --lr 50% --retain off.jsonl --retain-kl 1e-9 -o no.gguf --fresh"));
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success() && said.contains("the budget of the retained texts was not met"), "{said}");
    for (args, want) in [
        ("--retain no.jsonl", "no.jsonl"),
        ("--retain-kl 0.1", "--retain"),
        ("--retain off.jsonl --retain-kl 0", "a positive number"),
    ] {
        let error = failed(f, &format!("{train} --steps 1 --fresh {args}"));
        assert!(error.contains(want), "{args}: {error}");
    }
}

/// A run with retained texts that is stopped goes on to the same bytes: weight, order of the texts and directions are those of
/// the run that was not.
#[test]
fn a_stopped_run_keeps_what_it_retains() {
    let (folder, model) = model();
    let pairs: Vec<NamedPair> = (0..6)
        .map(|i| NamedPair { name: i.to_string(), tokens: TokenizedPair { prompt: vec![1, 300 + i, 17], ..pair() } })
        .collect();
    let texts: Vec<NamedPair> = pairs
        .iter()
        .map(|p| NamedPair {
            tokens: TokenizedPair { rejected: Vec::new(), prompt: vec![1, 45], ..p.tokens.clone() },
            ..p.clone()
        })
        .collect();
    let run = |name: &str, resume: bool, weight: f64, stop_after: usize| {
        let config = TrainConfig {
            budget: TrainingBudget::Steps(9),
            batch: 2,
            retain: Some(Retain { weight, budget: Some(1e-4), texts: Some(2) }),
            ..TrainConfig::new(Layers::one(LAYER))
        };
        let mut engine = Engine::new(&model, &[LAYER], 16, 1, 1).unwrap();
        let inputs = RunInputs { retained_sha256: retained_sha256(&texts), ..RunInputs::default() };
        let plan = CheckpointPlan { path: folder.path().join(name), resume, inputs };
        let interrupt = AtomicBool::new(false);
        let mut trainer =
            Trainer { engine: &mut engine, config: &config, checkpoints: Some(&plan), interrupt: &interrupt };
        let mut observe = |event: Event<'_>| {
            if let Event::Step(s) = event {
                interrupt.store(s.step == stop_after, Ordering::Relaxed);
            }
        };
        trainer.train_retaining(&pairs, &pairs[..2], &texts, &mut observe)
    };
    let whole = run("whole.ckpt", false, 3.0, usize::MAX).unwrap();
    assert!(whole.retained.unwrap().weight != 3.0, "the weight follows the budget");
    assert_eq!(run("parts.ckpt", false, 3.0, 4).unwrap().steps, 4);
    assert!(matches!(run("parts.ckpt", true, 2.0, usize::MAX), Err(TrainError::Checkpoint(_))), "another weight");
    let parts = run("parts.ckpt", true, 3.0, usize::MAX).unwrap();
    assert_eq!((&parts.vector, parts.retained), (&whole.vector, whole.retained));
    assert_eq!(parts.history, whole.history);
}

/// `eval text --answers` against plain decodes of prompt and answer, and the gates' opening against the rows that `extract` reads.
#[test]
fn answers_are_measured_and_gates_counted() {
    let folder = tempfile::tempdir().unwrap();
    let f = folder.path();
    let model = model_at(&f.join("m.gguf"), "llama", DType::F32);
    let rows = [("a b c", "d e"), ("x y", "z w u"), ("p q r s", "t")];
    let line = |(prompt, response): &(&str, &str)| format!("{{\"prompt\":\"{prompt}\",\"response\":\"{response}\"}}\n");
    std::fs::write(f.join("off.jsonl"), rows.iter().map(line).collect::<String>()).unwrap();
    let template = ChatTemplate::with_settings(&model, &TemplateChoice::None, &TemplateSettings::default()).unwrap();
    for spec in [KindSpec::from(Kind::Gate), Kind::PromptGate.into()] {
        let theta = random_parameters(&*spec.intervention(1, model.n_embd()).unwrap(), 60.0, model.n_embd(), 3);
        let v = vector(&model, spec, &Scope::ALL, theta);
        v.save(&f.join("g.gguf")).unwrap();
        let shown: Value = serde_json::from_str(&ok(
            f,
            "eval text -m m.gguf --answers off.jsonl --template none -v g.gguf --baselines unsteered --json -o r.jsonl",
        ))
        .unwrap();
        assert_eq!(shown["manifest"]["prompt"]["measured"], "answers");
        let text = std::fs::read_to_string(f.join("r.jsonl")).unwrap();
        std::fs::remove_file(f.join("r.jsonl")).unwrap();
        let records: Vec<Value> = text.lines().skip(1).map(|l| serde_json::from_str(l).unwrap()).collect();
        let steered: Vec<&Value> = records.iter().filter(|r| r["condition"] == "steered").collect();
        let gate = v.rows.as_ref().unwrap().wide();
        let (w, b) = (&gate[..model.n_embd()], gate[model.n_embd()]);
        let control = control(&model, v, 1.0);
        for ((prompt, response), record) in rows.iter().zip(steered) {
            let pair = template.encode_pair(&model, &Prompt::Text((*prompt).into()), response, response).unwrap();
            let n = pair.chosen.len();
            assert_eq!((&record["question"], &record["text"]["n_tokens"]), (&(*prompt).into(), &n.into()));
            let nll = -logp(&model, &control, &pair.prompt, &pair.chosen);
            let got = record["text"]["nll"].as_f64().unwrap();
            assert!((got - nll).abs() < 1e-4 * nll, "{}: {got} for {nll}", spec.kind);
            // The opening at each row that an answer token is predicted from.
            let tokens = [&pair.prompt[..], &pair.chosen].concat();
            let mut extractor = Extractor::new(&model, &[LAYER], 64, 1).unwrap();
            let stream = extractor.run(&tokens, 1).unwrap().remove(&LAYER).unwrap();
            let open = |at: usize| {
                let h = &stream[at * model.n_embd()..(at + 1) * model.n_embd()];
                let rms = (h.iter().map(|x| f64::from(x * x)).sum::<f64>() / h.len() as f64).sqrt();
                let z = h.iter().zip(w).map(|(h, w)| f64::from(*h) / rms * w).sum::<f64>() + b;
                1.0 / (1.0 + (-z / spec.tau).exp())
            };
            let first = pair.prompt.len() - 1;
            let at = |i: usize| open(if spec.kind == Kind::PromptGate { first } else { first + i });
            let want: Vec<f64> = (0..n).map(at).collect();
            let gate = &record["text"]["gate"];
            let sum = want.iter().sum::<f64>();
            assert!((gate["opening"].as_f64().unwrap() - sum).abs() < 1e-4, "{}: {gate} for {want:?}", spec.kind);
            assert_eq!(gate["open"], want.iter().filter(|&&x| x > 0.5).count());
        }
        let table = shown["measures"].as_array().unwrap().iter().find(|m| m["measure"] == "gate_opening").unwrap();
        assert_eq!(table["conditions"][0]["value"], 0.0, "the unsteered model has no gate");
    }
    // Constant vectors have no gate to speak of; a file that is no list of prompts is refused.
    let theta =
        random_parameters(&*KindSpec::default().intervention(1, model.n_embd()).unwrap(), 60.0, model.n_embd(), 3);
    vector(&model, KindSpec::default(), &Scope::ALL, theta).save(&f.join("v.gguf")).unwrap();
    let plain = ok(f, "eval text -m m.gguf --answers off.jsonl --template none -v v.gguf --baselines unsteered");
    assert!(plain.contains("kl_per_token") && !plain.contains("gate"), "{plain}");
    for (args, want) in [
        ("--answers no.jsonl", "no.jsonl"),
        ("--answers off.jsonl --window 20", "cannot be used with"),
        ("--template none", "--answers"),
        ("--template-set a=1", "give --answers"),
    ] {
        let error = failed(f, &format!("eval text -m m.gguf {args}"));
        assert!(error.contains(want), "{args}: {error}");
    }
}

/// `eval --random`: each random intervention is of the same kind and size, the trained one under a rotation, and its answers are
/// those of a plain decode with it.
#[test]
fn random_interventions_are_of_the_same_kind_and_size() {
    let folder = tempfile::tempdir().unwrap();
    let f = folder.path();
    let model = model_at(&f.join("m.gguf"), "llama", DType::F32);
    let n = model.n_embd();
    std::fs::write(f.join("off.jsonl"), "{\"prompt\":\"a b c\",\"response\":\"d e\"}\n").unwrap();
    let template = ChatTemplate::with_settings(&model, &TemplateChoice::None, &TemplateSettings::default()).unwrap();
    let pair = template.encode_pair(&model, &Prompt::Text("a b c".into()), "d e", "d e").unwrap();
    for spec in specs().into_iter().filter(|spec| spec.kind != Kind::Add) {
        let kind = spec.rows(n).unwrap().unwrap();
        let theta = random_parameters(&*spec.intervention(1, n).unwrap(), 60.0, n, 3);
        vector(&model, spec, &Scope::ALL, theta.clone()).save(&f.join("g.gguf")).unwrap();
        ok(
            f,
            "eval text -m m.gguf --answers off.jsonl --template none -v g.gguf --baselines random --random 2 --seed 5 -o r.jsonl",
        );
        let text = std::fs::read_to_string(f.join("r.jsonl")).unwrap();
        std::fs::remove_file(f.join("r.jsonl")).unwrap();
        let records: Vec<Value> = text.lines().skip(1).map(|l| serde_json::from_str(l).unwrap()).collect();
        let nll = |condition: &str| {
            let of =
                records.iter().find(|r| r["condition"] == condition).unwrap_or_else(|| panic!("{condition}: {text}"));
            of["text"]["nll"].as_f64().unwrap()
        };
        for (condition, seed) in [("random vector 1", 5), ("random vector 2", 6)] {
            let random = random_of(&*kind, &theta, seed);
            // Parts that live in the stream keep their lengths and angles, the others their values.
            let rows = |theta: &[f32]| -> Vec<Vec<f32>> {
                let parts = kind.parts().into_iter().filter(|part| part.shape.last() == Some(&n));
                parts.flat_map(|part| theta[part.params].chunks(n).map(<[f32]>::to_vec).collect::<Vec<_>>()).collect()
            };
            let products = |rows: &[Vec<f32>]| -> Vec<f64> {
                rows.iter().flat_map(|a| rows.iter().map(move |b| dot(a, b))).collect()
            };
            let (of, turned) = (products(&rows(&theta)), products(&rows(&random)));
            let size = of.iter().copied().fold(0.0, f64::max);
            assert!(
                of.iter().zip(&turned).all(|(a, b)| (a - b).abs() < 1e-4 * size),
                "{}: {of:?} {turned:?}",
                spec.kind
            );
            for part in kind.parts().into_iter().filter(|part| part.shape.last() != Some(&n)) {
                assert_eq!(theta[part.params.clone()], random[part.params], "{} {}", spec.kind, part.name);
            }
            let control = control(&model, vector(&model, spec, &Scope::ALL, random), 1.0);
            let want = -logp(&model, &control, &pair.prompt, &pair.chosen);
            assert!((nll(condition) - want).abs() < 1e-4 * want, "{}: {} for {want}", spec.kind, nll(condition));
        }
        assert!(
            nll("random vector 1") != nll("random vector 2") && nll("random vector 1") != nll("steered"),
            "{}",
            spec.kind
        );
    }
}

/// A run that begins with a file: the first loss is the file's, the card names it, and what does not fit is refused.
#[test]
fn a_run_begins_with_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let f = folder.path();
    write(&f.join("m.gguf"));
    let line = |i: usize| format!("{{\"prompt\":\"a{i} b\",\"chosen\":\"c{i} d\",\"rejected\":\"e f{i}\"}}\n");
    std::fs::write(f.join("p.jsonl"), (0..6).map(line).collect::<String>()).unwrap();
    let train =
        "train -m m.gguf --data p.jsonl --template none --batch 6 --val 0 --test 0 --fresh --json --objective dpo";
    let summary = |extra: &str| -> Value { serde_json::from_str(&ok(f, &format!("{train} {extra}"))).unwrap() };
    let first_loss = |s: &Value| s["history"][0]["train_loss"].as_f64().unwrap();
    summary("-l 1 --steps 20 --lr 5% -o v.gguf");
    let cold = first_loss(&summary("-l 1 --steps 1 -o cold.gguf"));
    let warm = first_loss(&summary("-l 1 --steps 1 --init v.gguf -o warm.gguf"));
    let gate = first_loss(&summary("-l 1 --steps 1 --kind gate --init v.gguf -o gate.gguf"));
    // Margin 0 before the first step; a vector that was trained is better, and half of it lies between.
    assert!((cold - 2f64.ln()).abs() < 1e-6 && warm < gate && gate < cold, "{cold} {warm} {gate}");
    let card = std::fs::read_to_string(f.join("gate.md")).unwrap();
    assert!(card.contains("| begins with | v.gguf (SHA-256 "), "{card}");
    summary("-l 1 --steps 1 --kind prompt-gate --tau 0.5 --init gate.gguf -o prompt.gguf");
    for (args, want) in [
        ("-l 2 --init v.gguf", "layer 2 is trained"),
        ("-l 1 --kind project --init v.gguf", "kind project holds none"),
        ("-l 1 --kind lowrank --init gate.gguf", "it is of kind gate"),
        ("-l 1 --init no.gguf", "--init no.gguf"),
    ] {
        let error = failed(f, &format!("{train} --steps 1 -o no.gguf {args}"));
        assert!(error.contains(want), "{args}: {error}");
    }
}
