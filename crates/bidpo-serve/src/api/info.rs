//! Model, vectors, health and metrics of the server.

use super::error::ApiError;
use crate::state::State;
use axum::Json;
use axum::extract::{self, Path};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering;

fn model_json(state: &State) -> Value {
    json!({
        "id": state.model_id,
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
            "max_output_tokens": state.limits.max_output,
        },
    })
}

/// `/v1/models`.
pub(crate) async fn models(extract::State(state): extract::State<Arc<State>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [model_json(&state)]}))
}

/// `/v1/models/{id}`.
pub(crate) async fn model(
    extract::State(state): extract::State<Arc<State>>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    if id == state.model_id { Ok(Json(model_json(&state))) } else { Err(ApiError::no_model(&id, &state.model_id)) }
}

/// `/v1/vectors`.
pub(crate) async fn vectors(extract::State(state): extract::State<Arc<State>>) -> Json<Value> {
    Json(state.vectors.describe())
}

/// `/health`: 200 while answers can be given.
pub(crate) async fn health(extract::State(state): extract::State<Arc<State>>) -> Response {
    let (status, word) = if !state.engine.is_alive() {
        (StatusCode::SERVICE_UNAVAILABLE, "engine stopped")
    } else if state.draining.load(Ordering::Acquire) {
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
