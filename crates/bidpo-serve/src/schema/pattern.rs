//! Regular expressions (`pattern` of JSON schemas, `guided_regex`) as rules of a grammar.
//!
//! The syntax is ECMAScript's. Look-around, references back, word boundaries and `\p` are no part of such grammars and are refused.

use super::{literal, times};

/// The deepest nesting of groups.
const MAX_DEPTH: usize = 32;

/// The largest count of a repetition, llama.cpp's own.
const MAX_TIMES: u64 = 2000;

/// A regular expression that cannot be written as a grammar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PatternError {
    /// Something that grammars do not have.
    Unsupported(&'static str),
    /// Not a regular expression.
    Invalid(&'static str),
}

/// Where the text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Within {
    /// A string of JSON: quotes, backslashes and control characters are escaped.
    Json,
    /// The answer itself.
    Answer,
}

/// A regular expression, read. It covers whole texts: what may stand around an expression without anchors is part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern(Node);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Set(Set),
    Sequence(Vec<Node>),
    Either(Vec<Node>),
    Repeat { item: Box<Node>, least: u64, most: Option<u64> },
}

impl Pattern {
    /// Reads an expression that may match anywhere in a text, as `pattern` does.
    pub(super) fn found_in(text: &str) -> Result<Self, PatternError> {
        Self::read(text, false)
    }

    /// Reads an expression that matches the whole text, with and without anchors.
    pub(super) fn whole(text: &str) -> Result<Self, PatternError> {
        Self::read(text, true)
    }

    fn read(text: &str, whole: bool) -> Result<Self, PatternError> {
        let mut reader = Reader { rest: text, depth: 0 };
        let mut alternatives = Vec::new();
        loop {
            let begins = reader.takes("^") || whole;
            let node = reader.sequence()?;
            let ends = reader.takes("$") || whole;
            let anything = |anchored: bool| (!anchored).then(|| repeat(Node::Set(Set::all()), 0, None));
            alternatives.push(sequence(anything(begins).into_iter().chain([node]).chain(anything(ends)).collect()));
            if !reader.takes("|") {
                break;
            }
        }
        match reader.peek() {
            None => Ok(Self(either(alternatives))),
            Some(')') => Err(PatternError::Invalid("a ) without its (")),
            Some(_) => Err(PatternError::Unsupported("an anchor within a pattern")),
        }
    }

    /// The pattern with a length from `least` to `most` characters; `None` where that cannot be written.
    pub(super) fn of_length(self, least: u64, most: Option<u64>) -> Option<Self> {
        let (shortest, longest) = length(&self.0);
        if shortest >= least && most.is_none_or(|most| longest.is_some_and(|longest| longest <= most)) {
            return Some(self);
        }
        let Node::Repeat { item, least: low, most: high } = self.0 else { return None };
        if length(&item) != (1, Some(1)) {
            return None;
        }
        let low = low.max(least);
        let high = match (high, most) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let within = low <= high.unwrap_or(MAX_TIMES).min(MAX_TIMES);
        within.then_some(Self(Node::Repeat { item, least: low, most: high }))
    }

    /// The body of a rule.
    ///
    /// # Errors
    /// For a set of characters that holds none.
    pub(super) fn rule(&self, within: Within) -> Result<String, PatternError> {
        write(&self.0, within)
    }
}

/// The fewest and the most characters.
fn length(node: &Node) -> (u64, Option<u64>) {
    match node {
        Node::Set(_) => (1, Some(1)),
        Node::Sequence(parts) => parts.iter().map(length).fold((0, Some(0)), |(low, high), (l, h)| {
            (low.saturating_add(l), high.zip(h).map(|(a, b): (u64, u64)| a.saturating_add(b)))
        }),
        Node::Either(parts) => {
            let lengths: Vec<_> = parts.iter().map(length).collect();
            let low = lengths.iter().map(|l| l.0).min().unwrap_or(0);
            (low, lengths.iter().map(|l| l.1).collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().max()))
        }
        Node::Repeat { item, least, most } => {
            let (low, high) = length(item);
            (low.saturating_mul(*least), high.zip(*most).map(|(a, b)| a.saturating_mul(b)))
        }
    }
}

fn sequence(mut parts: Vec<Node>) -> Node {
    if parts.len() == 1 { parts.remove(0) } else { Node::Sequence(parts) }
}

fn either(mut parts: Vec<Node>) -> Node {
    if parts.len() == 1 { parts.remove(0) } else { Node::Either(parts) }
}

