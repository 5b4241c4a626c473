//! `/v1/score`: how likely a given answer is, token by token, under some steering.

use crate::api::read::body;
use crate::api::read::error::ApiError;
use crate::api::read::fields::Fields;
use crate::api::read::messages::{Chat, encode, messages};
use crate::api::read::notes::Notes;
use crate::api::read::request::MAX_TOP_LOGPROBS;
use crate::api::read::steering::model_and_steering;
use crate::api::read::thoughts::variables;
use crate::api::respond::{finite, gather, now, tokens_json, usage_json};
use crate::api::submit::{CompletionOptions, Sequence, remaining_context, submit};
use crate::engine::job::Client;
use crate::engine::sampling::Sampling;
use crate::state::State;
use axum::Json;
use axum::extract::{self, Extension, Request};
use axum::response::{IntoResponse, Response};
use bidpo_core::data::Prompt;
use ggml_grad::llama::{PenaltyParams, SamplerParams, Token};
use serde_json::{Value, json};
use std::sync::Arc;

/// The text to score.
enum Answer {
    Text(String),
    Tokens(Vec<Token>),
}

/// Scores an answer to `messages`, given as `answer` (text) or `tokens` (the `id`s of log-probabilities).
pub(crate) async fn score(
    extract::State(state): extract::State<Arc<State>>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut fields = Fields::new(body::read(&state, request).await?, "")?;
    let (model, steering) = model_and_steering(&mut fields, &state)?;
    let mut notes = Notes::new(state.strict_api);
    let messages = messages(&mut fields, &mut notes)?;
    let variables = variables(&mut fields, &state.template, &mut notes)?;
    let n_vocab = state.model.n_vocab();
    let answer = match (fields.text("answer")?, fields.list("tokens")?) {
        (Some(text), None) => Answer::Text(text),
        (None, Some(list)) if !list.is_empty() => {
            let token = |v: &Value| v.as_u64().filter(|&t| (t as usize) < n_vocab).map(|t| t as Token);
            let tokens = list.iter().map(token).collect::<Option<_>>();
            let what = format!("holds what is no token of this model (0 to {})", n_vocab - 1);
            Answer::Tokens(tokens.ok_or_else(|| fields.wrong("tokens", &what))?)
        }
        _ => return Err(fields.wrong("answer", "or tokens (a list that is not empty) is needed: one of them")),
    };
    let top = fields.integer("top_logprobs", 0..=MAX_TOP_LOGPROBS)?.unwrap_or(0) as usize;
    fields.done(&mut notes)?;

    let (tokens, n_prompt) = match answer {
        Answer::Tokens(answer) => {
            let prompt = encode(&state, Chat { variables, ..Chat::plain(messages) }).await?.tokens;
            let n = prompt.len();
            ([prompt, answer].concat(), n)
        }
        Answer::Text(text) => {
            let shared = Arc::clone(&state);
            let encoded = tokio::task::spawn_blocking(move || {
                let template = shared.template.with_variables(&variables)?;
                template.encode_answers(&shared.model, &Prompt::Messages(messages), &[&text])
            });
            let encoded = encoded.await.map_err(|e| ApiError::internal(e.to_string()))?;
            let (prompt, answers) = encoded.map_err(|e| ApiError::template("answer", &e))?;
            let n = prompt.len();
            ([prompt, answers.concat()].concat(), n)
        }
    };
    // The last token is scored, but never computed with.
    remaining_context(&state, "messages", tokens.len(), Some(0))?;
    let options = CompletionOptions {
        sampling: Sampling { params: SamplerParams::default(), penalties: PenaltyParams::default(), bias: Vec::new() },
        stop: Vec::new(),
        steering,
        top_logprobs: Some(top),
        tell_end: false,
        written: Vec::new(),
        grammar: None,
    };
    let sequence = Sequence { tokens, n_prompt, score_from: Some(n_prompt), max_tokens: 0 };
    let (choices, usage) = gather(submit(&state, &client, vec![sequence], 1, &options)?, 1).await?;
    let scored = choices.into_iter().next().map(|c| c.scored).unwrap_or_default();
    let sum: f64 = scored.iter().filter_map(|t| t.logprob).sum();
    let answer = json!({
        "object": "score",
        "created": now(),
        "model": model,
        "tokens": tokens_json(&state.model, &scored),
        "logprob": finite(sum),
        "usage": usage_json(&usage, 1),
    });
    Ok(notes.mark(&state, Json(answer).into_response()))
}
