//! Model, vectors, health and metrics of the server.

use crate::api::read::body;
use crate::api::read::error::ApiError;
use crate::api::read::fields::{Fields, short};
use crate::engine::status::SlotStatus;
use crate::state::State;
use crate::vectors::{SteerSpec, VectorChange, VectorsError};
use axum::Json;
use axum::extract::{self, Path, Request};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::sync::Arc;

fn model_json(state: &State, name: &str, steering: &[SteerSpec]) -> Value {
    let mut value = json!({
        "id": name,
        "object": "model",
        "created": state.created,
        "owned_by": "bidpo",
        "meta": {
            "description": state.model.description(),
            "architecture": state.model.architecture(),
            "n_params": state.model.n_params(),
            "n_layer": state.model.n_layer(),
            "n_embd": state.model.n_embd(),
            "n_vocab": state.model.n_vocab(),
            "context": state.n_ctx,
            "chat_template": state.template.name(),
            "max_prompt_tokens": state.limits.max_prompt,
            "max_output_tokens": state.limits.max_output,
        },
    });
    if !steering.is_empty() {
        value["parent"] = json!(state.names.base);
        value["steering"] = steering.iter().map(SteerSpec::describe).collect();
    }
    value
}

/// `/v1/models`: the model, the model with each vector, the aliases.
pub(crate) async fn models(extract::State(state): extract::State<Arc<State>>) -> Json<Value> {
    let vectors = state.vectors.names();
    let listed = state.names.listed(vectors.iter().map(String::as_str));
    let data: Vec<Value> = listed.iter().map(|a| model_json(&state, &a.name, &a.steering)).collect();
    Json(json!({"object": "list", "data": data}))
}

/// `/v1/models/{id}`.
pub(crate) async fn model(
    extract::State(state): extract::State<Arc<State>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let steering = state.names.find(&id).ok_or_else(|| ApiError::no_model(&id, &state.names.base))?;
    state.vectors.resolve(&steering, None).map_err(|e| ApiError::model_without(&id, &e.reason))?;
    Ok(Json(model_json(&state, &id, &steering)))
}

/// `/v1/vectors`.
pub(crate) async fn vectors(extract::State(state): extract::State<Arc<State>>) -> Json<Value> {
    Json(state.vectors.describe())
}

/// `/lora-adapters`, in llama-server's form: the numbers that a request's `lora` takes.
pub(crate) async fn lora_adapters(extract::State(state): extract::State<Arc<State>>) -> Json<Value> {
    let list = state.vectors.adapters().into_iter().enumerate();
    // Clients are told names, not where the files lie.
    Json(list.map(|(id, (name, scale))| json!({"id": id, "path": name, "scale": scale})).collect())
}

/// `POST /v1/vectors`: `{"action": "load", "vector": NAME}`, `unload` likewise, or `{"action": "rescan"}`.
pub(crate) async fn change_vectors(
    extract::State(state): extract::State<Arc<State>>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let mut fields = Fields::new(body::read(&state, request).await?, "")?;
    let action = fields.text("action")?.ok_or_else(|| fields.wrong("action", "is missing"))?;
    let vector = fields.text("vector")?;
    let change = match (action.as_str(), vector) {
        ("load", Some(name)) => VectorChange::Load(name),
        ("unload", Some(name)) => VectorChange::Unload(name),
        ("load" | "unload", None) => return Err(fields.wrong("vector", "is missing")),
        ("rescan", None) => VectorChange::Rescan,
        ("rescan", Some(_)) => return Err(fields.wrong("vector", "does not go with a rescan, which reads all files")),
        (other, _) => {
            return Err(
                fields.wrong("action", &format!("must be load, unload or rescan, not {}", short(&json!(other))))
            );
        }
    };
    fields.none_left()?;
    let shared = Arc::clone(&state);
    let work = move || {
        let mut notices = Vec::new();
        let done = shared.vectors.change(&change, &mut notices);
        notices.iter().for_each(|notice| shared.log.line(&format!("warning: {notice}")));
        done
    };
    let done = tokio::task::spawn_blocking(work).await.map_err(|e| ApiError::internal(e.to_string()))?;
    match done {
        Ok(()) => Ok(Json(state.vectors.describe())),
        Err(error @ VectorsError::Folder { .. }) => {
            state.log.line(&error.to_string());
            Err(ApiError::internal("the folder of vectors cannot be read"))
        }
        Err(VectorsError::Twice { name, .. }) => Err(ApiError::invalid(
            "vector",
            format!("two files of the folder of vectors are both called {name}: rename one"),
        )),
        Err(error) => Err(ApiError::invalid("vector", error.to_string())),
    }
}

/// `/slots`, as llama-server has it, without the texts of other clients. `?fail_on_no_slot=1`: 503 where none is free.
pub(crate) async fn slots(extract::State(state): extract::State<Arc<State>>, uri: Uri) -> Response {
    let slots = state.engine.slots();
    let asks = uri.query().unwrap_or_default().split('&').any(|pair| pair.starts_with("fail_on_no_slot"));
    if asks && slots.iter().all(|slot| slot.job.is_some()) {
        return ApiError::no_free_slot(slots.len()).into_response();
    }
    let one = |(id, slot): (usize, SlotStatus)| {
        let mut value = json!({
            "id": id,
            "n_ctx": state.n_ctx,
            "speculative": false,
            "is_processing": slot.job.is_some(),
            "n_cached_tokens": slot.n_cached,
        });
        if let Some(job) = slot.job {
            value["id_task"] = json!(job.number);
            value["n_prompt_tokens"] = json!(job.n_prompt);
            value["n_prompt_tokens_processed"] = json!(job.n_prompt_done);
            value["next_token"] =
                json!([{"has_next_token": job.n_left > 0, "n_remain": job.n_left, "n_decoded": job.n_generated}]);
        }
        value
    };
    Json(slots.into_iter().enumerate().map(one).collect::<Value>()).into_response()
}

/// `/health`: 200 while answers can be given.
pub(crate) async fn health(extract::State(state): extract::State<Arc<State>>) -> Response {
    let (status, word) = if !state.engine.is_alive() {
        (StatusCode::SERVICE_UNAVAILABLE, "engine stopped")
    } else if state.is_draining() {
        (StatusCode::SERVICE_UNAVAILABLE, "shutting down")
    } else {
        (StatusCode::OK, "ok")
    };
    (status, Json(json!({"status": word}))).into_response()
}

/// `/metrics`, for Prometheus.
pub(crate) async fn metrics(extract::State(state): extract::State<Arc<State>>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], state.metrics.text()).into_response()
}

/// Endpoints of OpenAI's and llama.cpp's API that this server does not have, each with the reason.
pub(crate) async fn not_offered(uri: Uri) -> ApiError {
    let path = uri.path();
    let last = path.trim_end_matches('/').trim_start_matches("/v1/").trim_start_matches('/');
    let reason = match last {
        "embeddings" | "embedding" | "api/embed" | "api/embeddings" => {
            "it loads the model for writing text, not for embeddings; run an embedding model behind another server"
        }
        "moderations" => "there is no moderation model",
        "rerank" | "reranking" => "there is no reranking model",
        "infill" => "send the format of the model's own infill tokens to /v1/completions",
        _ if last.starts_with("slots/") => {
            "slots are shown (GET /slots), not saved, restored or erased: a request uses the cache of the slot that holds most of its prompt"
        }
        _ => "it serves text: /v1/chat/completions, /v1/completions, /v1/score",
    };
    ApiError::no_endpoint(path, reason)
}
