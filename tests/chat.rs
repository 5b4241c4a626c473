//! Steered generation and chat on a real model.

#![allow(clippy::unwrap_used, unreachable_pub)] // helpers of tests: a failure there is the message

mod common;

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

/// A vector made by another tool (repeng), at its layers, from the command line.
#[test]
fn generate_with_a_foreign_vector() {
    let Some(model) = common::model(SMOL) else { return };
    let file = common::gold("interop/repeng_pca_smollm2.gguf");
    let run = |more: &[&str]| {
        let mut command = bidpo();
        command.arg("generate").arg("-m").arg(&model).args(["-p", "Tell me a story.", "-n", "8", "--json"]).args(more);
        let out = command.assert().success().get_output().stdout.clone();
        serde_json::from_slice::<serde_json::Value>(&out).unwrap()
    };
    let file = file.to_str().unwrap();
    let plain = run(&[]);
    let zero = run(&["--vector", file, "--scale", "0"]);
    let strong = run(&["--vector", file, "--scale", "-30", "--layers", "10-20"]);
    assert_eq!(zero["text"], plain["text"]);
    assert_ne!(strong["text"], plain["text"]);
    assert_eq!(plain["n_tokens"], 8);
    assert_eq!(plain["stop"], "max_tokens");

    let sweep = run(&["--vector", file, "--layers", "10-20", "--scales", "-30,0"]);
    assert_eq!(sweep[0]["text"], strong["text"], "each scale of --scales answers as that scale alone");
    assert_eq!(sweep[1]["text"], plain["text"]);
    assert_eq!(sweep[0]["vectors"][0]["scale"], -30.0);

    let mut command = bidpo();
    command.arg("generate").arg("-m").arg(&model).args(["-p", "Tell me a story.", "-n", "8"]);
    command.args(["--vector", file, "--scales=-1,1"]);
    command.assert().success().stdout(predicate::str::is_match("(?s)^=== scale -1\n.+\n=== scale 1\n.+\n$").unwrap());
}

#[test]
fn generate_is_repeatable_and_reads_its_prompt_anywhere() {
    let Some(model) = common::model(SMOL) else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompt.txt");
    std::fs::write(&file, "Name a colour.\n").unwrap();
    let run = |args: &[&str], stdin: &str| {
        let mut command = bidpo();
        command.arg("generate").arg("-m").arg(&model).args(["-n", "6"]).args(args).write_stdin(stdin.to_owned());
        String::from_utf8(command.assert().success().get_output().stdout.clone()).unwrap()
    };
    let given = run(&["-p", "Name a colour."], "");
    assert_eq!(run(&["--prompt-file", file.to_str().unwrap()], ""), given);
    assert_eq!(run(&["--prompt", "-"], "Name a colour.\n"), given);
    assert_eq!(run(&["--prompt-file", "-"], "Name a colour."), given);
    assert_ne!(run(&["-p", "Name a colour.", "--system", "Answer in French, in capitals."], ""), given);
    let sampled = |seed: &str| run(&["-p", "Name a colour.", "--temp", "1.5", "--min-p", "0", "--seed", seed], "");
    assert_eq!(sampled("7"), sampled("7"));
    assert!((1..6).any(|seed| sampled(&seed.to_string()) != sampled("7")), "the seed must matter");
}

#[test]
fn generate_without_a_template_says_so() {
    let Some(model) = common::model(GEMMA) else { return };
    let mut command = bidpo();
    command.arg("generate").arg("-m").arg(&model).args(["-p", "The capital of France is", "-n", "3"]);
    command
        .assert()
        .success()
        .stderr(predicate::str::contains("carries no chat template"))
        .stdout(predicate::str::is_match("^[^\n]+\n$").unwrap());
}

