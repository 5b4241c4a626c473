//! GBNF read once by us: llama.cpp says of a bad grammar only that it is bad, and some take it gigabytes to find out.

use std::collections::BTreeSet;

/// The longest text of a grammar in bytes.
const MAX_BYTES: usize = 256 * 1024;

/// The deepest nesting of parentheses: llama.cpp's reader calls itself for each.
const MAX_DEPTH: usize = 64;

/// llama.cpp's limit of a repetition.
const MAX_REPETITION: u64 = 2000;

/// The most characters and references after repetitions are written out.
const MAX_ELEMENTS: u64 = 500_000;

/// A grammar that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// A mistake at a place.
    #[error("line {line}, column {column}: {reason}")]
    At {
        /// From 1.
        line: usize,
        /// In characters, from 1.
        column: usize,
        /// The reason.
        reason: String,
    },
    /// A rule that is used and not there.
    #[error("there is no rule {0}")]
    NoRule(String),
    /// A grammar that is too large.
    #[error("the grammar is too large: {0}")]
    TooLarge(String),
    /// llama.cpp cannot use it.
    #[error("llama.cpp cannot use this grammar: {0}")]
    Refused(String),
}

impl GrammarError {
    pub(super) fn new(text: &str, at: usize, reason: impl Into<String>) -> Self {
        let before = text.get(..at).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
        Self::At { line, column, reason: reason.into() }
    }
}

