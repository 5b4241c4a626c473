//! From rendered text to tokens.

use super::jinja::JinjaTemplate;
use super::{ChatTemplate, Message, TemplateError};
use crate::data::Prompt;
use ggml_grad::llama::{LlamaError, Model, Token};
use std::sync::Arc;

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

/// Encodes rendered text with the tokenizer of one model.
#[derive(Debug, Clone)]
pub(super) struct Encoder {
    /// Texts that name control tokens, longest first.
    control: Arc<Vec<String>>,
    /// The tokenizer puts a space before text (SentencePiece models such as Llama 2).
    space_prefix: bool,
}

/// Stand-ins for control texts while the template runs: a private-use character each.
const STAND_INS: std::ops::Range<u32> = 0xF_0000..0xF_FFFE;

/// Control texts found in messages, and the character that stands for each.
#[derive(Debug, Default)]
struct Shields(Vec<(char, String)>);

impl Shields {
    /// Replaces every control text in `content` by a character that no message holds.
    fn shield(&mut self, content: &str, control: &[String], taken: &str) -> String {
        let mut text = content.to_owned();
        for c in control.iter().filter(|c| content.contains(c.as_str())) {
            if !text.contains(c.as_str()) {
                continue; // it was part of a longer one
            }
            let known = self.0.iter().find(|(_, t)| t == c).map(|(stand_in, _)| *stand_in);
            let stand_in = known.or_else(|| {
                STAND_INS
                    .filter_map(char::from_u32)
                    .find(|ch| !taken.contains(*ch) && self.0.iter().all(|(used, _)| used != ch))
            });
            let Some(stand_in) = stand_in else { continue };
            if known.is_none() {
                self.0.push((stand_in, c.clone()));
            }
            text = text.replace(c.as_str(), &stand_in.to_string());
        }
        text
    }

    fn restore(&self, c: char) -> Option<&str> {
        self.0.iter().find(|(stand_in, _)| *stand_in == c).map(|(_, text)| text.as_str())
    }
}

impl Encoder {
    pub(super) fn new(model: &Model) -> Self {
        let space_prefix = model
            .tokenize("a", false, false)
            .is_ok_and(|t| t.first().is_some_and(|&t| model.token_bytes(t, false).first() == Some(&b' ')));
        Self { control: Arc::new(model.control_texts()), space_prefix }
    }

    /// Replaces control texts in every message.
    fn shield(&self, messages: &[Message]) -> (Vec<Message>, Shields) {
        let mut shields = Shields::default();
        if !messages.iter().any(|m| self.control.iter().any(|c| m.content.contains(c.as_str()))) {
            return (messages.to_vec(), shields);
        }
        let taken: String = messages.iter().map(|m| m.content.as_str()).collect();
        let shielded = messages
            .iter()
            .map(|m| Message { role: m.role.clone(), content: shields.shield(&m.content, &self.control, &taken) })
            .collect();
        (shielded, shields)
    }

    /// Tokenizes a run of text that follows `before` (empty at the start of everything). Only where a person's message
    /// held a control text is the run cut, and that piece read as plain characters.
    fn run(&self, model: &Model, text: &str, shields: &Shields, before: &[Token]) -> Result<Vec<Token>, LlamaError> {
        let mut out = Vec::new();
        let mut start = 0;
        for (i, c) in text.char_indices() {
            let Some(original) = shields.restore(c) else { continue };
            self.piece(model, &text[start..i], true, before, &mut out)?;
            self.piece(model, original, false, before, &mut out)?;
            start = i + c.len_utf8();
        }
        self.piece(model, &text[start..], true, before, &mut out)?;
        Ok(out)
    }

