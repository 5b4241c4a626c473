//! Two answers in columns with letters or numbers in their names, and a column that names the better one.

use super::{PROMPT, Preferred, pair};
use crate::data::forms::columns::{Cell, Role, Row, may, must};
use crate::data::forms::pairs::SYSTEM;
use crate::data::forms::{Draft, Fault, Form, Reader, kind, start};
use serde_json::Value;

/// Names of the answers, without their letter or number.
const ANSWERS: [&str; 5] = ["response", "answer", "output", "completion", "candidate"];
/// Ends of their names.
const ENDS: [[&str; 2]; 4] = [["_a", "_b"], ["_1", "_2"], ["1", "2"], ["_0", "_1"]];
/// Columns that name the better one.
const VERDICT: [&str; 20] = [
    "winner",
    "winner_id",
    "better_response_id",
    "better_id",
    "preference",
    "human_preference",
    "preferred",
    "better",
    "best",
    "choice",
    "chosen",
    "label",
    "labels",
    "verdict",
    "selected",
    "preferred_response",
    "preferred_answer",
    "better_response",
    "better_answer",
    "chosen_response",
];
/// Columns of these names hold an answer in other forms.
const MAY_BE_ANSWERS: [&str; 8] = [
    "preferred",
    "best",
    "chosen",
    "preferred_response",
    "preferred_answer",
    "better_response",
    "better_answer",
    "chosen_response",
];

pub(super) fn forms() -> Vec<Form> {
    let form = |names: [String; 2]| Form {
        name: "two answers and a winner",
        columns: vec![
            must(Role::First, &[&names[0]]),
            must(Role::Second, &[&names[1]]),
            must(Role::Prompt, &PROMPT),
            may(Role::Input, &["input"]),
            may(Role::System, &SYSTEM),
            must(Role::Verdict, &VERDICT),
            may(Role::Id, &["id", "question_id"]),
        ],
        only_if: Some(is_verdict),
        reader: Reader::Row(read),
    };
    ANSWERS.iter().flat_map(|name| ENDS.map(|ends| ends.map(|end| format!("{name}{end}")))).map(form).collect()
}

/// What a verdict says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Says {
    First,
    Second,
    Neither,
    /// A number that stands for one answer or the other, by how one counts.
    Unclear,
    Nothing,
}

/// How the answers' names end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ends {
    Letters,
    From0,
    From1,
}

fn ends(cells: [Cell<'_>; 2]) -> Ends {
    match cells.map(|cell| cell.name.chars().last()) {
        [Some('0'), _] => Ends::From0,
        [Some('1'), _] => Ends::From1,
        _ => Ends::Letters,
    }
}

fn is_verdict(row: &Row<'_>) -> bool {
    row.cell(Role::Verdict).is_some_and(|cell| {
        let other = MAY_BE_ANSWERS.contains(&cell.name) && !cell.value.is_number() && !cell.value.is_boolean();
        !other || says(row).is_ok_and(|says| says != Says::Nothing)
    })
}

fn says(row: &Row<'_>) -> Result<Says, String> {
    let (cell, answers) = (row.needed(Role::Verdict)?, [row.needed(Role::First)?, row.needed(Role::Second)?]);
    let ends = ends(answers);
    match cell.value {
        Value::Bool(_) => Ok(Says::Unclear),
        Value::Number(n) => Ok(n.as_f64().map_or(Says::Nothing, |n| by_number(n, ends, cell.name))),
        Value::String(text) => {
            let word = text.trim().trim_matches(['[', ']']).to_lowercase().replace(' ', "_");
            if let Ok(n) = word.parse() {
                return Ok(by_number(n, ends, cell.name));
            }
            let names = |i: usize| {
                let end = answers[i].name.chars().last().map(String::from).unwrap_or_default();
                let called =
                    [end.clone(), answers[i].name.to_lowercase(), format!("model_{end}"), format!("assistant_{end}")];
                let ordinal =
                    [["first", "first_answer", "first_response"], ["second", "second_answer", "second_response"]][i];
                called.contains(&word)
                    || ordinal.contains(&word.as_str())
                    || answers[i].value.as_str().is_some_and(|answer| answer.trim() == text.trim())
            };
            let neither = ["tie", "both", "neither", "equal", "draw", "none"];
            Ok(match [names(0), names(1)] {
                [true, false] => Says::First,
                [false, true] => Says::Second,
                [true, true] => Says::Nothing,
                _ if neither.iter().any(|n| word.split(|c: char| !c.is_alphanumeric()).any(|part| part == *n))
                    || word.starts_with("tie")
                    || word.starts_with("both") =>
                {
                    Says::Neither
                }
                _ => Says::Nothing,
            })
        }
        other => Err(format!("{:?} must say which answer is preferred, this is {}", cell.name, kind(other))),
    }
}

fn by_number(n: f64, ends: Ends, column: &str) -> Says {
    let is = |x: f64| (n - x).abs() < 1e-9;
    match ends {
        Ends::From0 if is(0.0) => Says::First,
        Ends::From0 if is(1.0) => Says::Second,
        Ends::From1 if is(1.0) => Says::First,
        Ends::From1 if is(2.0) => Says::Second,
        // AlpacaEval: how far between the first answer and the second.
        Ends::From1 if column == "preference" && is(1.5) => Says::Neither,
        Ends::From1 if column == "preference" && n > 1.0 && n < 1.5 => Says::First,
        Ends::From1 if column == "preference" && n > 1.5 && n < 2.0 => Says::Second,
        _ if is(-1.0) => Says::Neither,
        _ if is(0.0) || is(1.0) || is(2.0) => Says::Unclear,
        _ => Says::Nothing,
    }
}

fn read(row: &Row<'_>) -> Result<Vec<Draft>, Fault> {
    let (cell, first, second) = (row.needed(Role::Verdict)?, row.needed(Role::First)?, row.needed(Role::Second)?);
    let value = match cell.value {
        Value::String(text) => format!("{:?}", start(text)),
        other => other.to_string(),
    };
    match says(row)? {
        Says::First => pair(row, Preferred::First),
        Says::Second => pair(row, Preferred::Second),
        Says::Neither => Err(Fault::NoPreference(format!("{:?} is {value}, which prefers neither answer", cell.name))),
        Says::Unclear => Err(Fault::Unclear(format!(
            "{:?} is {value}: with answers called {:?} and {:?} that may be either of them; write the better one's name in it, or \
             map answers of which one is always the better with --chosen-key and --rejected-key",
            cell.name, first.name, second.name
        ))),
        Says::Nothing => Err(Fault::Bad(format!(
            "{:?} is {value}, which names neither answer ({:?} or {:?} does)",
            cell.name, first.name, second.name
        ))),
    }
}
