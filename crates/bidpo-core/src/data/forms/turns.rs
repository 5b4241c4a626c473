//! Two answers and what comes before them, joined to a pair: what both dialogues share is the prompt.

use super::columns::{Cell, Role, Row};
use super::{Draft, dialogue, kind, messages, start};
use crate::data::message::is_message;
use crate::data::{Message, Prompt};
use serde_json::Value;

/// Keys of an answer's text in an object that is no message.
const ANSWER_KEYS: [&str; 7] = ["content", "value", "text", "response", "answer", "completion", "output"];
/// Keys of a prompt's text in an object that is no message.
const PROMPT_KEYS: [&str; 7] = ["content", "value", "text", "prompt", "question", "instruction", "query"];

/// An answer, and what its own value has before it.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) text: String,
    /// The messages before the answer; empty where the value is the answer alone.
    pub(super) before: Vec<Message>,
}

/// Reads an answer: text, a dialogue as text, a message, a list of messages, an object with a text.
pub(super) fn answer(column: &str, value: &Value) -> Result<Answer, String> {
    let alone = |text: &str| match text.trim().is_empty() {
        true => Err(format!("{column:?} is empty")),
        false => Ok(Answer { text: text.to_owned(), before: Vec::new() }),
    };
    match value {
        // Sums and counts are published as numbers.
        Value::Number(number) => alone(&number.to_string()),
        Value::String(text) => match dialogue::turns(text) {
            Some(turns) => last_answer(column, turns.map_err(|reason| format!("{column:?}: {reason}"))?),
            None if text.trim_start().starts_with("[{'") => Err(format!(
                "{column:?} is a list as Python prints it: write the file with json.dumps, or as JSON Lines"
            )),
            None => alone(text),
        },
        Value::Object(object) if !is_message(value) && !messages::is_chat(value) => {
            // A text, or a message inside.
            let inside = ANSWER_KEYS.iter().find_map(|k| object.get(*k).filter(|v| v.is_string() || is_message(v)));
            let inside = inside.ok_or_else(|| {
                let found = object.keys().map(|k| format!("{k:?}")).collect::<Vec<_>>().join(", ");
                format!("{column:?} must be text or a message, this is an object with {found}")
            })?;
            if let Value::String(text) = inside { alone(text) } else { answer(column, inside) }
        }
        Value::Array(list) => match &list[..] {
            // A list of one text.
            [Value::String(text)] => alone(text),
            [Value::String(_), ..] => Err(format!(
                "{column:?} must be one text, this is a list of {}: one of them is named by its place, as with \"{column}.0\" \
                 in --chosen-key or --rejected-key",
                list.len()
            )),
            _ => last_answer(column, messages::messages(column, value)?),
        },
        Value::Object(_) => last_answer(column, messages::messages(column, value)?),
        other => Err(format!("{column:?} must be text, a message or a list of messages, this is {}", kind(other))),
    }
}

/// The last message as the answer.
pub(super) fn last_answer(column: &str, mut before: Vec<Message>) -> Result<Answer, String> {
    let n = before.len();
    match before.pop() {
        Some(last) if last.role == "assistant" => {
            let text = last.content;
            if text.trim().is_empty() {
                Err(format!("{column:?}: the last answer is empty"))
            } else {
                Ok(Answer { text, before })
            }
        }
        Some(last) => {
            Err(format!("{column:?} must end with a message of the assistant, message {n} is one of {}", last.role))
        }
        None => Err(format!("{column:?} holds no message")),
    }
}

