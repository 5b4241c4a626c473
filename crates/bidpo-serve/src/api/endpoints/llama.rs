//! `/completion`: llama-server's own way to go on with a text, for front-ends that use nothing else.

use crate::api::endpoints::completions::{Given, given};
use crate::api::read::body;
use crate::api::read::error::ApiError;
use crate::api::read::fields::Fields;
use crate::api::read::notes::Notes;
use crate::api::read::request::{MAX_TOP_LOGPROBS, common};
use crate::api::read::samplers::answer_limit;
use crate::api::respond::{Choice, StreamKind, StreamLines, gather, stream_lines, tokens_json};
use crate::api::submit::{CompletionOptions, Sequence, remaining_context, submit};
use crate::engine::job::{Client, Event, Finish, TokenInfo, Usage};
use crate::engine::sampling::Sampling;
use crate::state::State;
use axum::Json;
use axum::extract::{self, Extension, Request};
use axum::response::{IntoResponse, Response};
use ggml_grad::llama::Model;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// llama-server's own sampling, where a request does not set it.
const DEFAULTS: [(&str, f64); 4] = [("temperature", 0.8), ("top_p", 0.95), ("top_k", 40.0), ("min_p", 0.05)];

/// Fields of slots and of reports, which change no answer.
const HARMLESS: [&str; 5] = ["id_slot", "n_keep", "return_progress", "timings_per_token", "slot_id"];

/// Goes on with a text.
pub(crate) async fn completion(
    extract::State(state): extract::State<Arc<State>>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut fields = Fields::new(body::read(&state, request).await?, "")?;
    let prompt = fields.take("prompt").ok_or_else(|| fields.wrong("prompt", "is missing"))?;
    for (key, value) in DEFAULTS.into_iter().filter(|(key, _)| !fields.is_set(key)).collect::<Vec<_>>() {
        fields.put(key, json!(value));
    }
    HARMLESS.iter().for_each(|key| drop(fields.take(key)));
    let mut notes = Notes::new(state.strict_api);
    let n_probs = fields.integer("n_probs", 0..=MAX_TOP_LOGPROBS)?.unwrap_or(0) as usize;
    let return_tokens = fields.boolean("return_tokens")?.unwrap_or(false);
    let mut common = common(&mut fields, &state)?;
    // llama-server's streams always tell the tokens.
    let return_tokens = return_tokens || common.stream;
    let limit = answer_limit(&mut fields, 0)?;
    fields.done(&mut notes)?;

    let given = given(&state, prompt).await?;
    let mut sequences = Vec::new();
    for g in &given {
        let max_tokens = remaining_context(&state, "prompt", g.tokens.len(), limit)?;
        sequences.push(Sequence { tokens: g.tokens.clone(), n_prompt: g.tokens.len(), score_from: None, max_tokens });
    }
    let n = sequences.len() * common.n;
    let tells_tokens = return_tokens || n_probs > 0;
    let options = CompletionOptions::of(&mut common, tells_tokens.then_some(n_probs));
    let events = submit(&state, &client, sequences, common.n, &options)?;
    let answers = given.iter().flat_map(|g| std::iter::repeat_n(g, common.n)).map(Answer::of).collect();
    let mut lines = Lines {
        model: Arc::clone(&state.model),
        name: common.model,
        limit,
        n_probs,
        return_tokens,
        sampling: options.sampling,
        stop: options.stop,
        stream: common.stream,
        answers,
    };
    if common.stream {
        return Ok(notes.mark(&state, stream_lines(events, n, lines)));
    }
    let (choices, usage) = gather(events, n).await?;
    let mut whole: Vec<Value> =
        choices.iter().zip(&usage).enumerate().map(|(i, (choice, usage))| lines.whole(i, choice, usage)).collect();
    let answer = if n == 1 { whole.remove(0) } else { json!(whole) };
    Ok(notes.mark(&state, Json(answer).into_response()))
}

/// What is told of one answer at its end.
struct Answer {
    prompt: String,
    n_prompt: usize,
    n_tokens: usize,
    has_new_line: bool,
}

impl Answer {
    fn of(given: &Given) -> Self {
        Self { prompt: given.text.clone(), n_prompt: given.tokens.len(), n_tokens: 0, has_new_line: false }
    }
}

struct Lines {
    model: Arc<Model>,
    /// The model's name, as the client gave it.
    name: String,
    limit: Option<usize>,
    n_probs: usize,
    return_tokens: bool,
    sampling: Sampling,
    stop: Vec<String>,
    stream: bool,
    answers: Vec<Answer>,
}

