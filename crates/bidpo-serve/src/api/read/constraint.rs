//! What restricts the form of an answer: a JSON schema, or a grammar.

use crate::api::read::error::ApiError;
use crate::api::read::fields::{Fields, kind, short};
use crate::schema;
use crate::state::State;
use ggml_grad::llama::Grammar;
use serde_json::{Value, json};

/// What was asked for.
enum Wanted {
    AnyObject,
    Schema(Value),
    Gbnf(String),
    Regex(String),
}

/// Reads `response_format` (OpenAI), `json_schema` and `grammar` (llama.cpp), `guided_...` and `structured_outputs` (vLLM).
pub(in crate::api) fn constraint(fields: &mut Fields, state: &State) -> Result<Option<Grammar>, ApiError> {
    let mut wanted: Option<(String, Wanted)> = None;
    for (key, value) in [
        ("response_format", response_format(fields)?),
        ("json_schema", schema_field(fields, "json_schema")),
        ("guided_json", schema_field(fields, "guided_json")),
        ("grammar", grammar_field(fields, "grammar")?),
        ("guided_grammar", grammar_field(fields, "guided_grammar")?),
        ("guided_choice", choice_field(fields, "guided_choice")?),
        ("guided_regex", regex_field(fields, "guided_regex")?),
        ("structured_outputs", structured_outputs(fields)?),
    ] {
        let Some(value) = value else { continue };
        if let Some((other, _)) = &wanted {
            return Err(fields.wrong(key, &format!("and {other} both restrict the answer: give one of them")));
        }
        wanted = Some((fields.name(key), value));
    }
    wanted.map(|(name, wanted)| compile(state, &name, &wanted)).transpose()
}

fn compile(state: &State, name: &str, wanted: &Wanted) -> Result<Grammar, ApiError> {
    let wrong = |reason: String| ApiError::invalid(name, format!("{name}: {reason}"));
    // Large schemas and grammars take a while.
    tokio::task::block_in_place(|| {
        let text = match wanted {
            Wanted::AnyObject => schema::any_object(),
            Wanted::Schema(schema) => schema::grammar(schema).map_err(|e| wrong(format!("schema {e}")))?,
            Wanted::Gbnf(text) => text.clone(),
            Wanted::Regex(text) => schema::grammar_of_pattern(text).map_err(|e| wrong(e.to_string()))?,
        };
        Grammar::new(&state.model, &text).map_err(|e| wrong(e.to_string()))
    })
}

fn response_format(fields: &mut Fields) -> Result<Option<Wanted>, ApiError> {
    let Some(value) = fields.take("response_format") else { return Ok(None) };
    let mut format = Fields::new(value, fields.name("response_format"))?;
    match format.text("type")?.as_deref() {
        None | Some("text") => Ok(None),
        // llama-server takes a schema here, too.
        Some("json_object") => Ok(Some(format.take("schema").filter(is_set).map_or(Wanted::AnyObject, Wanted::Schema))),
        Some("json_schema") => {
            let schema = match format.take("json_schema") {
                Some(Value::Object(mut map)) => map.remove("schema"),
                Some(other) => {
                    return Err(format.wrong("json_schema", &format!("must be an object, not {}", kind(&other))));
                }
                None => format.take("schema"),
            };
            match schema {
                Some(schema) => Ok(Some(Wanted::Schema(schema))),
                None => Err(format.wrong("json_schema.schema", "is missing")),
            }
        }
        Some(other) => {
            Err(format
                .wrong("type", &format!("must be text, json_object or json_schema, not {}", short(&json!(other)))))
        }
    }
}

/// True for anything but an empty object.
fn is_set(value: &Value) -> bool {
    !value.as_object().is_some_and(serde_json::Map::is_empty)
}

/// A schema; some clients send it as text.
fn schema_field(fields: &mut Fields, key: &str) -> Option<Wanted> {
    let value = fields.take(key).filter(is_set)?;
    let parsed = value.as_str().and_then(|text| serde_json::from_str(text).ok());
    Some(Wanted::Schema(parsed.unwrap_or(value)))
}

fn grammar_field(fields: &mut Fields, key: &str) -> Result<Option<Wanted>, ApiError> {
    Ok(fields.text(key)?.filter(|text| !text.trim().is_empty()).map(Wanted::Gbnf))
}

fn regex_field(fields: &mut Fields, key: &str) -> Result<Option<Wanted>, ApiError> {
    Ok(fields.text(key)?.filter(|text| !text.is_empty()).map(Wanted::Regex))
}

/// One of some texts.
fn choice_field(fields: &mut Fields, key: &str) -> Result<Option<Wanted>, ApiError> {
    let Some(list) = fields.list(key)?.filter(|l| !l.is_empty()) else { return Ok(None) };
    let texts: Option<Vec<String>> = list.iter().map(|v| v.as_str().map(schema::literal)).collect();
    let texts = texts.ok_or_else(|| fields.wrong(key, "must be a list of strings"))?;
    Ok(Some(Wanted::Gbnf(format!("root ::= {}", texts.join(" | ")))))
}

fn structured_outputs(fields: &mut Fields) -> Result<Option<Wanted>, ApiError> {
    let Some(value) = fields.take("structured_outputs").filter(is_set) else { return Ok(None) };
    let mut inner = Fields::new(value, fields.name("structured_outputs"))?;
    let wanted = match schema_field(&mut inner, "json") {
        None => match grammar_field(&mut inner, "grammar")? {
            None => match choice_field(&mut inner, "choice")? {
                None => regex_field(&mut inner, "regex")?,
                wanted => wanted,
            },
            wanted => wanted,
        },
        wanted => wanted,
    };
    inner.none_left()?;
    Ok(wanted)
}
