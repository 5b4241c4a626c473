//! Errors in the shape that OpenAI's clients know.

use crate::engine::job::JobError;
use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bidpo_core::data::TemplateError;
use serde_json::{Value, json};

/// An error of the API: a status, and `{"error": {"message", "type", "param", "code"}}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub status: StatusCode,
    pub kind: &'static str,
    pub message: String,
    pub param: Option<String>,
    pub code: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), param: None, code }
    }

    /// 400: a parameter has a wrong value, or is not supported.
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", Some("invalid_value"), message);
        Self { param: Some(param.into()), ..error }
    }

    /// 400: the body as a whole is wrong.
    pub(crate) fn body(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", None, message)
    }

    /// 400: something that would change the answer, and that this server cannot do.
    pub(crate) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: Some("unsupported_parameter"), ..Self::invalid(param, message) }
    }

    /// 400: a field that the server does not know.
    pub(crate) fn unknown(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: Some("unknown_parameter"), ..Self::invalid(param, message) }
    }

    /// 400: the prompt does not fit into the context.
    pub(crate) fn too_long(param: &str, message: impl Into<String>) -> Self {
        Self { code: Some("context_length_exceeded"), ..Self::invalid(param, message) }
    }

    /// 401.
    pub(crate) fn unauthorized() -> Self {
        let message = "this server wants an API key: send the header \"Authorization: Bearer KEY\" with a key it knows";
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", Some("invalid_api_key"), message)
    }

    /// 403: a page of another site, through a name that leads here.
    pub(crate) fn wrong_host(host: &str) -> Self {
        let message = format!(
            "this server does not answer to the name {host:?}: use its address, or start it with --allow-host NAME"
        );
        Self::new(StatusCode::FORBIDDEN, "invalid_request_error", Some("host_not_allowed"), message)
    }

    /// 404.
    pub(crate) fn no_route(path: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "invalid_request_error",
            Some("unknown_url"),
            format!("there is nothing at {path}"),
        )
    }

    /// 404 for a model.
    pub(crate) fn no_model(name: &str, have: &str) -> Self {
        let message = format!(
            "there is no model {name:?}; this server has {have:?}, steered as \"{have}@VECTOR:SCALE\" (see /v1/models)"
        );
        Self::model(message)
    }

    /// 404 for a model whose name holds vectors that cannot be applied.
    pub(crate) fn model_without(name: &str, reason: &str) -> Self {
        Self::model(format!("there is no model {name:?}: {reason}"))
    }

    fn model(message: String) -> Self {
        let error = Self::new(StatusCode::NOT_FOUND, "invalid_request_error", Some("model_not_found"), message);
        Self { param: Some("model".into()), ..error }
    }

    /// 400 for a part of OpenAI's API that this server does not have.
    pub(crate) fn no_endpoint(path: &str, reason: &str) -> Self {
        let message = format!("{path} is not supported by this server: {reason}");
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", Some("unsupported_endpoint"), message)
    }

    /// 405.
    pub(crate) fn wrong_method() -> Self {
        let message = "this address does not take that method";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", None, message)
    }

    /// 408.
    pub(crate) fn too_slow() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", None, "the body did not come in time")
    }

    /// 413.
    pub(crate) fn too_large(limit: usize) -> Self {
        let message = format!("the body is larger than this server's limit of {limit} bytes (--max-body)");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", Some("request_too_large"), message)
    }

    /// 415. A page of another site can send other types without asking first, but not this one.
    pub(crate) fn not_json() -> Self {
        let message = "send the body as JSON, with the header \"Content-Type: application/json\"";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", None, message)
    }

    /// 415: a compressed body.
    pub(crate) fn encoded(coding: &str) -> Self {
        let message =
            format!("this server does not read bodies of Content-Encoding {coding:?}: send the JSON as it is");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", None, message)
    }

    /// 429.
    pub(crate) fn queue_full(places: usize) -> Self {
        let message = format!("the queue is full ({places} sequences at once or waiting): try again in a moment");
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("queue_full"), message)
    }

    /// 503 for a client that asks before it sends.
    pub(crate) fn no_free_slot(n: usize) -> Self {
        let message = format!("all {n} slots are at work; a request waits for its turn");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", Some("no_free_slot"), message)
    }

    /// 500.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", None, message)
    }

    /// 503.
    pub(crate) fn shutting_down() -> Self {
        let message = JobError::ShuttingDown.to_string();
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", Some("shutting_down"), message)
    }

    /// `{"error": ...}`.
    pub(crate) fn json(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }
}

impl From<JobError> for ApiError {
    fn from(error: JobError) -> Self {
        match error {
            JobError::ShuttingDown => Self::shutting_down(),
            JobError::Grammar(_) => Self::invalid("grammar", error.to_string()),
            JobError::Llama(_) => Self::internal(error.to_string()),
        }
    }
}

impl ApiError {
    /// A template that refuses the messages, or a text that cannot be tokenized.
    pub(crate) fn template(param: &str, error: &TemplateError) -> Self {
        Self::invalid(param, error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.json())).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => {
                headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}