    fn piece(
        &self,
        model: &Model,
        text: &str,
        parse_special: bool,
        before: &[Token],
        out: &mut Vec<Token>,
    ) -> Result<(), LlamaError> {
        if text.is_empty() {
            return Ok(());
        }
        let last = out.last().or(before.last());
        // At the very start and after a control token, llama.cpp would add its space here in one go as well.
        if !self.space_prefix || last.is_none_or(|&t| model.is_control(t)) {
            out.extend(model.tokenize(text, false, parse_special)?);
            return Ok(());
        }
        // In the middle of a text there is no such space: tokenize behind a newline, which joins with nothing in these
        // vocabularies, and drop its tokens.
        let tokens = model.tokenize(&format!("\n{text}"), false, parse_special)?;
        let mut bytes = Vec::new();
        for (i, &t) in tokens.iter().enumerate() {
            bytes.extend(model.token_bytes(t, true));
            if bytes.ends_with(b"\n") && bytes.iter().all(|b| b.is_ascii_whitespace()) {
                out.extend(&tokens[i + 1..]);
                return Ok(());
            }
            if bytes.iter().any(|b| !b.is_ascii_whitespace()) {
                break;
            }
        }
        out.extend(model.tokenize(text, false, parse_special)?);
        Ok(())
    }
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
    /// [`TemplateError::Render`] when the template refuses the messages, [`TemplateError::EmptyPrompt`] where not one
    /// token comes out: no text, no template around it, no BOS.
    pub fn encode_prompt(&self, model: &Model, prompt: &Prompt) -> Result<Vec<Token>, TemplateError> {
        let tokens = match &self.jinja {
            None => {
                let text = self.plain(prompt)?;
                self.encoder.run(model, &text, &Shields::default(), &[])?
            }
            Some(jinja) => {
                let (messages, shields) = self.encoder.shield(&messages(prompt));
                self.encoder.run(model, &jinja.render(&messages, true)?, &shields, &[])?
            }
        };
        let tokens = with_bos(model, tokens);
        if tokens.is_empty() { Err(TemplateError::EmptyPrompt) } else { Ok(tokens) }
    }

    /// Tokens of a preference pair.
    ///
    /// Prompt and responses are tokenized apart, so that chosen and rejected follow exactly the same prompt tokens: the
    /// training engine shares one prompt between them, and a difference of log-probabilities over another split of the
    /// same text would measure the split. It is also what happens when the model answers: its own tokens begin where the
    /// prompt's end.
    ///
    /// A response ends with its end-of-turn token (the first end-of-generation token that the template writes after it);
    /// what the template writes behind that token belongs to the next turn and is dropped. Under `none` prompt and
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
        let tokens = self.encode_prompt(model, prompt)?;
        let chosen = self.encode_response(model, prompt, &tokens, chosen)?;
        let rejected = self.encode_response(model, prompt, &tokens, rejected)?;
        Ok(TokenizedPair { prompt: tokens, chosen, rejected })
    }

    /// Tokens of a prompt and of some answers to it, without their end-of-turn tokens: what a choice among given answers is
    /// scored by.
    ///
    /// # Errors
    /// As [`ChatTemplate::encode_pair`].
    pub fn encode_answers(
        &self,
        model: &Model,
        prompt: &Prompt,
        answers: &[&str],
    ) -> Result<(Vec<Token>, Vec<Vec<Token>>), TemplateError> {
        let tokens = self.encode_prompt(model, prompt)?;
        let one = |answer: &&str| -> Result<Vec<Token>, TemplateError> {
            let mut response = self.encode_response(model, prompt, &tokens, answer)?;
            if response.last().is_some_and(|&t| model.is_eog(t)) {
                response.pop();
            }
            Ok(response)
        };
        let answers = answers.iter().map(one).collect::<Result<_, _>>()?;
        Ok((tokens, answers))
    }

    /// Tokens of one response to `prompt`, whose tokens are `prompt_tokens`.
    fn encode_response(
        &self,
        model: &Model,
        prompt: &Prompt,
        prompt_tokens: &[Token],
        response: &str,
    ) -> Result<Vec<Token>, TemplateError> {
        if response.trim().is_empty() {
            return Err(TemplateError::EmptyResponse);
        }
        let Some(jinja) = &self.jinja else {
            let open = !self.plain(prompt)?.ends_with(char::is_whitespace);
            let gap = if open && !response.starts_with(char::is_whitespace) { " " } else { "" };
            return Ok(self.encoder.run(model, &format!("{gap}{response}"), &Shields::default(), prompt_tokens)?);
        };
        let mut all = messages(prompt);
        all.push(Message::assistant(response));
        let (all, shields) = self.encoder.shield(&all);
        let asked = jinja.render(&all[..all.len() - 1], true)?;
        let full = jinja.render(&all, false)?;
        // The response is the text that the template adds to the rendered prompt. Templates that end their generation prompt
        // otherwise than a finished answer begins (reasoning models) are cut at the answer itself.
        let answer = match full.strip_prefix(asked.as_str()) {
            Some(answer) => answer,
            None => {
                let shielded = all[all.len() - 1].content.trim();
                let at = full.rfind(shielded).ok_or_else(|| TemplateError::LostResponse { name: self.name.clone() })?;
                &full[at..]
            }
        };
        let mut tokens = self.encoder.run(model, answer, &shields, prompt_tokens)?;
        if let Some(end) = tokens.iter().position(|&t| model.is_eog(t)) {
            tokens.truncate(end + 1);
        }
        if tokens.iter().all(|&t| model.is_control(t)) {
            return Err(TemplateError::LostResponse { name: self.name.clone() });
        }
        Ok(tokens)
    }

    /// The prompt as text under `none`.
    fn plain(&self, prompt: &Prompt) -> Result<String, TemplateError> {
        match prompt {
            Prompt::Text(text) => Ok(text.clone()),
            Prompt::Messages(messages) => self.render(messages, true),
        }
    }
}

