//! Chat templates: from messages to the tokens a model was trained to answer.
//!
//! Two rules hold everywhere:
//! - **What a person writes never becomes a control token.** Only the template's own text is read for control tokens;
//!   a message that says `<|im_end|>` is told to the model as those characters.
//! - **One BOS.** It comes first if the model's vocabulary asks for one or the template writes one, and never twice.

mod date;
mod encode;
mod jinja;
mod named;

use super::Message;
use encode::Encoder;
use ggml_grad::files::FileError;
use ggml_grad::llama::{LlamaError, Model};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

pub use encode::TokenizedPair;

/// A chat that cannot be rendered or tokenized.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A template file cannot be read.
    #[error("chat template: {0}")]
    Io(#[from] FileError),
    /// The template is not valid Jinja.
    #[error("the chat template {name} is not valid: {reason}")]
    Syntax {
        /// Name of the template.
        name: String,
        /// minijinja's reason, with the line.
        reason: String,
    },
    /// The template refused the messages (most often through its own `raise_exception`).
    #[error("the chat template {name} refuses this chat: {reason}")]
    Render {
        /// Name of the template.
        name: String,
        /// The template's, or minijinja's, reason.
        reason: String,
    },
    /// No token is left to compute with.
    #[error("the prompt is empty, and without a template or a BOS token nothing is left that an answer could follow")]
    EmptyPrompt,
    /// A response without a token of its own.
    #[error("the response is empty")]
    EmptyResponse,
    /// The template rewrites answers so that the response cannot be found in what it renders.
    #[error("the chat template {name} does not show the assistant's answer as it was given: use another --template")]
    LostResponse {
        /// Name of the template.
        name: String,
    },
    /// The tokenizer's reason.
    #[error(transparent)]
    Llama(#[from] LlamaError),
}

/// Choice of the template: the value of `--template`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum TemplateChoice {
    /// The GGUF file's own; plain text if it carries none.
    #[default]
    Auto,
    /// No template: the text as it stands.
    None,
    /// One of the formats known by name.
    Named(&'static str),
    /// A Jinja file.
    File(PathBuf),
}

impl TemplateChoice {
    /// The formats known by name.
    pub fn names() -> impl Iterator<Item = &'static str> {
        named::TEMPLATES.iter().map(|(name, _)| *name)
    }
}

impl FromStr for TemplateChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => return Ok(Self::Auto),
            "none" => return Ok(Self::None),
            _ => {}
        }
        if let Some(name) = Self::names().find(|&n| n == text) {
            return Ok(Self::Named(name));
        }
        if text.contains(['.', '/', '\\']) {
            return Ok(Self::File(text.into()));
        }
        let names: Vec<_> = Self::names().collect();
        Err(format!("no template is named {text}; use auto, none, {}, or a file such as ./my.jinja", names.join(", ")))
    }
}

impl std::fmt::Display for TemplateChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::None => f.write_str("none"),
            Self::Named(name) => f.write_str(name),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A chat template, ready for one model.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    name: String,
    notice: Option<String>,
    /// `None`: no template, text as it stands.
    jinja: Option<Arc<jinja::JinjaTemplate>>,
    encoder: Encoder,
}

impl ChatTemplate {
    /// Prepares the chosen template for `model`.
    ///
    /// `auto` takes the template in the GGUF file. A file without one (a base model) is treated as `none`, and
    /// [`ChatTemplate::notice`] says so.
    ///
    /// # Errors
    /// [`TemplateError::Io`] and [`TemplateError::Syntax`].
    pub fn new(model: &Model, choice: &TemplateChoice) -> Result<Self, TemplateError> {
        let mut notice = None;
        let (name, source) = match choice {
            TemplateChoice::None => ("none".to_owned(), None),
            TemplateChoice::Auto => match model.chat_template() {
                Some(source) => ("gguf".to_owned(), Some(source)),
                None => {
                    notice = Some(format!(
                        "{} carries no chat template, so prompts are given to it as plain text (--template none); \
                         choose a format with --template if it was trained for one",
                        model.path().display()
                    ));
                    ("none".to_owned(), None)
                }
            },
            TemplateChoice::Named(name) => {
                let source = named::TEMPLATES.iter().find(|(n, _)| n == name).map(|(_, s)| (*s).to_owned());
                ((*name).to_owned(), source)
            }
            TemplateChoice::File(path) => {
                let source = std::fs::read_to_string(path).map_err(FileError::read(path))?;
                (path.display().to_string(), Some(source))
            }
        };
        let text = |t: Option<i32>| t.map(|t| model.detokenize(&[t], true)).unwrap_or_default();
        let jinja = match source {
            Some(source) => {
                Some(Arc::new(jinja::JinjaTemplate::new(&name, source, &text(model.bos()), &text(model.eos()))?))
            }
            None => None,
        };
        Ok(Self { name, notice, jinja, encoder: Encoder::new(model) })
    }

    /// `gguf`, `none`, the format's name, or the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Something the user should be told (on stderr): that `auto` found no template.
    pub fn notice(&self) -> Option<&str> {
        self.notice.as_deref()
    }

    /// True if there is no template: text as it stands.
    pub fn is_none(&self) -> bool {
        self.jinja.is_none()
    }

    /// The template's Jinja source; empty under `none`.
    pub fn source(&self) -> &str {
        self.jinja.as_ref().map_or("", |j| j.source())
    }

    /// SHA-256 of [`ChatTemplate::source`] in hex: two runs with the same hash formatted their chats the same way.
    pub fn sha256(&self) -> String {
        ggml_grad::files::sha256_of_bytes(self.source().as_bytes())
    }

    /// The chat as text; under `none` the contents joined by newlines.
    ///
    /// # Errors
    /// [`TemplateError::Render`] when the template refuses the messages.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TemplateError> {
        match &self.jinja {
            Some(jinja) => jinja.render(messages, add_generation_prompt),
            None => Ok(messages.iter().map(|m| m.content.as_str()).collect::<Vec<_>>().join("\n")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_parse() {
        assert_eq!("auto".parse(), Ok(TemplateChoice::Auto));
        assert_eq!("none".parse(), Ok(TemplateChoice::None));
        assert_eq!("llama3".parse(), Ok(TemplateChoice::Named("llama3")));
        assert_eq!("my.jinja".parse(), Ok(TemplateChoice::File("my.jinja".into())));
        let error = "chatmk".parse::<TemplateChoice>().unwrap_err();
        assert!(error.contains("chatml"), "{error}");
        for name in TemplateChoice::names() {
            assert_eq!(name.parse::<TemplateChoice>().unwrap().to_string(), name);
        }
    }
}
