//! An answer that comes in pieces, parted into text and calls.

use super::read::{Read, read_calls};
use super::{CalledFunction, Family, OPTIONAL, RECIPIENT, TEXT_RECIPIENT, WrittenCall};

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum AnswerPiece {
    /// Text.
    Text(String),
    /// A call, complete.
    Call(WrittenCall),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing went out.
    Start,
    /// In text.
    Text,
    /// Behind the mark that opens calls.
    Calls,
}

/// The place in the held text where calls begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// They do, from this byte on.
    At(usize),
    /// They may, from this byte on.
    Perhaps(usize),
    /// They do not.
    None,
}

/// Parts calls from the text of an answer that comes in pieces.
#[derive(Debug, Clone)]
pub struct CallSplitter {
    family: &'static Family,
    functions: Vec<CalledFunction>,
    held: String,
    /// Bytes at the beginning of the held text that the prompt wrote.
    n_given: usize,
    place: Place,
    n_told: usize,
}

impl CallSplitter {
    /// `opened`: the prompt ends with the mark that opens calls.
    pub(super) fn new(family: &'static Family, functions: Vec<CalledFunction>, opened: bool) -> Self {
        let held = if opened { family.open } else { "" };
        Self { family, functions, held: held.to_owned(), n_given: held.len(), place: Place::Start, n_told: 0 }
    }

    /// Adds text. Text that may be a call is held back; a call is told when it is complete.
    pub fn push(&mut self, text: &str) -> Vec<AnswerPiece> {
        self.held += text;
        let mut out = Vec::new();
        if self.place == Place::Start && self.family.open == RECIPIENT {
            if TEXT_RECIPIENT.starts_with(&self.held) && self.held != TEXT_RECIPIENT {
                return out;
            }
            if self.held.starts_with(TEXT_RECIPIENT) {
                self.held.drain(..TEXT_RECIPIENT.len());
                (self.n_given, self.place) = (0, Place::Text);
            }
        }
        if self.place != Place::Calls {
            match self.mark() {
                Mark::At(at) => {
                    let before = self.held[self.n_given.min(at)..at].trim_end().to_owned();
                    self.held.drain(..at);
                    self.n_given = self.n_given.saturating_sub(at);
                    self.place = Place::Calls;
                    out.extend((!before.is_empty()).then_some(AnswerPiece::Text(before)));
                }
                Mark::Perhaps(at) => self.let_go(at, &mut out),
                Mark::None => self.let_go(self.held.len(), &mut out),
            }
        }
        if self.place == Place::Calls && text.contains(['}', ']', '>']) {
            out.extend(self.calls().0);
        }
        out
    }

    /// Tells the first `n` bytes of the held text.
    fn let_go(&mut self, n: usize, out: &mut Vec<AnswerPiece>) {
        let rest = self.held.split_off(n);
        let mut safe = std::mem::replace(&mut self.held, rest);
        safe.drain(..self.n_given.min(n));
        self.n_given = self.n_given.saturating_sub(n);
        if !safe.is_empty() {
            self.place = Place::Text;
            out.push(AnswerPiece::Text(safe));
        }
    }

    /// The rest of the answer: text that did not become a call is text.
    pub fn finish(&mut self) -> Vec<AnswerPiece> {
        let (mut out, rest) = if self.place == Place::Calls { self.calls() } else { (Vec::new(), self.held.clone()) };
        let rest = if self.n_told > 0 { rest.trim().to_owned() } else { rest[self.n_given..].to_owned() };
        out.extend((!rest.is_empty()).then_some(AnswerPiece::Text(rest)));
        self.held.clear();
        out
    }

    /// Number of calls so far.
    pub fn n_calls(&self) -> usize {
        self.n_told
    }

    /// Calls that were not told, and the text behind all calls.
    fn calls(&mut self) -> (Vec<AnswerPiece>, String) {
        let is_tool = |name: &str| self.functions.iter().any(|f| f.name == name);
        // Bare JSON is a call only where it names a tool.
        let known = |r: &Read<'_>| !self.family.open.is_empty() || r.calls.iter().all(|c| is_tool(&c.name));
        let read = read_calls(&self.held, &self.family.readers(), &self.functions);
        let Some(read) = read.filter(known) else { return (Vec::new(), self.held.clone()) };
        let new: Vec<_> = read.calls.into_iter().skip(self.n_told).map(AnswerPiece::Call).collect();
        self.n_told += new.len();
        (new, read.rest.to_owned())
    }

    /// Where the calls begin. White space and headers before the mark belong to it.
    fn mark(&self) -> Mark {
        let open = self.family.open;
        if open.is_empty() {
            let begins = self.held.trim_start();
            let at = self.held.len() - begins.len();
            return match self.place {
                Place::Start if begins.starts_with(['{', '[']) || begins.starts_with(OPTIONAL) => Mark::At(at),
                Place::Start if OPTIONAL.starts_with(begins) => Mark::Perhaps(0),
                _ => Mark::None,
            };
        }
        let starts = self.held.char_indices().map(|(i, _)| i);
        let found = starts.map(|i| (i, self.leads_to_calls(&self.held[i..])));
        let mark = found.filter(|(_, leads)| *leads != Mark::None).map(|(i, leads)| match leads {
            Mark::At(_) => Mark::At(i),
            _ => Mark::Perhaps(i),
        });
        mark.into_iter().next().unwrap_or(Mark::None)
    }

    /// Whether a text is white space and headers, and the opening mark behind them, or may become that.
    fn leads_to_calls(&self, text: &str) -> Mark {
        let (open, headers) = (self.family.open, self.family.headers());
        let mut rest = text;
        loop {
            rest = rest.trim_start();
            if open == RECIPIENT && rest.starts_with(open) {
                return self.names_a_function(&rest[open.len()..]);
            }
            if rest.starts_with(open) {
                return Mark::At(0);
            }
            let longest = headers.iter().filter(|h| rest.starts_with(**h)).map(|h| h.len()).max();
            match longest {
                Some(n) => rest = &rest[n..],
                None => {
                    let partial =
                        rest.is_empty() || open.starts_with(rest) || headers.iter().any(|h| h.starts_with(rest));
                    return if partial { Mark::Perhaps(0) } else { Mark::None };
                }
            }
        }
    }
    /// Whether a text is the name of a function on a line, or may become that: `>>>` alone may stand in any text.
    fn names_a_function(&self, text: &str) -> Mark {
        let mut perhaps = false;
        for CalledFunction { name, .. } in &self.functions {
            if text.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('\n')) {
                return Mark::At(0);
            }
            perhaps |= name.starts_with(text) || text == name;
        }
        if perhaps { Mark::Perhaps(0) } else { Mark::None }
    }
}
