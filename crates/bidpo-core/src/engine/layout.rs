//! Where the tokens of some pairs lie in one batch.

use super::EngineError;
use crate::data::TokenizedPair;
use ggml_grad::graph::emit::Label;
use ggml_grad::graph::ir::Graph;
use ggml_grad::graph::lift::HookPoint;
use ggml_grad::llama::{Batch, Token};
use std::collections::HashMap;

/// Where the tokens of some pairs lie in one batch.
pub(super) struct Layout {
    pub batch: Batch,
    pub n_pairs: usize,
    pub pairs: Vec<TokenizedPair>,
    /// Pair of each token.
    pub token_pair: Vec<usize>,
    /// Token of each row of logits.
    pub output_tokens: Vec<usize>,
    pub labels: Vec<Label>,
    /// For each label: its pair, and whether it belongs to the chosen response.
    pub owners: Vec<(usize, bool)>,
}

impl Layout {
    pub(super) fn new(pairs: &[&TokenizedPair]) -> Result<Self, EngineError> {
        let mut out = Self {
            batch: Batch::new(),
            n_pairs: pairs.len(),
            pairs: pairs.iter().map(|&p| p.clone()).collect(),
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
        by_row(&mut out.labels, &mut out.owners);
        Ok(out)
    }

    /// The pair of each row of the residual stream at an entry.
    pub(super) fn row_pair(&self, graph: &Graph, entry: &HookPoint) -> Result<Vec<usize>, EngineError> {
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

/// Sorts labels as the head kernel wants them, and their owners with them.
fn by_row(labels: &mut Vec<Label>, owners: &mut Vec<(usize, bool)>) {
    let mut order: Vec<usize> = (0..labels.len()).collect();
    order.sort_by_key(|&i| labels[i].row); // stable
    *labels = order.iter().map(|&i| labels[i]).collect();
    *owners = order.iter().map(|&i| owners[i]).collect();
}

/// Where the rows of several captured pairs lie in one graph.
///
/// Rows of prompts that begin alike are there once. Those that predict a response's token are not shared between pairs, nor
/// is a response; the last token of a response predicts nothing and is left out.
pub(super) struct Joint {
    /// For each row: which pair it is taken from, and which of that pair's rows it is.
    pub rows: Vec<(usize, usize)>,
    /// For each pair and each of its rows: where it is here.
    pub columns: Vec<Vec<Option<usize>>>,
    /// Rows that predict a token of a response.
    pub outputs: Vec<usize>,
    /// Labels, by row of the logits, with coefficients +1 (chosen) and -1.
    pub labels: Vec<Label>,
    /// For each label: its pair, and whether it belongs to the chosen response.
    pub owners: Vec<(usize, bool)>,
}

impl Joint {
    /// Of pairs with their residual streams, `[n_tokens, n_embd]`, in the order of [`Layout`].
    pub(super) fn new(pairs: &[(&TokenizedPair, &[f32])], n_embd: usize) -> Self {
        let mut out = Self {
            rows: Vec::new(),
            columns: pairs.iter().map(|(pair, _)| vec![None; pair.n_tokens()]).collect(),
            outputs: Vec::new(),
            labels: Vec::new(),
            owners: Vec::new(),
        };
        // Rows of prompts that may be shared, by the row before and the token.
        let mut known: HashMap<(Option<usize>, Token), usize> = HashMap::new();
        for (p, &(pair, residual)) in pairs.iter().enumerate() {
            let stream = |row: usize| &residual[row * n_embd..(row + 1) * n_embd];
            let last = pair.prompt.len() - 1;
            let mut before = None;
            for (i, &token) in pair.prompt[..last].iter().enumerate() {
                let same = known.get(&(before, token)).copied().filter(|&row| {
                    let (of, at) = out.rows[row];
                    // Equal numbers, not only equal tokens: what is shared must be what each pair was captured with.
                    let there = &pairs[of].1[at * n_embd..(at + 1) * n_embd];
                    there.iter().zip(stream(i)).all(|(a, b)| a.to_bits() == b.to_bits())
                });
                let row = match same {
                    Some(row) => {
                        out.columns[p][i] = Some(row);
                        row
                    }
                    None => {
                        let row = out.add(p, i);
                        known.insert((before, token), row);
                        row
                    }
                };
                before = Some(row);
            }
            let shared = out.predict(p, last);
            let mut at = pair.prompt.len();
            for (response, chosen) in [(&pair.chosen, true), (&pair.rejected, false)] {
                let mut output = shared;
                for (i, &token) in response.iter().enumerate() {
                    let coef = if chosen { 1.0 } else { -1.0 };
                    out.labels.push(Label { row: output as u32, token: token as u32, coef });
                    out.owners.push((p, chosen));
                    if i + 1 < response.len() {
                        output = out.predict(p, at + i);
                    }
                }
                at += response.len();
            }
        }
        by_row(&mut out.labels, &mut out.owners);
        out
    }

    fn add(&mut self, pair: usize, row: usize) -> usize {
        self.columns[pair][row] = Some(self.rows.len());
        self.rows.push((pair, row));
        self.rows.len() - 1
    }

    /// Adds a row whose logits are wanted; gives its place among those.
    fn predict(&mut self, pair: usize, row: usize) -> usize {
        let row = self.add(pair, row);
        self.outputs.push(row);
        self.outputs.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_that_begin_alike_are_there_once() {
        let pair = |prompt: &[Token], chosen: &[Token], rejected: &[Token]| TokenizedPair {
            prompt: prompt.to_vec(),
            chosen: chosen.to_vec(),
            rejected: rejected.to_vec(),
        };
        let pairs =
            [pair(&[1, 2, 3, 4], &[5, 6], &[7]), pair(&[1, 2, 9], &[5], &[8, 8, 8]), pair(&[1, 2, 3, 4], &[5], &[7])];
        // The residual stream of the third pair is another one at its second token: only its first is shared.
        let stream = |p: usize, n: usize| (0..n).map(|i| if p == 2 && i == 1 { -1.0 } else { i as f32 }).collect();
        let streams: Vec<Vec<f32>> = pairs.iter().enumerate().map(|(p, x)| stream(p, x.n_tokens())).collect();
        let parts: Vec<(&TokenizedPair, &[f32])> = pairs.iter().zip(&streams).map(|(p, s)| (p, &s[..])).collect();
        let joint = Joint::new(&parts, 1);
        assert_eq!(
            joint.rows,
            [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (1, 4), (1, 5), (2, 1), (2, 2), (2, 3)]
        );
        assert_eq!(joint.outputs, [3, 4, 5, 6, 7, 10]);
        assert_eq!(joint.columns[1], [Some(0), Some(1), Some(5), None, Some(6), Some(7), None]);
        let labels: Vec<(u32, u32, f32)> = joint.labels.iter().map(|l| (l.row, l.token, l.coef)).collect();
        assert_eq!(labels[..3], [(0, 5, 1.0), (0, 7, -1.0), (1, 6, 1.0)]);
        assert_eq!(labels[3..7], [(2, 5, 1.0), (2, 8, -1.0), (3, 8, -1.0), (4, 8, -1.0)]);
        assert_eq!(joint.owners.iter().filter(|o| o.0 == 1).count(), 4);
    }
}
