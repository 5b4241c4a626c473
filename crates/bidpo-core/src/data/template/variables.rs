//! Variables that a template reads beside the chat: `enable_thinking`, `reasoning_effort`, `date_string`, ...

use super::TemplateError;
use serde_json::{Map, Value};
use std::str::FromStr;

/// Names that a rendering sets itself.
pub(super) const OWN: [&str; 2] = ["messages", "add_generation_prompt"];
/// Names that are there in any rendering, and may be set all the same.
pub(super) const GIVEN: [&str; 4] = ["bos_token", "eos_token", "tools", "documents"];

/// A variable and its value: `NAME=VALUE` of `--template-set`.
///
/// The value is JSON where it is valid JSON (`false`, `3`, `["a"]`), `True`, `False` and `None` as Python writes them, and
/// otherwise the text as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateVariable {
    /// Its name in the template.
    pub name: String,
    /// Its value.
    pub value: Value,
}

impl FromStr for TemplateVariable {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((name, value)) = text.split_once('=') else {
            return Err(format!("{text:?} has no =: write NAME=VALUE, such as enable_thinking=false"));
        };
        let name = name.trim();
        let first = |c: char| c.is_alphabetic() || c == '_';
        if !name.starts_with(first) || !name.chars().all(|c| first(c) || c.is_numeric()) {
            return Err(format!(
                "{name:?} is not the name of a variable: write NAME=VALUE, such as enable_thinking=false"
            ));
        }
        if OWN.contains(&name) {
            return Err(format!("{name} is the chat itself and cannot be set"));
        }
        let value = match value.trim() {
            "True" => Value::Bool(true),
            "False" => Value::Bool(false),
            "None" => Value::Null,
            json => serde_json::from_str(json).unwrap_or_else(|_| Value::String(value.to_owned())),
        };
        Ok(Self { name: name.to_owned(), value })
    }
}

/// Puts variables into a mapping; a later one of the same name replaces the earlier one.
pub fn template_variables(list: &[TemplateVariable]) -> Map<String, Value> {
    list.iter().map(|v| (v.name.clone(), v.value.clone())).collect()
}

/// Checks that a template reads every variable that is set.
///
/// # Errors
/// [`TemplateError::UnknownVariable`] for the first that it does not read.
pub(super) fn check(template: &str, reads: &[String], set: &Map<String, Value>) -> Result<(), TemplateError> {
    for name in set.keys() {
        let own = OWN.contains(&name.as_str());
        if own || !(reads.contains(name) || GIVEN.contains(&name.as_str())) {
            return Err(TemplateError::UnknownVariable {
                name: template.to_owned(),
                variable: name.clone(),
                reads: reads.to_vec(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values() {
        let value = |text: &str| text.parse::<TemplateVariable>().unwrap().value;
        assert_eq!(value("a=false"), json!(false));
        assert_eq!(value("a=False"), json!(false));
        assert_eq!(value("a=3"), json!(3));
        assert_eq!(value("a=low"), json!("low"));
        assert_eq!(value("a=26 Jul 2024"), json!("26 Jul 2024"));
        assert_eq!(value("a=\"3\""), json!("3"));
        assert_eq!(value("a=[1, {\"b\": null}]"), json!([1, {"b": null}]));
        assert_eq!(value("a=x=y"), json!("x=y"));
        assert_eq!(value("a="), json!(""));
        for bad in ["enable_thinking", "=x", "1a=2", "a b=2", "messages=[]"] {
            assert!(bad.parse::<TemplateVariable>().is_err(), "{bad}");
        }
    }
}
