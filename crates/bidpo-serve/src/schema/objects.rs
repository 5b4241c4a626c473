//! Objects of JSON schemas.

use super::{Keywords, SchemaError, Writer, invalid, list, literal, unsupported};
use serde_json::{Map, Value};

/// Keywords of objects.
pub(super) const KEYWORDS: [&str; 7] = [
    "properties",
    "required",
    "additionalProperties",
    "minProperties",
    "maxProperties",
    "patternProperties",
    "propertyNames",
];

impl Writer<'_> {
    pub(super) fn object(&mut self, mut keys: Keywords<'_>) -> Result<String, SchemaError> {
        let at = keys.at;
        let mut object = |key: &'static str| match keys.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map).filter(|m| !m.is_empty())),
            Some(_) => invalid(at, format!("{key} must be an object")),
        };
        let (properties, patterns) = (object("properties")?, object("patternProperties")?);
        let required: Vec<&str> = match keys.get("required") {
            None => Vec::new(),
            Some(list) => list.as_array().into_iter().flatten().filter_map(Value::as_str).collect(),
        };
        let (more, names) = (keys.get("additionalProperties"), keys.get("propertyNames"));
        let (least, most) = (keys.count("minProperties")?, keys.count("maxProperties")?);
        keys.done()?;
        // Keys that must be there and are not described are like all others.
        let mut named = properties.cloned().unwrap_or_default();
        for name in required.iter().filter(|name| !properties.is_some_and(|p| p.contains_key(**name))) {
            if more == Some(&Value::Bool(false)) {
                return unsupported(at, format!("required {name:?} without its property"));
            }
            named.insert((*name).to_owned(), more.cloned().unwrap_or(Value::Bool(true)));
        }
        if named.is_empty() {
            return self.free_object(at, patterns, names, more, least.unwrap_or(0), most);
        }
        if patterns.is_some() {
            return unsupported(at, "patternProperties beside other keys");
        }
        if let Some(names) = names.filter(|names| !allows(names, &named)) {
            return unsupported(at, format!("propertyNames {names} beside other keys"));
        }
        if least.is_some_and(|l| l > required.len() as u64) {
            return unsupported(at, "minProperties beside properties");
        }
        if most.is_some_and(|m| m < named.len() as u64) {
            return unsupported(at, "maxProperties beside properties");
        }
        let mut members = Vec::new();
        for (name, schema) in &named {
            let value = self.any(schema, &format!("{at}/properties/{name}"))?;
            let key = literal(&Value::String(name.clone()).to_string());
            let rule = self.rule(&format!("{key} space \":\" space {value} space"))?;
            members.push((rule, required.contains(&name.as_str())));
        }
        // From the end: what may follow a member that was written, and what may follow none.
        let (mut after, mut first) = (String::new(), String::new());
        for (member, needed) in members.iter().rev() {
            let now_first = match (needed, first.is_empty()) {
                (true, _) => format!("{member} {after}"),
                (false, true) => format!("({member} {after})?"),
                (false, false) => format!("{member} {after} | {first}"),
            };
            let next = format!("\",\" space {member} {after}");
            let body = match (needed, after.is_empty()) {
                (true, _) => next,
                (false, true) => format!("({next})?"),
                (false, false) => format!("{next} | {after}"),
            };
            after = self.rule(body.trim_end())?;
            first = self.rule(now_first.trim_end())?;
        }
        self.rule(&format!("\"{{\" space {first} \"}}\""))
    }

    /// An object whose keys are free.
    fn free_object(
        &mut self,
        at: &str,
        patterns: Option<&Map<String, Value>>,
        names: Option<&Value>,
        more: Option<&Value>,
        least: u64,
        most: Option<u64>,
    ) -> Result<String, SchemaError> {
        let (key, value) = match (patterns, names, more) {
            (Some(_), Some(_), _) => return unsupported(at, "patternProperties beside propertyNames"),
            (Some(patterns), None, _) => {
                let mut patterns = patterns.iter();
                let (Some((pattern, schema)), None) = (patterns.next(), patterns.next()) else {
                    return unsupported(at, "patternProperties of more than one pattern");
                };
                let at = format!("{at}/patternProperties/{pattern}");
                (self.pattern(pattern, 0, None, &at)?, self.any(schema, &at)?)
            }
            (None, _, Some(Value::Bool(false))) => {
                return if least == 0 { self.rule("\"{\" space \"}\"") } else { unsupported(at, "minProperties") };
            }
            (None, names, more) => {
                let key = match names {
                    None => "string".to_owned(),
                    Some(names) => self.key(names, &format!("{at}/propertyNames"))?,
                };
                let value = match more {
                    None | Some(Value::Bool(true)) => "value".to_owned(),
                    Some(schema) => self.any(schema, &format!("{at}/additionalProperties"))?,
                };
                (key, value)
            }
        };
        let member = self.rule(&format!("{key} space \":\" space {value}"))?;
        self.rule(&format!("\"{{\" space {} \"}}\"", list(&member, least, most)))
    }

    /// The rule of a key: a schema of strings.
    fn key(&mut self, names: &Value, at: &str) -> Result<String, SchemaError> {
        let mut names = names.clone();
        if let Value::Object(map) = &mut names {
            match map.get("type") {
                None if !map.contains_key("$ref") => _ = map.insert("type".into(), Value::String("string".into())),
                Some(kind) if kind != "string" => return unsupported(at, "a type other than string"),
                _ => {}
            }
        }
        match &names {
            Value::Bool(true) => Ok("string".into()),
            names => self.any(names, at),
        }
    }
}

/// True where `propertyNames` plainly allows all these keys: it asks for nothing, or lists them.
fn allows(names: &Value, keys: &Map<String, Value>) -> bool {
    let Some(map) = names.as_object() else { return names == &Value::Bool(true) };
    match map.get("enum").and_then(Value::as_array) {
        Some(list) => keys.keys().all(|key| list.iter().any(|v| v == key)),
        None => map.iter().all(|(key, value)| super::is_annotation(key) || (key == "type" && value == "string")),
    }
}
