//! A batch of tokens for `llama_decode`.

use crate::llama::Token;
use std::collections::BTreeMap;

/// Place of a row of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchRow {
    /// The token.
    pub token: Token,
    /// The sequences that it belongs to.
    pub sequences: Vec<i32>,
    /// Its position in them.
    pub at: usize,
    /// Tokens of the prompt, where the caller said so.
    pub n_prompt: Option<usize>,
    /// Its logits were asked for.
    pub wants_logits: bool,
}

/// Tokens with their positions, the sequences they belong to, and whether logits are wanted.
///
/// A token may belong to several sequences: that is how a prompt is shared between the answers that follow it.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    pub(in crate::llama) tokens: Vec<Token>,
    pub(in crate::llama) pos: Vec<i32>,
    pub(in crate::llama) seqs: Vec<Vec<i32>>,
    pub(in crate::llama) logits: Vec<i8>,
    pub(in crate::llama) prompts: Vec<Option<usize>>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one token at position `pos` of the sequences `seqs`. Returns its row in the batch.
    pub fn add(&mut self, token: Token, pos: usize, seqs: &[i32], logits: bool) -> usize {
        self.tokens.push(token);
        self.pos.push(pos as i32);
        self.seqs.push(seqs.to_vec());
        self.logits.push(i8::from(logits));
        self.prompts.push(None);
        self.tokens.len() - 1
    }

    /// Says how many tokens the prompt of this row's sequence has: for changes that treat prompt and answer differently
    /// ([`RowChange`](crate::llama::RowChange)).
    pub fn set_prompt(&mut self, row: usize, n_prompt: usize) {
        if let Some(prompt) = self.prompts.get_mut(row) {
            *prompt = Some(n_prompt);
        }
    }

    /// The rows with their places.
    pub fn rows(&self) -> Vec<BatchRow> {
        let row = |i: usize| BatchRow {
            token: self.tokens[i],
            sequences: self.seqs[i].clone(),
            at: self.pos[i] as usize,
            n_prompt: self.prompts[i],
            wants_logits: self.logits[i] != 0,
        };
        (0..self.len()).map(row).collect()
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// True if no token was added.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// True if the logits of this row were asked for.
    pub fn wants_logits(&self, row: usize) -> bool {
        self.logits.get(row).is_some_and(|&l| l != 0)
    }

    /// Number of rows whose logits were asked for.
    pub fn n_outputs(&self) -> usize {
        self.logits.iter().filter(|&&l| l != 0).count()
    }

    /// Highest sequence id used, plus one.
    pub fn n_seqs(&self) -> usize {
        self.seqs.iter().flatten().map(|&s| s as usize + 1).max().unwrap_or(0)
    }

    /// The sequences used, each with the first position that the batch has of it.
    pub fn first_positions(&self) -> BTreeMap<i32, usize> {
        let mut first: BTreeMap<i32, usize> = BTreeMap::new();
        for (seqs, &pos) in self.seqs.iter().zip(&self.pos) {
            for &seq in seqs {
                let least = first.entry(seq).or_insert(pos as usize);
                *least = (pos as usize).min(*least);
            }
        }
        first
    }

    /// Empties the batch.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}
