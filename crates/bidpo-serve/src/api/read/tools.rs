//! `tools` and `tool_choice`: functions that the model may call, and its calls told in OpenAI's form.

use crate::api::read::error::ApiError;
use crate::api::read::fields::{Fields, kind, short};
use crate::schema;
use bidpo_core::data::{
    AnswerPiece, CallSplitter, CalledFunction, ChatTemplate, Message, TemplateError, ToolCall, ToolFormat, WrittenCall,
};
use ggml_grad::llama::{Grammar, Model, Token};
use rand::Rng as _;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// The most functions of a request, and letters of a name (OpenAI's limits).
const MAX_TOOLS: usize = 128;
const MAX_NAME: usize = 64;

/// Which functions the answer may or must call.
#[derive(Debug, Clone, PartialEq, Eq)]
enum ToolChoice {
    Auto,
    Required,
    Named(String),
}

/// The functions of a request.
#[derive(Debug, Clone)]
pub(in crate::api) struct Tools {
    list: Vec<Value>,
    choice: ToolChoice,
}

/// Reads `tools` and `tool_choice`; `None` where the answer can call nothing.
pub(in crate::api) fn tools(fields: &mut Fields) -> Result<Option<Tools>, ApiError> {
    let mut list = fields.list("tools")?.unwrap_or_default();
    let choice = match fields.take("tool_choice") {
        None => Some(ToolChoice::Auto),
        Some(Value::String(word)) => mode(fields, &word)?,
        Some(value @ Value::Object(_)) => match (name_of_either(&value), value["type"].as_str()) {
            (Some(name), Some("function" | "tool") | None) => Some(ToolChoice::Named(name.to_owned())),
            (_, Some("allowed_tools")) => allowed_tools(fields, &value, &mut list)?,
            (None, Some(word @ ("auto" | "none" | "any" | "required"))) => mode(fields, word)?,
            _ => {
                let what = "as an object must be {\"type\": \"function\", \"function\": {\"name\": NAME}}, or of type allowed_tools";
                return Err(fields.wrong("tool_choice", what));
            }
        },
        Some(other) => {
            return Err(fields.wrong("tool_choice", &format!("must be a string or an object, not {}", kind(&other))));
        }
    };
    if list.len() > MAX_TOOLS {
        return Err(fields.wrong("tools", &format!("holds {} functions, {MAX_TOOLS} are allowed", list.len())));
    }
    let at = fields.name("tools");
    let list: Vec<Value> =
        list.into_iter().enumerate().map(|(i, t)| function(t, &format!("{at}[{i}]"))).collect::<Result<_, _>>()?;
    let names: Vec<&str> = list.iter().map(name_of).collect();
    if let Some(twice) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
        return Err(fields.wrong("tools", &format!("holds two functions {:?}", twice.1)));
    }
    match &choice {
        Some(ToolChoice::Named(name)) if !names.contains(&name.as_str()) => {
            return Err(fields.wrong("tool_choice", &format!("names {name:?}, which is not among the tools")));
        }
        Some(ToolChoice::Required) if list.is_empty() => {
            return Err(fields.wrong("tool_choice", "is required, and there are no tools"));
        }
        _ => {}
    }
    Ok(choice.filter(|_| !list.is_empty()).map(|choice| Tools { list, choice }))
}

/// The word of `tool_choice`.
fn mode(fields: &Fields, word: &str) -> Result<Option<ToolChoice>, ApiError> {
    match word {
        "auto" | "" => Ok(Some(ToolChoice::Auto)),
        "none" => Ok(None),
        // Mistral's word is any.
        "required" | "any" => Ok(Some(ToolChoice::Required)),
        other => {
            let what = format!("must be none, auto, required or a function, not {}", short(&json!(other)));
            Err(fields.wrong("tool_choice", &what))
        }
    }
}

/// A function's name in the forms of OpenAI's two APIs.
fn name_of_either(value: &Value) -> Option<&str> {
    value["function"]["name"].as_str().or_else(|| value["name"].as_str())
}

