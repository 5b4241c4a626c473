//! Steered generation.

use super::{BenchError, Line, Measured, Name, Outcome, Subject, alternate};
use crate::chat::{GenerateOptions, Generator, GeneratorParams};
use crate::data::Prompt;
use crate::steer::ControlVector;
use ggml_grad::llama::{Model, ModelParams, ReferenceContext};
use std::num::NonZeroUsize;
use std::time::Duration;

/// Tokens of an answer.
const N: usize = 64;
/// Turns for each of the others' rounds: an answer takes half a second, less than the machine's moods last.
const TURNS: NonZeroUsize = NonZeroUsize::new(3).unwrap();
/// Asks for a long answer.
const PROMPT: &str = "Tell me a long story about a lighthouse keeper, in many paragraphs.";

/// A vector that does the work of one and does not change the text.
fn vector(model: &Model, layer: usize) -> ControlVector {
    let n = model.n_embd();
    let mut data = vec![0.0f32; (model.n_layer() - 1) * n];
    data[(layer - 1) * n..layer * n].iter_mut().enumerate().for_each(|(i, x)| *x = 1e-3 * ((i % 7) as f32 - 3.0));
    ControlVector::constant(data, layer, layer)
}

fn per_token(time: Duration, n: usize) -> f64 {
    1e3 * time.as_secs_f64() / n.max(1) as f64
}

pub(super) fn line(s: &mut Subject<'_>) -> Result<Line, BenchError> {
    s.say("steered generation");
    let prompt = s.template.encode_prompt(&s.model, &Prompt::Text(PROMPT.into()))?;
    let params = GeneratorParams { n_ctx: 1024, n_threads: s.settings.threads };
    let mut generator = Generator::new(&s.model, &params)?;
    generator.set_steering(Some(vector(&s.model, s.layer)))?;
    let options = GenerateOptions { max_tokens: N + 1, ..GenerateOptions::default() };
    let mut decoded = 0;
    let mut ours = || {
        generator.clear();
        let answer = generator.generate(&prompt, &options, &mut |piece| {
            std::hint::black_box(piece);
        })?;
        // The last token of an answer that reached its limit is not decoded.
        decoded = answer.tokens.len().min(N);
        Ok::<_, BenchError>(per_token(answer.answer_time, decoded))
    };
    ours()?;
    // llama.cpp over plain and over repacked weights, the faster one.
    let repacked = Model::load(s.model.path(), &ModelParams { plain_weights: false, ..ModelParams::default() })?;
    let n_ctx = prompt.len() + N + 1;
    let mut best: Option<(Duration, ReferenceContext, &str)> = None;
    for (model, words) in [(&repacked, "repacked"), (&s.model, "plain")] {
        let mut ctx = ReferenceContext::new(model, n_ctx, s.settings.threads)?;
        ctx.generate(&prompt, 4)?;
        let time = ctx.generate(&prompt, N)?;
        if best.as_ref().is_none_or(|(least, ..)| time < *least) {
            best = Some((time, ctx, words));
        }
    }
    let (_, mut reference, words) = best.expect("there are two");
    let turns = TURNS.saturating_mul(s.settings.rounds);
    let rounds = alternate(turns, &mut ours, &mut || Ok(per_token(reference.generate(&prompt, N)?, N)))?;
    Ok(Line {
        name: Name::Generate,
        what: format!("steered generation, greedy, {decoded} tokens"),
        against: format!("llama.cpp's unsteered generation of {N} tokens after the same prompt ({words} weights)"),
        unit: "ms/token",
        outcome: Outcome::Measured(Measured::of(&rounds)),
        limit: Name::Generate.limit(&s.model, s.layer),
    })
}
