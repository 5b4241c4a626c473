//! Positions of the tokens of some pairs in one batch.

use super::{EngineError, PairLogp};
use crate::data::TokenizedPair;
use crate::intervention::{Place, Scope, Sequences, ThoughtState};
use ggml_grad::graph::emit::Label;
use ggml_grad::graph::ir::Graph;
use ggml_grad::graph::lift::HookPoint;
use ggml_grad::llama::{Batch, Model, Token};
use std::collections::{BTreeSet, HashMap};

/// The labels of some pairs, by row of the logits as the LM head wants them, with coefficients +1 (chosen) and -1.
#[derive(Debug, Clone, Default)]
pub(super) struct Labels {
    pub labels: Vec<Label>,
    /// For each label: the response that it belongs to.
    pub owners: Vec<Owner>,
}

/// A response of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub pair: usize,
    pub chosen: bool,
}

impl Labels {
    fn push(&mut self, row: usize, token: Token, owner: Owner) {
        let coef = if owner.chosen { 1.0 } else { -1.0 };
        self.labels.push(Label { row: row as u32, token: token as u32, coef });
        self.owners.push(owner);
    }

    fn sort_by_row(&mut self) {
        let mut order: Vec<usize> = (0..self.labels.len()).collect();
        order.sort_by_key(|&i| self.labels[i].row); // stable
        self.labels = order.iter().map(|&i| self.labels[i]).collect();
        self.owners = order.iter().map(|&i| self.owners[i]).collect();
    }

    /// Log-probabilities of the responses of `n_pairs` pairs from those of the labels.
    pub(super) fn sums(&self, n_pairs: usize, log_probs: &[f64]) -> Vec<PairLogp> {
        let mut sums = vec![PairLogp::default(); n_pairs];
        for (owner, log_prob) in self.owners.iter().zip(log_probs) {
            let pair = &mut sums[owner.pair];
            *(if owner.chosen { &mut pair.chosen } else { &mut pair.rejected }) += log_prob;
        }
        sums
    }
}

/// Prompts of pairs in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prompts {
    /// A prompt's tokens belong to the sequences of both responses.
    Shared,
    /// Each response is a sequence of its own, prompt included, and all sequences are padded to one length: llama.cpp computes
    /// a batch of recurrent sequences in one pass only where they are equally long. What follows a response's last token has no
    /// part in its log-probability.
    Repeated,
}

impl Prompts {
    /// What a model needs.
    pub(super) fn of(model: &Model) -> Self {
        if model.is_recurrent() { Self::Repeated } else { Self::Shared }
    }
}

/// Tokens of a batch of these pairs in one decode of the model.
pub fn batch_tokens(model: &Model, pairs: &[&TokenizedPair]) -> usize {
    match Prompts::of(model) {
        Prompts::Shared => pairs.iter().map(|p| p.n_tokens()).sum(),
        Prompts::Repeated => {
            let sequences = pairs.iter().flat_map(|p| responses(p)).count();
            sequences * longest_sequence(pairs)
        }
    }
}

/// The responses of a pair that have tokens; the chosen one first.
fn responses(pair: &TokenizedPair) -> impl Iterator<Item = (&[Token], bool)> {
    [(&pair.chosen[..], true), (&pair.rejected[..], false)].into_iter().filter(|(tokens, _)| !tokens.is_empty())
}

/// Tokens of the longest prompt with a response.
fn longest_sequence(pairs: &[&TokenizedPair]) -> usize {
    pairs.iter().map(|p| p.prompt.len() + p.chosen.len().max(p.rejected.len())).max().unwrap_or(0)
}

/// Positions of the tokens of some pairs in one batch.
pub(super) struct Layout {
    pub batch: Batch,
    pub pairs: Vec<TokenizedPair>,
    /// Pair of each token.
    pub token_pair: Vec<usize>,
    /// Position of each token in its sequence.
    positions: Vec<usize>,
    /// Place of each token among those of its pair: prompt, chosen, rejected.
    sources: Vec<usize>,
    /// Token of each row of logits.
    pub output_tokens: Vec<usize>,
    pub labels: Labels,
}

