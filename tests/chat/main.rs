//! Steered generation and chat on a real model.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod command;
#[path = "../common/mod.rs"]
mod common;
#[cfg(unix)]
mod terminal;

use assert_cmd::Command;
use bidpo_core::chat::{
    ChatError, ChatSession, GenerateOptions, Generator, GeneratorParams, Side, StopReason, printable,
};
use bidpo_core::data::{ChatTemplate, Message, Prompt, TemplateChoice};
use bidpo_core::steer::{ScaledVector, SteeringVector, combine};
use ggml_grad::llama::{Batch, Context, ContextParams, Model, ModelParams, Sampler, SamplerParams};
use predicates::prelude::*;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const SMOL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const GEMMA: &str = "gemma-3-270m-q4_k_m.gguf";

fn smol() -> Option<Arc<Model>> {
    Some(Model::load(&common::model(SMOL)?, &ModelParams::default()).unwrap())
}

fn options(n: usize) -> GenerateOptions {
    GenerateOptions { max_tokens: n, ..GenerateOptions::default() }
}

fn params() -> GeneratorParams {
    GeneratorParams { n_ctx: 512, n_threads: 1 }
}

fn template(model: &Model) -> ChatTemplate {
    ChatTemplate::new(model, &TemplateChoice::Auto).unwrap()
}

/// A vector with a clear effect that needs no file: every other coordinate of the residual stream pushed up or down.
fn vector(model: &Model, layer: usize, seed: usize) -> Arc<SteeringVector> {
    let d = (0..model.n_embd()).map(|i| if (i * 7 + seed) % 5 < 2 { 1.5 } else { -1.0 }).collect();
    Arc::new(SteeringVector::single(layer, d, "llama").unwrap())
}

fn dial(name: &str, vector: &Arc<SteeringVector>, scale: f32) -> ScaledVector {
    ScaledVector { name: name.into(), vector: Arc::clone(vector), scale }
}

fn bidpo() -> Command {
    let mut command = Command::cargo_bin("bidpo").unwrap();
    command.env("BIDPO_THREADS", "1");
    command
}

#[test]
fn steering_is_exact() {
    let Some(model) = smol() else { return };
    let prompt = template(&model).encode_prompt(&model, &Prompt::Text("How are you?".into())).unwrap();
    let mut generator = Generator::new(&model, &params()).unwrap();
    let mut answer = |dials: &[ScaledVector]| {
        generator.set_steering(combine(dials, None, &model).unwrap()).unwrap();
        let mut streamed = String::new();
        let answer = generator.generate(&prompt, &options(16), &mut |piece| streamed += piece).unwrap();
        assert_eq!(streamed, answer.text);
        assert_eq!(answer.text, model.detokenize(&answer.tokens, false));
        answer.tokens
    };
    let (a, b) = (vector(&model, 10, 0), vector(&model, 14, 1));
    let plain = answer(&[]);

    // llama.cpp itself, token by token, without any of the code under test.
    let mut ctx = Context::new(&model, &ContextParams { n_threads: 1, ..ContextParams::default() }).unwrap();
    let mut row = ctx.prefill(&prompt, 0).unwrap();
    let mut sampler = Sampler::new(model.n_vocab(), &SamplerParams::default());
    for (i, &token) in plain.iter().enumerate() {
        assert_eq!(sampler.sample(&ctx, row).unwrap(), token, "token {i}");
        let mut batch = Batch::new();
        row = batch.add(token, prompt.len() + i, &[0], true);
        ctx.decode(&batch).unwrap();
    }

    assert_eq!(answer(&[dial("a", &a, 0.0), dial("b", &b, 0.0)]), plain, "scale 0 is no vector");
    let steered = answer(&[dial("a", &a, 4.0)]);
    assert_ne!(steered, plain, "the vector must do something for these tests to mean anything");

    // Two vectors are their sum.
    let sum = Arc::new(a.linear(3.0, &b, -2.0).unwrap());
    assert_eq!(answer(&[dial("a", &a, 3.0), dial("b", &b, -2.0)]), answer(&[dial("sum", &sum, 1.0)]));
    assert_eq!(answer(&[]), plain, "taking the vector off leaves nothing behind");
}

/// A session with one vector.
fn steered(model: &Arc<Model>, v: &Arc<SteeringVector>, scale: f32) -> ChatSession {
    let mut session = ChatSession::new(model, template(model), &params()).unwrap();
    session.set_dials(vec![dial("v", v, scale)], None).unwrap();
    session
}

