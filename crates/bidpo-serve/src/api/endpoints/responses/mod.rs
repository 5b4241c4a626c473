//! `/v1/responses`: OpenAI's Responses API, as another shape of a chat.

mod input;
mod items;

use crate::api::endpoints::chat::restrict;
use crate::api::read::body;
use crate::api::read::error::ApiError;
use crate::api::read::messages::{self, Encoded};
use crate::api::read::notes::Notes;
use crate::api::read::request::{MAX_TOP_LOGPROBS, common};
use crate::api::read::samplers::token_limit;
use crate::api::read::thoughts::{AT_THE_TOP, Thoughts, Told};
use crate::api::read::tools::{CallReader, CallTeller, take_calls};
use crate::api::respond::{StreamKind, StreamLines, gather, now, stream_lines, tokens_json, usage_json};
use crate::api::submit::{CompletionOptions, Sequence, remaining_context, submit};
use crate::engine::job::{Client, Event, Finish, TokenInfo, Usage};
use crate::state::State;
use axum::Json;
use axum::extract::{self, Extension, Request};
use axum::response::{IntoResponse, Response};
use bidpo_core::data::ThoughtSplitter;
use ggml_grad::llama::Model;
use input::{Echo, Translated, translate};
use items::{Items, Part, id};
use serde_json::{Value, json};
use std::sync::Arc;

/// Answers the input.
pub(crate) async fn responses(
    extract::State(state): extract::State<Arc<State>>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, ApiError> {
    let Translated { mut fields, echo, logprobs } = translate(body::read(&state, request).await?)?;
    let mut notes = Notes::new(state.strict_api);
    let chat = messages::chat(&mut fields, &state, &mut notes)?;
    // An effort that the template does not read is one that the model does not have.
    AT_THE_TOP.iter().for_each(|key| drop(fields.take(key)));
    let mut common = common(&mut fields, &state)?;
    if common.n != 1 {
        return Err(fields.wrong("n", "must be 1: a response has one answer"));
    }
    let limit = token_limit(&mut fields, "max_completion_tokens", 1)?;
    let top = fields.integer("top_logprobs", 0..=MAX_TOP_LOGPROBS)?.unwrap_or(0) as usize;
    fields.boolean("logprobs")?;
    fields.done(&mut notes)?;

    let Encoded { tokens, thoughts, calls, grammar } = messages::encode(&state, chat).await?;
    restrict(&mut common, calls.as_ref(), grammar)?;
    let thoughts = if common.grammar.is_some() { Thoughts::default() } else { thoughts };
    let max_tokens = remaining_context(&state, "input", tokens.len(), limit)?;
    let mut written = thoughts.written(&state.model);
    written.extend(calls.iter().flat_map(|c| c.written(&state.model)));
    let options = CompletionOptions { written, ..CompletionOptions::of(&mut common, logprobs.then_some(top)) };
    let sequence = Sequence { n_prompt: tokens.len(), tokens, score_from: None, max_tokens };
    let events = submit(&state, &client, vec![sequence], 1, &options)?;
    let mut writer = Writer {
        id: id("resp"),
        created: now(),
        name: common.model,
        echo,
        model: Arc::clone(&state.model),
        splitter: thoughts.splitter(),
        teller: calls.as_ref().map(CallReader::teller),
        items: Items::default(),
        number: 0,
    };
    if common.stream {
        return Ok(notes.mark(&state, stream_lines(events, 1, writer)));
    }
    let (mut choices, usage) = gather(events, 1).await?;
    let choice = choices.pop().unwrap_or_default();
    let mut unseen = Vec::new();
    writer.write(&choice.text, &choice.tokens, &mut unseen);
    let answer = writer.finish(choice.finish.unwrap_or(Finish::Stop), &usage[0], &mut unseen);
    Ok(notes.mark(&state, Json(answer).into_response()))
}

/// Writes a response, whole or as events.
struct Writer {
    id: String,
    created: u64,
    /// The model's name, as the client gave it.
    name: String,
    echo: Echo,
    model: Arc<Model>,
    splitter: ThoughtSplitter,
    teller: Option<CallTeller>,
    items: Items,
    /// Events so far.
    number: usize,
}

impl Writer {
    /// The response object.
    fn response(&self, status: &str) -> Value {
        let echo = &self.echo;
        json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": false,
            "error": null,
            "incomplete_details": null,
            "instructions": echo.instructions,
            "max_output_tokens": echo.max_output_tokens,
            "metadata": echo.metadata,
            "model": self.name,
            "output": self.items.output(),
            "parallel_tool_calls": true,
            "previous_response_id": null,
            "reasoning": {"effort": null, "summary": null},
            "store": false,
            "temperature": echo.temperature,
            "text": echo.text,
            "tool_choice": echo.tool_choice,
            "tools": echo.tools,
            "top_p": echo.top_p,
            "truncation": "disabled",
            "usage": null,
            "user": null,
        })
    }

    /// Takes the next piece of the answer with its tokens.
    fn write(&mut self, text: &str, tokens: &[TokenInfo], events: &mut Vec<Value>) {
        let told = Told::of(self.splitter.push(text));
        self.tell(told, tokens, false, events);
    }

    fn tell(&mut self, mut told: Told, tokens: &[TokenInfo], end: bool, events: &mut Vec<Value>) {
        let calls = take_calls(&mut self.teller, &mut told.answer, end);
        self.items.write(Part::Thought, &told.reasoning, Vec::new(), events);
        // Items of thoughts have no place for log-probabilities.
        let told_apart = told.answer.is_empty() && (!told.reasoning.is_empty() || !calls.is_empty());
        let logprobs = match tokens_json(&self.model, tokens) {
            Value::Array(list) if !told_apart => list,
            _ => Vec::new(),
        };
        self.items.write(Part::Text, &told.answer, logprobs, events);
        calls.iter().for_each(|call| self.items.call(call, events));
    }

    /// Ends the response; the whole object.
    fn finish(&mut self, finish: Finish, usage: &Usage, events: &mut Vec<Value>) -> Value {
        let rest = Told::of(self.splitter.finish());
        self.tell(rest, &[], true, events);
        let status = if finish == Finish::Length { "incomplete" } else { "completed" };
        self.items.close(status, events);
        let mut response = self.response(status);
        if finish == Finish::Length {
            response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        response["completed_at"] = json!(now());
        response["usage"] = usage_of(usage);
        response
    }

    /// Events with their numbers.
    fn numbered(&mut self, mut events: Vec<Value>) -> Vec<Value> {
        for event in &mut events {
            event["sequence_number"] = json!(self.number);
            self.number += 1;
        }
        events
    }
}

