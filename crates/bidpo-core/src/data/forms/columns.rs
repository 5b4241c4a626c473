//! Columns by name or dotted path, and their roles.

use serde_json::{Map, Value};

/// What becomes of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The prompt: text, or a chat.
    Prompt,
    /// Text that is appended to the prompt.
    Input,
    /// The system message.
    System,
    /// Earlier turns of the chat.
    History,
    /// The answer to prefer; also what comes before it, where the value is a whole dialogue.
    Chosen,
    /// The answer to avoid.
    Rejected,
    /// The first of two answers.
    First,
    /// The second of two answers.
    Second,
    /// What says which of two answers is preferred.
    Verdict,
    /// What says which of several answers is the worst.
    Worst,
    /// The score of the first answer.
    FirstScore,
    /// The score of the second answer.
    SecondScore,
    /// Several answers: the best is chosen, the worst rejected.
    Answers,
    /// Scores of several answers.
    Scores,
    /// One answer.
    Completion,
    /// Whether the one answer is a good one.
    Label,
    /// The pair's id.
    Id,
}

impl Role {
    /// The column holds an answer, or more than one.
    pub(super) fn is_answer(self) -> bool {
        matches!(self, Self::Chosen | Self::Rejected | Self::First | Self::Second | Self::Completion | Self::Answers)
    }

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prompt => "prompt",
            Self::Input => "end of the prompt",
            Self::System => "system message",
            Self::History => "earlier turns",
            Self::Chosen => "chosen",
            Self::Rejected => "rejected",
            Self::First => "first answer",
            Self::Second => "second answer",
            Self::Verdict => "which answer is chosen",
            Self::Worst => "which answer is rejected",
            Self::FirstScore => "score of the first answer",
            Self::SecondScore => "score of the second answer",
            Self::Answers => "chosen (the best) and rejected (the worst)",
            Self::Scores => "scores of the answers",
            Self::Completion => "answer",
            Self::Label => "whether the answer is chosen",
            Self::Id => "id",
        }
    }
}

/// Columns by the user's own names; a name may be a path such as `input.messages` or `answers.0.text`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys {
    /// The prompt.
    pub prompt: Option<String>,
    /// The answer to prefer.
    pub chosen: Option<String>,
    /// The answer to avoid.
    pub rejected: Option<String>,
    /// The system message.
    pub system: Option<String>,
}

impl Keys {
    /// No name is given.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A column of a form: the first of `names` that a row has.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) names: Vec<String>,
    pub(super) role: Role,
    /// Without it a row has another form.
    pub(super) needed: bool,
}

/// A column that the form needs.
pub(super) fn must(role: Role, names: &[&str]) -> Column {
    Column { names: names.iter().map(|n| (*n).to_owned()).collect(), role, needed: true }
}

/// A column that the form may have.
pub(super) fn may(role: Role, names: &[&str]) -> Column {
    Column { needed: false, ..must(role, names) }
}

/// A column that a row has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cell<'a> {
    pub(super) name: &'a str,
    pub(super) role: Role,
    pub(super) value: &'a Value,
}

/// A row under a form.
#[derive(Debug)]
pub(super) struct Row<'a> {
    pub(super) cells: Vec<Cell<'a>>,
}

impl<'a> Row<'a> {
    /// The row under these columns; the first column that is needed and missing otherwise.
    pub(super) fn new<'c: 'a>(object: &'a Map<String, Value>, columns: &'c [Column]) -> Result<Self, &'c Column> {
        let mut cells = Vec::with_capacity(columns.len());
        for column in columns {
            let found = column.names.iter().find_map(|name| Some((name, find(object, name)?)));
            match found {
                Some((name, value)) => cells.push(Cell { name, role: column.role, value }),
                None if column.needed => return Err(column),
                None => {}
            }
        }
        Ok(Self { cells })
    }

    pub(super) fn cell(&self, role: Role) -> Option<Cell<'a>> {
        self.cells.iter().find(|c| c.role == role).copied()
    }

    /// A column that the form needs.
    pub(super) fn needed(&self, role: Role) -> Result<Cell<'a>, String> {
        self.cell(role).ok_or_else(|| format!("there is no {}", role.name()))
    }
}

/// The value of a column, or of a path into one; null is as good as absent.
pub(super) fn find<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let value = match object.get(name) {
        Some(value) => value,
        None => {
            let (first, rest) = name.split_once('.')?;
            rest.split('.').try_fold(object.get(first)?, |value, key| match value {
                Value::Array(list) => list.get(key.parse::<usize>().ok()?),
                other => other.get(key),
            })?
        }
    };
    (!value.is_null()).then_some(value)
}
