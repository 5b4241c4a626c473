//! Reading calls at the beginning of a text.

use super::arguments::{Allowed, value_of};
use super::python::python_calls;
use super::{Call, CalledFunction, FENCE, Family, OPTIONAL, WrittenCall};
use serde_json::{Map, Value};

const NAME_KEYS: [&str; 2] = ["name", "tool_name"];
const ARGUMENT_KEYS: [&str; 2] = ["arguments", "parameters"];

/// How a call was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// In an object with these keys, alone or in a list.
    Object { name: &'static str, arguments: &'static str, in_list: bool },
    /// A name with JSON behind it.
    Named,
    /// A name with tags behind it.
    Tagged,
    /// A call of Python, alone or in a list.
    Python { in_list: bool },
}

/// Calls at the beginning of a text, and what follows them.
#[derive(Debug)]
pub(super) struct Read<'a> {
    pub calls: Vec<WrittenCall>,
    pub first: Found,
    pub rest: &'a str,
}

fn is_letter(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')
}

/// What follows a pattern that a text begins with. A space stands for any white space or none, `*` for a word.
fn eat<'a>(text: &'a str, pattern: &str) -> Option<&'a str> {
    let mut rest = text;
    for (i, part) in pattern.split(' ').enumerate() {
        if i > 0 {
            rest = rest.trim_start();
        }
        for (j, literal) in part.split('*').enumerate() {
            if j > 0 {
                rest = rest.trim_start_matches(is_letter);
            }
            rest = rest.strip_prefix(literal)?;
        }
    }
    Some(rest)
}

/// The name that a text begins with.
fn word(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c| !is_letter(c)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

/// Reads all calls that a text begins with, in the first of `readers` that fits each.
pub(super) fn read_calls<'a>(text: &'a str, readers: &[&Family], functions: &[CalledFunction]) -> Option<Read<'a>> {
    let family = readers.first()?;
    let (mut calls, mut first, mut rest) = (Vec::new(), None, text);
    loop {
        let next = rest.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, ';' | ','));
        let marks = [family.open, family.close, OPTIONAL, FENCE].into_iter().chain(family.headers().iter().copied());
        let longest = marks.filter(|m| !m.is_empty() && next.starts_with(m)).map(str::len).max();
        if let Some(n) = longest {
            rest = &next[n..];
            continue;
        }
        let found = readers.iter().find_map(|reader| match &reader.call {
            Call::Json if next.starts_with(['{', '[']) => json_calls(next),
            Call::Json => None,
            Call::Named { before, between, behind } => named_call(next, before, between, behind),
            Call::Tagged { .. } => tagged_call(next, reader, functions),
            // Without a mark only a list is told from text.
            Call::Python if reader.open.is_empty() && !next.starts_with('[') => None,
            Call::Python => python_calls(next),
        });
        let Some(found) = found else { break };
        calls.extend(found.calls);
        first.get_or_insert(found.first);
        rest = found.rest;
    }
    Some(Read { calls, first: first?, rest })
}

/// The JSON value that a text begins with, and what follows it.
pub(super) fn json_prefix(text: &str) -> Option<(Value, &str)> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let value = values.next()?.ok()?;
    Some((value, &text[values.byte_offset()..]))
}

fn json_calls(text: &str) -> Option<Read<'_>> {
    let (value, rest) = json_prefix(text)?;
    let (list, in_list) = match value {
        Value::Array(list) => (list, true),
        one => (vec![one], false),
    };
    let (mut calls, mut first) = (Vec::new(), None);
    for value in list {
        let (call, keys) = object_call(value)?;
        calls.push(call);
        first.get_or_insert(Found::Object { name: keys.0, arguments: keys.1, in_list });
    }
    Some(Read { calls, first: first?, rest })
}

fn object_call(value: Value) -> Option<(WrittenCall, (&'static str, &'static str))> {
    let Value::Object(mut map) = value else { return None };
    if let Some(inner @ Value::Object(_)) = map.remove("function") {
        return object_call(inner);
    }
    let (name_key, name) = NAME_KEYS.into_iter().find_map(|k| Some((k, map.get(k)?.as_str()?.to_owned())))?;
    let (key, arguments) = ARGUMENT_KEYS.into_iter().find_map(|k| Some((k, map.remove(k)?)))?;
    let arguments = match arguments {
        Value::Object(map) => map,
        // Some models write the arguments as text.
        Value::String(text) => serde_json::from_str(&text).ok()?,
        Value::Null => Map::new(),
        _ => return None,
    };
    Some((WrittenCall { name, arguments }, (name_key, key)))
}

fn named_call<'a>(text: &'a str, before: &str, between: &[&str], behind: &str) -> Option<Read<'a>> {
    let (name, rest) = word(eat(text, before)?)?;
    let rest = between.iter().find_map(|pattern| eat(rest, pattern))?;
    let (value, rest) = json_prefix(rest.trim_start())?;
    let Value::Object(arguments) = value else { return None };
    let rest = if behind.is_empty() { rest } else { eat(rest.trim_start(), behind)? };
    Some(Read { calls: vec![WrittenCall { name: name.to_owned(), arguments }], first: Found::Named, rest })
}

fn tagged_call<'a>(text: &'a str, family: &Family, functions: &[CalledFunction]) -> Option<Read<'a>> {
    let Call::Tagged { before, between, key, value, end, behind } = &family.call else { return None };
    let (name, rest) = word(eat(text, before)?)?;
    let schema = functions.iter().find(|f| f.name == name).map(|f| &f.parameters);
    let mut rest = eat(rest, between)?;
    let mut arguments = Map::new();
    let first = value.trim_start().split([' ', '*']).next().unwrap_or_default();
    while let Some(named) = eat(rest.trim_start(), key) {
        let (name, behind_name) = named.split_at(named.find(first)?);
        let (text, behind_value) = eat(behind_name, value.trim_start())?.split_once(end)?;
        let name = name.trim();
        let allowed = schema.map_or(&Value::Null, |s| &s["properties"][name]);
        let value = value_of(text, Allowed::by(allowed, schema.unwrap_or(&Value::Null)));
        arguments.insert(name.to_owned(), value);
        rest = behind_value;
    }
    let rest = rest.trim_start();
    // Without an end of its own a call ends with its mark.
    let rest = if behind.is_empty() { rest.starts_with(family.close).then_some(rest)? } else { eat(rest, behind)? };
    Some(Read { calls: vec![WrittenCall { name: name.to_owned(), arguments }], first: Found::Tagged, rest })
}