/// A change of scale in the middle of a conversation answers as a session that never had another scale: no K or V of the
/// old scale is left.
#[test]
fn no_stale_cache() {
    let Some(model) = smol() else { return };
    let v = vector(&model, 12, 3);
    let session = |scale: f32| steered(&model, &v, scale);
    let mut talk = session(0.0);
    let first = talk.ask("Tell me about rivers.", &options(12), &mut |_| {}).unwrap();
    assert_eq!(first.n_reused, 0);
    let history = talk.history().to_vec();
    assert_eq!(history.len(), 2);

    let fresh = |scale: f32, question: &str, history: &[Message]| {
        let mut session = session(scale);
        session.set_history(history.to_vec());
        session.ask(question, &options(12), &mut |_| {}).unwrap().tokens
    };
    talk.set_scale::<bidpo_core::chat::ChatError>(Some("v"), |_| Ok(3.0)).unwrap();
    let steered = talk.ask("And lakes?", &options(12), &mut |_| {}).unwrap();
    assert_eq!(steered.n_reused, 0, "everything is computed again under the new scale");
    assert_eq!(steered.tokens, fresh(3.0, "And lakes?", &history));
    assert_ne!(steered.tokens, fresh(0.0, "And lakes?", &history));

    // Without a change the beginning of the conversation is not computed again.
    let history = talk.history().to_vec();
    talk.set_scale::<bidpo_core::chat::ChatError>(None, |_| Ok(3.0)).unwrap();
    let next = talk.ask("And the sea?", &options(12), &mut |_| {}).unwrap();
    assert!(next.n_reused > 60 && next.n_reused < next.n_prompt, "{} of {}", next.n_reused, next.n_prompt);
    assert_eq!(next.tokens, fresh(3.0, "And the sea?", &history), "reuse must not change the answer");

    // Off and on.
    let history = talk.history().to_vec();
    talk.set_on(false).unwrap();
    assert_eq!(talk.ask("Why?", &options(8), &mut |_| {}).unwrap().tokens[..], fresh(0.0, "Why?", &history)[..8]);
    talk.reset();
    talk.set_on(true).unwrap();
    assert!(talk.history().is_empty());
    assert_eq!(talk.ask("Why?", &options(8), &mut |_| {}).unwrap().tokens[..], fresh(3.0, "Why?", &[])[..8]);
    assert!(
        talk.set_scale::<bidpo_core::chat::ChatError>(Some("w"), |_| Ok(1.0)).unwrap_err().to_string().contains("v")
    );
}

