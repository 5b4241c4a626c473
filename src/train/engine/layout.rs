//! Where the tokens of some pairs lie in one batch.

use super::EngineError;
use crate::data::TokenizedPair;
use crate::graph::emit::Label;
use crate::graph::ir::Graph;
use crate::graph::lift::Entry;
use crate::llama::{Batch, Token};

/// Where the tokens of some pairs lie in one batch.
pub(super) struct Layout {
    pub batch: Batch,
    pub n_pairs: usize,
    /// Pair of each token.
    pub token_pair: Vec<usize>,
    /// Token of each row of logits.
    pub output_tokens: Vec<usize>,
    pub labels: Vec<Label>,
    /// For each label: its pair, and whether it belongs to the chosen response.
    pub owners: Vec<(usize, bool)>,
}

impl Layout {
    pub fn new(pairs: &[&TokenizedPair]) -> Result<Self, EngineError> {
        let mut out = Self {
            batch: Batch::new(),
            n_pairs: pairs.len(),
            token_pair: Vec::new(),
            output_tokens: Vec::new(),
            labels: Vec::new(),
            owners: Vec::new(),
        };
        for (p, pair) in pairs.iter().enumerate() {
            if pair.prompt.is_empty() || pair.chosen.is_empty() || pair.rejected.is_empty() {
                return Err(EngineError::Pair("a prompt or response without a single token".into()));
            }
            let seqs = [2 * p as i32, 2 * p as i32 + 1];
            let last = pair.prompt.len() - 1;
            for (i, &t) in pair.prompt.iter().enumerate() {
                out.push(p, t, i, &seqs, i == last);
            }
            // The prompt's last row predicts the first token of both responses.
            let shared_row = out.output_tokens.len() - 1;
            for (response, seq, chosen) in [(&pair.chosen, seqs[0], true), (&pair.rejected, seqs[1], false)] {
                let mut row = shared_row;
                for (i, &t) in response.iter().enumerate() {
                    let coef = if chosen { 1.0 } else { -1.0 };
                    out.labels.push(Label { row: row as u32, token: t as u32, coef });
                    out.owners.push((p, chosen));
                    let more = i + 1 < response.len();
                    out.push(p, t, pair.prompt.len() + i, &[seq], more);
                    row = out.output_tokens.len() - 1;
                }
            }
        }
        let mut order: Vec<usize> = (0..out.labels.len()).collect();
        order.sort_by_key(|&i| out.labels[i].row); // stable: the head kernel wants labels by row
        out.labels = order.iter().map(|&i| out.labels[i]).collect();
        out.owners = order.iter().map(|&i| out.owners[i]).collect();
        Ok(out)
    }

    /// The pair of each row of the residual stream at an entry.
    pub fn row_pair(&self, graph: &Graph, entry: &Entry) -> Result<Vec<usize>, EngineError> {
        let n_rows = graph.ne(entry.at)[1..].iter().product::<usize>();
        let n_tokens = self.token_pair.len();
        if n_rows > 0 && n_rows.is_multiple_of(n_tokens) {
            // One stream, or several, one after the other (gemma 3n).
            Ok(self.token_pair.iter().copied().cycle().take(n_rows).collect())
        } else if n_rows == self.output_tokens.len() {
            // At the last layer llama.cpp keeps only the rows whose logits were asked for.
            Ok(self.output_tokens.iter().map(|&t| self.token_pair[t]).collect())
        } else {
            Err(EngineError::Model(format!(
                "the residual stream at layer {} has {n_rows} rows for {} tokens",
                entry.layer,
                self.token_pair.len()
            )))
        }
    }

    fn push(&mut self, pair: usize, token: Token, pos: usize, seqs: &[i32], logits: bool) {
        let i = self.batch.add(token, pos, seqs, logits);
        self.token_pair.push(pair);
        if logits {
            self.output_tokens.push(i);
        }
    }
}
