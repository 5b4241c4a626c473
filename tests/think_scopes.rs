//! The scopes `think` and `not-think`: rows of thoughts in training, in decodes, in conversations and in the commands.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

use bidpo_core::chat::{GenerateOptions, Generator, GeneratorParams};
use bidpo_core::check::random_parameters;
use bidpo_core::data::{ChatTemplate, Prompt, TemplateChoice, TokenizedPair};
use bidpo_core::engine::{Engine, covered_positions};
use bidpo_core::intervention::{Kind, KindSpec, Scope, ThoughtTokens};
use bidpo_core::steer::{ControlVector, GateMemory, SteeringVector, decode_steered, decode_steered_with};
use bidpo_core::train::Precision;
use common::in_folder::{bidpo, failed, ok};
use common::random_model::model_at;
use common::steered;
use ggml_grad::llama::{Batch, Context, ContextParams, DType, Model, Sampler, SamplerParams, Token};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

const LAYER: usize = 1;
/// Shows thoughts of answers as they are; the generation prompt opens one.
const TEMPLATE: &str = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}\
                        {% if add_generation_prompt %}[assistant] {% if think is defined %}<think>\n{% endif %}{% endif %}\
                        {# </think> #}";

fn write(folder: &Path) -> (Arc<Model>, ChatTemplate) {
    let path = folder.join("m.gguf");
    let model = model_at(&path, "llama", DType::F32);
    std::fs::write(folder.join("think.jinja"), TEMPLATE).unwrap();
    std::fs::write(folder.join("plain.jinja"), TEMPLATE.replace("think", "muse")).unwrap();
    let template = ChatTemplate::new(&model, &TemplateChoice::File(folder.join("think.jinja"))).unwrap();
    (model, template)
}

/// A vector of a kind with random parameters.
fn vector(model: &Model, spec: KindSpec, scope: &Scope) -> SteeringVector {
    let theta = random_parameters(&*spec.intervention(1, model.n_embd()).unwrap(), 20.0, model.n_embd(), 1);
    steered::vector(model, LAYER, spec, scope, theta)
}

fn control(model: &Model, v: SteeringVector) -> ControlVector {
    steered::control(model, v, 1.0)
}

/// For each token whether the text up to its end lies in a thought: found in the text, not token by token.
fn in_thought(model: &Model, tokens: &[Token]) -> Vec<bool> {
    let inside = |n: usize| {
        let text = model.detokenize(&tokens[..n], true);
        text.rfind("<think>").is_some_and(|open| !text[open..].contains("</think>"))
    };
    (1..=tokens.len()).map(inside).collect()
}

const THOUGHT: &str = "<think>so it is red</think> A plum <think>or not</think> a tin";

fn pair(model: &Model, template: &ChatTemplate) -> TokenizedPair {
    template.encode_pair(model, &Prompt::Text("A fruit?".into()), THOUGHT, "A <think>no</think> brick").unwrap()
}

#[test]
fn the_rows_of_thoughts_are_those_of_the_text() {
    let folder = tempfile::tempdir().unwrap();
    let (model, template) = write(folder.path());
    let scope = template.scoped(&"think".parse().unwrap(), &model).unwrap();
    let pair = pair(&model, &template);
    let whole = [&pair.prompt[..], &pair.chosen].concat();
    let (rows, _) = scope.thoughts().unwrap().follow(Default::default(), &whole);
    assert_eq!(rows, in_thought(&model, &whole));
    assert!(rows.iter().any(|x| *x) && rows.iter().any(|x| !*x));
    // Think and not-think together are the answer; the prompt that holds a thought is not in them.
    let n = |scope: &str| covered_positions(&pair, &template.scoped(&scope.parse().unwrap(), &model).unwrap());
    assert_eq!(n("think") + n("not-think"), n("answer"));
    assert_eq!(n("think+not-think"), n("answer"));
    assert!(n("think") > 0 && n("not-think") > 0);
    let mentions = template.encode_pair(&model, &Prompt::Text("What is <think>?".into()), "a b c", "d e").unwrap();
    let think = template.scoped(&"think".parse().unwrap(), &model).unwrap();
    assert_eq!(covered_positions(&TokenizedPair { prompt: mentions.prompt[..9].to_vec(), ..mentions }, &think), 0);
}

/// Log-probabilities of training are those of a decode, and the rows changed in it are those of the text.
#[test]
fn a_decode_does_what_training_computed() {
    let folder = tempfile::tempdir().unwrap();
    let (model, template) = write(folder.path());
    let pair = pair(&model, &template);
    let n_prompt = pair.prompt.len();
    for (spec, name) in [
        (KindSpec::default(), "think"),
        (KindSpec::default(), "not-think"),
        (KindSpec::from(Kind::Gate), "think"),
        (KindSpec::from(Kind::PromptGate), "prompt+not-think"),
    ] {
        let scope = template.scoped(&name.parse().unwrap(), &model).unwrap();
        let mut engine = Engine::new(&model, &[LAYER], 256, 2, 1)
            .unwrap()
            .with_intervention(spec.intervention(1, model.n_embd()).unwrap())
            .with_scope(scope.clone());
        engine.set_precision(Precision::EXACT);
        let theta = random_parameters(&**engine.intervention(), 20.0, model.n_embd(), 1);
        let traced = engine.trace(&pair).unwrap();
        let want = engine.run(&traced, &theta, true).unwrap();
        // The same with another pair in one graph: the prompt's rows are shared.
        let other = TokenizedPair { chosen: pair.rejected.clone(), rejected: pair.chosen.clone(), ..pair.clone() };
        let two = engine.trace_batch(&[&pair, &other]).unwrap();
        let both = engine.run(&two, &theta, true).unwrap();
        assert_eq!(both.logp[0], want.logp[0], "{name}");
        let control = control(&model, vector(&model, spec, &scope));
        for (response, want) in [(&pair.chosen, want.logp[0].chosen), (&pair.rejected, want.logp[0].rejected)] {
            let whole = [&pair.prompt[..], response].concat();
            let (ctx, batch) = steered::decoded(&model, &control, &pair.prompt, response);
            let got = steered::response_logp(&ctx, n_prompt, response);
            assert!((got - want).abs() < 1e-4, "{} {name}: {got} for {want}", spec.kind);
            if spec.kind != Kind::Add {
                continue;
            }
            // Row by row by hand: the same bits.
            let all = self::control(&model, vector(&model, spec, &Scope::ALL));
            let inside = in_thought(&model, &whole);
            let covered = |at: usize| at + 1 >= n_prompt && inside[at] == (name == "think");
            let rows: Vec<_> = (0..whole.len()).map(|at| covered(at).then_some(&all)).collect();
            let mut by_hand = Context::new(&model, &ContextParams::exact(256, 1, 1)).unwrap();
            decode_steered(&mut by_hand, &batch, &rows).unwrap();
            for at in 0..whole.len() {
                assert_eq!(ctx.logits(at).unwrap(), by_hand.logits(at).unwrap(), "{name}, row {at}");
            }
        }
    }
}

/// Token by token, alone and beside other sequences: an answer has the bits that it has alone.
#[test]
fn decisions_are_the_same_alone_and_in_company() {
    let folder = tempfile::tempdir().unwrap();
    let (model, template) = write(folder.path());
    let scoped = |name: &str| {
        let scope = template.scoped(&name.parse().unwrap(), &model).unwrap();
        control(&model, vector(&model, KindSpec::default(), &scope))
    };
    let steerings = [Some(scoped("think")), None, Some(scoped("not-think"))];
    let tokens = |text: &str| model.tokenize(text, true, true).unwrap();
    let texts = [
        "[u] A?\n[a] <think>b c d</think> e f g",
        "[u] B?\n[a] plums and pears of",
        "[u] C?\n[a] x<think>y</think>z z z z",
    ];
    let texts = texts.map(|text| tokens(text)[..16].to_vec());
    let n_prompt = 8;
    let run = |ids: &[usize]| -> Vec<Vec<Vec<f32>>> {
        let params = ContextParams { n_seq_max: 3, shared_cache: false, ..ContextParams::exact(256 * 3, 3, 1) };
        let mut ctx = Context::new(&model, &params).unwrap();
        let mut memory = GateMemory::default();
        for (seq, &id) in ids.iter().enumerate() {
            let mut batch = Batch::new();
            for (at, &token) in texts[id][..n_prompt].iter().enumerate() {
                let row = batch.add(token, at, &[seq as i32], at + 1 == n_prompt);
                batch.set_prompt(row, n_prompt);
            }
            decode_steered_with(&mut ctx, &batch, &vec![steerings[id].as_ref(); n_prompt], &mut memory).unwrap();
        }
        let mut out = vec![Vec::new(); ids.len()];
        for step in 0..8 {
            let at = n_prompt + step;
            let mut batch = Batch::new();
            for (seq, &id) in ids.iter().enumerate() {
                let row = batch.add(texts[id][at], at, &[seq as i32], true);
                batch.set_prompt(row, n_prompt);
            }
            let rows: Vec<Option<&ControlVector>> = ids.iter().map(|&id| steerings[id].as_ref()).collect();
            decode_steered_with(&mut ctx, &batch, &rows, &mut memory).unwrap();
            for (seq, out) in out.iter_mut().enumerate() {
                out.push(ctx.logits(seq).unwrap().to_vec());
            }
        }
        out
    };
    let together = run(&[0, 1, 2]);
    for (id, among) in together.iter().enumerate() {
        let alone = &run(&[id])[0];
        // With F32 weights ggml sums a row among others in another order: by rounding, no more. Another decision would move far.
        let moved = alone.iter().flatten().zip(among.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(moved < 1e-5, "sequence {id}: {moved}");
    }
}

/// What was an answer is part of the next prompt, where its thoughts are no longer steered: the cache must not change an answer.
#[test]
fn a_conversation_is_the_same_with_and_without_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let (model, _) = write(folder.path());
    let params = GeneratorParams { n_ctx: 256, n_threads: 1 };
    let sampler =
        SamplerParams { temperature: 20.0, top_p: 1.0, min_p: 0.0, top_k: 0, seed: 5, ..SamplerParams::default() };
    let options = GenerateOptions { max_tokens: 80, sampler: sampler.clone(), ..GenerateOptions::default() };
    // Marks that a model without any sense writes often.
    let marks = Arc::new(ThoughtTokens::new("o", "J", &model).unwrap());
    for name in ["think", "not-think", "last:2+think"] {
        let scope: Scope = name.parse::<Scope>().unwrap().with_thoughts(Arc::clone(&marks));
        let control = control(&model, vector(&model, KindSpec::default(), &scope));
        let mut warm = Generator::new(&model, &params).unwrap();
        warm.set_steering(Some(control.clone())).unwrap();
        let first = warm.generate(&[1, 300, 17, 290], &options, &mut |_| {}).unwrap();
        let answer = [&[1, 300, 17, 290], &first.tokens[..]].concat();
        let (rows, _) = marks.follow(Default::default(), &answer);
        assert!(rows.windows(2).any(|w| w[0] != w[1]), "{name}: no thought in {:?}", first.text);
        // The answer by plain decodes with rows by hand.
        let all = self::control(&model, vector(&model, KindSpec::default(), &Scope::ALL));
        let covers = |at: usize| match name {
            "think" => at >= 3 && rows[at],
            "not-think" => at >= 3 && !rows[at],
            _ => at == 2 || at == 3 || (at > 3 && rows[at]),
        };
        let mut ctx = Context::new(&model, &ContextParams::exact(256, 1, 1)).unwrap();
        let mut next = Vec::new();
        let mut sampler = Sampler::new(model.n_vocab(), &sampler);
        for (at, &token) in answer.iter().enumerate() {
            let mut batch = Batch::new();
            batch.add(token, at, &[0], true);
            decode_steered(&mut ctx, &batch, &[covers(at).then_some(&all)]).unwrap();
            if at >= 3 && at + 1 < answer.len() {
                next.push(sampler.sample(&ctx, 0).unwrap());
            }
        }
        assert_eq!(answer[4..], next, "{name}");
        let more = [&answer[..], &[45, 46, 281]].concat();
        let cached = warm.generate(&more, &options, &mut |_| {}).unwrap();
        let mut fresh = Generator::new(&model, &params).unwrap();
        fresh.set_steering(Some(control)).unwrap();
        assert_eq!(cached.tokens, fresh.generate(&more, &options, &mut |_| {}).unwrap().tokens, "{name}");
    }
}

#[test]
fn commands_take_the_scopes() {
    let folder = tempfile::tempdir().unwrap();
    let f = folder.path();
    write(f);
    let line = |i: usize, thought: &str| {
        format!("{{\"prompt\":\"a{i} b\",\"chosen\":\"{thought}c{i} d\",\"rejected\":\"{thought}e f{i}\"}}\n")
    };
    std::fs::write(f.join("p.jsonl"), (0..6).map(|i| line(i, "<think>h i</think> ")).collect::<String>()).unwrap();
    std::fs::write(f.join("bare.jsonl"), (0..6).map(|i| line(i, "")).collect::<String>()).unwrap();
    let some = (0..6).map(|i| line(i, if i < 2 { "" } else { "<think>h i</think> " }));
    std::fs::write(f.join("some.jsonl"), some.collect::<String>()).unwrap();
    let train = "train -m m.gguf -l 1 --steps 3 --batch 2 --val 0 --test 0 --fresh --json --template think.jinja";
    for scope in ["think", "not-think", "prompt+not-think"] {
        let s: Value =
            serde_json::from_str(&ok(f, &format!("{train} --data p.jsonl --scope {scope} -o {scope}.gguf"))).unwrap();
        assert_eq!(s["scope"], scope);
        assert!(ok(f, &format!("vector show {scope}.gguf")).contains(&format!("scope {scope}")));
    }
    let answer = |extra: &str| -> Value {
        let args = format!("generate -m m.gguf -p hello -n 6 --json --template think.jinja {extra}");
        serde_json::from_str::<Value>(&ok(f, &args)).unwrap()["tokens"].clone()
    };
    // The answer is no thought here, and a thought where the prompt opens one.
    let plain = answer("");
    assert_eq!(answer("-v think.gguf -s 900"), plain);
    assert_ne!(answer("-v not-think.gguf -s 900"), plain);
    let open = answer("--template-set think=1");
    assert_ne!(answer("--template-set think=1 -v think.gguf -s 900"), open);
    assert_eq!(answer("--template-set think=1 -v think.gguf -s 900 --scope not-think"), open);
    let out = bidpo(f, &format!("{train} --data some.jsonl --scope think -o some.gguf"));
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success() && said.contains("scope think holds no position of 2 of 6 pairs"), "{said}");
    let no_marks = "scope think: the chat template plain.jinja marks no thoughts";
    for (args, want) in [
        (
            format!("{train} --data bare.jsonl --scope think -o no.gguf"),
            "scope think holds no position of any of the 6 pairs",
        ),
        (format!("{train} --data p.jsonl --scope after:50 -o no.gguf"), "scope after:50 holds no position of any"),
        (format!("{} --data p.jsonl --scope think -o no.gguf", train.replace("think.jinja", "plain.jinja")), no_marks),
        ("generate -m m.gguf -p a -n 1 -v think.gguf --template plain.jinja".into(), no_marks),
        (
            "generate -m m.gguf -p a -n 1 -v think.gguf --template none".into(),
            "the chat template none marks no thoughts",
        ),
        (
            "eval text -m m.gguf -v not-think.gguf --limit 1".into(),
            "not-think.gguf: scope not-think: the chat template none",
        ),
        ("generate -m m.gguf -p a -n 1 -v think.gguf --template think.jinja --scope thinking".into(), "is no scope"),
    ] {
        let error = failed(f, &args);
        assert!(error.contains(want), "{args}: {error}");
    }
}
