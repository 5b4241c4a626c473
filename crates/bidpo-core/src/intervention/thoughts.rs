//! Thoughts in a sequence of tokens: which rows lie in one.
//!
//! A row lies in a thought if the tokens up to its own end in one: an opening mark without its closing mark behind it. So the row
//! of the opening mark predicts the thought's first token and lies in it, and that of the closing mark does not. This
//! depends on earlier tokens alone, and is the same in training and while an answer is being written.

use ggml_grad::llama::{LlamaError, Model, Token};
use std::collections::HashSet;

/// What a mark is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Symbol {
    /// A token that is no text: control tokens and user-defined ones. The same characters written as text are another thing.
    Token(Token),
    /// A byte of text.
    Byte(u8),
}

/// A mark, searched for symbol by symbol (Knuth, Morris & Pratt 1977).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mark {
    symbols: Vec<Symbol>,
    /// For each number of matched symbols: the longest shorter number that still matches.
    fallback: Vec<usize>,
}

impl Mark {
    fn new(symbols: Vec<Symbol>) -> Self {
        let longest = |n: usize| (0..n).rev().find(|&k| symbols[..k] == symbols[n - k..n]).unwrap_or(0);
        let fallback = (0..=symbols.len()).map(longest).collect();
        Self { symbols, fallback }
    }

    /// Symbols matched behind `next`, where `matched` were before it.
    fn step(&self, mut matched: usize, next: Symbol) -> usize {
        loop {
            match self.symbols.get(matched) {
                Some(&symbol) if symbol == next => return matched + 1,
                _ if matched == 0 => return 0,
                _ => matched = self.fallback[matched],
            }
        }
    }
}

/// Where a sequence is after some tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ThoughtState {
    inside: bool,
    /// Symbols of the mark that is looked for.
    matched: usize,
}

impl ThoughtState {
    /// The tokens so far end in a thought.
    pub fn is_inside(self) -> bool {
        self.inside
    }
}

/// The marks of thoughts in the tokens of one model.
#[derive(Debug, Clone)]
pub struct ThoughtTokens {
    open: Mark,
    close: Mark,
    /// Tokens of which marks are made.
    own: Vec<Token>,
    controls: HashSet<Token>,
    /// The text of all tokens, and for each its end there.
    text: Vec<u8>,
    ends: Vec<usize>,
}

impl PartialEq for ThoughtTokens {
    /// Those of one model are told apart by their marks.
    fn eq(&self, other: &Self) -> bool {
        (&self.open, &self.close) == (&other.open, &other.close)
    }
}

impl Eq for ThoughtTokens {}

impl ThoughtTokens {
    /// The marks `open` and `close` in the vocabulary of `model`. Where a mark is, or holds, a control token or a user-defined
    /// one, that token counts and its characters do not: a user may write them.
    ///
    /// # Errors
    /// The tokenizer's.
    pub fn new(open: &str, close: &str, model: &Model) -> Result<Self, LlamaError> {
        let special = |mark: &str| -> Result<Vec<(Token, Vec<u8>)>, LlamaError> {
            let tokens = model.tokenize(mark, false, true)?.into_iter();
            let special = tokens.filter(|&t| model.is_control(t) || model.is_user_defined(t));
            Ok(special.map(|t| (t, model.token_bytes(t, true))).collect())
        };
        let (opening, closing) = (special(open)?, special(close)?);
        let tokens = 0..model.n_vocab() as Token;
        let controls = tokens.clone().filter(|&t| model.is_control(t)).collect();
        let pieces = tokens.map(|t| model.token_bytes(t, false));
        Ok(Self::of(symbols(open, &opening), symbols(close, &closing), controls, pieces))
    }

    fn of(
        open: Vec<Symbol>,
        close: Vec<Symbol>,
        controls: HashSet<Token>,
        pieces: impl Iterator<Item = Vec<u8>>,
    ) -> Self {
        let own = open.iter().chain(&close).filter_map(|s| match s {
            Symbol::Token(t) => Some(*t),
            Symbol::Byte(_) => None,
        });
        let own = own.collect();
        let (mut text, mut ends) = (Vec::new(), Vec::new());
        for piece in pieces {
            text.extend(piece);
            ends.push(text.len());
        }
        Self { open: Mark::new(open), close: Mark::new(close), own, controls, text, ends }
    }

    /// The state behind one more token. A control token that belongs to no mark ends a thought: another turn begins.
    pub fn step(&self, state: ThoughtState, token: Token) -> ThoughtState {
        if self.own.contains(&token) {
            return self.feed(state, Symbol::Token(token));
        }
        if self.controls.contains(&token) {
            return ThoughtState::default();
        }
        self.piece(token).iter().fold(state, |state, &byte| self.feed(state, Symbol::Byte(byte)))
    }

