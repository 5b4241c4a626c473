//! Methods of Python's strings, lists and dictionaries. minijinja-contrib has most of them; these are the rest, and those whose
//! result can be much longer than their arguments.

use super::budget::{charge, charge_value, check_len, spend};
use super::filters::is_python_space;
use super::order::equal;
use super::python::{Tuple, is_printable, str_of};
use minijinja::value::{Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};

/// Called by minijinja for a method that a value does not have.
pub(super) fn call(state: &State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match value.as_str().filter(|_| value.kind() != ValueKind::Bytes) {
        Some(text) => charge(state, text.len())?,
        None => return list_or_map(state, value, method, args),
    }
    let text = value.as_str().unwrap_or_default();
    let positional = super::strings::positional(method, args)?;
    let args = positional.as_deref().unwrap_or(args);
    match method {
        // Every part is a value of its own.
        "split" | "rsplit" | "splitlines" => spend(state, text.len().saturating_mul(16))?,
        _ => {}
    }
    match method {
        "replace" => {
            let (from, to, most): (&str, &str, Option<i64>) = from_args(args)?;
            let most = most.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
            let found = if from.is_empty() { text.chars().count() + 1 } else { text.matches(from).count() }.min(most);
            charge(state, text.len() + found.saturating_mul(to.len()))?;
            Ok(Value::from(text.replacen(from, to, most)))
        }
        "join" => {
            let (list,): (Value,) = from_args(args)?;
            join(state, text, &list, false)
        }
        "partition" => {
            let (at,): (&str,) = from_args(args)?;
            let parts = text.split_once(separator(at)?).map_or([text, "", ""], |(a, b)| [a, at, b]);
            Ok(Tuple::value(parts.map(Value::from).to_vec()))
        }
        "rpartition" => {
            let (at,): (&str,) = from_args(args)?;
            let parts = text.rsplit_once(separator(at)?).map_or(["", "", text], |(a, b)| [a, at, b]);
            Ok(Tuple::value(parts.map(Value::from).to_vec()))
        }
        "rsplit" => rsplit(text, args),
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)))
        }
        "index" | "rindex" | "find" | "rfind" => super::strings::find(text, method, args),
        "count" | "startswith" | "endswith" => super::strings::within(state, text, method, args),
        "splitlines" => super::strings::split_lines(text, args),
        "split" if args.first().is_none_or(Value::is_none) => {
            let (_, most): (Option<Value>, Option<i64>) = from_args(args)?;
            Ok(words(text, most.and_then(|n| usize::try_from(n).ok())))
        }
        "format" => {
            let (named, list) = match args.split_last() {
                Some((last, before)) if last.is_kwargs() => (Some(last), before),
                _ => (None, args),
            };
            super::fields::format(state, text, &super::fields::Fields { list, named })
        }
        "format_map" => {
            let (map,): (Value,) = from_args(args)?;
            super::fields::format(state, text, &super::fields::Fields { list: &[], named: Some(&map) })
        }
        "translate" => super::strings::translate(state, text, args),
        "maketrans" => super::strings::make_translation(args),
        "encode" => {
            let (encoding, _): (Option<&str>, Option<&str>) = from_args(args)?;
            let known = ["utf-8", "utf8", "UTF-8", "utf_8"].contains(&encoding.unwrap_or("utf-8"));
            if !(known || encoding == Some("ascii") && text.is_ascii()) {
                let encoding = encoding.unwrap_or_default();
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("encode: {encoding:?}: only utf-8 is known"),
                ));
            }
            Ok(Value::from_bytes(text.as_bytes().to_vec()))
        }
        "title" => Ok(Value::from(super::strings::titled(text))),
        "split" if args.first().and_then(Value::as_str) == Some("") => separator("").map(Value::from),
        "ljust" | "rjust" | "center" | "zfill" => justify(state, text, method, args),
        "swapcase" => Ok(Value::from(text.chars().flat_map(swapped).collect::<String>())),
        "casefold" => Ok(Value::from(text.to_lowercase().replace('ß', "ss"))),
        "expandtabs" => {
            let (size,): (Option<usize>,) = from_args(args)?;
            expand_tabs(state, text, size.unwrap_or(8))
        }
        "isdecimal" => Ok(Value::from(all(text, |c| c.is_ascii_digit()))),
        "isdigit" | "isnumeric" => Ok(Value::from(all(text, char::is_numeric))),
        "isalpha" => Ok(Value::from(all(text, char::is_alphabetic))),
        "isalnum" => Ok(Value::from(all(text, char::is_alphanumeric))),
        "isspace" => Ok(Value::from(all(text, is_python_space))),
        "islower" => Ok(Value::from(is_lower(text))),
        "isupper" => Ok(Value::from(is_upper(text))),
        "isidentifier" => {
            let mut chars = text.chars();
            let first = chars.next().is_some_and(|c| c.is_alphabetic() || c == '_');
            Ok(Value::from(first && chars.all(|c| c.is_alphanumeric() || c == '_')))
        }
        "isprintable" => Ok(Value::from(text.chars().all(is_printable))),
        "istitle" => Ok(Value::from(is_title(text))),
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn list_or_map(state: &State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match (value.kind(), method) {
        (ValueKind::Seq | ValueKind::Iterable, "count") => {
            let (item,): (Value,) = from_args(args)?;
            charge_value(state, value)?;
            Ok(Value::from(value.try_iter()?.filter(|v| equal(v, &item)).count()))
        }
        (ValueKind::Seq | ValueKind::Iterable, "index") => {
            let (item,): (Value,) = from_args(args)?;
            charge_value(state, value)?;
            let at = value.try_iter()?.position(|v| equal(&v, &item));
            let at = at.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "the value is not in the list"))?;
            Ok(Value::from(at))
        }
        (ValueKind::Map, "items") => {
            from_args::<()>(args)?;
            let pair = |key: Value| Ok(Tuple::value(vec![key.clone(), value.get_item(&key)?]));
            Ok(Value::from(value.try_iter()?.map(pair).collect::<Result<Vec<_>, Error>>()?))
        }
        (ValueKind::Bytes, "decode") => {
            let text = std::str::from_utf8(value.as_bytes().unwrap_or_default());
            let text = text.map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("decode: {e}")))?;
            charge(state, text.len())?;
            Ok(Value::from(text))
        }
        (ValueKind::Bytes, "hex") => {
            let bytes = value.as_bytes().unwrap_or_default();
            charge(state, 2 * bytes.len())?;
            Ok(Value::from(bytes.iter().map(|b| format!("{b:02x}")).collect::<String>()))
        }
        (ValueKind::Map, "get") => {
            let (Some(key), true) = (args.first(), args.len() <= 2) else {
                return Err(Error::new(ErrorKind::InvalidOperation, "get: a key, and what to give without it"));
            };
            super::order::hashable(key)?;
            let found = value.get_item(key)?;
            // Without a default it is None; an undefined default stays undefined.
            Ok(if found.is_undefined() { args.get(1).cloned().unwrap_or_else(|| Value::from(())) } else { found })
        }
        (ValueKind::Seq | ValueKind::Map, "copy") => Ok(value.clone()),
        // transformers renders in an immutable sandbox.
        (ValueKind::Seq, "append" | "extend" | "insert" | "pop" | "remove" | "reverse" | "sort" | "clear")
        | (ValueKind::Map, "update" | "pop" | "popitem" | "setdefault" | "clear") => Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("{method} would change a value, which a chat template may not do"),
        )),
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// `str.join`, or with `any` the filter, which turns every item into text.
pub(super) fn join(state: &State<'_, '_>, between: &str, list: &Value, any: bool) -> Result<Value, Error> {
    let mut out = String::new();
    for (i, item) in list.try_iter()?.enumerate() {
        if i > 0 {
            out.push_str(between);
        }
        match item.as_str() {
            Some(text) => out.push_str(text),
            None if any => out.push_str(&str_of(&item)?),
            None => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("join: item {i} is not a string but {}", item.kind()),
                ));
            }
        }
        check_len(out.len())?;
    }
    charge(state, out.len())?;
    Ok(Value::from(out))
}

