//! Text that cannot do anything to a terminal.

use std::fmt;
use std::ops::Deref;

/// Text that cannot do anything to a terminal: what [`printable`] returns. What shows text of a model or a file takes this type.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Printable(String);

impl Deref for Printable {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Printable {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Printable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl From<Printable> for String {
    fn from(text: Printable) -> Self {
        text.0
    }
}

impl PartialEq<str> for Printable {
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

impl PartialEq<Printable> for &str {
    fn eq(&self, other: &Printable) -> bool {
        *self == other.0
    }
}

impl PartialEq<&str> for Printable {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

/// The text with every character that would steer a terminal, or change the order in which text is shown, spelled out
/// (`\u{1b}`): C0 and C1 controls and DEL, line and paragraph separators, Unicode's directional overrides, embeddings and
/// isolates. Newlines and tabs stay, a carriage return before a newline is dropped.
pub fn printable(text: &str) -> Printable {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '\n' | '\t' => out.push(c),
            '\r' if characters.peek() == Some(&'\n') => {}
            c if steers(c) => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    Printable(out)
}

fn steers(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
        for code in (0..=0xffff).filter_map(char::from_u32) {
            let shown = printable(&format!("a{code}b"));
            let harmless = |c: char| !c.is_control() || c == '\n' || c == '\t';
            assert!(shown.chars().all(harmless) && shown.starts_with('a') && shown.ends_with('b'), "{code:?}");
        }
        assert_eq!(printable("\u{1b}]0;title\u{7}\u{9b}2J"), "\\u{1b}]0;title\\u{7}\\u{9b}2J");
        assert_eq!(printable("over\u{202e}ride"), "over\\u{202e}ride");
    }

    #[test]
    fn text_stays_text() {
        for text in ["**bold** `code`\n\tindented\n", "h\u{e9}llo \u{20ac} \u{1f600}\u{200d}\u{1f468}", ""] {
            assert_eq!(printable(text), text);
        }
        assert_eq!(printable("a\r\nb\rc"), "a\nb\\rc");
    }
}
