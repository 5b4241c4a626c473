//! From rendered text to tokens.

use super::answer::{Finished, share_prompt};
use super::shield::Shields;
use super::{ChatTemplate, Message, TemplateError};
use crate::data::Prompt;
use ggml_grad::llama::{Model, Token};

/// A preference pair in tokens. The sequences a model sees are `prompt + chosen` and `prompt + rejected`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedPair {
    /// The prompt, BOS and generation prompt included.
    pub prompt: Vec<Token>,
    /// The preferred response, its end-of-turn token included.
    pub chosen: Vec<Token>,
    /// The other response, its end-of-turn token included.
    pub rejected: Vec<Token>,
}

impl TokenizedPair {
    /// Tokens of the pair when the prompt is shared.
    pub fn n_tokens(&self) -> usize {
        self.prompt.len() + self.chosen.len() + self.rejected.len()
    }
}

/// A prompt and answers to it in tokens.
struct EncodedAnswers {
    prompt: Vec<Token>,
    /// Each with what ends it.
    whole: Vec<Vec<Token>>,
    /// Each without what the template writes behind it.
    bare: Vec<Vec<Token>>,
}

/// Puts BOS first if the model wants one and the text did not bring its own.
fn with_bos(model: &Model, tokens: Vec<Token>) -> Vec<Token> {
    match model.bos() {
        Some(bos) if model.adds_bos() && tokens.first() != Some(&bos) => std::iter::once(bos).chain(tokens).collect(),
        _ => tokens,
    }
}

impl ChatTemplate {
    /// Tokens of a prompt, ready for an answer: BOS where the model wants one, and the generation prompt.
    ///
    /// [`Prompt::Text`] is one user message. Under `none` the text is given as it stands, control tokens written in it
    /// included (it is then the user who writes the format); [`Prompt::Messages`] are joined by newlines.
    ///
    /// # Errors
    /// [`TemplateError::Render`] when the template refuses the messages, [`TemplateError::LostQuestion`] when it does not
    /// show the last user message, [`TemplateError::EmptyPrompt`] where not one token comes out: no text, no template around
    /// it, no BOS.
    pub fn encode_prompt(&self, model: &Model, prompt: &Prompt) -> Result<Vec<Token>, TemplateError> {
        if self.engine.is_none() {
            let text = self.plain(prompt);
            return self.prompt_tokens(model, &text, &Shields::default());
        }
        let placed = self.placed(&messages(prompt));
        let (shielded, shields) = self.encoder.shield(&placed, self.marks.as_ref());
        let text = self.asked(&shielded)?;
        self.prompt_tokens(model, &text, &shields)
    }

    /// Tokens of a preference pair.
    ///
    /// Prompt and responses are tokenized apart, so that chosen and rejected follow exactly the same prompt tokens: the
    /// training engine shares one prompt between them, and a difference of log-probabilities over another split of the
    /// same text would measure the split. It is also what happens when the model answers: its own tokens begin where the
    /// prompt's end.
    ///
    /// The prompt is the generation prompt, unless a finished chat holds something else before the answer (an empty
    /// thought, or none where the generation prompt opens one): then it is what the finished chat holds, and
    /// [`ChatTemplate::notes`] says so. [`Think`](super::Think) changes that.
    ///
    /// A response ends with its end-of-turn token (the first end-of-generation token that the template writes after it);
    /// what the template writes behind that token, or as the header of a next turn, is dropped. Under `none` prompt and
    /// response are taken as given, without an end token, and one space is put before the response if neither side has
    /// white space there.
    ///
    /// # Errors
    /// As [`ChatTemplate::encode_prompt`], [`TemplateError::EmptyResponse`], and [`TemplateError::LostResponse`] for a
    /// template that rewrites answers.
    pub fn encode_pair(
        &self,
        model: &Model,
        prompt: &Prompt,
        chosen: &str,
        rejected: &str,
    ) -> Result<TokenizedPair, TemplateError> {
        let mut encoded = self.encode_with(model, prompt, &[chosen, rejected])?;
        let rejected = encoded.whole.pop().unwrap_or_default();
        let chosen = encoded.whole.pop().unwrap_or_default();
        Ok(TokenizedPair { prompt: encoded.prompt, chosen, rejected })
    }

    /// Tokens of a prompt and of some answers to it, without their end-of-turn tokens: what a choice among given answers is
    /// scored by. The prompt is that of [`ChatTemplate::encode_pair`].
    ///
    /// # Errors
    /// As [`ChatTemplate::encode_pair`].
    pub fn encode_answers(
        &self,
        model: &Model,
        prompt: &Prompt,
        answers: &[&str],
    ) -> Result<(Vec<Token>, Vec<Vec<Token>>), TemplateError> {
        let encoded = self.encode_with(model, prompt, answers)?;
        Ok((encoded.prompt, encoded.bare))
    }

