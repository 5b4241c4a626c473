//! Rows of a file that is one JSON value: a list inside an object, columns, tables, and the rows of a data hub's viewer.

use super::json::lines_of;
use super::{Format, Place, Row, Rows};
use serde_json::{Map, Value};

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

/// Items of a list as rows.
pub(super) fn numbered(values: Vec<Value>) -> Vec<Row> {
    values.into_iter().enumerate().map(|(i, value)| Row { place: Place::Item(i + 1), value: Ok(value) }).collect()
}

/// Rows of a file that is one object: those of the one list of objects in it, or its columns; else it is a row itself.
pub(super) fn one_object(object: Map<String, Value>, line: usize) -> Result<Rows, String> {
    let is_rows = |value: &Value| match value {
        Value::Array(list) => !list.is_empty() && list.iter().all(Value::is_object),
        _ => false,
    };
    if let Some(rows) = viewer(&object) {
        return Ok(Rows { format: Format::Viewer, rows });
    }
    if let Some(rows) = split(&object) {
        return Ok(Rows { format: Format::JsonTable, rows: numbered(rows) });
    }
    if let Some(rows) = columns(&object) {
        return Ok(Rows { format: Format::JsonColumns, rows: numbered(rows) });
    }
    if let Some(rows) = by_name(&object) {
        return Ok(Rows { format: Format::JsonList, rows: numbered(rows) });
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

/// The answer of a data hub's viewer: `{"rows": [{"row_idx": 0, "row": {...}, "truncated_cells": []}]}`. A row of which it cut a
/// value is no row.
fn viewer(object: &Map<String, Value>) -> Option<Vec<Row>> {
    let list = object.get("rows")?.as_array()?;
    let one = |item: &Value| {
        let row = item.get("row").filter(|row| row.is_object())?;
        let cut = item.get("truncated_cells").and_then(Value::as_array).filter(|cells| !cells.is_empty());
        Some(match cut {
            None => Ok(row.clone()),
            Some(cells) => {
                let names = cells.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                Err(format!("the viewer cut this row's {names}: download the file of the data set itself"))
            }
        })
    };
    let rows: Vec<Result<Value, String>> = list.iter().map(one).collect::<Option<_>>()?;
    let placed = |(i, value)| Row { place: Place::Item(i + 1), value };
    (!rows.is_empty()).then(|| rows.into_iter().enumerate().map(placed).collect())
}

/// `{"columns": ["a", "b"], "index": [0], "data": [["x", "y"]]}`, as pandas writes it.
fn split(object: &Map<String, Value>) -> Option<Vec<Value>> {
    let names = texts(object.get("columns")?)?;
    let data = object.get("data")?.as_array()?;
    data.iter().map(|row| record(&names, row)).collect()
}

/// Rows by their names: `{"a1": {...}, "a2": {...}}`, each with a prompt. The name is the row's id where it has none.
fn by_name(object: &Map<String, Value>) -> Option<Vec<Value>> {
    let asks = |row: &Map<String, Value>| PROMPTS.iter().any(|key| row.contains_key(*key));
    let one = |(name, value): (&String, &Value)| {
        let mut row = value.as_object().filter(|row| row.len() > 1 && asks(row))?.clone();
        if !row.contains_key("id") {
            row.insert("id".into(), Value::String(name.clone()));
        }
        Some(Value::Object(row))
    };
    // The two answers of one row may be objects that repeat its prompt.
    let is_row = |name: &String| ["chosen", "rejected", "prompt"].contains(&name.as_str());
    if object.is_empty() || object.keys().any(is_row) {
        return None;
    }
    object.iter().map(one).collect()
}

/// Rows of a list of lists whose first one has the columns' names.
pub(super) fn table_of_lists(values: &[Value]) -> Option<Vec<Value>> {
    let (header, rows) = values.split_first()?;
    let names = texts(header)?;
    if rows.is_empty() || !names.iter().any(|name| PROMPTS.contains(&name.as_str())) {
        return None;
    }
    rows.iter().map(|row| record(&names, row)).collect()
}

fn texts(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|name| name.as_str().map(str::to_owned)).collect()
}

fn record(names: &[String], row: &Value) -> Option<Value> {
    let cells = row.as_array().filter(|cells| cells.len() == names.len())?;
    Some(Value::Object(names.iter().cloned().zip(cells.iter().cloned()).collect()))
}
