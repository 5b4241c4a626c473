//! Values as Python writes them: `str(x)` and `repr(x)`.

use super::budget::{MAX_DEPTH, too_deep};
use minijinja::value::{Enumerator, Object, ObjectRepr, Value, ValueKind};
use minijinja::{Error, ErrorKind};
use std::fmt::Write;
use std::sync::Arc;

/// A tuple: a list that is written in parentheses.
#[derive(Debug)]
pub(super) struct Tuple {
    items: Vec<Value>,
    /// Names of its items; none for most tuples.
    names: &'static [&'static str],
}

impl Tuple {
    /// A tuple of these values.
    pub(super) fn value(items: Vec<Value>) -> Value {
        Value::from_object(Self { items, names: &[] })
    }

    /// A group of `groupby`.
    pub(super) fn group(grouper: Value, list: Value) -> Value {
        Value::from_object(Self { items: vec![grouper, list], names: &["grouper", "list"] })
    }
}

impl Object for Tuple {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let at = match key.as_str() {
            Some(name) => self.names.iter().position(|n| *n == name),
            None => key.as_usize(),
        };
        self.items.get(at?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.items.len())
    }
}

/// True for a tuple.
pub(super) fn is_tuple(value: &Value) -> bool {
    value.downcast_object_ref::<Tuple>().is_some()
}

/// Python's `range`: integers that are no list.
#[derive(Debug)]
pub(super) struct Range {
    start: i64,
    stop: i64,
    step: i64,
    len: usize,
}

/// Integers of one range, at most: Jinja2's sandbox refuses more.
const MAX_RANGE: usize = 100_000;

impl Range {
    /// `range(start, stop, step)`.
    ///
    /// # Errors
    /// A step of 0, and more integers than Jinja2's sandbox allows.
    pub(super) fn value(start: i64, stop: i64, step: i64) -> Result<Value, Error> {
        let failed = |reason: &str| Error::new(ErrorKind::InvalidOperation, reason.to_owned());
        let (a, b, by) = (i128::from(start), i128::from(stop), i128::from(step));
        let len = match by {
            0 => return Err(failed("range: the step must not be zero")),
            1.. => (b - a + by - 1) / by,
            _ => (a - b - by - 1) / -by,
        };
        let len = usize::try_from(len.max(0)).unwrap_or(usize::MAX);
        if len > MAX_RANGE {
            return Err(failed(&format!("range: more than {MAX_RANGE} integers, which Jinja2's sandbox refuses too")));
        }
        Ok(Value::from_object(Self { start, stop, step, len }))
    }

    fn at(&self, i: usize) -> i64 {
        self.start + self.step * i as i64
    }

    /// The part that a slice takes: indices of the first one and step, in the order of the slice.
    pub(super) fn slice(&self, first: i128, end: i128, step: i128) -> Result<Value, Error> {
        let place = |i: i128| i64::try_from(i128::from(self.start) + i128::from(self.step) * i).unwrap_or(i64::MAX);
        Self::value(place(first), place(end), i64::try_from(i128::from(self.step) * step).unwrap_or(i64::MAX))
    }
}

impl Object for Range {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        key.as_usize().filter(|&i| i < self.len).map(|i| Value::from(self.at(i)))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.len)
    }
}

/// True for a range.
pub(super) fn is_range(value: &Value) -> bool {
    value.downcast_object_ref::<Range>().is_some()
}

/// `repr(value)`.
///
/// # Errors
/// The value is nested too deep.
pub(super) fn repr_of(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    repr_into(&mut out, value, 0)?;
    Ok(out)
}

/// `str(value)`; an undefined value is empty, as in Jinja2.
///
/// # Errors
/// The value is nested too deep.
pub(super) fn str_of(value: &Value) -> Result<String, Error> {
    // Bytes are texts to the engine, where they are UTF-8.
    if let Some(text) = value.as_str().filter(|_| value.kind() != ValueKind::Bytes) {
        return Ok(text.to_owned());
    }
    if value.is_undefined() {
        return Ok(String::new());
    }
    let mut out = String::new();
    repr_into(&mut out, value, 0)?;
    Ok(out)
}

