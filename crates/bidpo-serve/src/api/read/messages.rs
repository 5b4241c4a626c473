//! The messages of a chat, as OpenAI's clients and those of other servers write them.

use crate::api::read::error::ApiError;
use crate::api::read::fields::{Fields, kind};
use crate::api::read::notes::Notes;
use crate::api::read::thoughts::{Thoughts, reopen, variables};
use crate::api::read::tools::{self, CallReader, Tools};
use crate::state::State;
use bidpo_core::data::{ChatTemplate, Message, Prompt, TemplateError, ToolPart};
use ggml_grad::llama::{Grammar, Model, Token};
use serde_json::{Map, Value};
use std::sync::Arc;

/// What follows the last message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::api) enum Ending {
    /// A new answer: the template's generation prompt.
    Answer,
    /// More of the last message, which is the assistant's.
    Continue,
    /// Whatever the model makes of a finished chat.
    Bare,
}

/// The chat of a request.
#[derive(Debug)]
pub(in crate::api) struct Chat {
    pub messages: Vec<Message>,
    pub ending: Ending,
    /// Variables of the template.
    pub variables: Map<String, Value>,
    /// Thoughts are parted from answers.
    pub parts_thoughts: bool,
    /// Functions that the answer may call.
    pub tools: Option<Tools>,
}

impl Chat {
    /// Messages that an answer follows, with the template as it is.
    pub(in crate::api) fn plain(messages: Vec<Message>) -> Self {
        Self { messages, ending: Ending::Answer, variables: Map::new(), parts_thoughts: true, tools: None }
    }
}

/// A chat as tokens.
#[derive(Debug)]
pub(in crate::api) struct Encoded {
    pub tokens: Vec<Token>,
    pub thoughts: Thoughts,
    /// How calls of tools are found in the answer.
    pub calls: Option<CallReader>,
    /// Of a call that is required.
    pub grammar: Option<Grammar>,
}

/// Reads `messages`, and the two fields that say what follows them.
pub(in crate::api) fn chat(fields: &mut Fields, state: &State, notes: &mut Notes) -> Result<Chat, ApiError> {
    let messages = messages(fields, notes)?;
    let continued = messages.last().is_some_and(|m| m.role == "assistant");
    let (generate, continues) = (fields.boolean("add_generation_prompt")?, fields.boolean("continue_final_message")?);
    let ending = match (generate, continues) {
        (Some(true), Some(true)) => {
            return Err(fields.wrong("continue_final_message", "and add_generation_prompt cannot both be true"));
        }
        (_, Some(true)) if !continued => {
            return Err(fields.wrong("continue_final_message", "is true, and the last message is not the assistant's"));
        }
        (_, Some(true)) => Ending::Continue,
        (Some(true), _) => Ending::Answer,
        (Some(false), Some(false)) => Ending::Bare,
        (None, Some(false)) => Ending::Answer,
        (Some(false), None) if continued => Ending::Continue,
        (Some(false), None) => Ending::Bare,
        (None, None) if continued && state.continue_answers => Ending::Continue,
        (None, None) => Ending::Answer,
    };
    let variables = variables(fields, &state.template, notes)?;
    // llama.cpp's names; none leaves the answer as it was written.
    let parts_thoughts = match fields.text("reasoning_format")?.as_deref() {
        None | Some("auto" | "deepseek" | "deepseek-legacy") => true,
        Some("none") => false,
        Some(other) => {
            return Err(fields.wrong("reasoning_format", &format!("must be auto, deepseek or none, not {other:?}")));
        }
    };
    Ok(Chat { messages, ending, variables, parts_thoughts, tools: tools::tools(fields)? })
}

/// Reads `messages`.
pub(in crate::api) fn messages(fields: &mut Fields, notes: &mut Notes) -> Result<Vec<Message>, ApiError> {
    let list = fields.list("messages")?.ok_or_else(|| fields.wrong("messages", "is missing"))?;
    if list.is_empty() {
        return Err(fields.wrong("messages", "is empty"));
    }
    let one = |(i, value)| message(value, &format!("messages[{i}]"), notes);
    let mut messages = list.into_iter().enumerate().map(one).collect::<Result<Vec<_>, _>>()?;
    tools::name_answers(&mut messages);
    Ok(messages)
}

/// Keys of messages that change nothing: names that templates do not show, marks of caches and of clients.
const HARMLESS: [&str; 4] = ["name", "annotations", "cache_control", "prefix"];

