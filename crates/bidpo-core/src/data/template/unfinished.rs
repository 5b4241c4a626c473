//! Chats that end with an answer: to go on with it, or as they stand.

use super::{ChatTemplate, Message, TemplateError};
use crate::data::Prompt;
use ggml_grad::llama::{Model, Token};

/// Stands behind the last message while the template runs: whatever is written after it is dropped. Shields end below it.
const END_MARK: char = '\u{F_FFFE}';

impl ChatTemplate {
    /// Tokens of a chat whose last message is unfinished: all up to the end of that message's text, so that the model goes on
    /// with it. Under `none` the messages are joined by newlines.
    ///
    /// # Errors
    /// As [`ChatTemplate::encode_prompt`], and [`TemplateError::LostResponse`] for a template that does not show the message.
    pub fn encode_unfinished(&self, model: &Model, messages: &[Message]) -> Result<Vec<Token>, TemplateError> {
        let (false, Some((last, before))) = (self.is_none(), messages.split_last()) else {
            return self.encode_prompt(model, &Prompt::Messages(messages.to_vec()));
        };
        if last.content.trim().is_empty() {
            return self.encode_prompt(model, &Prompt::Messages(before.to_vec()));
        }
        let (all, shields) = self.encoder.shield(&self.placed(messages), self.marks.as_ref());
        let text = self.up_to_last_content(all)?;
        self.prompt_tokens(model, &text, &shields)
    }

    /// The text of [`ChatTemplate::encode_unfinished`].
    ///
    /// # Errors
    /// As there.
    pub fn render_unfinished(&self, messages: &[Message]) -> Result<String, TemplateError> {
        match (self.is_none(), messages.split_last()) {
            (false, Some((last, before))) if last.content.trim().is_empty() => self.render(before, true),
            (false, Some(_)) => Ok(self.encoder.restored(&self.up_to_last_content(self.placed(messages))?)),
            _ => self.render(messages, false),
        }
    }

    fn up_to_last_content(&self, mut messages: Vec<Message>) -> Result<String, TemplateError> {
        if let Some(last) = messages.last_mut() {
            last.content.push(END_MARK);
        }
        let text = self.write(&messages, false)?;
        let mut text = self.must_show(&messages, text, false)?;
        let end = text.rfind(END_MARK).ok_or_else(|| TemplateError::LostResponse { name: self.name.clone() })?;
        text.truncate(end);
        Ok(text)
    }

    /// Tokens of a chat as the template writes it, without a generation prompt.
    ///
    /// # Errors
    /// As [`ChatTemplate::encode_prompt`].
    pub fn encode_finished(&self, model: &Model, messages: &[Message]) -> Result<Vec<Token>, TemplateError> {
        if self.is_none() {
            return self.encode_prompt(model, &Prompt::Messages(messages.to_vec()));
        }
        let (all, shields) = self.encoder.shield(&self.placed(messages), self.marks.as_ref());
        let text = self.must_show(&all, self.write(&all, false)?, false)?;
        self.prompt_tokens(model, &text, &shields)
    }
}