fn repeat(item: Node, least: u64, most: Option<u64>) -> Node {
    if length(&item) == (0, Some(0)) { item } else { Node::Repeat { item: Box::new(item), least, most } }
}

fn write(node: &Node, within: Within) -> Result<String, PatternError> {
    Ok(match node {
        Node::Set(set) => set.rule(within)?,
        Node::Sequence(parts) if parts.is_empty() => "\"\"".into(),
        Node::Sequence(parts) => {
            let mut items = Vec::new();
            // Single characters that follow one another are one text.
            let mut text = String::new();
            for part in parts {
                match part {
                    Node::Set(set) if set.only().is_some() => text.extend(set.only().map(|c| within.written(c))),
                    part => {
                        if !text.is_empty() {
                            items.push(literal(&std::mem::take(&mut text)));
                        }
                        items.push(grouped(part, within)?);
                    }
                }
            }
            if !text.is_empty() {
                items.push(literal(&text));
            }
            items.join(" ")
        }
        Node::Either(parts) => {
            let parts: Result<Vec<_>, _> = parts.iter().map(|part| write(part, within)).collect();
            parts?.join(" | ")
        }
        Node::Repeat { item, least, most } => format!("({}){}", write(item, within)?, times(*least, *most)),
    })
}

fn grouped(node: &Node, within: Within) -> Result<String, PatternError> {
    let text = write(node, within)?;
    Ok(if matches!(node, Node::Either(_) | Node::Set(_)) { format!("({text})") } else { text })
}

impl Within {
    /// A character as it is written there.
    fn written(self, c: char) -> String {
        match (self, c) {
            (Self::Answer, c) => c.into(),
            (Self::Json, '"') => "\\\"".into(),
            (Self::Json, '\\') => "\\\\".into(),
            (Self::Json, '\n') => "\\n".into(),
            (Self::Json, '\r') => "\\r".into(),
            (Self::Json, '\t') => "\\t".into(),
            (Self::Json, '\u{8}') => "\\b".into(),
            (Self::Json, '\u{c}') => "\\f".into(),
            (Self::Json, c) if c.is_ascii_control() => format!("\\u{:04x}", u32::from(c)),
            (Self::Json, c) => c.into(),
        }
    }
}

/// Characters, as ranges with both ends, in order and apart.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Set(Vec<(u32, u32)>);

const LAST: u32 = 0x10_FFFF;
const DIGITS: [(u32, u32); 1] = [(0x30, 0x39)];
const WORD: [(u32, u32); 4] = [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)];
const SPACE: [(u32, u32); 10] = [
    (0x09, 0x0D),
    (0x20, 0x20),
    (0xA0, 0xA0),
    (0x1680, 0x1680),
    (0x2000, 0x200A),
    (0x2028, 0x2029),
    (0x202F, 0x202F),
    (0x205F, 0x205F),
    (0x3000, 0x3000),
    (0xFEFF, 0xFEFF),
];
const LINE_ENDS: [(u32, u32); 3] = [(0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029)];

impl Set {
    fn of(mut ranges: Vec<(u32, u32)>) -> Self {
        ranges.sort_unstable();
        let mut set: Vec<(u32, u32)> = Vec::new();
        for (low, high) in ranges {
            match set.last_mut() {
                Some(last) if low <= last.1.saturating_add(1) => last.1 = last.1.max(high),
                _ => set.push((low, high)),
            }
        }
        Self(set)
    }

    fn all() -> Self {
        Self::default().others()
    }

    fn one(c: char) -> Self {
        Self(vec![(c.into(), c.into())])
    }

    /// All other characters.
    fn others(&self) -> Self {
        let mut out = Vec::new();
        let mut from = 0;
        // Surrogates are no characters.
        for (low, high) in Self::of([self.0.as_slice(), &[(0xD800, 0xDFFF)]].concat()).0 {
            if from < low {
                out.push((from, low - 1));
            }
            from = high + 1;
        }
        if from <= LAST {
            out.push((from, LAST));
        }
        Self(out)
    }

    fn without(&self, ranges: &[(u32, u32)]) -> Self {
        Self::of([self.others().0.as_slice(), ranges].concat()).others()
    }

    fn has(&self, c: char) -> bool {
        self.0.iter().any(|&(low, high)| (low..=high).contains(&c.into()))
    }

    /// Its character, where it has only one.
    fn only(&self) -> Option<char> {
        match self.0.as_slice() {
            &[(low, high)] if low == high => char::from_u32(low),
            _ => None,
        }
    }

