//! The forms in which preference data are published: one table of columns, and what becomes of each.
//!
//! A form is a list of columns with their roles, and a reader of what they hold. A row has the first form of the table all of
//! whose columns it has. Values are read by what they are: a prompt or an answer may be text, a message, a list of messages, or
//! a dialogue as text. To read another form, add an entry to the table of its family.

mod alone;
mod answers;
mod columns;
mod dialogue;
mod implicit;
mod labelled;
mod messages;
mod naming;
mod pairs;
mod reading;
#[cfg(test)]
mod tests;
mod turns;
mod verdicts;

pub use columns::{Keys, Role};
pub use reading::{ColumnUse, FormUse, Reading, SkippedRow};

pub(super) use reading::{Converted, Located, convert};

use super::Prompt;
use columns::{Column, Row};

/// A pair as its row has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Draft {
    pub(super) prompt: Prompt,
    pub(super) chosen: String,
    pub(super) rejected: String,
    /// Both answers' texts began with the prompt, which was taken from them.
    pub(super) prompt_repeated: bool,
    /// The prompt is what both texts begin with.
    pub(super) prompt_shared: bool,
}

impl Draft {
    /// Markup of a chat template in its texts.
    fn markup(&self) -> Option<&'static str> {
        let prompt = match &self.prompt {
            Prompt::Text(text) => dialogue::markup(text),
            Prompt::Messages(messages) => messages.iter().find_map(|m| dialogue::markup(&m.content)),
        };
        prompt.or_else(|| dialogue::markup(&self.chosen)).or_else(|| dialogue::markup(&self.rejected))
    }
}

/// Why a row gives no pair.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fault {
    /// The row is not what its form asks for.
    Bad(String),
    /// What says which answer is preferred can be understood in two ways, in all rows of the form.
    Unclear(String),
    /// The row is in order and prefers neither answer.
    NoPreference(String),
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Self::Bad(reason)
    }
}

/// Reader of a form's rows.
#[derive(Clone, Copy)]
enum Reader {
    /// Each row holds both answers.
    Row(fn(&Row<'_>) -> Result<Vec<Draft>, Fault>),
    /// Each row holds one answer and whether it is a good one; pairs are made of rows with the same prompt.
    Labelled,
}

/// A form.
struct Form {
    /// Its name, as it is printed.
    name: &'static str,
    columns: Vec<Column>,
    /// What the columns' values must be besides; `None`: anything.
    only_if: Option<fn(&Row<'_>) -> bool>,
    reader: Reader,
}

/// All forms, those with more particular columns first; `alone`: also those with one answer.
fn table(keys: &Keys, alone: bool) -> Vec<Form> {
    let one = if alone { alone::forms(keys) } else { Vec::new() };
    if !keys.is_empty() {
        return [pairs::with_keys(keys)].into_iter().chain(one).collect();
    }
    [
        pairs::particular(),
        verdicts::forms(),
        answers::forms(),
        labelled::forms(),
        pairs::general(),
        implicit::forms(),
        one,
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Kind of a value, for messages.
fn kind(value: &serde_json::Value) -> &'static str {
    use serde_json::Value;
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The beginning of a text, for messages.
fn start(text: &str) -> String {
    let mut out: String = text.chars().take(40).collect();
    if out.len() < text.len() {
        out.push_str("...");
    }
    out
}
