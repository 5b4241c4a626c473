//! From a JSON schema to a grammar (GBNF) whose texts are valid under it.
//!
//! The usual subset is covered; a keyword beyond it is refused by name, never ignored: the answer would not be what was asked
//! for. Annotations (`title`, `default`, ...) and unknown formats restrict nothing, as the JSON Schema standard has it.
//! Objects are written with their properties in the schema's order, and without properties that the schema does not name.

mod calls;
mod merge;
mod numbers;
mod objects;
mod pattern;

pub(crate) use calls::grammar_of_calls;

use pattern::{Pattern, PatternError, Within};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::fmt::Write as _;

/// Rules that others use. Space is bounded: a model could write it forever.
const COMMON: &str = r#"
space ::= | " " | "\n" [ \t]{0,20}
char ::= [^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-fA-F]{4})
string ::= "\"" char* "\""
integer ::= "-"? ("0" | [1-9] [0-9]{0,15})
number ::= "-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,3})?
boolean ::= "true" | "false"
null ::= "null"
value ::= object | array | string | number | boolean | null
member ::= string space ":" space value
object ::= "{" space (member space ("," space member space)*)? "}"
array ::= "[" space (value space ("," space value space)*)? "]"
"#;

/// The longest grammar, in bytes.
const MAX_BYTES: usize = 200 * 1024;

/// Keywords that restrict nothing.
const ANNOTATIONS: [&str; 18] = [
    "title",
    "description",
    "default",
    "examples",
    "example",
    "deprecated",
    "readOnly",
    "writeOnly",
    "discriminator",
    "contentMediaType",
    "contentEncoding",
    "$schema",
    "$id",
    "$comment",
    "$defs",
    "definitions",
    // Where it is true it was read before.
    "nullable",
    "strict",
];

/// A schema that cannot be obeyed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SchemaError {
    /// A keyword that is not supported, or not with this value.
    #[error("{at}: {what} is not supported")]
    Unsupported {
        /// Where in the schema.
        at: String,
        /// The keyword.
        what: String,
    },
    /// Not a schema.
    #[error("{at}: {what}")]
    Invalid {
        /// Where in the schema.
        at: String,
        /// What is wrong.
        what: String,
    },
    /// The grammar would be too large.
    #[error("the schema is too large: its grammar would have more than {MAX_BYTES} bytes")]
    TooLarge,
}

/// The grammar of all JSON objects.
pub(crate) fn any_object() -> String {
    format!("root ::= object{COMMON}")
}

/// The grammar of the texts that are valid under `schema`.
pub(crate) fn grammar(schema: &Value) -> Result<String, SchemaError> {
    let mut writer = Writer::new(schema);
    let root = writer.any(schema, "#")?;
    Ok(format!("root ::= {root}{COMMON}{}", writer.rules))
}

/// The grammar of the texts that a regular expression matches as a whole.
pub(crate) fn grammar_of_pattern(text: &str) -> Result<String, SchemaError> {
    let rule = Pattern::whole(text).and_then(|pattern| pattern.rule(Within::Answer));
    rule.map(|rule| format!("root ::= {rule}")).map_err(|e| pattern_error("the expression", e))
}

fn pattern_error(at: &str, error: PatternError) -> SchemaError {
    let at = at.to_owned();
    match error {
        PatternError::Unsupported(what) => SchemaError::Unsupported { at, what: format!("pattern: {what}") },
        PatternError::Invalid(what) => SchemaError::Invalid { at, what: format!("pattern: {what}") },
    }
}

struct Writer<'a> {
    /// The whole schema, for references.
    schema: &'a Value,
    rules: String,
    n: usize,
    /// The rule of each reference.
    references: HashMap<String, String>,
    /// Schemas around this one that were merged of several.
    merged: usize,
    /// Parts that were copied to be merged.
    copied: usize,
}

