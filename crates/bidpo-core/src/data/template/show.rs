//! What a model sees of a chat: its text and its tokens.

use super::{ChatTemplate, TemplateError};
use crate::data::Prompt;
use ggml_grad::llama::{Model, Token};

/// A text as a model sees it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ShownText {
    /// The text that the template wrote.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<ShownToken>,
}

/// A token.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ShownToken {
    /// Its number in the vocabulary.
    pub id: Token,
    /// Its text, bytes that are no UTF-8 replaced.
    pub text: String,
    /// It steers the model instead of being text.
    pub control: bool,
}

/// A prompt and what follows it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ShownChat {
    /// The prompt, generation prompt included.
    pub prompt: ShownText,
    /// Responses, each with what ends it.
    pub responses: Vec<ShownText>,
}

impl ChatTemplate {
    /// Text and tokens of a prompt as for generating, or, with `answers`, of the prompt and the responses that are trained
    /// on.
    ///
    /// # Errors
    /// As [`ChatTemplate::encode_pair`].
    pub fn show(&self, model: &Model, prompt: &Prompt, answers: &[&str]) -> Result<ShownChat, TemplateError> {
        let shown = |text: String, tokens: &[Token]| {
            let token = |&id: &Token| ShownToken {
                id,
                text: String::from_utf8_lossy(&model.token_bytes(id, true)).into_owned(),
                control: model.is_control(id),
            };
            ShownText { text, tokens: tokens.iter().map(token).collect() }
        };
        if answers.is_empty() {
            let tokens = self.encode_prompt(model, prompt)?;
            let text = match prompt {
                _ if self.is_none() => self.plain(prompt),
                Prompt::Text(text) => self.render(&[super::Message::user(text)], true)?,
                Prompt::Messages(messages) => self.render(messages, true)?,
            };
            return Ok(ShownChat { prompt: shown(text, &tokens), responses: Vec::new() });
        }
        let (finished, shields) = self.finished(prompt, answers)?;
        let text = finished.first().map_or("", |f| f.prompt.as_str());
        let tokens = self.prompt_tokens(model, text, &shields)?;
        let responses = finished.iter().map(|answer| {
            let response = self.response_tokens(model, answer, &shields, &tokens)?;
            Ok(shown(model.detokenize(&response, true), &response))
        });
        let responses = responses.collect::<Result<_, TemplateError>>()?;
        Ok(ShownChat { prompt: shown(shields.restored(text), &tokens), responses })
    }
}
