//! One HTTP request, and what its answer says about the file.

use crate::FetchError;
use std::sync::Arc;
use std::time::Duration;
use ureq::http::{HeaderMap, Response};
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body};

/// A server that does not accept a connection, or does not begin an answer, in this time is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// The client for one address. An address with https is never left for one without.
pub(crate) fn agent(url: &str, stall: Duration) -> Agent {
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(RootCerts::PlatformVerifier)
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    Agent::config_builder()
        .https_only(is_https(url))
        .http_status_as_error(false)
        .timeout_resolve(Some(PATIENCE))
        .timeout_connect(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .timeout_per_read(Some(stall))
        .user_agent(concat!("bidpo/", env!("CARGO_PKG_VERSION")))
        .tls_config(tls)
        .build()
        .into()
}

fn is_https(url: &str) -> bool {
    url.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"))
}

/// Asks for the file, from byte `from` on if that is not 0; with a validator only if the file is still the same.
pub(crate) fn ask(
    agent: &Agent,
    url: &str,
    from: u64,
    validator: Option<&str>,
) -> Result<Response<Body>, Box<ureq::Error>> {
    // Compressed, the bytes would not be those of the file.
    let mut request = agent.get(url).header("accept-encoding", "identity");
    if from > 0 {
        request = request.header("range", format!("bytes={from}-"));
        if let Some(validator) = validator {
            request = request.header("if-range", validator);
        }
    }
    request.call().map_err(Box::new)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// What names this version of the file: a strong entity tag, else the date.
pub(crate) fn validator(headers: &HeaderMap) -> Option<String> {
    let strong = text(headers, "etag").filter(|tag| !tag.starts_with("W/"));
    strong.or_else(|| text(headers, "last-modified")).map(str::to_owned)
}

/// A `Content-Range`: where the bytes begin (None for an unsatisfied range), and how many the file has.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ContentRange {
    pub(crate) start: Option<u64>,
    pub(crate) total: Option<u64>,
}

pub(crate) fn content_range(headers: &HeaderMap) -> Option<ContentRange> {
    let (unit, range) = text(headers, "content-range")?.split_once(' ')?;
    let (place, total) = range.trim().split_once('/')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let start = match place {
        "*" => None,
        place => Some(place.split_once('-')?.0.parse().ok()?),
    };
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some(ContentRange { start, total })
}

/// True if the answer's end is marked: the client notices where it is missing.
pub(crate) fn has_marked_end(headers: &HeaderMap) -> bool {
    headers.contains_key("content-length")
        || text(headers, "transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"))
}

/// True if the bytes are those of the file.
pub(crate) fn is_plain(headers: &HeaderMap) -> bool {
    text(headers, "content-encoding").is_none_or(|coding| coding.eq_ignore_ascii_case("identity"))
}

/// An address as it may be printed: without user, password, query and fragment, which may hold secrets.
pub fn shown(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let url = &url[..end];
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let host = rest.find('/').unwrap_or(rest.len());
    let begin = rest[..host].rfind('@').map_or(0, |at| at + 1);
    format!("{scheme}://{}", &rest[begin..])
}

/// The name of the file that an address ends in.
///
/// # Errors
/// [`FetchError::Address`]: it is no HTTP address, or ends in no name that a file may have.
pub fn file_name(url: &str) -> Result<String, FetchError> {
    let wrong = |reason| FetchError::Address { url: shown(url), reason };
    let plain = shown(url);
    let rest = match plain.split_once("://") {
        Some((scheme, rest)) if ["http", "https"].iter().any(|s| scheme.eq_ignore_ascii_case(s)) => rest,
        _ => return Err(wrong("it does not begin with https:// or http://")),
    };
    let name = rest.rsplit_once('/').map_or("", |(_, name)| name);
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-+".contains(c);
    if name.is_empty() || name.starts_with('.') || !name.chars().all(is_plain) {
        return Err(wrong("its last part is no plain file name; give the name with -o"));
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        assert_eq!(file_name("https://h.example/a/m-1.Q4_0.gguf?download=true").unwrap(), "m-1.Q4_0.gguf");
        for url in [
            "ftp://h.example/m.gguf",
            "m.gguf",
            "https://h.example",
            "https://h.example/a/",
            "http://h/.x",
            "http://h/%2e%2e",
        ] {
            assert!(file_name(url).is_err(), "{url}");
        }
        assert_eq!(shown("https://me:secret@h.example/m.gguf?token=1#x"), "https://h.example/m.gguf");
        assert_eq!(shown("https://h.example/a@b"), "https://h.example/a@b");
    }

    #[test]
    fn headers() {
        let headers = |pairs: &[(&'static str, &str)]| {
            pairs.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect::<HeaderMap>()
        };
        let range = |text: &str| content_range(&headers(&[("content-range", text)]));
        assert_eq!(range("bytes 5-9/10"), Some(ContentRange { start: Some(5), total: Some(10) }));
        assert_eq!(range("bytes 5-9/*"), Some(ContentRange { start: Some(5), total: None }));
        assert_eq!(range("bytes */10"), Some(ContentRange { start: None, total: Some(10) }));
        for wrong in ["bytes", "lines 1-2/3", "bytes x-9/10", "bytes 5-9/-1", ""] {
            assert_eq!(range(wrong), None, "{wrong}");
        }
        let dated = [("last-modified", "Mon"), ("etag", "W/\"a\"")];
        assert_eq!(validator(&headers(&dated)).as_deref(), Some("Mon"));
        assert_eq!(validator(&headers(&[("etag", "\"a\"")])).as_deref(), Some("\"a\""));
        assert!(is_plain(&headers(&[])) && !is_plain(&headers(&[("content-encoding", "gzip")])));
        assert!(has_marked_end(&headers(&[("transfer-encoding", "chunked")])) && !has_marked_end(&headers(&[])));
    }
}
