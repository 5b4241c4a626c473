//! One question with its answers, from whatever data it comes.

use crate::eval::results::Answer;

/// A question with its answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Place in the data file, from 0.
    pub index: usize,
    /// The question.
    pub question: String,
    /// Its category.
    pub category: Option<String>,
    /// The answers, at least one of them true and one false.
    pub answers: Vec<Answer>,
    /// Its place in [`Benchmark::groups`](super::Benchmark::groups).
    pub group: usize,
}

impl Item {
    /// The answer to show as the right one: MC1's best answer, else the first true one.
    pub fn best(&self) -> Option<&Answer> {
        let best = self.answers.iter().find(|a| a.mc1 == Some(true));
        best.or_else(|| self.answers.iter().find(|a| a.label == Some(true)))
    }

    /// The first false answer.
    pub fn first_false(&self) -> Option<&Answer> {
        self.answers.iter().find(|a| a.label == Some(false) || a.mc1 == Some(false))
    }
}
