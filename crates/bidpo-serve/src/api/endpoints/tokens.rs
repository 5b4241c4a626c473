//! Tokenizer and template of the model, in the forms of llama-server and of vLLM.

use crate::api::read::body;
use crate::api::read::error::ApiError;
use crate::api::read::fields::Fields;
use crate::api::read::messages;
use crate::api::read::notes::Notes;
use crate::api::respond::token_text;
use crate::state::State;
use axum::Json;
use axum::extract::{self, Request};
use axum::response::{IntoResponse, Response};
use ggml_grad::llama::Token;
use serde_json::{Value, json};
use std::sync::Arc;

/// The tokens of `tokens`.
fn token_list(fields: &mut Fields, state: &State) -> Result<Vec<Token>, ApiError> {
    let n_vocab = state.model.n_vocab();
    let list = fields.list("tokens")?.ok_or_else(|| fields.wrong("tokens", "is missing"))?;
    let token = |v: &Value| v.as_u64().filter(|&t| (t as usize) < n_vocab).map(|t| t as Token);
    let what = format!("holds what is no token of this model (0 to {})", n_vocab - 1);
    list.iter().map(token).collect::<Option<_>>().ok_or_else(|| fields.wrong("tokens", &what))
}

/// `/tokenize`: of `content` (llama-server), `prompt` or `messages` (vLLM).
pub(crate) async fn tokenize(
    extract::State(state): extract::State<Arc<State>>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut fields = Fields::new(body::read(&state, request).await?, "")?;
    let mut notes = Notes::new(state.strict_api);
    fields.take("model");
    let texts = [fields.text("content")?, fields.text("prompt")?];
    let special = [fields.boolean("add_special")?, fields.boolean("add_special_tokens")?];
    let parse = fields.boolean("parse_special")?.unwrap_or(true);
    let with_pieces = fields.boolean("with_pieces")?.unwrap_or(false);
    let with_texts = fields.boolean("return_token_strs")?.unwrap_or(false);
    let tokens = if fields.is_set("messages") {
        let chat = messages::chat(&mut fields, &state, &mut notes)?;
        messages::encode(&state, chat).await?.tokens
    } else {
        // llama-server adds none of its own accord, vLLM does.
        let default = texts[0].is_none() && texts[1].is_some();
        let add = special.into_iter().flatten().next().unwrap_or(default);
        let text = texts.into_iter().flatten().next();
        let text = text.ok_or_else(|| fields.wrong("content", "is missing (or prompt, or messages)"))?;
        let model = Arc::clone(&state.model);
        let tokens = tokio::task::spawn_blocking(move || model.tokenize(&text, add, parse));
        let tokens = tokens.await.map_err(|e| ApiError::internal(e.to_string()))?;
        tokens.map_err(|e| ApiError::invalid("content", e.to_string()))?
    };
    fields.done(&mut notes)?;
    let list = if with_pieces {
        let piece = |bytes: Vec<u8>| match String::from_utf8(bytes) {
            Ok(text) => json!(text),
            Err(e) => json!(e.into_bytes()),
        };
        tokens.iter().map(|&t| json!({"id": t, "piece": piece(state.model.token_bytes(t, true))})).collect()
    } else {
        json!(tokens)
    };
    let mut answer = json!({"tokens": list, "count": tokens.len(), "max_model_len": state.n_ctx});
    if with_texts {
        answer["token_strs"] = tokens.iter().map(|&t| token_text(&state.model, t).0).collect();
    }
    Ok(notes.mark(&state, Json(answer).into_response()))
}

/// `/detokenize`: the text as `content` (llama-server) and as `prompt` (vLLM).
pub(crate) async fn detokenize(
    extract::State(state): extract::State<Arc<State>>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut fields = Fields::new(body::read(&state, request).await?, "")?;
    let mut notes = Notes::new(state.strict_api);
    fields.take("model");
    let text = state.model.detokenize(&token_list(&mut fields, &state)?, true);
    fields.done(&mut notes)?;
    Ok(notes.mark(&state, Json(json!({"content": text, "prompt": text})).into_response()))
}

/// `/apply-template`: a chat as the model would read it.
pub(crate) async fn apply_template(
    extract::State(state): extract::State<Arc<State>>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut fields = Fields::new(body::read(&state, request).await?, "")?;
    let mut notes = Notes::new(state.strict_api);
    fields.take("model");
    let chat = messages::chat(&mut fields, &state, &mut notes)?;
    fields.done(&mut notes)?;
    let shared = Arc::clone(&state);
    let text = tokio::task::spawn_blocking(move || messages::render(&shared, chat));
    let text = text.await.map_err(|e| ApiError::internal(e.to_string()))??;
    Ok(notes.mark(&state, Json(json!({"prompt": text})).into_response()))
}

/// The text of a control token; empty where the model has none.
fn text_of(state: &State, token: Option<Token>) -> String {
    token.map(|t| token_text(&state.model, t).0).unwrap_or_default()
}

/// `/props`, as far as llama-server's clients read it.
pub(crate) async fn props(extract::State(state): extract::State<Arc<State>>) -> Json<Value> {
    let file = state.model.path().file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let adapters = state.vectors.adapters().into_iter().enumerate();
    let adapters: Vec<Value> = adapters.map(|(id, (_, scale))| json!({"id": id, "scale": scale})).collect();
    Json(json!({
        "default_generation_settings": {
            "n_ctx": state.n_ctx,
            "params": {
                "n_predict": state.limits.max_output,
                "max_tokens": state.limits.max_output,
                "seed": u32::MAX,
                "temperature": 1.0,
                "top_k": 0,
                "top_p": 1.0,
                "min_p": 0.0,
                "repeat_penalty": 1.0,
                "presence_penalty": 0.0,
                "frequency_penalty": 0.0,
                "stop": [],
                "lora": adapters,
            },
        },
        "total_slots": state.metrics.n_slots(),
        "model_alias": state.names.base,
        // The file's name: paths are nobody else's business.
        "model_path": file,
        "modalities": {"vision": false, "audio": false},
        "chat_template": state.template.source(),
        "bos_token": text_of(&state, state.model.bos()),
        "eos_token": text_of(&state, state.model.eos()),
        "build_info": concat!("bidpo-", env!("CARGO_PKG_VERSION")),
        "is_sleeping": false,
    }))
}

/// `/tokenizer_info`, as vLLM has it: lm-evaluation-harness's remote tokenizer asks for it.
pub(crate) async fn tokenizer_info(extract::State(state): extract::State<Arc<State>>) -> Json<Value> {
    let name = |token: Option<Token>| token.map(|t| token_text(&state.model, t).0);
    Json(json!({
        "tokenizer_class": "gguf",
        "bos_token": name(state.model.bos()),
        "eos_token": name(state.model.eos()),
        "pad_token": null,
        "model_max_length": state.n_ctx,
        "chat_template": state.template.source(),
    }))
}
