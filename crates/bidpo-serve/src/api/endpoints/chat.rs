//! `/v1/chat/completions`.

use crate::api::read::body;
use crate::api::read::error::ApiError;
use crate::api::read::fields::Fields;
use crate::api::read::messages::{self, Encoded};
use crate::api::read::notes::Notes;
use crate::api::read::request::{Common, MAX_TOP_LOGPROBS, common};
use crate::api::read::samplers::answer_limit;
use crate::api::read::thoughts::{Thoughts, Told};
use crate::api::read::tools::{CallReader, CallTeller, take_calls};
use crate::api::respond::{Choice, ResponseHeader, StreamFormat, gather, stream, tokens_json, usage_json};
use crate::api::submit::{CompletionOptions, Sequence, remaining_context, submit};
use crate::engine::job::{Client, Event, Finish, TokenInfo};
use crate::state::State;
use axum::Json;
use axum::extract::{self, Extension, Request};
use axum::response::{IntoResponse, Response};
use bidpo_core::data::ThoughtSplitter;
use ggml_grad::llama::{Grammar, Model};
use serde_json::{Value, json};
use std::sync::Arc;

/// Answers the last message of a chat.
pub(crate) async fn chat(
    extract::State(state): extract::State<Arc<State>>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut fields = Fields::new(body::read(&state, request).await?, "")?;
    let mut notes = Notes::new(state.strict_api);
    let chat = messages::chat(&mut fields, &state, &mut notes)?;
    let mut common = common(&mut fields, &state)?;
    let max_tokens = answer_limit(&mut fields, 1)?;
    let logprobs = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=MAX_TOP_LOGPROBS)?;
    if top.is_some_and(|n| n > 0) && !logprobs {
        return Err(fields.wrong("top_logprobs", "needs logprobs: true"));
    }
    fields.done(&mut notes)?;

    let Encoded { tokens, thoughts, calls, grammar } = messages::encode(&state, chat).await?;
    restrict(&mut common, calls.as_ref(), grammar)?;
    // A form holds from the first token on.
    let thoughts = if common.grammar.is_some() { Thoughts::default() } else { thoughts };
    let max_tokens = remaining_context(&state, "messages", tokens.len(), max_tokens)?;
    let top = logprobs.then(|| top.unwrap_or(0) as usize);
    let mut written = thoughts.written(&state.model);
    written.extend(calls.iter().flat_map(|c| c.written(&state.model)));
    let options = CompletionOptions { written, ..CompletionOptions::of(&mut common, top) };
    let sequence = Sequence { n_prompt: tokens.len(), tokens, score_from: None, max_tokens };
    let events = submit(&state, &client, vec![sequence], common.n, &options)?;
    let model = Arc::clone(&state.model);
    if common.stream {
        let header = ResponseHeader::new(common.model.clone(), "chatcmpl", "chat.completion.chunk");
        let parts = ChatParts {
            model,
            logprobs,
            splitters: vec![thoughts.splitter(); common.n],
            tellers: vec![calls.as_ref().map(CallReader::teller); common.n],
        };
        return Ok(notes.mark(&state, stream(header, events, common.n, common.include_usage, 1, parts)));
    }
    let (choices, usage) = gather(events, common.n).await?;
    let choices = choices
        .iter()
        .enumerate()
        .map(|(i, c)| choice_json(&model, i, c, logprobs, &thoughts, calls.as_ref()))
        .collect();
    let mut answer = ResponseHeader::new(common.model.clone(), "chatcmpl", "chat.completion").wrap(choices);
    answer["usage"] = usage_json(&usage, 1);
    Ok(notes.mark(&state, Json(answer).into_response()))
}

fn logprobs_json(model: &Arc<Model>, tokens: &[TokenInfo], wanted: bool) -> Value {
    if wanted { json!({"content": tokens_json(model, tokens), "refusal": null}) } else { Value::Null }
}