/// `str.split()`: words between white space, at most `most` splits.
fn words(text: &str, most: Option<usize>) -> Value {
    let mut parts: Vec<Value> = Vec::new();
    let mut rest = text.trim_start_matches(is_python_space);
    while !rest.is_empty() {
        let end = match most {
            Some(most) if parts.len() == most => rest.len(),
            _ => rest.find(is_python_space).unwrap_or(rest.len()),
        };
        parts.push(Value::from(&rest[..end]));
        rest = rest[end..].trim_start_matches(is_python_space);
    }
    Value::from(parts)
}

fn separator(text: &str) -> Result<&str, Error> {
    if text.is_empty() { Err(Error::new(ErrorKind::InvalidOperation, "empty separator")) } else { Ok(text) }
}

fn rsplit(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (at, most): (Option<&str>, Option<i64>) = from_args(args)?;
    let most = most.and_then(|n| usize::try_from(n).ok()).map_or(usize::MAX, |n| n.saturating_add(1));
    let mut parts: Vec<String> = match at {
        Some(at) => text.rsplitn(most, separator(at)?).map(ToOwned::to_owned).collect(),
        None => {
            let mut parts = Vec::new();
            let mut rest = text.trim_end();
            while !rest.is_empty() {
                if parts.len() + 1 == most {
                    parts.push(rest.to_owned());
                    break;
                }
                let start =
                    rest.char_indices().rev().find(|(_, c)| c.is_whitespace()).map_or(0, |(i, c)| i + c.len_utf8());
                parts.push(rest[start..].to_owned());
                rest = rest[..start].trim_end();
            }
            parts
        }
    };
    parts.reverse();
    Ok(Value::from(parts))
}