impl Lines {
    /// A piece of answer `i`.
    fn piece(&mut self, i: usize, text: &str, tokens: &[TokenInfo]) -> Value {
        let answer = &mut self.answers[i];
        answer.n_tokens += tokens.len();
        answer.has_new_line |= text.contains('\n');
        let ids = if self.return_tokens { tokens.iter().map(|t| t.token).collect() } else { Vec::new() };
        let mut value = json!({
            "index": i,
            "content": text,
            "tokens": ids,
            "stop": false,
            "id_slot": -1,
            "tokens_predicted": answer.n_tokens,
            "tokens_evaluated": answer.n_prompt,
        });
        if self.n_probs > 0 {
            value["completion_probabilities"] = tokens_json(&self.model, tokens);
        }
        value
    }

    /// Adds what is told at the end.
    fn ended(&self, mut value: Value, i: usize, finish: Finish, usage: &Usage) -> Value {
        let answer = &self.answers[i];
        let (kind, word) = match finish {
            Finish::Stop => ("eos", ""),
            Finish::Sequence(n) => ("word", self.stop.get(n).map_or("", String::as_str)),
            Finish::Length => ("limit", ""),
        };
        let params = &self.sampling.params;
        for (key, more) in [
            ("stop", json!(true)),
            ("model", json!(self.name)),
            ("tokens_predicted", json!(usage.n_generated)),
            ("tokens_cached", json!(usage.n_prompt + usage.n_generated)),
            (
                "generation_settings",
                json!({
                    "n_predict": self.limit.map_or(json!(-1), |n| json!(n)),
                    "seed": params.seed,
                    "temperature": params.temperature,
                    "top_k": params.top_k,
                    "top_p": params.top_p,
                    "min_p": params.min_p,
                    "repeat_penalty": params.repeat_penalty,
                    "presence_penalty": self.sampling.penalties.presence,
                    "frequency_penalty": self.sampling.penalties.frequency,
                    "stop": self.stop,
                    "n_probs": self.n_probs,
                    "stream": self.stream,
                }),
            ),
            ("prompt", json!(answer.prompt)),
            ("has_new_line", json!(answer.has_new_line)),
            ("truncated", json!(false)),
            ("stop_type", json!(kind)),
            ("stopping_word", json!(word)),
            ("timings", timings(usage)),
        ] {
            value[key] = more;
        }
        value
    }

    fn whole(&mut self, i: usize, choice: &Choice, usage: &Usage) -> Value {
        let value = self.piece(i, &choice.text, &choice.tokens);
        self.ended(value, i, choice.finish.unwrap_or(Finish::Stop), usage)
    }
}

impl StreamLines for Lines {
    // llama-server's stream has no [DONE] here.
    const KIND: StreamKind = StreamKind::Named;

    fn begin(&mut self, _: usize) -> Vec<Value> {
        Vec::new()
    }

    fn more(&mut self, i: usize, event: &Event) -> Vec<Value> {
        let Event::Text { text, tokens } = event else { return Vec::new() };
        vec![self.piece(i, text, tokens)]
    }

    fn last(&mut self, i: usize, finish: Finish, usage: &Usage) -> Vec<Value> {
        let value = self.piece(i, "", &[]);
        vec![self.ended(value, i, finish, usage)]
    }

    fn end(&mut self, _: &[Usage]) -> Option<Value> {
        None
    }

    fn error(&self, error: &ApiError) -> Value {
        error.json()
    }
}

/// Counts and times of the prompt's computed tokens and of the answer's.
fn timings(usage: &Usage) -> Value {
    let (prompt_n, predicted_n) = (usage.n_prompt - usage.n_reused, usage.n_generated);
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let each = |time: Duration, n: usize| if n > 0 { ms(time) / n as f64 } else { 0.0 };
    let rate = |time: Duration, n: usize| if time.is_zero() { 0.0 } else { n as f64 / time.as_secs_f64() };
    json!({
        "cache_n": usage.n_reused,
        "prompt_n": prompt_n,
        "prompt_ms": ms(usage.prompt_time),
        "prompt_per_token_ms": each(usage.prompt_time, prompt_n),
        "prompt_per_second": rate(usage.prompt_time, prompt_n),
        "predicted_n": predicted_n,
        "predicted_ms": ms(usage.answer_time),
        "predicted_per_token_ms": each(usage.answer_time, predicted_n),
        "predicted_per_second": rate(usage.answer_time, predicted_n),
    })
}