/// `{"type": "allowed_tools", ...}`: keeps the tools that may be called, and reads whether one must be.
fn allowed_tools(fields: &Fields, value: &Value, list: &mut Vec<Value>) -> Result<Option<ToolChoice>, ApiError> {
    let inner = value.get("allowed_tools").unwrap_or(value);
    let Some(allowed) = inner["tools"].as_array() else {
        return Err(fields.wrong("tool_choice.allowed_tools.tools", "must be a list of functions"));
    };
    let allowed: Vec<&str> = allowed.iter().filter_map(name_of_either).collect();
    if let Some(other) = allowed.iter().find(|name| list.iter().all(|tool| name_of_either(tool) != Some(name))) {
        return Err(fields.wrong("tool_choice", &format!("allows {other:?}, which is not among the tools")));
    }
    list.retain(|tool| name_of_either(tool).is_some_and(|name| allowed.contains(&name)));
    mode(fields, inner["mode"].as_str().unwrap_or("auto"))
}

/// The schema of a function's arguments. A function that describes none takes none, where a schema would allow any.
fn arguments(parameters: &Value) -> Value {
    let describes = |key: &str| parameters.get(key).is_some_and(|v| v.as_object().is_none_or(|map| !map.is_empty()));
    let mut schema = parameters.clone();
    if let Value::Object(map) = &mut schema
        && map.get("type").is_none_or(|kind| kind == "object")
        && map.keys().all(|key| {
            !describes(key) || ["type", "required", "title", "description", "$schema"].contains(&key.as_str())
        })
    {
        map.insert("additionalProperties".into(), json!(false));
    }
    schema
}

fn name_of(tool: &Value) -> &str {
    tool["function"]["name"].as_str().unwrap_or_default()
}

