//! Which tokens are decoded, and together with which: answers to a tree, questions to packs.

use ggml_grad::llama::Token;
use std::ops::Range;

/// A prompt and the answers to score after it.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// What follows the scorer's prefix.
    pub prompt: &'a str,
    /// The answers; each follows after one space. Equal ones cost nothing.
    pub answers: &'a [&'a str],
}

/// A request as tokens: of each answer `whole[n_context..]` is scored, given what stands before.
#[derive(Debug, Clone)]
pub(super) struct Encoded {
    pub n_context: usize,
    pub whole: Vec<Vec<Token>>,
}

/// One token to decode.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub token: Token,
    pub pos: usize,
    /// The tree's sequences that go through it.
    pub sequences: Range<usize>,
    /// What it has to predict: answer (its place in the request) and token.
    pub wanted: Vec<(usize, Token)>,
}

/// The answers of a request (some of them, where all at once are too many), what they have in common being there once.
#[derive(Debug, Clone)]
pub(super) struct Tree {
    /// In an order in which each token stands after those it follows.
    pub rows: Vec<Row>,
    /// Sequences needed.
    pub n_sequences: usize,
    /// Tokens at the beginning that lie in the cache already.
    pub cached: usize,
    /// Tokens before the answers.
    pub n_context: usize,
}

impl Tree {
    /// The tree of some answers, after `prefix` tokens in the cache. The last token of an answer is only predicted.
    pub(super) fn new(request: &Encoded, answers: Range<usize>, prefix: &[Token], reuse: Reuse) -> Self {
        let paths: Vec<&[Token]> = request.whole[answers.clone()].iter().map(|w| &w[..w.len() - 1]).collect();
        let first = request.n_context - 1;
        // The row before the first predicted token predicts it: it is decoded even where the prefix holds it.
        let cached = paths.iter().map(|p| common(p, prefix).min(first)).min().unwrap_or(0);
        let cached = if reuse == Reuse::Whole && cached < prefix.len() { 0 } else { cached };
        let mut leaves = paths.clone();
        leaves.sort_unstable();
        leaves.dedup();
        // In lexical order a path stands right before those it is the beginning of: it needs no sequence of its own.
        let ends: Vec<bool> =
            (0..leaves.len()).map(|i| leaves.get(i + 1).is_none_or(|next| !next.starts_with(leaves[i]))).collect();
        let mut keep = ends.iter();
        leaves.retain(|_| keep.next() == Some(&true));

        let mut rows: Vec<Row> = Vec::new();
        let mut at: Vec<Vec<usize>> = Vec::new(); // for each leaf, the row of each of its positions from `cached` on
        for (i, leaf) in leaves.iter().enumerate() {
            let shared = if i == 0 { cached } else { common(leaves[i - 1], leaf) };
            let mut path = at.last().map_or(Vec::new(), |before: &Vec<usize>| before[..shared - cached].to_vec());
            for &row in &path {
                rows[row].sequences.end = i + 1;
            }
            for (pos, &token) in leaf.iter().enumerate().skip(shared) {
                path.push(rows.len());
                rows.push(Row { token, pos, sequences: i..i + 1, wanted: Vec::new() });
            }
            at.push(path);
        }
        for (answer, path) in answers.zip(&paths) {
            // The first leaf that is not before the path begins with it.
            let leaf = leaves.partition_point(|leaf| leaf < path);
            for pos in first..path.len() {
                rows[at[leaf][pos - cached]].wanted.push((answer, request.whole[answer][pos + 1]));
            }
        }
        Self { rows, n_sequences: leaves.len(), cached, n_context: request.n_context }
    }
}

fn common(a: &[Token], b: &[Token]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

/// Requests that are decoded together.
#[derive(Debug, Clone)]
pub(super) struct Pack {
    pub requests: Range<usize>,
    /// Trees with their requests. Those of a round are in the cache at once.
    pub rounds: Vec<Vec<(usize, Tree)>>,
}

/// What can be taken from a prefix that was decoded before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reuse {
    /// Any number of its first tokens: a KV cache.
    Part,
    /// All of it or nothing: a recurrent state.
    Whole,
}

