//! Attention whose scores are kept, computed again at once, or computed again a few heads at a time.

use super::{AttentionMemory, Case, Op, Unary, Value, several_paths};
use std::collections::BTreeSet;

const HEAD: usize = 4;
const TOKENS: usize = 5;

/// Nodes between the two products besides the softmax.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    /// `c tanh(x / c)` before the softmax.
    Capped,
    /// A bias that depends on the head.
    Alibi,
    /// A term for each head in the softmax's sums.
    Sinks,
}

/// `n_head` queries over `n_kv` keys and values, all windows of the entry.
fn attention(kind: Kind, n_head: usize, n_kv: usize) -> (Case, Value) {
    let mut c = Case::new([HEAD, TOKENS, n_head + 2 * n_kv, 1]);
    let nb = c.graph.node(c.entry).nb;
    let mut part =
        |heads: usize, from: usize| c.graph.view(c.entry, [HEAD, TOKENS, heads, 1], nb, from * nb[2]).unwrap();
    let (q, k, v) = (part(n_head, 0), part(n_kv, n_head), part(n_kv, n_head + n_kv));
    let v = c.graph.transposed(v).unwrap(); // [n_kv, head, n_head_kv]
    let mut scores = c.graph.mul_mat(k, q, 0).unwrap(); // [n_kv, n_tokens, n_head]
    if kind == Kind::Capped {
        scores = c.graph.scale(scores, 0.5, 0.0);
        scores = c.graph.same(Op::Unary(Unary::Tanh), &[scores]);
        scores = c.graph.scale(scores, 2.0, 0.0);
    }
    // Row i sees the first i + 1 columns.
    let mut mask = vec![0.0; TOKENS * TOKENS];
    for i in 0..TOKENS {
        mask[i * TOKENS + i + 1..(i + 1) * TOKENS].fill(f32::NEG_INFINITY);
    }
    if kind == Kind::Alibi {
        mask.iter_mut().enumerate().for_each(|(i, m)| *m -= (i % TOKENS) as f32);
    }
    let mut src = vec![scores, c.given([TOKENS, TOKENS, 1, 1], mask)];
    if kind == Kind::Sinks {
        src.push(c.fixed([n_head, 1, 1, 1]));
    }
    let max_bias = if kind == Kind::Alibi { 8.0 } else { 0.0 };
    let p = c.graph.same(Op::SoftMax { scale: 0.7, max_bias }, &src);
    let out = c.graph.mul_mat(v, p, 0).unwrap(); // [head, n_tokens, n_head]
    (c, out)
}

/// The same gradients whatever is kept. That scores are really computed again shows in the memory: tests/memory.rs.
pub fn computed_again() -> Vec<BTreeSet<usize>> {
    let mut reached = several_paths();
    let head = 4 * TOKENS * TOKENS;
    for kind in [Kind::Plain, Kind::Capped, Kind::Alibi, Kind::Sinks] {
        for (n_head, n_kv) in [(4, 4), (4, 2), (6, 2), (4, 1)] {
            for (name, keep, chunk) in [
                ("kept", usize::MAX, 0),
                ("again, at once", 0, usize::MAX),
                ("again, three heads", 0, 3 * head),
                ("again, two heads", 0, 2 * head),
                ("again, one head", 0, 1),
            ] {
                let (mut c, out) = attention(kind, n_head, n_kv);
                c.memory = AttentionMemory { keep, chunk };
                reached.push(c.check(&format!("{kind:?} attention, {n_head} over {n_kv} heads, {name}"), out));
            }
        }
    }
    reached
}

/// The attention that is one op: its gradients with respect to queries, keys and values, windows of the entry. Each token sees
/// the first two and those of its own kind.
pub fn in_one() -> Vec<BTreeSet<usize>> {
    let mut reached = Vec::new();
    for (n_head, n_kv) in [(2, 2), (3, 1)] {
        let mut c = Case::new([16, n_head + 2 * n_kv, TOKENS, 1]);
        let nb = c.graph.node(c.entry).nb;
        let mut part =
            |heads: usize, from: usize| c.graph.view(c.entry, [16, heads, TOKENS, 1], nb, from * nb[1]).unwrap();
        let (q, k, v) = (part(n_head, 0), part(n_kv, n_head), part(n_kv, n_head + n_kv));
        let sees = |row: usize, column: usize| column <= row && (column < 2 || row % 2 == column % 2);
        let mask = (0..16 * TOKENS).map(|i| if sees(i / 16, i % 16) { 0.0 } else { f32::NEG_INFINITY }).collect();
        let mask = c.given([16, TOKENS, 1, 1], mask);
        // What the op stands for; not used where kernels of ours compute it.
        let plain = c.fixed([16, n_head, TOKENS, 1]);
        let out = c.graph.attention([q, k, v, mask], 0.3, plain).unwrap();
        reached.push(c.check(&format!("attention in one, {n_head} over {n_kv} heads"), out));
    }
    reached
}
