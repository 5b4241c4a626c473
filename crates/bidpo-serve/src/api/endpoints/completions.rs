//! `/v1/completions`.

use crate::api::read::body;
use crate::api::read::error::ApiError;
use crate::api::read::fields::Fields;
use crate::api::read::notes::Notes;
use crate::api::read::request::{MAX_TOP_LOGPROBS, common};
use crate::api::read::samplers::{answer_limit, sets_limit};
use crate::api::respond::{
    Choice, ResponseHeader, StreamFormat, finite, gates_json, gather, stream, token_text, usage_json,
};
use crate::api::submit::{CompletionOptions, Sequence, remaining_context, submit};
use crate::engine::job::{Client, Event, Finish, TokenInfo};
use crate::state::State;
use axum::Json;
use axum::extract::{self, Extension, Request};
use axum::response::{IntoResponse, Response};
use bidpo_core::data::Prompt;
use ggml_grad::llama::{Model, Token};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// OpenAI's default.
const DEFAULT_TOKENS: usize = 16;

/// A prompt: its tokens, the text that `echo` repeats, and a BOS token that the server put before it.
pub(super) struct Given {
    pub(super) tokens: Vec<Token>,
    pub(super) text: String,
    added_bos: bool,
}

/// Goes on with a text.
pub(crate) async fn completions(
    extract::State(state): extract::State<Arc<State>>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut fields = Fields::new(body::read(&state, request).await?, "")?;
    let prompt = fields.take("prompt").ok_or_else(|| fields.wrong("prompt", "is missing"))?;
    let mut common = common(&mut fields, &state)?;
    let mut notes = Notes::new(state.strict_api);
    // Null is not set, which OpenAI's API takes as 16; -1 is no limit.
    let unset = !sets_limit(&fields);
    let max_tokens = if unset { Some(DEFAULT_TOKENS) } else { answer_limit(&mut fields, 0)? };
    // Chats have true and false here.
    fields.take_if("logprobs", |v| v == &json!(false));
    let top = fields.integer("logprobs", 0..=MAX_TOP_LOGPROBS)?.map(|n| n as usize);
    let echo = fields.boolean("echo")?.unwrap_or(false);
    fields.done(&mut notes)?;

    let given = given(&state, prompt).await?;
    let mut sequences = Vec::new();
    for g in &given {
        let max_tokens = remaining_context(&state, "prompt", g.tokens.len(), max_tokens)?;
        let score_from = (echo && top.is_some()).then_some(1);
        sequences.push(Sequence { tokens: g.tokens.clone(), n_prompt: g.tokens.len(), score_from, max_tokens });
    }
    let n_prompts = sequences.len();
    let n = n_prompts * common.n;
    // As OpenAI's API does here, and not for chats. lm-evaluation-harness counts on a token behind the prompt.
    let options = CompletionOptions { tell_end: true, ..CompletionOptions::of(&mut common, top) };
    let events = submit(&state, &client, sequences, common.n, &options)?;
    let mut parts = TextParts {
        model: Arc::clone(&state.model),
        top,
        offsets: vec![0; n],
        echoes: if echo { given } else { Vec::new() },
        n: common.n,
    };
    if common.stream {
        let header = ResponseHeader::new(common.model.clone(), "cmpl", "text_completion");
        return Ok(notes.mark(&state, stream(header, events, n, common.include_usage, n_prompts, parts)));
    }
    let (choices, usage) = gather(events, n).await?;
    let choices = choices.into_iter().enumerate().map(|(i, c)| parts.whole(i, c)).collect();
    let mut answer = ResponseHeader::new(common.model.clone(), "cmpl", "text_completion").wrap(choices);
    answer["usage"] = usage_json(&usage, n_prompts);
    Ok(notes.mark(&state, Json(answer).into_response()))
}

/// The prompts of a request, read and tokenized off the async threads.
pub(super) async fn given(state: &Arc<State>, prompt: Value) -> Result<Vec<Given>, ApiError> {
    let state = Arc::clone(state);
    let given = tokio::task::spawn_blocking(move || prompts(&state, prompt));
    given.await.map_err(|e| ApiError::internal(e.to_string()))?
}

/// Reads `prompt`: a string, a list of strings, a list of tokens, or a list of such lists. Tokens and strings in one list are one
/// prompt (llama-server).
fn prompts(state: &State, value: Value) -> Result<Vec<Given>, ApiError> {
    let wrong = || {
        ApiError::invalid(
            "prompt",
            "prompt must be a string, a list of strings, a list of tokens (with strings between them, if any), or a list of lists",
        )
    };
    match value {
        Value::String(text) => Ok(vec![text_prompt(state, text)?]),
        Value::Array(list) if list.is_empty() => Err(ApiError::invalid("prompt", "prompt is empty")),
        Value::Array(list) if list.iter().all(Value::is_number) => Ok(vec![token_prompt(state, &list)?]),
        Value::Array(list) if list.iter().any(Value::is_number) => Ok(vec![mixed_prompt(state, &list)?]),
        Value::Array(list) => list
            .into_iter()
            .map(|one| match one {
                Value::String(text) => text_prompt(state, text),
                Value::Array(list) if list.iter().any(Value::is_string) => mixed_prompt(state, &list),
                Value::Array(tokens) => token_prompt(state, &tokens),
                _ => Err(wrong()),
            })
            .collect(),
        _ => Err(wrong()),
    }
}

