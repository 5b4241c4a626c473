//! From the engine's events to responses: complete, or streamed.

use crate::api::read::error::ApiError;
use crate::api::submit::Events;
use crate::engine::job::{Event, Finish, TokenInfo, Usage};
use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::response::sse;
use axum::response::{IntoResponse, Response};
use bidpo_core::steer::Opening;
use ggml_grad::llama::{Model, Token};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;

/// Chunks buffered for a slow client. (Events from the engine are bounded by the length of an answer.)
const BUFFERED: usize = 16;

/// Interval of comment lines, so that proxies do not close an idle connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Fields that all chunks of one response share.
#[derive(Debug, Clone)]
pub(super) struct ResponseHeader {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub model: String,
}

impl ResponseHeader {
    pub(super) fn new(model: String, prefix: &str, object: &'static str) -> Self {
        let id = format!("{prefix}-{:032x}", rand::random::<u128>());
        Self { id, object, created: now(), model }
    }

    /// A response, or a chunk of one, with these choices.
    pub(super) fn wrap(&self, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": concat!("bidpo-", env!("CARGO_PKG_VERSION")),
            "choices": choices,
        })
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// A choice, complete.
#[derive(Debug, Default)]
pub(super) struct Choice {
    pub text: String,
    pub tokens: Vec<TokenInfo>,
    pub scored: Vec<TokenInfo>,
    pub finish: Option<Finish>,
}

/// Waits for all choices. Dropping the future cancels their jobs.
pub(super) async fn gather(mut events: Events, n: usize) -> Result<(Vec<Choice>, Vec<Usage>), ApiError> {
    let mut choices: Vec<Choice> = (0..n).map(|_| Choice::default()).collect();
    let mut usage = vec![Usage::default(); n];
    let mut open = n;
    while open > 0 {
        let (i, event) = events.recv().await.ok_or_else(died)?;
        let choice = &mut choices[i];
        match event {
            Event::Scored(tokens) => choice.scored.extend(tokens),
            Event::Text { text, tokens } => {
                choice.text += &text;
                choice.tokens.extend(tokens);
            }
            Event::Done(finish, u) => {
                choice.finish = Some(finish);
                usage[i] = u;
                open -= 1;
            }
            Event::Failed(error) => return Err(error.into()),
        }
    }
    Ok((choices, usage))
}

fn died() -> ApiError {
    ApiError::internal("the engine ended before the answer did; restart the server")
}

/// The JSON of the chunks of a stream.
pub(super) trait StreamFormat: Send + 'static {
    /// The first chunk of choice `i`; None where the format has none.
    fn first(&mut self, i: usize) -> Option<Value>;
    /// The chunk for an event of choice `i`; None where it has none.
    fn more(&mut self, i: usize, event: &Event) -> Option<Value>;
    /// The last chunk of choice `i`.
    fn last(&mut self, i: usize, finish: Finish) -> Value;
}

/// Whole lines of a stream: chunks with what stands around them.
pub(super) trait StreamLines: Send + 'static {
    /// Media type.
    const KIND: StreamKind;
    /// Lines before all events.
    fn begin(&mut self, i: usize) -> Vec<Value>;
    /// The lines for an event of choice `i`.
    fn more(&mut self, i: usize, event: &Event) -> Vec<Value>;
    /// The lines for the end of choice `i`.
    fn last(&mut self, i: usize, finish: Finish, usage: &Usage) -> Vec<Value>;
    /// The line behind everything.
    fn end(&mut self, usage: &[Usage]) -> Option<Value>;
    /// The line for an error, which ends the stream.
    fn error(&self, error: &ApiError) -> Value;
}

/// How lines are framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamKind {
    /// Server-sent events, `[DONE]` at the end.
    Events,
    /// Server-sent events with names: each line's `type`.
    Named,
    /// A line of JSON each.
    Lines,
}

/// A line, and its name as an event.
struct Line {
    name: Option<String>,
    text: String,
}

/// OpenAI's chunks.
struct Chunks<F> {
    header: ResponseHeader,
    include_usage: bool,
    n_prompts: usize,
    format: F,
}

impl<F> Chunks<F> {
    fn wrap(&self, choice: Value) -> Value {
        let mut part = self.header.wrap(vec![choice]);
        if self.include_usage {
            part["usage"] = Value::Null;
        }
        part
    }
}

impl<F: StreamFormat> StreamLines for Chunks<F> {
    const KIND: StreamKind = StreamKind::Events;

    fn begin(&mut self, i: usize) -> Vec<Value> {
        self.format.first(i).map(|choice| self.wrap(choice)).into_iter().collect()
    }

    fn more(&mut self, i: usize, event: &Event) -> Vec<Value> {
        self.format.more(i, event).map(|choice| self.wrap(choice)).into_iter().collect()
    }

    fn last(&mut self, i: usize, finish: Finish, _: &Usage) -> Vec<Value> {
        let choice = self.format.last(i, finish);
        vec![self.wrap(choice)]
    }

    fn end(&mut self, usage: &[Usage]) -> Option<Value> {
        self.include_usage.then(|| {
            let mut part = self.header.wrap(Vec::new());
            part["usage"] = usage_json(usage, self.n_prompts);
            part
        })
    }