/// Checks one tool. Templates read `parameters` of each, so that it is never missing.
fn function(value: Value, at: &str) -> Result<Value, ApiError> {
    let mut fields = Fields::new(value, at)?;
    let name = fields.name("type");
    match fields.text("type")?.as_deref() {
        None | Some("function") => {}
        Some(other) => {
            let message = format!("{name}: only functions are supported by this server, not {}", short(&json!(other)));
            return Err(ApiError::unsupported(&name, message));
        }
    }
    let Some(Value::Object(mut function)) = fields.take("function") else {
        return Err(fields.wrong("function", "must be an object with a name"));
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    match function.get("name").and_then(Value::as_str) {
        Some(name) if !name.is_empty() && name.len() <= MAX_NAME && name.chars().all(plain) => {}
        _ => {
            let what = format!("must be 1 to {MAX_NAME} letters, digits, _, - and . (ASCII)");
            return Err(fields.wrong("function.name", &what));
        }
    }
    match function.get("parameters") {
        None | Some(Value::Null) => {
            function.insert("parameters".into(), json!({"type": "object", "properties": {}}));
        }
        Some(Value::Object(_)) => {}
        Some(other) => {
            return Err(fields.wrong("function.parameters", &format!("must be a JSON schema, not {}", kind(other))));
        }
    }
    if !function.get("description").is_some_and(Value::is_string) {
        function.insert("description".into(), json!(""));
    }
    function.remove("strict");
    Ok(json!({"type": "function", "function": function}))
}

/// Reads `tool_calls` of an assistant's message.
pub(in crate::api) fn calls(fields: &mut Fields) -> Result<Vec<ToolCall>, ApiError> {
    let list = fields.list("tool_calls")?.unwrap_or_default();
    let at = fields.name("tool_calls");
    let call = |(i, value): (usize, Value)| {
        let at = format!("{at}[{i}]");
        let mut call = Fields::new(value, &at)?;
        let id = call.text("id")?.unwrap_or_default();
        let function = call.take("function").ok_or_else(|| call.wrong("function", "is missing"))?;
        written_call(id, function, &format!("{at}.function"))
    };
    list.into_iter().enumerate().map(call).collect()
}

/// Reads `function_call` of an assistant's message, OpenAI's older form of one call.
pub(in crate::api) fn older_call(fields: &mut Fields) -> Result<Option<ToolCall>, ApiError> {
    let at = fields.name("function_call");
    fields.take("function_call").map(|function| written_call(String::new(), function, &at)).transpose()
}

fn written_call(id: String, function: Value, at: &str) -> Result<ToolCall, ApiError> {
    let mut function = Fields::new(function, at)?;
    let name = function.text("name")?.ok_or_else(|| function.wrong("name", "is missing"))?;
    let arguments = match function.take("arguments") {
        None => Some(Map::new()),
        Some(Value::Object(map)) => Some(map),
        Some(Value::String(text)) if text.trim().is_empty() => Some(Map::new()),
        Some(Value::String(text)) => serde_json::from_str(&text).ok(),
        Some(_) => None,
    };
    let arguments = arguments.ok_or_else(|| function.wrong("arguments", "must be a JSON object, as text"))?;
    Ok(ToolCall { id, name, arguments })
}

/// Gives tools' messages the names of their functions, which some templates show.
pub(in crate::api) fn name_answers(messages: &mut [Message]) {
    let calls: Vec<ToolCall> = messages.iter().flat_map(|m| m.tools.calls.clone()).collect();
    for message in messages.iter_mut().filter(|m| m.role == "tool" && m.tools.name.is_none()) {
        let call = calls.iter().rev().find(|c| Some(&c.id) == message.tools.call_id.as_ref());
        message.tools.name = call.map(|c| c.name.clone());
    }
}

/// How calls are found in an answer.
#[derive(Debug, Clone)]
pub(in crate::api) struct CallReader {
    format: ToolFormat,
    functions: Vec<CalledFunction>,
}

/// A template that shows the tools, and how the answer is read.
pub(in crate::api) struct Prepared {
    pub template: ChatTemplate,
    pub reader: CallReader,
    /// Where a call is required.
    pub grammar: Option<Grammar>,
}

/// True where a template shows tools, and calls are read back.
pub(in crate::api) fn can_call(template: &ChatTemplate) -> bool {
    let probe = json!({"type": "function", "function": {"name": "probe", "description": "", "parameters": {"type": "object", "properties": {}}}});
    template.with_tools(&[probe]).and_then(|t| t.tool_format()).is_ok()
}

impl Tools {
    /// Puts the tools into a template.
    pub(in crate::api) fn prepare(&self, template: &ChatTemplate, model: &Arc<Model>) -> Result<Prepared, ApiError> {
        let wrong = |e: TemplateError| ApiError::unsupported("tools", format!("tools: {e}"));
        let template = template.with_tools(&self.list).map_err(wrong)?;
        let format = template.tool_format().map_err(wrong)?;
        let grammar = match &self.choice {
            ToolChoice::Auto => None,
            ToolChoice::Required => Some(self.grammar(&format, None, model)?),
            ToolChoice::Named(name) => Some(self.grammar(&format, Some(name), model)?),
        };
        Ok(Prepared { template, reader: CallReader { format, functions: self.functions(None) }, grammar })
    }

    /// The function `only`, or all.
    fn functions(&self, only: Option<&str>) -> Vec<CalledFunction> {
        let chosen = self.list.iter().filter(|t| only.is_none_or(|name| name == name_of(t)));
        let function = |t: &Value| CalledFunction {
            name: name_of(t).to_owned(),
            parameters: arguments(&t["function"]["parameters"]),
        };
        chosen.map(function).collect()
    }

    /// The grammar of one call: of the function `only`, or of any.
    fn grammar(&self, format: &ToolFormat, only: Option<&str>, model: &Arc<Model>) -> Result<Grammar, ApiError> {
        let wrong = |e: String| ApiError::invalid("tools", format!("tools: {e}"));
        let calls: Vec<_> = self.functions(only).iter().map(|f| format.one_call(f)).collect();
        let text = schema::grammar_of_calls(&calls).map_err(|e| wrong(format!("schema {e}")))?;
        Grammar::new(model, &text).map_err(|e| wrong(e.to_string()))
    }
}

impl CallReader {
    /// Texts that are written out though they may be control tokens.
    pub(in crate::api) fn written(&self, model: &Model) -> Vec<Token> {
        control_tokens(model, &self.format.marks())
    }

    /// For an answer that is being written.
    pub(in crate::api) fn teller(&self) -> CallTeller {
        CallTeller { splitter: self.format.splitter(self.functions.clone()), n: 0 }
    }
}

/// The control tokens in some texts, which the engine writes out only when asked.
pub(in crate::api) fn control_tokens(model: &Model, texts: &[&str]) -> Vec<Token> {
    let tokens = texts.iter().flat_map(|text| model.tokenize(text, false, true).unwrap_or_default());
    let mut found: Vec<Token> = tokens.filter(|&t| model.token_bytes(t, false).is_empty()).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// Parts an answer into text and calls as OpenAI tells them.
#[derive(Debug, Clone)]
pub(in crate::api) struct CallTeller {
    splitter: CallSplitter,
    n: usize,
}

impl CallTeller {
    /// Takes the calls out of the next piece of an answer, as entries of `tool_calls` with their `index`. `end`: it is the last
    /// piece.
    pub(in crate::api) fn take(&mut self, answer: &mut String, end: bool) -> Vec<Value> {
        let mut pieces = self.splitter.push(answer);
        if end {
            pieces.extend(self.splitter.finish());
        }
        answer.clear();
        let mut calls = Vec::new();
        for piece in pieces {
            match piece {
                AnswerPiece::Text(text) => *answer += &text,
                AnswerPiece::Call(call) => {
                    calls.push(call_json(self.n, &call));
                    self.n += 1;
                }
            }
        }
        calls
    }

    /// True if a call was told.
    pub(in crate::api) fn has_calls(&self) -> bool {
        self.n > 0
    }
}

/// Takes the calls out of the next piece of an answer, where it may hold any ([`CallTeller::take`]).
pub(in crate::api) fn take_calls(teller: &mut Option<CallTeller>, answer: &mut String, end: bool) -> Vec<Value> {
    teller.as_mut().map(|t| t.take(answer, end)).unwrap_or_default()
}

fn call_json(index: usize, call: &WrittenCall) -> Value {
    let arguments = Value::Object(call.arguments.clone()).to_string();
    json!({"index": index, "id": new_id(), "type": "function", "function": {"name": call.name, "arguments": arguments}})
}

/// Nine letters and digits: Mistral's templates take no other ids.
fn new_id() -> String {
    let mut rng = rand::rng();
    (0..9).map(|_| char::from(rng.sample(rand::distr::Alphanumeric))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(choice: Value) -> Result<Option<(Vec<String>, ToolChoice)>, ApiError> {
        let tool = |name: &str| json!({"type": "function", "function": {"name": name}});
        let mut fields = Fields::new(json!({"tools": [tool("f"), tool("g")], "tool_choice": choice}), "").unwrap();
        let names = |t: &Tools| t.list.iter().map(|tool| name_of(tool).to_owned()).collect();
        Ok(tools(&mut fields)?.map(|t| (names(&t), t.choice)))
    }

    #[test]
    fn functions_without_parameters_take_none() {
        let closed = json!({"type": "object", "properties": {}, "additionalProperties": false});
        assert_eq!(arguments(&json!({"type": "object", "properties": {}})), closed);
        assert_eq!(
            arguments(&json!({"type": "object", "properties": {}, "required": []}))["additionalProperties"],
            false
        );
        for open in [
            json!({"type": "object", "properties": {"a": {}}}),
            json!({"type": "object", "additionalProperties": true}),
            json!({"type": "object", "additionalProperties": {"type": "string"}}),
            json!({"$ref": "#/$defs/a", "$defs": {"a": {}}}),
        ] {
            assert_eq!(arguments(&open), open);
        }
    }

    #[test]
    fn choices_come_in_many_forms() {
        use ToolChoice::{Auto, Named, Required};
        let some = |names: &[&str], choice| Ok(Some((names.iter().map(|n| (*n).to_owned()).collect(), choice)));
        let allowed = |mode: &str, tool: Value| json!({"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [tool]}});
        let g = json!({"type": "function", "function": {"name": "g"}});
        for (choice, want) in [
            (json!(null), some(&["f", "g"], Auto)),
            (json!("any"), some(&["f", "g"], Required)),
            (json!("none"), Ok(None)),
            (json!({"type": "auto"}), some(&["f", "g"], Auto)),
            (json!({"type": "none"}), Ok(None)),
            (g.clone(), some(&["f", "g"], Named("g".into()))),
            (json!({"type": "function", "name": "g"}), some(&["f", "g"], Named("g".into()))),
            (allowed("required", g.clone()), some(&["g"], Required)),
            (allowed("auto", g.clone()), some(&["g"], Auto)),
            (
                json!({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}),
                some(&["f"], Auto),
            ),
        ] {
            assert_eq!(read(choice.clone()), want, "{choice}");
        }
        for choice in [
            json!("maybe"),
            json!({"type": "function", "function": {"name": "h"}}),
            json!({"type": "web_search"}),
            allowed("auto", json!({"type": "function", "function": {"name": "h"}})),
            allowed("often", g),
            json!({"type": "allowed_tools"}),
            json!(3),
        ] {
            let error = read(choice.clone()).unwrap_err();
            assert!(error.param.is_some_and(|p| p.starts_with("tool_choice")), "{choice}");
        }
    }
}
