//! Routes, and what stands before all of them: names, keys, headers, counting.

use super::api::{self, ApiError, ollama};
use super::page;
use super::state::State;
use crate::engine::job::Client;
use axum::Router;
use axum::extract::{self, MatchedPath, Request};
use axum::http::header::{self, HeaderValue};
use axum::http::{HeaderMap, HeaderName, Method};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use std::net::IpAddr;
use std::sync::Arc;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// The client's address, put into each request by the listener.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClientAddr(pub IpAddr);

/// Endpoints that clients know from elsewhere and that are refused with a sentence.
const NOT_OFFERED: [&str; 12] = [
    "/embeddings",
    "/embedding",
    "/moderations",
    "/rerank",
    "/reranking",
    "/infill",
    "/images/generations",
    "/images/edits",
    "/images/variations",
    "/audio/speech",
    "/audio/transcriptions",
    "/audio/translations",
];

/// All routes. `origins`: sites whose pages may call this server.
pub(super) fn router(state: &Arc<State>, origins: &[HeaderValue]) -> Router {
    let mut keyed = Router::new()
        .route("/v1/score", post(api::score))
        .route("/v1/vectors", get(api::vectors).post(api::change_vectors))
        .route("/lora-adapters", get(api::lora_adapters))
        .route("/completion", post(api::completion))
        .route("/metrics", get(api::metrics))
        .route("/props", get(api::props))
        .route("/slots", get(api::slots))
        .route("/slots/{id}", post(api::not_offered))
        .route("/api/chat", post(ollama::chat))
        .route("/api/generate", post(ollama::generate))
        .route("/api/show", post(ollama::show))
        .route("/api/tags", get(ollama::tags))
        .route("/api/ps", get(ollama::tags))
        .route("/api/version", get(ollama::version))
        .route("/tokenizer_info", get(api::tokenizer_info));
    // With and without the version, as llama-server has them.
    for version in ["/v1", ""] {
        let at = |path: &str| format!("{version}{path}");
        keyed = keyed
            .route(&at("/chat/completions"), post(api::chat))
            .route(&at("/completions"), post(api::completions))
            .route(&at("/responses"), post(api::responses))
            .route(&at("/models"), get(api::models))
            .route(&at("/models/{*id}"), get(api::model))
            .route(&at("/tokenize"), post(api::tokenize))
            .route(&at("/detokenize"), post(api::detokenize))
            .route(&at("/apply-template"), post(api::apply_template));
        for path in NOT_OFFERED {
            keyed = keyed.route(&at(path), post(api::not_offered));
        }
    }
    for path in ["/api/embed", "/api/embeddings", "/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete"] {
        keyed = keyed.route(path, any(ollama::not_offered));
    }
    let keyed = keyed.route_layer(from_fn_with_state(Arc::clone(state), keyed_only));
    let open =
        Router::new().route("/health", get(api::health)).route("/v1/health", get(api::health)).merge(page::routes());
    let mut router = keyed
        .merge(open)
        .fallback(async |request: Request| ApiError::no_route(request.uri().path()))
        .method_not_allowed_fallback(async || ApiError::wrong_method())
        .layer(CatchPanicLayer::custom(|_| {
            ApiError::internal("an internal error; the request was given up").into_response()
        }));
    if !origins.is_empty() {
        let origins =
            if origins.iter().any(|o| o == "*") { AllowOrigin::any() } else { AllowOrigin::list(origins.to_vec()) };
        let cors = CorsLayer::new()
            .allow_origin(origins)
            .allow_methods([Method::GET, Method::POST])
            .allow_headers(AllowHeaders::mirror_request());
        router = router.layer(cors);
    }
    router.layer(from_fn_with_state(Arc::clone(state), outermost)).with_state(Arc::clone(state))
}

/// Asks for a key where there are any, and notes who the client is.
async fn keyed_only(extract::State(state): extract::State<Arc<State>>, mut request: Request, next: Next) -> Response {
    let client = if state.keys.is_empty() {
        let peer = request.extensions().get::<ClientAddr>().map_or(IpAddr::from([0, 0, 0, 0]), |p| p.0);
        Client::Address(peer)
    } else {
        match key_of(request.headers()).and_then(|key| state.keys.find(key)) {
            Some(client) => client,
            None => return ApiError::unauthorized().into_response(),
        }
    };
    request.extensions_mut().insert(client);
    next.run(request).await
}

