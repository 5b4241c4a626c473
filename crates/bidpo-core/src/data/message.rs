//! Prompts: plain text, or the messages of a chat.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One message of a chat.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `developer` (rendered as `system`), `user`, `assistant` or `tool`.
    pub role: String,
    /// The text.
    pub content: String,
    /// What an assistant thought before it answered, for templates that show it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Calls of tools, or what a tool answered to one. Files of chats have none.
    #[serde(skip)]
    pub tools: ToolPart,
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ToolCall {
    /// What the tool's answer refers to.
    pub id: String,
    /// Name of the function.
    pub name: String,
    /// Its arguments.
    pub arguments: Map<String, Value>,
}

/// What a message has to do with tools.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ToolPart {
    /// Calls in an assistant's message.
    pub calls: Vec<ToolCall>,
    /// The call that a message of role `tool` answers.
    pub call_id: Option<String>,
    /// The function that answers.
    pub name: Option<String>,
}

impl Message {
    /// A message of any role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), reasoning_content: None, tools: ToolPart::default() }
    }

    /// A message of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// A message of the assistant.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }

    /// A system message.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// True for the roles of system messages: `system`, and OpenAI's name for it, `developer`.
    pub fn is_system(&self) -> bool {
        matches!(self.role.as_str(), "system" | "developer")
    }
}

/// A prompt: text (one user message under a chat template, the text itself under `none`), or a whole chat.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Prompt {
    /// Plain text.
    Text(String),
    /// Messages, the last one usually the user's.
    Messages(Vec<Message>),
}

impl Prompt {
    /// All of its messages in one text.
    pub fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Messages(m) => m.iter().map(|m| m.content.as_str()).collect::<Vec<_>>().join("\n"),
        }
    }
}

/// Keys under which files of chats have a message's role.
pub(super) const ROLE_KEYS: [&str; 2] = ["role", "from"];
/// Keys under which they have its text.
pub(super) const TEXT_KEYS: [&str; 4] = ["content", "value", "text", "parts"];

/// A JSON value with a role and a text.
pub(super) fn is_message(value: &serde_json::Value) -> bool {
    let Some(object) = value.as_object() else { return false };
    ROLE_KEYS.iter().any(|k| object.get(*k).is_some_and(serde_json::Value::is_string))
        && TEXT_KEYS.iter().any(|k| object.contains_key(*k))
}
