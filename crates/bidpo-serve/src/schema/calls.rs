//! Grammars of tool calls: texts with JSON between them.

use super::{COMMON, SchemaError, Writer, literal};
use bidpo_core::data::CallPart;
use serde_json::Value;

/// The grammar of texts that are any of these sequences of parts.
pub(crate) fn grammar_of_calls(calls: &[Vec<CallPart>]) -> Result<String, SchemaError> {
    let mut rules = Rules::default();
    let alternatives = calls.iter().map(|parts| rules.sequence(parts)).collect::<Result<Vec<_>, _>>()?;
    Ok(format!("root ::= {}{COMMON}{}", alternatives.join(" | "), rules.text))
}

/// Rules of several schemas.
#[derive(Default)]
struct Rules {
    text: String,
    n: usize,
}

impl Rules {
    fn sequence(&mut self, parts: &[CallPart]) -> Result<String, SchemaError> {
        let mut items = Vec::new();
        for part in parts {
            match part {
                CallPart::Text(text) if text.is_empty() => {}
                CallPart::Text(text) => items.push(literal(text)),
                CallPart::OneOf(texts) => {
                    items.push(format!("({})", texts.iter().map(|t| literal(t)).collect::<Vec<_>>().join(" | ")));
                }
                CallPart::Free { end } => items.push(format!("({})*", other_than(end))),
                CallPart::Optional(parts) => items.push(format!("({})?", self.sequence(parts)?)),
                CallPart::Json { root, pointer } => items.push(format!("({})", self.json(root, pointer)?)),
            }
        }
        Ok(items.join(" "))
    }

    fn json(&mut self, root: &Value, pointer: &str) -> Result<String, SchemaError> {
        let rules = std::mem::take(&mut self.text);
        let mut writer = Writer { rules, n: self.n, ..Writer::new(root) };
        let text = writer.any(root.pointer(pointer).unwrap_or(&Value::Null), &format!("#{pointer}"))?;
        (self.text, self.n) = (writer.rules, writer.n);
        Ok(text)
    }
}

/// Items of a text in which `end` does not occur: any beginning of it is followed by another character. (The first character of
/// `end` starts anew, and may not follow a beginning.)
fn other_than(end: &str) -> String {
    let characters: Vec<char> = end.chars().collect();
    let Some(first) = characters.first() else { return "[^\\x00]".to_owned() };
    let class = |c: char| {
        let both = if c == *first { String::from(c) } else { format!("{c}{first}") };
        let escaped: String =
            both.chars().map(|c| if "[]\\^-".contains(c) { format!("\\{c}") } else { c.to_string() }).collect();
        format!("[^{escaped}]")
    };
    let item = |(i, c): (usize, &char)| {
        let before: String = characters[..i].iter().collect();
        if i == 0 { class(*c) } else { format!("{} {}", literal(&before), class(*c)) }
    };
    characters.iter().enumerate().map(item).collect::<Vec<_>>().join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn parts_become_a_sequence() {
        let root = json!({"properties": {"n": {"$ref": "#/$defs/N"}}, "$defs": {"N": {"type": "boolean"}}});
        let n = || CallPart::Json { root: root.clone(), pointer: "/properties/n".into() };
        let call = vec![
            CallPart::Text("<f>".into()),
            CallPart::Optional(vec![CallPart::Free { end: "</a>".into() }, CallPart::Text("</a>".into())]),
            CallPart::OneOf(vec!["x".into(), "\"".into()]),
            CallPart::Text(String::new()),
            n(),
        ];
        let text = grammar_of_calls(&[call, vec![n()]]).unwrap();
        let root = text.lines().next().unwrap();
        let free = r#"([^<] | "<" [^/<] | "</" [^a<] | "</a" [^><])*"#;
        assert!(root.starts_with(&format!(r#"root ::= "<f>" ({free} "</a>")? ("x" | "\"") ("#)), "{root}");
        assert_eq!(root.matches(" | (").count(), 1, "{root}");
        let wrong = CallPart::Json { root: json!({"a": {"not": {}}}), pointer: "/a".into() };
        assert!(grammar_of_calls(&[vec![wrong]]).unwrap_err().to_string().contains("#/a: not is not supported"));
    }
}