/// The chat, driven through a pipe: answers on stdout, everything else on stderr.
#[test]
fn chat_by_pipe() {
    let Some(model) = common::model(SMOL) else { return };
    let file = common::gold("interop/repeng_pca_smollm2.gguf");
    let run = |lines: &str| {
        let mut command = bidpo();
        command.arg("chat").arg("-m").arg(&model).args(["-n", "6"]).write_stdin(lines.to_owned());
        let out = command.assert().success().get_output().clone();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (text(out.stdout), text(out.stderr))
    };
    let file = file.to_str().unwrap();
    let (plain, _) = run("Name a river.");
    let (out, talk) = run(&format!(
        "Name a river.\n/reset\n\n/vector {file} -40\nName a river.\n/reset\n/off\nName \\\na river.\n/quit\nName a river.\n"
    ));
    let answers: Vec<_> = out.lines().collect();
    assert!(out.starts_with(&plain), "{out:?} {plain:?}");
    assert!(answers.len() >= 3, "{out:?}");
    assert!(talk.contains("repeng_pca_smollm2: scale -40") && talk.contains("steering is off"), "{talk}");

    let (out, talk) = run("/scale 2\n/sclae 2\n/scale x y\n/vector no/such.gguf\n/vector\n/help\n/scale\n");
    assert_eq!(out, "");
    for hint in
        ["no vector is named", "did you mean /scale?", "usage: /scale", "no/such.gguf", "usage: /load", "/reset"]
    {
        assert!(talk.contains(hint), "{hint}: {talk}");
    }
    let (out, talk) = run(&format!("/vector {file}\n/scale 5%\n/scale nan\n/scale repeng_pca_smollm2=-2\n"));
    assert_eq!(out, "");
    assert!(talk.contains("does not say the residual norm: measured") && talk.contains("(5.0 % of the"), "{talk}");
    assert!(talk.contains("is not a scale"), "{talk}");
    assert!(talk.contains("repeng_pca_smollm2: scale -2"), "{talk}");
}

#[test]
fn bad_input_gets_a_clear_error() {
    let missing = Path::new("no/such/model.gguf");
    let fails = |model: &Path, args: &[&str], code: i32, message: &str| {
        let mut command = bidpo();
        command.arg("generate").arg("-m").arg(model).args(args);
        command.assert().code(code).stdout("").stderr(predicate::str::contains(message));
    };
    fails(missing, &["-p", "x"], 1, "no/such/model.gguf");
    fails(missing, &["-p", " "], 1, "the prompt is empty");
    fails(missing, &["--prompt-file", "no/prompt.txt"], 1, "no/prompt.txt");
    fails(missing, &[], 2, "--prompt");
    fails(missing, &["-p", "x", "--temp", "hot"], 2, "from 0 to 100");
    fails(missing, &["-p", "x", "--top-p", "2"], 2, "from 0 to 1");
    fails(missing, &["-p", "x", "--template", "chatmk"], 2, "chatml");
    fails(missing, &["-p", "x", "--vector", "v.gguf", "--scale", "strong"], 2, "is not a scale");
    fails(missing, &["-p", "x", "--scales", "1"], 2, "--vector");
    let Some(model) = common::model(SMOL) else { return };
    fails(&model, &["-p", "x", "--vector", "no/such.gguf"], 1, "no/such.gguf");
    fails(&model, &["-p", "x", "--vector", model.to_str().unwrap()], 1, "SmolLM2");
    fails(&model, &["-p", "x", "--template", "no.jinja"], 1, "no.jinja");
    fails(&model, &["-p", "one two three four five", "--ctx", "8"], 1, "--ctx");
    let vector = common::gold("interop/repeng_pca_smollm2.gguf");
    let v = vector.to_str().unwrap();
    fails(&model, &["-p", "x", "--vector", v, "--layers", "20-40"], 1, "takes 1-29");
    fails(&model, &["-p", "x", "--vector", v, "--convention", "input"], 2, "cvector-generator");
    if let Some(gemma) = common::model(GEMMA) {
        fails(&gemma, &["-p", "x", "--vector", v, "--scale", "5%"], 1, "576");
        fails(&gemma, &["-p", "x", "--vector", v], 1, "576");
    }
}

/// Ctrl-C ends the answer, keeps what was said so far, and says so in the exit code.
#[cfg(unix)]
#[test]
fn ctrl_c_stops_the_answer() {
    use std::io::Read;
    use std::process::Stdio;
    let Some(model) = common::model(SMOL) else { return };
    let mut child = std::process::Command::new(assert_cmd::cargo::cargo_bin("bidpo"))
        .env("BIDPO_THREADS", "1")
        .args(["generate", "-n", "3000", "-p", "Write a very long story about a dragon.", "-m"])
        .arg(&model)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut text = vec![0u8; 20];
    stdout.read_exact(&mut text).unwrap(); // the answer has begun
    assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    stdout.read_to_end(&mut text).unwrap();
    let out = child.wait_with_output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(text.ends_with(b"\n"), "the line is finished");
    let talk = String::from_utf8(out.stderr).unwrap();
    assert!(talk.contains("it was stopped"), "{talk}");
}

