//! Calls written as Python: `[find(place="Oslo", days=3), go()]`, or one without brackets.

use super::WrittenCall;
use super::read::{Found, Read};
use serde_json::{Map, Value};

/// Lists and dictionaries in one another.
const MAX_DEPTH: usize = 64;

/// Calls at the beginning of a text: one, or a list in brackets.
pub(super) fn python_calls(text: &str) -> Option<Read<'_>> {
    let Some(mut rest) = text.strip_prefix('[') else {
        let (call, rest) = one_call(text)?;
        return Some(Read { calls: vec![call], first: Found::Python { in_list: false }, rest });
    };
    let mut calls = Vec::new();
    loop {
        let (call, behind) = one_call(rest.trim_start())?;
        calls.push(call);
        rest = behind.trim_start();
        if let Some(behind) = rest.strip_prefix(']') {
            return Some(Read { calls, first: Found::Python { in_list: true }, rest: behind });
        }
        rest = rest.strip_prefix(',')?;
    }
}

/// `name(key=value, ...)`.
pub(super) fn one_call(text: &str) -> Option<(WrittenCall, &str)> {
    let (name, rest) = identifier(text)?;
    let mut rest = rest.strip_prefix('(')?.trim_start();
    let mut arguments = Map::new();
    while !rest.starts_with(')') {
        let (key, behind) = identifier(rest)?;
        let (value, behind) = value(behind.trim_start().strip_prefix('=')?.trim_start(), 0)?;
        arguments.insert(key.to_owned(), value);
        rest = next(behind, ')')?;
    }
    Some((WrittenCall { name: name.to_owned(), arguments }, &rest[1..]))
}

/// What follows a part of a list: another part, or what closes it.
fn next(rest: &str, close: char) -> Option<&str> {
    let rest = rest.trim_start();
    match rest.strip_prefix(',') {
        Some(behind) => Some(behind.trim_start()),
        None => rest.starts_with(close).then_some(rest),
    }
}

/// A name, with dots where it belongs to a module.
fn identifier(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_alphanumeric() && !matches!(c, '_' | '.' | '-')).unwrap_or(text.len());
    (end > 0 && !text.starts_with(|c: char| c.is_ascii_digit())).then(|| text.split_at(end))
}

/// A literal; JSON's words are taken too.
fn value(text: &str, depth: usize) -> Option<(Value, &str)> {
    if depth > MAX_DEPTH {
        return None;
    }
    match text.chars().next()? {
        quote @ ('"' | '\'') => {
            let (text, rest) = string(&text[1..], quote)?;
            Some((Value::String(text), rest))
        }
        '[' => list(&text[1..], ']', depth),
        '(' => list(&text[1..], ')', depth),
        '{' => {
            let (mut map, mut rest) = (Map::new(), text[1..].trim_start());
            while !rest.starts_with('}') {
                let (key, behind) = value(rest, depth + 1)?;
                let key = key.as_str().map_or_else(|| key.to_string(), str::to_owned);
                let (item, behind) = value(behind.trim_start().strip_prefix(':')?.trim_start(), depth + 1)?;
                map.insert(key, item);
                rest = next(behind, '}')?;
            }
            Some((Value::Object(map), &rest[1..]))
        }
        _ => {
            let end = text.find(|c: char| !c.is_alphanumeric() && !"+-._".contains(c)).unwrap_or(text.len());
            let (word, rest) = text.split_at(end);
            let value = match word {
                "True" | "true" => Value::Bool(true),
                "False" | "false" => Value::Bool(false),
                "None" | "null" => Value::Null,
                number => serde_json::from_str(&number.replace('_', "")).ok().filter(Value::is_number)?,
            };
            Some((value, rest))
        }
    }
}

fn list(text: &str, close: char, depth: usize) -> Option<(Value, &str)> {
    let (mut items, mut rest) = (Vec::new(), text.trim_start());
    while !rest.starts_with(close) {
        let (item, behind) = value(rest, depth + 1)?;
        items.push(item);
        rest = next(behind, close)?;
    }
    Some((Value::Array(items), &rest[1..]))
}

/// A string literal behind its opening quotation mark.
fn string(text: &str, quote: char) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        if c == quote {
            return Some((out, &text[i + 1..]));
        }
        if c != '\\' {
            out.push(c);
            continue;
        }
        let mut code = |digits: usize| {
            let hex: String = chars.by_ref().take(digits).map(|(_, c)| c).collect();
            u32::from_str_radix(&hex, 16).ok()
        };
        match text[i + 1..].chars().next()? {
            'u' => {
                code(1);
                let mut point = code(4)?;
                // JSON writes what lies beyond 16 bits as two surrogates.
                if (0xd800..0xdc00).contains(&point) {
                    code(2);
                    point = 0x10000 + ((point - 0xd800) << 10) + code(4)?.checked_sub(0xdc00)?;
                }
                out.push(char::from_u32(point)?);
            }
            'x' => {
                code(1);
                out.push(char::from_u32(code(2)?)?);
            }
            escaped => {
                chars.next();
                match escaped {
                    'n' => out.push('\n'),
                    't' => out.push('\t'),
                    'r' => out.push('\r'),
                    'b' => out.push('\u{8}'),
                    'f' => out.push('\u{c}'),
                    '\n' => {}
                    '\\' | '"' | '\'' | '/' => out.push(escaped),
                    other => out.extend(['\\', other]),
                }
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Values as `ast.literal_eval` of Python 3.12 reads them.
    #[test]
    fn literals_are_those_of_python() {
        for (text, want) in [
            ("\"a 'b' \\\"c\\\"\"", json!("a 'b' \"c\"")),
            ("'it\\'s\\n\\u00e9\\x41 \\d'", json!("it's\né\u{41} \\d")),
            ("[1, -2.5, 1_000, 1e3,]", json!([1, -2.5, 1000, 1e3])),
            ("{'a': (True, None), \"b\": {}}", json!({"a": [true, null], "b": {}})),
            ("[]", json!([])),
            ("false", json!(false)),
            ("\"\\ud83d\\ude00\"", json!("😀")),
        ] {
            let call = format!("f( x = {text} )!");
            let (call, rest) = one_call(&call).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((&call.arguments["x"], rest), (&want, "!"), "{text}");
        }
        for broken in
            ["f(", "f(x)", "f(x=)", "f(x=[1)", "f(x='a)", "f(x=a)", "f(x=1 y=2)", "(x=1)", "1f()", "f(x='\\u12')"]
        {
            assert!(one_call(broken).is_none(), "{broken}");
        }
        let deep = format!("f(x={}1{})", "[".repeat(5000), "]".repeat(5000));
        assert!(one_call(&deep).is_none());
    }
}
