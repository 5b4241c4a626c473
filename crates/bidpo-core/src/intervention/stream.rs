//! The residual stream with what is known of each row.

/// Place of a row in the sequence that it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The sequence; for a row that several share, one of them.
    pub sequence: usize,
    /// Position in the sequence, from 0.
    pub at: usize,
    /// Tokens of the sequence's prompt.
    pub n_prompt: usize,
    /// The tokens up to this one end in a thought; false where no scope asks for thoughts.
    pub in_thought: bool,
}

impl Place {
    /// An answer token is predicted from the row: it is the last one of the prompt, or one of the answer.
    pub fn is_answer(self) -> bool {
        self.at + 1 >= self.n_prompt
    }
}

/// Places of the rows of some sequences.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sequences {
    /// For each row.
    pub places: Vec<Place>,
    /// For each sequence, the rows of its prompt in order. Sequences may share rows.
    pub prompts: Vec<Vec<usize>>,
}

/// The residual stream at a hook point.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stream<'a> {
    /// `[n_rows, n_embd]`
    pub rows: &'a [f32],
    /// Place of each row.
    pub places: &'a [Place],
    /// For each sequence, the rows of its prompt in order.
    pub prompts: &'a [Vec<usize>],
}

impl<'a> Stream<'a> {
    /// Rows with their places.
    pub fn new(rows: &'a [f32], sequences: &'a Sequences) -> Self {
        Self { rows, places: &sequences.places, prompts: &sequences.prompts }
    }
}
