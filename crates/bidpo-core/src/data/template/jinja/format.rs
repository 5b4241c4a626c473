//! Python's `%` formatting of strings.

use super::budget::charge;
use super::python::{float, is_tuple, repr_of, str_of};
use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

fn failed(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

/// One conversion: `%[(key)][flags][width][.precision]type`.
#[derive(Debug, Default)]
struct Conversion {
    left: bool,
    plus: bool,
    space: bool,
    zero: bool,
    alternate: bool,
    width: usize,
    precision: Option<usize>,
}

/// `format % values`: `values` is a list (a tuple in Python), a mapping for `%(name)s`, or one value.
///
/// # Errors
/// As Python's: too few or too many values, a value of the wrong type, an unknown conversion.
pub(super) fn percent_format(state: &State<'_, '_>, format: &str, values: &Value) -> Result<String, Error> {
    let list: Vec<Value> = if is_tuple(values) { values.try_iter()?.collect() } else { vec![values.clone()] };
    let (mut next, mut by_name) = (list.iter(), false);
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut named = None;
        if chars.peek() == Some(&'(') {
            chars.next();
            let key: String = chars.by_ref().take_while(|&c| c != ')').collect();
            by_name = true;
            named = Some(values.get_item(&Value::from(key.as_str()))?);
            if named.as_ref().is_some_and(Value::is_undefined) {
                return Err(failed(format!("the format names {key:?}, which has no value")));
            }
        }
        let mut spec = Conversion::default();
        while let Some(&flag) = chars.peek() {
            match flag {
                '-' => spec.left = true,
                '+' => spec.plus = true,
                ' ' => spec.space = true,
                '0' => spec.zero = true,
                '#' => spec.alternate = true,
                _ => break,
            }
            chars.next();
        }
        let mut number = || -> Result<Option<usize>, Error> {
            if chars.peek() == Some(&'*') {
                chars.next();
                let value = next.next().ok_or_else(|| failed("not enough arguments for format string"))?;
                let width = i64::try_from(value.clone()).map_err(|_| failed("* wants int"))?;
                return Ok(Some(usize::try_from(width).unwrap_or(0)));
            }
            let mut digits = String::new();
            while let Some(&d) = chars.peek().filter(|d| d.is_ascii_digit()) {
                digits.push(d);
                chars.next();
            }
            Ok((!digits.is_empty()).then(|| digits.parse().unwrap_or(usize::MAX)))
        };
        spec.width = number()?.unwrap_or(0);
        if chars.peek() == Some(&'.') {
            chars.next();
            let mut digits = String::new();
            while let Some(&d) = chars.peek().filter(|d| d.is_ascii_digit()) {
                digits.push(d);
                chars.next();
            }
            spec.precision = Some(if digits.is_empty() { 0 } else { digits.parse().unwrap_or(usize::MAX) });
        }
        charge(state, spec.width.max(spec.precision.unwrap_or(0)))?;
        while chars.peek().is_some_and(|c| matches!(c, 'h' | 'l' | 'L')) {
            chars.next();
        }
        let kind = chars.next().ok_or_else(|| failed("incomplete format"))?;
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = match named {
            Some(value) => value,
            None => next.next().cloned().ok_or_else(|| failed("not enough arguments for format string"))?,
        };
        spec.write(&mut out, kind, &value)?;
        charge(state, out.len().min(1 << 10))?;
    }
    // CPython takes anything with subscripts that is no tuple for a mapping.
    let mapping = matches!(values.kind(), ValueKind::Map | ValueKind::Seq | ValueKind::Iterable) && !is_tuple(values);
    if !by_name && !mapping && next.next().is_some() {
        return Err(failed("not all arguments converted during string formatting"));
    }
    charge(state, out.len())?;
    Ok(out)
}

