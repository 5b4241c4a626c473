//! A grammar at some point of a text.

use super::read::{GrammarError, read};
use super::rules::Rules;
use super::stacks::{DONE, MAX_WAYS, StackId, Stacks, TooMany};
use crate::llama::model::Pieces;
use std::ops::Range;
use std::sync::Arc;

/// Characters that the look at a new grammar goes ahead.
const AHEAD: usize = 64;

/// First characters that are tried at each of them.
const TRIED: usize = 16;

/// Steps for all of that.
const AHEAD_WORK: usize = 2_000_000;

/// A character whose bytes have come in part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Partial {
    value: u32,
    /// Bytes to come; 0: none of a character has come.
    left: u8,
}

/// What a byte completes.
enum Byte {
    Char(u32),
    Part(Partial),
    Wrong,
}

impl Partial {
    fn push(self, byte: u8) -> Byte {
        let (value, left) = match (self.left, byte) {
            (0, 0x01..0x80) => return Byte::Char(byte.into()),
            (0, 0xC0..0xE0) => (u32::from(byte & 0x1F), 1),
            (0, 0xE0..0xF0) => (u32::from(byte & 0x0F), 2),
            (0, 0xF0..0xF8) => (u32::from(byte & 0x07), 3),
            (1, 0x80..0xC0) => return Byte::Char(self.value << 6 | u32::from(byte & 0x3F)),
            (2 | 3, 0x80..0xC0) => (self.value << 6 | u32::from(byte & 0x3F), self.left - 1),
            _ => return Byte::Wrong,
        };
        Byte::Part(Self { value, left })
    }

    /// First and last character that it may become; `None` where two bytes would spell a character of one.
    fn range(self) -> Option<(u32, u32)> {
        if self.left == 1 && self.value < 2 {
            return None;
        }
        let bits = u32::from(self.left) * 6;
        let low = self.value << bits;
        let least = match (low, self.left) {
            (0, 2) => 0x800,
            (0, 3) => 0x1_0000,
            _ => low,
        };
        Some((least, low | ((1 << bits) - 1)))
    }
}

/// Stacks after some bytes: a range of a list, and the character that is open.
#[derive(Debug, Clone)]
struct Point {
    set: Range<usize>,
    partial: Partial,
    /// What [`Stacks::next_chars`] tells of the set, once it was asked: most characters lead nowhere, and none of the stacks need
    /// be looked at for them.
    next: Option<(u128, bool)>,
}

/// A grammar at some point of a text.
#[derive(Debug, Clone)]
pub(super) struct Position {
    rules: Arc<Rules>,
    stacks: Stacks,
    set: Vec<StackId>,
    partial: Partial,
    /// The end of the text so far, for errors.
    text: String,
}

impl Position {
    /// The beginning of a grammar's texts.
    pub(super) fn new(gbnf: &str) -> Result<Self, GrammarError> {
        let rules = Arc::new(read(gbnf)?);
        let mut set = Vec::new();
        let stacks = Stacks::start(&rules, &mut set).map_err(|TooMany| too_ambiguous(""))?;
        if set.is_empty() {
            return Err(GrammarError::Nothing);
        }
        let position = Self { rules, stacks, set, partial: Partial::default(), text: String::new() };
        position.look_ahead()?;
        Ok(position)
    }

