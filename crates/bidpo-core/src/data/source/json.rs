//! JSON in all the ways in which rows are written: a line each, a list, a list inside an object, by columns.

use super::{Format, Place, Row, Rows, SourceError};
use crate::data::text_file::NotUtf8;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::path::Path;

/// Keys of what a row asks.
const PROMPTS: [&str; 10] = [
    "prompt",
    "question",
    "instruction",
    "input",
    "inputs",
    "query",
    "history",
    "context",
    "messages",
    "conversations",
];

/// What the file's name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Named {
    /// JSON Lines: an object is a row.
    Lines,
    /// Nothing, or JSON: one object may hold all rows.
    Other,
}

/// Reads the rows of a JSON text.
pub(super) fn rows(text: &[u8], path: &Path, named: Named) -> Result<Rows, SourceError> {
    let first = text.iter().position(|b| !b.is_ascii_whitespace()).map(|i| &text[i..]);
    let fail = |line: usize, reason: String| SourceError::Format { place: Place::Line(line).of(path), reason };
    match first {
        Some([b'[', ..]) => {
            let text = crate::data::decode(text).map_err(|NotUtf8 { line, byte }| {
                fail(line, format!("not UTF-8 (byte {byte} of the file): save it as UTF-8"))
            })?;
            let values: Vec<Value> = parse(text).map_err(|e| {
                fail(e.line(), format!("not a JSON list (column {}): {}", e.column(), without_position(&e)))
            })?;
            Ok(Rows { format: Format::JsonList, rows: numbered(values) })
        }
        // An object that ends on another line than it begins: the whole file is one, or several.
        Some(start) if !ends_on_its_line(start) => match objects(text) {
            Some(mut values) if values.len() == 1 => match values.remove(0) {
                (at, Value::Object(object)) if named == Named::Other => {
                    one_object(object, at).map_err(|reason| fail(at, reason))
                }
                (at, value) => Ok(lines_of(vec![(at, value)])),
            },
            Some(values) => Ok(lines_of(values)),
            None => Ok(lines(text)),
        },
        _ => {
            let mut rows = lines(text);
            // One object on one line may hold the rows.
            let only = match &mut rows.rows[..] {
                [Row { place, value: Ok(Value::Object(object)) }] if named == Named::Other => {
                    Some((place.number(), std::mem::take(object)))
                }
                _ => None,
            };
            match only {
                Some((at, object)) => one_object(object, at).map_err(|reason| fail(at, reason)),
                None => Ok(rows),
            }
        }
    }
}

fn numbered(values: Vec<Value>) -> Vec<Row> {
    values.into_iter().enumerate().map(|(i, value)| Row { place: Place::Item(i + 1), value: Ok(value) }).collect()
}

fn lines_of(values: Vec<(usize, Value)>) -> Rows {
    let one = |(line, value)| Row { place: Place::Line(line), value: Ok(value) };
    Rows { format: Format::JsonLines, rows: values.into_iter().map(one).collect() }
}

fn lines(text: &[u8]) -> Rows {
    let one = |(i, line): (usize, &[u8])| {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.iter().all(u8::is_ascii_whitespace) {
            return None;
        }
        let value = match std::str::from_utf8(line) {
            // A list of which only the brackets were cut leaves commas.
            Ok(line) => parse(line.trim_end().strip_suffix(',').unwrap_or(line))
                .map_err(|e| format!("not JSON (column {}): {}", e.column(), without_position(&e))),
            Err(e) => Err(format!("not UTF-8 (byte {} of the line): save the file as UTF-8", e.valid_up_to() + 1)),
        };
        Some(Row { place: Place::Line(i + 1), value })
    };
    Rows { format: Format::JsonLines, rows: text.split(|&b| b == b'\n').enumerate().filter_map(one).collect() }
}

/// The object at the start of `text` ends before the line does, or the line is no JSON at all.
fn ends_on_its_line(text: &[u8]) -> bool {
    let line = text.split(|&b| b == b'\n').next().unwrap_or_default();
    match serde_json::from_slice::<serde::de::IgnoredAny>(line) {
        Ok(_) => true,
        Err(e) => !e.is_eof(),
    }
}

/// JSON values that follow one another, each with the line on which it begins; `None` where the text is something else.
fn objects(text: &[u8]) -> Option<Vec<(usize, Value)>> {
    let text = std::str::from_utf8(text).ok()?;
    let mut found = Vec::new();
    let (mut line, mut seen) = (1, 0);
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    loop {
        let from = stream.byte_offset();
        let start = from + text[from..].find(|c: char| !c.is_whitespace())?;
        line += text[seen..start].matches('\n').count();
        seen = start;
        let value = stream.next()?.ok()?;
        found.push((line, value));
        if text[stream.byte_offset()..].trim().is_empty() {
            return Some(found);
        }
    }
}

