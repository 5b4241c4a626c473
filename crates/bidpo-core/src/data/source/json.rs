//! JSON in all the ways in which rows are written: a line each, a list, a list inside an object, by columns.

use super::tidy::{parse, tidy, without_position};
use super::whole::{numbered, one_object, table_of_lists};
use super::{Format, Place, Row, Rows, SourceError};
use crate::data::text_file::NotUtf8;
use serde_json::Value;
use std::path::Path;

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
            match parse::<Vec<Value>>(text) {
                Ok(values) => Ok(of_list(values)),
                // A list a line.
                Err(_) if all_lists(text) => Ok(lines(text.as_bytes())),
                Err(e) => {
                    Err(fail(e.line(), format!("not a JSON list (column {}): {}", e.column(), without_position(&e))))
                }
            }
        }
        // An object that ends on another line than it begins: the whole file is one, or several.
        Some(start) if !ends_on_its_line(start) => match std::str::from_utf8(text).ok().and_then(objects_or_tidied) {
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

/// The rows of a list: its items; a list of values is one row.
fn of_list(values: Vec<Value>) -> Rows {
    if let Some(rows) = table_of_lists(&values) {
        return Rows { format: Format::JsonTable, rows: numbered(rows) };
    }
    if values.iter().all(|v| !v.is_object() && !v.is_array()) && !values.is_empty() {
        return lines_of(vec![(1, Value::Array(values))]);
    }
    Rows { format: Format::JsonList, rows: numbered(values) }
}

/// Each line is a list.
fn all_lists(text: &str) -> bool {
    let is_list = |line: &str| matches!(parse::<Value>(line), Ok(Value::Array(_)));
    text.lines().filter(|line| !line.trim().is_empty()).all(is_list)
}

pub(super) fn lines_of(values: Vec<(usize, Value)>) -> Rows {
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

fn objects_or_tidied(text: &str) -> Option<Vec<(usize, Value)>> {
    objects(text).or_else(|| objects(&tidy(text)))
}

/// JSON values that follow one another, each with the line on which it begins; `None` where the text is something else.
fn objects(text: &str) -> Option<Vec<(usize, Value)>> {
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
