//! Preference pairs, chat templates, evaluation sets: readers, splits, checks.

mod builtin;
pub mod choice;
pub mod inspect;
mod message;
pub mod mmlu;
mod prefs;
pub mod similar;
mod split;
mod split_file;
mod template;
pub mod truthfulqa;

/// The line on which a CSV record begins, from 1. (The csv crate's own count lags by one behind a CR LF.)
pub(crate) fn csv_line(text: &[u8], position: Option<&csv::Position>) -> usize {
    let at = position.map_or(0, |p| p.byte() as usize).min(text.len());
    let start = text[at..].iter().position(|b| !matches!(b, b'\r' | b'\n')).map_or(text.len(), |n| at + n);
    1 + text[..start].iter().filter(|&&b| b == b'\n').count()
}

pub use message::{Message, Prompt};
pub use prefs::{PreferencePair, PreferenceSet, PrefsError};
pub use split::{Split, SplitError, permutation, split};
pub use split_file::{Part, SplitFile, SplitFileError};
pub use template::{ChatTemplate, TemplateChoice, TemplateError, TokenizedPair};
