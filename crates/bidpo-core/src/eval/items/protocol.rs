//! Protocols: what is asked of the model, and in which order answers are shown.

use super::item::Item;
use crate::data::permutation;
use std::fmt;
use std::str::FromStr;

/// How items are put to the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TruthfulQA's MC1, MC2 and MC3 in one pass: every answer scored as a continuation.
    Mc,
    /// MC1 alone.
    Mc1,
    /// MC2 alone.
    Mc2,
    /// MC3 alone.
    Mc3,
    /// The best answer against the best incorrect one, as continuations (TruthfulQA.csv of January 2025).
    Pair,
    /// The same two answers shown as options A and B, in both orders; the letter's probability decides.
    Binary,
    /// All answers (MC1's of TruthfulQA) shown as options in an order drawn by the seed; the letter's probability decides.
    Letter,
    /// Answers of any multiple-choice data as continuations.
    Choice,
    /// Answers shown as options in the data's order, which for MMLU is part of its definition; the letter's probability
    /// decides.
    Options,
    /// Running text: perplexity, and divergence from the unsteered model.
    Text,
    /// TruthfulQA's questions answered by the model in its own words, which are compared with the reference answers.
    Generate,
    /// Any prompts answered by the model in its own words.
    Prompts,
    /// Two written answers shown as options A and B to a judge, in both orders.
    Judge,
}

impl Protocol {
    const ALL: [Self; 13] = [
        Self::Mc,
        Self::Mc1,
        Self::Mc2,
        Self::Mc3,
        Self::Pair,
        Self::Binary,
        Self::Letter,
        Self::Choice,
        Self::Options,
        Self::Text,
        Self::Generate,
        Self::Prompts,
        Self::Judge,
    ];

    /// Its name on the command line and in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mc => "mc",
            Self::Mc1 => "mc1",
            Self::Mc2 => "mc2",
            Self::Mc3 => "mc3",
            Self::Pair => "pair",
            Self::Binary => "binary",
            Self::Letter => "letter",
            Self::Choice => "choice",
            Self::Options => "options",
            Self::Text => "text",
            Self::Generate => "generate",
            Self::Prompts => "prompts",
            Self::Judge => "judge",
        }
    }

    /// True where the options stand in the prompt and a letter is the answer.
    pub fn shows_options(self) -> bool {
        matches!(self, Self::Binary | Self::Letter | Self::Options | Self::Judge)
    }

    /// True where the model writes.
    pub fn writes(self) -> bool {
        matches!(self, Self::Generate | Self::Prompts)
    }

    /// The orders in which an item's answers are shown; one `None` where they are not.
    pub fn orders(self, item: &Item, seed: u64) -> Vec<Option<Vec<usize>>> {
        let n = item.answers.len();
        match self {
            Self::Binary | Self::Judge => vec![Some((0..n).collect()), Some((0..n).rev().collect())],
            Self::Letter => vec![Some(drawn(item, seed))],
            Self::Options => vec![Some((0..n).collect())],
            _ => vec![None],
        }
    }

    /// The one order in which a few-shot example's answers are shown, if they are.
    pub fn shot_order(self, item: &Item, seed: u64) -> Option<Vec<usize>> {
        match self {
            // The right answer stands first in the data: in that order every example would say "A".
            Self::Binary | Self::Letter => Some(drawn(item, seed)),
            Self::Options => Some((0..item.answers.len()).collect()),
            _ => None,
        }
    }
}

/// A separate order for each item, the same for every condition.
fn drawn(item: &Item, seed: u64) -> Vec<usize> {
    let own = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(item.index as u64);
    permutation(item.answers.len(), own)
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|p| p.name() == text).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|p| p.name()).collect();
            format!("no protocol is called {text:?} (known: {})", names.join(", "))
        })
    }
}
