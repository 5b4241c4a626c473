//! Forms with several answers to a prompt and their ranks or scores: the best against the worst.

use super::columns::{Cell, Role, Row, may, must};
use super::turns::{answer, join};
use super::{Draft, Fault, Form, Reader, kind};
use serde_json::Value;

const PROMPT: [&str; 5] = ["prompt", "instruction", "question", "input", "messages"];
/// Keys of an answer's rank: 1 is the best.
const RANKS: [&str; 1] = ["rank"];
/// Keys of an answer's score: more is better.
const SCORES: [&str; 6] = ["score", "overall_score", "rating", "pm_score", "reward", "helpfulness"];

pub(super) fn forms() -> Vec<Form> {
    let form =
        |name, columns, only_if, reader| Form { name, columns, only_if: Some(only_if), reader: Reader::Row(reader) };
    let system = || may(Role::System, &["system", "system_prompt"]);
    let id = || may(Role::Id, &["id"]);
    vec![
        form(
            "ranked answers (Nectar, UltraFeedback)",
            vec![
                must(Role::Prompt, &PROMPT),
                system(),
                must(Role::Answers, &["answers", "completions", "responses", "generations"]),
                id(),
            ],
            |row| objects(row).is_some_and(|l| l.iter().any(|o| value_of(o).is_some())),
            by_value,
        ),
        form(
            "answers and their scores (distilabel)",
            vec![
                must(Role::Prompt, &PROMPT),
                system(),
                must(Role::Answers, &["generations", "responses", "completions", "answers"]),
                must(Role::Scores, &["ratings", "scores", "rating", "score"]),
                id(),
            ],
            |row| row.cell(Role::Scores).is_some_and(|c| c.value.is_array()),
            by_scores,
        ),
        form(
            "instruction and two outputs, the better one first (LLaMA-Factory)",
            vec![
                must(Role::Prompt, &["instruction"]),
                may(Role::Input, &["input"]),
                system(),
                may(Role::History, &["history"]),
                must(Role::Answers, &["output"]),
                id(),
            ],
            |row| row.cell(Role::Answers).is_some_and(|c| c.value.as_array().is_some_and(|l| l.len() == 2)),
            in_order,
        ),
    ]
}

/// The answers, where they are objects.
fn objects<'a>(row: &Row<'a>) -> Option<&'a [Value]> {
    let list = row.cell(Role::Answers)?.value.as_array()?;
    (!list.is_empty() && list.iter().all(Value::is_object)).then_some(list)
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::String(s) => s.trim().parse().ok(),
        other => other.as_f64(),
    }
    .filter(|x| x.is_finite())
}

/// How good an answer is said to be: more is better.
fn value_of(answer: &Value) -> Option<f64> {
    let at = |keys: &[&str]| keys.iter().find_map(|k| number(answer.get(*k)?));
    at(&RANKS).map(|rank| -rank).or_else(|| at(&SCORES))
}

fn by_value(row: &Row<'_>) -> Result<Vec<Draft>, Fault> {
    let cell = row.needed(Role::Answers)?;
    let list = objects(row).ok_or_else(|| format!("{:?} must be a list of answers with ranks or scores", cell.name))?;
    let values: Vec<f64> = list
        .iter()
        .enumerate()
        .map(|(i, a)| {
            value_of(a).ok_or_else(|| {
                format!(
                    "{:?}, answer {}: there is no rank and no score ({}, {})",
                    cell.name,
                    i + 1,
                    RANKS.join(", "),
                    SCORES.join(", ")
                )
            })
        })
        .collect::<Result<_, _>>()?;
    best_and_worst(row, cell, list, &values)
}

fn by_scores(row: &Row<'_>) -> Result<Vec<Draft>, Fault> {
    let (cell, scores) = (row.needed(Role::Answers)?, row.needed(Role::Scores)?);
    let (list, values) = (items(cell)?, items(scores)?);
    if list.len() != values.len() {
        return Err(
            format!("{:?} has {} answers, {:?} {} scores", cell.name, list.len(), scores.name, values.len()).into()
        );
    }
    // An answer without a score is passed over.
    let scored: Vec<(Value, f64)> =
        list.iter().zip(values).filter_map(|(a, v)| Some((a.clone(), number(v)?))).collect();
    let (list, values): (Vec<Value>, Vec<f64>) = scored.into_iter().unzip();
    best_and_worst(row, cell, &list, &values)
}

fn in_order(row: &Row<'_>) -> Result<Vec<Draft>, Fault> {
    let cell = row.needed(Role::Answers)?;
    best_and_worst(row, cell, items(cell)?, &[1.0, 0.0])
}

fn items<'a>(cell: Cell<'a>) -> Result<&'a [Value], String> {
    cell.value
        .as_array()
        .map(Vec::as_slice)
        .ok_or_else(|| format!("{:?} must be a list, this is {}", cell.name, kind(cell.value)))
}

fn best_and_worst(row: &Row<'_>, cell: Cell<'_>, list: &[Value], values: &[f64]) -> Result<Vec<Draft>, Fault> {
    if list.len() < 2 {
        return Err(format!("{:?} has {} answers with a rank or score; two are needed", cell.name, list.len()).into());
    }
    // The first of equals.
    let best = (0..list.len()).rev().max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap_or_default();
    let worst = (0..list.len()).rev().min_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap_or_default();
    if values[best] == values[worst] {
        return Err(Fault::NoPreference(format!(
            "{:?}: all {} answers have the same rank or score",
            cell.name,
            list.len()
        )));
    }
    let one = |i: usize| answer(cell.name, &list[i]);
    Ok(vec![join(row, one(best)?, one(worst)?)?])
}