/// Takes over the form of a required call. A form and tools cannot both be obeyed.
pub(in crate::api) fn restrict(
    common: &mut Common,
    calls: Option<&CallReader>,
    grammar: Option<Grammar>,
) -> Result<(), ApiError> {
    if calls.is_some() && common.grammar.is_some() {
        let message = "tools and a form of the answer (response_format, grammar, ...) cannot be given together: leave out \
                       one, or send tool_choice \"none\"";
        return Err(ApiError::unsupported("tools", message));
    }
    if grammar.is_some() {
        common.grammar = grammar;
    }
    Ok(())
}

/// OpenAI's word for the end of an answer.
fn word(finish: Finish, teller: Option<&CallTeller>) -> &'static str {
    let called = teller.is_some_and(CallTeller::has_calls);
    if called && finish != Finish::Length { "tool_calls" } else { finish.word() }
}

fn choice_json(
    model: &Arc<Model>,
    i: usize,
    choice: &Choice,
    logprobs: bool,
    thoughts: &Thoughts,
    calls: Option<&CallReader>,
) -> Value {
    let mut told = thoughts.split(&choice.text);
    let mut teller = calls.map(CallReader::teller);
    let mut tool_calls = take_calls(&mut teller, &mut told.answer, true);
    let mut message = json!({"role": "assistant", "content": told.answer, "refusal": null});
    told.add_reasoning(&mut message, "reasoning_content");
    if !tool_calls.is_empty() {
        if told.answer.is_empty() {
            message["content"] = Value::Null;
        }
        // Streams count calls; whole messages do not.
        tool_calls.iter_mut().filter_map(Value::as_object_mut).for_each(|call| _ = call.shift_remove("index"));
        message["tool_calls"] = json!(tool_calls);
    }
    json!({
        "index": i,
        "message": message,
        "logprobs": logprobs_json(model, &choice.tokens, logprobs),
        "finish_reason": choice.finish.map(|finish| word(finish, teller.as_ref())),
    })
}

struct ChatParts {
    model: Arc<Model>,
    logprobs: bool,
    /// Of each choice.
    splitters: Vec<ThoughtSplitter>,
    tellers: Vec<Option<CallTeller>>,
}

impl ChatParts {
    /// A piece of choice `i`'s answer without its calls, and these. `end`: it is the last one.
    fn calls(&mut self, i: usize, told: &mut Told, end: bool) -> Vec<Value> {
        take_calls(&mut self.tellers[i], &mut told.answer, end)
    }
}

fn delta(told: &Told, calls: Vec<Value>) -> Value {
    if calls.is_empty() {
        return told.delta();
    }
    let mut delta = if told.is_empty() { json!({}) } else { told.delta() };
    delta["tool_calls"] = json!(calls);
    delta
}

impl StreamFormat for ChatParts {
    fn first(&mut self, i: usize) -> Option<Value> {
        Some(
            json!({"index": i, "delta": {"role": "assistant", "content": ""}, "logprobs": null, "finish_reason": null}),
        )
    }

    fn more(&mut self, i: usize, event: &Event) -> Option<Value> {
        let Event::Text { text, tokens } = event else { return None };
        let mut told = Told::of(self.splitters[i].push(text));
        let calls = self.calls(i, &mut told, false);
        if told.is_empty() && calls.is_empty() && tokens.is_empty() && !text.is_empty() {
            return None;
        }
        let logprobs = logprobs_json(&self.model, tokens, self.logprobs);
        Some(json!({"index": i, "delta": delta(&told, calls), "logprobs": logprobs, "finish_reason": null}))
    }

    fn last(&mut self, i: usize, finish: Finish) -> Value {
        let mut rest = Told::of(self.splitters[i].finish());
        let calls = self.calls(i, &mut rest, true);
        let delta = if rest.is_empty() && calls.is_empty() { json!({}) } else { delta(&rest, calls) };
        json!({"index": i, "delta": delta, "logprobs": null, "finish_reason": word(finish, self.tellers[i].as_ref())})
    }
}
