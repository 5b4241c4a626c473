//! How a template takes tool calls: found out by rendering one in each style.

use super::place::marker;
use super::tool_format::ToolFormat;
use super::{ChatTemplate, Message};
use crate::data::{ToolCall, ToolPart};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::HashMap;

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
    /// The id of a call is `functions.NAME:NUMBER`, which is all that Kimi's templates show of a name.
    pub named_ids: bool,
}

impl CallStyle {
    /// All styles; ids of their own come last.
    fn each() -> impl Iterator<Item = Self> + Clone {
        let styles = [false, true].into_iter().flat_map(|named_ids| {
            [(false, false), (false, true), (true, false), (true, true)].map(move |pair| (named_ids, pair))
        });
        styles.map(|(named_ids, (text_arguments, null_content))| Self { text_arguments, null_content, named_ids })
    }

    /// Messages as a template of this style takes them.
    pub(super) fn styled(self, messages: &[Message]) -> Cow<'_, [Message]> {
        if !self.named_ids || messages.iter().all(|m| m.tools.calls.is_empty()) {
            return Cow::Borrowed(messages);
        }
        let (mut messages, mut ids, mut n) = (messages.to_vec(), HashMap::new(), 0);
        for message in &mut messages {
            for call in &mut message.tools.calls {
                let id = format!("functions.{}:{n}", call.name);
                n += 1;
                ids.insert(std::mem::replace(&mut call.id, id.clone()), id);
            }
            if let Some(id) = message.tools.call_id.as_mut()
                && let Some(named) = ids.get(id.as_str())
            {
                id.clone_from(named);
            }
        }
        Cow::Owned(messages)
    }
}

/// A call as a template writes it.
struct Written {
    /// The prompt before it.
    asked: String,
    text: String,
    name: String,
    arguments: Map<String, Value>,
}

impl ChatTemplate {
    /// The first style in which calls come back; else the first that shows them.
    pub(super) fn call_style(&self) -> CallStyle {
        let written = |style: CallStyle| Self { calls: style, ..self.clone() }.written_call();
        let read = |w: &Written| w.format().is_some();
        let shown = |w: &Written| w.text.contains(&w.name);
        let styles = CallStyle::each();
        let found = styles.clone().find(|style| written(*style).is_some_and(|w| read(&w)));
        found.or_else(|| styles.clone().find(|style| written(*style).is_some_and(|w| shown(&w)))).unwrap_or_default()
    }

    /// The form of tool calls, found by rendering one and reading it back; `None` where it is none that is known.
    pub(super) fn read_back(&self) -> Option<ToolFormat> {
        self.written_call()?.format()
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
        Some(Written { text: answer.to_owned(), asked, name, arguments })
    }
}

impl Written {
    fn format(&self) -> Option<ToolFormat> {
        ToolFormat::of_written(&self.asked, &self.text, &self.name, &self.arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::template::JinjaTemplate;
    use crate::data::template::engine::MessageForm;

    #[test]
    fn ids_of_kimis_kind_hold_the_name_and_are_counted() {
        let calls =
            ["find", "go"].map(|name| ToolCall { id: format!("id-{name}"), name: name.into(), arguments: Map::new() });
        let calling =
            Message { tools: ToolPart { calls: calls.into(), ..ToolPart::default() }, ..Message::assistant("") };
        let mut told = Message::user("5");
        told.role = "tool".into();
        told.tools.call_id = Some("id-go".into());
        let style = CallStyle { named_ids: true, ..CallStyle::default() };
        let source = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.id }} {% endfor %}\
                      {% if m.role == 'tool' %}of {{ m.tool_call_id }}{% endif %}{% endfor %}";
        let template = JinjaTemplate::new("t", source.into(), "", "").unwrap();
        let form = MessageForm { calls: style, ..MessageForm::default() };
        let text = template.render(&[calling, told], false, form, &Map::new()).unwrap();
        assert_eq!(text, "functions.find:0 functions.go:1 of functions.go:1");
    }
}
