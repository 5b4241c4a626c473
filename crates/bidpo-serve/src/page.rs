//! The web page, embedded in the program: it loads nothing from anywhere else.

use axum::http::header;
use axum::response::{IntoResponse, Response};

/// Nothing but this server's own two files and its API.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// `/`.
pub(super) async fn html() -> Response {
    let headers = [(header::CONTENT_TYPE, "text/html; charset=utf-8"), (header::CONTENT_SECURITY_POLICY, POLICY)];
    (headers, include_str!("web/index.html")).into_response()
}

/// `/app.css`.
pub(super) async fn css() -> Response {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], include_str!("web/app.css")).into_response()
}

/// `/app.js`.
pub(super) async fn js() -> Response {
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], include_str!("web/app.js")).into_response()
}

/// `/icon.svg`.
pub(super) async fn icon() -> Response {
    ([(header::CONTENT_TYPE, "image/svg+xml")], include_str!("web/icon.svg")).into_response()
}
