//! `str.format` and `str.format_map`: the fields are resolved here, as Jinja2's sandbox does; numbers are written by
//! minijinja-contrib.

use super::budget::{charge, check_len};
use super::collections::failed;
use super::ops::number;
use super::python::{repr_of, str_of};
use minijinja::value::{Value, ValueKind};
use minijinja::{Error, State};

/// What fields may name.
pub(super) struct Fields<'v> {
    /// By number.
    pub(super) list: &'v [Value],
    /// By name: a mapping.
    pub(super) named: Option<&'v Value>,
}

/// A format with its fields filled in.
///
/// # Errors
/// As Python's: braces that do not match, a field without a value, a format that the value does not take.
pub(super) fn format(state: &State<'_, '_>, text: &str, fields: &Fields<'_>) -> Result<Value, Error> {
    let mut writer = Formatter { state, fields, next: Some(0), numbered: false };
    let out = writer.fill(text, 2)?;
    charge(state, out.len())?;
    Ok(Value::from(out))
}

struct Formatter<'a, 'v> {
    state: &'a State<'a, 'a>,
    fields: &'a Fields<'v>,
    /// The number of the next field without one; none where fields are numbered.
    next: Option<usize>,
    numbered: bool,
}

impl Formatter<'_, '_> {
    /// `depth`: fields within a field's format are allowed once.
    fn fill(&mut self, text: &str, depth: usize) -> Result<String, Error> {
        if depth == 0 {
            return Err(failed("format: fields nested too deep"));
        }
        let (mut out, mut rest) = (String::new(), text);
        while let Some(at) = rest.find(['{', '}']) {
            out.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(behind) = rest.strip_prefix(brace) {
                out.push_str(brace);
                rest = behind;
                continue;
            }
            if brace == "}" {
                return Err(failed("format: single '}' in the format"));
            }
            let end = end_of_field(rest).ok_or_else(|| failed("format: expected '}' before the end of the format"))?;
            let field = &rest[..end];
            rest = &rest[end + 1..];
            let written = self.field(field, depth)?;
            out.push_str(&written);
            check_len(out.len())?;
        }
        out.push_str(rest);
        Ok(out)
    }

    /// `NAME!CONVERSION:FORMAT`
    fn field(&mut self, field: &str, depth: usize) -> Result<String, Error> {
        let head = field.find(['!', ':']).unwrap_or(field.len());
        let value = self.value(&field[..head])?;
        let (conversion, spec) = match field[head..].strip_prefix('!') {
            Some(rest) => match rest.split_once(':') {
                Some((conversion, spec)) => (Some(conversion), spec),
                None => (Some(rest), ""),
            },
            None => (None, field[head..].strip_prefix(':').unwrap_or("")),
        };
        let value = match conversion {
            None => value,
            Some("s") => Value::from(str_of(&value)?),
            Some("r") => Value::from(repr_of(&value)?),
            Some(other) => return Err(failed(format!("format: unknown conversion {other:?}"))),
        };
        let spec = self.fill(spec, depth - 1 + usize::from(spec.is_empty()))?;
        self.written(&value, &spec)
    }

    /// `0`, `name`, nothing for the next one; then `.attribute` and `[key]`.
    fn value(&mut self, path: &str) -> Result<Value, Error> {
        let first = path.find(['.', '[']).unwrap_or(path.len());
        let name = &path[..first];
        let at = match name {
            "" => {
                let at = self.next.ok_or_else(|| failed("format: fields with and without numbers"))?;
                self.next = Some(at + 1);
                self.numbered = true;
                Some(at)
            }
            _ if name.bytes().all(|b| b.is_ascii_digit()) => {
                if self.numbered {
                    return Err(failed("format: fields with and without numbers"));
                }
                self.next = None;
                Some(name.parse().unwrap_or(usize::MAX))
            }
            _ => None,
        };
        let missing = || failed(format!("format: no value for the field {{{name}}}"));
        let mut value = match at {
            Some(at) => self.fields.list.get(at).cloned().ok_or_else(missing)?,
            None => {
                let found = self.fields.named.map(|named| named.get_item(&Value::from(name))).transpose()?;
                found.filter(|value| !value.is_undefined()).ok_or_else(missing)?
            }
        };
        let mut rest = &path[first..];
        while !rest.is_empty() {
            if let Some(key) = rest.strip_prefix('[') {
                let (key, behind) = key.split_once(']').ok_or_else(|| failed("format: missing ']' in a field"))?;
                value = match key.parse::<i64>() {
                    Ok(index) if index >= 0 => value.get_item(&Value::from(index))?,
                    _ => value.get_item(&Value::from(key))?,
                };
                rest = behind;
            } else {
                let name = rest.strip_prefix('.').ok_or_else(|| failed("format: only '.' or '[' may follow ']'"))?;
                let end = name.find(['.', '[']).unwrap_or(name.len());
                value = value.get_attr(&name[..end])?;
                rest = &name[end..];
            }
        }
        Ok(value)
    }

