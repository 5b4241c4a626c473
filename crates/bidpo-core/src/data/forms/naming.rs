//! Rows with the names that forms know: other spellings, columns inside objects, messages as JSON in a text.

use super::{Keys, messages};
use crate::data::message::is_message;
use crate::data::source::{Row, Source};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::HashMap;

/// Rows' values, and where their columns were in the file.
pub(super) struct Named<'a> {
    pub(super) values: Vec<Result<Cow<'a, Value>, String>>,
    pub(super) paths: Paths,
}

/// Columns that were inside objects, with their paths.
#[derive(Default)]
pub(super) struct Paths(HashMap<String, String>);

impl Paths {
    /// The column's path in the file.
    pub(super) fn of(&self, column: &str) -> String {
        let first = column.split(['.', '[']).next().unwrap_or(column);
        match self.0.get(first) {
            Some(path) => format!("{path}{}", &column[first.len()..]),
            None => column.to_owned(),
        }
    }
}

/// The rows' values. Where no row has a form, names such as `Prompt` and `Chosen Response` are read as `prompt` and
/// `chosen_response`, then the columns of objects (`data.prompt`) as columns of the row.
pub(super) fn named<'a>(source: &'a Source, keys: &Keys, has_form: impl Fn(&Map<String, Value>) -> bool) -> Named<'a> {
    let read = |row: &'a Row| row.value.as_ref().map_err(Clone::clone);
    if !keys.is_empty() {
        let values = source.rows.iter().map(|row| Ok(with_chats(items_by_number(read(row)?)))).collect();
        return Named { values, paths: Paths::default() };
    }
    let values: Vec<Result<Cow<'a, Value>, String>> =
        source.rows.iter().map(|row| Ok(with_chats(Cow::Borrowed(read(row)?)))).collect();
    let any_form = |values: &[Result<Cow<'a, Value>, String>]| {
        values.iter().flatten().any(|value| value.as_object().is_some_and(&has_form))
    };
    if any_form(&values) {
        return Named { values, paths: Paths::default() };
    }
    let plain = each(&values, plain_names);
    if any_form(&plain) {
        return Named { values: plain, paths: Paths::default() };
    }
    for base in [&values, &plain] {
        let mut paths = HashMap::new();
        let lifted = each(base, |value| lifted(value, &mut paths));
        if any_form(&lifted) {
            return Named { values: lifted, paths: Paths(paths) };
        }
    }
    Named { values, paths: Paths::default() }
}

fn each<'a>(
    values: &[Result<Cow<'a, Value>, String>],
    mut change: impl FnMut(&Value) -> Value,
) -> Vec<Result<Cow<'a, Value>, String>> {
    values.iter().map(|value| value.as_ref().map(|v| Cow::Owned(change(v))).map_err(Clone::clone)).collect()
}

/// Items of a list have their numbers, from 0, as names.
fn items_by_number(value: &Value) -> Cow<'_, Value> {
    match value {
        Value::Array(list) => {
            let named = list.iter().enumerate().map(|(i, item)| (i.to_string(), item.clone())).collect();
            Cow::Owned(Value::Object(named))
        }
        value => Cow::Borrowed(value),
    }
}

/// The row with messages in place of the texts that hold them as JSON.
fn with_chats(value: Cow<'_, Value>) -> Cow<'_, Value> {
    let chat = |value: &Value| -> Option<Value> {
        let text = value.as_str().filter(|text| text.trim_start().starts_with("[{"))?;
        let list: Vec<Value> = serde_json::from_str(text).ok()?;
        list.iter().all(is_message).then_some(Value::Array(list))
    };
    let Some(object) = value.as_object().filter(|object| object.values().any(|v| chat(v).is_some())) else {
        return value;
    };
    let read = |(name, value): (&String, &Value)| (name.clone(), chat(value).unwrap_or_else(|| value.clone()));
    Cow::Owned(Value::Object(object.iter().map(read).collect()))
}

/// `Chosen Response`, `chosen-response` and `chosenResponse` as `chosen_response`.
fn plain_name(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 2);
    let mut before = ' ';
    for c in name.trim().chars() {
        if c.is_uppercase() && before.is_lowercase() {
            out.push('_');
        }
        match c {
            ' ' | '-' => out.push('_'),
            _ => out.extend(c.to_lowercase()),
        }
        before = c;
    }
    out
}

/// The row with its columns under their plain names.
fn plain_names(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            Value::Object(object.iter().map(|(name, value)| (plain_name(name), value.clone())).collect())
        }
        other => other.clone(),
    }
}

/// The row with the columns of its objects in the place of the objects; a name that would be there twice stays inside.
fn lifted(value: &Value, paths: &mut HashMap<String, String>) -> Value {
    let Value::Object(object) = value else { return value.clone() };
    let inner = |value: &Value| match value {
        Value::Object(inner) if !is_message(value) && !messages::is_transposed(value) => inner.clone(),
        _ => Map::new(),
    };
    let mut times: HashMap<&String, usize> = HashMap::new();
    let insides: Vec<(&String, &Value, Map<String, Value>)> = object.iter().map(|(k, v)| (k, v, inner(v))).collect();
    for (name, _, inside) in &insides {
        // The object's own name is free where all of it is lifted, as in {"chosen": {"chosen": ...}}.
        *times.entry(name).or_default() += usize::from(inside.is_empty());
        inside.keys().for_each(|name| *times.entry(name).or_default() += 1);
    }
    let mut out = Map::new();
    for (name, value, inside) in &insides {
        if inside.is_empty() || inside.keys().any(|key| times.get(key) != Some(&1)) {
            out.insert((*name).clone(), (*value).clone());
            continue;
        }
        for (key, value) in inside {
            paths.entry(key.clone()).or_insert_with(|| format!("{name}.{key}"));
            out.insert(key.clone(), value.clone());
        }
    }
    Value::Object(out)
}
