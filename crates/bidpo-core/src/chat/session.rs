//! A conversation with a dial for each vector.

use super::transcript::AnswerNote;
use super::{ChatError, GateTrace, GenerateOptions, Generation, Generator, GeneratorParams, Stats, Transcript};
use crate::data::{ChatTemplate, Message, Prompt};
use crate::layers::Layers;
use crate::steer::{ControlVector, ScaledVector, combine};
use ggml_grad::llama::{Model, Token};
use std::sync::Arc;

/// A conversation: what was said, which vectors steer it, and the context that answers.
#[derive(Debug)]
pub struct ChatSession {
    pub(super) generator: Generator,
    /// Answers without a vector, beside the other one; made when a comparison asks for it.
    pub(super) unsteered: Option<Generator>,
    pub(super) params: GeneratorParams,
    template: ChatTemplate,
    system: Option<String>,
    history: Vec<Message>,
    /// For each message of the history how it came about; `None` where nobody asked the model for it.
    notes: Vec<Option<AnswerNote>>,
    /// The last question, if it has no answer in the history.
    unanswered: Option<String>,
    /// Number of retries of the last question.
    retries: u32,
    dials: Vec<ScaledVector>,
    layers: Option<Layers>,
    on: bool,
    /// Sum of the scaled vectors. It goes to the generator with the next question: turning a dial and turning it back
    /// costs nothing.
    pub(super) steering: Option<ControlVector>,
    pub(super) stats: Stats,
}

