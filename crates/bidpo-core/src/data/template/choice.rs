//! Which template, and how it is used.

use super::named;
use ggml_grad::llama::builtin_chat_formats;
use serde_json::{Map, Value};
use std::path::PathBuf;
use std::str::FromStr;

/// What a template is given beside the chat, and what becomes of thoughts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TemplateSettings {
    /// Variables that the template reads: `enable_thinking`, `reasoning_effort`, `date_string`, ...
    pub variables: Map<String, Value>,
    /// Thoughts of answers that are trained on or scored.
    pub think: Think,
}

impl TemplateSettings {
    /// The settings in words: `enable_thinking=false, think=keep`; empty for the default.
    pub fn words(&self) -> String {
        let mut words: Vec<String> = self.variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
        if self.think != Think::Auto {
            words.push(format!("think={}", self.think));
        }
        words.join(", ")
    }
}

/// What is done with thoughts where answers are given (training, scoring): the value of `--think`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Think {
    /// As finished chats of the template hold the answer: after an empty thought, or none; a thought that the answer brings
    /// along stays where the template shows it.
    #[default]
    Auto,
    /// As `auto`, and a thought that an answer brings along is left out.
    Skip,
    /// After the generation prompt as it stands, also where that opens a thought: for answers that begin with the thought.
    Keep,
}

impl FromStr for Think {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "skip" => Ok(Self::Skip),
            "keep" => Ok(Self::Keep),
            other => Err(format!("{other:?} is none of auto, skip, keep")),
        }
    }
}

impl std::fmt::Display for Think {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Skip => "skip",
            Self::Keep => "keep",
        })
    }
}

/// Choice of the template: the value of `--template`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum TemplateChoice {
    /// The GGUF file's own; plain text if it carries none.
    #[default]
    Auto,
    /// No template: the text as it stands.
    None,
    /// A format known by its name: bidpo's, or another of llama.cpp's built-in ones.
    Named(String),
    /// A Jinja file.
    File(PathBuf),
}

impl TemplateChoice {
    /// bidpo's formats by name. llama.cpp's others are known by their names too.
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
        if Self::names().any(|n| n == text) || builtin_chat_formats().iter().any(|n| n == text) {
            return Ok(Self::Named(text.to_owned()));
        }
        if text.contains(['.', '/', '\\']) {
            return Ok(Self::File(text.into()));
        }
        let names: Vec<_> = Self::names().collect();
        Err(format!(
            "no template is named {text}; use auto, none, {}, another of llama.cpp's names, or a file such as ./my.jinja",
            names.join(", ")
        ))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_parse() {
        assert_eq!("auto".parse(), Ok(TemplateChoice::Auto));
        assert_eq!("none".parse(), Ok(TemplateChoice::None));
        assert_eq!("llama3".parse(), Ok(TemplateChoice::Named("llama3".into())));
        assert_eq!("my.jinja".parse(), Ok(TemplateChoice::File("my.jinja".into())));
        assert_eq!("vicuna".parse(), Ok(TemplateChoice::Named("vicuna".into())));
        let error = "chatmk".parse::<TemplateChoice>().unwrap_err();
        assert!(error.contains("chatml"), "{error}");
        for name in TemplateChoice::names() {
            assert_eq!(name.parse::<TemplateChoice>().unwrap().to_string(), name);
        }
    }
}