fn message(value: Value, at: &str, notes: &mut Notes) -> Result<Message, ApiError> {
    let mut fields = Fields::new(value, at)?;
    let role = fields.text("role")?.ok_or_else(|| fields.wrong("role", "is missing"))?;
    let role = match role.as_str() {
        "system" | "developer" => "system",
        "user" => "user",
        "assistant" => "assistant",
        // OpenAI's older name for it.
        "tool" | "function" => "tool",
        other => {
            return Err(
                fields.wrong("role", &format!("must be system, developer, user, assistant or tool, not {other:?}"))
            );
        }
    };
    let given = fields.has("content");
    let content = match fields.take("content") {
        // OpenAI's clients send null for an assistant that only refused or called tools.
        None if given || role == "assistant" => None,
        None => return Err(fields.wrong("content", "is missing")),
        Some(Value::String(text)) => Some(text),
        Some(Value::Array(parts)) => {
            let at = fields.name("content");
            let texts = parts.into_iter().enumerate().map(|(i, part)| part_text(part, &format!("{at}[{i}]"), notes));
            Some(texts.collect::<Result<String, _>>()?)
        }
        // One part without its list.
        Some(part @ Value::Object(_)) => Some(part_text(part, &fields.name("content"), notes)?),
        Some(other) => {
            return Err(fields.wrong("content", &format!("must be a string or a list of parts, not {}", kind(&other))));
        }
    };
    // The words of a refusal stand in the place of the content.
    let refusal = fields.text("refusal")?;
    let tools = match role {
        "tool" => {
            // Ollama's clients name the tool, and its calls have no ids.
            let (name, of_ollama) = (fields.text("name")?, fields.text("tool_name")?);
            ToolPart { call_id: fields.text("tool_call_id")?, name: name.or(of_ollama), ..ToolPart::default() }
        }
        "assistant" => {
            let mut calls = tools::calls(&mut fields)?;
            calls.extend(tools::older_call(&mut fields)?);
            ToolPart { calls, ..ToolPart::default() }
        }
        _ => ToolPart::default(),
    };
    // Keys of OpenAI's own answers, mostly empty, which clients send back in the history.
    for key in ["tool_calls", "audio", "function_call", "images"] {
        if let Some(value) = fields.take(key).filter(|v| !is_empty(v)) {
            let name = fields.name(key);
            return Err(ApiError::unsupported(
                &name,
                format!("{name} is not supported by this server (got {})", kind(&value)),
            ));
        }
    }
    let thoughts = [fields.text("reasoning_content")?, fields.text("reasoning")?, fields.text("thinking")?];
    let reasoning_content = thoughts.into_iter().flatten().find(|text| !text.is_empty());
    HARMLESS.iter().for_each(|key| drop(fields.take(key)));
    fields.done(notes)?;
    Ok(Message { reasoning_content, tools, ..Message::new(role, content.or(refusal).unwrap_or_default()) })
}

/// True for an empty list or object.
fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(serde_json::Map::is_empty)
}

/// The text of one part of a message's content.
fn part_text(value: Value, at: &str, notes: &mut Notes) -> Result<String, ApiError> {
    if let Value::String(text) = value {
        return Ok(text);
    }
    let mut fields = Fields::new(value, at)?;
    let key = match fields.text("type")?.as_deref() {
        Some("text" | "input_text" | "output_text") => "text",
        Some("refusal") => "refusal",
        Some(other) => {
            let name = fields.name("type");
            return Err(ApiError::unsupported(
                &name,
                format!("{name}: only text is supported by this server, not {other:?}"),
            ));
        }
        None if fields.has("text") => "text",
        None => return Err(fields.wrong("type", "is missing")),
    };
    let text = fields.text(key)?.ok_or_else(|| fields.wrong(key, "is missing"))?;
    ["cache_control", "annotations", "logprobs"].iter().for_each(|key| drop(fields.take(key)));
    fields.done(notes)?;
    Ok(text)
}

/// Tokens of a chat, ready for what follows it.
pub(in crate::api) async fn encode(state: &Arc<State>, chat: Chat) -> Result<Encoded, ApiError> {
    let state = Arc::clone(state);
    let encoded = tokio::task::spawn_blocking(move || encode_chat(&state, chat));
    encoded.await.map_err(|e| ApiError::internal(e.to_string()))?
}

fn encode_chat(state: &State, chat: Chat) -> Result<Encoded, ApiError> {
    let wrong = |e: TemplateError| ApiError::template("messages", &e);
    let (template, model) = (state.template.with_variables(&chat.variables).map_err(wrong)?, &state.model);
    let (template, calls, grammar) = match &chat.tools {
        None => (template, None, None),
        Some(tools) => {
            let prepared = tools.prepare(&template, model)?;
            (prepared.template, Some(prepared.reader), prepared.grammar)
        }
    };
    let (tokens, thoughts) = tokens_of(&template, model, chat).map_err(wrong)?;
    Ok(Encoded { tokens, thoughts, calls, grammar })
}