/// What a plan may use at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Tokens of a decode.
    pub n_batch: usize,
    /// Cells of the cache, the prefix's among them.
    pub max_cells: usize,
    /// Sequences beside the prefix's.
    pub max_sequences: usize,
    /// What can be taken from the prefix.
    pub reuse: Reuse,
}

/// A list of requests, cut into packs. The same requests give the same plan, so that a run that was interrupted goes on
/// with the same packs, and to the same sums.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(super) packs: Vec<Pack>,
    /// For each request, the number of tokens of each answer.
    pub(super) n_tokens: Vec<Vec<usize>>,
    /// Cells of the cache that the largest round needs.
    pub(super) n_cells: usize,
}

impl Plan {
    /// Requests in order, as many to a pack as one decode holds; what is too large for that by itself, in several.
    pub(super) fn new(requests: &[Encoded], prefix: &[Token], limits: Limits) -> Self {
        let mut packs: Vec<Pack> = Vec::new();
        let (mut n_rows, mut n_sequences) = (0, 0);
        let mut open = false;
        for (i, request) in requests.iter().enumerate() {
            let trees = trees(request, prefix, limits);
            if let [tree] = &trees[..]
                && tree.rows.len() <= limits.n_batch
            {
                let fits = n_rows + tree.rows.len() <= limits.n_batch
                    && prefix.len() + n_rows + tree.rows.len() <= limits.max_cells
                    && n_sequences + tree.n_sequences <= limits.max_sequences;
                if !open || !fits {
                    packs.push(Pack { requests: i..i, rounds: vec![Vec::new()] });
                    (n_rows, n_sequences, open) = (0, 0, true);
                }
                n_rows += tree.rows.len();
                n_sequences += tree.n_sequences;
                if let Some(pack) = packs.last_mut() {
                    pack.requests.end = i + 1;
                    pack.rounds[0].extend(trees.into_iter().map(|t| (i, t)));
                }
            } else {
                packs.push(Pack { requests: i..i + 1, rounds: trees.into_iter().map(|t| vec![(i, t)]).collect() });
                open = false;
            }
        }
        let most =
            packs.iter().flat_map(|p| &p.rounds).map(|r| r.iter().map(|(_, t)| t.rows.len()).sum::<usize>()).max();
        Self {
            n_cells: prefix.len() + most.unwrap_or(0),
            n_tokens: requests.iter().map(|r| r.whole.iter().map(|w| w.len() - r.n_context).collect()).collect(),
            packs,
        }
    }

    /// Number of requests.
    pub fn n_requests(&self) -> usize {
        self.n_tokens.len()
    }

    /// Number of packs.
    pub fn n_packs(&self) -> usize {
        self.packs.len()
    }

    /// The requests of a pack; packs follow the order of the requests. Empty for a pack that does not exist.
    pub fn requests(&self, pack: usize) -> Range<usize> {
        self.packs.get(pack).map_or(0..0, |p| p.requests.clone())
    }

    /// Tokens that are decoded beside the prefix.
    pub fn n_decoded(&self) -> usize {
        self.packs.iter().flat_map(|p| &p.rounds).flatten().map(|(_, t)| t.rows.len()).sum()
    }

    /// Rows whose next token is scored.
    pub fn n_scored_rows(&self) -> usize {
        let trees = self.packs.iter().flat_map(|p| &p.rounds).flatten();
        trees.flat_map(|(_, t)| &t.rows).filter(|r| !r.wanted.is_empty()).count()
    }
}

