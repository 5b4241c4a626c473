//! Operators whose Python meaning differs from minijinja's, or whose result can be large. [`super::rewrite`] turns them into
//! calls of these functions.

use super::budget::{charge, charge_value, check_items, check_len};
use super::filters::escaped;
use super::format::percent_format;
use super::order::{equal_counted, hashable, order};
use super::python::{Range, Tuple, is_range, is_tuple, str_of};
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
    environment.add_function(CONSTANT_SLICE, constant_slice);
    environment.add_function(SUB, |a: &Value, b: &Value| arithmetic("-", a, b));
    environment.add_function(DIV, |a: &Value, b: &Value| arithmetic("/", a, b));
    environment.add_function(FLOOR_DIV, |a: &Value, b: &Value| arithmetic("//", a, b));
    environment.add_function(POW, power);
    environment.add_function(NEG, |a: &Value| arithmetic("-", &Value::from(0), a));
    environment.add_function(CHAIN, chain);
    environment.add_function(TUPLE, |state: &State<'_, '_>, items: Rest<Value>| {
        let tuple = Tuple::value(items.0);
        charge_value(state, &tuple).map(|()| tuple)
    });
    environment.add_function("range", |a: i64, b: Option<i64>, step: Option<i64>| {
        let (start, stop) = b.map_or((0, a), |b| (a, b));
        Range::value(start, stop, step.unwrap_or(1))
    });
    environment.add_function(EQ, equal_counted);
    environment.add_function(NE, |state: &State<'_, '_>, a: &Value, b: &Value| equal_counted(state, a, b).map(|e| !e));
    environment.add_function(IN, |state: &State<'_, '_>, a: &Value, b: &Value| contains(state, a, b));
    environment.add_test("in", |state: &State<'_, '_>, a: &Value, b: &Value| contains(state, a, b));
    environment
        .add_function(COUNTED, |state: &State<'_, '_>, value: Value| charge_value(state, &value).map(|()| value));
}

/// `a + b`, or more terms, from the left.
pub(super) const ADD: &str = "__py_add";
/// `a * b`
pub(super) const MUL: &str = "__py_mul";
/// `a - b`
pub(super) const SUB: &str = "__py_sub";
/// `a / b`
pub(super) const DIV: &str = "__py_div";
/// `a // b`
pub(super) const FLOOR_DIV: &str = "__py_floordiv";
/// `a ** b`
pub(super) const POW: &str = "__py_pow";
/// `-a`
pub(super) const NEG: &str = "__py_neg";
/// `a < b <= c`, the operators as texts between the values.
pub(super) const CHAIN: &str = "__py_chain";
/// `(a, b)`
pub(super) const TUPLE: &str = "__py_tuple";
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
/// The same where Jinja2 works it out while it compiles the template.
pub(super) const CONSTANT_SLICE: &str = "__py_constant_slice";

fn unsupported(op: &str, a: &Value, b: &Value) -> Error {
    Error::new(
        ErrorKind::InvalidOperation,
        format!("unsupported operand types for {op}: {} and {}", a.kind(), b.kind()),
    )
}

/// A list or a tuple.
fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) && !is_range(value)
}

/// A list, or a tuple where `like` is one.
fn list_like(like: &Value, items: Vec<Value>) -> Value {
    if is_tuple(like) { Tuple::value(items) } else { Value::from(items) }
}

/// An integer, as Python takes it: a boolean is 0 or 1.
pub(super) fn integer(value: &Value) -> Option<i128> {
    match value.kind() {
        ValueKind::Bool => Some(i128::from(value.is_true())),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    }
}

pub(super) fn number(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        _ => None,
    }
}

/// An integer as a value: small where it fits, for minijinja compares those.
pub(super) fn int_value(x: i128) -> Value {
    i64::try_from(x).map_or_else(|_| Value::from(x), Value::from)
}

fn overflow(op: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("the result of {op} has more than 128 bits"))
}