/// Rows of a file that is one object: those of the one list of objects in it, or its columns; else it is a row itself.
fn one_object(object: Map<String, Value>, line: usize) -> Result<Rows, String> {
    let is_rows = |value: &Value| match value {
        Value::Array(list) => !list.is_empty() && list.iter().all(Value::is_object),
        _ => false,
    };
    if let Some(rows) = columns(&object) {
        return Ok(Rows { format: Format::JsonColumns, rows: numbered(rows) });
    }
    // What has a prompt is a row, whatever lists it has besides.
    if PROMPTS.iter().any(|key| object.contains_key(*key)) {
        return Ok(lines_of(vec![(line, Value::Object(object))]));
    }
    let is_chat = |value: &Value| value.as_array().is_some_and(|l| l.iter().all(crate::data::message::is_message));
    let lists: Vec<String> = object.iter().filter(|(_, v)| is_rows(v)).map(|(k, _)| k.clone()).collect();
    match &lists[..] {
        [] => Ok(lines_of(vec![(line, Value::Object(object))])),
        _ if lists.iter().any(|name| is_chat(&object[name])) => Ok(lines_of(vec![(line, Value::Object(object))])),
        [name] => match object.into_iter().find(|(k, _)| k == name) {
            Some((_, Value::Array(list))) => Ok(Rows { format: Format::JsonList, rows: numbered(list) }),
            _ => Ok(Rows { format: Format::JsonList, rows: Vec::new() }),
        },
        _ => {
            let names = lists.iter().map(|n| format!("{n:?}")).collect::<Vec<_>>().join(", ");
            Err(format!(
                "the file is one object with several lists of rows ({names}): write one list to a file of its own"
            ))
        }
    }
}

/// Rows of columns of equal length, as pandas writes them: `{"a": ["x", "y"]}`, or `{"a": {"0": "x", "1": "y"}}`.
fn columns(object: &Map<String, Value>) -> Option<Vec<Value>> {
    let simple = |v: &Value| !v.is_object();
    let cells = |value: &Value| -> Option<Vec<(String, Value)>> {
        match value {
            Value::Array(list) if list.iter().all(simple) => {
                Some(list.iter().enumerate().map(|(i, v)| (i.to_string(), v.clone())).collect())
            }
            Value::Object(index) if index.keys().all(|k| k.parse::<u64>().is_ok()) => {
                Some(index.iter().map(|(k, v)| (k.clone(), v.clone())).collect())
            }
            _ => None,
        }
    };
    if object.len() < 2 {
        return None;
    }
    let columns: Vec<(&String, Vec<(String, Value)>)> =
        object.iter().map(|(k, v)| cells(v).map(|c| (k, c))).collect::<Option<_>>()?;
    let index: Vec<&String> = columns[0].1.iter().map(|(k, _)| k).collect();
    if index.is_empty() || !columns.iter().all(|(_, c)| c.iter().map(|(k, _)| k).eq(index.iter().copied())) {
        return None;
    }
    let row = |i: usize| columns.iter().map(|(name, cells)| ((*name).clone(), cells[i].1.clone())).collect();
    Some((0..index.len()).map(|i| Value::Object(row(i))).collect())
}

/// Reads one JSON value; NaN and infinities, which Python writes, are null.
fn parse<T: serde::de::DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    serde_json::from_str(text).or_else(|error| match without_nan(text) {
        Cow::Borrowed(_) => Err(error),
        Cow::Owned(text) => serde_json::from_str(&text),
    })
}

/// The text with `NaN`, `Infinity` and `-Infinity` outside of strings as `null`.
fn without_nan(text: &str) -> Cow<'_, str> {
    if !text.contains("NaN") && !text.contains("Infinity") {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let (mut rest, mut in_string) = (text, false);
    while let Some(c) = rest.chars().next() {
        let word = ["NaN", "-Infinity", "Infinity"].into_iter().find(|w| !in_string && rest.starts_with(w));
        if let Some(word) = word {
            out.push_str("null");
            rest = &rest[word.len()..];
            continue;
        }
        // What an escape hides is copied with it.
        let n = if c == '\\' { rest.chars().take(2).map(char::len_utf8).sum() } else { c.len_utf8() };
        in_string ^= c == '"';
        out.push_str(&rest[..n]);
        rest = &rest[n..];
    }
    Cow::Owned(out)
}

/// serde_json ends its messages with a position inside the text it was given.
fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}
