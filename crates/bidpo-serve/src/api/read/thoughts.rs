//! Variables of the template, and thoughts: what a reasoning model writes before its answer.

use crate::api::read::error::ApiError;
use crate::api::read::fields::{Fields, short};
use crate::api::read::messages::{Chat, Ending};
use crate::api::read::notes::Notes;
use crate::api::read::tools::control_tokens;
use bidpo_core::data::{AnswerPart, ChatTemplate, Message, TemplateError, ThoughtMarks, ThoughtSplitter};
use ggml_grad::llama::{Model, Token};
use serde_json::{Map, Value, json};

/// Variables that clients set beside `chat_template_kwargs`, where the template reads them.
pub(in crate::api) const AT_THE_TOP: [&str; 3] = ["enable_thinking", "reasoning_effort", "thinking"];

/// Variables of the chat itself.
const OF_THE_CHAT: [&str; 4] = ["messages", "add_generation_prompt", "tools", "documents"];

/// The template's variables that turn thinking on and off.
const SWITCHES: [&str; 2] = ["enable_thinking", "thinking"];

/// Whether thinking is asked for: true, a word, `{"type": "disabled"}` (DeepSeek, GLM), `{"enabled": false}` or
/// `{"effort": "none"}` (OpenRouter). A word in Jinja is true, whatever it says.
fn switch(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(on) => Some(*on),
        // A budget of no tokens.
        Value::Number(n) if n.as_f64() == Some(0.0) => Some(false),
        Value::String(word) => match word.as_str() {
            "true" | "enabled" | "on" => Some(true),
            "false" | "disabled" | "off" | "none" => Some(false),
            _ => None,
        },
        Value::Object(map) => {
            let none = |key: &str, of: Value| map.get(key).filter(|v| **v == of).map(|_| false);
            let off = none("effort", json!("none")).or_else(|| none("max_tokens", json!(0)));
            off.or_else(|| none("budget_tokens", json!(0)))
                .or_else(|| switch(map.get("enabled").or_else(|| map.get("type"))?))
        }
        _ => None,
    }
}

/// Reads `chat_template_kwargs` and the variables beside it. A variable that the template does not read is noted.
pub(in crate::api) fn variables(
    fields: &mut Fields,
    template: &ChatTemplate,
    notes: &mut Notes,
) -> Result<Map<String, Value>, ApiError> {
    let reads = |name: &str| template.variables().iter().any(|v| v == name);
    let mut variables = Map::new();
    // Other servers' names for the same switch.
    if SWITCHES.into_iter().any(reads) {
        for name in ["reasoning_budget", "thinking_budget", "reasoning", "think", "thinking", "enable_thinking"] {
            let Some(value) = fields.take(name) else { continue };
            match switch(&value) {
                Some(on) => {
                    variables.extend(SWITCHES.into_iter().filter(|s| reads(s)).map(|s| (s.to_owned(), json!(on))));
                }
                None if reads(name) => _ = variables.insert(name.to_owned(), value),
                None => fields.put(name, value),
            }
        }
    }
    if reads("reasoning_effort") {
        variables.extend(fields.take("reasoning_effort").map(|value| ("reasoning_effort".to_owned(), value)));
    } else if SWITCHES.into_iter().any(reads) && fields.take_if("reasoning_effort", |v| v == "none").is_some() {
        variables.extend(SWITCHES.into_iter().filter(|s| reads(s)).map(|s| (s.to_owned(), json!(false))));
    }
    let given = match fields.take("chat_template_kwargs") {
        None => Map::new(),
        Some(Value::Object(map)) => map,
        // Forms of front-ends send a text.
        Some(Value::String(text)) if serde_json::from_str::<Map<String, Value>>(&text).is_ok() => {
            serde_json::from_str(&text).unwrap_or_default()
        }
        Some(other) => {
            return Err(fields.wrong("chat_template_kwargs", &format!("must be an object, not {}", short(&other))));
        }
    };
    let at = fields.name("chat_template_kwargs.");
    for (name, value) in given {
        if OF_THE_CHAT.contains(&name.as_str()) {
            let name = format!("{at}{name}");
            return Err(ApiError::unsupported(&name, format!("{name} is part of the chat, not a variable")));
        }
        if reads(&name) {
            let on = SWITCHES.contains(&name.as_str()).then(|| switch(&value)).flatten();
            variables.insert(name, on.map_or(value, Value::Bool));
        } else {
            notes.unknown(&at, &name)?;
        }
    }
    Ok(variables)
}