impl Layout {
    pub(super) fn new(pairs: &[&TokenizedPair], prompts: Prompts) -> Result<Self, EngineError> {
        let mut out = Self {
            batch: Batch::new(),
            pairs: pairs.iter().map(|&p| p.clone()).collect(),
            token_pair: Vec::new(),
            positions: Vec::new(),
            sources: Vec::new(),
            output_tokens: Vec::new(),
            labels: Labels::default(),
        };
        let longest = longest_sequence(pairs);
        let mut n_sequences = 0;
        for (p, pair) in pairs.iter().enumerate() {
            // A pair without a rejected response has one answer: for objectives and texts that need no other.
            if pair.prompt.is_empty() || pair.chosen.is_empty() {
                return Err(EngineError::Pair("a prompt or response without a single token".into()));
            }
            match prompts {
                Prompts::Shared => {
                    let seqs = [2 * p as i32, 2 * p as i32 + 1];
                    out.push_prompt(p, &pair.prompt, &seqs);
                    // The prompt's last row predicts the first token of both responses.
                    let shared_row = out.output_tokens.len() - 1;
                    for (response, chosen) in responses(pair) {
                        out.push_response(p, pair, (response, chosen), seqs[usize::from(!chosen)], shared_row);
                    }
                }
                Prompts::Repeated => {
                    for (response, chosen) in responses(pair) {
                        out.push_prompt(p, &pair.prompt, &[n_sequences]);
                        let row = out.output_tokens.len() - 1;
                        out.push_response(p, pair, (response, chosen), n_sequences, row);
                        let source = out.sources[out.sources.len() - 1];
                        for at in pair.prompt.len() + response.len()..longest {
                            out.push(p, (response[response.len() - 1], source), at, &[n_sequences], false);
                        }
                        n_sequences += 1;
                    }
                }
            }
        }
        out.labels.sort_by_row();
        Ok(out)
    }

    /// The pair of each row of the residual stream at a hook point.
    pub(super) fn row_pair(&self, graph: &Graph, hook: &HookPoint) -> Result<Vec<usize>, EngineError> {
        let n_rows = graph.ne(hook.at)[1..].iter().product::<usize>();
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
                hook.layer,
                self.token_pair.len()
            )))
        }
    }

    /// Places of the rows of the residual stream at a hook point; `None` where a token has several.
    pub(super) fn sequences(&self, n_rows: usize, scope: &Scope) -> Option<Sequences> {
        let all = (0..self.token_pair.len()).collect::<Vec<_>>();
        let tokens = match n_rows {
            n if n == all.len() => &all,
            // As in [`Layout::row_pair`].
            n if n == self.output_tokens.len() => &self.output_tokens,
            _ => return None,
        };
        let in_thought: Vec<Vec<bool>> = self.pairs.iter().map(|pair| in_thoughts(pair, scope)).collect();
        let place = |&t: &usize| {
            let sequence = self.token_pair[t];
            let n_prompt = self.pairs[sequence].prompt.len();
            Place { sequence, at: self.positions[t], n_prompt, in_thought: in_thought[sequence][self.sources[t]] }
        };
        let places: Vec<Place> = tokens.iter().map(place).collect();
        // Of a repeated prompt, the first copy.
        let of_prompt = |p: usize| {
            let rows = places.iter().enumerate().filter(|(_, x)| x.sequence == p && x.at < x.n_prompt);
            let mut seen = BTreeSet::new();
            rows.filter(|(_, x)| seen.insert(x.at)).map(|(row, _)| row).collect()
        };
        let prompts = (0..self.pairs.len()).map(of_prompt).collect();
        Some(Sequences { places, prompts })
    }

    fn push_prompt(&mut self, pair: usize, prompt: &[Token], seqs: &[i32]) {
        for (i, &t) in prompt.iter().enumerate() {
            self.push(pair, (t, i), i, seqs, i + 1 == prompt.len());
        }
    }

    /// Adds a response of a pair, whose first token the logits' row `row` predicts.
    fn push_response(
        &mut self,
        p: usize,
        pair: &TokenizedPair,
        (response, chosen): (&[Token], bool),
        seq: i32,
        row: usize,
    ) {
        let n_prompt = pair.prompt.len();
        let source = n_prompt + if chosen { 0 } else { pair.chosen.len() };
        let mut row = row;
        for (i, &t) in response.iter().enumerate() {
            self.labels.push(row, t, Owner { pair: p, chosen });
            self.push(p, (t, source + i), n_prompt + i, &[seq], i + 1 < response.len());
            row = self.output_tokens.len() - 1;
        }
    }

    /// Adds a token; `source` is its place in its pair.
    fn push(&mut self, pair: usize, (token, source): (Token, usize), pos: usize, seqs: &[i32], logits: bool) {
        let i = self.batch.add(token, pos, seqs, logits);
        self.token_pair.push(pair);
        self.sources.push(source);
        self.positions.push(pos);
        if logits {
            self.output_tokens.push(i);
        }
    }
}

