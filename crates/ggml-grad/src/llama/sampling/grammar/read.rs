//! GBNF, llama.cpp's form of grammars, read as rules.

use super::rules::{Builder, CharSet, Element, Rules};

/// The longest text of a grammar in bytes.
const MAX_BYTES: usize = 256 * 1024;

/// The deepest nesting of parentheses: the reader calls itself for each.
const MAX_DEPTH: usize = 64;

/// llama.cpp's limit of a repetition.
const MAX_REPETITION: u64 = 2000;

/// The most characters and references after repetitions are written out.
const MAX_ELEMENTS: usize = 500_000;

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
    /// A rule begins with itself.
    #[error("a rule may begin with itself (left recursion): write the repetition with * or with the rule at its end")]
    LeftRecursive,
    /// No text is of this grammar.
    #[error("no text is of this grammar: its rules have no end")]
    Nothing,
    /// Texts of it can be read in too many ways.
    #[error(
        "the grammar is too ambiguous: {} there are more than {limit} ways to go on, or as much work as for them; write it with fewer \
         optional parts that begin alike",
        if .after.is_empty() { "at its beginning".to_owned() } else { format!("after {:?}", .after) }
    )]
    TooAmbiguous {
        /// The text before, or its end.
        after: String,
        /// The limit.
        limit: usize,
    },
}

impl GrammarError {
    pub(super) fn new(text: &str, at: usize, reason: impl Into<String>) -> Self {
        let before = text.get(..at).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
        Self::At { line, column, reason: reason.into() }
    }
}

