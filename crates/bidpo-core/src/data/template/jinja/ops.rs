//! Operators whose Python meaning differs from minijinja's, or whose result can be large. [`super::rewrite`] turns them into
//! calls of these functions.

use super::budget::{charge, charge_value, check_items, check_len};
use super::format::percent_format;
use super::python::str_of;
use minijinja::value::{Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

/// Adds the functions under the names that the rewriter uses.
pub(super) fn install(environment: &mut Environment<'_>) {
    environment.add_function(ADD, |state: &State<'_, '_>, terms: Rest<Value>| {
        let mut terms = terms.0.into_iter();
        let first = terms.next().unwrap_or_default();
        terms.try_fold(first, |sum, term| add(state, &sum, &term))
    });
    environment.add_function(MUL, mul);
    environment.add_function(REM, rem);
    environment.add_function(CONCAT, concat);
    environment.add_function(SLICE, slice);
    environment.add_function(EQ, |state: &State<'_, '_>, a: &Value, b: &Value| equal(state, a, b));
    environment.add_function(NE, |state: &State<'_, '_>, a: &Value, b: &Value| equal(state, a, b).map(|e| !e));
    environment.add_function(IN, |state: &State<'_, '_>, a: &Value, b: &Value| contains(state, a, b));
    environment
        .add_function(COUNTED, |state: &State<'_, '_>, value: Value| charge_value(state, &value).map(|()| value));
}

/// `a + b`, or more terms, from the left.
pub(super) const ADD: &str = "__py_add";
/// `a * b`
pub(super) const MUL: &str = "__py_mul";
/// `a % b`
pub(super) const REM: &str = "__py_mod";
/// `a ~ b`, or more terms.
pub(super) const CONCAT: &str = "__py_concat";
/// `a == b`
pub(super) const EQ: &str = "__py_eq";
/// `a != b`
pub(super) const NE: &str = "__py_ne";
/// `a in b`
pub(super) const IN: &str = "__py_in";
/// The value itself, counted.
pub(super) const COUNTED: &str = "__counted";
/// `a[b:c:d]`
pub(super) const SLICE: &str = "__py_slice";

fn unsupported(op: &str, a: &Value, b: &Value) -> Error {
    Error::new(
        ErrorKind::InvalidOperation,
        format!("unsupported operand types for {op}: {} and {}", a.kind(), b.kind()),
    )
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

/// An integer, as Python takes it: a boolean is 0 or 1.
fn integer(value: &Value) -> Option<i128> {
    match value.kind() {
        ValueKind::Bool => Some(i128::from(value.is_true())),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    }
}

fn number(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        _ => None,
    }
}

/// An integer as a value: small where it fits, for minijinja compares those.
fn int_value(x: i128) -> Value {
    i64::try_from(x).map_or_else(|_| Value::from(x), Value::from)
}

fn overflow(op: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("the result of {op} has more than 128 bits"))
}

fn add(state: &State<'_, '_>, a: &Value, b: &Value) -> Result<Value, Error> {
    if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
        charge(state, x.len() + y.len())?;
        return Ok(Value::from([x, y].concat()));
    }
    if is_list(a) && is_list(b) {
        let (x, y) = (items(a)?, items(b)?);
        check_items(x.len() + y.len())?;
        let sum = Value::from([x, y].concat());
        charge_value(state, &sum)?;
        return Ok(sum);
    }
    match (integer(a), integer(b)) {
        (Some(x), Some(y)) => x.checked_add(y).map(int_value).ok_or_else(|| overflow("+")),
        _ => match (number(a), number(b)) {
            (Some(x), Some(y)) => Ok(Value::from(x + y)),
            _ => Err(unsupported("+", a, b)),
        },
    }
}

/// `a == b`. True is 1 and False is 0, as in Python.
fn equal(state: &State<'_, '_>, a: &Value, b: &Value) -> Result<bool, Error> {
    match (a.as_str(), b.as_str()) {
        (Some(x), Some(y)) => {
            if x.len() == y.len() {
                charge(state, x.len())?;
            }
            return Ok(x == y);
        }
        (None, None) if is_container(a) && is_container(b) => {
            charge_value(state, a)?;
            charge_value(state, b)?;
        }
        (None, None) => {
            if let (Some(x), Some(y)) = (integer(a), integer(b)) {
                return Ok(x == y);
            }
            if let (Some(x), Some(y)) = (number(a), number(b)) {
                return Ok(x == y);
            }
        }
        _ => {}
    }
    Ok(a == b)
}

fn is_container(value: &Value) -> bool {
    is_list(value) || value.kind() == ValueKind::Map
}