fn tokens_of(template: &ChatTemplate, model: &Model, chat: Chat) -> Result<(Vec<Token>, Thoughts), TemplateError> {
    template.check_tool_messages(&chat.messages)?;
    let chat = reopen(template, chat)?;
    let thoughts = if chat.parts_thoughts { Thoughts::of(template, &chat)? } else { Thoughts::default() };
    let tokens = match chat.ending {
        Ending::Answer => template.encode_prompt(model, &Prompt::Messages(chat.messages))?,
        Ending::Continue => template.encode_unfinished(model, &chat.messages)?,
        Ending::Bare => template.encode_finished(model, &chat.messages)?,
    };
    Ok((tokens, thoughts))
}

/// The text of a chat as the model would read it.
pub(in crate::api) fn render(state: &State, chat: Chat) -> Result<String, ApiError> {
    let wrong = |e: TemplateError| ApiError::template("messages", &e);
    let template = state.template.with_variables(&chat.variables).map_err(wrong)?;
    let template = match &chat.tools {
        Some(tools) => tools.prepare(&template, &state.model)?.template,
        None => template,
    };
    template.check_tool_messages(&chat.messages).map_err(wrong)?;
    let chat = reopen(&template, chat).map_err(wrong)?;
    let text = match chat.ending {
        Ending::Answer => template.render(&chat.messages, true),
        Ending::Continue => template.render_unfinished(&chat.messages),
        Ending::Bare => template.render(&chat.messages, false),
    };
    text.map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<Message, ApiError> {
        message(value, "messages[0]", &mut Notes::new(true))
    }

    #[test]
    fn messages_of_many_clients_are_read() {
        let text = |value| read(value).map(|m| (m.role, m.content)).unwrap();
        let pair = |role: &str, content: &str| (role.to_owned(), content.to_owned());
        for (value, want) in [
            (json!({"role": "system", "name": "example_user", "content": "Ahoy?"}), pair("system", "Ahoy?")),
            (json!({"role": "developer", "content": "Be brief."}), pair("system", "Be brief.")),
            (json!({"role": "assistant", "content": null, "tool_calls": [], "audio": {}}), pair("assistant", "")),
            (json!({"role": "assistant"}), pair("assistant", "")),
            (json!({"role": "user", "content": null}), pair("user", "")),
            (json!({"role": "user", "content": []}), pair("user", "")),
            (json!({"role": "user", "content": {"type": "text", "text": "a"}, "images": []}), pair("user", "a")),
            (json!({"role": "function", "name": "f", "content": "1"}), pair("tool", "1")),
            (json!({"role": "tool", "tool_call_id": "a", "content": null}), pair("tool", "")),
            (json!({"role": "tool", "tool_name": "f", "content": "1"}), pair("tool", "1")),
            (json!({"role": "assistant", "content": null, "refusal": "No."}), pair("assistant", "No.")),
            (
                json!({"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, "b",
                       {"type": "input_text", "text": "c"}], "cache_control": {"type": "ephemeral"}}),
                pair("user", "abc"),
            ),
            (
                json!({"role": "assistant", "content": [{"type": "output_text", "text": "a", "annotations": []},
                       {"type": "refusal", "refusal": "b"}], "refusal": null, "annotations": [], "function_call": null}),
                pair("assistant", "ab"),
            ),
        ] {
            assert_eq!(text(value.clone()), want, "{value}");
        }
    }

    #[test]
    fn tools_are_named_in_two_ways() {
        let name = |value| read(value).unwrap().tools.name;
        assert_eq!(name(json!({"role": "tool", "tool_name": "f", "content": "1"})).as_deref(), Some("f"));
        assert_eq!(name(json!({"role": "function", "name": "g", "content": "1"})).as_deref(), Some("g"));
    }

    #[test]
    fn what_cannot_be_a_message_is_named() {
        for (value, param) in [
            (json!("hi"), "messages[0]"),
            (json!({"content": "x"}), "messages[0].role"),
            (json!({"role": "king", "content": "x"}), "messages[0].role"),
            (json!({"role": "user"}), "messages[0].content"),
            (json!({"role": "user", "content": 3}), "messages[0].content"),
            (json!({"role": "user", "content": [{"type": "image_url"}]}), "messages[0].content[0].type"),
            (json!({"role": "user", "content": [{"type": "text"}]}), "messages[0].content[0].text"),
            (json!({"role": "assistant", "tool_calls": [{}]}), "messages[0].tool_calls[0].function"),
            (
                json!({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}),
                "messages[0].tool_calls[0].function.arguments",
            ),
            (json!({"role": "user", "content": "", "tool_calls": [{}]}), "messages[0].tool_calls"),
            (json!({"role": "user", "content": "", "images": ["AAAA"]}), "messages[0].images"),
            (json!({"role": "user", "content": {"type": "image_url"}}), "messages[0].content.type"),
            (json!({"role": "assistant", "function_call": {"arguments": "{}"}}), "messages[0].function_call.name"),
        ] {
            assert_eq!(read(value.clone()).unwrap_err().param.as_deref(), Some(param), "{value}");
        }
    }
}
