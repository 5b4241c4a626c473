//! Forms with several answers to a prompt and their ranks or scores: the best against the worst.

use super::columns::{Cell, Role, Row, may, must};
use super::pairs::SYSTEM;
use super::turns::{answer, join};
use super::{Draft, Fault, Form, Reader, kind};
use serde_json::Value;

const PROMPT: [&str; 8] =
    ["prompt", "instruction", "question", "query", "input", "messages", "conversations", "contents"];
/// Columns of several answers.
const ANSWERS: [&str; 9] =
    ["answers", "completions", "responses", "generations", "candidates", "outputs", "replies", "samples", "choices"];
/// Columns with the number of the best answer, from 0.
const BEST: [&str; 14] = [
    "chosen_index",
    "chosen_idx",
    "best_index",
    "best_idx",
    "winner_index",
    "winner_id",
    "preferred_index",
    "better_response_id",
    "winner",
    "best",
    "preferred",
    "chosen",
    "choice",
    "label",
];
/// Columns with the number of the worst answer, from 0.
const WORST: [&str; 6] = ["rejected_index", "rejected_idx", "worst_index", "worst_idx", "worst", "rejected"];
/// Keys of an answer's rank: 1 is the best.
const RANKS: [&str; 1] = ["rank"];
/// Keys of an answer's score: more is better.
const SCORES: [&str; 8] =
    ["score", "overall_score", "rating", "pm_score", "reward", "helpfulness", "overall_rating", "quality"];

pub(super) fn forms() -> Vec<Form> {
    type Read = fn(&Row<'_>) -> Result<Vec<Draft>, Fault>;
    let form = |name, columns, only_if, reader: Read| Form {
        name,
        columns,
        only_if: Some(only_if),
        reader: Reader::Row(reader),
    };
    let system = || may(Role::System, &SYSTEM);
    let id = || may(Role::Id, &["id"]);
    // A list of answers beside a list of numbers.
    let by_lists = |name, numbers: &[&str], reader: Read| {
        let columns = vec![
            must(Role::Prompt, &PROMPT),
            system(),
            must(Role::Answers, &ANSWERS),
            must(Role::Scores, numbers),
            id(),
        ];
        let only_if: fn(&Row<'_>) -> bool =
            |row| row.cell(Role::Scores).is_some_and(|c| c.value.is_array() || c.value.is_object());
        form(name, columns, only_if, reader)
    };
    vec![
        form(
            "ranked answers (Nectar, UltraFeedback)",
            vec![must(Role::Prompt, &PROMPT), system(), must(Role::Answers, &ANSWERS), id()],
            |row| objects(row).is_some_and(|l| l.iter().any(|o| value_of(o).is_some())),
            by_value,
        ),
        by_lists(
            "answers and their scores (distilabel)",
            &["ratings", "scores", "rating", "score", "rewards"],
            |row| by_list(row, Counts::Scores),
        ),
        by_lists("answers and their ranks", &["ranks", "rank", "ranking", "rankings"], |row| {
            by_list(row, Counts::Ranks)
        }),
        form(
            "answers and the number of the best",
            vec![
                must(Role::Prompt, &PROMPT),
                system(),
                must(Role::Answers, &ANSWERS),
                must(Role::Verdict, &BEST),
                may(Role::Worst, &WORST),
                id(),
            ],
            |row| {
                row.cell(Role::Answers).is_some_and(|c| c.value.is_array())
                    && row.cell(Role::Verdict).is_some_and(|c| c.value.is_number() || c.value.is_string())
            },
            by_number,
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

/// What the numbers beside the answers are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Counts {
    /// More is better.
    Scores,
    /// Less is better.
    Ranks,
}

fn by_list(row: &Row<'_>, counts: Counts) -> Result<Vec<Draft>, Fault> {
    let (cell, scores) = (row.needed(Role::Answers)?, row.needed(Role::Scores)?);
    let (list, values) = match (cell.value, scores.value) {
        // By the names of those who answered.
        (Value::Object(answers), Value::Object(scores)) => (
            answers.values().cloned().collect(),
            answers.keys().map(|k| scores.get(k).cloned().unwrap_or_default()).collect(),
        ),
        _ => (items(cell)?.to_vec(), items(scores)?.to_vec()),
    };
    if list.len() != values.len() {
        return Err(
            format!("{:?} has {} answers, {:?} {} numbers", cell.name, list.len(), scores.name, values.len()).into()
        );
    }
    // An answer without a number is passed over.
    let scored: Vec<(Value, f64)> = list.into_iter().zip(&values).filter_map(|(a, v)| Some((a, number(v)?))).collect();
    let (list, mut values): (Vec<Value>, Vec<f64>) = scored.into_iter().unzip();
    if counts == Counts::Ranks {
        if scores.name.starts_with("ranking") && !is_its_own_inverse(&values) {
            return Err(Fault::Unclear(format!(
                "{:?} may be the rank of each answer, or the answers' numbers from the best to the worst: call ranks \"ranks\"",
                scores.name
            )));
        }
        values.iter_mut().for_each(|rank| *rank = -*rank);
    }
    best_and_worst(row, cell, &list, &values)
}

/// As ranks and as an order of answers the numbers say the same of the first and the last.
fn is_its_own_inverse(ranking: &[f64]) -> bool {
    let least = ranking.iter().copied().fold(f64::INFINITY, f64::min);
    let place = |rank: f64| ranking.iter().position(|x| *x == rank + least);
    let at = |i: usize| ranking.get(i).map(|x| x - least);
    let last = ranking.len().saturating_sub(1);
    [0, last].into_iter().all(|i| at(i).is_some_and(|x| place(i as f64).is_some_and(|p| p as f64 == x)))
}

/// The number of the best answer, from 0, or its text; of more than two the number of the worst too.
fn by_number(row: &Row<'_>) -> Result<Vec<Draft>, Fault> {
    let (cell, verdict) = (row.needed(Role::Answers)?, row.needed(Role::Verdict)?);
    let list = items(cell)?;
    let place = |cell: Cell<'_>| -> Result<usize, Fault> {
        let text = |value: &Value| value.as_str().map(|t| t.trim().to_owned());
        let by_text = text(cell.value).and_then(|t| list.iter().position(|a| text(a).as_ref() == Some(&t)));
        let found = by_text.map_or_else(|| number(cell.value), |i| Some(i as f64));
        match found {
            Some(n) if n >= 0.0 && n.fract() == 0.0 && (n as usize) < list.len() => Ok(n as usize),
            Some(n) if n == list.len() as f64 => Err(Fault::Unclear(format!(
                "{:?} is {n} of {} answers: its numbers count from 1, they are read from 0",
                cell.name,
                list.len()
            ))),
            Some(-1.0) => Err(Fault::NoPreference(format!("{:?} is -1, which prefers no answer", cell.name))),
            _ => Err(format!("{:?} is {}, which is none of {} answers", cell.name, cell.value, list.len()).into()),
        }
    };
    let best = place(verdict)?;
    let worst = match row.cell(Role::Worst) {
        Some(cell) => place(cell)?,
        None if list.len() == 2 => 1 - best,
        None => {
            return Err(format!(
                "{:?} has {} answers, and only the best is named: name the worst in \"rejected_index\"",
                cell.name,
                list.len()
            )
            .into());
        }
    };
    let one = |i: usize| answer(cell.name, &list[i]);
    Ok(vec![join(row, one(best)?, one(worst)?)?])
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
