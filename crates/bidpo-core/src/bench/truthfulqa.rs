//! TruthfulQA, MC1 and MC2 in one pass.

use super::{BenchError, Line, Measured, Name, Outcome, Prefill, Rounds, Subject};
use crate::data::truthfulqa::TruthfulQa;
use crate::eval::truthfulqa::{Job, prefix, qa_preamble};
use crate::eval::{Request, Scorer, ScorerParams};
use ggml_grad::llama::{LlamaError, Model, Token};
use std::num::NonZeroUsize;
use std::time::Instant;

/// Rounds, at most: one takes long.
const MOST_ROUNDS: NonZeroUsize = NonZeroUsize::new(3).unwrap();

/// The preamble once, each question once, each distinct answer once.
fn unique_tokens(model: &Model, preamble: &str, requests: &[Request<'_>]) -> Result<Vec<Token>, LlamaError> {
    let mut tokens = model.tokenize(preamble, true, false)?;
    for request in requests {
        tokens.extend(model.tokenize(request.prompt, false, false)?);
        for answer in request.answers {
            tokens.extend(model.tokenize(&format!(" {answer}"), false, false)?);
        }
    }
    Ok(tokens)
}

pub(super) fn line(s: &mut Subject<'_>, prefill: &mut Prefill) -> Result<Line, BenchError> {
    let mut line = Line {
        name: Name::Truthfulqa,
        what: "TruthfulQA MC1 and MC2 in one pass".into(),
        against: "llama.cpp's prefill of the unique tokens".into(),
        unit: "s",
        outcome: Outcome::NotMeasured("needs --truthfulqa".into()),
        limit: Name::Truthfulqa.limit(&s.model, s.layer),
    };
    let Some(path) = s.settings.truthfulqa.clone() else { return Ok(line) };
    let set = TruthfulQa::load(&path)?;
    let questions = &set.questions[..s.settings.questions.min(set.questions.len())];
    let job = Job::new(questions);
    let requests = job.requests();
    let preamble = prefix(&qa_preamble());
    let tokens = unique_tokens(&s.model, &preamble, &requests)?;
    s.say(&format!("TruthfulQA: {} questions, {} unique tokens", questions.len(), tokens.len()));
    line.what = format!("{}, {} questions", line.what, questions.len());
    // The best way is found on the first tokens: they are alike.
    let sample: Vec<Vec<Token>> = tokens.chunks(512).take(2).map(<[Token]>::to_vec).collect();
    let mut way = prefill.fastest(&sample, true)?;
    way.sequences = tokens.chunks(512).map(<[Token]>::to_vec).collect();
    line.against =
        format!("{} ({}; preamble, questions, distinct answers once: {})", line.against, way.words, tokens.len());
    // With this many tokens one round of each is no worse than a rehearsal.
    let params = ScorerParams { n_threads: s.settings.threads, ..ScorerParams::default() };
    let ours = |requests: &[Request<'_>]| {
        let mut scorer = Scorer::new(&s.model, params.clone(), None)?;
        let started = Instant::now();
        scorer.set_prefix(&preamble)?;
        let mut results = Vec::new();
        scorer.score_many(requests, &mut |_, scores| {
            results.push(scores);
            true
        })?;
        Ok::<_, BenchError>(started.elapsed().as_secs_f64())
    };
    ours(&requests[..1.min(requests.len())])?;
    let n = s.settings.rounds.min(MOST_ROUNDS);
    let rounds = Rounds::measure(n, || Ok::<_, BenchError>((ours(&requests)?, prefill.seconds(&way)?)))?;
    line.outcome = Outcome::Measured(Measured::of(&rounds));
    Ok(line)
}