    /// `format(value, spec)`.
    fn written(&self, value: &Value, spec: &str) -> Result<String, Error> {
        if spec.is_empty() {
            return str_of(value);
        }
        // A width is a number in the format.
        let widths = spec.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty());
        let width = widths.fold(0, |sum: usize, n| sum.saturating_add(n.parse().unwrap_or(usize::MAX)));
        charge(self.state, width)?;
        if let Some(percent) = spec.strip_suffix('%') {
            return self.percent(value, percent);
        }
        match value.kind() {
            ValueKind::String => padded(value.as_str().unwrap_or_default(), spec, '<'),
            ValueKind::Number => self.contrib(value, spec),
            ValueKind::Bool => self.contrib(&Value::from(i64::from(value.is_true())), spec),
            other => Err(failed(format!("format: a value of type {other} takes no format, this is {spec:?}"))),
        }
    }

    /// One value under a format, by minijinja-contrib.
    fn contrib(&self, value: &Value, spec: &str) -> Result<String, Error> {
        let format = Value::from(format!("{{:{spec}}}"));
        let args = [value.clone()];
        let text = minijinja_contrib::pycompat::unknown_method_callback(self.state, &format, "format", &args)?;
        str_of(&text)
    }

    /// Per cent: as `f` of a hundred times the number.
    fn percent(&self, value: &Value, spec: &str) -> Result<String, Error> {
        let x =
            number(value).ok_or_else(|| failed(format!("format: a value of type {} is no number", value.kind())))?;
        let (head, precision) = spec.split_once('.').unwrap_or((spec, "6"));
        let is_width = |c: char| c.is_ascii_digit();
        let width = &head[head.trim_end_matches(is_width).len()..];
        let before = &head[..head.len() - width.len()];
        let sign = before.chars().last().filter(|c| "+- ".contains(*c));
        let aligned = before.trim_end_matches(['+', '-', ' ']);
        let sign = sign.map(String::from).unwrap_or_default();
        let text = self.contrib(&Value::from(100.0 * x), &format!("{sign}.{precision}f"))? + "%";
        padded(&text, &format!("{aligned}{width}"), '>')
    }
}

/// Where a field ends: at the brace that closes it.
fn end_of_field(text: &str) -> Option<usize> {
    let mut depth = 0usize;
    for (i, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return Some(i),
            '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// A text under `[[fill]align][0][width][.precision][s]`; lengths are of characters.
fn padded(text: &str, spec: &str, default: char) -> Result<String, Error> {
    let wrong = || failed(format!("format: a text takes no format {spec:?}"));
    let is_align = |c: &char| "<>^".contains(*c);
    let mut rest: &[char] = &spec.chars().collect::<Vec<_>>();
    let (mut fill, mut align) = (' ', default);
    match rest {
        [f, a, behind @ ..] if is_align(a) => (fill, align, rest) = (*f, *a, behind),
        [a, behind @ ..] if is_align(a) => (align, rest) = (*a, behind),
        ['0', behind @ ..] => (fill, rest) = ('0', behind),
        _ => {}
    }
    let digits = |from: &mut &[char]| -> Result<Option<usize>, Error> {
        let n = from.iter().take_while(|c| c.is_ascii_digit()).count();
        let (number, behind) = from.split_at(n);
        *from = behind;
        if n == 0 { Ok(None) } else { number.iter().collect::<String>().parse().map(Some).map_err(|_| wrong()) }
    };
    let width = digits(&mut rest)?.unwrap_or(0);
    let mut most = None;
    if let ['.', behind @ ..] = rest {
        rest = behind;
        most = Some(digits(&mut rest)?.ok_or_else(wrong)?);
    }
    if !matches!(rest, [] | ['s']) {
        return Err(wrong());
    }
    let shown: String = text.chars().take(most.unwrap_or(usize::MAX)).collect();
    let missing = width.saturating_sub(shown.chars().count());
    let left = match align {
        '<' => 0,
        '>' => missing,
        _ => missing / 2,
    };
    let run = |n: usize| std::iter::repeat_n(fill, n).collect::<String>();
    Ok(format!("{}{shown}{}", run(left), run(missing - left)))
}
