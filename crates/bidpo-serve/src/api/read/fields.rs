//! The fields of a JSON object, taken out one by one: what is left over in the end was not understood.

use crate::api::read::error::ApiError;
use crate::api::read::notes::Notes;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// A JSON object on its way through the checks.
#[derive(Debug)]
pub(in crate::api) struct Fields {
    map: Map<String, Value>,
    /// Path of the object in the body: empty, or `messages[0].`.
    at: String,
}

impl Fields {
    /// # Errors
    /// For anything but an object.
    pub(in crate::api) fn new(value: Value, at: impl Into<String>) -> Result<Self, ApiError> {
        let at = at.into();
        match value {
            Value::Object(map) => Ok(Self { map, at: if at.is_empty() { at } else { at + "." } }),
            _ if at.is_empty() => Err(ApiError::body("the body must be a JSON object")),
            other => Err(ApiError::invalid(&at, format!("{at} must be an object, not {}", kind(&other)))),
        }
    }

    /// The name of a field, with where it stands.
    pub(in crate::api) fn name(&self, key: &str) -> String {
        format!("{}{key}", self.at)
    }

    /// True if the field is there, null included.
    pub(in crate::api) fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// True if the field is there, and not null.
    pub(in crate::api) fn is_set(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(|v| !v.is_null())
    }

    /// True if the field is an empty list.
    pub(in crate::api) fn is_empty_list(&self, key: &str) -> bool {
        self.map.get(key).and_then(Value::as_array).is_some_and(Vec::is_empty)
    }

    /// All fields that are left.
    pub(in crate::api) fn rest(self) -> Map<String, Value> {
        self.map
    }

    /// Puts a field back.
    pub(in crate::api) fn put(&mut self, key: &str, value: Value) {
        self.map.insert(key.to_owned(), value);
    }

    /// Takes a field; null is as good as none.
    pub(in crate::api) fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|v| !v.is_null())
    }

    /// Takes a field where it is of a certain value.
    pub(in crate::api) fn take_if(&mut self, key: &str, is: impl Fn(&Value) -> bool) -> Option<Value> {
        self.map.get(key).is_some_and(is).then(|| self.take(key)).flatten()
    }

    /// An error about one field.
    pub(in crate::api) fn wrong(&self, key: &str, what: &str) -> ApiError {
        let name = self.name(key);
        ApiError::invalid(&name, format!("{name} {what}"))
    }

    /// A number in a range.
    pub(in crate::api) fn number(&mut self, key: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.take(key).filter(|v| !is_blank(v)) else { return Ok(None) };
        let number = as_number(&value).filter(|x| range.contains(x));
        let (low, high) = range.into_inner();
        number
            .map(Some)
            .ok_or_else(|| self.wrong(key, &format!("must be a number from {low} to {high}, not {}", short(&value))))
    }

    /// A whole number in a range.
    pub(in crate::api) fn integer(&mut self, key: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(key).filter(|v| !is_blank(v)) else { return Ok(None) };
        let number = whole(&value).filter(|x| range.contains(x));
        let (low, high) = range.into_inner();
        let what = || format!("must be a whole number from {low} to {high}, not {}", short(&value));
        number.map(Some).ok_or_else(|| self.wrong(key, &what()))
    }

    /// True or false.
    pub(in crate::api) fn boolean(&mut self, key: &str) -> Result<Option<bool>, ApiError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let found = match value.as_str() {
            Some("true") => Some(true),
            Some("false") => Some(false),
            _ => value.as_bool(),
        };
        found.map(Some).ok_or_else(|| self.wrong(key, &format!("must be true or false, not {}", short(&value))))
    }

    /// A text.
    pub(in crate::api) fn text(&mut self, key: &str) -> Result<Option<String>, ApiError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, &format!("must be a string, not {}", kind(&other)))),
        }
    }

    /// A list.
    pub(in crate::api) fn list(&mut self, key: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(self.wrong(key, &format!("must be a list, not {}", kind(&other)))),
        }
    }

    /// Ends the reading of an object in which unknown fields may be ignored.
    ///
    /// # Errors
    /// Fields that are left, as [`Notes::unknown`] decides.
    pub(in crate::api) fn done(self, notes: &mut Notes) -> Result<(), ApiError> {
        self.map.iter().filter(|(_, v)| !v.is_null()).try_for_each(|(key, _)| notes.unknown(&self.at, key))
    }

    /// Ends the reading of an object whose fields are bidpo's own.
    ///
    /// # Errors
    /// Fields that are left.
    pub(in crate::api) fn none_left(self) -> Result<(), ApiError> {
        match self.map.iter().find(|(_, v)| !v.is_null()) {
            Some((key, _)) => {
                let name = self.name(key);
                Err(ApiError::unknown(&name, format!("unknown parameter {name}")))
            }
            None => Ok(()),
        }
    }
}