fn repr_into(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(too_deep());
    }
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number if value.is_integer() => _ = write!(out, "{value}"),
        ValueKind::Number => match f64::try_from(value.clone()) {
            Ok(x) => out.push_str(&float(x)),
            Err(_) => _ = write!(out, "{value}"),
        },
        ValueKind::String if value.is_safe() => {
            out.push_str("Markup(");
            string_repr(out, value.as_str().unwrap_or_default());
            out.push(')');
        }
        ValueKind::String => string_repr(out, value.as_str().unwrap_or_default()),
        ValueKind::Bytes => bytes_repr(out, value.as_bytes().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            if let Some(Range { start, stop, step, .. }) = value.downcast_object_ref::<Range>() {
                let step = if *step == 1 { String::new() } else { format!(", {step}") };
                _ = write!(out, "range({start}, {stop}{step})");
                return Ok(());
            }
            let tuple = value.downcast_object_ref::<Tuple>().map(|t| t.items.len());
            out.push(if tuple.is_some() { '(' } else { '[' });
            for (i, item) in value.try_iter()?.enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                repr_into(out, &item, depth + 1)?;
            }
            out.push_str(match tuple {
                None => "]",
                Some(1) => ",)",
                Some(_) => ")",
            });
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter()?.enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                repr_into(out, &key, depth + 1)?;
                out.push_str(": ");
                repr_into(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        _ => _ = write!(out, "{value}"),
    }
    Ok(())
}

/// `repr` of a float: the shortest digits that read back, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf".into() } else { "-inf".into() };
    }
    if x != 0.0 && !(1e-4..1e16).contains(&x.abs()) {
        // Rust writes 1e-7 and 1.5e20, Python 1e-07 and 1.5e+20.
        let text = format!("{x:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, number) = exponent.strip_prefix('-').map_or(('+', exponent), |n| ('-', n));
        return format!("{digits}e{sign}{number:0>2}");
    }
    format!("{x:?}")
}

/// Python's `str.isprintable` of one character: no control or format character, no separator but the space, nothing of private use.
/// (Code points without a character, which no text holds, count as printable.)
pub(super) fn is_printable(c: char) -> bool {
    !matches!(c,
        '\0'..='\u{1f}' | '\u{7f}'..='\u{a0}' | '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
        | '\u{890}' | '\u{891}' | '\u{8e2}' | '\u{1680}' | '\u{180e}' | '\u{2000}'..='\u{200f}' | '\u{2028}'..='\u{202f}'
        | '\u{205f}'..='\u{206f}' | '\u{3000}' | '\u{e000}'..='\u{f8ff}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0001}' | '\u{e0020}'..='\u{e007f}' | '\u{f0000}'..)
}

/// `repr` of a string: single quotes, unless only those occur in it.
fn string_repr(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) => out.push(c),
            c => {
                let point = u32::from(c);
                _ = match point {
                    0..=0xff => write!(out, "\\x{point:02x}"),
                    0x100..=0xffff => write!(out, "\\u{point:04x}"),
                    _ => write!(out, "\\U{point:08x}"),
                };
            }
        }
    }
    out.push(quote);
}

/// `repr` of bytes.
fn bytes_repr(out: &mut String, bytes: &[u8]) {
    let quote = if bytes.contains(&b'\'') && !bytes.contains(&b'"') { b'"' } else { b'\'' };
    out.push('b');
    out.push(char::from(quote));
    for &b in bytes {
        match b {
            b'\\' => out.push_str("\\\\"),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            b if b == quote => _ = write!(out, "\\{}", char::from(b)),
            b' '..=b'~' => out.push(char::from(b)),
            b => _ = write!(out, "\\x{b:02x}"),
        }
    }
    out.push(char::from(quote));
}
