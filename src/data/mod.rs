//! Preference pairs, chat templates, evaluation sets: readers, splits, checks.

mod builtin;
mod message;
mod prefs;
mod split;

pub use message::{Message, Prompt};
pub use prefs::{PreferencePair, PreferenceSet, PrefsError};
pub use split::{Split, SplitError, permutation, split, split_share};