/// For each token of a pair, in the order of [`Layout`], whether it lies in a thought; never where the scope does not ask.
fn in_thoughts(pair: &TokenizedPair, scope: &Scope) -> Vec<bool> {
    let Some(thoughts) = scope.thoughts() else { return vec![false; pair.n_tokens()] };
    let (mut rows, open) = thoughts.follow(ThoughtState::default(), &pair.prompt);
    rows.extend(thoughts.follow(open, &pair.chosen).0);
    rows.extend(thoughts.follow(open, &pair.rejected).0);
    rows
}

/// Positions of a pair at which an intervention of this scope acts and that predict a token.
pub fn covered_positions(pair: &TokenizedPair, scope: &Scope) -> usize {
    let n_prompt = pair.prompt.len();
    let in_thought = in_thoughts(pair, scope);
    let place = |row: usize, at: usize| Place { sequence: 0, at, n_prompt, in_thought: in_thought[row] };
    let chosen = pair.chosen.len().saturating_sub(1);
    let rejected = pair.rejected.len().saturating_sub(1);
    let prompt = (0..n_prompt).map(|at| place(at, at));
    let chosen_rows = (0..chosen).map(|i| place(n_prompt + i, n_prompt + i));
    let rejected_rows = (0..rejected).map(|i| place(n_prompt + pair.chosen.len() + i, n_prompt + i));
    prompt.chain(chosen_rows).chain(rejected_rows).filter(|&place| scope.covers(place)).count()
}

/// Positions of the rows of several traced pairs in one graph.
///
/// Rows of shared prompt prefixes are computed once. Those that predict a response's token are not shared between pairs, nor
/// is a response; the last token of a response predicts nothing and is left out.
pub(super) struct BatchLayout {
    /// For each row: which pair it is taken from, and which of that pair's rows it is.
    pub rows: Vec<(usize, usize)>,
    /// For each pair and each of its rows: where it is here.
    pub columns: Vec<Vec<Option<usize>>>,
    /// Rows that predict a token of a response.
    pub outputs: Vec<usize>,
    pub labels: Labels,
    pub sequences: Sequences,
}

impl BatchLayout {
    /// Of pairs with their residual streams, `[n_tokens, n_embd]`, in the order of [`Layout`]. Rows are shared only where the
    /// scope treats all pairs alike.
    pub(super) fn new(pairs: &[(&TokenizedPair, &[f32])], n_embd: usize, scope: &Scope) -> Self {
        let mut out = Self {
            rows: Vec::new(),
            columns: pairs.iter().map(|(pair, _)| vec![None; pair.n_tokens()]).collect(),
            outputs: Vec::new(),
            labels: Labels::default(),
            sequences: Sequences::default(),
        };
        // Rows of prompts that may be shared, by the row before, the token, and whether the scope covers it.
        let mut known: HashMap<(Option<usize>, Token, bool), usize> = HashMap::new();
        for (p, &(pair, residual)) in pairs.iter().enumerate() {
            let stream = |row: usize| &residual[row * n_embd..(row + 1) * n_embd];
            let last = pair.prompt.len() - 1;
            let mut before = None;
            let in_thought = in_thoughts(pair, scope);
            let place = |row: usize, at: usize| Place {
                sequence: p,
                at,
                n_prompt: pair.prompt.len(),
                in_thought: in_thought[row],
            };
            for (i, &token) in pair.prompt[..last].iter().enumerate() {
                let key = (before, token, scope.covers(place(i, i)));
                let same = known.get(&key).copied().filter(|&row| {
                    let (of, at) = out.rows[row];
                    // Equal numbers, not only equal tokens: what is shared must be what each pair was traced with.
                    let there = &pairs[of].1[at * n_embd..(at + 1) * n_embd];
                    there.iter().zip(stream(i)).all(|(a, b)| a.to_bits() == b.to_bits())
                });
                let row = match same {
                    Some(row) => {
                        out.columns[p][i] = Some(row);
                        row
                    }
                    None => {
                        let row = out.add(p, i, place(i, i));
                        known.insert(key, row);
                        row
                    }
                };
                before = Some(row);
            }
            let shared = out.predict(p, last, place(last, last));
            out.sequences.prompts.push(out.columns[p][..=last].iter().copied().flatten().collect());
            let mut at = pair.prompt.len();
            for (response, chosen) in [(&pair.chosen, true), (&pair.rejected, false)] {
                let mut output = shared;
                for (i, &token) in response.iter().enumerate() {
                    out.labels.push(output, token, Owner { pair: p, chosen });
                    if i + 1 < response.len() {
                        output = out.predict(p, at + i, place(at + i, pair.prompt.len() + i));
                    }
                }
                at += response.len();
            }
        }
        out.labels.sort_by_row();
        out
    }