fn text_prompt(state: &State, text: String) -> Result<Given, ApiError> {
    let tokens = state.plain.encode_prompt(&state.model, &Prompt::Text(text.clone()));
    let tokens = tokens.map_err(|e| ApiError::template("prompt", &e))?;
    let bos = state.model.bos().map(|b| token_text(&state.model, b).0);
    let added_bos = state.model.bos().is_some_and(|b| tokens.first() == Some(&b))
        && !bos.is_some_and(|b| !b.is_empty() && text.starts_with(&b));
    Ok(Given { tokens, text, added_bos })
}

fn token_prompt(state: &State, list: &[Value]) -> Result<Given, ApiError> {
    let n_vocab = state.model.n_vocab();
    let token = |v: &Value| v.as_u64().filter(|&t| (t as usize) < n_vocab).map(|t| t as Token);
    let tokens: Option<Vec<Token>> = list.iter().map(token).collect();
    let tokens = tokens.filter(|t| !t.is_empty()).ok_or_else(|| {
        ApiError::invalid("prompt", format!("prompt holds what is no token of this model (0 to {})", n_vocab - 1))
    })?;
    let text = state.model.detokenize(&tokens, true);
    Ok(Given { tokens, text, added_bos: false })
}

/// Tokens with strings between them. A BOS is added where a string begins it.
fn mixed_prompt(state: &State, list: &[Value]) -> Result<Given, ApiError> {
    let mut whole = Given { tokens: Vec::new(), text: String::new(), added_bos: false };
    for (i, part) in list.iter().enumerate() {
        let part = match part {
            Value::String(text) if i == 0 => {
                let part = text_prompt(state, text.clone())?;
                whole.added_bos = part.added_bos;
                part
            }
            Value::String(text) => {
                let tokens = state.model.tokenize(text, false, true);
                let tokens = tokens.map_err(|e| ApiError::invalid("prompt", e.to_string()))?;
                Given { tokens, text: text.clone(), added_bos: false }
            }
            token => token_prompt(state, std::slice::from_ref(token))?,
        };
        whole.tokens.extend(part.tokens);
        whole.text += &part.text;
    }
    Ok(whole)
}

struct TextParts {
    model: Arc<Model>,
    top: Option<usize>,
    /// Characters of each choice whose tokens were told.
    offsets: Vec<usize>,
    /// The prompts, where they are to be repeated.
    echoes: Vec<Given>,
    n: usize,
}

impl TextParts {
    fn echo(&self, i: usize) -> Option<&Given> {
        self.echoes.get(i / self.n)
    }

    /// Tokens of the prompt as they are told: the first one has no score; a BOS that the client did not write is left out.
    fn scored(&self, i: usize, scored: Vec<TokenInfo>) -> Vec<TokenInfo> {
        match self.echo(i) {
            Some(given) if !given.added_bos => {
                let first = TokenInfo { token: given.tokens[0], logprob: None, top: Vec::new(), gates: Vec::new() };
                std::iter::once(first).chain(scored).collect()
            }
            _ => scored,
        }
    }

    /// OpenAI's older form of log-probabilities.
    fn logprobs(&mut self, i: usize, tokens: &[TokenInfo]) -> Value {
        let Some(top) = self.top else { return Value::Null };
        let (mut texts, mut logprobs, mut tops, mut offsets, mut ids) = (vec![], vec![], vec![], vec![], vec![]);
        for info in tokens {
            let (text, _) = token_text(&self.model, info.token);
            offsets.push(self.offsets[i]);
            self.offsets[i] += text.chars().count();
            texts.push(text);
            logprobs.push(info.logprob.map(finite));
            ids.push(info.token);
            let of: Map<String, Value> =
                info.top.iter().map(|&(t, l)| (token_text(&self.model, t).0, json!(finite(l)))).collect();
            tops.push(if info.logprob.is_some() { Value::Object(of) } else { Value::Null });
        }
        let mut value = json!({
            "tokens": texts,
            "token_logprobs": logprobs,
            "top_logprobs": if top > 0 { json!(tops) } else { Value::Null },
            "text_offset": offsets,
            "token_ids": ids,
        });
        if tokens.iter().any(|t| !t.gates.is_empty()) {
            value["gates"] = tokens.iter().map(|t| gates_json(&t.gates)).collect();
        }
        value
    }

    fn whole(&mut self, i: usize, choice: Choice) -> Value {
        let mut tokens = if self.top.is_some() { self.scored(i, choice.scored) } else { Vec::new() };
        tokens.extend(choice.tokens);
        let text = self.echo(i).map_or(String::new(), |g| g.text.clone()) + &choice.text;
        let logprobs = self.logprobs(i, &tokens);
        json!({"index": i, "text": text, "logprobs": logprobs, "finish_reason": choice.finish.map(Finish::word)})
    }
}

impl StreamFormat for TextParts {
    fn first(&mut self, i: usize) -> Option<Value> {
        let text = self.echo(i)?.text.clone();
        let logprobs = if self.top.is_some() {
            let first = self.scored(i, Vec::new());
            self.logprobs(i, &first)
        } else {
            Value::Null
        };
        Some(json!({"index": i, "text": text, "logprobs": logprobs, "finish_reason": null}))
    }

    fn more(&mut self, i: usize, event: &Event) -> Option<Value> {
        let (text, tokens) = match event {
            Event::Text { text, tokens } => (text.as_str(), tokens),
            Event::Scored(tokens) => ("", tokens),
            _ => return None,
        };
        let logprobs = self.logprobs(i, tokens);
        Some(json!({"index": i, "text": text, "logprobs": logprobs, "finish_reason": null}))
    }

    fn last(&mut self, i: usize, finish: Finish) -> Value {
        json!({"index": i, "text": "", "logprobs": null, "finish_reason": finish.word()})
    }
}
