//! Forms with both answers in columns of their own.

use super::columns::{Column, Keys, Role, Row, may, must};
use super::turns::{Answer, answer, join};
use super::{Draft, Fault, Form, Reader, messages};
use serde_json::Value;

pub(super) const PROMPT: [&str; 13] = [
    "prompt",
    "question",
    "instruction",
    "query",
    "messages",
    "conversations",
    "input",
    "context",
    "user_prompt",
    "text_prompt",
    "post",
    "x",
    "problem",
];
pub(super) const CHOSEN: [&str; 42] = [
    "chosen",
    "matching",
    "chosen_response",
    "response_chosen",
    "preferred_output",
    "preferred",
    "answer_matching_behavior",
    "chosen_answer",
    "answer_chosen",
    "chosen_output",
    "chosen_completion",
    "chosen_text",
    "text_chosen",
    "reply_chosen",
    "chosen_message",
    "chosen_messages",
    "better_response",
    "better_answer",
    "preferred_response",
    "preferred_answer",
    "preferred_completion",
    "accepted",
    "accepted_response",
    "winning_response",
    "winner_response",
    "positive_response",
    "positive_messages",
    "good_response",
    "best_response",
    "good_answer",
    "positive",
    "good",
    "best",
    "win",
    "y_w",
    "yw",
    "response_j",
    "response_w",
    "pos",
    "correct_answer",
    "correct_response",
    "right_answer",
];
pub(super) const REJECTED: [&str; 48] = [
    "rejected",
    "not_matching",
    "rejected_response",
    "response_rejected",
    "non_preferred_output",
    "dispreferred",
    "answer_not_matching_behavior",
    "rejected_answer",
    "answer_rejected",
    "rejected_output",
    "rejected_completion",
    "rejected_text",
    "text_rejected",
    "reply_rejected",
    "rejected_message",
    "rejected_messages",
    "worse_response",
    "worse_answer",
    "dispreferred_response",
    "non_preferred_response",
    "unpreferred_response",
    "dispreferred_answer",
    "dispreferred_output",
    "non_preferred_completion",
    "dispreferred_completion",
    "non_preferred",
    "unpreferred",
    "refused",
    "losing_response",
    "loser_response",
    "negative_response",
    "negative_messages",
    "bad_response",
    "worst_response",
    "bad_answer",
    "negative",
    "bad",
    "worst",
    "lose",
    "y_l",
    "yl",
    "response_k",
    "response_l",
    "neg",
    "incorrect_answer",
    "incorrect_response",
    "wrong_answer",
    "wrong_response",
];
pub(super) const SYSTEM: [&str; 3] = ["system", "system_prompt", "system_message"];

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
    let usual = |more: Option<Column>| {
        let mut columns = vec![
            must(Role::Prompt, &PROMPT),
            may(Role::System, &SYSTEM),
            must(Role::Chosen, &CHOSEN),
            must(Role::Rejected, &REJECTED),
            may(Role::Id, &["id"]),
        ];
        columns.extend(more);
        columns
    };
    vec![
        Form {
            only_if: Some(|row| row.cell(Role::History).is_some_and(|c| c.value.is_array())),
            ..form("prompt and two answers", usual(Some(must(Role::History, &["history"]))))
        },
        form("prompt and two answers", usual(None)),
        Form {
            only_if: Some(|row| row.cell(Role::Chosen).is_some_and(|c| messages::ends_with_answer(c.value))),
            ..form(
                "messages with the chosen answer, and a rejected one (ms-swift)",
                vec![
                    may(Role::System, &SYSTEM),
                    must(Role::Chosen, &["messages", "conversations", "conversation"]),
                    must(Role::Rejected, &REJECTED),
                    may(Role::Id, &["id"]),
                ],
            )
        },
        Form {
            only_if: Some(|row| row.cell(Role::History).is_none_or(|c| c.value.is_array())),
            ..form(
                "prompt, answer and a rejected answer (ms-swift)",
                vec![
                    must(Role::Prompt, &["query", "prompt", "instruction", "question"]),
                    may(Role::Input, &["input"]),
                    may(Role::System, &SYSTEM),
                    may(Role::History, &["history"]),
                    must(Role::Chosen, &["response", "output", "answer", "completion"]),
                    must(Role::Rejected, &REJECTED),
                    may(Role::Id, &["id"]),
                ],
            )
        },
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

pub(super) fn read(row: &Row<'_>) -> Result<Vec<Draft>, Fault> {
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
