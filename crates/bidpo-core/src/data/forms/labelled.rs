//! Forms with one answer a row and a label that says whether it is a good one (KTO). Two rows of one prompt make a pair.

use super::columns::{Role, Row, may, must};
use super::turns::{Answer, answer, join};
use super::{Draft, Form, Reader};
use serde_json::Value;
use std::collections::HashMap;

const SYSTEM: [&str; 2] = ["system", "system_prompt"];
const LABEL: [&str; 2] = ["label", "kto_tag"];

pub(super) fn forms() -> Vec<Form> {
    let form = |name, columns| Form { name, columns, only_if: None, reader: Reader::Labelled };
    vec![
        form(
            "answers with labels (KTO)",
            vec![
                must(Role::Prompt, &["prompt", "instruction", "question"]),
                may(Role::Input, &["input"]),
                may(Role::System, &SYSTEM),
                must(Role::Completion, &["completion", "response", "output"]),
                must(Role::Label, &LABEL),
                may(Role::Id, &["id"]),
            ],
        ),
        form(
            "dialogues with labels (KTO)",
            vec![
                may(Role::System, &SYSTEM),
                must(Role::Completion, &["messages", "conversations", "completion"]),
                must(Role::Label, &LABEL),
                may(Role::Id, &["id"]),
            ],
        ),
    ]
}

/// A row of such a form.
pub(super) struct Labelled {
    /// The row's number among the rows of the file.
    pub(super) row: usize,
    /// The row with this answer as chosen one: prompt and text.
    draft: Draft,
    good: bool,
}

/// Reads a row.
pub(super) fn read(row: &Row<'_>, number: usize) -> Result<Labelled, String> {
    let (completion, label) = (row.needed(Role::Completion)?, row.needed(Role::Label)?);
    let good = match label.value {
        Value::Bool(b) => Some(*b),
        Value::Number(n) => match n.as_f64() {
            Some(1.0) => Some(true),
            Some(0.0 | -1.0) => Some(false),
            _ => None,
        },
        Value::String(s) => match s.trim().to_ascii_lowercase().as_str() {
            "true" | "1" | "desirable" | "good" => Some(true),
            "false" | "0" | "-1" | "undesirable" | "bad" => Some(false),
            _ => None,
        },
        _ => None,
    };
    let good = good.ok_or_else(|| format!("{:?} is {}, not true or false", label.name, label.value))?;
    let text = answer(completion.name, completion.value)?;
    // The other side does not matter yet: only the prompt is read here.
    let other = Answer { text: format!("{}.", text.text), before: Vec::new() };
    Ok(Labelled { row: number, draft: join(row, text, other)?, good })
}

/// Pairs of rows.
pub(super) struct Paired {
    /// The row of the good answer, and the pair.
    pub(super) pairs: Vec<(usize, Draft)>,
    /// Rows with a good answer and rows with a bad one.
    pub(super) counts: [usize; 2],
    /// Rows that are in no pair.
    pub(super) unpaired: usize,
}

/// Makes pairs of rows with the same prompt: the first good answer with the first bad one, and so on.
pub(super) fn pair(rows: Vec<Labelled>) -> Paired {
    let counts = [true, false].map(|good| rows.iter().filter(|r| r.good == good).count());
    let all = rows.len();
    let mut waiting: HashMap<crate::data::Prompt, [std::collections::VecDeque<Labelled>; 2]> = HashMap::new();
    let mut pairs = Vec::new();
    for row in rows {
        let queues = waiting.entry(row.draft.prompt.clone()).or_default();
        let (mine, theirs) = if row.good { (0, 1) } else { (1, 0) };
        let same = |other: &Labelled| other.draft.chosen.trim() == row.draft.chosen.trim();
        let Some(at) = queues[theirs].iter().position(|other| !same(other)) else {
            queues[mine].push_back(row);
            continue;
        };
        let Some(other) = queues[theirs].remove(at) else { continue };
        let (good, bad) = if row.good { (row, other) } else { (other, row) };
        pairs.push((good.row, Draft { rejected: bad.draft.chosen, ..good.draft }));
    }
    pairs.sort_by_key(|(row, _)| *row);
    let unpaired = all - 2 * pairs.len();
    Paired { pairs, counts, unpaired }
}
