//! Text files read line by line: UTF-8, and errors that name the line.

use std::path::{Path, PathBuf};

/// An invalid line of a text file.
#[derive(Debug, thiserror::Error)]
#[error("{path}:{line}: {reason}")]
pub struct LineError {
    /// The file.
    pub path: PathBuf,
    /// Its line, from 1.
    pub line: usize,
    /// The reason.
    pub reason: String,
}

impl LineError {
    /// Makes the errors of one file: `(line, reason)`.
    pub(crate) fn of(path: &Path) -> impl Fn(usize, String) -> Self + Copy {
        move |line, reason| Self { path: path.to_owned(), line, reason }
    }
}

/// Bytes that are not UTF-8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotUtf8 {
    /// Line of the first invalid byte, from 1.
    pub(crate) line: usize,
    /// Place of the first invalid byte, from 0.
    pub(crate) byte: usize,
}

/// The text without a byte order mark.
pub(crate) fn decode(bytes: &[u8]) -> Result<&str, NotUtf8> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.strip_prefix('\u{feff}').unwrap_or(text)),
        Err(e) => Err(NotUtf8 { line: line_at(bytes, e.valid_up_to()), byte: e.valid_up_to() }),
    }
}

/// Lines of the records of a CSV text, counted once from its start to its end.
pub(crate) struct LineCounter<'a> {
    text: &'a [u8],
    byte: usize,
    line: usize,
}

impl<'a> LineCounter<'a> {
    pub(crate) fn new(text: &'a [u8]) -> Self {
        Self { text, byte: 0, line: 1 }
    }

    /// The line on which a record begins, from 1. (The csv crate's own count lags by one after a CR LF.) Earlier records are
    /// asked for before later ones.
    pub(crate) fn line_of_record(&mut self, position: Option<&csv::Position>) -> usize {
        let at = position.map_or(0, |p| p.byte() as usize).clamp(self.byte, self.text.len());
        let blank = self.text[at..].iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
        self.line += self.text[self.byte..at + blank].iter().filter(|&&b| b == b'\n').count();
        self.byte = at + blank;
        self.line
    }
}

/// The line of a byte, from 1.
fn line_at(text: &[u8], byte: usize) -> usize {
    1 + text[..byte].iter().filter(|&&b| b == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_its_first_invalid_byte() {
        assert_eq!(decode("\u{feff}a\n".as_bytes()), Ok("a\n"));
        assert_eq!(decode(b"a\nb\xff"), Err(NotUtf8 { line: 2, byte: 3 }));
        let error = LineError::of(Path::new("f.csv"))(2, "no answer".into());
        assert_eq!(error.to_string(), "f.csv:2: no answer");
    }
}
