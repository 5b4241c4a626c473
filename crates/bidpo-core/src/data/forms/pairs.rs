//! Forms with both answers in columns of their own.

use super::columns::{Column, Keys, Role, Row, may, must};
use super::turns::{Answer, answer, join};
use super::{Draft, Fault, Form, Reader, dialogue, messages};
use serde_json::Value;

const PROMPT: [&str; 7] = ["prompt", "question", "instruction", "query", "messages", "conversations", "input"];
const CHOSEN: [&str; 10] = [
    "chosen",
    "matching",
    "chosen_response",
    "response_chosen",
    "preferred_output",
    "preferred",
    "answer_matching_behavior",
    "chosen_answer",
    "better_response",
    "accepted",
];
const REJECTED: [&str; 10] = [
    "rejected",
    "not_matching",
    "rejected_response",
    "response_rejected",
    "non_preferred_output",
    "dispreferred",
    "answer_not_matching_behavior",
    "rejected_answer",
    "worse_response",
    "refused",
];
const SYSTEM: [&str; 3] = ["system", "system_prompt", "system_message"];

fn form(name: &'static str, columns: Vec<Column>) -> Form {
    Form { name, columns, only_if: None, reader: Reader::Row(read) }
}

fn both() -> [Column; 2] {
    [must(Role::Chosen, &["chosen"]), must(Role::Rejected, &["rejected"])]
}

/// Forms that have columns of their own.
pub(super) fn particular() -> Vec<Form> {
    let [chosen, rejected] = both();
    let with = |mut columns: Vec<Column>| {
        columns.extend([chosen.clone(), rejected.clone()]);
        columns
    };
    let id = || may(Role::Id, &["id"]);
    vec![
        form(
            "OpenAI preference",
            vec![
                must(Role::Prompt, &["input.messages"]),
                must(Role::Chosen, &["preferred_output"]),
                must(Role::Rejected, &["non_preferred_output"]),
                id(),
            ],
        ),
        Form {
            reader: Reader::Row(evaluation),
            ..form(
                "Anthropic's evaluations, CAA",
                vec![
                    must(Role::Prompt, &["question", "prompt"]),
                    must(Role::Chosen, &["answer_matching_behavior"]),
                    must(Role::Rejected, &["answer_not_matching_behavior"]),
                    may(Role::System, &SYSTEM),
                    id(),
                ],
            )
        },
        Form {
            only_if: Some(|row| row.cell(Role::Prompt).is_some_and(|c| messages::is_chat(c.value))),
            ..form(
                "ShareGPT (LLaMA-Factory)",
                with(vec![must(Role::Prompt, &["conversations", "conversation"]), may(Role::System, &SYSTEM), id()]),
            )
        },
        form(
            "instruction (LLaMA-Factory, Argilla)",
            vec![
                must(Role::Prompt, &["instruction"]),
                may(Role::Input, &["input"]),
                may(Role::System, &SYSTEM),
                may(Role::History, &["history"]),
                must(Role::Chosen, &["chosen", "chosen_response", "response_chosen"]),
                must(Role::Rejected, &["rejected", "rejected_response", "response_rejected"]),
                id(),
            ],
        ),
        form("Orca DPO", with(vec![must(Role::System, &["system"]), must(Role::Prompt, &["question"]), id()])),
        form("distilabel", with(vec![must(Role::System, &["system"]), must(Role::Prompt, &["input"]), id()])),
        form(
            "BiPO",
            vec![
                must(Role::Prompt, &["question"]),
                must(Role::Chosen, &["matching"]),
                must(Role::Rejected, &["not_matching"]),
                may(Role::System, &SYSTEM),
                id(),
            ],
        ),
        Form {
            only_if: Some(|row| {
                row.cell(Role::Prompt).is_some_and(|c| c.value.is_string())
                    && [Role::Chosen, Role::Rejected].iter().all(|r| is_long_chat(row, *r))
            }),
            ..form(
                "UltraFeedback, binarized",
                with(vec![must(Role::Prompt, &["prompt"]), may(Role::System, &SYSTEM), id()]),
            )
        },
    ]
}

/// Forms that any columns of these names have.
pub(super) fn general() -> Vec<Form> {
    let without_prompt = |name, only_if| Form {
        only_if: Some(only_if),
        ..form(
            name,
            vec![
                may(Role::System, &SYSTEM),
                must(Role::Chosen, &CHOSEN),
                must(Role::Rejected, &REJECTED),
                may(Role::Id, &["id"]),
            ],
        )
    };
    vec![
        form(
            "prompt and two answers",
            vec![
                must(Role::Prompt, &PROMPT),
                may(Role::System, &SYSTEM),
                must(Role::Chosen, &CHOSEN),
                must(Role::Rejected, &REJECTED),
                may(Role::Id, &["id"]),
            ],
        ),
        without_prompt("TRL, implicit prompt", |row: &Row<'_>| {
            [Role::Chosen, Role::Rejected].iter().all(|r| row.cell(*r).is_some_and(|c| messages::is_chat(c.value)))
        }),
        without_prompt("dialogues as text (HH-RLHF)", |row: &Row<'_>| {
            let is = |r: &Role| row.cell(*r).and_then(|c| c.value.as_str()).is_some_and(dialogue::is_dialogue);
            [Role::Chosen, Role::Rejected].iter().any(is)
        }),
    ]
}

/// The columns that the user names, and the usual names of the others.
pub(super) fn with_keys(keys: &Keys) -> Form {
    let named = |key: &Option<String>, role, usual: Column| match key {
        Some(key) => must(role, &[key]),
        None => usual,
    };
    form(
        "columns by name",
        vec![
            named(&keys.prompt, Role::Prompt, may(Role::Prompt, &PROMPT)),
            // A system message that is named may be absent from a row.
            keys.system.as_ref().map_or_else(|| may(Role::System, &SYSTEM), |key| may(Role::System, &[key])),
            named(&keys.chosen, Role::Chosen, must(Role::Chosen, &CHOSEN)),
            named(&keys.rejected, Role::Rejected, must(Role::Rejected, &REJECTED)),
            may(Role::Id, &["id"]),
        ],
    )
}

/// The column holds more than one message.
fn is_long_chat(row: &Row<'_>, role: Role) -> bool {
    row.cell(role).is_some_and(|c| messages::is_chat(c.value) && c.value.as_array().is_some_and(|l| l.len() > 1))
}

fn read(row: &Row<'_>) -> Result<Vec<Draft>, Fault> {
    let one = |role| row.needed(role).and_then(|cell| answer(cell.name, cell.value));
    Ok(vec![join(row, one(Role::Chosen)?, one(Role::Rejected)?)?])
}

/// Answers that are a text each, or a list of texts of which each makes a pair.
fn evaluation(row: &Row<'_>) -> Result<Vec<Draft>, Fault> {
    let all = |role| -> Result<Vec<Answer>, String> {
        let cell = row.needed(role)?;
        match cell.value {
            Value::Array(list) if !list.is_empty() && list.iter().all(Value::is_string) => {
                list.iter().map(|text| answer(cell.name, text)).collect()
            }
            value => Ok(vec![answer(cell.name, value)?]),
        }
    };
    let (chosen, rejected) = (all(Role::Chosen)?, all(Role::Rejected)?);
    let mut out = Vec::new();
    for good in &chosen {
        for bad in &rejected {
            out.push(join(row, good.clone(), bad.clone())?);
        }
    }
    Ok(out)
}
