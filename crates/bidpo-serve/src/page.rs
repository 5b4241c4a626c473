//! The web page, embedded in the program: it loads nothing from anywhere else.

use super::state::State;
use axum::Router;
use axum::http::header;
use axum::routing::get;
use std::sync::Arc;

/// Nothing but this server's own files and its API. No text can become HTML or a script (trusted types, without a policy).
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// A file of `web/`, at the same path.
macro_rules! file {
    ($path:literal, $kind:expr) => {
        (concat!("/", $path), $kind, include_str!(concat!("web/", $path)))
    };
}

/// Paths, media types, contents.
const FILES: [(&str, &str, &str); 20] = [
    ("/", HTML, include_str!("web/index.html")),
    file!("icon.svg", SVG),
    file!("css/base.css", CSS),
    file!("css/chat.css", CSS),
    file!("css/side.css", CSS),
    file!("js/answers.js", JS),
    file!("js/chat.js", JS),
    file!("js/database.js", JS),
    file!("js/dials.js", JS),
    file!("js/dom.js", JS),
    file!("js/gauge.js", JS),
    file!("js/library.js", JS),
    file!("js/main.js", JS),
    file!("js/markdown.js", JS),
    file!("js/server.js", JS),
    file!("js/settings.js", JS),
    file!("js/tokens.js", JS),
    file!("js/turns.js", JS),
    file!("vendor/markdown-it.mjs", JS),
    file!("vendor/markdown-it.LICENSE", TEXT),
];

/// Routes of the page's files.
pub(super) fn routes() -> Router<Arc<State>> {
    FILES.into_iter().fold(Router::new(), |router, (path, kind, text)| {
        router.route(
            path,
            get(async move || ([(header::CONTENT_TYPE, kind), (header::CONTENT_SECURITY_POLICY, POLICY)], text)),
        )
    })
}
