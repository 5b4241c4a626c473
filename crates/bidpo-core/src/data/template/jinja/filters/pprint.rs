//! The filter `pprint`: Python's `pprint.pformat` with its width of 80 characters.

use super::super::budget::{MAX_DEPTH, charge, too_deep};
use super::super::order::by_keys;
use super::super::python::{is_range, is_tuple, repr_of};
use super::super::strings::split_lines;
use super::is_python_space;
use minijinja::value::{Value, ValueKind};
use minijinja::{Error, State};

/// Columns of a line.
const WIDTH: i64 = 80;

/// `pprint`: a value on one line where it fits, else its items on lines of their own and long texts in pieces.
pub(super) fn pprint(state: &State<'_, '_>, value: &Value) -> Result<String, Error> {
    let mut printer = Printer { state, out: String::new() };
    printer.value(&by_keys(value, 0)?, Place { indent: 0, behind: 0, level: 0 })?;
    Ok(printer.out)
}

fn chars(text: &str) -> i64 {
    i64::try_from(text.chars().count()).unwrap_or(i64::MAX)
}

/// Where a value is written.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Columns before it.
    indent: i64,
    /// Columns of what is closed behind it.
    behind: i64,
    /// Values around it.
    level: usize,
}

struct Printer<'a, 'state, 'env> {
    state: &'a State<'state, 'env>,
    out: String,
}

/// CPython's `PrettyPrinter`, its `_format` and what that calls.
impl Printer<'_, '_, '_> {
    fn push(&mut self, text: &str) -> Result<(), Error> {
        charge(self.state, text.len())?;
        self.out.push_str(text);
        Ok(())
    }

    /// A line end, and the columns before the next line.
    fn next_line(&mut self, before: &str, indent: i64) -> Result<(), Error> {
        let n = usize::try_from(indent).unwrap_or(0);
        charge(self.state, n)?;
        let line = format!("{before}\n{}", " ".repeat(n));
        self.push(&line)
    }

    fn value(&mut self, value: &Value, at: Place) -> Result<(), Error> {
        if at.level > MAX_DEPTH {
            return Err(too_deep());
        }
        let line = repr_of(value)?;
        charge(self.state, line.len())?;
        if chars(&line) <= WIDTH - at.indent - at.behind {
            return self.push(&line);
        }
        let inside = Place { level: at.level + 1, ..at };
        match value.kind() {
            ValueKind::Map => self.map(value, inside),
            ValueKind::Seq if !is_range(value) => self.list(value, inside),
            ValueKind::String if !value.is_safe() => self.text(value.as_str().unwrap_or_default(), inside),
            ValueKind::Bytes => self.bytes(value.as_bytes().unwrap_or_default(), inside),
            _ => self.push(&line),
        }
    }

    fn map(&mut self, map: &Value, at: Place) -> Result<(), Error> {
        self.push("{")?;
        let indent = at.indent + 1;
        let keys: Vec<Value> = map.try_iter()?.collect();
        for (i, key) in keys.iter().enumerate() {
            let last = i + 1 == keys.len();
            let name = format!("{}: ", repr_of(key)?);
            self.push(&name)?;
            let behind = if last { at.behind + 1 } else { 1 };
            self.value(&map.get_item(key)?, Place { indent: indent + chars(&name), behind, level: at.level })?;
            if !last {
                self.next_line(",", indent)?;
            }
        }
        self.push("}")
    }

    fn list(&mut self, list: &Value, at: Place) -> Result<(), Error> {
        let items: Vec<Value> = list.try_iter()?.collect();
        let (open, close) = match (is_tuple(list), items.len()) {
            (true, 1) => ("(", ",)"),
            (true, _) => ("(", ")"),
            (false, _) => ("[", "]"),
        };
        self.push(open)?;
        let indent = at.indent + 1;
        for (i, item) in items.iter().enumerate() {
            let last = i + 1 == items.len();
            let behind = if last { at.behind + chars(close) } else { 1 };
            self.value(item, Place { indent, behind, level: at.level })?;
            if !last {
                self.next_line(",", indent)?;
            }
        }
        self.push(close)
    }

    /// A text in pieces: its lines, and of long lines as many words as fit.
    fn text(&mut self, text: &str, mut at: Place) -> Result<(), Error> {
        if text.is_empty() {
            return self.push("''");
        }
        let alone = at.level == 1;
        if alone {
            at.indent += 1;
            at.behind += 1;
        }
        let width = WIDTH - at.indent;
        let lines: Vec<Value> = split_lines(text, &[Value::from(true)])?.try_iter()?.collect();
        let mut pieces: Vec<String> = Vec::new();
        for (i, line) in lines.iter().enumerate() {
            let last_line = i + 1 == lines.len();
            let whole = repr_of(line)?;
            if chars(&whole) <= if last_line { width - at.behind } else { width } {
                pieces.push(whole);
                continue;
            }
            let words = words(line.as_str().unwrap_or_default());
            let mut current = String::new();
            for (j, word) in words.iter().enumerate() {
                let end = last_line && j + 1 == words.len();
                let longer = repr_of(&Value::from(format!("{current}{word}")))?;
                charge(self.state, longer.len())?;
                if chars(&longer) > if end { width - at.behind } else { width } {
                    if !current.is_empty() {
                        pieces.push(repr_of(&Value::from(current.as_str()))?);
                    }
                    current.clear();
                }
                current.push_str(word);
            }
            if !current.is_empty() {
                pieces.push(repr_of(&Value::from(current))?);
            }
        }
        self.pieces(&pieces, at, alone && pieces.len() > 1)
    }

    /// Bytes in pieces of fours.
    fn bytes(&mut self, bytes: &[u8], mut at: Place) -> Result<(), Error> {
        let text = |bytes: &[u8]| repr_of(&Value::from_bytes(bytes.to_vec()));
        if bytes.len() <= 4 {
            return self.push(&text(bytes)?);
        }
        let alone = at.level == 1;
        if alone {
            at.indent += 1;
            at.behind += 1;
        }
        let mut width = WIDTH - at.indent;
        let (mut pieces, mut start) = (Vec::new(), 0);
        for from in (0..bytes.len()).step_by(4) {
            let to = (from + 4).min(bytes.len());
            if from == bytes.len() / 4 * 4 {
                width -= at.behind;
            }
            charge(self.state, to - start)?;
            if chars(&text(&bytes[start..to])?) > width {
                if start < from {
                    pieces.push(text(&bytes[start..from])?);
                }
                start = from;
            }
        }
        pieces.push(text(&bytes[start..])?);
        self.pieces(&pieces, at, alone)
    }

    fn pieces(&mut self, pieces: &[String], at: Place, brackets: bool) -> Result<(), Error> {
        self.push(if brackets { "(" } else { "" })?;
        for (i, piece) in pieces.iter().enumerate() {
            if i > 0 {
                self.next_line("", at.indent)?;
            }
            self.push(piece)?;
        }
        self.push(if brackets { ")" } else { "" })
    }
}

/// Words, each with the white space behind it: `\S*\s*`.
fn words(line: &str) -> Vec<&str> {
    let (mut words, mut rest) = (Vec::new(), line);
    while !rest.is_empty() {
        let word = rest.find(is_python_space).unwrap_or(rest.len());
        let space = rest[word..].find(|c| !is_python_space(c)).unwrap_or(rest.len() - word);
        let (here, behind) = rest.split_at(word + space);
        words.push(here);
        rest = behind;
    }
    words
}
