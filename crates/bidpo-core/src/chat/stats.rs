//! How many tokens, and how fast.

use super::Generation;
use super::generate::rate;
use std::time::Duration;

/// Tokens and times of one answer, or of several.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Tally {
    /// Answers counted.
    pub answers: usize,
    /// Tokens of their prompts.
    pub prompt: usize,
    /// How many of those were still in the KV cache.
    pub reused: usize,
    /// Tokens of the answers.
    pub generated: usize,
    /// Time the rest of the prompts took.
    pub prompt_time: Duration,
    /// Time the answers took.
    pub answer_time: Duration,
}

impl Tally {
    /// Prompt tokens computed in a second; 0 where none was.
    pub fn prompt_tokens_per_second(&self) -> f64 {
        rate(self.prompt - self.reused, self.prompt_time)
    }

    /// Tokens generated in a second; 0 where none was.
    pub fn tokens_per_second(&self) -> f64 {
        rate(self.generated, self.answer_time)
    }

    fn add(&mut self, answer: &Generation) {
        self.answers += 1;
        self.prompt += answer.n_prompt;
        self.reused += answer.n_reused;
        self.generated += answer.tokens.len();
        self.prompt_time += answer.prompt_time;
        self.answer_time += answer.answer_time;
    }
}

/// Tokens and times of a session; both answers of a comparison count.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stats {
    /// The last answer.
    pub last: Tally,
    /// All answers.
    pub total: Tally,
}

impl Stats {
    pub(super) fn add(&mut self, answer: &Generation) {
        self.last = Tally::default();
        self.last.add(answer);
        self.total.add(answer);
    }
}
