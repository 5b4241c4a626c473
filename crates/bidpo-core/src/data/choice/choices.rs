//! The choices of a question, with the labels, scores or marks that they carry.

use super::super::mapping::find;
use serde_json::Value;

/// The choices of one key.
pub(super) struct Choices {
    pub(super) texts: Vec<String>,
    /// ARC's `{"text": ..., "label": ...}`; `None` where not every choice has one.
    pub(super) labels: Option<Vec<Value>>,
    /// The right ones, where the choices themselves say so: those with the highest score (BIG-bench's `{"choice": 1, ...}`), or
    /// with a mark (`{"text": ..., "is_correct": true}`).
    pub(super) right: Option<Vec<usize>>,
}

const TEXT_KEYS: [&str; 5] = ["text", "choice", "answer", "content", "value"];
const LABEL_KEYS: [&str; 8] = ["label", "key", "id", "letter", "option", "index", "choice_id", "option_id"];
const MARK_KEYS: [&str; 5] = ["is_correct", "isCorrect", "correct", "is_right", "right"];
/// Lists of texts and of labels within an object.
const TEXT_LISTS: [&str; 8] = ["text", "texts", "choice", "choices", "options", "answers", "content", "value"];
const LABEL_LISTS: [&str; 8] = ["label", "labels", "key", "keys", "id", "ids", "letter", "letters"];

fn at<'v>(object: &'v Value, keys: &[&str]) -> Option<&'v Value> {
    keys.iter().find_map(|k| object.get(*k))
}

/// A text, number or truth value as text.
pub(super) fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(s) => Some(s.trim().to_owned()),
        // Tables write whole numbers with a point where a column lacks some.
        Value::Number(n) => Some(match n.as_f64() {
            Some(x) if !n.is_i64() && !n.is_u64() && x.fract() == 0.0 && x.abs() < 1e15 => format!("{x:.0}"),
            _ => n.to_string(),
        }),
        Value::Bool(_) => Some(value.to_string()),
        _ => None,
    }
}

/// The choices with the highest score.
pub(super) fn best(scores: &[f64]) -> Vec<usize> {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (0..scores.len()).filter(|&i| scores[i] == most).collect()
}

/// The labels among the values of a key: those of choices where the key holds choices.
pub(super) fn labels(value: &Value) -> Option<Vec<Value>> {
    let list = value.as_array()?;
    if !list.is_empty() && list.iter().all(Value::is_object) {
        return list.iter().map(|o| at(o, &LABEL_KEYS).cloned()).collect();
    }
    Some(list.clone())
}

impl Choices {
    /// Texts alone.
    pub(super) fn plain(texts: Vec<String>) -> Self {
        Self { texts, labels: None, right: None }
    }

    /// The choices under a key of a row.
    ///
    /// # Errors
    /// The reason why there are none.
    pub(super) fn read(row: &Value, key: &str) -> Result<Self, String> {
        let found = match find(row, key)? {
            // A list in the cell of a table.
            Value::String(text) => serde_json::from_str(&text).unwrap_or(Value::String(text)),
            other => other,
        };
        let one = |v: &Value| {
            scalar(v).filter(|s| !s.is_empty()).ok_or_else(|| format!("{key:?} holds {v}, which is no text"))
        };
        let each = |list: &[&Value]| list.iter().map(|v| one(v)).collect::<Result<Vec<_>, _>>();
        match &found {
            Value::Array(list) if !list.is_empty() && list.iter().all(Value::is_object) => of_objects(list, key),
            // A label and a text each.
            Value::Array(list) if !list.is_empty() && list.iter().all(is_pair) => {
                let texts: Vec<&Value> = list.iter().map(|pair| &pair[1]).collect();
                let labels = list.iter().map(|pair| pair[0].clone()).collect();
                Ok(Self { texts: each(&texts)?, labels: Some(labels), right: None })
            }
            Value::Array(list) => {
                let texts = each(&list.iter().collect::<Vec<_>>())?;
                let labels = written_labels(&texts);
                Ok(Self { texts, labels, right: None })
            }
            Value::Object(object) if !object.is_empty() && object.values().all(Value::is_number) => {
                let scores: Vec<f64> = object.values().filter_map(Value::as_f64).collect();
                let texts = object.keys().map(|k| k.trim().to_owned()).collect();
                Ok(Self { texts, labels: None, right: Some(best(&scores)) })
            }
            // Texts and labels as two lists.
            Value::Object(object) => match (at(&found, &TEXT_LISTS), at(&found, &LABEL_LISTS)) {
                (Some(Value::Array(texts)), labels) => {
                    let labels = labels.and_then(|l| l.as_array().cloned()).filter(|l| l.len() == texts.len());
                    Ok(Self { texts: each(&texts.iter().collect::<Vec<_>>())?, labels, right: None })
                }
                // An object of choices by their letters, of which some may be empty: {"A": "iron", "B": "wood", "C": null}.
                _ => {
                    let there: Vec<(&String, &Value)> = object.iter().filter(|(_, v)| !v.is_null()).collect();
                    let texts = each(&there.iter().map(|(_, v)| *v).collect::<Vec<_>>())?;
                    let labels = there.iter().map(|(k, _)| Value::String((*k).clone())).collect();
                    Ok(Self { texts, labels: Some(labels), right: None })
                }
            },
            other => Err(format!("{key:?} must be a list, this is {other}")),
        }
    }
}