    fn encode_with(&self, model: &Model, prompt: &Prompt, answers: &[&str]) -> Result<EncodedAnswers, TemplateError> {
        let (finished, shields) = self.finished(prompt, answers)?;
        let text = match finished.first() {
            Some(first) => first.prompt.clone(),
            None => {
                return Ok(EncodedAnswers { prompt: self.encode_prompt(model, prompt)?, whole: vec![], bare: vec![] });
            }
        };
        let prompt = self.prompt_tokens(model, &text, &shields)?;
        let (mut whole, mut bare) = (Vec::new(), Vec::new());
        for answer in &finished {
            let tokens = self.response_tokens(model, answer, &shields, &prompt)?;
            // The tokens of the whole response are those of the answer and of what ends it, unless these join.
            let alone = self.encoder.run(model, &answer.response[..answer.answer], &shields, &prompt)?;
            bare.push(alone);
            whole.push(tokens);
        }
        Ok(EncodedAnswers { prompt, whole, bare })
    }

    /// A prompt with each of some answers, as text: one prompt for all.
    pub(super) fn finished(
        &self,
        prompt: &Prompt,
        answers: &[&str],
    ) -> Result<(Vec<Finished>, Shields), TemplateError> {
        if answers.iter().any(|a| a.trim().is_empty()) {
            return Err(TemplateError::EmptyResponse);
        }
        if self.engine.is_none() {
            let text = self.plain(prompt);
            let one = |answer: &&str| {
                let apart = text.ends_with(char::is_whitespace) || answer.starts_with(char::is_whitespace);
                let response = format!("{}{answer}", if apart { "" } else { " " });
                let n = response.len();
                Finished { prompt: text.clone(), response, answer: n, ends: n }
            };
            return Ok((answers.iter().map(one).collect(), Shields::default()));
        }
        let mut all = self.placed(&messages(prompt));
        let n = all.len();
        all.extend(answers.iter().map(|a| Message::assistant(*a)));
        let (mut all, shields) = self.encoder.shield(&all, self.marks.as_ref());
        let answers = all.split_off(n);
        let asked = self.asked(&all)?;
        let mut finished =
            answers.into_iter().map(|a| self.finish(&all, &asked, a)).collect::<Result<Vec<_>, TemplateError>>()?;
        share_prompt(&mut finished);
        Ok((finished, shields))
    }

    /// Tokens of a response with its end-of-turn token.
    pub(super) fn response_tokens(
        &self,
        model: &Model,
        answer: &Finished,
        shields: &Shields,
        prompt: &[Token],
    ) -> Result<Vec<Token>, TemplateError> {
        let mut tokens = self.encoder.run(model, &answer.response, shields, prompt)?;
        match tokens.iter().position(|&t| model.is_eog(t)) {
            Some(end) => tokens.truncate(end + 1),
            None if answer.ends < answer.response.len() => {
                tokens = self.encoder.run(model, &answer.response[..answer.ends], shields, prompt)?;
            }
            None => {}
        }
        if self.engine.is_some() && tokens.iter().all(|&t| model.is_control(t)) {
            return Err(TemplateError::LostResponse { name: self.name.clone() });
        }
        Ok(tokens)
    }

    /// Tokens of a prompt's text.
    pub(super) fn prompt_tokens(
        &self,
        model: &Model,
        text: &str,
        shields: &Shields,
    ) -> Result<Vec<Token>, TemplateError> {
        let tokens = with_bos(model, self.encoder.run(model, text, shields, &[])?);
        if tokens.is_empty() { Err(TemplateError::EmptyPrompt) } else { Ok(tokens) }
    }

    /// The prompt as text under `none`.
    pub(super) fn plain(&self, prompt: &Prompt) -> String {
        match prompt {
            Prompt::Text(text) => text.clone(),
            Prompt::Messages(messages) => joined(messages),
        }
    }
}

/// Messages without a template.
pub(super) fn joined(messages: &[Message]) -> String {
    messages.iter().map(|m| m.content.as_str()).collect::<Vec<_>>().join("\n")
}

pub(super) fn messages(prompt: &Prompt) -> Vec<Message> {
    match prompt {
        Prompt::Text(text) => vec![Message::user(text)],
        Prompt::Messages(messages) => messages.clone(),
    }
}