impl ChatSession {
    /// Starts an empty, unsteered conversation.
    ///
    /// # Errors
    /// As [`Generator::new`].
    pub fn new(model: &Arc<Model>, template: ChatTemplate, params: &GeneratorParams) -> Result<Self, ChatError> {
        Ok(Self {
            generator: Generator::new(model, params)?,
            unsteered: None,
            params: params.clone(),
            template,
            system: None,
            history: Vec::new(),
            notes: Vec::new(),
            unanswered: None,
            retries: 0,
            dials: Vec::new(),
            layers: None,
            on: true,
            steering: None,
            stats: Stats::default(),
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

    /// Tokens of the conversation that lie in the KV cache. None after a change of steering: they are thrown away with
    /// the next question.
    pub fn n_cached(&self) -> usize {
        if self.generator.steering() == self.steering.as_ref() { self.generator.n_cached() } else { 0 }
    }

    /// Where the gates opened in the last prompt and its answer.
    pub fn gates(&self) -> GateTrace {
        self.generator.gates()
    }

    /// Tokens and times so far.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Messages so far, without the system message.
    pub fn history(&self) -> &[Message] {
        &self.history
    }

    /// Replaces what was said so far.
    pub fn set_history(&mut self, history: Vec<Message>) {
        self.notes = vec![None; history.len()];
        self.history = history;
        self.unanswered = None;
    }

    /// The conversation with the steering of each answer, to be kept.
    pub fn transcript(&self) -> Transcript<'_> {
        Transcript { model: self.model(), system: self.system(), messages: &self.history, notes: &self.notes }
    }

    /// The system message, if one was set.
    pub fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    /// Sets or (with `None`) drops the system message; what was said stays.
    pub fn set_system(&mut self, text: Option<String>) {
        self.system = text.filter(|t| !t.trim().is_empty());
    }

    /// Forgets what was said. Vectors, scales, the system message, and what the cache holds of it stay.
    pub fn reset(&mut self) {
        self.set_history(Vec::new());
    }

    /// The vectors and their scales.
    pub fn dials(&self) -> &[ScaledVector] {
        &self.dials
    }

    /// The layers that the vectors are restricted to.
    pub fn layers(&self) -> Option<&Layers> {
        self.layers.as_ref()
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
    pub fn set_dials(&mut self, dials: Vec<ScaledVector>, layers: Option<Layers>) -> Result<(), ChatError> {
        self.steer(dials, layers, true)
    }

    /// Steers at these layers only, or (with `None`) at all layers of the vectors, and switches steering on.
    ///
    /// # Errors
    /// As [`ChatSession::set_on`]: layers that leave nothing of a vector are refused.
    pub fn set_layers(&mut self, layers: Option<Layers>) -> Result<(), ChatError> {
        self.steer(self.dials.clone(), layers, true)
    }

    /// Adds a vector, or replaces the one of the same name, and switches steering on.
    ///
    /// # Errors
    /// As [`ChatSession::set_on`].
    pub fn add_dial(&mut self, dial: ScaledVector) -> Result<(), ChatError> {
        let mut dials = self.dials.clone();
        match dials.iter_mut().find(|d| d.name == dial.name) {
            Some(old) => *old = dial,
            None => dials.push(dial),
        }
        self.steer(dials, self.layers.clone(), true)
    }

    /// Takes a vector off.
    ///
    /// # Errors
    /// [`ChatError::NoSuchVector`].
    pub fn remove_dial(&mut self, name: &str) -> Result<(), ChatError> {
        let mut dials = self.dials.clone();
        dials.retain(|d| d.name != name);
        if dials.len() == self.dials.len() {
            return Err(self.no_such_vector(Some(name)));
        }
        self.steer(dials, self.layers.clone(), self.on)
    }

    /// Turns the dial called `name` (all dials without a name) to what `scale` says for its vector, and switches
    /// steering on.
    ///
    /// # Errors
    /// [`ChatError::NoSuchVector`], the error of `scale`, or as [`ChatSession::set_on`].
    pub fn set_scale<E: From<ChatError>>(
        &mut self,
        name: Option<&str>,
        scale: impl Fn(&ScaledVector) -> Result<f32, E>,
    ) -> Result<(), E> {
        let mut dials = self.dials.clone();
        let mut found = false;
        for dial in dials.iter_mut().filter(|d| name.is_none_or(|n| n == d.name)) {
            dial.scale = scale(dial)?;
            found = true;
        }
        if !found {
            return Err(self.no_such_vector(name).into());
        }
        Ok(self.steer(dials, self.layers.clone(), true)?)
    }

    fn no_such_vector(&self, name: Option<&str>) -> ChatError {
        let loaded: Vec<_> = self.dials.iter().map(|d| d.name.as_str()).collect();
        let loaded = if loaded.is_empty() { "none (use /load FILE)".to_owned() } else { loaded.join(", ") };
        ChatError::NoSuchVector { name: name.unwrap_or("anything").to_owned(), loaded }
    }

    /// Checks a steering before it is kept, so that a vector that does not fit leaves the session as it was.
    fn steer(&mut self, dials: Vec<ScaledVector>, layers: Option<Layers>, on: bool) -> Result<(), ChatError> {
        let mut dials = dials;
        for dial in dials.iter_mut().filter(|d| d.vector.scope.lacks_thoughts()) {
            let scope = self.template.scoped(&dial.vector.scope, self.generator.model())?;
            Arc::make_mut(&mut dial.vector).scope = scope;
        }
        let vector = combine(&dials, layers.as_ref(), self.generator.model())?;
        self.steering = vector.filter(|_| on);
        (self.dials, self.layers, self.on) = (dials, layers, on);
        Ok(())
    }

    /// The tokens of the conversation up to a question.
    pub(super) fn prompt(&self, history: &[Message], question: &str) -> Result<Vec<Token>, ChatError> {
        let mut messages: Vec<Message> = self.system.iter().map(Message::system).collect();
        messages.extend(history.iter().cloned());
        messages.push(Message::user(question));
        Ok(self.template.encode_prompt(self.generator.model(), &Prompt::Messages(messages))?)
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
        self.retries = 0;
        self.answer(text, options, on_piece)
    }

    fn answer(
        &mut self,
        text: &str,
        options: &GenerateOptions,
        on_piece: &mut dyn FnMut(&str),
    ) -> Result<Generation, ChatError> {
        self.unanswered = Some(text.to_owned());
        let prompt = self.prompt(&self.history, text)?;
        self.generator.set_steering(self.steering.clone())?;
        let answer = self.generator.generate(&prompt, options, on_piece)?;
        self.stats.add(&answer);
        if !answer.text.is_empty() {
            let dials = if self.on { &self.dials[..] } else { &[] };
            self.unanswered = None;
            self.history.extend([Message::user(text), Message::assistant(&answer.text)]);
            self.notes.extend([None, Some(AnswerNote::new(dials, self.layers.as_ref(), &answer))]);
        }
        Ok(answer)
    }

    /// The last question, answered or not.
    pub fn last_question(&self) -> Option<&str> {
        if let Some(question) = &self.unanswered {
            return Some(question);
        }
        match &self.history[..] {
            [.., question, answer] if answer.role == Message::assistant("").role => Some(&question.content),
            _ => None,
        }
    }

    /// The history before the last question.
    pub(super) fn before_last_question(&self) -> &[Message] {
        let answered = self.unanswered.is_none();
        &self.history[..self.history.len().saturating_sub(if answered { 2 } else { 0 })]
    }

    /// Answers the last question again, under the steering of now; the new answer takes the old one's place. Where
    /// tokens are drawn at random each try has a seed of its own, counted up from that of `options`. After an error, or an
    /// answer without text, the conversation is as it was before.
    ///
    /// # Errors
    /// [`ChatError::NoQuestion`], or as [`ChatSession::ask`].
    pub fn retry(
        &mut self,
        options: &GenerateOptions,
        on_piece: &mut dyn FnMut(&str),
    ) -> Result<Generation, ChatError> {
        let question = self.last_question().ok_or(ChatError::NoQuestion)?.to_owned();
        let keep = self.before_last_question().len();
        let before = (self.history.split_off(keep), self.notes.split_off(keep), self.unanswered.take());
        self.retries = self.retries.wrapping_add(1);
        let mut options = options.clone();
        options.sampler.seed = options.sampler.seed.wrapping_add(self.retries);
        let answer = self.answer(&question, &options, on_piece);
        if self.history.len() == keep {
            self.history.extend(before.0);
            self.notes.extend(before.1);
            self.unanswered = before.2;
        }
        answer
    }

    /// Takes back the last question and its answer; returns the question.
    ///
    /// # Errors
    /// [`ChatError::NoQuestion`].
    pub fn undo(&mut self) -> Result<String, ChatError> {
        let question = self.last_question().ok_or(ChatError::NoQuestion)?.to_owned();
        let keep = self.before_last_question().len();
        self.history.truncate(keep);
        self.notes.truncate(keep);
        self.unanswered = None;
        self.retries = 0;
        Ok(question)
    }
}
