//! Equality and order of values as Python has them, and what follows from them: comparisons, sorting, tests.

use super::budget::{MAX_DEPTH, charge, charge_value, check_items, too_deep};
use super::collections::{attribute, failed, folded};
use super::ops::{integer, number};
use super::python::{Tuple, is_range, is_tuple};
use minijinja::value::{Kwargs, Rest, Value, ValueKind, from_args};
use minijinja::{Environment, Error, State};
use std::cmp::Ordering;

/// `a < b`
pub(super) const LT: &str = "__py_lt";
/// `a <= b`
pub(super) const LE: &str = "__py_le";
/// `a > b`
pub(super) const GT: &str = "__py_gt";
/// `a >= b`
pub(super) const GE: &str = "__py_ge";

pub(super) fn install(environment: &mut Environment<'_>) {
    type Holds = fn(Ordering) -> bool;
    let tests: [(&str, &[&str], Holds); 4] = [
        (LT, &["lt", "lessthan", "<"], Ordering::is_lt),
        (LE, &["le", "<="], Ordering::is_le),
        (GT, &["gt", "greaterthan", ">"], Ordering::is_gt),
        (GE, &["ge", ">="], Ordering::is_ge),
    ];
    for (function, names, holds) in tests {
        let compare = move |state: &State<'_, '_>, a: &Value, b: &Value| -> Result<bool, Error> {
            Ok(holds(compared(state, a, b)?))
        };
        environment.add_function(function, compare);
        for name in names {
            environment.add_test(*name, compare);
        }
    }
    for name in ["eq", "equalto", "=="] {
        environment.add_test(name, |state: &State<'_, '_>, a: &Value, b: &Value| equal_counted(state, a, b));
    }
    for name in ["ne", "!="] {
        environment.add_test(name, |state: &State<'_, '_>, a: &Value, b: &Value| {
            equal_counted(state, a, b).map(|equal| !equal)
        });
    }
    for (name, rest) in [("odd", 1), ("even", 0)] {
        environment.add_test(name, move |value: &Value| remainder(value, 2.0).map(|r| r == f64::from(rest)));
    }
    environment.add_test("divisibleby", |value: &Value, by: &Value| {
        let by =
            number(by).filter(|by| *by != 0.0).ok_or_else(|| failed("divisibleby: a number other than 0 is needed"))?;
        remainder(value, by).map(|r| r == 0.0)
    });
    environment.add_filter("sort", sort);
    environment.add_filter("unique", unique);
    environment.add_filter("groupby", group_by);
    for (name, wanted) in [("min", Ordering::Less), ("max", Ordering::Greater)] {
        environment.add_filter(name, move |state: &State<'_, '_>, value: Value, args: Rest<Value>| {
            extreme(state, &value, &args, wanted)
        });
    }
}

fn remainder(value: &Value, by: f64) -> Result<f64, Error> {
    let x = number(value).ok_or_else(|| failed(format!("a number is needed, this is {}", value.kind())))?;
    Ok(x.rem_euclid(by.abs()))
}

/// Python's name of a value's type.
fn type_name(value: &Value) -> &'static str {
    match value.kind() {
        ValueKind::Undefined => "Undefined",
        ValueKind::None => "NoneType",
        ValueKind::Bool => "bool",
        ValueKind::Number if value.is_integer() => "int",
        ValueKind::Number => "float",
        ValueKind::String => "str",
        ValueKind::Map => "dict",
        ValueKind::Seq | ValueKind::Iterable if is_tuple(value) => "tuple",
        ValueKind::Seq | ValueKind::Iterable if is_range(value) => "range",
        ValueKind::Seq | ValueKind::Iterable => "list",
        _ => "object",
    }
}

fn sequence(value: &Value) -> Option<Vec<Value>> {
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => Some(value.try_iter().ok()?.collect()),
        _ => None,
    }
}

/// `a == b`: True is 1 and False is 0; a list is no tuple.
pub(super) fn equal(a: &Value, b: &Value) -> bool {
    match (a.as_str(), b.as_str()) {
        (Some(x), Some(y)) => return x == y,
        (Some(_), None) | (None, Some(_)) => return false,
        (None, None) => {}
    }
    if let (Some(x), Some(y)) = (integer(a), integer(b)) {
        return x == y;
    }
    if let (Some(x), Some(y)) = (number(a), number(b)) {
        return x == y;
    }
    if let (Some(x), Some(y)) = (sequence(a), sequence(b)) {
        return type_name(a) == type_name(b) && x.len() == y.len() && x.iter().zip(&y).all(|(x, y)| equal(x, y));
    }
    if a.kind() == ValueKind::Map && b.kind() == ValueKind::Map {
        let same = |key: Value| match (a.get_item(&key), b.get_item(&key)) {
            (Ok(x), Ok(y)) => equal(&x, &y),
            _ => false,
        };
        return a.len() == b.len() && a.try_iter().is_ok_and(|mut keys| keys.all(same));
    }
    a == b
}