fn justify(state: &State<'_, '_>, text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (i64, Option<&str>) = from_args(args)?;
    let mut fill = fill.unwrap_or(" ").chars();
    let (Some(fill), None) = (fill.next(), fill.next()) else {
        return Err(Error::new(ErrorKind::InvalidOperation, "the fill character must be exactly one character long"));
    };
    let width = usize::try_from(width).unwrap_or(0);
    charge(state, width.saturating_mul(4).max(text.len()))?;
    let missing = width.saturating_sub(text.chars().count());
    let run = |c: char, n: usize| std::iter::repeat_n(c, n).collect::<String>();
    Ok(Value::from(match method {
        "ljust" => format!("{text}{}", run(fill, missing)),
        "rjust" => format!("{}{text}", run(fill, missing)),
        "zfill" => {
            let (sign, digits) = text.split_at(text.starts_with(['+', '-']).into());
            format!("{sign}{}{digits}", run('0', missing))
        }
        _ => {
            // CPython: the odd one goes to the left if the width is odd too.
            let left = missing / 2 + (missing & width & 1);
            format!("{}{text}{}", run(fill, left), run(fill, missing - left))
        }
    }))
}

fn swapped(c: char) -> Vec<char> {
    if c.is_uppercase() { c.to_lowercase().collect() } else { c.to_uppercase().collect() }
}

fn expand_tabs(state: &State<'_, '_>, text: &str, size: usize) -> Result<Value, Error> {
    charge(state, text.len() + text.matches('\t').count().saturating_mul(size))?;
    let (mut out, mut column) = (String::new(), 0);
    for c in text.chars() {
        match c {
            '\t' if size == 0 => {}
            '\t' => {
                let n = size - column % size;
                out.extend(std::iter::repeat_n(' ', n));
                column += n;
            }
            '\n' | '\r' => {
                out.push(c);
                column = 0;
            }
            c => {
                out.push(c);
                column += 1;
            }
        }
    }
    Ok(Value::from(out))
}

fn all(text: &str, test: impl Fn(char) -> bool) -> bool {
    !text.is_empty() && text.chars().all(test)
}

/// `str.islower`: a cased letter occurs, and all cased letters are lower-case.
pub(super) fn is_lower(text: &str) -> bool {
    text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase)
}

/// `str.isupper`.
pub(super) fn is_upper(text: &str) -> bool {
    text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase)
}

/// Words begin with an upper-case letter, and only there.
fn is_title(text: &str) -> bool {
    let (mut inside, mut any) = (false, false);
    for c in text.chars() {
        if c.is_uppercase() == inside && (c.is_uppercase() || c.is_lowercase()) {
            return false;
        }
        inside = c.is_uppercase() || c.is_lowercase();
        any |= inside;
    }
    any
}