/// Asking again and taking back: the cache keeps what it has, and the answers are those of a conversation that never went
/// another way.
#[test]
fn retry_and_undo() {
    let Some(model) = smol() else { return };
    let v = vector(&model, 12, 3);
    let mut talk = ChatSession::new(&model, template(&model), &params()).unwrap();
    assert!(matches!(talk.retry(&options(4), &mut |_| {}), Err(ChatError::NoQuestion)));
    assert!(matches!(talk.undo(), Err(ChatError::NoQuestion)));
    talk.set_dials(vec![dial("v", &v, 0.0)], None).unwrap();
    let first = talk.ask("Tell me about rivers.", &options(10), &mut |_| {}).unwrap();
    let second = talk.ask("And lakes?", &options(10), &mut |_| {}).unwrap();
    let again = talk.retry(&options(10), &mut |_| {}).unwrap();
    assert_eq!(
        (&again.tokens, again.n_reused),
        (&second.tokens, second.n_prompt - 1),
        "all but the last token is kept"
    );
    assert_eq!(talk.history().len(), 4);

    // Under another steering: as if the question had been asked under it.
    talk.set_scale::<ChatError>(None, |_| Ok(3.0)).unwrap();
    assert_eq!(talk.n_cached(), 0, "what the cache holds is of no use under another steering");
    let steered = talk.retry(&options(10), &mut |_| {}).unwrap();
    assert_eq!(steered.n_reused, 0);
    let mut fresh = ChatSession::new(&model, template(&model), &params()).unwrap();
    fresh.set_dials(vec![dial("v", &v, 3.0)], None).unwrap();
    fresh.set_history(talk.history()[..2].to_vec());
    assert_eq!(steered.tokens, fresh.ask("And lakes?", &options(10), &mut |_| {}).unwrap().tokens);
    assert_ne!(steered.tokens, second.tokens);
    let markdown = talk.transcript().markdown();
    assert!(markdown.contains("## assistant (v 0)") && markdown.contains("## assistant (v 3)"), "{markdown}");

    // A dial that is turned and turned back costs nothing.
    talk.set_scale::<ChatError>(None, |_| Ok(-1.0)).unwrap();
    talk.set_on(false).unwrap();
    talk.set_on(true).unwrap();
    talk.set_scale::<ChatError>(None, |_| Ok(3.0)).unwrap();
    assert!(talk.n_cached() > 0);
    assert_eq!(talk.undo().unwrap(), "And lakes?");
    assert_eq!(talk.history().len(), 2);
    let other = talk.ask("And the sea?", &options(10), &mut |_| {}).unwrap();
    assert!(other.n_reused >= first.n_prompt, "{} of {}", other.n_reused, other.n_prompt);
    let mut fresh = ChatSession::new(&model, template(&model), &params()).unwrap();
    fresh.set_dials(vec![dial("v", &v, 3.0)], None).unwrap();
    fresh.set_history(talk.history()[..2].to_vec());
    assert_eq!(other.tokens, fresh.ask("And the sea?", &options(10), &mut |_| {}).unwrap().tokens);

    // A question whose answer was stopped before it began can still be asked again.
    let stopped = options(10);
    stopped.interrupt.store(true, Ordering::SeqCst);
    assert_eq!(talk.ask("Why?", &stopped, &mut |_| {}).unwrap().text, "");
    assert_eq!((talk.history().len(), talk.last_question()), (4, Some("Why?")));
    assert!(!talk.retry(&options(3), &mut |_| {}).unwrap().text.is_empty());
    assert_eq!(talk.history().len(), 6);
    // Where tokens are drawn at random, each try is another one, and the same tries come out the same.
    let drawn = GenerateOptions {
        sampler: SamplerParams { temperature: 2.0, min_p: 0.0, ..SamplerParams::default() },
        ..options(8)
    };
    let mut tries = || -> Vec<_> {
        let first = talk.ask("Name a thing.", &drawn, &mut |_| {}).unwrap().tokens;
        let more = [(); 2].map(|()| talk.retry(&drawn, &mut |_| {}).unwrap().tokens);
        talk.undo().unwrap();
        [&[first][..], &more].concat()
    };
    let once = tries();
    assert!(once[0] != once[1] && once[1] != once[2], "{once:?}");
    assert_eq!(tries(), once);
}

/// Steered beside unsteered: each side answers as it would alone, and the conversation goes on as if nobody had looked.
#[test]
fn compare_is_two_answers() {
    let Some(model) = smol() else { return };
    let v = vector(&model, 12, 3);
    let session = |scale: f32| steered(&model, &v, scale);
    let nothing =
        |session: &mut ChatSession| session.compare(Some("x"), &options(4), &mut |_, _| {}).unwrap_err().to_string();
    assert!(nothing(&mut session(0.0)).contains("scales are 0"));
    let mut talk = session(3.0);
    assert!(matches!(talk.compare(None, &options(4), &mut |_, _| {}), Err(ChatError::NoQuestion)));
    talk.ask("Tell me about rivers.", &options(10), &mut |_| {}).unwrap();
    let history = talk.history().to_vec();

    let mut texts = [String::new(), String::new()];
    let mut ended = [false; 2];
    let both = talk
        .compare(Some("And lakes?"), &options(10), &mut |side, piece| {
            let i = usize::from(side == Side::Steered);
            match piece {
                Some(piece) => texts[i] += piece,
                None => ended[i] = true,
            }
        })
        .unwrap();
    assert_eq!((texts, ended), ([both.unsteered.text.clone(), both.steered.text.clone()], [true; 2]));
    let alone = |scale: f32, history: &[Message], question: &str| {
        let mut session = session(scale);
        session.set_history(history.to_vec());
        session.ask(question, &options(10), &mut |_| {}).unwrap().tokens
    };
    assert_eq!(both.steered.tokens, alone(3.0, &history, "And lakes?"));
    assert_eq!(both.unsteered.tokens, alone(0.0, &history, "And lakes?"));
    assert_ne!(both.steered.tokens, both.unsteered.tokens);
    assert!(both.steered.n_reused > 0 && both.unsteered.n_reused == 0);
    assert_eq!(talk.history(), history, "neither answer is kept");

    // The last question, without its answer; and the unsteered side keeps its own cache.
    let both = talk.compare(None, &options(10), &mut |_, _| {}).unwrap();
    assert_eq!(both.steered.text, history[1].content);
    assert_eq!(both.unsteered.tokens, alone(0.0, &[], "Tell me about rivers."));
    assert!(both.unsteered.n_reused > 0);
    let next = talk.ask("And the sea?", &options(10), &mut |_| {}).unwrap();
    assert!(next.n_reused > 0);
    assert_eq!(next.tokens, alone(3.0, &history, "And the sea?"));
    assert_eq!(talk.stats().total.answers, 6);
    talk.set_on(false).unwrap();
    assert!(nothing(&mut talk).contains("/on"));
    talk.set_dials(Vec::new(), None).unwrap();
    assert!(nothing(&mut talk).contains("/load"));
}

