//! Forms of prompts with one answer each, for an objective that needs no other: the answer is the chosen one, and the rejected one
//! stays empty.

use super::columns::{Column, Keys, Role, Row, may, must};
use super::pairs::{CHOSEN, PROMPT, SYSTEM};
use super::turns::{Answer, answer, join};
use super::{Draft, Fault, Form, Reader, messages};

/// Columns of the one answer, beside those of a chosen one.
const ANSWER: [&str; 6] = ["completion", "response", "output", "answer", "target", "reply"];

/// The forms; all forms with two answers come before them.
pub(super) fn forms(keys: &Keys) -> Vec<Form> {
    let named = |key: &Option<String>, role, usual: Column| key.as_ref().map_or(usual, |key| must(role, &[key]));
    let system = keys.system.as_ref().map_or_else(|| may(Role::System, &SYSTEM), |key| may(Role::System, &[key]));
    let input: &[&str] = if keys.is_empty() { &["input"] } else { &[] };
    let names: Vec<&str> = CHOSEN.into_iter().chain(ANSWER).collect();
    let form = |name, columns: Vec<Column>| Form { name, columns, only_if: None, reader: Reader::Row(read) };
    let one = form(
        "prompt and answer",
        vec![
            named(&keys.prompt, Role::Prompt, must(Role::Prompt, &PROMPT)),
            may(Role::Input, input),
            system,
            named(&keys.chosen, Role::Chosen, must(Role::Chosen, &names)),
            may(Role::Id, &["id"]),
        ],
    );
    let chat = Form {
        only_if: Some(|row| row.cell(Role::Chosen).is_some_and(|c| messages::ends_with_answer(c.value))),
        ..form(
            "messages that end with the answer",
            vec![
                may(Role::System, &SYSTEM),
                must(Role::Chosen, &["messages", "conversations", "conversation"]),
                may(Role::Id, &["id"]),
            ],
        )
    };
    if keys.is_empty() { vec![one, chat] } else { vec![one] }
}

fn read(row: &Row<'_>) -> Result<Vec<Draft>, Fault> {
    // Alpaca's instruction has its own column "input"; where the prompt is that column, it is not appended once more.
    let mut row = Row { cells: row.cells.clone() };
    if row.cell(Role::Prompt).is_some_and(|c| c.name == "input") {
        row.cells.retain(|c| c.role != Role::Input);
    }
    let chosen = row.needed(Role::Chosen).and_then(|cell| answer(cell.name, cell.value))?;
    Ok(vec![join(&row, chosen, Answer { text: String::new(), before: Vec::new() })?])
}