    fn error(&self, error: &ApiError) -> Value {
        error.json()
    }
}

/// OpenAI's stream: server-sent events. The jobs are cancelled when the client disconnects.
pub(super) fn stream(
    header: ResponseHeader,
    events: Events,
    n: usize,
    include_usage: bool,
    n_prompts: usize,
    format: impl StreamFormat,
) -> Response {
    stream_lines(events, n, Chunks { header, include_usage, n_prompts, format })
}

/// A stream of `n` choices' events as lines. The jobs are cancelled when the client disconnects.
pub(super) fn stream_lines<L: StreamLines>(mut events: Events, n: usize, mut lines: L) -> Response {
    let (sender, receiver) = mpsc::channel::<Line>(BUFFERED);
    tokio::spawn(async move {
        let mut usage = vec![Usage::default(); n];
        let mut open = n;
        let mut failed = false;
        let mut out: Vec<Value> = (0..n).flat_map(|i| lines.begin(i)).collect();
        loop {
            for value in out.drain(..) {
                let name = value["type"].as_str().filter(|_| L::KIND == StreamKind::Named).map(str::to_owned);
                if sender.send(Line { name, text: value.to_string() }).await.is_err() {
                    return; // dropping the events tells the engine
                }
            }
            if open == 0 {
                break;
            }
            let event = tokio::select! {
                event = events.recv() => event,
                () = sender.closed() => return,
            };
            match event {
                Some((i, Event::Done(finish, u))) => {
                    usage[i] = u;
                    open -= 1;
                    out.extend(lines.last(i, finish, &u));
                }
                Some((_, Event::Failed(error))) => {
                    out.push(lines.error(&ApiError::from(error)));
                    (open, failed) = (0, true);
                    events.close();
                }
                Some((i, event)) => out.extend(lines.more(i, &event)),
                None => {
                    out.push(lines.error(&died()));
                    (open, failed) = (0, true);
                }
            }
            if open == 0 && !failed {
                out.extend(lines.end(&usage));
            }
        }
        if L::KIND == StreamKind::Events {
            let _ = sender.send(Line { name: None, text: "[DONE]".into() }).await;
        }
    });
    let lines = ReceiverStream::new(receiver);
    match L::KIND {
        StreamKind::Events | StreamKind::Named => {
            let event = |line: Line| match line.name {
                Some(name) => sse::Event::default().event(name).data(line.text),
                None => sse::Event::default().data(line.text),
            };
            let events = lines.map(move |line| Ok::<_, Infallible>(event(line)));
            let keep_alive = sse::KeepAlive::new().interval(KEEP_ALIVE);
            sse::Sse::new(events).keep_alive(keep_alive).into_response()
        }
        StreamKind::Lines => {
            let body = Body::from_stream(lines.map(|line| Ok::<_, Infallible>(line.text + "\n")));
            ([(CONTENT_TYPE, "application/x-ndjson")], body).into_response()
        }
    }
}

/// Counts of all choices together; a prompt that several share counts once.
pub(super) fn usage_json(usage: &[Usage], n_prompts: usize) -> Value {
    let per = (usage.len() / n_prompts.max(1)).max(1);
    let prompt: usize = usage.iter().step_by(per).map(|u| u.n_prompt).sum();
    let reused: usize = usage.iter().step_by(per).map(|u| u.n_reused).sum();
    let answer: usize = usage.iter().map(|u| u.n_generated).sum();
    let most = |of: fn(&Usage) -> Duration| usage.iter().map(of).max().unwrap_or_default().as_secs_f64();
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": reused},
        "bidpo_seconds": {"queue": most(|u| u.waited), "prompt": most(|u| u.prompt_time), "answer": most(|u| u.answer_time)},
    })
}

/// A token's text and bytes; control tokens show their names.
pub(super) fn token_text(model: &Model, token: Token) -> (String, Vec<u8>) {
    let bytes = model.token_bytes(token, true);
    (String::from_utf8_lossy(&bytes).into_owned(), bytes)
}

/// JSON has no infinity; OpenAI's API writes -9999 instead.
pub(super) fn finite(logprob: f64) -> f64 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}

/// A token as the chat API shows it, and its number as `id`.
pub(super) fn token_json(model: &Model, info: &TokenInfo) -> Value {
    let one = |token: Token, logprob: Option<f64>| {
        let (text, bytes) = token_text(model, token);
        json!({"token": text, "logprob": logprob.map(finite), "bytes": bytes, "id": token})
    };
    let mut value = one(info.token, info.logprob);
    value["top_logprobs"] = info.top.iter().map(|&(token, logprob)| one(token, Some(logprob))).collect();
    if !info.gates.is_empty() {
        value["gates"] = gates_json(&info.gates);
    }
    value
}

/// How far gates are open, in the order of the steering.
pub(super) fn gates_json(gates: &[Opening]) -> Value {
    gates.iter().map(|g| json!({"vector": g.name, "open": g.open})).collect()
}

/// A list of tokens.
pub(super) fn tokens_json(model: &Arc<Model>, tokens: &[TokenInfo]) -> Value {
    tokens.iter().map(|t| token_json(model, t)).collect()
}
