//! One question answered twice at the same time: steered, and by the model as it is.

use super::{ChatError, ChatSession, GenerateOptions, Generation, Generator};

/// The answer, of two, that a piece of text belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The model as it is.
    Unsteered,
    /// With the session's vectors.
    Steered,
}

/// Two answers to one question.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// The model's own.
    pub unsteered: Generation,
    /// With the session's vectors.
    pub steered: Generation,
}

impl ChatSession {
    /// Answers `question` (without one, the last question again) twice, steered and unsteered, in turns of one token. The
    /// conversation before the question is the same for both, and stays as it is: neither answer becomes part of it.
    /// `on_piece` gets the text as it comes, and `None` where a side has ended.
    ///
    /// The unsteered side has a context of its own, made with the first comparison, so that neither side's KV cache is
    /// lost to the other. Each side's answer is the one that it would give alone.
    ///
    /// # Errors
    /// [`ChatError::NothingSteers`], [`ChatError::NoQuestion`], or as [`ChatSession::ask`].
    pub fn compare(
        &mut self,
        question: Option<&str>,
        options: &GenerateOptions,
        on_piece: &mut dyn FnMut(Side, Option<&str>),
    ) -> Result<Comparison, ChatError> {
        if self.steering.is_none() {
            return Err(ChatError::NothingSteers(match (self.dials().is_empty(), self.is_on()) {
                (true, _) => "load a vector with /load FILE",
                (false, false) => "steering is off, /on switches it on",
                (false, true) => "the scales are 0, /scale X turns them up",
            }));
        }
        let prompt = match question {
            Some(question) => self.prompt(self.history(), question)?,
            None => {
                let question = self.last_question().ok_or(ChatError::NoQuestion)?;
                self.prompt(self.before_last_question(), question)?
            }
        };
        if self.unsteered.is_none() {
            self.unsteered = Some(Generator::new(self.model(), &self.params)?);
        }
        self.generator.set_steering(self.steering.clone())?;
        let Some(plain) = &mut self.unsteered else { unreachable!("made above") };
        let both = run(plain, &mut self.generator, &prompt, options, on_piece);
        match &both {
            Ok(both) => {
                self.stats.add(&both.unsteered);
                self.stats.add(&both.steered);
            }
            Err(_) => {
                plain.clear();
                self.generator.clear();
            }
        }
        both
    }
}

fn run(
    plain: &mut Generator,
    steered: &mut Generator,
    prompt: &[ggml_grad::llama::Token],
    options: &GenerateOptions,
    on_piece: &mut dyn FnMut(Side, Option<&str>),
) -> Result<Comparison, ChatError> {
    let mut a = plain.begin(prompt, options)?;
    let mut b = steered.begin(prompt, options)?;
    while !(a.done && b.done) {
        for (side, generator, answering) in
            [(Side::Unsteered, &mut *plain, &mut a), (Side::Steered, &mut *steered, &mut b)]
        {
            if answering.done {
                continue;
            }
            let piece = generator.step(answering)?;
            if !piece.is_empty() {
                on_piece(side, Some(&piece));
            }
            if answering.done {
                on_piece(side, None);
            }
        }
    }
    Ok(Comparison { unsteered: a.out, steered: b.out })
}