    fn rule(&self, within: Within) -> Result<String, PatternError> {
        if let Some(c) = self.only() {
            return Ok(literal(&within.written(c)));
        }
        let (plain, escaped) = match within {
            Within::Answer => (self.without(&[(0, 0)]), ""),
            // Control characters without a short escape are left out: the texts are fewer, and all of them match.
            Within::Json => {
                (self.without(&[(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0x7F, 0x7F)]), "\"\\\n\r\t\u{8}\u{c}")
            }
        };
        let mut parts: Vec<String> =
            escaped.chars().filter(|&c| self.has(c)).map(|c| literal(&within.written(c))).collect();
        if !plain.0.is_empty() {
            let range = |&(low, high): &(u32, u32)| match low == high {
                true => class_char(low),
                false => format!("{}-{}", class_char(low), class_char(high)),
            };
            parts.insert(0, format!("[{}]", plain.0.iter().map(range).collect::<String>()));
        }
        match parts.as_slice() {
            [] => Err(PatternError::Unsupported("a set without characters that can be written")),
            [one] => Ok(one.clone()),
            _ => Ok(format!("({})", parts.join(" | "))),
        }
    }
}

/// A character within `[...]` of a grammar.
fn class_char(c: u32) -> String {
    match char::from_u32(c).filter(char::is_ascii_alphanumeric) {
        Some(c) => c.into(),
        None if c > 0xFFFF => format!("\\U{c:08X}"),
        None => format!("\\u{c:04X}"),
    }
}