/// Choices that are objects: with a text, and perhaps a label or a mark; or with the text under its label (`{"A": "iron"}`).
fn of_objects(list: &[Value], key: &str) -> Result<Choices, String> {
    let single = |o: &Value| {
        let map = o.as_object().filter(|map| map.len() == 1)?;
        map.iter().next().map(|(label, text)| (Value::String(label.clone()), text.clone()))
    };
    let no_text = |o: &Value| format!("{key:?} holds {o}, which has no text");
    let mut texts = Vec::with_capacity(list.len());
    let mut labels: Option<Vec<Value>> = Some(Vec::with_capacity(list.len()));
    for object in list {
        // Where there is no other text, `option` is one.
        let (text, label) = match (at(object, &TEXT_KEYS), single(object)) {
            (Some(text), _) => (text.clone(), at(object, &LABEL_KEYS).cloned()),
            (None, Some((label, text))) if !LABEL_KEYS.contains(&label.as_str().unwrap_or_default()) => {
                (text, Some(label))
            }
            _ => (object.get("option").ok_or_else(|| no_text(object))?.clone(), None),
        };
        texts.push(scalar(&text).filter(|s| !s.is_empty()).ok_or_else(|| no_text(object))?);
        labels = labels.zip(label).map(|(mut labels, label)| {
            labels.push(label);
            labels
        });
    }
    let marks: Option<Vec<bool>> = list.iter().map(|o| at(o, &MARK_KEYS)?.as_bool()).collect();
    let right = marks.map(|marks| (0..marks.len()).filter(|&i| marks[i]).collect::<Vec<_>>());
    Ok(Choices { texts, labels, right: right.filter(|r| !r.is_empty()) })
}

/// `["A", "iron"]`
fn is_pair(value: &Value) -> bool {
    let label = |v: &Value| scalar(v).is_some_and(|s| !s.is_empty() && s.len() <= 3);
    value.as_array().is_some_and(|list| list.len() == 2 && label(&list[0]))
}

/// Labels that stand in the texts of all choices, in their order: `A. iron`, `(B) wood`, `3) wool`.
fn written_labels(texts: &[String]) -> Option<Vec<Value>> {
    let labels: Vec<char> = texts.iter().map(|text| label_of(text)).collect::<Option<_>>()?;
    let first = *labels.first()?;
    let in_order = labels.iter().zip(first..).all(|(label, want)| *label == want);
    (matches!(first, 'A' | 'a' | '0' | '1') && labels.len() > 1 && in_order)
        .then(|| labels.iter().map(|c| Value::String(c.to_string())).collect())
}

fn label_of(text: &str) -> Option<char> {
    let bracket = text.starts_with('(');
    let mut chars = text.chars().skip(usize::from(bracket));
    let label = chars.next().filter(char::is_ascii_alphanumeric)?;
    let end = chars.next()?;
    let closed = if bracket { end == ')' } else { matches!(end, '.' | ')' | ':') };
    (closed && chars.next() == Some(' ')).then_some(label)
}
