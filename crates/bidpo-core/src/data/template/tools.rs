//! Tools in a chat: whether the template shows them, and in which form its model writes a call.

use super::place::{marked, marker};
use super::tool_format::ToolFormat;
use super::{ChatTemplate, Message, TemplateError};
use serde_json::Value;

impl ChatTemplate {
    /// The same template with these tools, each in OpenAI's form (`{"type": "function", "function": {"name": ...}}`).
    ///
    /// # Errors
    /// [`TemplateError::NoTools`] for a template that leaves one out.
    pub fn with_tools(&self, tools: &[Value]) -> Result<Self, TemplateError> {
        let none = || TemplateError::NoTools { name: self.name.clone() };
        if self.engine.is_none() {
            return Err(none());
        }
        let mut template = self.clone();
        let shielded = template.encoder.shield_tools(&Value::Array(tools.to_vec()));
        let names: Vec<String> = shielded
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|t| Some(t["function"]["name"].as_str()?.into()))
            .collect();
        template.settings.variables.insert("tools".into(), shielded);
        template.known = std::sync::Arc::default();
        let template = template.probed()?;
        let text = template.write(&[Message::user(marker(0))], true)?;
        if names.iter().all(|name| text.contains(name.as_str())) { Ok(template) } else { Err(none()) }
    }

    /// The form of tool calls, found by rendering one and reading it back.
    ///
    /// # Errors
    /// [`TemplateError::NoToolFormat`] where it is none that is known.
    pub fn tool_format(&self) -> Result<ToolFormat, TemplateError> {
        self.read_back().ok_or_else(|| TemplateError::NoToolFormat { name: self.name.clone() })
    }

    /// Checks that the template shows the tool calls and the tools' answers of a chat.
    ///
    /// # Errors
    /// [`TemplateError::LostTools`], and [`TemplateError::Render`] where it refuses such a chat.
    pub fn check_tool_messages(&self, messages: &[Message]) -> Result<(), TemplateError> {
        let of_tools = |m: &Message| m.role == "tool" || !m.tools.calls.is_empty();
        if !messages.iter().any(of_tools) {
            return Ok(());
        }
        let lost = || TemplateError::LostTools { name: self.name.clone() };
        if self.engine.is_none() {
            return Err(lost());
        }
        let mut words = Vec::new();
        let placed = self.placed(messages);
        let mut probe = marked(&placed);
        for (i, m) in probe.iter_mut().enumerate() {
            // Some templates show calls only where the content is empty.
            if placed[i].content.is_empty() && !m.tools.calls.is_empty() {
                m.content.clear();
            }
            if m.role == "tool" {
                words.push(marker(i));
            }
            for (j, call) in m.tools.calls.iter_mut().enumerate() {
                call.name = format!("{}c{j}", marker(i));
                words.push(call.name.clone());
            }
        }
        let text = self.write(&probe, probe.last().is_some_and(|m| m.role != "assistant"))?;
        if words.iter().all(|w| text.contains(w.as_str())) { Ok(()) } else { Err(lost()) }
    }
}