pub(super) fn add(state: &State<'_, '_>, a: &Value, b: &Value) -> Result<Value, Error> {
    if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
        charge(state, x.len() + y.len())?;
        if a.is_safe() || b.is_safe() {
            // Markup takes texts escaped.
            let [x, y] = [(a, x), (b, y)].map(|(v, t)| if v.is_safe() { t.to_owned() } else { escaped(t) });
            charge(state, x.len() + y.len())?;
            return Ok(Value::from_safe_string(x + &y));
        }
        return Ok(Value::from([x, y].concat()));
    }
    if is_list(a) && is_list(b) && is_tuple(a) == is_tuple(b) {
        let (x, y) = (items(a)?, items(b)?);
        check_items(x.len() + y.len())?;
        let sum = list_like(a, [x, y].concat());
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
        hashable(a)?;
        return Ok(!b.get_item(a)?.is_undefined() || b.try_iter()?.any(|key| key == *a));
    }
    if is_list(b) || is_range(b) {
        for item in b.try_iter()? {
            if equal_counted(state, a, &item)? {
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
            let product = list_like(thing, std::iter::repeat_n(list, n).flatten().collect());
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

/// `a < b <= c`: all values are there already.
fn chain(state: &State<'_, '_>, parts: Rest<Value>) -> Result<bool, Error> {
    for three in parts.0.windows(3).step_by(2) {
        let [a, op, b] = three else { continue };
        let holds = match op.as_str().unwrap_or_default() {
            "==" => equal_counted(state, a, b)?,
            "!=" => !equal_counted(state, a, b)?,
            "in" => contains(state, a, b)?,
            "not in" => !contains(state, a, b)?,
            op => {
                charge_value(state, a)?;
                charge_value(state, b)?;
                let found = order(a, b)?;
                match op {
                    "<" => found.is_lt(),
                    "<=" => found.is_le(),
                    ">" => found.is_gt(),
                    _ => found.is_ge(),
                }
            }
        };
        if !holds {
            return Ok(false);
        }
    }
    Ok(true)
}

/// `-`, `/` and `//` of numbers; `-a` is `0 - a`.
fn arithmetic(op: &str, a: &Value, b: &Value) -> Result<Value, Error> {
    let by_zero = || Error::new(ErrorKind::InvalidOperation, "division by zero");
    if let (Some(x), Some(y)) = (integer(a), integer(b)) {
        return match op {
            "-" => x.checked_sub(y).map(int_value).ok_or_else(|| overflow(op)),
            _ if y == 0 => Err(by_zero()),
            "/" => Ok(Value::from(x as f64 / y as f64)),
            _ => {
                let quotient = x.checked_div(y).ok_or_else(|| overflow(op))?;
                Ok(int_value(if x % y != 0 && (x < 0) != (y < 0) { quotient - 1 } else { quotient }))
            }
        };
    }
    let (Some(x), Some(y)) = (number(a), number(b)) else { return Err(unsupported(op, a, b)) };
    match op {
        // -0.0 is the negative of 0.0, and 0 - 0.0 is not.
        "-" if integer(a) == Some(0) => Ok(Value::from(-y)),
        "-" => Ok(Value::from(x - y)),
        _ if y == 0.0 => Err(by_zero()),
        "/" => Ok(Value::from(x / y)),
        _ => {
            // As CPython: from the remainder, so that quotient and remainder agree.
            let mut rest = x % y;
            if rest != 0.0 && (rest < 0.0) != (y < 0.0) {
                rest += y;
            }
            let quotient = (x - rest) / y;
            if quotient == 0.0 {
                return Ok(Value::from(0f64.copysign(x / y)));
            }
            let floor = quotient.floor();
            Ok(Value::from(if quotient - floor > 0.5 { floor + 1.0 } else { floor }))
        }
    }
}

/// `a ** b`. A negative exponent makes a float.
fn power(a: &Value, b: &Value) -> Result<Value, Error> {
    let failed = |reason: &str| Error::new(ErrorKind::InvalidOperation, reason.to_owned());
    if let (Some(x), Some(y)) = (integer(a), integer(b))
        && y >= 0
    {
        let y = u32::try_from(y).map_err(|_| overflow("**"));
        return match x {
            0 | 1 => Ok(int_value(if matches!(y, Ok(0)) { 1 } else { x })),
            _ => x.checked_pow(y?).map(int_value).ok_or_else(|| overflow("**")),
        };
    }
    let (Some(x), Some(y)) = (number(a), number(b)) else { return Err(unsupported("**", a, b)) };
    if x == 0.0 && y < 0.0 {
        return Err(failed("0.0 cannot be raised to a negative power"));
    }
    let power = x.powf(y);
    if power.is_nan() && !x.is_nan() && !y.is_nan() {
        return Err(failed("a power that is no real number"));
    }
    if power.is_infinite() && x.is_finite() && y.is_finite() {
        return Err(failed("a power that is too large"));
    }
    Ok(Value::from(power))
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
                Ok(Value::from(match r {
                    0.0 => 0f64.copysign(y),
                    r if (r < 0.0) != (y < 0.0) => r + y,
                    r => r,
                }))
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

/// A slice of a constant: an undefined value where Python has no such slice, as for all subscripts of Jinja2.
fn constant_slice(
    state: &State<'_, '_>,
    thing: &Value,
    start: &Value,
    stop: &Value,
    step: &Value,
) -> Result<Value, Error> {
    let sliced = thing.as_str().is_some() || is_list(thing);
    if !sliced || [start, stop, step].iter().any(|bound| is_no_bound(bound)) {
        return Ok(Value::UNDEFINED);
    }
    slice(state, thing, start, stop, step)
}

fn is_no_bound(bound: &Value) -> bool {
    !bound.is_none() && integer(bound).is_none()
}

fn slice(state: &State<'_, '_>, thing: &Value, start: &Value, stop: &Value, step: &Value) -> Result<Value, Error> {
    if let Some(bound) = [start, stop, step].into_iter().find(|bound| is_no_bound(bound)) {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("slice indices must be integers or none, this is {}", bound.kind()),
        ));
    }
    let (start, stop, step) = (integer(start), integer(stop), integer(step).unwrap_or(1));
    if step == 0 && thing.kind() != ValueKind::Map {
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
        return Ok(list_like(thing, indices(list.len(), start, stop, step).map(|i| list[i].clone()).collect()));
    }
    if let Some(range) = thing.downcast_object_ref::<Range>() {
        let (first, end) = bounds(thing.len().unwrap_or(0), start, stop, step);
        return range.slice(first, end, step);
    }
    if thing.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, "an undefined value cannot be sliced"));
    }
    Err(Error::new(ErrorKind::InvalidOperation, format!("a value of type {} cannot be sliced", thing.kind())))
}

/// Python's `range(*slice(start, stop, step).indices(len))`.
fn indices(len: usize, start: Option<i128>, stop: Option<i128>, step: i128) -> impl Iterator<Item = usize> {
    let (mut at, end) = bounds(len, start, stop, step);
    std::iter::from_fn(move || {
        let here = at;
        if (step > 0 && here >= end) || (step < 0 && here <= end) {
            return None;
        }
        at = at.saturating_add(step);
        usize::try_from(here).ok()
    })
}

/// The first index, and the end.
fn bounds(len: usize, start: Option<i128>, stop: Option<i128>, step: i128) -> (i128, i128) {
    let len = len as i128;
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let place = |at: Option<i128>, default: i128| match at {
        None => default,
        Some(i) if i < 0 => (i + len).max(low),
        Some(i) => i.min(high),
    };
    if step > 0 { (place(start, low), place(stop, high)) } else { (place(start, high), place(stop, low)) }
}
