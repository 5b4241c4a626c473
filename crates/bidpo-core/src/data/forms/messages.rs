//! Messages under all names that are in use for their roles and texts.

use super::kind;
use crate::data::Message;
use crate::data::message::{ROLE_KEYS, TEXT_KEYS, is_message};
use serde_json::{Map, Value};

/// Names of roles, and the role that a chat template knows. A developer's message is a system message.
const ROLES: [(&str, &str); 19] = [
    ("system", "system"),
    ("developer", "system"),
    ("user", "user"),
    ("human", "user"),
    ("prompter", "user"),
    ("assistant", "assistant"),
    ("gpt", "assistant"),
    ("bot", "assistant"),
    ("model", "assistant"),
    ("chatbot", "assistant"),
    ("chatgpt", "assistant"),
    ("ai", "assistant"),
    ("tool", "tool"),
    ("function", "tool"),
    ("observation", "tool"),
    ("ipython", "tool"),
    ("function_response", "tool"),
    ("function_call", "assistant"),
    ("tool_call", "assistant"),
];

/// Keys of a list of messages in an object.
const CHAT_KEYS: [&str; 3] = ["messages", "conversations", "conversation"];

/// The role that a name stands for.
fn role(name: &str) -> Option<&'static str> {
    ROLES.iter().find(|(known, _)| name.trim().eq_ignore_ascii_case(known)).map(|(_, role)| *role)
}

/// A chat: a list with at least one message, lists of roles and texts, or an object that holds nothing but a list of messages.
pub(super) fn is_chat(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.first().is_some_and(is_message),
        Value::Object(object) => transposed(object).is_some() || inside(object).is_some(),
        _ => false,
    }
}

/// Lists of roles and texts.
pub(super) fn is_transposed(value: &Value) -> bool {
    value.as_object().is_some_and(|object| transposed(object).is_some())
}

/// The list in `{"messages": [...]}`.
fn inside(object: &Map<String, Value>) -> Option<&Vec<Value>> {
    let mut values = object.iter().filter(|(_, value)| !value.is_null());
    let (Some((key, value)), None) = (values.next(), values.next()) else { return None };
    let list = value.as_array().filter(|list| list.first().is_some_and(is_message))?;
    CHAT_KEYS.contains(&key.as_str()).then_some(list)
}

/// A chat whose last message is one of the assistant.
pub(super) fn ends_with_answer(value: &Value) -> bool {
    let last = value.as_array().and_then(|list| list.last()).filter(|last| is_message(last));
    let name = last.and_then(|last| ROLE_KEYS.iter().find_map(|k| last.get(*k)?.as_str()));
    name.and_then(role) == Some("assistant")
}

