//! Preference pairs, chat templates, evaluation sets: readers, splits, checks.

mod builtin;
mod message;
mod prefs;
mod split;
mod template;
pub mod truthfulqa;

pub use message::{Message, Prompt};
pub use prefs::{PreferencePair, PreferenceSet, PrefsError};
pub use split::{Split, SplitError, permutation, split};
pub use template::{ChatTemplate, TemplateChoice, TemplateError, TokenizedPair};
