//! How a template takes tool calls: found out by rendering one in each style.

use super::place::marker;
use super::tool_format::ToolFormat;
use super::{ChatTemplate, Message};
use crate::data::{ToolCall, ToolPart};
use serde_json::{Map, Value};

/// An id that every template takes: Mistral's want nine letters and digits.
const PROBE_ID: &str = "bidpo0001";

/// A style in which templates read tool calls. Hugging Face passes arguments as objects; DeepSeek's and Functionary's templates
/// join them to texts as OpenAI's API has them, and some show calls only beside a content that is null.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct CallStyle {
    /// Arguments are a text of JSON.
    pub text_arguments: bool,
    /// An empty content beside calls is null.
    pub null_content: bool,
}

impl CallStyle {
    const EACH: [Self; 4] = [
        Self { text_arguments: false, null_content: false },
        Self { text_arguments: false, null_content: true },
        Self { text_arguments: true, null_content: false },
        Self { text_arguments: true, null_content: true },
    ];
}

/// A call as a template writes it.
struct Written {
    text: String,
    name: String,
    arguments: Map<String, Value>,
}

impl ChatTemplate {
    /// The first style in which calls come back; else the first that shows them.
    pub(super) fn call_style(&self) -> CallStyle {
        let written = |style: CallStyle| Self { calls: style, ..self.clone() }.written_call();
        let read = |w: &Written| ToolFormat::of_written(&w.text, &w.name, &w.arguments).is_some();
        let shown = |w: &Written| w.text.contains(&w.name);
        let styles = CallStyle::EACH.into_iter();
        let found = styles.clone().find(|style| written(*style).is_some_and(|w| read(&w)));
        found.or_else(|| styles.clone().find(|style| written(*style).is_some_and(|w| shown(&w)))).unwrap_or_default()
    }

    /// The form of tool calls, found by rendering one and reading it back; `None` where it is none that is known.
    pub(super) fn read_back(&self) -> Option<ToolFormat> {
        let written = self.written_call()?;
        ToolFormat::of_written(&written.text, &written.name, &written.arguments)
    }

    /// What the template writes of an answer that calls a function of one argument.
    fn written_call(&self) -> Option<Written> {
        let (question, name, value) = (marker(0), marker(1), marker(2));
        let user = Message::user(&question);
        let arguments = Map::from_iter([("place".to_owned(), Value::String(value))]);
        let call = ToolCall { id: PROBE_ID.into(), name: name.clone(), arguments: arguments.clone() };
        let calling =
            Message { tools: ToolPart { calls: vec![call], ..ToolPart::default() }, ..Message::assistant("") };
        let text = self.write(&[user.clone(), calling], false).ok()?;
        let asked = self.write(&[user], true).unwrap_or_default();
        let answer = match text.strip_prefix(asked.as_str()) {
            Some(answer) if !asked.is_empty() => answer,
            _ => &text[text.rfind(&question)? + question.len()..],
        };
        Some(Written { text: answer.to_owned(), name, arguments })
    }
}
