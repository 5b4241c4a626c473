//! Token counts and speeds of a session.

use super::Generation;
use super::generate::rate;
use std::time::Duration;

/// Tokens and times of one answer, or of several.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TokenStats {
    /// Answers counted.
    pub answers: usize,
    /// Tokens of their prompts.
    pub prompt: usize,
    /// Prompt tokens that were still in the KV cache.
    pub reused: usize,
    /// Tokens of the answers.
    pub generated: usize,
    /// Time for the other prompt tokens.
    pub prompt_time: Duration,
    /// Time for the answers.
    pub answer_time: Duration,
}

impl TokenStats {
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
    pub last: TokenStats,
    /// All answers.
    pub total: TokenStats,
}

impl Stats {
    pub(super) fn add(&mut self, answer: &Generation) {
        self.last = TokenStats::default();
        self.last.add(answer);
        self.total.add(answer);
    }
}