/// Puts the unfinished thought of a message that is to be continued where the model wrote it: behind the opening mark. Behind a
/// finished thought there is an answer, and the template writes both.
pub(in crate::api) fn reopen(template: &ChatTemplate, mut chat: Chat) -> Result<Chat, TemplateError> {
    let (Ending::Continue, Some(marks)) = (chat.ending, template.thought_marks()) else { return Ok(chat) };
    let Some((last, before)) = chat.messages.split_last_mut() else { return Ok(chat) };
    let Some(thought) = last.reasoning_content.take_if(|_| last.content.trim().is_empty()) else { return Ok(chat) };
    let asked = template.render(before, true)?;
    let gap = match asked.rfind(&marks.open).filter(|_| marks.is_open_at_end(&asked)) {
        Some(at) => &asked[at + marks.open.len()..],
        // Tags stand on a line of their own.
        None if marks.open.starts_with('<') && !marks.open.contains('|') => "\n",
        None => "",
    };
    last.content = format!("{}{gap}{thought}", marks.open);
    Ok(chat)
}

/// How the thoughts of an answer are told.
#[derive(Debug, Clone, Default)]
pub(in crate::api) struct Thoughts {
    /// The template's marks; None: all text is answer.
    marks: Option<ThoughtMarks>,
    /// The prompt ends within a thought.
    open: bool,
}

impl Thoughts {
    /// Of the answer to a chat.
    pub(in crate::api) fn of(template: &ChatTemplate, chat: &Chat) -> Result<Self, TemplateError> {
        let Some(marks) = template.thought_marks().cloned() else { return Ok(Self::default()) };
        let open = match chat.ending {
            // Whether the generation prompt opens a thought. Marks in what people wrote open none.
            Ending::Answer => {
                let bare = |m: &Message| Message {
                    content: m.content.replace(&marks.open, "").replace(&marks.close, ""),
                    ..m.clone()
                };
                template.opens_thought(&chat.messages.iter().map(bare).collect::<Vec<_>>())?
            }
            Ending::Continue => chat.messages.last().is_some_and(|m| marks.is_open_at_end(&m.content)),
            Ending::Bare => false,
        };
        Ok(Self { marks: Some(marks), open })
    }

    /// Marks that are control tokens, which are written out so that thoughts are found.
    pub(in crate::api) fn written(&self, model: &Model) -> Vec<Token> {
        let marks = self.marks.iter().flat_map(|m| [m.open.as_str(), m.close.as_str()]);
        let headers = self.marks.iter().flat_map(|m| m.headers()).copied();
        control_tokens(model, &marks.chain(headers).collect::<Vec<_>>())
    }

    /// For an answer that is being written.
    pub(in crate::api) fn splitter(&self) -> ThoughtSplitter {
        ThoughtSplitter::new(self.marks.clone(), self.open)
    }

    /// Parts a whole answer as its stream would be.
    pub(in crate::api) fn split(&self, text: &str) -> Told {
        let mut splitter = self.splitter();
        let mut told = Told::of(splitter.push(text));
        told.add(splitter.finish());
        told
    }
}

/// Parts of an answer.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::api) struct Told {
    pub reasoning: String,
    pub answer: String,
}

impl Told {
    pub(in crate::api) fn of(parts: Vec<AnswerPart>) -> Self {
        let mut told = Self::default();
        told.add(parts);
        told
    }

    fn add(&mut self, parts: Vec<AnswerPart>) {
        for part in parts {
            match part {
                AnswerPart::Reasoning(text) => self.reasoning += &text,
                AnswerPart::Answer(text) => self.answer += &text,
            }
        }
    }

    pub(in crate::api) fn is_empty(&self) -> bool {
        self.reasoning.is_empty() && self.answer.is_empty()
    }

    /// The `delta` of a chunk. Text that is neither is an empty answer.
    pub(in crate::api) fn delta(&self) -> Value {
        let mut delta = json!({});
        if !self.reasoning.is_empty() {
            delta["reasoning_content"] = json!(self.reasoning);
        }
        if !self.answer.is_empty() || self.reasoning.is_empty() {
            delta["content"] = json!(self.answer);
        }
        delta
    }

    /// Puts the thought into a message under this key, if there is one.
    pub(in crate::api) fn add_reasoning(&self, message: &mut Value, key: &str) {
        let reasoning = self.reasoning.trim_end();
        if !reasoning.is_empty() {
            message[key] = json!(reasoning);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinking_is_switched_in_many_ways() {
        for value in [
            json!(true),
            json!("true"),
            json!("enabled"),
            json!({"type": "enabled", "budget_tokens": 5}),
            json!({"enabled": true}),
        ] {
            assert_eq!(switch(&value), Some(true), "{value}");
        }
        for value in [
            json!(false),
            json!("false"),
            json!({"type": "disabled"}),
            json!({"effort": "none"}),
            json!({"enabled": false}),
            json!(0),
            json!({"type": "enabled", "budget_tokens": 0}),
            json!({"max_tokens": 0}),
        ] {
            assert_eq!(switch(&value), Some(false), "{value}");
        }
        for value in [json!("high"), json!(3), json!({"effort": "low"}), json!({}), json!([])] {
            assert_eq!(switch(&value), None, "{value}");
        }
    }
}