struct Reader<'a> {
    rest: &'a str,
    depth: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    fn takes(&mut self, text: &str) -> bool {
        let rest = self.rest.strip_prefix(text);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// Terms up to `|`, `)`, an anchor or the end.
    fn sequence(&mut self) -> Result<Node, PatternError> {
        let mut parts = Vec::new();
        while let Some(c) = self.peek().filter(|c| !"|)^$".contains(*c)) {
            let item = match c {
                '(' => self.group()?,
                '*' | '+' | '?' => return Err(PatternError::Invalid("a repetition of nothing")),
                _ => Node::Set(self.set()?),
            };
            parts.push(self.repeated(item)?);
        }
        Ok(sequence(parts))
    }

    fn group(&mut self) -> Result<Node, PatternError> {
        self.next();
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(PatternError::Unsupported("groups nested so deep"));
        }
        if self.takes("?") {
            let _ = self.takes("P");
            match (self.takes(":"), self.takes("<")) {
                (true, _) => {}
                (_, true) if self.peek().is_some_and(|c| c.is_alphabetic() || c == '_') => {
                    let Some((_, rest)) = self.rest.split_once('>') else {
                        return Err(PatternError::Invalid("a group's name without its >"));
                    };
                    self.rest = rest;
                }
                _ => return Err(PatternError::Unsupported("look-around or a flag")),
            }
        }
        let mut alternatives = vec![self.sequence()?];
        while self.takes("|") {
            alternatives.push(self.sequence()?);
        }
        match self.next() {
            Some(')') => {}
            None => return Err(PatternError::Invalid("a ( without its )")),
            Some(_) => return Err(PatternError::Unsupported("an anchor within a pattern")),
        }
        self.depth -= 1;
        Ok(either(alternatives))
    }

    /// A repetition behind an item. Whether it is a lazy one changes no text that matches.
    fn repeated(&mut self, item: Node) -> Result<Node, PatternError> {
        let (least, most) = match self.peek() {
            Some('*') => (0, None),
            Some('+') => (1, None),
            Some('?') => (0, Some(1)),
            Some('{') => match self.counts()? {
                Some(counts) => counts,
                None => return Ok(item),
            },
            _ => return Ok(item),
        };
        self.next();
        let _ = self.takes("?");
        if self.peek().is_some_and(|c| "*+?".contains(c)) {
            return Err(PatternError::Invalid("a repetition of a repetition"));
        }
        Ok(repeat(item, least, most))
    }

    /// `{2}`, `{2,}`, `{2,5}`, read up to the closing brace; `None` for a brace that is a character.
    fn counts(&mut self) -> Result<Option<(u64, Option<u64>)>, PatternError> {
        let Some((inner, _)) = self.rest[1..].split_once('}') else { return Ok(None) };
        let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u64>().ok()).flatten();
        let counts = match inner.split_once(',') {
            None => number(inner).map(|n| (n, Some(n))),
            Some((least, "")) => number(least).map(|n| (n, None)),
            Some((least, most)) => number(least).zip(number(most)).map(|(a, b)| (a, Some(b))),
        };
        let Some((least, most)) = counts else { return Ok(None) };
        if most.is_some_and(|most| most < least) {
            return Err(PatternError::Invalid("a repetition whose counts are in the wrong order"));
        }
        if least.max(most.unwrap_or(0)) > MAX_TIMES {
            return Err(PatternError::Unsupported("a repetition of more than 2000"));
        }
        self.rest = &self.rest[1 + inner.len()..];
        Ok(Some((least, most)))
    }

    /// One character, a class of them, or `[...]`.
    fn set(&mut self) -> Result<Set, PatternError> {
        match self.next() {
            Some('.') => Ok(Set(LINE_ENDS.to_vec()).others()),
            Some('[') => self.class(),
            Some('\\') => self.escape(false),
            Some(c) => Ok(Set::one(c)),
            None => Err(PatternError::Invalid("an end where a character is expected")),
        }
    }

    fn class(&mut self) -> Result<Set, PatternError> {
        let negated = self.takes("^");
        let mut ranges = Vec::new();
        loop {
            let first = match self.next() {
                None => return Err(PatternError::Invalid("a [ without its ]")),
                Some(']') => break,
                Some('\\') => self.escape(true)?,
                Some(c) => Set::one(c),
            };
            let is_range = self.rest.starts_with('-') && !self.rest.starts_with("-]");
            let (Some(low), true) = (first.only(), is_range) else {
                ranges.extend(first.0);
                continue;
            };
            self.next();
            let last = match self.next() {
                None => return Err(PatternError::Invalid("a [ without its ]")),
                Some('\\') => self.escape(true)?,
                Some(c) => Set::one(c),
            };
            match last.only() {
                Some(high) if low <= high => ranges.push((low.into(), high.into())),
                Some(_) => return Err(PatternError::Invalid("a range whose ends are in the wrong order")),
                // A class behind a dash: the dash is a character.
                None => {
                    ranges.extend([(low.into(), low.into()), ('-'.into(), '-'.into())]);
                    ranges.extend(last.0);
                }
            }
        }
        let set = Set::of(ranges);
        let set = if negated { set.others() } else { set };
        if set.0.is_empty() { Err(PatternError::Unsupported("a set without characters")) } else { Ok(set) }
    }

    /// What follows a backslash.
    fn escape(&mut self, in_class: bool) -> Result<Set, PatternError> {
        let Some(c) = self.next() else { return Err(PatternError::Invalid("a \\ at the end")) };
        Ok(match c {
            'd' => Set(DIGITS.to_vec()),
            'D' => Set(DIGITS.to_vec()).others(),
            'w' => Set(WORD.to_vec()),
            'W' => Set(WORD.to_vec()).others(),
            's' => Set(SPACE.to_vec()),
            'S' => Set(SPACE.to_vec()).others(),
            't' => Set::one('\t'),
            'n' => Set::one('\n'),
            'r' => Set::one('\r'),
            'v' => Set::one('\u{b}'),
            'f' => Set::one('\u{c}'),
            'b' if in_class => Set::one('\u{8}'),
            'x' => self.hex(2)?,
            'u' => self.hex(4)?,
            c if c.is_ascii_alphanumeric() => {
                return Err(PatternError::Unsupported("an escape other than \\d \\w \\s \\t \\n \\r \\v \\f \\x \\u"));
            }
            c => Set::one(c),
        })
    }

    fn hex(&mut self, n: usize) -> Result<Set, PatternError> {
        let wrong = PatternError::Invalid("an escape without its hexadecimal digits");
        let digits = self.rest.get(..n).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit())).ok_or(wrong)?;
        let c = u32::from_str_radix(digits, 16).ok().and_then(char::from_u32);
        self.rest = &self.rest[n..];
        c.map(Set::one).ok_or(PatternError::Unsupported("a surrogate"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use regex::Regex;

    /// A rule's body as an expression of the crate `regex`, which has a reader of its own.
    fn oracle(body: &str) -> Regex {
        let mut out = String::from("^(?s:");
        let mut characters = body.chars().peekable();
        let (mut quoted, mut class) = (false, false);
        while let Some(c) = characters.next() {
            match c {
                '"' if !class => {
                    out.push_str(if quoted { ")" } else { "(?:" });
                    quoted = !quoted;
                }
                '[' if !quoted => {
                    class = true;
                    out.push('[');
                }
                ']' if class => {
                    class = false;
                    out.push(']');
                }
                '\\' => match characters.next().unwrap() {
                    n @ ('u' | 'U') => {
                        let n = if n == 'u' { 4 } else { 8 };
                        out.push_str(&format!("\\x{{{}}}", characters.by_ref().take(n).collect::<String>()));
                    }
                    'n' => out.push_str("\\n"),
                    c => out.push_str(&regex::escape(&c.to_string())),
                },
                ' ' if !quoted && !class => {}
                c if quoted => out.push_str(&regex::escape(&c.to_string())),
                c => out.push(c),
            }
        }
        Regex::new(&(out + ")$")).unwrap()
    }

    const TEXTS: [&str; 34] = [
        "",
        "a",
        "b",
        "ab",
        "aab",
        "abc",
        "xaby",
        "A1",
        "a-b",
        "2024-05-17",
        "2024-5-17",
        "+49 30 1234",
        "a.b",
        "a\"b",
        "\\",
        "\n",
        "é",
        "日本",
        "0",
        "007",
        "x",
        "xx",
        "xxx",
        "xxxx",
        "key_1",
        "[",
        "]",
        "{",
        "a{2}",
        "^",
        "$",
        "-",
        "550e8400-e29b-41d4-a716-446655440000",
        "#ffAA09",
    ];

    #[test]
    fn rules_hold_the_texts_that_match() {
        for pattern in [
            "^a+b?$",
            "a",
            "^a",
            "b$",
            "^(a|ab)(c|y)?$",
            "^\\d{4}-\\d{2}-\\d{2}$",
            "^\\d{4}-(?:0?[1-9]|1[0-2])-\\d\\d$",
            "^[A-Z]\\w*$|^key_\\d+$",
            "^x{2,3}$",
            "^x{2,}?$",
            "^[^a-z\\n]+$",
            "^.$",
            "^[\\s\\S]$",
            "^(?:[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[1-8][0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12})$",
            "^#(?<digits>[0-9A-Fa-f]{6})$",
            "^\\+?[\\d ]+$",
            "^a[\"\\-.]b$",
            "^[\\]\\[\\\\^$]$",
            "^\\u00e9|\\x78$",
            "^$",
            "",
            "^a\\{2\\}$",
            "^[\\w-]+$",
            "^(|a)b$",
        ] {
            let want = pattern.replace("\\u00e9", "\\x{e9}").replace("[\\w-]", "[0-9A-Za-z_-]");
            let want = Regex::new(&want.replace("\\w", "[0-9A-Za-z_]")).unwrap();
            let body = Pattern::found_in(pattern).unwrap();
            let answer = oracle(&body.rule(Within::Answer).unwrap());
            let json = oracle(&body.rule(Within::Json).unwrap());
            for text in TEXTS {
                assert_eq!(answer.is_match(text), want.is_match(text), "{pattern} on {text:?}: {answer}");
                let quoted = serde_json::Value::from(text).to_string();
                let inner = &quoted[1..quoted.len() - 1];
                assert_eq!(json.is_match(inner), want.is_match(text), "{pattern} on {quoted}: {json}");
            }
        }
        let whole = oracle(&Pattern::whole("a|b+").unwrap().rule(Within::Answer).unwrap());
        assert!(whole.is_match("bb") && whole.is_match("a") && !whole.is_match("ab"));
    }

    #[test]
    fn lengths_are_kept_where_they_can_be_written() {
        let rule = |pattern: &str, least, most| {
            Pattern::found_in(pattern).unwrap().of_length(least, most).map(|p| p.rule(Within::Json).unwrap())
        };
        assert_eq!(rule("^[a-z]*$", 2, Some(5)), Some("([a-z]){2,5}".into()));
        assert_eq!(rule("^[a-z]{3}$", 1, Some(5)), Some("([a-z]){3,3}".into()));
        assert_eq!(rule("^ab?$", 1, Some(2)), rule("^ab?$", 0, None));
        assert_eq!((rule("^ab*$", 1, Some(2)), rule("^[a-z]{3}$", 4, None)), (None, None));
    }

    #[test]
    fn other_expressions_are_refused() {
        use PatternError::{Invalid, Unsupported};
        for pattern in [
            "^(?!a)b$",
            "(?=a)",
            "(?<=a)b",
            "^(a)\\1$",
            "\\bword\\b",
            "^\\p{L}+$",
            "a^b",
            "(^a)",
            "x{5000}",
            "[^\\s\\S]",
        ] {
            assert!(matches!(Pattern::found_in(pattern), Err(Unsupported(_))), "{pattern}");
        }
        for pattern in ["(a", "a)", "[a", "*a", "a**", "[z-a]", "\\", "\\x1", "x{3,2}"] {
            assert!(matches!(Pattern::found_in(pattern), Err(Invalid(_))), "{pattern}");
        }
        assert!(Pattern::found_in(&"(".repeat(100_000)).is_err());
    }
}
