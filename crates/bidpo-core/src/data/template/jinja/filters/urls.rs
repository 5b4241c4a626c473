//! Filters about addresses and markup: `urlencode`, `xmlattr`, `striptags`.

use super::super::budget::charge;
use super::super::collections::failed;
use super::super::python::str_of;
use super::escaped;
use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, State};
use std::fmt::Write;

pub(super) fn install(environment: &mut Environment<'_>) {
    environment.add_filter("urlencode", url_encode);
    environment.add_filter("xmlattr", |state: &State<'_, '_>, value: Value, space: Option<bool>| {
        xml_attributes(state, &value, space.unwrap_or(true))
    });
}

/// `urllib.parse.quote` of UTF-8; `query`: as a part of a query, a space as `+`.
fn quoted(text: &str, query: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' => out.push(char::from(byte)),
            b'/' if !query => out.push('/'),
            b' ' if query => out.push('+'),
            _ => _ = write!(out, "%{byte:02X}"),
        }
    }
    out
}

/// A text, or the pairs of a dictionary or list as a query.
fn url_encode(state: &State<'_, '_>, value: Value) -> Result<String, Error> {
    let pairs: Vec<[Value; 2]> = match value.kind() {
        ValueKind::Map => {
            value.try_iter()?.map(|key| Ok([key.clone(), value.get_item(&key)?])).collect::<Result<_, Error>>()?
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let pair = |item: Value| -> Result<[Value; 2], Error> {
                let parts: Vec<Value> = match item.as_str() {
                    Some(text) => text.chars().map(|c| Value::from(c.to_string())).collect(),
                    None => item.try_iter()?.collect(),
                };
                <[Value; 2]>::try_from(parts)
                    .map_err(|p| failed(format!("urlencode: pairs are needed, this has {}", p.len())))
            };
            value.try_iter()?.map(pair).collect::<Result<_, Error>>()?
        }
        _ => {
            let text = str_of(&value)?;
            charge(state, text.len().saturating_mul(3))?;
            return Ok(quoted(&text, false));
        }
    };
    let mut out = String::new();
    for (i, [key, value]) in pairs.iter().enumerate() {
        let (key, value) = (str_of(key)?, str_of(value)?);
        charge(state, (key.len() + value.len()).saturating_mul(3))?;
        _ = write!(out, "{}{}={}", if i > 0 { "&" } else { "" }, quoted(&key, true), quoted(&value, true));
    }
    Ok(out)
}

/// ` key="value"` of each pair whose value is neither none nor undefined.
fn xml_attributes(state: &State<'_, '_>, value: &Value, space: bool) -> Result<String, Error> {
    if value.kind() != ValueKind::Map {
        return Err(failed(format!("xmlattr: a mapping is needed, this is {}", value.kind())));
    }
    let mut out = Vec::new();
    for key in value.try_iter()? {
        let item = value.get_item(&key)?;
        if item.is_none() || item.is_undefined() {
            continue;
        }
        let name = key.as_str().ok_or_else(|| failed("xmlattr: the names of attributes are texts"))?;
        if name.contains(|c: char| c.is_ascii_whitespace() || matches!(c, '/' | '>' | '=')) {
            return Err(failed(format!("xmlattr: {name:?} is no name of an attribute")));
        }
        let text = str_of(&item)?;
        charge(state, (name.len() + text.len()).saturating_mul(5))?;
        out.push(format!("{}=\"{}\"", escaped(name), escaped(&text)));
    }
    let text = out.join(" ");
    Ok(if space && !text.is_empty() { format!(" {text}") } else { text })
}

/// `striptags`: comments and tags left out, white space as single spaces, entities as characters.
pub(super) fn strip_tags(state: &State<'_, '_>, value: Value) -> Result<String, Error> {
    let text = str_of(&value)?;
    charge(state, text.len().saturating_mul(2))?;
    let text = without(&without(&text, "<!--", "-->"), "<", ">");
    Ok(unescaped(&text.split(super::is_python_space).filter(|w| !w.is_empty()).collect::<Vec<_>>().join(" ")))
}

/// The text without what stands between `open` and the next `close`.
fn without(text: &str, open: &str, close: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(start) = rest.find(open) {
        let Some(end) = rest[start..].find(close) else { break };
        out.push_str(&rest[..start]);
        rest = &rest[start + end + close.len()..];
    }
    out + rest
}

/// Entities of markup as characters: the five of XML, and numbers.
fn unescaped(text: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let entity = rest.find(';').map(|end| &rest[1..end]);
        let number = |name: &str| match name.strip_prefix(['x', 'X']) {
            Some(hex) => u32::from_str_radix(hex, 16).ok(),
            None => name.parse().ok(),
        };
        let c = entity.and_then(|name| match name {
            "amp" => Some('&'),
            "lt" => Some('<'),
            "gt" => Some('>'),
            "quot" => Some('"'),
            "apos" => Some('\''),
            _ => number(name.strip_prefix('#')?).and_then(char::from_u32),
        });
        match (c, entity) {
            (Some(c), Some(name)) => {
                out.push(c);
                rest = &rest[name.len() + 2..];
            }
            _ => {
                out.push('&');
                rest = &rest[1..];
            }
        }
    }
    out + rest
}