/// Ctrl-C does not wait for a long prompt, and what it leaves behind is sound.
#[test]
fn a_prompt_can_be_stopped() {
    let Some(model) = smol() else { return };
    let prompt = model.tokenize(&"The river runs to the sea. ".repeat(70), true, false).unwrap();
    assert!(prompt.len() > 480 && prompt.len() < 512, "one batch: {}", prompt.len());
    let mut generator = Generator::new(&model, &GeneratorParams { n_ctx: 600, n_threads: 1 }).unwrap();
    let whole = generator.generate(&prompt, &options(4), &mut |_| {}).unwrap();
    generator.clear();
    let stopped = options(4);
    let flag = Arc::clone(&stopped.interrupt);
    let timer = std::thread::spawn(move || {
        std::thread::sleep(whole.prompt_time / 8);
        flag.store(true, Ordering::SeqCst);
    });
    let answer = generator.generate(&prompt, &stopped, &mut |_| {}).unwrap();
    timer.join().unwrap();
    assert_eq!((answer.stop, answer.tokens.len()), (StopReason::Interrupted, 0));
    assert_eq!(generator.n_cached(), 0, "the batch that was stopped is not in the cache");
    let again = generator.generate(&prompt, &options(4), &mut |_| {}).unwrap();
    assert_eq!((again.tokens, again.n_reused), (whole.tokens, 0));
}

#[test]
fn answers_end() {
    let Some(model) = smol() else { return };
    let template = template(&model);
    let encode = |text: &str| template.encode_prompt(&model, &Prompt::Text(text.into())).unwrap();
    let small = GeneratorParams { n_ctx: 64, n_threads: 1 };
    let mut generator = Generator::new(&model, &small).unwrap();
    let n_ctx = generator.n_ctx();

    let mut run = |text: &str, options: &GenerateOptions| {
        generator.generate(&encode(text), options, &mut |_| {}).map_err(|e| e.to_string())
    };
    let cut = run("Count to one hundred.", &options(5)).unwrap();
    assert_eq!((cut.stop, cut.tokens.len()), (StopReason::MaxTokens, 5));

    let full = run("Write a long story about a dragon.", &options(100_000)).unwrap();
    assert_eq!(full.stop, StopReason::ContextFull);
    assert_eq!(full.n_prompt + full.tokens.len(), n_ctx + 1, "the last token is seen but needs no place");

    let error = run(&"far too long ".repeat(n_ctx), &options(5)).unwrap_err();
    assert!(error.contains(&format!("the context holds {n_ctx}")) && error.contains("--ctx"), "{error}");

    let stopped = options(50);
    stopped.interrupt.store(true, Ordering::SeqCst);
    let stopped = run("Hello", &stopped).unwrap();
    assert_eq!((stopped.stop, stopped.text.as_str()), (StopReason::Interrupted, ""));
    let again = run("Count to one hundred.", &options(5)).unwrap();
    assert_eq!(again.tokens, cut.tokens, "a stopped, a full and a refused run leave nothing behind");

    let mut large = Generator::new(&model, &params()).unwrap();
    let brief = large.generate(&encode("Say only the word yes."), &options(200), &mut |_| {}).unwrap();
    assert_eq!(brief.stop, StopReason::EndOfTurn);
    assert!(!brief.text.contains("<|im_end|>") && !brief.tokens.iter().any(|&t| model.is_eog(t)));
}