fn unsupported<T>(at: &str, what: impl Into<String>) -> Result<T, SchemaError> {
    Err(SchemaError::Unsupported { at: at.to_owned(), what: what.into() })
}

fn invalid<T>(at: &str, what: impl Into<String>) -> Result<T, SchemaError> {
    Err(SchemaError::Invalid { at: at.to_owned(), what: what.into() })
}

/// A text as a literal of the grammar.
pub(crate) fn literal(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => _ = write!(out, "\\u{:04x}", u32::from(c)),
            c => out.push(c),
        }
    }
    out + "\""
}

/// `{least,most}` behind an item.
fn times(least: u64, most: Option<u64>) -> String {
    match most {
        None if least == 0 => "*".into(),
        None => format!("{{{least},}}"),
        Some(most) => format!("{{{least},{most}}}"),
    }
}

/// Items with commas between them: `least` to `most` of them. An empty text for none.
fn list(item: &str, least: u64, most: Option<u64>) -> String {
    if most == Some(0) {
        return String::new();
    }
    let rest = times(least.saturating_sub(1), most.map(|m| m - 1));
    let items = format!("{item} space (\",\" space {item} space){rest}");
    if least == 0 { format!("({items})?") } else { items }
}

fn is_annotation(key: &str) -> bool {
    ANNOTATIONS.contains(&key) || key.starts_with("x-")
}

/// The keywords of one schema, taken one by one: what is left is not supported.
struct Keywords<'a> {
    map: &'a Map<String, Value>,
    seen: Vec<&'static str>,
    at: &'a str,
}

impl<'a> Keywords<'a> {
    fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.seen.push(key);
        self.map.get(key)
    }

    fn count(&mut self, key: &'static str) -> Result<Option<u64>, SchemaError> {
        match self.get(key) {
            None => Ok(None),
            Some(v) => {
                match v.as_u64().or_else(|| v.as_f64().filter(|x| x.fract() == 0.0 && *x >= 0.0).map(|x| x as u64)) {
                    Some(n) => Ok(Some(n)),
                    None => invalid(self.at, format!("{key} must be a whole number from 0")),
                }
            }
        }
    }

    /// A keyword that was not taken and is no annotation.
    fn left(&self) -> Option<&'a String> {
        let known = |key: &str| self.seen.contains(&key) || is_annotation(key);
        self.map.keys().find(|key| !known(key))
    }

    fn are_done(&self) -> bool {
        self.left().is_none()
    }

    fn done(self) -> Result<(), SchemaError> {
        self.left().map_or(Ok(()), |key| unsupported(self.at, key.clone()))
    }
}

impl<'a> Writer<'a> {
    fn new(schema: &'a Value) -> Self {
        Self { schema, rules: String::new(), n: 0, references: HashMap::new(), merged: 0, copied: 0 }
    }

    /// Adds a rule and returns its name.
    fn rule(&mut self, body: &str) -> Result<String, SchemaError> {
        self.n += 1;
        let name = format!("r{}", self.n);
        self.define(&name, body)?;
        Ok(name)
    }

    fn define(&mut self, name: &str, body: &str) -> Result<(), SchemaError> {
        let _ = writeln!(self.rules, "{name} ::= {body}");
        if self.rules.len() > MAX_BYTES { Err(SchemaError::TooLarge) } else { Ok(()) }
    }

