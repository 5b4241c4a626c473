//! JSON that is not quite JSON: Python's NaN, and commas after the last item.

use std::borrow::Cow;

/// Reads one JSON value; NaN and infinities, which Python writes, are null, and a comma after the last item is left out.
pub(super) fn parse<T: serde::de::DeserializeOwned>(text: &str) -> serde_json::Result<T> {
    serde_json::from_str(text).or_else(|error| match tidy(text) {
        Cow::Borrowed(_) => Err(error),
        Cow::Owned(text) => serde_json::from_str(&text).map_err(|_| error),
    })
}

/// The text with `NaN`, `Infinity` and `-Infinity` outside of strings as `null`, and a blank for a comma before the end of a list or
/// an object.
pub(super) fn tidy(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let (mut done, mut at, mut in_string) = (0, 0, false);
    let bytes = text.as_bytes();
    while let Some(&byte) = bytes.get(at) {
        match byte {
            // The byte after it belongs to it.
            b'\\' if in_string => at += 1,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b',' if matches!(text[at + 1..].trim_start().as_bytes().first(), Some(b']' | b'}')) => {
                out.push_str(&text[done..at]);
                out.push(' ');
                done = at + 1;
            }
            b'N' | b'I' | b'-' => {
                let word = ["NaN", "-Infinity", "Infinity"].into_iter().find(|w| text[at..].starts_with(w));
                if let Some(word) = word {
                    out.push_str(&text[done..at]);
                    out.push_str("null");
                    done = at + word.len();
                    at = done - 1;
                }
            }
            _ => {}
        }
        at += 1;
    }
    if done == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[done..]);
    Cow::Owned(out)
}

/// serde_json ends its messages with a position inside the text it was given.
pub(super) fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}