    /// For each token of a sequence that goes on from `state` whether its row lies in a thought, and the state behind the last one.
    pub fn follow(&self, mut state: ThoughtState, tokens: &[Token]) -> (Vec<bool>, ThoughtState) {
        let one = |&token: &Token| {
            state = self.step(state, token);
            state.is_inside()
        };
        (tokens.iter().map(one).collect(), state)
    }

    fn piece(&self, token: Token) -> &[u8] {
        let Ok(i) = usize::try_from(token) else { return &[] };
        let Some(&end) = self.ends.get(i) else { return &[] };
        let start = i.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.text[start..end]
    }

    fn feed(&self, state: ThoughtState, symbol: Symbol) -> ThoughtState {
        let mark = if state.inside { &self.close } else { &self.open };
        match mark.step(state.matched, symbol) {
            n if n == mark.symbols.len() => ThoughtState { inside: !state.inside, matched: 0 },
            matched => ThoughtState { matched, ..state },
        }
    }
}

/// A mark as symbols: `special` are the tokens in it that are no text, in order, with their characters.
fn symbols(mark: &str, special: &[(Token, Vec<u8>)]) -> Vec<Symbol> {
    let mut rest = mark.as_bytes();
    let mut out = Vec::new();
    for (token, written) in special.iter().filter(|(_, written)| !written.is_empty()) {
        let Some(at) = rest.windows(written.len()).position(|w| w == written) else { continue };
        out.extend(rest[..at].iter().map(|&b| Symbol::Byte(b)));
        out.push(Symbol::Token(*token));
        rest = &rest[at + written.len()..];
    }
    out.extend(rest.iter().map(|&b| Symbol::Byte(b)));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: [&str; 12] = ["<s>", "<think>", "</think>", "<", "think", ">", "</", "a ", "\n", "<<", "<c>", ">\n"];

    fn tokens(text: &str) -> Vec<Token> {
        text.split(' ').map(|i| i.parse().unwrap()).collect()
    }

    /// Marks made of text alone, or of tokens 1 and 2.
    fn think(special: bool) -> ThoughtTokens {
        let of = |i: usize| if special { vec![(i as Token, WORDS[i].as_bytes().to_vec())] } else { vec![] };
        let pieces =
            WORDS.iter().enumerate().map(|(i, w)| if special && i < 3 { vec![] } else { w.as_bytes().to_vec() });
        ThoughtTokens::of(symbols("<think>", &of(1)), symbols("</think>", &of(2)), [0, 10].into(), pieces)
    }

    fn rows(special: bool, text: &str) -> String {
        let (rows, _) = think(special).follow(ThoughtState::default(), &tokens(text));
        rows.into_iter().map(|inside| if inside { '1' } else { '0' }).collect()
    }

    #[test]
    fn the_row_of_the_opening_mark_lies_in_the_thought() {
        assert_eq!(rows(true, "7 1 8 7 2 8 7"), "0111000");
        // In pieces: "<" "think" ">" ... "</" "think" ">\n".
        assert_eq!(rows(false, "3 4 5 7 6 4 11 7"), "00111100");
        // "<<think>": the first "<" is none of the mark's. "<think" and "a" are no mark.
        assert_eq!(rows(false, "9 4 5 7"), "0011");
        assert_eq!(rows(false, "3 4 7 5"), "0000");
    }

    #[test]
    fn written_characters_are_no_special_token() {
        assert_eq!(rows(true, "3 4 5 7"), "0000");
        assert_eq!(rows(true, "1 7 6 4 5 7 2"), "1111110");
    }

    #[test]
    fn another_turn_ends_a_thought() {
        assert_eq!(rows(true, "1 7 10 7 1 7 0"), "1100110");
        assert_eq!(rows(false, "3 4 10 5 7"), "00000");
    }

    #[test]
    fn a_mark_of_tokens_and_text() {
        // As <|channel|>analysis<|message|>: a token, text, a token.
        let special = [(1, b"<|c|>".to_vec()), (2, b"<|m|>".to_vec())];
        let open = symbols("<|c|>think<|m|>", &special);
        assert_eq!(open.len(), 7);
        let marks = ThoughtTokens::of(
            open,
            symbols("<c>", &[(10, b"<c>".to_vec())]),
            [0, 1, 2, 10].into(),
            WORDS.iter().map(|w| w.as_bytes().to_vec()),
        );
        let (rows, end) = marks.follow(ThoughtState::default(), &tokens("1 4 2 7 10 7 1 7 2 7"));
        assert_eq!(rows, [false, false, true, true, false, false, false, false, false, false]);
        assert!(!end.is_inside());
        assert_eq!(marks.step(ThoughtState::default(), -1), ThoughtState::default());
        assert_eq!(marks.step(ThoughtState::default(), 1 << 20), ThoughtState::default());
    }
}