/// A conversation's commands through a pipe: vectors with names, layers, both answers, the transcript.
#[test]
fn chat_commands_by_pipe() {
    let Some(model) = common::model(SMOL) else { return };
    let flowery = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("vectors/plain-vs-flowery.SmolLM2-135M-Instruct.Q4_1.gguf")
        .display()
        .to_string();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let run = |lines: &str| {
        let mut command = bidpo();
        command
            .env("COLUMNS", "80")
            .env("HOME", folder.path())
            .arg("chat")
            .arg("-m")
            .arg(&model)
            .args(["-n", "24"])
            .write_stdin(lines.to_owned());
        let out = command.assert().success().get_output().clone();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (text(out.stdout), text(out.stderr))
    };
    let (json, markdown) = (path("talk.json"), path("talk.md"));
    let at_home = "~/talk.md";
    let (out, talk) = run(&format!(
        "/load {flowery} style 10%\n/layers\n/layers 3-5\n\"\"\"\nWhat is\nthe moon?\n\"\"\"\n/scale style=-1\n/retry\n\
         /compare\n/save {json}\n/save {at_home}\n/save {model}\n/stats\n/undo\n/unload style\n/unload style\n",
        model = model.display(),
    ));
    for said in [
        "style: scale 0.983 (10.0 % of the residual norm)",
        "style at 0.983, layer 15",
        "15  norm 16.98, 10.0 % of the residual norm",
        "steers layer 15, none of them in layers 3-5",
        "style: scale -1 ",
        "2 messages: ",
        "is there already",
        "last answer: prompt",
        "reused",
        "of 4096 tokens used",
        "taken back: What is\nthe moon?",
        "no vector is loaded",
        "no vector is named style",
    ] {
        assert!(talk.contains(said), "{said}: {talk}");
    }
    assert!(out.contains("unsteered") && out.contains("  |  style -1"), "{out}");
    let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(kept["messages"][0], serde_json::json!({ "role": "user", "content": "What is\nthe moon?" }));
    assert_eq!(
        (&kept["messages"][1]["role"], &kept["messages"][1]["steering"][0]["scale"]),
        (&"assistant".into(), &(-1.0).into())
    );
    let answer = kept["messages"][1]["content"].as_str().unwrap();
    assert!(out.contains(answer) && std::fs::read_to_string(&markdown).unwrap().contains(answer), "{answer} {out}");
    assert_eq!(kept["messages"].as_array().unwrap().len(), 2, "the comparison is not part of it");

    // Several scales at once: all of them or none.
    let (_, talk) = run(&format!("/load {flowery} a\n/load {flowery} b\n/scale a=2 c=1\n/scale\n/scale a=2 b=-5%\n"));
    let scales: Vec<&str> = talk.lines().filter(|l| l.starts_with("a: ") || l.starts_with("b: ")).collect();
    let ends: Vec<&str> = scales.iter().map(|l| l.split(" (").next().unwrap()).collect();
    assert_eq!(ends[1..], ["a: scale 1", "b: scale 1", "a: scale 1", "b: scale 1", "a: scale 2", "b: scale -0.491"]);
}

/// The model's text cannot control the terminal: drawn from the whole vocabulary, it holds control characters.
#[test]
fn control_characters_of_the_model_do_not_come_out() {
    let Some(model) = common::model(SMOL) else { return };
    let sampling = ["--temp", "100", "--top-k", "0", "--top-p", "1", "--min-p", "0", "-n", "200", "--seed", "4"];
    let question = "Name a river.";
    let run = |command: &str, more: &[&str], stdin: &str| {
        let mut run = bidpo();
        run.arg(command).arg("-m").arg(&model).args(sampling).args(more);
        run.write_stdin(stdin.to_owned()).assert().success().get_output().stdout.clone()
    };
    let raw: serde_json::Value = serde_json::from_slice(&run("generate", &["--json", "-p", question], "")).unwrap();
    let raw = raw["text"].as_str().unwrap();
    let shown = String::from_utf8(run("chat", &[], question)).unwrap();
    let obeyed = |c: char| c.is_control() && c != '\n' && c != '\t';
    assert!(raw.contains(obeyed), "this seed draws no control character any more: take another");
    assert!(!shown.contains(obeyed), "{shown:?}");
    assert_eq!(shown.strip_suffix('\n').unwrap(), printable(raw));
}

/// `bidpo chat` in a terminal of its own.
#[cfg(unix)]
struct Terminal {
    pty: Arc<pty_process::blocking::Pty>,
    child: std::process::Child,
    shown: Arc<std::sync::Mutex<String>>,
    /// Offset at which the next search starts.
    at: usize,
}

