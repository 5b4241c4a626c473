//! Preference pairs, chat templates, evaluation sets: readers, splits, checks.

mod message;
mod template;

pub use message::{Message, Prompt};
pub use template::{ChatTemplate, TemplateChoice, TemplateError, TokenizedPair};
