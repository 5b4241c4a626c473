//! A conversation with a dial for each vector.

use super::{ChatError, GenerateOptions, Generation, Generator, GeneratorParams};
use crate::data::{ChatTemplate, Message, Prompt};
use crate::layers::Layers;
use crate::llama::Model;
use crate::steer::{Dial, combine};
use std::sync::Arc;

/// A conversation: what was said, which vectors steer it, and the context that answers.
#[derive(Debug)]
pub struct ChatSession {
    generator: Generator,
    template: ChatTemplate,
    system: Option<String>,
    history: Vec<Message>,
    dials: Vec<Dial>,
    layers: Option<Layers>,
    on: bool,
}

impl ChatSession {
    /// Starts an empty, unsteered conversation.
    ///
    /// # Errors
    /// As [`Generator::new`].
    pub fn new(model: &Arc<Model>, template: ChatTemplate, params: &GeneratorParams) -> Result<Self, ChatError> {
        Ok(Self {
            generator: Generator::new(model, params)?,
            template,
            system: None,
            history: Vec::new(),
            dials: Vec::new(),
            layers: None,
            on: true,
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        self.generator.model()
    }

    /// Tokens the context holds.
    pub fn n_ctx(&self) -> usize {
        self.generator.n_ctx()
    }

    /// What was said so far, without the system message.
    pub fn history(&self) -> &[Message] {
        &self.history
    }

    /// Replaces what was said so far.
    pub fn set_history(&mut self, history: Vec<Message>) {
        self.history = history;
    }

    /// The system message, if one was set.
    pub fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    /// Sets or (with `None`) drops the system message; what was said stays.
    pub fn set_system(&mut self, text: Option<String>) {
        self.system = text.filter(|t| !t.trim().is_empty());
    }

    /// Forgets what was said. Vectors, scales and the system message stay.
    pub fn reset(&mut self) {
        self.history.clear();
        self.generator.clear();
    }

    /// The vectors and their scales.
    pub fn dials(&self) -> &[Dial] {
        &self.dials
    }

    /// True unless steering was switched off.
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// Switches all vectors off, or on again at their scales.
    ///
    /// # Errors
    /// [`ChatError::Steer`] when the vectors do not fit the model; nothing is changed then (also below).
    pub fn set_on(&mut self, on: bool) -> Result<(), ChatError> {
        self.steer(self.dials.clone(), self.layers.clone(), on)
    }

    /// Steers with these vectors, at these layers only if some are given, and switches steering on.
    ///
    /// # Errors
    /// As [`ChatSession::set_on`].
    pub fn set_dials(&mut self, dials: Vec<Dial>, layers: Option<Layers>) -> Result<(), ChatError> {
        self.steer(dials, layers, true)
    }

    /// Adds a vector, or replaces the one of the same name, and switches steering on.
    ///
    /// # Errors
    /// As [`ChatSession::set_on`].
    pub fn add_dial(&mut self, dial: Dial) -> Result<(), ChatError> {
        let mut dials = self.dials.clone();
        match dials.iter_mut().find(|d| d.name == dial.name) {
            Some(old) => *old = dial,
            None => dials.push(dial),
        }
        self.steer(dials, self.layers.clone(), true)
    }

    /// Turns the dial called `name` (all dials without a name) to what `scale` says for its vector, and switches
    /// steering on.
    ///
    /// # Errors
    /// [`ChatError::NoSuchVector`], the error of `scale`, or as [`ChatSession::set_on`].
    pub fn set_scale<E: From<ChatError>>(
        &mut self,
        name: Option<&str>,
        scale: impl Fn(&Dial) -> Result<f32, E>,
    ) -> Result<(), E> {
        let mut dials = self.dials.clone();
        let mut found = false;
        for dial in dials.iter_mut().filter(|d| name.is_none_or(|n| n == d.name)) {
            dial.scale = scale(dial)?;
            found = true;
        }
        if !found {
            let loaded: Vec<_> = self.dials.iter().map(|d| d.name.as_str()).collect();
            let loaded = if loaded.is_empty() { "none (use /vector FILE)".to_owned() } else { loaded.join(", ") };
            return Err(ChatError::NoSuchVector { name: name.unwrap_or("anything").to_owned(), loaded }.into());
        }
        Ok(self.steer(dials, self.layers.clone(), true)?)
    }

    /// Checks and applies a steering before it is kept, so that a vector that does not fit leaves the session as it was.
    fn steer(&mut self, dials: Vec<Dial>, layers: Option<Layers>, on: bool) -> Result<(), ChatError> {
        let vector = combine(&dials, layers.as_ref(), self.generator.model())?;
        self.generator.set_steering(vector.filter(|_| on))?;
        (self.dials, self.layers, self.on) = (dials, layers, on);
        Ok(())
    }

    /// Says `text` to the model and returns its answer, which becomes part of the conversation (also when it was cut
    /// short). After an error, or an answer without text, the conversation is as it was before.
    ///
    /// # Errors
    /// [`ChatError::PromptTooLong`] when the conversation has outgrown the context, and as [`Generator::generate`].
    pub fn ask(
        &mut self,
        text: &str,
        options: &GenerateOptions,
        on_piece: &mut dyn FnMut(&str),
    ) -> Result<Generation, ChatError> {
        let mut messages: Vec<Message> = self.system.iter().map(Message::system).collect();
        messages.extend(self.history.iter().cloned());
        messages.push(Message::user(text));
        let prompt = self.template.encode_prompt(self.generator.model(), &Prompt::Messages(messages))?;
        let answer = self.generator.generate(&prompt, options, on_piece)?;
        if !answer.text.is_empty() {
            self.history.push(Message::user(text));
            self.history.push(Message::assistant(&answer.text));
        }
        Ok(answer)
    }
}
