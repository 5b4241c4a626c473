//! Values between tags: texts as they stand, or JSON, as the function's schema has it.

use serde_json::Value;

/// Which values a schema allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Allowed {
    pub texts: bool,
    pub others: bool,
}

impl Allowed {
    const ALL: Self = Self { texts: true, others: true };

    fn of_value(value: &Value) -> Self {
        Self { texts: value.is_string(), others: !value.is_string() }
    }

    fn or(self, other: Self) -> Self {
        Self { texts: self.texts || other.texts, others: self.others || other.others }
    }

    /// What `schema`, a part of `root`, allows.
    pub(super) fn by(schema: &Value, root: &Value) -> Self {
        Self::at(schema, root, 0)
    }

    fn at(schema: &Value, root: &Value, depth: usize) -> Self {
        // References may go round in circles.
        if depth > 16 {
            return Self::ALL;
        }
        let any = |list: &Vec<Value>, of: &dyn Fn(&Value) -> Self| list.iter().map(of).reduce(Self::or);
        let of_type = |word: &Value| Self { texts: word == "string", others: word != "string" };
        if let Some(target) = schema["$ref"].as_str().and_then(|r| root.pointer(r.strip_prefix('#')?)) {
            return Self::at(target, root, depth + 1);
        }
        if let Some(value) = schema.get("const") {
            return Self::of_value(value);
        }
        let listed = schema["enum"].as_array().and_then(|list| any(list, &Self::of_value));
        let typed = match &schema["type"] {
            Value::Array(list) => any(list, &of_type),
            Value::Null => None,
            one => Some(of_type(one)),
        };
        let united = ["anyOf", "oneOf", "allOf"].iter().find_map(|k| schema[*k].as_array());
        let united = united.and_then(|list| any(list, &|s| Self::at(s, root, depth + 1)));
        listed.or(typed).or(united).unwrap_or(Self::ALL)
    }
}

/// The value that a text between tags stands for.
pub(super) fn value_of(text: &str, allowed: Allowed) -> Value {
    // Templates put the value on lines of its own.
    let inner = text.strip_prefix('\n').unwrap_or(text);
    let inner = inner.strip_suffix('\n').unwrap_or(inner);
    let as_text = || Value::String(inner.to_owned());
    let python = |word: &str| match word {
        "True" => Some(Value::Bool(true)),
        "False" => Some(Value::Bool(false)),
        "None" => Some(Value::Null),
        _ => None,
    };
    let json = || {
        let word = inner.trim();
        serde_json::from_str(word).ok().or_else(|| python(word))
    };
    match allowed {
        Allowed { texts: true, others: false } => as_text(),
        // A text that reads as JSON and may be one stays a text, unless it is no text at all.
        Allowed { texts: true, others: true } => json().unwrap_or_else(as_text),
        Allowed { texts: false, .. } => json().unwrap_or_else(as_text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn schemas_tell_texts_from_other_values() {
        let root = json!({"$defs": {"Unit": {"enum": ["C", "F"]}, "Loop": {"$ref": "#/$defs/Loop"}}});
        let allowed = |schema: Value| {
            let found = Allowed::by(&schema, &root);
            (found.texts, found.others)
        };
        assert_eq!(allowed(json!({"type": "string"})), (true, false));
        assert_eq!(allowed(json!({"type": ["integer", "null"]})), (false, true));
        assert_eq!(allowed(json!({"anyOf": [{"type": "string"}, {"type": "null"}]})), (true, true));
        assert_eq!(allowed(json!({"$ref": "#/$defs/Unit"})), (true, false));
        assert_eq!(allowed(json!({"const": 3})), (false, true));
        for unknown in [json!({}), json!({"$ref": "#/$defs/Loop"}), json!({"$ref": "#/none"}), json!(true)] {
            assert_eq!(allowed(unknown.clone()), (true, true), "{unknown}");
        }
    }

    #[test]
    fn values_are_read_as_their_schema_has_them() {
        let text = Allowed { texts: true, others: false };
        let other = Allowed { texts: false, others: true };
        assert_eq!(value_of("\n5\n", text), json!("5"));
        assert_eq!(value_of("\n\na < b\n", text), json!("\na < b"));
        assert_eq!(value_of("\n5\n", other), json!(5));
        assert_eq!(value_of("True", other), json!(true));
        assert_eq!(value_of("[1, {\"a\": null}]", other), json!([1, {"a": null}]));
        assert_eq!(value_of("not JSON", other), json!("not JSON"));
        assert_eq!(value_of("Oslo", Allowed::ALL), json!("Oslo"));
        assert_eq!(value_of("null", Allowed::ALL), Value::Null);
    }
}