/// A prompt: a text, or a chat.
fn prompt(cell: Cell<'_>) -> Result<Prompt, String> {
    let column = cell.name;
    match cell.value {
        Value::String(text) => match dialogue::turns(text) {
            None if text.trim_start().starts_with("[{'") => Err(format!(
                "{column:?} is a list as Python prints it: write the file with json.dumps, or as JSON Lines"
            )),
            // The BiPO files hold a few pairs without a question: an empty text is kept, and counted for a warning.
            None => Ok(Prompt::Text(text.clone())),
            Some(turns) => {
                let mut turns = turns.map_err(|reason| format!("{column:?}: {reason}"))?;
                // The mark of the answer that is to follow.
                if turns.last().is_some_and(|t| t.role == "assistant" && t.content.is_empty()) {
                    turns.pop();
                }
                Ok(Prompt::Messages(turns))
            }
        },
        Value::Array(list) if matches!(&list[..], [Value::String(_)]) => prompt(Cell { value: &list[0], ..cell }),
        Value::Array(list) if list.len() > 1 && list.iter().all(Value::is_string) => Err(format!(
            "{column:?} must be one text or a list of messages, this is a list of {} texts: one of them is named by its place, \
             as in --prompt-key {column}.0",
            list.len()
        )),
        value if messages::is_chat(value) || value.is_array() || is_message(value) => {
            Ok(Prompt::Messages(messages::messages(column, value)?))
        }
        Value::Object(object) => {
            let mut texts = PROMPT_KEYS.iter().filter_map(|k| object.get(*k).filter(|v| v.is_string()));
            match (texts.next(), texts.next()) {
                (Some(text), None) => prompt(Cell { value: text, ..cell }),
                _ => {
                    let found = object.keys().map(|k| format!("{k:?}")).collect::<Vec<_>>().join(", ");
                    Err(format!(
                        "{column:?} must be text or a list of messages, this is an object with {found}: name the one to take, \
                         as in --prompt-key {column}.KEY"
                    ))
                }
            }
        }
        other => Err(format!("{column:?} must be text or a list of messages, this is {}", kind(other))),
    }
}

/// A text that may be empty.
fn text(cell: Cell<'_>) -> Result<&str, String> {
    cell.value.as_str().ok_or_else(|| format!("{:?} must be text, this is {}", cell.name, kind(cell.value)))
}

/// Earlier turns: `[["question", "answer"], ...]`, or messages.
fn history(cell: Cell<'_>) -> Result<Vec<Message>, String> {
    let wrong = || format!("{:?} must be a list of questions with their answers", cell.name);
    let list = match cell.value {
        Value::Array(list) if list.is_empty() => return Ok(Vec::new()),
        Value::String(text) if text.trim().is_empty() => return Ok(Vec::new()),
        value if messages::is_chat(value) => return messages::messages(cell.name, value),
        Value::Array(list) => list,
        _ => return Err(wrong()),
    };
    let mut out = Vec::new();
    for turn in list {
        let turn: Vec<&str> = turn.as_array().ok_or_else(wrong)?.iter().filter_map(Value::as_str).collect();
        let [question, answer] = turn[..] else { return Err(wrong()) };
        out.extend([Message::user(question), Message::assistant(answer)]);
    }
    Ok(out)
}

fn same(a: &Message, b: &Message) -> bool {
    a.role == b.role && a.content.trim() == b.content.trim()
}

fn all_same(a: &[Message], b: &[Message]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
}

/// Joins two answers with what the row's other columns have before them.
pub(super) fn join(row: &Row<'_>, mut chosen: Answer, mut rejected: Answer) -> Result<Draft, String> {
    if chosen.text.trim() == rejected.text.trim() {
        return Err(format!(
            "chosen and rejected are the same text ({:?}): there is nothing to prefer",
            start(&chosen.text)
        ));
    }
    let before = match (chosen.before.is_empty(), rejected.before.is_empty()) {
        (_, true) => chosen.before,
        (true, _) => rejected.before,
        _ if all_same(&chosen.before, &rejected.before) => chosen.before,
        _ => {
            let common = chosen.before.iter().zip(&rejected.before).take_while(|(a, b)| same(a, b)).count();
            return Err(format!(
                "chosen and rejected differ before their last answers (from message {} on): a pair differs in one answer",
                common + 1
            ));
        }
    };
    let mut prompt_repeated = false;
    let asked = row.cell(Role::Prompt).map(prompt).transpose()?;
    let prompt = match (asked, before.is_empty()) {
        (None, true) => return Err("there is no prompt: neither a column nor messages before the answers".into()),
        (None, false) => Prompt::Messages(before),
        (Some(prompt), true) => {
            if let Some(rest) = repeated(&prompt, &chosen.text, &rejected.text) {
                (chosen.text, rejected.text, prompt_repeated) = (rest[0].to_owned(), rest[1].to_owned(), true);
            }
            prompt
        }
        (Some(asked), false) => Prompt::Messages(reconcile(asked, before, &chosen.text)?),
    };
    let prompt = with_input(prompt, row)?;
    let prompt = with_history(prompt, row)?;
    let prompt = with_system(prompt, row)?;
    Ok(Draft { prompt, chosen: chosen.text, rejected: rejected.text, prompt_repeated, prompt_shared: false })
}

