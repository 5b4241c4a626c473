//! `/v1/chat/completions`.

use super::body;
use super::error::ApiError;
use super::fields::{Fields, kind};
use super::request::{MAX_TOP_LOGPROBS, common};
use super::respond::{Choice, ResponseHeader, StreamFormat, gather, stream, tokens_json, usage_json};
use super::submit::{CompletionOptions, Sequence, remaining_context, submit};
use crate::job::{Client, Event, Finish, TokenInfo};
use crate::state::State;
use axum::Json;
use axum::extract::{self, Extension, Request};
use axum::response::{IntoResponse, Response};
use bidpo_core::data::{Message, Prompt};
use ggml_grad::llama::{Model, Token};
use serde_json::{Value, json};
use std::sync::Arc;

/// Answers the last message of a chat.
pub(crate) async fn chat(
    extract::State(state): extract::State<Arc<State>>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut fields = Fields::new(body::read(&state, request).await?, "")?;
    let messages = messages(&mut fields)?;
    let common = common(&mut fields, &state)?;
    let most = state.limits.max_output as i64;
    let max_tokens = match (fields.integer("max_completion_tokens", 1..=most)?, fields.integer("max_tokens", 1..=most)?)
    {
        (Some(a), Some(b)) if a != b => {
            return Err(fields.wrong("max_tokens", "is not what max_completion_tokens says; give one of them"));
        }
        (a, b) => a.or(b).map(|n| n as usize),
    };
    let logprobs = fields.boolean("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=MAX_TOP_LOGPROBS)?;
    if top.is_some() && !logprobs {
        return Err(fields.wrong("top_logprobs", "needs logprobs: true"));
    }
    fields.done()?;

    let tokens = encode(&state, messages).await?;
    let max_tokens = remaining_context(&state, "messages", tokens.len(), max_tokens)?;
    let options = CompletionOptions::of(&common, logprobs.then(|| top.unwrap_or(0) as usize));
    let sequence = Sequence { n_prompt: tokens.len(), tokens, score_from: None, max_tokens };
    let events = submit(&state, &client, vec![sequence], common.n, &options)?;
    let model = Arc::clone(&state.model);
    if common.stream {
        let header = ResponseHeader::new(&state, "chatcmpl", "chat.completion.chunk");
        return Ok(stream(header, events, common.n, common.include_usage, 1, ChatParts { model, logprobs }));
    }
    let (choices, usage) = gather(events, common.n).await?;
    let choices = choices.iter().enumerate().map(|(i, c)| choice_json(&model, i, c, logprobs)).collect();
    let mut answer = ResponseHeader::new(&state, "chatcmpl", "chat.completion").wrap(choices);
    answer["usage"] = usage_json(&usage, 1);
    Ok(Json(answer).into_response())
}

/// Tokens of a chat with the prompt for an answer.
pub(super) async fn encode(state: &Arc<State>, messages: Vec<Message>) -> Result<Vec<Token>, ApiError> {
    let state = Arc::clone(state);
    let encoded =
        tokio::task::spawn_blocking(move || state.template.encode_prompt(&state.model, &Prompt::Messages(messages)));
    let encoded = encoded.await.map_err(|e| ApiError::internal(e.to_string()))?;
    encoded.map_err(|e| ApiError::template("messages", &e))
}

/// Reads `messages`.
pub(super) fn messages(fields: &mut Fields) -> Result<Vec<Message>, ApiError> {
    let list = fields.list("messages")?.ok_or_else(|| fields.wrong("messages", "is missing"))?;
    if list.is_empty() {
        return Err(fields.wrong("messages", "is empty"));
    }
    list.into_iter().enumerate().map(|(i, value)| message(value, &format!("messages[{i}]"))).collect()
}

fn message(value: Value, at: &str) -> Result<Message, ApiError> {
    let mut fields = Fields::new(value, at)?;
    let role = fields.text("role")?.ok_or_else(|| fields.wrong("role", "is missing"))?;
    let role = match role.as_str() {
        "system" | "developer" => "system",
        "user" => "user",
        "assistant" => "assistant",
        "tool" | "function" => {
            let name = fields.name("role");
            return Err(ApiError::unsupported(&name, format!("{name}: tools are not supported by this server")));
        }
        other => return Err(fields.wrong("role", &format!("must be system, user or assistant, not {other:?}"))),
    };
    let content = match fields.take("content") {
        None => return Err(fields.wrong("content", "is missing")),
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let at = fields.name("content");
            let texts = parts.into_iter().enumerate().map(|(i, part)| part_text(part, &format!("{at}[{i}]")));
            texts.collect::<Result<String, _>>()?
        }
        Some(other) => {
            return Err(fields.wrong("content", &format!("must be a string or a list of parts, not {}", kind(&other))));
        }
    };
    // Keys of OpenAI's own answers, mostly empty, which clients send back in the history.
    for key in ["refusal", "annotations", "tool_calls", "audio", "function_call"] {
        if let Some(value) = fields.take(key).filter(|v| !v.as_array().is_some_and(Vec::is_empty)) {
            let name = fields.name(key);
            return Err(ApiError::unsupported(
                &name,
                format!("{name} is not supported by this server (got {})", kind(&value)),
            ));
        }
    }
    fields.done()?;
    Ok(Message { role: role.into(), content })
}

fn part_text(value: Value, at: &str) -> Result<String, ApiError> {
    let mut fields = Fields::new(value, at)?;
    match fields.text("type")?.as_deref() {
        Some("text") => {}
        Some(other) => {
            let name = fields.name("type");
            return Err(ApiError::unsupported(
                &name,
                format!("{name}: only text is supported by this server, not {other:?}"),
            ));
        }
        None => return Err(fields.wrong("type", "is missing")),
    }
    let text = fields.text("text")?.ok_or_else(|| fields.wrong("text", "is missing"))?;
    fields.done()?;
    Ok(text)
}

fn logprobs_json(model: &Arc<Model>, tokens: &[TokenInfo], wanted: bool) -> Value {
    if wanted { json!({"content": tokens_json(model, tokens), "refusal": null}) } else { Value::Null }
}

fn choice_json(model: &Arc<Model>, i: usize, choice: &Choice, logprobs: bool) -> Value {
    json!({
        "index": i,
        "message": {"role": "assistant", "content": choice.text, "refusal": null},
        "logprobs": logprobs_json(model, &choice.tokens, logprobs),
        "finish_reason": choice.finish.map(Finish::word),
    })
}

struct ChatParts {
    model: Arc<Model>,
    logprobs: bool,
}

impl StreamFormat for ChatParts {
    fn first(&mut self, i: usize) -> Option<Value> {
        Some(
            json!({"index": i, "delta": {"role": "assistant", "content": ""}, "logprobs": null, "finish_reason": null}),
        )
    }

    fn more(&mut self, i: usize, event: &Event) -> Option<Value> {
        let Event::Text { text, tokens } = event else { return None };
        let logprobs = logprobs_json(&self.model, tokens, self.logprobs);
        Some(json!({"index": i, "delta": {"content": text}, "logprobs": logprobs, "finish_reason": null}))
    }

    fn last(&mut self, i: usize, finish: Finish) -> Value {
        json!({"index": i, "delta": {}, "logprobs": null, "finish_reason": finish.word()})
    }
}
