//! Preference pairs, chat templates, evaluation sets: readers, splits, checks.

mod message;
pub mod truthfulqa;

pub use message::{Message, Prompt};
