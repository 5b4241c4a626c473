//! What turns messages into text: a Jinja template, or one of llama.cpp's built-in formats.

use super::calls::CallStyle;
use super::jinja::JinjaTemplate;
use super::{Message, TemplateError, named};
use ggml_grad::llama::{apply_builtin_chat_format, builtin_chat_formats};
use serde_json::{Map, Value};

/// The form in which a template takes messages.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct MessageForm {
    /// Contents are lists of parts (`[{"type": "text", "text": ...}]`).
    pub parts: bool,
    /// Calls of tools.
    pub calls: CallStyle,
}

/// A way to write a chat as text.
#[derive(Debug)]
pub(super) enum Engine {
    /// A Jinja template.
    Jinja(Box<JinjaTemplate>),
    /// A format of llama.cpp's, by its name there.
    Builtin(String),
}

impl Engine {
    /// The Jinja source; of a built-in format its name.
    pub(super) fn source(&self) -> &str {
        match self {
            Self::Jinja(jinja) => jinja.source(),
            Self::Builtin(name) => name,
        }
    }

    /// Names of the variables that the template reads beside the chat itself, sorted.
    pub(super) fn variables(&self) -> &[String] {
        match self {
            Self::Jinja(jinja) => jinja.variables(),
            Self::Builtin(_) => &[],
        }
    }

    /// The chat as text.
    pub(super) fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        form: MessageForm,
        variables: &Map<String, Value>,
    ) -> Result<String, TemplateError> {
        match self {
            Self::Jinja(jinja) => jinja.render(messages, add_generation_prompt, form, variables),
            Self::Builtin(name) => {
                let chat: Vec<_> = messages.iter().map(|m| (m.role.clone(), m.content.clone())).collect();
                Ok(apply_builtin_chat_format(name, &chat, add_generation_prompt)?)
            }
        }
    }
}

/// The format of that name: one of ours, or one of llama.cpp's.
pub(super) enum KnownFormat {
    /// Jinja source.
    Source(&'static str),
    /// llama.cpp's.
    Builtin(String),
}

/// Finds a format by its name.
pub(super) fn known_format(name: &str) -> Option<KnownFormat> {
    if let Some((_, source)) = named::TEMPLATES.iter().find(|(n, _)| *n == name) {
        return Some(KnownFormat::Source(source));
    }
    builtin_chat_formats().contains(&name.to_owned()).then(|| KnownFormat::Builtin(name.to_owned()))
}

/// The name that a template consists of, if it is nothing but a name.
pub(super) fn only_a_name(source: &str) -> Option<&str> {
    let name = source.trim_start_matches('\u{feff}').trim().trim_matches(['"', '\'']);
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (!name.is_empty() && name.len() <= 64 && name.chars().all(plain)).then_some(name)
}