/// Reads a grammar, with its repetitions written out.
pub(super) fn read(text: &str) -> Result<Rules, GrammarError> {
    if text.len() > MAX_BYTES {
        return Err(GrammarError::TooLarge(format!("{} bytes, {MAX_BYTES} are allowed", text.len())));
    }
    if let Some(at) = text.find('\0') {
        return Err(GrammarError::new(text, at, "the text holds a NUL character"));
    }
    let mut reader = Reader { text, at: 0, rules: Builder::default(), elements: 0 };
    reader.space(true);
    while reader.peek().is_some() {
        reader.rule()?;
    }
    let rules = reader.rules.finish().map_err(GrammarError::NoRule)?;
    if rules.are_left_recursive() {
        return Err(GrammarError::LeftRecursive);
    }
    Ok(rules)
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    rules: Builder,
    elements: usize,
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
        let rule = self.rules.named(&name);
        let alternatives = self.alternates(0)?;
        self.rules.define(rule, alternatives);
        if self.peek().is_some_and(|c| c != '\r' && c != '\n') {
            return self.wrong("the end of the rule is expected");
        }
        self.space(true);
        Ok(())
    }

    fn alternates(&mut self, depth: usize) -> Result<Vec<Vec<Element>>, GrammarError> {
        if depth > MAX_DEPTH {
            return Err(GrammarError::TooLarge(format!("parentheses are nested more than {MAX_DEPTH} deep")));
        }
        let mut all = vec![self.sequence(depth)?];
        while self.takes("|") {
            self.space(true);
            all.push(self.sequence(depth)?);
        }
        Ok(all)
    }

    fn sequence(&mut self, depth: usize) -> Result<Vec<Element>, GrammarError> {
        let mut out = Vec::new();
        // Where the item begins that a repetition repeats.
        let mut item: Option<usize> = None;
        loop {
            let Some(c) = self.peek() else { return Ok(out) };
            if let '*' | '+' | '?' | '{' = c {
                let Some(from) = item else { return self.wrong("a repetition needs something before it") };
                self.next();
                let (least, most) = match c {
                    '*' => (0, None),
                    '+' => (1, None),
                    '?' => (0, Some(1)),
                    _ => self.repetition()?,
                };
                self.repeat(&mut out, from, least, most)?;
                self.space(depth > 0);
                continue;
            }
            let from = out.len();
            match c {
                '"' => {
                    self.next();
                    while let Some(c) = self.character('"')? {
                        out.push(self.rules.set(CharSet::new(vec![(c, c)], false)));
                    }
                }
                '[' => {
                    self.next();
                    let set = self.set()?;
                    out.push(self.rules.set(set));
                }
                '(' => {
                    self.next();
                    self.space(true);
                    let rule = self.rules.unnamed();
                    let alternatives = self.alternates(depth + 1)?;
                    self.rules.define(rule, alternatives);
                    if !self.takes(")") {
                        return self.wrong("')' is expected");
                    }
                    out.push(Element::Rule(rule));
                }
                '.' => {
                    self.next();
                    out.push(self.rules.set(CharSet::new(Vec::new(), true)));
                }
                '<' | '!' => {
                    return self.wrong("tokens by number or name (<...>) are not supported: write their text");
                }
                c if c.is_ascii_alphanumeric() || c == '-' => {
                    let name = self.name().unwrap_or_default();
                    out.push(Element::Rule(self.rules.named(&name)));
                }
                _ => return Ok(out),
            }
            item = Some(from);
            self.add(out.len() - from)?;
            self.space(depth > 0);
        }
    }

    /// Writes out a repetition of the elements from `from` on, as llama.cpp does: `S{1,3}` is `S S2`, where `S2 ::= S S1 |` and
    /// `S1 ::= S |`; `S*` is `S0` where `S0 ::= S S0 |`.
    fn repeat(
        &mut self,
        out: &mut Vec<Element>,
        from: usize,
        least: u64,
        most: Option<u64>,
    ) -> Result<(), GrammarError> {
        let item = out.split_off(from);
        if item.is_empty() {
            return Ok(());
        }
        let mut times = |n: u64| self.add(usize::try_from(n).unwrap_or(usize::MAX).saturating_mul(item.len()));
        times(most.unwrap_or(least + 1))?;
        for _ in 0..least {
            out.extend_from_slice(&item);
        }
        let optional = |rest: Option<Element>| vec![item.iter().copied().chain(rest).collect(), Vec::new()];
        let Some(most) = most else {
            let rule = self.rules.unnamed();
            self.rules.define(rule, optional(Some(Element::Rule(rule))));
            out.push(Element::Rule(rule));
            return Ok(());
        };
        let mut rest = None;
        for _ in least..most {
            let rule = self.rules.unnamed();
            self.rules.define(rule, optional(rest));
            rest = Some(Element::Rule(rule));
        }
        out.extend(rest);
        Ok(())
    }

    fn add(&mut self, n: usize) -> Result<(), GrammarError> {
        self.elements = self.elements.saturating_add(n);
        if self.elements > MAX_ELEMENTS {
            return Err(GrammarError::TooLarge(format!("more than {MAX_ELEMENTS} elements with all repetitions")));
        }
        Ok(())
    }

    /// The next character before the closing one, which is taken; `None` for that.
    fn character(&mut self, close: char) -> Result<Option<u32>, GrammarError> {
        let c = match self.next() {
            None => return self.wrong(format!("{close:?} is missing")),
            Some(c) if c == close => return Ok(None),
            Some('\\') => {
                let digits = match self.next() {
                    Some('x') => 2,
                    Some('u') => 4,
                    Some('U') => 8,
                    Some('t') => return Ok(Some('\t'.into())),
                    Some('r') => return Ok(Some('\r'.into())),
                    Some('n') => return Ok(Some('\n'.into())),
                    Some(c @ ('\\' | '"' | '[' | ']' | '-')) => return Ok(Some(c.into())),
                    _ => {
                        return self
                            .wrong("an unknown escape (\\t \\r \\n \\\\ \\\" \\[ \\] \\- \\xHH \\uHHHH are known)");
                    }
                };
                let mut value: u32 = 0;
                for _ in 0..digits {
                    let Some(digit) = self.next().and_then(|c| c.to_digit(16)) else {
                        return self.wrong(format!("{digits} hexadecimal digits are expected"));
                    };
                    value = value << 4 | digit;
                }
                return Ok(Some(value));
            }
            Some(c) => c,
        };
        Ok(Some(c.into()))
    }

    /// The characters of `[...]` behind its bracket.
    fn set(&mut self) -> Result<CharSet, GrammarError> {
        let negated = self.takes("^");
        let mut ranges = Vec::new();
        while let Some(low) = self.character(']')? {
            let rest = &self.text[self.at..];
            let mut high = low;
            if rest.starts_with('-') && !rest.starts_with("-]") {
                self.next();
                high = match self.peek() {
                    // An end is no end of the set, behind a dash.
                    Some(c) if c != '\\' => {
                        self.next();
                        c.into()
                    }
                    _ => self.character(']')?.unwrap_or(low),
                };
            }
            if high < low {
                return self.wrong("a range whose ends are in the wrong order");
            }
            ranges.push((low, high));
        }
        let set = CharSet::new(ranges, negated);
        if set.is_empty() { self.wrong("a set without characters") } else { Ok(set) }
    }

    /// `m}`, `m,}`, `m,n}` after the brace.
    fn repetition(&mut self) -> Result<(u64, Option<u64>), GrammarError> {
        self.space(false);
        let Some(least) = self.number()? else { return self.wrong("a number is expected") };
        self.space(false);
        let mut most = Some(least);
        if self.takes(",") {
            self.space(false);
            most = self.number()?;
            self.space(false);
        }
        if !self.takes("}") {
            return self.wrong("'}' is expected");
        }
        if let Some(most) = most.filter(|most| *most < least) {
            return self.wrong(format!("a repetition of {least} to {most} cannot be"));
        }
        let largest = most.unwrap_or(least);
        if largest > MAX_REPETITION {
            return Err(GrammarError::TooLarge(format!("a repetition of {largest}, {MAX_REPETITION} is allowed")));
        }
        Ok((least, most))
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
            assert!(read(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn mistakes_have_a_place() {
        let at = |text: &str| match read(text) {
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
        assert_eq!(read("root ::= other").unwrap_err(), GrammarError::NoRule("other".into()));
        assert_eq!(read("").unwrap_err(), GrammarError::NoRule("root".into()));
        for text in [
            format!("root ::= {}\"a\"{}", "(".repeat(70), ")".repeat(70)),
            "root ::= \"a\"{3000}".into(),
            format!("root ::= \"{}\"{{2000}}", "a".repeat(1000)),
            format!("root ::= \"{}\"", "a".repeat(MAX_BYTES)),
        ] {
            assert!(matches!(read(&text), Err(GrammarError::TooLarge(_))));
        }
    }
}