/// `{"role": ["user", ...], "content": ["x", ...]}` as a list of messages.
fn transposed(object: &Map<String, Value>) -> Option<Vec<Value>> {
    let list = |keys: &[&'static str]| keys.iter().find_map(move |k| Some((*k, object.get(*k)?.as_array()?)));
    let ((role_key, roles), (text_key, texts)) = (list(&ROLE_KEYS)?, list(&TEXT_KEYS)?);
    let one = |(role, text): (&Value, &Value)| serde_json::json!({ role_key: role, text_key: text });
    (roles.len() == texts.len()).then(|| roles.iter().zip(texts).map(one).collect())
}

/// The messages of a column. Empty system messages are left out.
pub(super) fn messages(column: &str, value: &Value) -> Result<Vec<Message>, String> {
    let owned;
    let list = match value {
        Value::Array(list) => list,
        Value::Object(object) => match (inside(object), transposed(object)) {
            (Some(list), _) => list,
            (None, Some(list)) => {
                owned = list;
                &owned
            }
            (None, None) => std::slice::from_ref(value),
        },
        other => return Err(format!("{column:?} must be a list of messages, this is {}", kind(other))),
    };
    if list.is_empty() {
        return Err(format!("{column:?} is an empty list"));
    }
    let mut out = Vec::with_capacity(list.len());
    for (i, value) in list.iter().enumerate() {
        out.extend(message(value).map_err(|reason| format!("{column:?}, message {}: {reason}", i + 1))?);
    }
    if out.is_empty() { Err(format!("{column:?} holds nothing but an empty system message")) } else { Ok(out) }
}

/// One message; `None` for an empty system message.
fn message(value: &Value) -> Result<Option<Message>, String> {
    let Value::Object(object) = value else {
        return Err(format!("an object with \"role\" and \"content\" is needed, this is {}", kind(value)));
    };
    let field = |keys: &[&'static str]| keys.iter().find_map(|k| object.get(*k).map(|v| (*k, v)));
    let (key, name) = field(&ROLE_KEYS).ok_or("the key \"role\" is missing")?;
    let name = name.as_str().ok_or_else(|| format!("{key:?} must be text, this is {}", kind(name)))?;
    let role = role(name).ok_or_else(|| {
        let known = ROLES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        format!("unknown role {name:?} (known: {known})")
    })?;
    if object.get("tool_calls").and_then(Value::as_array).is_some_and(|calls| !calls.is_empty()) {
        return Err("it calls a tool, which cannot be trained on".into());
    }
    let (key, content) = field(&TEXT_KEYS).ok_or("the key \"content\" is missing")?;
    let content = text_of(content).map_err(|reason| format!("{key:?} {reason}"))?;
    if content.trim().is_empty() {
        return if role == "system" { Ok(None) } else { Err(format!("{key:?} is empty")) };
    }
    Ok(Some(Message::new(role, content)))
}

/// A text, or the texts of a message's parts (`[{"type": "text", "text": "..."}]`).
fn text_of(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => {
            let part = |part: &Value| match (part.get("type").and_then(Value::as_str), part.get("text")) {
                (None | Some("text" | "input_text" | "output_text"), Some(Value::String(text))) => Ok(text.clone()),
                (what, _) => Err(format!("has a part that is not text ({})", what.unwrap_or("unknown"))),
            };
            parts.iter().map(part).collect()
        }
        other => Err(format!("must be text, this is {}", kind(other))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<Vec<(String, String)>, String> {
        messages("c", &value).map(|m| m.into_iter().map(|m| (m.role, m.content)).collect())
    }

    #[test]
    fn names_of_roles_and_texts() {
        for (name, role) in ROLES {
            let upper = name.to_uppercase();
            for value in [
                json!([{"role": name, "content": "x"}]),
                json!([{"from": upper, "value": "x"}]),
                json!({"role": name, "content": [{"type": "text", "text": "x"}]}),
                json!({"from": [name], "value": ["x"]}),
            ] {
                assert_eq!(read(value.clone()), Ok(vec![(role.to_owned(), "x".to_owned())]), "{value}");
            }
        }
        let two = json!([{"role": "system", "content": " "}, {"role": "user", "content": "x"}]);
        assert_eq!(read(two), Ok(vec![("user".to_owned(), "x".to_owned())]));
    }

    #[test]
    fn faults() {
        for (value, expected) in [
            (json!([]), "\"c\" is an empty list"),
            (json!(3), "must be a list of messages, this is a number"),
            (json!(["x"]), "\"c\", message 1: an object with \"role\" and \"content\" is needed, this is text"),
            (json!([{"content": "x"}]), "the key \"role\" is missing"),
            (json!([{"role": "user"}]), "the key \"content\" is missing"),
            (json!([{"role": "user", "content": null}]), "\"content\" must be text, this is null"),
            (json!([{"role": "user", "content": ""}]), "\"content\" is empty"),
            (json!([{"role": "boss", "content": "x"}]), "unknown role \"boss\" (known: system, developer, user"),
            (json!([{"role": "system", "content": ""}]), "nothing but an empty system message"),
            (json!([{"role": "assistant", "content": null, "tool_calls": [{}]}]), "calls a tool"),
            (json!([{"role": "user", "content": [{"type": "image_url"}]}]), "not text (image_url)"),
        ] {
            let error = read(value.clone()).unwrap_err();
            assert!(error.contains(expected), "{value}: {error}");
        }
    }
}
