//! Forms with two answers and a column that says which of them is preferred.

mod winner;

use super::columns::{Cell, Role, Row, may, must};
use super::pairs::SYSTEM;
use super::turns::{Answer, answer, join};
use super::{Draft, Fault, Form, Reader, start};
use crate::data::Message;
use serde_json::Value;

/// The preferred answer.
enum Preferred {
    First,
    Second,
}

/// Names of prompts in these forms.
const PROMPT: [&str; 6] = ["prompt", "question", "instruction", "history", "context", "query"];

pub(super) fn forms() -> Vec<Form> {
    let form = |name, prompt: &[&str], answers: [&str; 2], verdict: &[&str], reader| Form {
        name,
        columns: vec![
            must(Role::Prompt, prompt),
            must(Role::First, &[answers[0]]),
            must(Role::Second, &[answers[1]]),
            must(Role::Verdict, verdict),
            may(Role::System, &SYSTEM),
            may(Role::Id, &["id"]),
        ],
        only_if: None,
        reader: Reader::Row(reader),
    };
    let scored = |name, prompt: &[&str], answers: [&str; 2], scores: [&str; 2]| Form {
        name,
        columns: vec![
            must(Role::Prompt, prompt),
            must(Role::First, &[answers[0]]),
            must(Role::Second, &[answers[1]]),
            must(Role::FirstScore, &[scores[0]]),
            must(Role::SecondScore, &[scores[1]]),
            may(Role::System, &SYSTEM),
            may(Role::Id, &["id"]),
        ],
        only_if: None,
        reader: Reader::Row(by_scores),
    };
    let mut forms = vec![
        // 1: A was voted above B, 0: B above A.
        form("SHP", &["history"], ["human_ref_A", "human_ref_B"], &["labels", "label"], |row| {
            by_name(row, &["1"], &["0"])
        }),
        form(
            "PKU-SafeRLHF",
            &["prompt"],
            ["response_0", "response_1"],
            &["better_response_id", "safer_response_id"],
            |row| by_name(row, &["0"], &["1"]),
        ),
        form("HelpSteer", &PROMPT, ["response_1", "response_2"], &["preference_strength"], by_sign),
        form("HelpSteer", &PROMPT, ["response1", "response2"], &["overall_preference"], by_sign),
        Form {
            columns: vec![
                must(Role::First, &["conversation_a"]),
                must(Role::Second, &["conversation_b"]),
                must(Role::Verdict, &["winner"]),
                may(Role::System, &SYSTEM),
                may(Role::Id, &["id", "question_id"]),
            ],
            ..form("two conversations and a winner (Chatbot Arena)", &[], ["", ""], &[], |row| {
                by_name(row, &["model_a", "a"], &["model_b", "b"])
            })
        },
        form(
            "two summaries and a choice",
            &["info.post", "info.article"],
            ["summaries.0.text", "summaries.1.text"],
            &["choice"],
            |row| by_name(row, &["0"], &["1"]),
        ),
        scored(
            "WebGPT comparisons",
            &["question.full_text", "question"],
            ["answer_0", "answer_1"],
            ["score_0", "score_1"],
        ),
    ];
    let arena = |answers: [&str; 2]| {
        let flags = ["winner_model_a", "winner_model_b"];
        let mut form = scored("two answers and flags of the winner (Chatbot Arena)", &PROMPT, answers, flags);
        form.columns.push(may(Role::Verdict, &["winner_tie", "winner_tie_both_bad"]));
        form
    };
    forms.push(arena(["response_a", "response_b"]));
    let mut dialogues = arena(["conversation_a", "conversation_b"]);
    dialogues.columns.retain(|column| column.role != Role::Prompt);
    forms.push(dialogues);
    forms.extend(winner::forms());
    let answers = ["response", "answer", "output", "completion"];
    for name in answers {
        for [a, b] in [["_a", "_b"], ["_1", "_2"], ["1", "2"], ["_0", "_1"]] {
            let both = [a, b].map(|end| format!("{name}{end}"));
            let scores = ["score", "rating", "reward"].into_iter().flat_map(|kind| {
                [[a, b].map(|end| format!("{kind}{end}")), both.clone().map(|answer| format!("{answer}_{kind}"))]
            });
            for score in scores {
                let [both, score] = [&both, &score].map(|names| [names[0].as_str(), names[1].as_str()]);
                forms.push(scored("two scored answers", &PROMPT, both, score));
            }
        }
    }
    forms
}

/// A number, a text or a truth value as text.
fn scalar(cell: Cell<'_>) -> Result<String, String> {
    match cell.value {
        Value::String(s) => Ok(s.trim().to_owned()),
        Value::Number(n) if n.as_f64().is_some_and(|x| x.fract() == 0.0 && x.abs() < 1e9) => {
            Ok(format!("{:.0}", n.as_f64().unwrap_or_default()))
        }
        Value::Number(_) | Value::Bool(_) => Ok(cell.value.to_string()),
        other => Err(format!("{:?} must say which answer is preferred, this is {other}", cell.name)),
    }
}

