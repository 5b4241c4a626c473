//! Methods of Python's strings with positions and named arguments.

use super::budget::{charge, check_len};
use super::ops::integer;
use minijinja::value::{Kwargs, Value, from_args};
use minijinja::{Error, ErrorKind, State};

/// The arguments of a method in their order, where some were given by name; `None` where none was.
pub(super) fn positional(method: &str, args: &[Value]) -> Result<Option<Vec<Value>>, Error> {
    let names: &[&str] = match method {
        "split" | "rsplit" => &["sep", "maxsplit"],
        "splitlines" => &["keepends"],
        "expandtabs" => &["tabsize"],
        _ => return Ok(None),
    };
    let Some((options, given)) = args.split_last().filter(|(last, _)| last.is_kwargs()) else { return Ok(None) };
    let options = Kwargs::try_from(options.clone())?;
    let mut out = given.to_vec();
    for name in names.iter().skip(given.len()) {
        out.push(options.get::<Option<Value>>(name)?.unwrap_or_else(|| Value::from(())));
    }
    options.assert_all_used()?;
    while out.last().is_some_and(Value::is_none) {
        out.pop();
    }
    Ok(Some(out))
}

/// `text[start:end]`, and the number of characters before it; `None` where `start` is behind the end of the text.
fn cut(text: &str, start: Option<i64>, end: Option<i64>) -> Option<(&str, usize)> {
    let n = text.chars().count();
    let place = |i: i64| match usize::try_from(i) {
        Ok(i) => i,
        Err(_) => n.saturating_sub(usize::try_from(i.unsigned_abs()).unwrap_or(usize::MAX)),
    };
    let (start, end) = (start.map_or(0, place), end.map_or(n, place).min(n));
    if start > n || start > end {
        return None;
    }
    let byte = |i: usize| text.char_indices().nth(i).map_or(text.len(), |(at, _)| at);
    Some((&text[byte(start)..byte(end)], start))
}

/// `find`, `rfind`, `index`, `rindex`.
pub(super) fn find(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (part, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
    let found = cut(text, start, end).and_then(|(inside, before)| {
        let at = if method.starts_with('r') { inside.rfind(part) } else { inside.find(part) };
        at.map(|at| before + inside[..at].chars().count())
    });
    match found {
        Some(at) => Ok(Value::from(at)),
        None if method.ends_with("find") => Ok(Value::from(-1)),
        None => Err(Error::new(ErrorKind::InvalidOperation, "substring not found")),
    }
}

/// `count`, `startswith`, `endswith` of a part of the text.
pub(super) fn within(state: &State<'_, '_>, text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (what, start, end): (Value, Option<i64>, Option<i64>) = from_args(args)?;
    match cut(text, start, end) {
        Some((inside, _)) if method == "count" => {
            let part =
                what.as_str().ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "count: a text is needed"))?;
            let n = if part.is_empty() { inside.chars().count() + 1 } else { inside.matches(part).count() };
            Ok(Value::from(n))
        }
        Some((inside, _)) => {
            minijinja_contrib::pycompat::unknown_method_callback(state, &Value::from(inside), method, &[what])
        }
        None if method == "count" => Ok(Value::from(0)),
        None => Ok(Value::from(false)),
    }
}

/// Line ends of Python's `str.splitlines`.
fn ends_line(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// `splitlines(keepends=False)`.
pub(super) fn split_lines(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (keep,): (Option<bool>,) = from_args(args)?;
    let mut lines: Vec<&str> = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let line = rest.find(ends_line).unwrap_or(rest.len());
        let end = match rest[line..].chars().next() {
            Some('\r') if rest[line..].starts_with("\r\n") => line + 2,
            Some(c) => line + c.len_utf8(),
            None => line,
        };
        lines.push(&rest[..if keep.unwrap_or(false) { end } else { line }]);
        rest = &rest[end..];
    }
    Ok(lines.into_iter().map(Value::from).collect())
}

/// `str.title`: a letter behind none is a capital.
pub(super) fn titled(text: &str) -> String {
    let mut inside = false;
    let mut out = String::new();
    for c in text.chars() {
        let cased = c.is_lowercase() || c.is_uppercase();
        match inside {
            true => out.extend(c.to_lowercase()),
            false => out.extend(c.to_uppercase()),
        }
        inside = cased;
    }
    out
}

/// `str.translate(table)`: a mapping of code points to texts, code points, or None.
pub(super) fn translate(state: &State<'_, '_>, text: &str, args: &[Value]) -> Result<Value, Error> {
    let failed = |reason: &str| Error::new(ErrorKind::InvalidOperation, format!("translate: {reason}"));
    let (table,): (Value,) = from_args(args)?;
    let mut out = String::new();
    for c in text.chars() {
        let to = table.get_item(&Value::from(u32::from(c)))?;
        match (to.as_str(), integer(&to)) {
            (Some(text), _) => out.push_str(text),
            (None, Some(point)) => {
                let point = u32::try_from(point).ok().and_then(char::from_u32);
                out.push(point.ok_or_else(|| failed("a number that is no code point"))?);
            }
            _ if to.is_undefined() => out.push(c),
            _ if to.is_none() => {}
            _ => return Err(failed("the table must hold texts, code points or None")),
        }
        check_len(out.len())?;
    }
    charge(state, out.len())?;
    Ok(Value::from(out))
}

/// `str.maketrans(from, to, deleted)`, or of a mapping.
pub(super) fn make_translation(args: &[Value]) -> Result<Value, Error> {
    let failed = |reason: &str| Error::new(ErrorKind::InvalidOperation, format!("maketrans: {reason}"));
    let mut table: Vec<(Value, Value)> = Vec::new();
    let point = |c: char| Value::from(u32::from(c));
    let (first, to, deleted): (Value, Option<&str>, Option<&str>) = from_args(args)?;
    match (first.as_str(), to) {
        (Some(from), Some(to)) => {
            if from.chars().count() != to.chars().count() {
                return Err(failed("the first two arguments must have equal length"));
            }
            table.extend(from.chars().zip(to.chars()).map(|(a, b)| (point(a), point(b))));
            table.extend(deleted.unwrap_or("").chars().map(|c| (point(c), Value::from(()))));
        }
        (None, None) => {
            for key in first.try_iter()? {
                let value = first.get_item(&key)?;
                let mut chars = key.as_str().unwrap_or("").chars();
                let key = match (chars.next(), chars.next()) {
                    (Some(c), None) => point(c),
                    (None, _) if integer(&key).is_some() => key.clone(),
                    _ => return Err(failed("keys must be of length 1")),
                };
                table.push((key, value));
            }
        }
        _ => return Err(failed("a mapping, or two texts of equal length are needed")),
    }
    Ok(Value::from_iter(table))
}