/// The key of a request: as a bearer's, or in the headers of llama-server's (`X-Api-Key`) and Azure's (`api-key`) clients.
fn key_of(headers: &HeaderMap) -> Option<&str> {
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let bearer = text("authorization").and_then(|v| v.split_once(' '));
    let bearer = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, key)| key);
    bearer.or_else(|| text("x-api-key")).or_else(|| text("api-key")).map(str::trim)
}

/// Answers to its own names only, counts, and adds headers.
async fn outermost(extract::State(state): extract::State<Arc<State>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or_else(|| "other".to_owned(), |p| p.as_str().to_owned());
    let host = named_host(&request);
    let mut response = match &state.hosts {
        Some(allowed) if !is_own(&host, allowed) => ApiError::wrong_host(&host).into_response(),
        _ => next.run(request).await,
    };
    state.metrics.answered(route, response.status().as_u16());
    for (name, value) in [
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-resource-policy", "same-origin"),
        ("cache-control", "no-store"),
    ] {
        let own =
            response.headers().contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) && name.starts_with("cross-origin");
        if !own {
            response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
    }
    response
}

/// The server's name in a request: its one `Host`, which a target with a name of its own must agree with. Empty: none, or several.
fn named_host(request: &Request) -> String {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return String::new() };
    let host = host.to_str().unwrap_or_default();
    let agrees = request.uri().authority().is_none_or(|a| a.as_str().eq_ignore_ascii_case(host));
    if agrees { host.to_owned() } else { String::new() }
}

/// True for a `Host` that names this machine for itself. (A page of another site can have its own name lead to 127.0.0.1; its
/// requests then carry that name.)
fn is_own(host: &str, allowed: &[String]) -> bool {
    let is_port =
        |port: &str| !port.is_empty() && port.parse::<u16>().is_ok() && port.bytes().all(|b| b.is_ascii_digit());
    let name = match host.strip_prefix('[') {
        Some(v6) => match v6.split_once(']') {
            Some((name, "")) => name,
            Some((name, rest)) if rest.strip_prefix(':').is_some_and(is_port) => name,
            _ => return false,
        },
        None => match host.split_once(':') {
            Some((name, port)) if is_port(port) => name,
            Some(_) => return false,
            None => host,
        },
    };
    if host.starts_with('[') {
        return name.parse::<std::net::Ipv6Addr>().is_ok();
    }
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok()
        || allowed.iter().any(|a| a.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::{is_own, key_of};
    use axum::http::{HeaderMap, HeaderName, HeaderValue};

    #[test]
    fn keys_come_in_three_headers() {
        let key = |list: &[(&'static str, &'static str)]| {
            let pair = |(name, value): &(&'static str, &'static str)| {
                (HeaderName::from_static(name), HeaderValue::from_static(value))
            };
            key_of(&list.iter().map(pair).collect::<HeaderMap>()).map(str::to_owned)
        };
        assert_eq!(key(&[("authorization", "bearer  a ")]).as_deref(), Some("a"));
        assert_eq!(key(&[("x-api-key", "b")]).as_deref(), Some("b"));
        assert_eq!(key(&[("api-key", "c"), ("authorization", "Basic eDp5")]).as_deref(), Some("c"));
        assert_eq!(key(&[("authorization", "Bearer a"), ("x-api-key", "b")]).as_deref(), Some("a"));
        assert_eq!((key(&[]), key(&[("authorization", "a")])), (None, None));
    }

    #[test]
    fn own_names() {
        let allowed = ["steer.lan".to_owned()];
        for host in
            ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "127.0.0.1", "[::1]:8080", "steer.lan:80", "Steer.lan"]
        {
            assert!(is_own(host, &allowed), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example:80",
            "[::1]evil.example",
            "[::1]:",
            "[::1]:80x",
            "[::1",
            "[localhost]",
            "[127.0.0.1]",
            "localhost:",
            "localhost:8080:1",
            "localhost:99999",
            "localhost:+80",
            "::1",
            "evil.example:80@localhost",
            "localhost@evil.example",
            "local host",
        ] {
            assert!(!is_own(host, &allowed), "{host}");
        }
    }
}
