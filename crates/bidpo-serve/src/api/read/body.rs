//! Reading a request's body.

use crate::api::read::error::ApiError;
use crate::state::State;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use serde_json::Value;
use std::time::Duration;

/// Time limit for receiving a body.
const TIME: Duration = Duration::from_secs(30);

/// The JSON in a request's body, within the limits of size and time. Half a body does not keep the server from its end.
pub(in crate::api) async fn read(state: &State, request: Request) -> Result<Value, ApiError> {
    let headers = request.headers();
    let kind = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
        return Err(ApiError::not_json());
    }
    let coding = headers.get(CONTENT_ENCODING).map(|v| String::from_utf8_lossy(v.as_bytes()).trim().to_owned());
    if let Some(coding) = coding.filter(|c| !c.is_empty() && !c.eq_ignore_ascii_case("identity")) {
        return Err(ApiError::encoded(&coding));
    }
    let limit = state.limits.max_body;
    let length = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<usize>().ok());
    if length.is_some_and(|n| n > limit) {
        return Err(ApiError::too_large(limit));
    }
    let bytes = tokio::select! {
        biased;
        read = to_bytes(request.into_body(), limit) => match read {
            // Without a length in the header it is the limit, or the client left and reads no answer.
            Err(_) => return Err(ApiError::too_large(limit)),
            Ok(bytes) => bytes,
        },
        () = state.drained() => return Err(ApiError::shutting_down()),
        () = tokio::time::sleep(TIME) => return Err(ApiError::too_slow()),
    };
    let value =
        serde_json::from_slice(&bytes).map_err(|e| ApiError::body(format!("the body is not valid JSON: {e}")))?;
    Ok(with_extra(value))
}

/// Puts the fields of `extra_body` beside the others. OpenAI's Python client does that itself; requests written by hand after its
/// examples do not, and their steering would be lost.
fn with_extra(mut body: Value) -> Value {
    if let Some(map) = body.as_object_mut() {
        match map.shift_remove("extra_body") {
            Some(Value::Object(extra)) => {
                extra.into_iter().for_each(|(key, value)| _ = map.entry(key).or_insert(value))
            }
            Some(other) if !other.is_null() => _ = map.insert("extra_body".into(), other),
            _ => {}
        }
    }
    body
}

#[cfg(test)]
mod tests {
    use super::with_extra;
    use serde_json::json;

    #[test]
    fn extra_fields_stand_beside_the_others() {
        let body = json!({"model": "m", "extra_body": {"model": "n", "steering": [], "top_k": 3}});
        assert_eq!(with_extra(body), json!({"model": "m", "steering": [], "top_k": 3}));
        assert_eq!(with_extra(json!({"extra_body": null})), json!({}));
        assert_eq!(with_extra(json!({"extra_body": 1})), json!({"extra_body": 1}));
        assert_eq!(with_extra(json!([1])), json!([1]));
    }
}