fn count_both(state: &State<'_, '_>, a: &Value, b: &Value) -> Result<(), Error> {
    match (a.as_str(), b.as_str()) {
        (Some(x), Some(y)) => charge(state, x.len().min(y.len())),
        _ => {
            charge_value(state, a)?;
            charge_value(state, b)
        }
    }
}

/// As [`equal`], counted.
pub(super) fn equal_counted(state: &State<'_, '_>, a: &Value, b: &Value) -> Result<bool, Error> {
    count_both(state, a, b)?;
    Ok(equal(a, b))
}

/// Which of two values comes first.
///
/// # Errors
/// Python has no order of such values.
pub(super) fn order(a: &Value, b: &Value) -> Result<Ordering, Error> {
    if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
        return Ok(x.cmp(y));
    }
    if let (Some(x), Some(y)) = (integer(a), integer(b)) {
        return Ok(x.cmp(&y));
    }
    if let (Some(x), Some(y)) = (number(a), number(b)) {
        return Ok(x.partial_cmp(&y).unwrap_or(Ordering::Equal));
    }
    let (one, other) = (type_name(a), type_name(b));
    if one == other
        && one != "range"
        && let (Some(x), Some(y)) = (sequence(a), sequence(b))
    {
        return match x.iter().zip(&y).find(|(x, y)| !equal(x, y)) {
            Some((x, y)) => order(x, y),
            None => Ok(x.len().cmp(&y.len())),
        };
    }
    Err(failed(format!("'<' not supported between instances of '{one}' and '{other}'")))
}

fn compared(state: &State<'_, '_>, a: &Value, b: &Value) -> Result<Ordering, Error> {
    count_both(state, a, b)?;
    order(a, b)
}

/// Sorts by keys, the first error kept.
fn sort_by_keys<K>(
    items: &mut [(K, Value)],
    reverse: bool,
    order: impl Fn(&K, &K) -> Result<Ordering, Error>,
) -> Result<(), Error> {
    let mut error = None;
    items.sort_by(|a, b| {
        let found = order(&a.0, &b.0).unwrap_or_else(|e| {
            error.get_or_insert(e);
            Ordering::Equal
        });
        if reverse { found.reverse() } else { found }
    });
    error.map_or(Ok(()), Err)
}

fn listed(state: &State<'_, '_>, value: &Value) -> Result<Vec<Value>, Error> {
    if let Some(text) = value.as_str() {
        check_items(text.len())?;
        return Ok(text.chars().map(|c| Value::from(c.to_string())).collect());
    }
    if value.is_none() {
        return Err(failed("None is not iterable"));
    }
    charge_value(state, value)?;
    Ok(value.try_iter()?.collect())
}

/// `sort(reverse=False, case_sensitive=False, attribute=None)`; several attributes are joined by commas.
fn sort(state: &State<'_, '_>, value: Value, args: Rest<Value>) -> Result<Value, Error> {
    let (reverse, case, path, options): (Option<Value>, Option<Value>, Option<Value>, Kwargs) = from_args(&args)?;
    let named = |name| options.get::<Option<Value>>(name);
    let reverse = reverse.or(named("reverse")?).is_some_and(|v| v.is_true());
    let case = case.or(named("case_sensitive")?).is_some_and(|v| v.is_true());
    let path = path.or(named("attribute")?);
    options.assert_all_used()?;
    let paths: Vec<Option<Value>> = match path.as_ref().and_then(Value::as_str) {
        Some(names) => names.split(',').map(|name| Some(Value::from(name))).collect(),
        None => vec![path],
    };
    let key = |item: Value| -> Result<(Vec<Value>, Value), Error> {
        let part = |path: &Option<Value>| Ok(folded(&attribute(&item, path.as_ref())?, case));
        Ok((paths.iter().map(part).collect::<Result<_, Error>>()?, item))
    };
    let mut items = listed(state, &value)?.into_iter().map(key).collect::<Result<Vec<_>, _>>()?;
    sort_by_keys(&mut items, reverse, |a, b| order(&Value::from(a.clone()), &Value::from(b.clone())))?;
    Ok(items.into_iter().map(|(_, item)| item).collect())
}

