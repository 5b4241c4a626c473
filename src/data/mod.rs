//! Preference pairs, chat templates, evaluation sets: readers, splits, checks.

mod message;

pub use message::{Message, Prompt};
