//! A request of the Responses API in the fields of a chat.

use crate::api::read::error::ApiError;
use crate::api::read::fields::{Fields, kind};
use serde_json::{Map, Value, json};

/// Fields that the server keeps nothing for: each with what to do instead.
const REFUSED: [(&str, &str); 4] = [
    ("previous_response_id", "this server keeps no responses: send the whole conversation as input"),
    ("conversation", "this server keeps no conversations: send the whole conversation as input"),
    ("prompt", "this server has no stored prompts: send instructions and input"),
    ("background", "this server answers at once: leave it out, or stream"),
];

/// Fields that change no answer of this server.
const HARMLESS: [&str; 6] =
    ["include", "max_tool_calls", "truncation", "stream_options", "context_management", "verbosity"];

/// Values that the response repeats.
#[derive(Debug, Clone)]
pub(super) struct Echo {
    pub instructions: Value,
    pub max_output_tokens: Value,
    pub metadata: Value,
    pub temperature: Value,
    pub top_p: Value,
    pub text: Value,
    pub tools: Value,
    pub tool_choice: Value,
}

/// A request with the fields of a chat, and what its response repeats.
pub(super) struct Translated {
    pub fields: Fields,
    pub echo: Echo,
    /// Log-probabilities are wanted.
    pub logprobs: bool,
}

/// The request with the names of a chat's fields.
pub(super) fn translate(body: Value) -> Result<Translated, ApiError> {
    let mut given = Fields::new(body, "")?;
    for (key, instead) in REFUSED {
        if given.take(key).is_some_and(|v| v != json!(false)) {
            return Err(ApiError::unsupported(key, format!("{key} is not supported: {instead}")));
        }
    }
    let include = given.list("include")?.unwrap_or_default();
    let logprobs = include.iter().any(|v| v == "message.output_text.logprobs");
    HARMLESS.iter().for_each(|key| drop(given.take(key)));
    let instructions = given.text("instructions")?;
    let mut messages: Vec<Value> = instructions.iter().map(|text| json!({"role": "system", "content": text})).collect();
    match given.take("input") {
        None => return Err(given.wrong("input", "is missing")),
        Some(Value::String(text)) => messages.push(json!({"role": "user", "content": text})),
        Some(Value::Array(items)) => read_items(items, &mut messages)?,
        Some(other) => {
            return Err(given.wrong("input", &format!("must be a string or a list of items, not {}", kind(&other))));
        }
    }
    let mut map = Map::new();
    map.insert("messages".into(), json!(messages));
    // The answer is a message of its own, whatever the last one is.
    map.insert("add_generation_prompt".into(), json!(true));
    let limit = given.take("max_output_tokens");
    map.extend(limit.clone().map(|n| ("max_completion_tokens".to_owned(), n)));
    let text = match given.take("text") {
        None => json!({"format": {"type": "text"}}),
        Some(text) => {
            map.extend(response_format(text.clone())?.map(|f| ("response_format".to_owned(), f)));
            text
        }
    };
    let tools = given.list("tools")?.unwrap_or_default();
    let chosen = given.take("tool_choice");
    map.insert("tools".into(), tools.iter().map(tool).collect());
    map.extend(chosen.clone().map(|choice| ("tool_choice".to_owned(), tool_choice(choice))));
    if let Some(reasoning) = given.take("reasoning") {
        let mut reasoning = Fields::new(reasoning, "reasoning")?;
        map.extend(reasoning.take("effort").map(|effort| ("reasoning_effort".to_owned(), effort)));
    }
    if logprobs {
        map.insert("logprobs".into(), json!(true));
    }
    let rest = given.rest();
    let or_null = |key: &str| rest.get(key).cloned().unwrap_or(Value::Null);
    let echo = Echo {
        instructions: json!(instructions),
        max_output_tokens: json!(limit),
        metadata: rest.get("metadata").filter(|m| m.is_object()).cloned().unwrap_or_else(|| json!({})),
        temperature: or_null("temperature"),
        top_p: or_null("top_p"),
        text,
        tools: json!(tools),
        tool_choice: chosen.unwrap_or_else(|| json!("auto")),
    };
    for (key, value) in rest {
        map.entry(key).or_insert(value);
    }
    if !logprobs {
        map.shift_remove("top_logprobs");
    }
    Ok(Translated { fields: Fields::new(Value::Object(map), "")?, echo, logprobs })
}

