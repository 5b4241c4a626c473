//! Several schemas that hold at once (`allOf`, and what stands beside `anyOf` and `$ref`) as one.

use super::{SchemaError, Writer, invalid, is_annotation, unsupported};
use serde_json::{Map, Value, json};

/// The deepest nesting of merged schemas: one that refers to itself in this way never ends.
const MAX_DEPTH: usize = 24;

/// The most parts that are copied for a grammar.
const MAX_PARTS: usize = 1000;

impl Writer<'_> {
    /// The name of the rule for texts that are valid under all of these.
    pub(super) fn merged(&mut self, parts: &[&Value], at: &str) -> Result<String, SchemaError> {
        self.merged += 1;
        if self.merged > MAX_DEPTH {
            return invalid(at, "references and alternatives lead to themselves, or are nested too deep");
        }
        let mut flat = Vec::new();
        for part in parts {
            self.flatten(part, at, 0, &mut flat)?;
        }
        let mut whole = Map::new();
        for part in flat {
            whole = both(whole, part, at)?;
        }
        let name = self.any(&Value::Object(whole), at)?;
        self.merged -= 1;
        Ok(name)
    }

    /// The schemas that a schema says hold, without references and `allOf`.
    fn flatten(
        &mut self,
        schema: &Value,
        at: &str,
        depth: usize,
        flat: &mut Vec<Map<String, Value>>,
    ) -> Result<(), SchemaError> {
        self.copied += 1;
        if self.copied > MAX_PARTS {
            return invalid(at, format!("more than {MAX_PARTS} parts must be merged"));
        }
        if depth > MAX_DEPTH {
            return invalid(at, "references lead to themselves, or are nested too deep");
        }
        let map = match schema {
            Value::Bool(true) => return Ok(()),
            Value::Object(map) => map,
            Value::Bool(false) => return unsupported(at, "a schema that allows nothing (false)"),
            _ => return invalid(at, "a schema must be an object"),
        };
        let mut rest = map.clone();
        rest.retain(|key, _| !is_annotation(key) && key != "$ref" && key != "allOf");
        if !rest.is_empty() {
            flat.push(rest);
        }
        if let Some(reference) = map.get("$ref") {
            let Some(reference) = reference.as_str() else { return invalid(at, "$ref must be a string") };
            let target = reference.strip_prefix('#').and_then(|pointer| self.schema.pointer(pointer));
            let Some(target) = target else {
                return invalid(at, format!("$ref {reference:?} is not in the schema (only #/... is looked up)"));
            };
            self.flatten(target, reference, depth + 1, flat)?;
        }
        for part in map.get("allOf").and_then(Value::as_array).into_iter().flatten() {
            self.flatten(part, at, depth + 1, flat)?;
        }
        Ok(())
    }
}

/// Two schemas as one.
fn both(mut a: Map<String, Value>, b: Map<String, Value>, at: &str) -> Result<Map<String, Value>, SchemaError> {
    // What one of them forbids the other may describe.
    let forbids = |x: &Map<String, Value>| x.get("additionalProperties").is_some_and(|v| v != &Value::Bool(true));
    let names = |x: &Map<String, Value>| -> Vec<String> {
        let map = x.get("properties").and_then(Value::as_object);
        map.map(|m| m.keys().cloned().collect()).unwrap_or_default()
    };
    for (one, other) in [(&a, &b), (&b, &a)] {
        let known = names(one);
        if forbids(one) && names(other).iter().any(|name| !known.contains(name)) {
            return unsupported(at, "additionalProperties beside properties of another part");
        }
    }
    for (key, new) in b {
        let Some(old) = a.shift_remove(&key) else {
            a.insert(key, new);
            continue;
        };
        let value = if old == new { old } else { one_value(&key, old, new, at)? };
        a.insert(key, value);
    }
    Ok(a)
}

/// One keyword of two schemas.
fn one_value(key: &str, a: Value, b: Value, at: &str) -> Result<Value, SchemaError> {
    let conflict = || unsupported(at, format!("two different values of {key}"));
    let number = |v: &Value| v.as_f64();
    match key {
        "required" => match (a, b) {
            (Value::Array(mut a), Value::Array(b)) => {
                let new: Vec<Value> = b.into_iter().filter(|v| !a.contains(v)).collect();
                a.extend(new);
                Ok(Value::Array(a))
            }
            _ => conflict(),
        },
        "properties" => match (a, b) {
            (Value::Object(mut a), Value::Object(b)) => {
                for (name, schema) in b {
                    let schema = match a.shift_remove(&name) {
                        Some(old) if old != schema => json!({"allOf": [old, schema]}),
                        _ => schema,
                    };
                    a.insert(name, schema);
                }
                Ok(Value::Object(a))
            }
            _ => conflict(),
        },
        "type" => {
            let kinds = |v: &Value| match v {
                Value::Array(list) => list.clone(),
                one => vec![one.clone()],
            };
            let (a, b) = (kinds(&a), kinds(&b));
            let within =
                |x: &Value, list: &[Value]| list.contains(x) || (x == "integer" && list.contains(&json!("number")));
            let mut left: Vec<Value> = a.iter().filter(|x| within(x, &b)).cloned().collect();
            left.extend(b.iter().filter(|x| within(x, &a) && !a.contains(x)).cloned());
            match left.as_slice() {
                [] => invalid(at, "no type is left of those that must all hold"),
                [one] => Ok(one.clone()),
                _ => Ok(Value::Array(left)),
            }
        }
        "enum" => match (a, b) {
            (Value::Array(a), Value::Array(b)) => Ok(a.into_iter().filter(|v| b.contains(v)).collect()),
            _ => conflict(),
        },
        "minimum" | "exclusiveMinimum" | "minLength" | "minItems" | "minProperties" => match (number(&a), number(&b)) {
            (Some(x), Some(y)) => Ok(if x >= y { a } else { b }),
            _ => conflict(),
        },
        "maximum" | "exclusiveMaximum" | "maxLength" | "maxItems" | "maxProperties" => match (number(&a), number(&b)) {
            (Some(x), Some(y)) => Ok(if x <= y { a } else { b }),
            _ => conflict(),
        },
        "additionalProperties" => match (a, b) {
            (Value::Bool(true), other) | (other, Value::Bool(true)) => Ok(other),
            (Value::Bool(false), _) | (_, Value::Bool(false)) => Ok(Value::Bool(false)),
            (a, b) => Ok(json!({"allOf": [a, b]})),
        },
        "items" => Ok(json!({"allOf": [a, b]})),
        _ => conflict(),
    }
}

/// True for a value of a JSON schema's `type`, which is a name or a list of names.
pub(super) fn is_of_kind(value: &Value, kind: &Value) -> bool {
    match kind {
        Value::Array(kinds) => kinds.iter().any(|kind| is_of_kind(value, kind)),
        kind => match kind.as_str() {
            Some("string") => value.is_string(),
            Some("integer") => value.as_f64().is_some_and(|x| x.fract() == 0.0),
            Some("number") => value.is_number(),
            Some("boolean") => value.is_boolean(),
            Some("null") => value.is_null(),
            Some("array") => value.is_array(),
            Some("object") => value.is_object(),
            _ => true,
        },
    }
}
