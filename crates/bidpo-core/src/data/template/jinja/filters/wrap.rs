//! The filter `wordwrap`: Python's `textwrap.wrap` of each line, without tabs expanded or white space replaced.

use super::super::budget::charge;
use super::super::collections::failed;
use super::super::python::str_of;
use super::super::strings::split_lines;
use minijinja::value::{Kwargs, Rest, Value, from_args};
use minijinja::{Error, State};

/// `wordwrap(width=79, break_long_words=True, wrapstring=None, break_on_hyphens=True)`.
pub(super) fn wordwrap(state: &State<'_, '_>, text: Value, args: Rest<Value>) -> Result<String, Error> {
    type Given = (Option<i64>, Option<bool>, Option<String>, Option<bool>, Kwargs);
    let (width, long, between, hyphens, options): Given = from_args(&args)?;
    let width = width.or(options.get("width")?).unwrap_or(79);
    let how = Wrapping {
        width: usize::try_from(width)
            .ok()
            .filter(|&w| w > 0)
            .ok_or_else(|| failed("wordwrap: the width must be > 0"))?,
        long_words: long.or(options.get("break_long_words")?).unwrap_or(true),
        hyphens: hyphens.or(options.get("break_on_hyphens")?).unwrap_or(true),
    };
    let between = between.or(options.get("wrapstring")?).unwrap_or_else(|| "\n".into());
    options.assert_all_used()?;
    let text = str_of(&text)?;
    // Each character may become a line.
    charge(state, text.len().saturating_mul(2 + between.len()))?;
    let mut lines: Vec<String> = Vec::new();
    for line in split_lines(&text, &[])?.try_iter()? {
        let chars: Vec<char> = line.as_str().unwrap_or_default().chars().collect();
        lines.push(how.lines(&chars).join(&between));
    }
    Ok(lines.join(&between))
}

struct Wrapping {
    width: usize,
    long_words: bool,
    hyphens: bool,
}

/// White space between words.
fn is_space(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\u{b}' | '\u{c}' | '\r' | ' ')
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn is_letter(c: char) -> bool {
    is_word(c) && !c.is_numeric()
}

/// What may stand before a dash or between two hyphens.
fn is_word_or_mark(c: char) -> bool {
    is_word(c) || "!\"'&.,?".contains(c)
}

impl Wrapping {
    /// CPython's `TextWrapper._wrap_chunks`.
    fn lines(&self, text: &[char]) -> Vec<String> {
        let mut chunks = self.chunks(text);
        chunks.reverse();
        let blank = |chunk: &[char]| chunk.iter().all(|c| c.is_whitespace());
        let mut lines: Vec<String> = Vec::new();
        while let Some(first) = chunks.last() {
            if blank(first) && !lines.is_empty() {
                chunks.pop();
            }
            let (mut line, mut n): (Vec<&[char]>, usize) = (Vec::new(), 0);
            while let Some(chunk) = chunks.pop_if(|chunk| n + chunk.len() <= self.width) {
                n += chunk.len();
                line.push(chunk);
            }
            if let Some(chunk) = chunks.pop_if(|chunk| chunk.len() > self.width) {
                if self.long_words {
                    let (here, rest) = chunk.split_at(self.cut(chunk, self.width - n));
                    line.push(here);
                    chunks.push(rest);
                } else if line.is_empty() {
                    line.push(chunk);
                } else {
                    chunks.push(chunk);
                }
            }
            if line.last().is_some_and(|last| blank(last)) {
                line.pop();
            }
            if !line.is_empty() {
                lines.push(line.concat().into_iter().collect());
            }
        }
        lines
    }

    /// Where a word that is longer than a line is cut: behind a hyphen that still fits, or at the end of the line.
    fn cut(&self, chunk: &[char], left: usize) -> usize {
        let hyphen = chunk[..left].iter().rposition(|&c| c == '-').filter(|_| self.hyphens);
        match hyphen {
            Some(at) if chunk[..at].iter().any(|&c| c != '-') => at + 1,
            _ => left,
        }
    }

    /// Words, parts of hyphenated words, dashes and white space: `TextWrapper.wordsep_re`, or `wordsep_simple_re`.
    fn chunks<'t>(&self, text: &'t [char]) -> Vec<&'t [char]> {
        let mut out = Vec::new();
        let mut at = 0;
        while at < text.len() {
            let end = self.end_of_chunk(text, at);
            out.push(&text[at..end]);
            at = end;
        }
        out
    }

    fn end_of_chunk(&self, text: &[char], at: usize) -> usize {
        let run = |of: &dyn Fn(char) -> bool, from: usize| text[from..].iter().take_while(|&&c| of(c)).count();
        if is_space(text[at]) {
            return at + run(&is_space, at);
        }
        if !self.hyphens {
            return at + run(&|c| !is_space(c), at);
        }
        let has = |i: Option<usize>, of: fn(char) -> bool| i.and_then(|i| text.get(i)).is_some_and(|&c| of(c));
        let dash = |c: char| c == '-';
        // Two or more dashes between words.
        let dashes = |i: usize| {
            let n = run(&dash, i);
            (n >= 2 && has(i.checked_sub(1), is_word_or_mark) && has(Some(i + n), is_word)).then_some(i + n)
        };
        if let Some(end) = dashes(at) {
            return end;
        }
        for end in at + 1..=text.len() {
            let Some(&next) = text.get(end) else { return end };
            if next == '-' {
                let behind = end + 1;
                let before = |back: usize| behind.checked_sub(back);
                let two_letters = has(before(3), is_letter) && has(before(2), is_letter);
                let one_between = has(before(4), is_letter) && has(before(3), dash) && has(before(2), is_word_or_mark);
                let goes_on = has(Some(behind), is_letter)
                    && (has(Some(behind + 1), is_letter)
                        || has(Some(behind + 1), dash) && has(Some(behind + 2), is_letter));
                if (two_letters || one_between) && goes_on {
                    return behind;
                }
            }
            if is_space(next) || dashes(end).is_some() {
                return end;
            }
        }
        text.len()
    }
}
