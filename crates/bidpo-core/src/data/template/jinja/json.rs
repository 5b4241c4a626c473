//! `tojson` as transformers defines it: Python's `json.dumps` with `ensure_ascii=False`.

use super::budget::{MAX_DEPTH, charge, too_deep};
use super::python::{float, is_range};
use minijinja::value::{Kwargs, Rest, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use std::fmt::Write;

/// Options of `json.dumps`.
struct Style {
    ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sorted: bool,
}

/// `ensure_ascii`, `indent`, `separators`, `sort_keys`, and those given by name.
type JsonArgs = (Option<bool>, Option<Value>, Option<Vec<String>>, Option<bool>, Kwargs);

/// The filter: `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(state: &State<'_, '_>, value: &Value, args: Rest<Value>) -> Result<Value, Error> {
    let (ascii, indent, separators, sorted, options): JsonArgs = from_args(&args)?;
    fn either<T>(given: Option<T>, named: Option<T>) -> Option<T> {
        named.or(given)
    }
    let indent = either(indent, options.get::<Option<Value>>("indent")?).filter(|v| !v.is_none());
    let indent = indent.map(|v| match v.as_str() {
        Some(text) => text.to_owned(),
        None => " ".repeat(v.as_usize().unwrap_or(0).min(64)),
    });
    let separators = either(separators, options.get::<Option<Vec<String>>>("separators")?);
    let (item, key) = match separators.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(other) => {
            return Err(Error::new(
                ErrorKind::InvalidOperation,
                format!("tojson: separators must be two texts, these are {}", other.len()),
            ));
        }
    };
    let style = Style {
        ascii: either(ascii, options.get::<Option<bool>>("ensure_ascii")?).unwrap_or(false),
        indent,
        item,
        key,
        sorted: either(sorted, options.get::<Option<bool>>("sort_keys")?).unwrap_or(false),
    };
    options.assert_all_used()?;
    let mut out = String::new();
    style.write(&mut out, value, 0)?;
    charge(state, out.len())?;
    Ok(Value::from(out))
}

impl Style {
    fn write(&self, out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            return Err(too_deep());
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&number(value)),
            ValueKind::String => self.string(out, value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable if is_range(value) => return Err(not_json("a range")),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list(out, depth, ['[', ']'], &items, |out, item| self.write(out, item, depth + 1))?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                self.list(out, depth, ['{', '}'], &keys, |out, key| {
                    match key.kind() {
                        ValueKind::String => self.string(out, key.as_str().unwrap_or_default()),
                        ValueKind::None => out.push_str("\"null\""),
                        ValueKind::Bool => out.push_str(if key.is_true() { "\"true\"" } else { "\"false\"" }),
                        ValueKind::Number => _ = write!(out, "\"{}\"", number(key)),
                        other => return Err(not_json(&format!("a key of type {other}"))),
                    }
                    out.push_str(&self.key);
                    self.write(out, &value.get_item(key)?, depth + 1)
                })?;
            }
            ValueKind::Undefined => return Err(not_json("an undefined value")),
            other => return Err(not_json(&format!("a value of type {other}"))),
        }
        Ok(())
    }

    /// A list or an object: brackets, line breaks and indentation around its parts.
    fn list(
        &self,
        out: &mut String,
        depth: usize,
        [open, close]: [char; 2],
        items: &[Value],
        mut part: impl FnMut(&mut String, &Value) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        let line = |out: &mut String, depth: usize| {
            if let Some(indent) = &self.indent {
                out.push('\n');
                (0..depth).for_each(|_| out.push_str(indent));
            }
        };
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                out.push_str(&self.item);
            }
            line(out, depth + 1);
            part(out, item)?;
        }
        if !items.is_empty() {
            line(out, depth);
        }
        out.push(close);
        Ok(())
    }

    fn string(&self, out: &mut String, text: &str) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if (c as u32) < 0x20 => _ = write!(out, "\\u{:04x}", c as u32),
                c if self.ascii && !(' '..='~').contains(&c) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(x) if !value.is_integer() => match x {
            x if x.is_nan() => "NaN".into(),
            f64::INFINITY => "Infinity".into(),
            f64::NEG_INFINITY => "-Infinity".into(),
            x => float(x),
        },
        _ => value.to_string(),
    }
}

fn not_json(what: &str) -> Error {
    Error::new(ErrorKind::BadSerialization, format!("tojson: {what} is not JSON serializable"))
}