/// Items of the input as messages: calls belong to the assistant's message before them, and so does a thought behind it.
fn read_items(items: Vec<Value>, messages: &mut Vec<Value>) -> Result<(), ApiError> {
    let mut thought: Option<String> = None;
    for (i, value) in items.into_iter().enumerate() {
        let at = format!("input[{i}]");
        let mut item = Fields::new(value, &at)?;
        match item.text("type")?.as_deref() {
            None | Some("message") => {
                // Fields of the API's own answers.
                ["id", "status", "phase"].iter().for_each(|key| drop(item.take(key)));
                let mut message = item.rest();
                if message.get("role").is_some_and(|r| r == "assistant") {
                    message.extend(thought.take().map(|t| ("reasoning_content".to_owned(), json!(t))));
                }
                messages.push(Value::Object(message));
            }
            Some("function_call") => {
                let call = json!({"id": item.text("call_id")?, "type": "function",
                    "function": {"name": item.text("name")?, "arguments": item.take("arguments")}});
                let calls = match messages.last_mut().filter(|m| m["role"] == "assistant") {
                    Some(last) => last,
                    None => {
                        let mut message = json!({"role": "assistant", "content": null});
                        if let Some(thought) = thought.take() {
                            message["reasoning_content"] = json!(thought);
                        }
                        messages.push(message);
                        let last = messages.len() - 1;
                        &mut messages[last]
                    }
                };
                match &mut calls["tool_calls"] {
                    Value::Array(list) => list.push(call),
                    none => *none = json!([call]),
                }
            }
            Some("function_call_output") => {
                let output = item.take("output").ok_or_else(|| item.wrong("output", "is missing"))?;
                messages.push(json!({"role": "tool", "tool_call_id": item.text("call_id")?, "content": output}));
            }
            Some("reasoning") => {
                let texts = item.list("content")?.unwrap_or_default();
                let text: String = texts.iter().filter_map(|part| part["text"].as_str()).collect();
                thought = Some(text).filter(|t| !t.is_empty());
            }
            Some(other) => {
                let name = format!("{at}.type");
                let message = format!(
                    "{name}: this server takes messages, function_call, function_call_output and reasoning, not {other:?}"
                );
                return Err(ApiError::unsupported(&name, message));
            }
        }
    }
    Ok(())
}

/// `text` as a chat's `response_format`.
fn response_format(text: Value) -> Result<Option<Value>, ApiError> {
    let mut text = Fields::new(text, "text")?;
    let Some(format) = text.take("format") else { return Ok(None) };
    let mut format = Fields::new(format, "text.format")?;
    Ok(match format.text("type")?.as_deref() {
        Some("json_schema") => {
            let schema = format.take("schema").ok_or_else(|| format.wrong("schema", "is missing"))?;
            Some(json!({"type": "json_schema", "json_schema": {"schema": schema}}))
        }
        Some(other) => Some(json!({"type": other})),
        None => None,
    })
}

/// A function: here its parts stand beside `type`.
fn tool(value: &Value) -> Value {
    let Value::Object(map) = value else { return value.clone() };
    if map.contains_key("function") || map.get("type").is_some_and(|t| t != "function") {
        return value.clone();
    }
    let mut function = map.clone();
    function.shift_remove("type");
    json!({"type": "function", "function": function})
}

fn tool_choice(value: Value) -> Value {
    match (value["type"].as_str(), value["name"].as_str()) {
        (Some("function"), Some(name)) => json!({"type": "function", "function": {"name": name}}),
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(input: Value) -> Value {
        let mut fields = translate(json!({"input": input})).unwrap().fields;
        fields.take("messages").unwrap()
    }

    #[test]
    fn items_become_messages() {
        assert_eq!(messages(json!("hi")), json!([{"role": "user", "content": "hi"}]));
        let said = json!([{"type": "output_text", "text": "Hello.", "annotations": []}]);
        let items = json!([
            {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "A greeting."}]},
            {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": said},
            {"type": "function_call", "id": "fc_1", "call_id": "a", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "b", "name": "g", "arguments": "{\"x\": 1}"},
            {"type": "function_call_output", "call_id": "a", "output": "1"},
        ]);
        let call = |id: &str, name: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
        assert_eq!(
            messages(items),
            json!([
                {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                {"role": "assistant", "content": said, "reasoning_content": "A greeting.",
                 "tool_calls": [call("a", "f", "{}"), call("b", "g", "{\"x\": 1}")]},
                {"role": "tool", "tool_call_id": "a", "content": "1"},
            ])
        );
    }

    #[test]
    fn fields_get_the_names_of_a_chat() {
        let body = json!({"input": "x", "instructions": "Be brief.", "max_output_tokens": 5, "temperature": 0, "top_logprobs": 3,
            "text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "null"}}}, "tool_choice": {"type": "function",
            "name": "f"}, "tools": [{"type": "function", "name": "f", "parameters": {}, "strict": true}], "reasoning": {"effort": "low"},
            "store": false, "include": [], "background": false, "previous_response_id": null});
        let Translated { mut fields, echo, logprobs } = translate(body).unwrap();
        let mut take = |key: &str| fields.take(key).unwrap_or(Value::Null);
        assert_eq!(take("messages")[0], json!({"role": "system", "content": "Be brief."}));
        assert_eq!((take("max_completion_tokens"), take("temperature")), (json!(5), json!(0)));
        assert_eq!(take("response_format")["json_schema"], json!({"schema": {"type": "null"}}));
        assert_eq!(
            take("tools")[0],
            json!({"type": "function", "function": {"name": "f", "parameters": {}, "strict": true}})
        );
        assert_eq!(take("tool_choice"), json!({"type": "function", "function": {"name": "f"}}));
        assert_eq!((take("reasoning_effort"), take("top_logprobs"), logprobs), (json!("low"), Value::Null, false));
        assert_eq!((echo.max_output_tokens, echo.tool_choice["name"].as_str()), (json!(5), Some("f")));
        for (body, param) in [
            (json!({}), "input"),
            (json!({"input": 3}), "input"),
            (json!({"input": "x", "previous_response_id": "resp_1"}), "previous_response_id"),
            (json!({"input": "x", "background": true}), "background"),
            (json!({"input": [{"type": "item_reference", "id": "a"}]}), "input[0].type"),
            (json!({"input": "x", "text": {"format": {"type": "json_schema"}}}), "text.format.schema"),
        ] {
            let error = translate(body.clone()).err().unwrap();
            assert_eq!(error.param.as_deref(), Some(param), "{body}");
        }
    }
}