#[cfg(unix)]
impl Terminal {
    fn chat(model: &Path, history: &Path) -> Self {
        use std::io::Read;
        let (pty, pts) = pty_process::blocking::open().unwrap();
        pty.resize(pty_process::Size::new(40, 100)).unwrap();
        let child = pty_process::blocking::Command::new(assert_cmd::cargo::cargo_bin("bidpo"))
            .env("BIDPO_THREADS", "1")
            .env("TERM", "xterm")
            .args(["chat", "-n", "400", "-m"])
            .arg(model)
            .arg("--history")
            .arg(history)
            .spawn(pts)
            .unwrap();
        let pty = Arc::new(pty);
        let shown = Arc::new(std::sync::Mutex::new(String::new()));
        let (reader, text) = (Arc::clone(&pty), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n) = (&*reader).read(&mut bytes) {
                text.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..n]));
            }
        });
        Self { pty, child, shown, at: 0 }
    }

    fn send(&self, keys: &str) {
        use std::io::Write;
        (&*self.pty).write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until `found` says how far of what was shown since the last wait it has read.
    fn wait(&mut self, what: &str, found: impl Fn(&str) -> Option<usize>) {
        let start = std::time::Instant::now();
        loop {
            let shown = self.shown.lock().unwrap().clone();
            if let Some(n) = found(&shown[self.at..]) {
                self.at += n;
                return;
            }
            assert!(start.elapsed().as_secs() < 60, "no {what} in {:?}", &shown[self.at..]);
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    fn wait_for(&mut self, text: &str) {
        self.wait(text, |shown| shown.find(text).map(|i| i + text.len()));
    }

    /// Waits until a line is being edited. What is typed earlier meets a terminal that is not in raw mode yet, where Ctrl-C
    /// is a signal that also drops the waiting input.
    fn wait_for_prompt(&mut self) {
        self.wait_for("\x1b[?2004h"); // bracketed paste is switched on after raw mode
    }

    fn ends_well(mut self) {
        let start = std::time::Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(start.elapsed().as_secs() < 60, "it does not end");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }
}

/// In a terminal: Ctrl-C stops the answer and not the program, keys edit, complete and bring back, history outlives the
/// program.
#[cfg(unix)]
#[test]
fn a_terminal_conversation() {
    let Some(model) = common::model(SMOL) else { return };
    let folder = tempfile::tempdir().unwrap();
    let history = folder.path().join("state/history");
    let json = folder.path().join("talk.json");
    let mut terminal = Terminal::chat(&model, &history);
    terminal.wait_for("/help lists the commands");
    terminal.wait_for_prompt();
    terminal.send("Write a very long story about a dragon.\r");
    terminal.wait_for("dragon.");
    terminal.wait("answer", |shown| (shown.len() > 80).then_some(80));
    terminal.send("\x03\x03"); // twice, as an impatient hand does
    terminal.wait_for("[stopped]");
    terminal.wait_for_prompt();
    terminal.send("/sta\t\r");
    terminal.wait_for("last answer:");
    terminal.wait_for("4096 tokens used");
    terminal.wait_for_prompt();
    terminal.send("a line that is given up\x03");
    terminal.wait_for("/quit to leave");
    terminal.wait_for_prompt();
    // Alt-Enter is a new line of the same input, and a backslash one more.
    terminal.send("Say\x1b\rhello,\\\rbriefly.\r");
    terminal.wait_for("briefly.");
    terminal.wait_for_prompt();
    terminal.send(&format!("/save {}\r", json.display()));
    terminal.wait_for("4 messages: ");
    terminal.wait_for_prompt();
    terminal.send("\x04");
    terminal.ends_well();
    let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(kept["messages"][2]["content"], "Say\nhello,\nbriefly.");
    assert_eq!(kept["messages"][1]["stop"], "interrupted");

    // The arrow keys know what an earlier program was told.
    let mut terminal = Terminal::chat(&model, &history);
    terminal.wait_for("/help lists the commands");
    terminal.wait_for_prompt();
    terminal.send("\x1b[A\r");
    terminal.wait_for("nothing was said yet");
    terminal.wait_for_prompt();
    terminal.send("/quit\r");
    terminal.ends_well();
    assert!(std::fs::read_to_string(&history).unwrap().contains("very long story"));
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&history).unwrap().permissions().mode() & 0o777, 0o600);
}