/// Chosen and rejected answer without the prompt, where both texts begin with it. A prompt of one word may begin an answer of its
/// own right.
fn repeated<'a>(prompt: &Prompt, chosen: &'a str, rejected: &'a str) -> Option<[&'a str; 2]> {
    let Prompt::Text(prompt) = prompt else { return None };
    let prompt = prompt.trim();
    let rest = |text: &'a str| {
        let rest = text.trim_start().strip_prefix(prompt)?.trim_start();
        (!rest.is_empty()).then_some(rest)
    };
    if !prompt.contains(char::is_whitespace) { None } else { Some([rest(chosen)?, rest(rejected)?]) }
}

/// The prompt where a column has it and the answers' own messages repeat it.
fn reconcile(asked: Prompt, before: Vec<Message>, chosen: &str) -> Result<Vec<Message>, String> {
    let agrees = match &asked {
        Prompt::Text(text) => text.trim().is_empty() || before.iter().any(|m| m.content.trim() == text.trim()),
        Prompt::Messages(asked) => {
            // The column is the beginning or the end of what is repeated, or the whole dialogue with the chosen answer.
            let n = asked.len().min(before.len());
            let whole = |rest: &[Message]| matches!(rest, [last] if same(last, &Message::assistant(chosen)));
            if all_same(&asked[asked.len() - n..], &before[before.len() - n..]) && asked.len() > n {
                return Ok(asked.clone());
            }
            all_same(&asked[..n], &before[..n]) && (asked.len() <= before.len() || whole(&asked[n..]))
                || all_same(&asked[asked.len() - n..], &before[before.len() - n..])
        }
    };
    if agrees {
        return Ok(before);
    }
    Err("the prompt is not what the messages before the answers say: name the right one with --prompt-key, or leave one out".into())
}

/// The prompt with the column that is appended to it.
fn with_input(prompt: Prompt, row: &Row<'_>) -> Result<Prompt, String> {
    let Some(input) = row.cell(Role::Input).map(text).transpose()?.filter(|t| !t.trim().is_empty()) else {
        return Ok(prompt);
    };
    match prompt {
        Prompt::Text(text) if text.trim().is_empty() => Ok(Prompt::Text(input.to_owned())),
        Prompt::Text(text) => Ok(Prompt::Text(format!("{text}\n{input}"))),
        Prompt::Messages(_) => {
            Err("\"input\" is appended to a prompt that is text; this one is a list of messages".into())
        }
    }
}

fn with_history(prompt: Prompt, row: &Row<'_>) -> Result<Prompt, String> {
    let mut earlier = row.cell(Role::History).map(history).transpose()?.unwrap_or_default();
    if earlier.is_empty() {
        return Ok(prompt);
    }
    match prompt {
        Prompt::Text(text) => earlier.push(Message::user(text)),
        Prompt::Messages(messages) => earlier.extend(messages),
    }
    Ok(Prompt::Messages(earlier))
}

/// The prompt with the column of the system message before it; an empty one is left out.
pub(super) fn with_system(prompt: Prompt, row: &Row<'_>) -> Result<Prompt, String> {
    let Some(cell) = row.cell(Role::System) else { return Ok(prompt) };
    // A list of one text, or a message.
    let system = match cell.value {
        Value::String(text) => text.clone(),
        Value::Array(list) if list.is_empty() => String::new(),
        value if messages::is_chat(value) || is_message(value) => {
            messages::messages(cell.name, value)?.into_iter().map(|m| m.content).collect::<Vec<_>>().join("\n")
        }
        _ => text(cell)?.to_owned(),
    };
    if system.trim().is_empty() {
        return Ok(prompt);
    }
    let mut out = vec![Message::system(system)];
    match prompt {
        Prompt::Text(text) => out.push(Message::user(text)),
        Prompt::Messages(messages) => {
            if let Some(own) = messages.iter().find(|m| m.role == "system") {
                if own.content.trim() != out[0].content.trim() {
                    return Err(format!(
                        "{:?} is another system message than that of the chat: leave one out",
                        cell.name
                    ));
                }
                return Ok(Prompt::Messages(messages));
            }
            out.extend(messages);
        }
    }
    Ok(Prompt::Messages(out))
}
