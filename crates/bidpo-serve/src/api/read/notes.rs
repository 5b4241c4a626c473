//! Fields that a request holds and the server does not know: ignored and named in a header, or refused.

use crate::api::read::error::ApiError;
use crate::state::State;
use axum::http::HeaderValue;
use axum::response::Response;
use std::collections::BTreeSet;

/// The header that names what was ignored.
const HEADER: &str = "x-bidpo-warning";

/// The longest value of the header, in bytes.
const MAX_HEADER: usize = 500;

/// Names that ask for steering in a form this server does not have. To ignore them would answer unsteered.
const MEANS_STEERING: [&str; 13] = [
    "control_vector",
    "control_vectors",
    "intervention",
    "interventions",
    "layers",
    "scale",
    "steer",
    "steering_scale",
    "steering_vector",
    "steering_vectors",
    "strength",
    "vector",
    "vectors",
];

/// The unknown fields of one request.
#[derive(Debug)]
pub(in crate::api) struct Notes {
    strict: bool,
    ignored: BTreeSet<String>,
}

impl Notes {
    pub(in crate::api) fn new(strict: bool) -> Self {
        Self { strict, ignored: BTreeSet::new() }
    }

    /// Notes an unknown field. `at`: the path of its object, empty for the body.
    ///
    /// # Errors
    /// 400 under `--strict-api`, and for a name that asks for steering.
    pub(in crate::api) fn unknown(&mut self, at: &str, key: &str) -> Result<(), ApiError> {
        let name = format!("{at}{key}");
        if at.is_empty() && MEANS_STEERING.contains(&key) {
            let message = format!(
                "unknown parameter {name}: steering is asked for as \"steering\": [{{\"vector\": NAME, \"scale\": 1}}] (see /v1/vectors)"
            );
            return Err(ApiError::unknown(name, message));
        }
        if self.strict {
            let message = format!("unknown parameter {name} (this server runs with --strict-api)");
            return Err(ApiError::unknown(name, message));
        }
        // One name for the same field of many messages.
        let indices = |c: char| c.is_ascii_digit();
        self.ignored.insert(name.replace(indices, ""));
        Ok(())
    }

    /// Names what was ignored in the response's header and, once a name, in the log.
    pub(in crate::api) fn mark(self, state: &State, mut response: Response) -> Response {
        if self.ignored.is_empty() {
            return response;
        }
        let names: Vec<String> = self.ignored.iter().map(|n| n.escape_default().to_string()).collect();
        state.log.ignored(&names);
        let mut text = format!("ignored unknown parameters: {}", names.join(", "));
        text.truncate(MAX_HEADER);
        if let Ok(value) = HeaderValue::from_str(&text) {
            response.headers_mut().insert(HEADER, value);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_named_once_or_refused() {
        let mut notes = Notes::new(false);
        for (at, key) in [("", "typical_p"), ("messages[0].", "id"), ("messages[12].", "id")] {
            notes.unknown(at, key).unwrap();
        }
        assert_eq!(notes.ignored.iter().collect::<Vec<_>>(), ["messages[].id", "typical_p"]);
        let error = notes.unknown("", "vectors").unwrap_err();
        assert_eq!((error.param.as_deref(), error.code), (Some("vectors"), Some("unknown_parameter")));
        assert!(error.message.contains("\"steering\": [{"), "{}", error.message);
        assert!(notes.unknown("messages[0].", "scale").is_ok());
        let error = Notes::new(true).unknown("messages[1].", "id").unwrap_err();
        assert!(error.message.starts_with("unknown parameter messages[1].id"), "{}", error.message);
    }
}
