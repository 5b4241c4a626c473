//! Filters of lists and dictionaries with Jinja2's arguments, and what a loop goes over.

use super::budget::{charge, charge_value, check_items};
use super::ops::add;
use super::order::{equal, order};
use super::python::Tuple;
use minijinja::value::{Kwargs, Rest, Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, filters};
use std::cmp::Ordering;

pub(super) fn install(environment: &mut Environment<'_>) {
    // The iterator of a text does not know its last item.
    environment.add_filter("__each", |state: &State<'_, '_>, value: Value| -> Result<Value, Error> {
        match value.as_str() {
            Some(text) => {
                check_items(text.len())?;
                charge(state, text.len())?;
                Ok(Value::from(text.chars().map(|c| Value::from(c.to_string())).collect::<Vec<_>>()))
            }
            None if value.is_none() => Err(failed("None is not iterable")),
            None => Ok(value),
        }
    });
    // Python unpacks texts too.
    environment.add_filter("__parts", |state: &State<'_, '_>, value: Value| -> Result<Value, Error> {
        charge_value(state, &value)?;
        let parts = |item: Value| match item.as_str() {
            Some(text) => text.chars().map(|c| Value::from(c.to_string())).collect(),
            None => item,
        };
        Ok(value.try_iter()?.map(parts).collect())
    });
    environment.add_filter("last", |value: Value| match value.kind() {
        ValueKind::Map => Ok(value.try_iter()?.last().unwrap_or(Value::UNDEFINED)),
        ValueKind::String => {
            let last = value.as_str().and_then(|text| text.chars().next_back());
            Ok(last.map_or(Value::UNDEFINED, |c| Value::from(c.to_string())))
        }
        ValueKind::Undefined => Ok(value),
        _ => filters::last(value),
    });
    environment.add_filter("first", |value: Value| match value.is_undefined() {
        true => Ok(value),
        false => filters::first(&value),
    });
    environment.add_filter("items", |value: Value| -> Result<Value, Error> {
        match value.kind() {
            ValueKind::Map => Ok(Value::from(pairs(&value)?.into_iter().map(tuple).collect::<Vec<_>>())),
            _ if value.is_undefined() => Ok(Value::from(Vec::<Value>::new())),
            other => Err(failed(format!("items: a mapping is needed, this is {other}"))),
        }
    });
    environment.add_filter("reverse", |value: Value| match value.kind() {
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            keys.reverse();
            Ok(Value::from(keys))
        }
        _ => filters::reverse(&value),
    });
    environment.add_filter("dictsort", dict_sort);
    environment.add_filter("sum", sum);
}

pub(super) fn failed(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

fn pairs(map: &Value) -> Result<Vec<[Value; 2]>, Error> {
    map.try_iter()?.map(|key| Ok([key.clone(), map.get_item(&key)?])).collect()
}

fn tuple(pair: [Value; 2]) -> Value {
    Tuple::value(pair.to_vec())
}

/// Case does not count, unless it is to.
pub(super) fn folded(value: &Value, case_sensitive: bool) -> Value {
    match value.as_str().filter(|_| !case_sensitive) {
        Some(text) => Value::from(text.to_lowercase()),
        None => value.clone(),
    }
}

/// An attribute, also of attributes: `a.b`; or an item's number.
pub(super) fn attribute(item: &Value, path: Option<&Value>) -> Result<Value, Error> {
    let Some(path) = path.filter(|path| !path.is_none()) else { return Ok(item.clone()) };
    match path.as_str() {
        Some(names) => names.split('.').try_fold(item.clone(), |value, name| match name.parse::<usize>() {
            Ok(place) => value.get_item_by_index(place),
            Err(_) => value.get_attr(name),
        }),
        None => item.get_item(path),
    }
}

/// `dictsort(case_sensitive=False, by='key', reverse=False)`.
fn dict_sort(value: &Value, args: Rest<Value>) -> Result<Value, Error> {
    let (case, by, reverse, options): (Option<bool>, Option<String>, Option<bool>, Kwargs) = from_args(&args)?;
    let case = case.or(options.get("case_sensitive")?).unwrap_or(false);
    let by = by.or(options.get("by")?).unwrap_or_else(|| "key".into());
    let reverse = reverse.or(options.get("reverse")?).unwrap_or(false);
    options.assert_all_used()?;
    if value.kind() != ValueKind::Map {
        return Err(failed(format!("dictsort: a mapping is needed, this is {}", value.kind())));
    }
    let side = match by.as_str() {
        "key" => 0,
        "value" => 1,
        other => return Err(failed(format!("dictsort: by must be key or value, not {other}"))),
    };
    let mut list = pairs(value)?;
    let mut error = None;
    list.sort_by(|a, b| {
        let found = order(&folded(&a[side], case), &folded(&b[side], case)).unwrap_or_else(|e| {
            error.get_or_insert(e);
            Ordering::Equal
        });
        if reverse { found.reverse() } else { found }
    });
    if let Some(error) = error {
        return Err(error);
    }
    Ok(Value::from(list.into_iter().map(tuple).collect::<Vec<_>>()))
}

/// `sum(attribute=None, start=0)` of numbers.
fn sum(state: &State<'_, '_>, value: Value, args: Rest<Value>) -> Result<Value, Error> {
    let (path, start, options): (Option<Value>, Option<Value>, Kwargs) = from_args(&args)?;
    let path = path.or(options.get("attribute")?);
    let start = start.or(options.get("start")?);
    options.assert_all_used()?;
    let mut total = start.unwrap_or_else(|| Value::from(0));
    for item in value.try_iter()? {
        total = add(state, &total, &attribute(&item, path.as_ref())?)?;
    }
    Ok(total)
}

/// `dict(mapping_or_pairs, name=value, ...)`.
pub(super) fn dict(state: &State<'_, '_>, given: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    let mut entries: Vec<(Value, Value)> = Vec::new();
    let mut set = |key: Value, value: Value| -> Result<(), Error> {
        super::order::hashable(&key)?;
        // Each key is sought among those before it.
        super::budget::spend(state, entries.len())?;
        match entries.iter_mut().find(|(known, _)| equal(known, &key)) {
            Some(entry) => entry.1 = value,
            None => entries.push((key, value)),
        }
        check_items(entries.len())
    };
    if let Some(given) = given {
        charge_value(state, &given)?;
        let map = given.kind() == ValueKind::Map;
        for item in given.try_iter()? {
            if map {
                set(item.clone(), given.get_item(&item)?)?;
                continue;
            }
            let pair: Vec<Value> = match item.as_str() {
                Some(text) => text.chars().map(|c| Value::from(c.to_string())).collect(),
                None => item.try_iter()?.collect(),
            };
            let [key, value] = &pair[..] else {
                return Err(failed(format!("dict: an item of length {}; 2 is required", pair.len())));
            };
            set(key.clone(), value.clone())?;
        }
    }
    let options = Value::from(options);
    for key in options.try_iter()? {
        set(key.clone(), options.get_item(&key)?)?;
    }
    Ok(Value::from_iter(entries))
}