/// `unique(case_sensitive=False, attribute=None)`.
fn unique(state: &State<'_, '_>, value: Value, args: Rest<Value>) -> Result<Value, Error> {
    let (case, path, options): (Option<Value>, Option<Value>, Kwargs) = from_args(&args)?;
    let case = case.or(options.get("case_sensitive")?).is_some_and(|v: Value| v.is_true());
    let path: Option<Value> = path.or(options.get("attribute")?);
    options.assert_all_used()?;
    let (mut seen, mut out) = (std::collections::HashSet::new(), Vec::new());
    for item in listed(state, &value)? {
        let key = folded(&attribute(&item, path.as_ref())?, case);
        hashable(&key)?;
        // 1, 1.0 and True are one key.
        let key = match number(&key) {
            Some(x) => format!("n{x}"),
            None => format!("{} {}", type_name(&key), super::python::repr_of(&key)?),
        };
        if seen.insert(key) {
            out.push(item);
        }
    }
    Ok(Value::from(out))
}

/// Checks that a value can be a key.
///
/// # Errors
/// It is a list or a dictionary, or a tuple of such.
pub(super) fn hashable(value: &Value) -> Result<(), Error> {
    match type_name(value) {
        kind @ ("list" | "dict") => Err(failed(format!("unhashable type: '{kind}'"))),
        "tuple" => value.try_iter()?.try_for_each(|item| hashable(&item)),
        _ => Ok(()),
    }
}

/// The value with its mappings in the order of their keys, as `pprint` writes them; those without an order stay as they are.
pub(super) fn by_keys(value: &Value, depth: usize) -> Result<Value, Error> {
    if depth > MAX_DEPTH {
        return Err(too_deep());
    }
    match value.kind() {
        ValueKind::Map => {
            let mut entries: Vec<(Value, Value)> = Vec::new();
            for key in value.try_iter()? {
                entries.push((key.clone(), by_keys(&value.get_item(&key)?, depth + 1)?));
            }
            let ordered = entries.iter().all(|(key, _)| order(key, &entries[0].0).is_ok());
            if ordered {
                entries.sort_by(|(a, _), (b, _)| order(a, b).unwrap_or(Ordering::Equal));
            }
            Ok(Value::from_iter(entries))
        }
        ValueKind::Seq if !is_range(value) => {
            let items = value.try_iter()?.map(|item| by_keys(&item, depth + 1)).collect::<Result<Vec<_>, Error>>()?;
            Ok(if is_tuple(value) { Tuple::value(items) } else { Value::from(items) })
        }
        _ => Ok(value.clone()),
    }
}

/// `groupby(attribute, default=None, case_sensitive=False)`: tuples of the attribute's value and the items.
fn group_by(state: &State<'_, '_>, value: Value, args: Rest<Value>) -> Result<Value, Error> {
    let (path, default, case, options): (Option<Value>, Option<Value>, Option<Value>, Kwargs) = from_args(&args)?;
    let path: Option<Value> = path.or(options.get("attribute")?);
    let path = path.ok_or_else(|| failed("groupby: an attribute is needed"))?;
    let default: Option<Value> = default.or(options.get("default")?).filter(|v: &Value| !v.is_none());
    let case = case.or(options.get("case_sensitive")?).is_some_and(|v: Value| v.is_true());
    options.assert_all_used()?;
    let own = |item: &Value| -> Result<Value, Error> {
        let found = attribute(item, Some(&path))?;
        Ok(if found.is_undefined() { default.clone().unwrap_or(found) } else { found })
    };
    let mut items = Vec::new();
    for item in listed(state, &value)? {
        items.push((folded(&own(&item)?, case), item));
    }
    sort_by_keys(&mut items, false, order)?;
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for (key, item) in items {
        match groups.last_mut() {
            Some((last, list)) if equal(last, &key) => list.push(item),
            _ => groups.push((key, vec![item])),
        }
    }
    let group = |(_, list): (Value, Vec<Value>)| {
        let key = own(list.first().unwrap_or(&Value::UNDEFINED))?;
        Ok(Tuple::group(key, Value::from(list)))
    };
    Ok(Value::from(groups.into_iter().map(group).collect::<Result<Vec<_>, Error>>()?))
}

/// `min` and `max` with `case_sensitive=False, attribute=None`; the first of equals.
fn extreme(state: &State<'_, '_>, value: &Value, args: &[Value], wanted: Ordering) -> Result<Value, Error> {
    let (case, path, options): (Option<Value>, Option<Value>, Kwargs) = from_args(args)?;
    let case = case.or(options.get("case_sensitive")?).is_some_and(|v: Value| v.is_true());
    let path: Option<Value> = path.or(options.get("attribute")?);
    options.assert_all_used()?;
    let mut best: Option<(Value, Value)> = None;
    for item in listed(state, value)? {
        let key = folded(&attribute(&item, path.as_ref())?, case);
        let better = match &best {
            None => true,
            Some((than, _)) => order(&key, than)? == wanted,
        };
        if better {
            best = Some((key, item));
        }
    }
    Ok(best.map_or(Value::UNDEFINED, |(_, item)| item))
}