/// Stands behind the last message while the template runs: whatever is written after it is dropped. Shields end below it.
const END_MARK: char = '\u{F_FFFE}';

impl ChatTemplate {
    /// Tokens of a chat whose last message is unfinished: all up to the end of that message's text, so that the model goes on
    /// with it. Under `none` the messages are joined by newlines.
    ///
    /// # Errors
    /// As [`ChatTemplate::encode_prompt`], and [`TemplateError::LostResponse`] for a template that does not show the message.
    pub fn encode_unfinished(&self, model: &Model, messages: &[Message]) -> Result<Vec<Token>, TemplateError> {
        let (Some(jinja), Some(last)) = (&self.jinja, messages.last()) else {
            return self.encode_prompt(model, &Prompt::Messages(messages.to_vec()));
        };
        if last.content.trim().is_empty() {
            return self.encode_prompt(model, &Prompt::Messages(messages[..messages.len() - 1].to_vec()));
        }
        let (all, shields) = self.encoder.shield(messages);
        let text = self.up_to_last_content(jinja, all)?;
        Ok(with_bos(model, self.encoder.run(model, &text, &shields, &[])?))
    }

    /// The text of [`ChatTemplate::encode_unfinished`].
    ///
    /// # Errors
    /// As there.
    pub fn render_unfinished(&self, messages: &[Message]) -> Result<String, TemplateError> {
        match (&self.jinja, messages.split_last()) {
            (Some(_), Some((last, before))) if last.content.trim().is_empty() => self.render(before, true),
            (Some(jinja), Some(_)) => self.up_to_last_content(jinja, messages.to_vec()),
            _ => self.render(messages, false),
        }
    }

    fn up_to_last_content(&self, jinja: &JinjaTemplate, mut messages: Vec<Message>) -> Result<String, TemplateError> {
        if let Some(last) = messages.last_mut() {
            last.content.push(END_MARK);
        }
        let mut text = jinja.render(&messages, false)?;
        let end = text.rfind(END_MARK).ok_or_else(|| TemplateError::LostResponse { name: self.name.clone() })?;
        text.truncate(end);
        Ok(text)
    }

    /// Tokens of a chat as the template writes it, without a generation prompt.
    ///
    /// # Errors
    /// As [`ChatTemplate::encode_prompt`].
    pub fn encode_finished(&self, model: &Model, messages: &[Message]) -> Result<Vec<Token>, TemplateError> {
        let Some(jinja) = &self.jinja else {
            return self.encode_prompt(model, &Prompt::Messages(messages.to_vec()));
        };
        let (all, shields) = self.encoder.shield(messages);
        let tokens = with_bos(model, self.encoder.run(model, &jinja.render(&all, false)?, &shields, &[])?);
        if tokens.is_empty() { Err(TemplateError::EmptyPrompt) } else { Ok(tokens) }
    }
}

fn messages(prompt: &Prompt) -> Vec<Message> {
    match prompt {
        Prompt::Text(text) => vec![Message::user(text)],
        Prompt::Messages(messages) => messages.clone(),
    }
}