impl Conversion {
    fn write(&self, out: &mut String, kind: char, value: &Value) -> Result<(), Error> {
        match kind {
            's' | 'r' | 'a' => {
                let text = match kind {
                    's' => str_of(value)?,
                    'r' => repr_of(value)?,
                    _ => {
                        let ascii = |c: char| match u32::from(c) {
                            code @ 0..0x80 => char::from_u32(code).map_or_else(String::new, String::from),
                            code @ 0x80..0x100 => format!("\\x{code:02x}"),
                            code @ 0x100..0x1_0000 => format!("\\u{code:04x}"),
                            code => format!("\\U{code:08x}"),
                        };
                        repr_of(value)?.chars().map(ascii).collect()
                    }
                };
                let text: String = text.chars().take(self.precision.unwrap_or(usize::MAX)).collect();
                self.pad(out, "", &text, false);
            }
            'c' => {
                let text = match value.as_str() {
                    Some(text) if text.chars().count() == 1 => text.to_owned(),
                    _ => {
                        let code = u32::try_from(value.clone()).ok().and_then(char::from_u32);
                        code.ok_or_else(|| failed("%c requires int or char"))?.to_string()
                    }
                };
                self.pad(out, "", &text, false);
            }
            'd' | 'i' | 'u' => {
                let x = number(value, kind)?;
                let digits = integer_digits(value, x);
                let digits = format!("{digits:0>width$}", width = self.precision.unwrap_or(0));
                self.pad(out, self.sign(x < 0.0), &digits, true);
            }
            'x' | 'X' | 'o' => {
                let x = i128::try_from(value.clone())
                    .map_err(|_| failed(format!("%{kind} format: an integer is required, not {}", value.kind())))?;
                let (digits, prefix) = match kind {
                    'x' => (format!("{:x}", x.unsigned_abs()), "0x"),
                    'X' => (format!("{:X}", x.unsigned_abs()), "0X"),
                    _ => (format!("{:o}", x.unsigned_abs()), "0o"),
                };
                let digits = format!("{digits:0>width$}", width = self.precision.unwrap_or(0));
                let sign = format!("{}{}", self.sign(x < 0), if self.alternate { prefix } else { "" });
                self.pad(out, &sign, &digits, true);
            }
            'f' | 'F' | 'e' | 'E' | 'g' | 'G' => {
                let x = number(value, kind)?;
                let text =
                    float_digits(x.abs(), kind.to_ascii_lowercase(), self.precision.unwrap_or(6), self.alternate);
                let text = if kind.is_ascii_uppercase() { text.to_uppercase() } else { text };
                self.pad(out, self.sign(x.is_sign_negative() && !x.is_nan()), &text, x.is_finite());
            }
            _ => return Err(failed(format!("unsupported format character {kind:?}"))),
        }
        Ok(())
    }

    fn sign(&self, negative: bool) -> &'static str {
        match (negative, self.plus, self.space) {
            (true, ..) => "-",
            (false, true, _) => "+",
            (false, false, true) => " ",
            _ => "",
        }
    }

    fn pad(&self, out: &mut String, sign: &str, text: &str, zeros: bool) {
        let fill = self.width.saturating_sub(sign.chars().count() + text.chars().count());
        let (before, zero, after) = match (self.left, self.zero && zeros) {
            (true, _) => (0, 0, fill),
            (false, true) => (0, fill, 0),
            (false, false) => (fill, 0, 0),
        };
        out.extend(std::iter::repeat_n(' ', before));
        out.push_str(sign);
        out.extend(std::iter::repeat_n('0', zero));
        out.push_str(text);
        out.extend(std::iter::repeat_n(' ', after));
    }
}

fn number(value: &Value, kind: char) -> Result<f64, Error> {
    match value.kind() {
        ValueKind::Bool => Ok(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).map_err(|_| failed("number too large")),
        other => Err(failed(format!("%{kind} format: a number is required, not {other}"))),
    }
}

/// Digits of the integer part of a number, without its sign.
fn integer_digits(value: &Value, x: f64) -> String {
    match i128::try_from(value.clone()) {
        Ok(i) if value.is_integer() => i.unsigned_abs().to_string(),
        _ => format!("{:.0}", x.abs().trunc()),
    }
}

/// A number that is not negative under `%f`, `%e` or `%g` with this precision.
fn float_digits(x: f64, kind: char, precision: usize, alternate: bool) -> String {
    if !x.is_finite() {
        return float(x);
    }
    let precision = precision.min(400);
    let exponent = |text: String| {
        let (digits, e) = text.split_once('e').map(|(d, e)| (d.to_owned(), e.to_owned())).unwrap_or((text, "0".into()));
        let (sign, e) = e.strip_prefix('-').map_or(('+', e.as_str()), |e| ('-', e));
        format!("{digits}e{sign}{e:0>2}")
    };
    match kind {
        'f' => format!("{x:.precision$}"),
        'e' => exponent(format!("{x:.precision$e}")),
        _ => {
            let digits = precision.max(1);
            let scientific = format!("{x:.*e}", digits - 1);
            let power: i32 = scientific.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
            let trim = |text: String| match text.contains('.') && !alternate {
                true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
                false => text,
            };
            if (-4..digits as i32).contains(&power) {
                trim(format!("{x:.*}", usize::try_from(digits as i32 - 1 - power).unwrap_or(0)))
            } else {
                let (mantissa, e) = scientific.split_once('e').unwrap_or((&scientific, "0"));
                exponent(format!("{}e{e}", trim(mantissa.to_owned())))
            }
        }
    }
}