/// `a in b`: a part of a string, a value of a list, a key of a mapping.
fn contains(state: &State<'_, '_>, a: &Value, b: &Value) -> Result<bool, Error> {
    if let Some(text) = b.as_str() {
        charge(state, text.len())?;
        let part = a.as_str().ok_or_else(|| {
            Error::new(ErrorKind::InvalidOperation, format!("in a string only strings are sought, not {}", a.kind()))
        })?;
        return Ok(text.contains(part));
    }
    if b.kind() == ValueKind::Map {
        return Ok(!b.get_item(a)?.is_undefined() || b.try_iter()?.any(|key| key == *a));
    }
    if is_list(b) {
        for item in b.try_iter()? {
            if equal(state, a, &item)? {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    if b.is_undefined() {
        return Ok(false);
    }
    Err(Error::new(ErrorKind::InvalidOperation, format!("a value of type {} holds no other values", b.kind())))
}

fn items(list: &Value) -> Result<Vec<Value>, Error> {
    check_items(list.len().unwrap_or(0))?;
    Ok(list.try_iter()?.collect())
}

fn mul(state: &State<'_, '_>, a: &Value, b: &Value) -> Result<Value, Error> {
    for (thing, times) in [(a, b), (b, a)] {
        let Some(n) = integer(times) else { continue };
        let n = usize::try_from(n.max(0)).unwrap_or(usize::MAX);
        if let Some(text) = thing.as_str() {
            charge(state, text.len().saturating_mul(n))?;
            return Ok(Value::from(text.repeat(n)));
        }
        if is_list(thing) {
            let list = items(thing)?;
            check_items(list.len().saturating_mul(n))?;
            let product = Value::from(std::iter::repeat_n(list, n).flatten().collect::<Vec<_>>());
            charge_value(state, &product)?;
            return Ok(product);
        }
    }
    match (integer(a), integer(b)) {
        (Some(x), Some(y)) => x.checked_mul(y).map(int_value).ok_or_else(|| overflow("*")),
        _ => match (number(a), number(b)) {
            (Some(x), Some(y)) => Ok(Value::from(x * y)),
            _ => Err(unsupported("*", a, b)),
        },
    }
}

/// The remainder has the divisor's sign, as in Python; a string is a format.
fn rem(state: &State<'_, '_>, a: &Value, b: &Value) -> Result<Value, Error> {
    if let Some(format) = a.as_str() {
        return percent_format(state, format, b).map(Value::from);
    }
    let zero = || Error::new(ErrorKind::InvalidOperation, "modulo by zero");
    match (integer(a), integer(b)) {
        (Some(_), Some(0)) => Err(zero()),
        (Some(x), Some(y)) => {
            let r = x.checked_rem(y).ok_or_else(|| overflow("%"))?;
            Ok(int_value(if r != 0 && (r < 0) != (y < 0) { r + y } else { r }))
        }
        _ => match (number(a), number(b)) {
            (Some(_), Some(0.0)) => Err(zero()),
            (Some(x), Some(y)) => {
                let r = x % y;
                Ok(Value::from(if r != 0.0 && (r < 0.0) != (y < 0.0) { r + y } else { r }))
            }
            _ => Err(unsupported("%", a, b)),
        },
    }
}

fn concat(state: &State<'_, '_>, terms: Rest<Value>) -> Result<Value, Error> {
    let mut out = String::new();
    for term in &terms.0 {
        match term.as_str() {
            Some(text) => out.push_str(text),
            None => out.push_str(&str_of(term)?),
        }
        check_len(out.len())?;
    }
    charge(state, out.len())?;
    Ok(Value::from(out))
}

fn slice(state: &State<'_, '_>, thing: &Value, start: &Value, stop: &Value, step: &Value) -> Result<Value, Error> {
    // Jinja2 gives an undefined value for a subscript that Python refuses.
    if [start, stop, step].iter().any(|v| !v.is_none() && integer(v).is_none()) {
        return Ok(Value::UNDEFINED);
    }
    let (start, stop, step) = (integer(start), integer(stop), integer(step).unwrap_or(1));
    if step == 0 {
        return Err(Error::new(ErrorKind::InvalidOperation, "slice step cannot be zero"));
    }
    if let Some(text) = thing.as_str() {
        charge(state, text.len())?;
        let chars: Vec<char> = text.chars().collect();
        return Ok(Value::from(indices(chars.len(), start, stop, step).map(|i| chars[i]).collect::<String>()));
    }
    if is_list(thing) {
        let list = items(thing)?;
        charge(state, list.len() * size_of::<Value>())?;
        return Ok(Value::from(indices(list.len(), start, stop, step).map(|i| list[i].clone()).collect::<Vec<_>>()));
    }
    if thing.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, "an undefined value cannot be sliced"));
    }
    Ok(Value::UNDEFINED)
}

/// Python's `range(*slice(start, stop, step).indices(len))`.
fn indices(len: usize, start: Option<i128>, stop: Option<i128>, step: i128) -> impl Iterator<Item = usize> {
    let len = len as i128;
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let place = |at: Option<i128>, default: i128| match at {
        None => default,
        Some(i) if i < 0 => (i + len).max(low),
        Some(i) => i.min(high),
    };
    let (mut at, end) =
        if step > 0 { (place(start, low), place(stop, high)) } else { (place(start, high), place(stop, low)) };
    std::iter::from_fn(move || {
        let here = at;
        if (step > 0 && here >= end) || (step < 0 && here <= end) {
            return None;
        }
        at = at.saturating_add(step);
        usize::try_from(here).ok()
    })
}