fn by_name(row: &Row<'_>, first: &[&str], second: &[&str]) -> Result<Vec<Draft>, Fault> {
    let cell = row.needed(Role::Verdict)?;
    let verdict = scalar(cell)?;
    let is = |names: &[&str]| names.iter().any(|n| verdict.eq_ignore_ascii_case(n));
    if is(first) {
        return pair(row, Preferred::First);
    }
    if is(second) {
        return pair(row, Preferred::Second);
    }
    let reason = format!("{:?} is {:?}, which prefers neither answer", cell.name, start(&verdict));
    let is_tie = verdict.to_ascii_lowercase().contains("tie") || verdict == "-1";
    Err(if is_tie {
        Fault::NoPreference(reason)
    } else {
        Fault::Bad(format!("{reason} ({} or {} does)", first.join(", "), second.join(", ")))
    })
}

fn number(cell: Cell<'_>) -> Result<f64, String> {
    let found = match cell.value {
        Value::String(s) => match s.trim().to_ascii_lowercase().as_str() {
            "true" => Some(1.0),
            "false" => Some(0.0),
            text => text.parse().ok(),
        },
        Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
        other => other.as_f64(),
    };
    found
        .filter(|x: &f64| x.is_finite())
        .ok_or_else(|| format!("{:?} must be a number, this is {}", cell.name, cell.value))
}

/// Below zero the first answer is the better one, above zero the second.
fn by_sign(row: &Row<'_>) -> Result<Vec<Draft>, Fault> {
    let cell = row.needed(Role::Verdict)?;
    match number(cell)? {
        x if x < 0.0 => pair(row, Preferred::First),
        x if x > 0.0 => pair(row, Preferred::Second),
        _ => Err(Fault::NoPreference(format!("{:?} is 0, which prefers neither answer", cell.name))),
    }
}

fn by_scores(row: &Row<'_>) -> Result<Vec<Draft>, Fault> {
    let [a, b] = [number(row.needed(Role::FirstScore)?)?, number(row.needed(Role::SecondScore)?)?];
    if a == b {
        return Err(Fault::NoPreference(format!("both answers have the score {a}")));
    }
    pair(row, if a > b { Preferred::First } else { Preferred::Second })
}

fn pair(row: &Row<'_>, preferred: Preferred) -> Result<Vec<Draft>, Fault> {
    let in_turns = turns_in_lists(row).transpose()?;
    let is_chat = in_turns.is_some();
    let (first, second) = match in_turns {
        Some([first, second]) => (first, second),
        None => {
            let one = |role| -> Result<Answer, String> {
                let cell = row.needed(role)?;
                answer(cell.name, cell.value)
            };
            (one(Role::First)?, one(Role::Second)?)
        }
    };
    let (chosen, rejected) = match preferred {
        Preferred::First => (first, second),
        Preferred::Second => (second, first),
    };
    if is_chat {
        // The prompt is among the turns.
        let cells = row.cells.iter().filter(|c| c.role != Role::Prompt).copied().collect();
        return Ok(vec![join(&Row { cells }, chosen, rejected)?]);
    }
    Ok(vec![join(row, chosen, rejected)?])
}

/// A chat as three lists of texts, also as JSON in a text (Chatbot Arena's tables): prompts, and each side's answers.
fn turns_in_lists(row: &Row<'_>) -> Option<Result<[Answer; 2], String>> {
    let texts = |role| -> Option<Vec<Option<String>>> {
        match row.cell(role)?.value {
            Value::String(text) if text.trim_start().starts_with('[') => serde_json::from_str(text).ok(),
            Value::Array(list) => list.iter().map(|v| serde_json::from_value(v.clone()).ok()).collect(),
            _ => None,
        }
    };
    let (prompts, sides) = (texts(Role::Prompt)?, [texts(Role::First)?, texts(Role::Second)?]);
    let side = |(answers, role): (Vec<Option<String>>, Role)| -> Result<Answer, String> {
        if answers.len() != prompts.len() {
            return Err(format!("{} has {} turns, the prompt has {}", role.name(), answers.len(), prompts.len()));
        }
        let mut turns = Vec::new();
        for (i, (asked, answer)) in prompts.iter().zip(answers).enumerate() {
            let kept = |text: Option<String>| text.filter(|text| !text.trim().is_empty());
            let empty = |what: &str| format!("turn {}: {what} is empty", i + 1);
            turns.push(Message::user(kept(asked.clone()).ok_or_else(|| empty("the prompt"))?));
            turns.push(Message::assistant(kept(answer).ok_or_else(|| empty(role.name()))?));
        }
        let last = turns.pop().ok_or("there are no turns in it")?;
        Ok(Answer { text: last.content, before: turns })
    };
    let [first, second] = sides;
    Some(side((first, Role::First)).and_then(|first| Ok([first, side((second, Role::Second))?])))
}
