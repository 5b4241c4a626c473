//! The texts of a vocabulary's tokens, in an order in which those that begin alike stand together.

/// A token's text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece<'a> {
    /// The number of the token.
    pub token: usize,
    /// Its text, not always whole characters.
    pub bytes: &'a [u8],
    /// How many of its first bytes are those of the piece before.
    pub shared: usize,
}

/// Texts of all tokens.
#[derive(Debug)]
pub(crate) struct Pieces {
    /// Text by text, in order.
    bytes: Vec<u8>,
    /// Token, where its text ends, and what it shares with the one before.
    entries: Vec<(u32, u32, u32)>,
    /// Tokens that end a turn.
    ends: Vec<usize>,
    /// Where each token's text is, empty for those that end a turn; `None` for those without.
    places: Vec<Option<(u32, u32)>>,
}

impl Pieces {
    /// Of the text of each token, and whether it ends a turn.
    pub(crate) fn new(tokens: impl Iterator<Item = (Vec<u8>, bool)>) -> Self {
        let mut all = Vec::new();
        let mut ends = Vec::new();
        let mut places = Vec::new();
        for (token, (text, is_end)) in tokens.enumerate() {
            places.push(is_end.then_some((0, 0)));
            match is_end {
                true => ends.push(token),
                false if text.is_empty() || text.contains(&0) => {}
                false => all.push((text, token as u32)),
            }
        }
        all.sort_unstable();
        let (mut bytes, mut entries) = (Vec::new(), Vec::with_capacity(all.len()));
        let mut before: &[u8] = &[];
        for (text, token) in &all {
            let shared = before.iter().zip(text).take_while(|(a, b)| a == b).count();
            let from = bytes.len() as u32;
            bytes.extend_from_slice(text);
            places[*token as usize] = Some((from, bytes.len() as u32));
            entries.push((*token, bytes.len() as u32, shared as u32));
            before = text;
        }
        Self { bytes, entries, ends, places }
    }

    /// Number of tokens.
    pub(crate) fn n_tokens(&self) -> usize {
        self.places.len()
    }

    /// A token's text: empty for one that ends a turn, `None` for one that has none or whose text holds a NUL character.
    pub(crate) fn text(&self, token: usize) -> Option<&[u8]> {
        let (from, to) = (*self.places.get(token)?)?;
        self.bytes.get(from as usize..to as usize)
    }

    /// Tokens that end a turn.
    pub(crate) fn ends(&self) -> &[usize] {
        &self.ends
    }

    /// All texts in order. Tokens without a text, with a NUL character, and those that end a turn have none.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Piece<'_>> {
        let mut from = 0;
        self.entries.iter().map(move |&(token, to, shared)| {
            let bytes = &self.bytes[from..to as usize];
            from = to as usize;
            Piece { token: token as usize, bytes, shared: shared as usize }
        })
    }
}
