//! TruthfulQA, MC1 and MC2 in one pass.

use super::{BenchError, Line, Measured, Name, Outcome, Prefill, Subject};
use crate::data::truthfulqa::{Question, TruthfulQa};
use crate::eval::items::Correct;
use crate::eval::truthfulqa::{Protocol, prefix, qa_preamble, question_prompt};
use crate::eval::{AnswerScore, Request, Scorer, ScorerParams};
use crate::llama::{LlamaError, Model, Token};
use std::time::Instant;

/// The answers of both settings, each once, and where those of each setting are among them.
struct Asked<'a> {
    question: &'a Question,
    answers: Vec<&'a str>,
    places: [Vec<usize>; 2],
}

const PROTOCOLS: [Protocol; 2] = [Protocol::Mc1, Protocol::Mc2];

impl<'a> Asked<'a> {
    fn new(question: &'a Question) -> Self {
        let mut answers: Vec<&str> = Vec::new();
        let places = PROTOCOLS.map(|p| {
            let choices = p.choices(question).unwrap_or_default();
            choices
                .iter()
                .map(|c| {
                    answers.iter().position(|a| *a == c.text).unwrap_or_else(|| {
                        answers.push(&c.text);
                        answers.len() - 1
                    })
                })
                .collect()
        });
        Self { question, answers, places }
    }

    /// Both results.
    fn outcomes(&self, scores: &[AnswerScore]) -> [Correct; 2] {
        [0, 1].map(|i| {
            let picked: Vec<_> = self.places[i].iter().map(|&at| scores[at]).collect();
            PROTOCOLS[i].outcome(PROTOCOLS[i].choices(self.question).unwrap_or_default(), &picked)
        })
    }
}

/// The preamble once, each question once, each distinct answer once.
fn unique_tokens(model: &Model, preamble: &str, asked: &[Asked<'_>]) -> Result<Vec<Token>, LlamaError> {
    let mut tokens = model.tokenize(preamble, true, false)?;
    for a in asked {
        tokens.extend(model.tokenize(&question_prompt(&a.question.text), false, false)?);
        for answer in &a.answers {
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
    let asked: Vec<Asked<'_>> = set.questions.iter().take(s.settings.questions).map(Asked::new).collect();
    let preamble = prefix(&qa_preamble());
    let tokens = unique_tokens(&s.model, &preamble, &asked)?;
    s.say(&format!("TruthfulQA: {} questions, {} unique tokens", asked.len(), tokens.len()));
    line.what = format!("{}, {} questions", line.what, asked.len());
    // The best way is found on the first tokens: they are alike.
    let sample: Vec<Vec<Token>> = tokens.chunks(512).take(2).map(<[Token]>::to_vec).collect();
    let mut way = prefill.fastest(&sample, true)?;
    way.sequences = tokens.chunks(512).map(<[Token]>::to_vec).collect();
    line.against =
        format!("{} ({}; preamble, questions, distinct answers once: {})", line.against, way.words, tokens.len());
    // With this many tokens one round of each is no worse than a rehearsal.
    let params = ScorerParams { n_threads: s.settings.threads, ..ScorerParams::default() };
    let prompts: Vec<String> = asked.iter().map(|a| question_prompt(&a.question.text)).collect();
    let ours = |asked: &[Asked<'_>]| {
        let mut scorer = Scorer::new(&s.model, params.clone(), None)?;
        let started = Instant::now();
        scorer.set_prefix(&preamble)?;
        let requests: Vec<Request<'_>> =
            asked.iter().zip(&prompts).map(|(a, prompt)| Request { prompt, answers: &a.answers }).collect();
        scorer.score_many(&requests, &mut |i, scores| {
            std::hint::black_box(asked[i].outcomes(&scores));
            true
        })?;
        Ok::<_, BenchError>(started.elapsed().as_secs_f64())
    };
    ours(&asked[..1.min(asked.len())])?;
    let mut rounds = Vec::new();
    for _ in 0..s.settings.rounds.clamp(1, 3) {
        rounds.push((ours(&asked)?, prefill.seconds(&way)?));
    }
    line.outcome = Outcome::Measured(Measured::of(&rounds).expect("there are rounds"));
    Ok(line)
}