fn usage_of(usage: &Usage) -> Value {
    let counts = usage_json(&[*usage], 1);
    json!({
        "input_tokens": usage.n_prompt,
        "input_tokens_details": {"cached_tokens": usage.n_reused},
        "output_tokens": usage.n_generated,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.n_prompt + usage.n_generated,
        "bidpo_seconds": counts["bidpo_seconds"],
    })
}

impl StreamLines for Writer {
    const KIND: StreamKind = StreamKind::Named;

    fn begin(&mut self, _: usize) -> Vec<Value> {
        let response = self.response("in_progress");
        let events =
            ["response.created", "response.in_progress"].map(|kind| json!({"type": kind, "response": response}));
        self.numbered(events.into())
    }

    fn more(&mut self, _: usize, event: &Event) -> Vec<Value> {
        let Event::Text { text, tokens } = event else { return Vec::new() };
        let mut events = Vec::new();
        self.write(text, tokens, &mut events);
        self.numbered(events)
    }

    fn last(&mut self, _: usize, finish: Finish, usage: &Usage) -> Vec<Value> {
        let mut events = Vec::new();
        let response = self.finish(finish, usage, &mut events);
        let kind = format!("response.{}", response["status"].as_str().unwrap_or("completed"));
        events.push(json!({"type": kind, "response": response}));
        self.numbered(events)
    }

    fn end(&mut self, _: &[Usage]) -> Option<Value> {
        None
    }

    fn error(&self, error: &ApiError) -> Value {
        let mut response = self.response("failed");
        response["error"] = json!({"code": "server_error", "message": error.message});
        json!({"type": "response.failed", "response": response, "sequence_number": self.number})
    }
}