/// Checks a grammar's form, its names, and its size.
pub(super) fn check(text: &str) -> Result<(), GrammarError> {
    if text.len() > MAX_BYTES {
        return Err(GrammarError::TooLarge(format!("{} bytes, {MAX_BYTES} are allowed", text.len())));
    }
    let mut reader = Reader { text, at: 0, rules: BTreeSet::new(), used: BTreeSet::new(), elements: 0 };
    reader.space(true);
    while reader.peek().is_some() {
        reader.rule()?;
    }
    let root = "root".to_owned();
    match std::iter::once(&root).chain(&reader.used).find(|name| !reader.rules.contains(*name)) {
        Some(name) => Err(GrammarError::NoRule(name.clone())),
        None => Ok(()),
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    rules: BTreeSet<String>,
    used: BTreeSet<String>,
    elements: u64,
}

impl Reader<'_> {
    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn takes(&mut self, text: &str) -> bool {
        let found = self.text[self.at..].starts_with(text);
        self.at += if found { text.len() } else { 0 };
        found
    }

    fn wrong<T>(&self, reason: impl Into<String>) -> Result<T, GrammarError> {
        Err(GrammarError::new(self.text, self.at, reason))
    }

    /// Blanks and comments; line ends where they are allowed.
    fn space(&mut self, lines: bool) {
        loop {
            match self.peek() {
                Some(' ' | '\t') => {}
                Some('#') => {
                    while self.peek().is_some_and(|c| c != '\r' && c != '\n') {
                        self.next();
                    }
                    continue;
                }
                Some('\r' | '\n') if lines => {}
                _ => return,
            }
            self.next();
        }
    }

    fn name(&mut self) -> Option<String> {
        let rest = &self.text[self.at..];
        let n = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(rest.len());
        self.at += n;
        (n > 0).then(|| rest[..n].to_owned())
    }

    fn rule(&mut self) -> Result<(), GrammarError> {
        let Some(name) = self.name() else {
            return self.wrong("a rule's name is expected (letters, digits and -)");
        };
        self.space(false);
        if !self.takes("::=") {
            return self.wrong("::= is expected");
        }
        self.space(true);
        self.rules.insert(name);
        self.alternates(0)?;
        if self.peek().is_some_and(|c| c != '\r' && c != '\n') {
            return self.wrong("the end of the rule is expected");
        }
        self.space(true);
        Ok(())
    }

    fn alternates(&mut self, depth: usize) -> Result<(), GrammarError> {
        if depth > MAX_DEPTH {
            return Err(GrammarError::TooLarge(format!("parentheses are nested more than {MAX_DEPTH} deep")));
        }
        self.sequence(depth)?;
        while self.takes("|") {
            self.space(true);
            self.sequence(depth)?;
        }
        Ok(())
    }

    fn sequence(&mut self, depth: usize) -> Result<(), GrammarError> {
        // Elements of the item before, which a repetition writes out.
        let mut item: Option<u64> = None;
        loop {
            match self.peek() {
                Some('"') => {
                    self.next();
                    item = Some(self.until('"')?);
                }
                Some('[') => {
                    self.next();
                    self.takes("^");
                    item = Some(self.until(']')?);
                }
                Some('(') => {
                    self.next();
                    self.space(true);
                    self.alternates(depth + 1)?;
                    if !self.takes(")") {
                        return self.wrong("')' is expected");
                    }
                    item = Some(1);
                }
                Some('.') => {
                    self.next();
                    item = Some(1);
                }
                Some('*' | '+' | '?') => {
                    if item.is_none() {
                        return self.wrong("a repetition needs something before it");
                    }
                    self.next();
                    self.add(item.unwrap_or(1))?;
                }
                Some('{') => {
                    let Some(n) = item else { return self.wrong("a repetition needs something before it") };
                    self.next();
                    let times = self.repetition()?;
                    self.add(n.saturating_mul(times))?;
                }
                Some('<' | '!') => {
                    return self.wrong("tokens by number or name (<...>) are not supported: write their text");
                }
                Some(c) if c.is_ascii_alphanumeric() || c == '-' => {
                    let name = self.name().unwrap_or_default();
                    self.used.insert(name);
                    item = Some(1);
                }
                _ => return Ok(()),
            }
            self.add(item.unwrap_or(1))?;
            self.space(depth > 0);
        }
    }

    fn add(&mut self, n: u64) -> Result<(), GrammarError> {
        self.elements = self.elements.saturating_add(n);
        if self.elements > MAX_ELEMENTS {
            return Err(GrammarError::TooLarge(format!("more than {MAX_ELEMENTS} elements with all repetitions")));
        }
        Ok(())
    }

    /// Characters up to the closing one, with escapes. Returns how many.
    fn until(&mut self, close: char) -> Result<u64, GrammarError> {
        let mut n = 0;
        loop {
            match self.next() {
                None => return self.wrong(format!("{close:?} is missing")),
                Some(c) if c == close => return Ok(n.max(1)),
                Some('\\') => {
                    let digits = match self.next() {
                        Some('x') => 2,
                        Some('u') => 4,
                        Some('U') => 8,
                        Some('t' | 'r' | 'n' | '\\' | '"' | '[' | ']') => 0,
                        _ => {
                            return self
                                .wrong("an unknown escape (\\t \\r \\n \\\\ \\\" \\[ \\] \\xHH \\uHHHH are known)");
                        }
                    };
                    for _ in 0..digits {
                        if !self.next().is_some_and(|c| c.is_ascii_hexdigit()) {
                            return self.wrong(format!("{digits} hexadecimal digits are expected"));
                        }
                    }
                }
                Some(_) => {}
            }
            n += 1;
        }
    }

    /// `m}`, `m,}`, `m,n}` after the brace. Returns the largest number.
    fn repetition(&mut self) -> Result<u64, GrammarError> {
        self.space(false);
        let Some(least) = self.number()? else { return self.wrong("a number is expected") };
        self.space(false);
        let mut most = least;
        if self.takes(",") {
            self.space(false);
            most = self.number()?.unwrap_or(least);
            self.space(false);
        }
        if !self.takes("}") {
            return self.wrong("'}' is expected");
        }
        if most < least {
            return self.wrong(format!("a repetition of {least} to {most} cannot be"));
        }
        if most > MAX_REPETITION {
            return Err(GrammarError::TooLarge(format!("a repetition of {most}, {MAX_REPETITION} is allowed")));
        }
        Ok(most)
    }

    fn number(&mut self) -> Result<Option<u64>, GrammarError> {
        let rest = &self.text[self.at..];
        let n = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        if n == 0 {
            return Ok(None);
        }
        let Ok(number) = rest[..n].parse() else { return self.wrong("the number is too large") };
        self.at += n;
        Ok(Some(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_the_format_are_read() {
        for text in [
            "root ::= \"yes\" | \"no\"",
            "# a comment\nroot ::= item+ # more\nitem ::= \"- \" [^\\r\\n\\x0b]* \"\\n\"\n\n",
            "root ::= (\n  \"a\" |\n  \"b\"\n) tail?\r\ntail ::= [a-z\\]]{2,3} .{4} \"\\u00e9\"{1,}\n",
            "root ::= | \"x\"",
        ] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn mistakes_have_a_place() {
        let at = |text: &str| match check(text) {
            Err(GrammarError::At { line, column, .. }) => (line, column),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(at("root \"a\""), (1, 6));
        assert_eq!(at("root ::= \"a\"\nx ::= ("), (2, 8));
        assert_eq!(at("root ::= \"a"), (1, 12));
        assert_eq!(at("root ::= *"), (1, 10));
        assert_eq!(at("root ::= \"a\"{3,2}"), (1, 18));
        assert_eq!(at("root ::= \"\\q\""), (1, 13));
        assert_eq!(at("root ::= <think>"), (1, 10));
        assert_eq!(check("root ::= other"), Err(GrammarError::NoRule("other".into())));
        assert_eq!(check(""), Err(GrammarError::NoRule("root".into())));
        for text in [
            format!("root ::= {}\"a\"{}", "(".repeat(70), ")".repeat(70)),
            "root ::= \"a\"{3000}".into(),
            format!("root ::= \"{}\"{{2000}}", "a".repeat(1000)),
            format!("root ::= \"{}\"", "a".repeat(MAX_BYTES)),
        ] {
            assert!(matches!(check(&text), Err(GrammarError::TooLarge(_))));
        }
    }
}