    fn add(&mut self, pair: usize, row: usize, place: Place) -> usize {
        self.columns[pair][row] = Some(self.rows.len());
        self.sequences.places.push(place);
        self.rows.push((pair, row));
        self.rows.len() - 1
    }

    /// Adds a row whose logits are wanted; gives its place among those.
    fn predict(&mut self, pair: usize, row: usize, place: Place) -> usize {
        let row = self.add(pair, row, place);
        self.outputs.push(row);
        self.outputs.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn covered_positions_predict_a_token() {
        let pair = TokenizedPair { prompt: vec![1, 2, 3], chosen: vec![5, 6], rejected: vec![7, 8, 9] };
        let covered = |scope: &str| covered_positions(&pair, &scope.parse().unwrap());
        assert_eq!([covered("all"), covered("prompt"), covered("answer")], [6, 2, 4]);
        assert_eq!([covered("after:1"), covered("after:2"), covered("after:9")], [3, 1, 0]);
    }

    #[test]
    fn repeated_prompts_make_sequences_of_one_length() {
        let pair = TokenizedPair { prompt: vec![1, 2], chosen: vec![5, 6], rejected: vec![7, 8, 9] };
        let text = TokenizedPair { prompt: vec![3], chosen: vec![4], rejected: vec![] };
        let layout = Layout::new(&[&pair, &text], Prompts::Repeated).unwrap();
        let rows = layout.batch.rows();
        let of = |s: i32| rows.iter().filter(|r| r.sequences == [s]).map(|r| r.token).collect::<Vec<_>>();
        assert_eq!([of(0), of(1), of(2)], [vec![1, 2, 5, 6, 6], vec![1, 2, 7, 8, 9], vec![3, 4, 4, 4, 4]]);
        assert!(rows.iter().enumerate().all(|(i, r)| r.at == i % 5));
        assert_eq!(layout.output_tokens, [1, 2, 6, 7, 8, 10]);
        let labels: Vec<(u32, u32)> = layout.labels.labels.iter().map(|l| (l.row, l.token)).collect();
        assert_eq!(labels, [(0, 5), (1, 6), (2, 7), (3, 8), (4, 9), (5, 4)]);
        let sequences = layout.sequences(15, &Scope::ALL).unwrap();
        assert_eq!(sequences.prompts, [vec![0, 1], vec![10]]);
    }

    #[test]
    fn shared_prefixes_are_computed_once() {
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
        let layout = BatchLayout::new(&parts, 1, &Scope::ALL);
        assert_eq!(
            layout.rows,
            [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (1, 4), (1, 5), (2, 1), (2, 2), (2, 3)]
        );
        assert_eq!(layout.outputs, [3, 4, 5, 6, 7, 10]);
        assert_eq!(layout.sequences.prompts, [vec![0, 1, 2, 3], vec![0, 1, 5], vec![0, 8, 9, 10]]);
        let place = layout.sequences.places[7];
        assert_eq!((place.sequence, place.at, place.n_prompt, place.is_answer()), (1, 4, 3, true));
        // The last two of the prompt: the second row is one of the second pair's and none of the first one's.
        let apart = BatchLayout::new(&parts, 1, &"last:2".parse().unwrap());
        assert_eq!(apart.columns[1][..2], [Some(0), Some(5)]);
        assert_eq!(layout.columns[1], [Some(0), Some(1), Some(5), None, Some(6), Some(7), None]);
        let labels: Vec<(u32, u32, f32)> = layout.labels.labels.iter().map(|l| (l.row, l.token, l.coef)).collect();
        assert_eq!(labels[..3], [(0, 5, 1.0), (0, 7, -1.0), (1, 6, 1.0)]);
        assert_eq!(labels[3..7], [(2, 5, 1.0), (2, 8, -1.0), (3, 8, -1.0), (4, 8, -1.0)]);
        assert_eq!(layout.labels.owners.iter().filter(|o| o.pair == 1).count(), 4);
    }
}