/// A whole number, also where a client writes it as 100.0 or as text; beyond 64 bits the nearest that fits.
fn whole(value: &Value) -> Option<i64> {
    let float = || as_number(value).filter(|x| x.fract() == 0.0).map(|x| x as i64);
    value.as_i64().or_else(|| value.as_str()?.trim().parse().ok()).or_else(float)
}

/// A number, also where a form of a client sends it as text.
fn as_number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.trim().parse().ok()).filter(|x| x.is_finite())
}

/// An empty field of a form.
fn is_blank(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.trim().is_empty())
}

/// The JSON type of a value, for messages.
pub(in crate::api) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A value for a message: itself where it is short.
pub(in crate::api) fn short(value: &Value) -> String {
    match value {
        Value::Array(_) | Value::Object(_) => kind(value).into(),
        Value::String(text) if text.chars().count() > 40 => {
            format!("{:?}...", text.chars().take(40).collect::<String>())
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(value: Value) -> Fields {
        Fields::new(value, "").unwrap()
    }

    #[test]
    fn values_are_checked_and_named() {
        let mut f = fields(json!({"t": 3.5, "n": 2, "x": null, "b": true, "s": "a"}));
        assert_eq!(f.number("n", 0.0..=2.0), Ok(Some(2.0)));
        assert_eq!(f.number("n", 0.0..=2.0), Ok(None));
        assert_eq!((f.text("s"), f.boolean("b")), (Ok(Some("a".into())), Ok(Some(true))));
        let error = f.number("t", 0.0..=2.0).unwrap_err();
        assert_eq!(
            (error.message.as_str(), error.param.as_deref()),
            ("t must be a number from 0 to 2, not 3.5", Some("t"))
        );
        assert_eq!(f.none_left(), Ok(()));
        let error = fields(json!({"n": 1.5})).integer("n", 1..=4).unwrap_err();
        assert_eq!(error.message, "n must be a whole number from 1 to 4, not 1.5");
        assert_eq!(fields(json!({"n": 3.0})).integer("n", 1..=4), Ok(Some(3)));
        assert!(fields(json!({"n": 1e300})).integer("n", 1..=4).is_err());
        // As forms send them.
        let mut f = fields(json!({"n": "3", "t": " 0.7 ", "b": "false", "none": "", "big": "9007199254740993"}));
        assert_eq!((f.integer("n", 1..=4), f.number("t", 0.0..=2.0)), (Ok(Some(3)), Ok(Some(0.7))));
        assert_eq!((f.boolean("b"), f.number("none", 0.0..=2.0)), (Ok(Some(false)), Ok(None)));
        assert_eq!(f.integer("big", i64::MIN..=i64::MAX), Ok(Some(9_007_199_254_740_993)));
        for value in [json!("x"), json!("1.5"), json!("inf"), json!("NaN"), json!("0x1"), json!([3])] {
            assert!(fields(json!({"n": value})).integer("n", 1..=4).is_err(), "{value}");
        }
    }

    #[test]
    fn what_is_left_is_an_error() {
        let mut f = Fields::new(json!({"role": "user", "colour": 1}), "messages[2]").unwrap();
        f.take("role");
        let error = f.none_left().unwrap_err();
        assert_eq!(
            (error.message.as_str(), error.code),
            ("unknown parameter messages[2].colour", Some("unknown_parameter"))
        );
        assert!(Fields::new(json!([]), "").is_err());
        assert_eq!(Fields::new(json!(1), "a").unwrap_err().message, "a must be an object, not a number");
    }
}