    /// Follows the text that leaves most ways open, so that most grammars that are too ambiguous are found before they are used.
    fn look_ahead(&self) -> Result<(), GrammarError> {
        let (mut stacks, mut set) = (self.stacks.clone(), self.set.clone());
        let mut text = String::new();
        stacks.new_token();
        for _ in 0..AHEAD {
            let mut best: Option<(Vec<StackId>, u32)> = None;
            let mut tried: Vec<u32> = Vec::new();
            for &id in &set {
                if tried.len() == TRIED || stacks.work() > AHEAD_WORK {
                    break;
                }
                let c = stacks.example(&self.rules, id).map_err(|TooMany| too_ambiguous(&text))?;
                let Some(c) = c.filter(|c| !tried.contains(c)) else { continue };
                tried.push(c);
                let mut next = set.clone();
                let range = 0..set.len();
                let told = || text.chars().chain(char::from_u32(c)).collect::<String>();
                stacks.step(&self.rules, &mut next, range, c).map_err(|TooMany| too_ambiguous(&told()))?;
                next.drain(..set.len());
                if best.as_ref().is_none_or(|(set, _)| set.len() < next.len()) {
                    best = Some((next, c));
                }
            }
            let Some((next, c)) = best.filter(|(next, _)| !next.is_empty()) else { break };
            set = next;
            text.extend(char::from_u32(c));
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.partial.left == 0 && self.set.contains(&DONE)
    }

    /// Goes on by one byte from a point of `list`, to which the new stacks are added. `None`: no text of the grammar goes on so.
    fn go(&mut self, list: &mut Vec<StackId>, from: &mut Point, byte: u8) -> Result<Option<Point>, GrammarError> {
        match from.partial.push(byte) {
            Byte::Wrong => Ok(None),
            Byte::Part(partial) => Ok(Some(Point { partial, ..from.clone() })),
            Byte::Char(c) => {
                let next = match from.next {
                    Some(next) => next,
                    None => {
                        let asked = self.stacks.next_chars(&self.rules, &list[from.set.clone()]);
                        *from.next.insert(asked.map_err(|TooMany| too_ambiguous(&self.text))?)
                    }
                };
                let leads_on = if c < 128 { next.0 >> c & 1 == 1 } else { next.1 };
                if !leads_on {
                    return Ok(None);
                }
                let start = list.len();
                self.stacks
                    .step(&self.rules, list, from.set.clone(), c)
                    .map_err(|TooMany| too_ambiguous(&self.text))?;
                let set = start..list.len();
                Ok((!set.is_empty()).then_some(Point { set, partial: Partial::default(), next: None }))
            }
        }
    }

    /// True if a text may stop at a point for now.
    fn may_stop(&mut self, list: &[StackId], at: &Point) -> Result<bool, GrammarError> {
        if at.partial.left == 0 {
            return Ok(true);
        }
        let Some((low, high)) = at.partial.range() else { return Ok(false) };
        for &id in &list[at.set.clone()] {
            let goes_on = self.stacks.goes_on_within(&self.rules, id, low, high);
            if goes_on.map_err(|TooMany| too_ambiguous(&self.text))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The stacks now, as a list with a point.
    fn here(&self) -> (Vec<StackId>, Point) {
        (self.set.clone(), Point { set: 0..self.set.len(), partial: self.partial, next: None })
    }

    /// The point behind some bytes.
    fn behind(&mut self, list: &mut Vec<StackId>, mut at: Point, bytes: &[u8]) -> Result<Option<Point>, GrammarError> {
        for &byte in bytes {
            let Some(next) = self.go(list, &mut at, byte)? else { return Ok(None) };
            at = next;
        }
        Ok(Some(at))
    }

    /// True if the text may go on with these bytes, the next token; for no bytes, if it may end.
    pub(super) fn allows(&mut self, bytes: &[u8]) -> Result<bool, GrammarError> {
        self.stacks.new_token();
        if bytes.is_empty() {
            return Ok(self.is_done());
        }
        let (mut list, at) = self.here();
        match self.behind(&mut list, at, bytes)? {
            Some(at) => self.may_stop(&list, &at),
            None => Ok(false),
        }
    }

    /// For each token of the vocabulary, whether the text may go on with it.
    pub(super) fn allowed(&mut self, pieces: &Pieces) -> Result<Vec<bool>, GrammarError> {
        self.stacks.new_token();
        let mut allowed = vec![false; pieces.n_tokens()];
        if self.is_done() {
            pieces.ends().iter().for_each(|&end| allowed[end] = true);
        }
        // The points behind each byte of the piece at hand; the first one is here. Pieces share what they begin with.
        let (mut list, here) = self.here();
        let mut path = vec![here];
        let mut dead = false;
        for piece in pieces.iter() {
            // No text goes on with the first `path.len()` bytes of the piece before.
            if dead && piece.shared >= path.len() {
                continue;
            }
            path.truncate(piece.shared + 1);
            dead = false;
            for &byte in &piece.bytes[path.len() - 1..] {
                let Some(last) = path.last_mut() else { break };
                list.truncate(last.set.end);
                match self.go(&mut list, last, byte)? {
                    Some(next) => path.push(next),
                    None => {
                        dead = true;
                        break;
                    }
                }
            }
            if let Some(last) = path.last().filter(|_| !dead).cloned() {
                allowed[piece.token] = self.may_stop(&list, &last)?;
            }
        }
        Ok(allowed)
    }

    /// Goes on by a token's bytes. False: no text of the grammar goes on so, and nothing changes.
    pub(super) fn accept(&mut self, bytes: &[u8]) -> Result<bool, GrammarError> {
        self.stacks.new_token();
        let (mut list, at) = self.here();
        let Some(at) = self.behind(&mut list, at, bytes)? else { return Ok(false) };
        self.text.push_str(&String::from_utf8_lossy(bytes));
        let told = self.text.chars().rev().take(40).collect::<Vec<_>>();
        self.text = told.into_iter().rev().collect();
        self.set = list[at.set].to_vec();
        self.partial = at.partial;
        self.stacks.tidy(&self.rules, &mut self.set).map_err(|TooMany| too_ambiguous(&self.text))?;
        Ok(true)
    }
}

fn too_ambiguous(after: &str) -> GrammarError {
    GrammarError::TooAmbiguous { after: after.to_owned(), limit: MAX_WAYS }
}