    /// The name of the rule for a schema.
    fn any(&mut self, schema: &Value, at: &str) -> Result<String, SchemaError> {
        let map = match schema {
            Value::Bool(true) => return Ok("value".into()),
            Value::Bool(false) => return unsupported(at, "a schema that allows nothing (false)"),
            Value::Object(map) => map,
            _ => return invalid(at, "a schema must be an object"),
        };
        if map.get("nullable") == Some(&Value::Bool(true)) {
            let mut rest = map.clone();
            rest.insert("nullable".into(), Value::Bool(false));
            let name = self.any(&Value::Object(rest), at)?;
            return self.rule(&format!("{name} | null"));
        }
        let mut keys = Keywords { map, seen: Vec::new(), at };
        if let Some(reference) = keys.get("$ref") {
            let Some(reference) = reference.as_str() else { return invalid(at, "$ref must be a string") };
            return if keys.are_done() { self.reference(reference, at) } else { self.merged(&[schema], at) };
        }
        if let Some(value) = keys.get("const") {
            keys.get("type");
            keys.get("enum");
            keys.done()?;
            return self.rule(&literal(&value.to_string()));
        }
        if let Some(values) = keys.get("enum") {
            let kind = keys.get("type");
            keys.done()?;
            let Some(values) = values.as_array().filter(|v| !v.is_empty()) else {
                return invalid(at, "enum must be a list that is not empty");
            };
            let of_kind = values.iter().filter(|v| kind.is_none_or(|kind| merge::is_of_kind(v, kind)));
            let texts: Vec<String> = of_kind.map(|v| literal(&v.to_string())).collect();
            return if texts.is_empty() {
                invalid(at, "enum holds no value of the type")
            } else {
                self.rule(&texts.join(" | "))
            };
        }
        for key in ["anyOf", "oneOf"] {
            let Some(parts) = keys.get(key) else { continue };
            let Some(parts) = parts.as_array().filter(|p| !p.is_empty()) else {
                return invalid(at, format!("{key} must be a list that is not empty"));
            };
            let alone = keys.are_done();
            let own = |name: &str| name != key && !is_annotation(name);
            let beside: Map<String, Value> =
                map.iter().filter(|(name, _)| !alone && own(name)).map(|(name, v)| (name.clone(), v.clone())).collect();
            let beside = Value::Object(beside);
            let name = |(i, part)| {
                let at = format!("{at}/{key}/{i}");
                if alone { self.any(part, &at) } else { self.merged(&[&beside, part], &at) }
            };
            let names: Result<Vec<_>, _> = parts.iter().enumerate().map(name).collect();
            return self.rule(&names?.join(" | "));
        }
        if let Some(parts) = keys.get("allOf") {
            return match parts.as_array().map(Vec::as_slice) {
                Some([one]) if keys.are_done() => self.any(one, &format!("{at}/allOf/0")),
                Some(_) => self.merged(&[schema], at),
                None => invalid(at, "allOf must be a list"),
            };
        }
        match keys.get("type") {
            Some(Value::String(kind)) => self.of_kind(kind, keys),
            Some(Value::Array(kinds)) if !kinds.is_empty() => self.of_kinds(kinds, map, at),
            Some(_) => invalid(at, "type must be a string or a list of strings"),
            None if objects::KEYWORDS.iter().any(|k| map.contains_key(*k)) => self.of_kind("object", keys),
            None if map.contains_key("items") || map.contains_key("prefixItems") => self.of_kind("array", keys),
            None if ["pattern", "minLength", "maxLength", "format"].iter().any(|k| map.contains_key(*k)) => {
                self.of_kind("string", keys)
            }
            None if ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]
                .iter()
                .any(|k| map.contains_key(*k)) =>
            {
                self.of_kind("number", keys)
            }
            None => {
                keys.done()?;
                Ok("value".into())
            }
        }
    }

    /// `"type": ["string", "null"]`: each kind with the keywords that are its own.
    fn of_kinds(&mut self, kinds: &[Value], map: &Map<String, Value>, at: &str) -> Result<String, SchemaError> {
        let own = |kind: &str| -> &[&str] {
            match kind {
                "string" => &["minLength", "maxLength", "pattern", "format"],
                "integer" | "number" => &["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"],
                "array" => &["items", "prefixItems", "minItems", "maxItems", "additionalItems", "uniqueItems"],
                "object" => &objects::KEYWORDS,
                _ => &[],
            }
        };
        let mut names = Vec::new();
        let all: Vec<&str> = kinds.iter().filter_map(Value::as_str).collect();
        for kind in &all {
            let foreign =
                |key: &str| all.iter().any(|k| k != kind && own(k).contains(&key)) && !own(kind).contains(&key);
            let mut one = map.clone();
            one.retain(|key, _| !foreign(key));
            one.insert("type".into(), Value::String((*kind).to_owned()));
            names.push(self.any(&Value::Object(one), at)?);
        }
        if names.len() != kinds.len() {
            return invalid(at, "type must be a string or a list of strings");
        }
        self.rule(&names.join(" | "))
    }

    fn of_kind(&mut self, kind: &str, keys: Keywords<'_>) -> Result<String, SchemaError> {
        match kind {
            "object" => self.object(keys),
            "array" => self.array(keys),
            "string" => self.string(keys),
            "integer" | "number" => self.number(kind, keys),
            "boolean" | "null" => {
                keys.done()?;
                Ok(kind.to_owned())
            }
            other => invalid(keys.at, format!("there is no type {other:?}")),
        }
    }

    /// The rule of `#/$defs/Name`; a schema that refers to itself gets a rule that does.
    fn reference(&mut self, reference: &str, at: &str) -> Result<String, SchemaError> {
        if let Some(name) = self.references.get(reference) {
            return Ok(name.clone());
        }
        let target = reference.strip_prefix('#').and_then(|pointer| self.schema.pointer(pointer));
        let Some(target) = target else {
            return invalid(at, format!("$ref {reference:?} is not in the schema (only #/... is looked up)"));
        };
        self.n += 1;
        let name = format!("r{}", self.n);
        self.references.insert(reference.to_owned(), name.clone());
        let body = self.any(target, reference)?;
        if body == name {
            return invalid(at, format!("$ref {reference:?} leads to itself"));
        }
        self.define(&name, &body)?;
        Ok(name)
    }

    fn array(&mut self, mut keys: Keywords<'_>) -> Result<String, SchemaError> {
        let at = keys.at;
        let (least, most) = (keys.count("minItems")?.unwrap_or(0), keys.count("maxItems")?);
        let (items, more) = (keys.get("items"), keys.get("additionalItems"));
        let prefix = keys.get("prefixItems");
        if keys.get("uniqueItems").is_some_and(|v| v != &Value::Bool(false)) {
            return unsupported(at, "uniqueItems");
        }
        keys.done()?;
        if most.is_some_and(|m| m < least) {
            return invalid(at, "maxItems is below minItems");
        }
        // Up to draft 7 a list of items is what prefixItems is now.
        let (prefix, rest) = match (prefix, items) {
            (Some(prefix), rest) => (prefix.as_array(), rest),
            (None, Some(Value::Array(list))) => (Some(list), more),
            (None, rest) => (None, rest),
        };
        let Some(prefix) = prefix else {
            let item = match rest {
                None => "value".to_owned(),
                Some(Value::Bool(false)) => return self.rule("\"[\" space \"]\""),
                Some(schema) => self.any(schema, &format!("{at}/items"))?,
            };
            return self.rule(&format!("\"[\" space {} \"]\"", list(&item, least, most)));
        };
        let n = prefix.len() as u64;
        if rest.is_some_and(|r| r != &Value::Bool(false)) || least > n || most.is_some_and(|m| m < n) {
            return unsupported(at, "prefixItems with another number of items");
        }
        let names: Result<Vec<_>, _> =
            prefix.iter().enumerate().map(|(i, s)| self.any(s, &format!("{at}/prefixItems/{i}"))).collect();
        self.rule(&format!("\"[\" space {} space \"]\"", names?.join(" space \",\" space ")))
    }

    fn string(&mut self, mut keys: Keywords<'_>) -> Result<String, SchemaError> {
        let at = keys.at;
        let (least, most) = (keys.count("minLength")?, keys.count("maxLength")?);
        let (format, pattern) = (keys.get("format").and_then(Value::as_str), keys.get("pattern"));
        keys.done()?;
        if most.is_some_and(|m| m < least.unwrap_or(0)) {
            return invalid(at, "maxLength is below minLength");
        }
        if let Some(pattern) = pattern {
            // A format beside a pattern is a note.
            let Some(pattern) = pattern.as_str() else { return invalid(at, "pattern must be a string") };
            return self.pattern(pattern, least.unwrap_or(0), most, at);
        }
        let of_format = match format {
            Some("date") => Some(DATE.to_owned()),
            Some("time") => Some(TIME.to_owned()),
            Some("date-time") => Some(format!("{DATE} \"T\" {TIME}")),
            Some("uuid") => {
                Some("[0-9a-f]{8} \"-\" [0-9a-f]{4} \"-\" [0-9a-f]{4} \"-\" [0-9a-f]{4} \"-\" [0-9a-f]{12}".into())
            }
            _ => None,
        };
        match (of_format, least, most) {
            (Some(body), None, None) => self.rule(&format!("\"\\\"\" {body} \"\\\"\"")),
            (Some(_), ..) => unsupported(at, "minLength or maxLength beside format"),
            (None, None, None) => Ok("string".into()),
            (None, least, most) => {
                let least = least.unwrap_or(0);
                if least.max(most.unwrap_or(0)) > 2000 {
                    return unsupported(at, "minLength or maxLength above 2000");
                }
                self.rule(&format!("\"\\\"\" char{} \"\\\"\"", times(least, most)))
            }
        }
    }

    /// Strings that match a regular expression.
    fn pattern(&mut self, text: &str, least: u64, most: Option<u64>, at: &str) -> Result<String, SchemaError> {
        let pattern = Pattern::found_in(text).map_err(|e| pattern_error(at, e))?;
        let Some(pattern) = pattern.of_length(least, most) else {
            return unsupported(at, "minLength or maxLength beside this pattern");
        };
        let body = pattern.rule(Within::Json).map_err(|e| pattern_error(at, e))?;
        self.rule(&format!("\"\\\"\" ({body}) \"\\\"\""))
    }

    fn number(&mut self, kind: &str, mut keys: Keywords<'_>) -> Result<String, SchemaError> {
        let at = keys.at;
        let mut bound = |key| match keys.get(key) {
            None | Some(Value::Bool(false)) => Ok(None),
            Some(v) => v
                .as_f64()
                .map(Some)
                .ok_or_else(|| SchemaError::Invalid { at: at.to_owned(), what: format!("{key} must be a number") }),
        };
        let bounds = numbers::Bounds {
            least: bound("minimum")?,
            above: bound("exclusiveMinimum")?,
            most: bound("maximum")?,
            below: bound("exclusiveMaximum")?,
        };
        keys.done()?;
        let body = if kind == "integer" { numbers::integers(&bounds) } else { numbers::reals(&bounds) };
        match body {
            Ok(None) => Ok(kind.to_owned()),
            Ok(Some(body)) => self.rule(&body),
            Err(numbers::RangeError::Empty) => invalid(at, "no number is within its bounds"),
            Err(numbers::RangeError::Unsupported) => {
                unsupported(at, format!("a {kind} with bounds of more than 15 digits"))
            }
        }
    }
}

const DATE: &str = "[0-9]{4} \"-\" (\"0\" [1-9] | \"1\" [0-2]) \"-\" (\"0\" [1-9] | [12] [0-9] | \"3\" [01])";
const TIME: &str = "([01] [0-9] | \"2\" [0-3]) \":\" [0-5] [0-9] \":\" [0-5] [0-9] (\".\" [0-9]{1,6})? (\"Z\" | [+-] ([01] [0-9] | \"2\" [0-3]) \":\" [0-5] [0-9])";

#[cfg(test)]
mod tests;