/// A request's answers in as few trees as the limits allow; a single answer is not cut.
fn trees(request: &Encoded, prefix: &[Token], limits: Limits) -> Vec<Tree> {
    let mut trees = Vec::new();
    let mut start = 0;
    while start < request.whole.len() {
        let mut end = request.whole.len();
        loop {
            let tree = Tree::new(request, start..end, prefix, limits.reuse);
            let fits = tree.n_sequences <= limits.max_sequences && prefix.len() + tree.rows.len() <= limits.max_cells;
            if fits || end == start + 1 {
                trees.push(tree);
                break;
            }
            end = start + (end - start).div_ceil(2);
        }
        start = end;
    }
    trees
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(n_context: usize, whole: &[&[Token]]) -> Encoded {
        Encoded { n_context, whole: whole.iter().map(|w| w.to_vec()).collect() }
    }

    #[test]
    fn what_answers_share_is_there_once() {
        // Prefix 1 2, question 3 4, answers: 5 6 7, 5 6 8, 5, 9 and once more 5 6 7.
        let request = encoded(
            4,
            &[
                &[1, 2, 3, 4, 5, 6, 7],
                &[1, 2, 3, 4, 5, 6, 8],
                &[1, 2, 3, 4, 5],
                &[1, 2, 3, 4, 9],
                &[1, 2, 3, 4, 5, 6, 7],
            ],
        );
        let tree = Tree::new(&request, 0..5, &[1, 2], Reuse::Part);
        assert_eq!((tree.cached, tree.n_sequences), (2, 1));
        let tokens: Vec<Token> = tree.rows.iter().map(|r| r.token).collect();
        assert_eq!(tokens, [3, 4, 5, 6]);
        assert_eq!(tree.rows[0].wanted, []);
        assert_eq!(tree.rows[1].wanted, [(0, 5), (1, 5), (2, 5), (3, 9), (4, 5)]);
        assert_eq!(tree.rows[2].wanted, [(0, 6), (1, 6), (4, 6)]);
        assert_eq!(tree.rows[3].wanted, [(0, 7), (1, 8), (4, 7)]);
    }

    #[test]
    fn branches_are_sequences() {
        let request = encoded(2, &[&[1, 2, 7, 8, 9], &[1, 2, 5, 6, 4], &[1, 2, 5, 3, 4, 4], &[1, 2, 5, 6, 4, 1]]);
        let tree = Tree::new(&request, 0..4, &[1, 2, 7], Reuse::Part);
        // Row of token 2 is decoded though the prefix holds it: it predicts the first tokens.
        assert_eq!((tree.cached, tree.n_sequences), (1, 3));
        let rows: Vec<_> = tree.rows.iter().map(|r| (r.token, r.pos, r.sequences.clone())).collect();
        let expected = [
            (2, 1, 0..3),
            (5, 2, 0..2),
            (3, 3, 0..1),
            (4, 4, 0..1),
            (6, 3, 1..2),
            (4, 4, 1..2),
            (7, 2, 2..3),
            (8, 3, 2..3),
        ];
        assert_eq!(rows, expected);
        assert_eq!(tree.rows[5].wanted, [(3, 1)]);
        assert_eq!(tree.rows[4].wanted, [(1, 4), (3, 4)]);
    }

    #[test]
    fn a_state_is_taken_whole_or_not_at_all() {
        let request = encoded(3, &[&[1, 2, 3, 4, 5]]);
        let cached = |prefix: &[Token]| Tree::new(&request, 0..1, prefix, Reuse::Whole).cached;
        // Of the third prefix, its last token would have to be decoded again.
        assert_eq!([cached(&[1, 2]), cached(&[1, 3]), cached(&[1, 2, 3]), cached(&[])], [2, 0, 0, 0]);
    }

    #[test]
    fn plans_keep_the_order_and_the_limits() {
        let request = |n: usize| encoded(2, &[&vec![1; n + 1]]); // n rows: the last token is only predicted
        let requests: Vec<Encoded> = [4, 4, 4, 30, 2, 2].map(request).to_vec();
        let limits = Limits { n_batch: 10, max_cells: 100, max_sequences: 5, reuse: Reuse::Part };
        let plan = Plan::new(&requests, &[], limits);
        let ranges: Vec<_> = (0..plan.n_packs()).map(|p| plan.requests(p)).collect();
        assert_eq!(ranges, [0..2, 2..3, 3..4, 4..6]);
        assert_eq!((plan.n_cells, plan.n_decoded()), (30, 46));
        // Too many sequences for one round: the answers take turns.
        let many: Vec<Vec<Token>> = (0..7).map(|i| vec![1, 2, i, i]).collect();
        let plan = Plan::new(&[Encoded { n_context: 2, whole: many }], &[], limits);
        let sequences: Vec<usize> = plan.packs[0].rounds.iter().map(|r| r[0].1.n_sequences).collect();
        assert_eq!((plan.n_packs(), sequences), (1, vec![4, 3]));
    }
}
