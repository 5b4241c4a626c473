//! CSV and TSV with a header.

use super::{Format, Place, Row, Rows, SourceError};
use crate::data::text_file::LineCounter;
use serde_json::{Map, Value};
use std::path::Path;

/// The separator of a table's header: a comma, or what spreadsheets of some countries write in its place.
pub(super) fn delimiter(text: &[u8]) -> u8 {
    let header = text.split(|&b| b == b'\n').next().unwrap_or_default();
    let count = |delimiter: u8| header.iter().filter(|&&b| b == delimiter).count();
    if count(b',') > 0 {
        return b',';
    }
    [b';', b'\t', b'|'].into_iter().find(|&d| count(d) > 0).unwrap_or(b',')
}

/// The separator of a table under a name that does not say that it is one; `None` for another text. A header of two columns or more
/// with short, distinct names, and up to twenty records below with as many fields each.
pub(super) fn detected(text: &[u8]) -> Option<u8> {
    let is_table = |&delimiter: &u8| {
        let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(text);
        let Ok(header) = reader.headers().cloned() else { return false };
        let names: Vec<&str> = header.iter().map(str::trim).collect();
        let is_name =
            |name: &&str| !name.is_empty() && name.chars().count() <= 40 && !name.ends_with(['.', '?', '!', ':']);
        let distinct = (1..names.len()).all(|i| !names[..i].contains(&names[i]));
        let mut records = reader.byte_records().take(20).peekable();
        let some = records.peek().is_some();
        let even = records.all(|r| r.is_ok_and(|r| r.len() == names.len()));
        names.len() >= 2 && names.iter().all(is_name) && distinct && some && even
    };
    [b'\t', b',', b';', b'|'].into_iter().find(is_table)
}

/// Reads the records under the header.
pub(super) fn rows(text: &[u8], delimiter: u8, format: Format, path: &Path) -> Result<Rows, SourceError> {
    let fail = |reason: String| SourceError::Format { place: Place::Line(1).of(path), reason };
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).from_reader(text);
    let header: Vec<String> = match reader.headers() {
        Ok(header) => header.iter().map(|h| h.trim().to_owned()).collect(),
        Err(e) => return Err(fail(format!("the header is not {} in UTF-8: {e}", format.name()))),
    };
    if let Some(twice) = header.iter().enumerate().find_map(|(i, h)| header[..i].contains(h).then_some(h)) {
        return Err(fail(format!("the header has the column {twice:?} twice: rename one of them")));
    }
    let mut rows = Vec::new();
    let mut counter = LineCounter::new(text);
    let mut record = csv::ByteRecord::new();
    loop {
        match reader.read_byte_record(&mut record) {
            Ok(false) => return Ok(Rows { format, rows }),
            Ok(true) => {}
            Err(e) => return Err(SourceError::Format { place: path.display().to_string(), reason: e.to_string() }),
        }
        let line = counter.line_of_record(record.position());
        rows.push(Row { place: Place::Line(line), value: object(&header, &record) });
    }
}

fn object(header: &[String], record: &csv::ByteRecord) -> Result<Value, String> {
    let (n, asked) = (record.len(), header.len());
    if n != asked {
        let than = if n < asked { "few" } else { "many" };
        return Err(format!(
            "{n} field{} where the header has {asked} (a comma or a quotation mark too {than}?)",
            if n == 1 { "" } else { "s" }
        ));
    }
    let cell = |bytes: &[u8]| {
        std::str::from_utf8(bytes).map(value).map_err(|_| "not UTF-8: save the file as UTF-8".to_owned())
    };
    let fields: Map<String, Value> =
        header.iter().zip(record).map(|(h, bytes)| Ok((h.clone(), cell(bytes)?))).collect::<Result<_, String>>()?;
    Ok(Value::Object(fields))
}

/// A cell: its text, or the messages that it holds as JSON.
fn value(text: &str) -> Value {
    if text.trim_start().starts_with("[{") {
        let list: Option<Vec<Value>> = serde_json::from_str(text).ok();
        if let Some(list) = list.filter(|list| list.iter().all(crate::data::message::is_message)) {
            return Value::Array(list);
        }
    }
    Value::String(text.to_owned())
}
