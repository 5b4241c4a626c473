//! Attention in the backward pass, without keeping its scores.
//!
//! The scores of one layer are `[n_kv, n_tokens, n_head]`: kept for every layer they grow with tokens squared times heads
//! times layers. Where that is too much, the backward pass recomputes them, some heads at a time, and differentiates
//! what it computed by the same rules as everything else. Each head is computed as in the forward pass; only the sum over
//! heads that share keys and values is cut into pieces.

use super::ir::{Elem, Graph, IrError, Op, Value, n_elements};
use std::collections::HashMap;

/// Memory for attention scores in the backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionMemory {
    /// Bytes of scores that may be kept for all layers together; if there are more, all are recomputed.
    pub keep: usize,
    /// Bytes of scores computed again at a time (at least one head's).
    pub chunk: usize,
}

impl Default for AttentionMemory {
    fn default() -> Self {
        Self { keep: 128 << 20, chunk: 32 << 20 }
    }
}

/// Values with their gradients.
type Gradients = Result<Vec<(Value, Value)>, IrError>;

/// `out = v^T softmax(... k q ...)`: the products with what lies between them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Attention {
    /// Keys `[k, n_kv, n_head_kv]`.
    pub k: Value,
    /// Queries `[k, n_tokens, n_head]`.
    pub q: Value,
    /// Values `[n_kv, n, n_head_kv]`.
    pub v: Value,
    /// From the product of keys and queries to the softmax or what follows it, `[n_kv, n_tokens, n_head]` each.
    pub chain: Vec<Value>,
    /// The product with the values, `[n, n_tokens, n_head]`.
    pub out: Value,
}

/// All attentions among the first `n` nodes. `active`: values that depend on a hook point. `wanted`: values
/// whose gradients are wanted, which therefore cannot be inside.
pub(super) fn find(graph: &Graph, n: usize, active: &[bool], wanted: &[Value]) -> Vec<Attention> {
    let mut users = vec![0usize; n];
    for node in &graph.nodes()[..n] {
        node.src.iter().for_each(|s| users[s.0 as usize] += 1);
    }
    let inside = |v: Value| users[v.0 as usize] == 1 && !wanted.contains(&v);
    let product = |v: Value| {
        let node = graph.node(v);
        let frozen = |x: Value| graph.node(x).elem != Elem::F32 || matches!(graph.node(x).op, Op::Weight(_));
        matches!(node.op, Op::MulMat(_)) && node.ne[3] == 1 && !node.src.iter().any(|&x| frozen(x))
    };
    let start = |out: Value| -> Option<Attention> {
        if !active[out.0 as usize] || !product(out) {
            return None;
        }
        let (v, mut at) = (graph.node(out).src[0], graph.node(out).src[1]);
        let (mut chain, mut softmax) = (Vec::new(), false);
        while inside(at) {
            let node = graph.node(at);
            chain.push(at);
            match node.op {
                Op::MulMat(_) if softmax && product(at) => {
                    chain.reverse();
                    let (k, q) = (node.src[0], node.src[1]);
                    return (k != q && k != v && q != v).then_some(Attention { k, q, v, chain, out });
                }
                Op::SoftMax { .. } => softmax = true,
                Op::Scale { .. } | Op::Unary(_) | Op::Add | Op::Clamp { .. } => {}
                _ => return None,
            }
            if node.src[1..].iter().any(|s| active[s.0 as usize]) {
                return None;
            }
            at = node.src[0];
        }
        None
    };
    (0..n as u32).filter_map(|i| start(Value(i))).collect()
}

impl Attention {
    /// Bytes of one of the score tensors.
    pub(super) fn score_bytes(&self, graph: &Graph) -> usize {
        4 * n_elements(graph.ne(self.chain[0]))
    }

    /// Heads to compute at a time: as many as `bytes` hold of whole groups that share keys and values, or a part of one
    /// group that divides it.
    fn heads(&self, graph: &Graph, bytes: usize) -> usize {
        let [n_kv, n_tokens, n_head, _] = graph.ne(self.chain[0]);
        // The bias of ALiBi depends on a head's number among all.
        let biased = |&v: &Value| matches!(graph.node(v).op, Op::SoftMax { max_bias, .. } if max_bias != 0.0);
        if self.chain.iter().any(biased) {
            return n_head;
        }
        let most = (bytes / (4 * n_kv * n_tokens)).clamp(1, n_head);
        let fits = |c: usize| {
            n_head.is_multiple_of(c)
                && [self.k, self.v].iter().all(|&x| {
                    let group = n_head / graph.ne(x)[2];
                    c.is_multiple_of(group) || group.is_multiple_of(c)
                })
        };
        (1..=most).rev().find(|&c| fits(c)).unwrap_or(1)
    }

    /// The attention of heads `from..from + count`, computed again: a copy of itself on windows into its sources.
    fn part(&self, graph: &mut Graph, from: usize, count: usize) -> Result<Attention, IrError> {
        let n_head = graph.ne(self.chain[0])[2];
        let group = |graph: &Graph, x: Value| n_head / graph.ne(x)[2];
        // Heads of a source with one head for each group.
        let window = |graph: &mut Graph, x: Value| -> Result<Value, IrError> {
            let per = group(graph, x);
            slice(graph, x, 2, from / per, count.div_ceil(per))
        };
        let (k, q, v) = (window(graph, self.k)?, window(graph, self.q)?, window(graph, self.v)?);
        let mut chain: Vec<Value> = Vec::with_capacity(self.chain.len());
        for &old in &self.chain {
            let node = graph.node(old).clone();
            let Some(&before) = chain.last() else {
                let Op::MulMat(params) = node.op else { unreachable!("found as a product") };
                chain.push(graph.mul_mat_with(k, q, params)?);
                continue;
            };
            let mut src = vec![before];
            for (i, &s) in node.src.iter().enumerate().skip(1) {
                let ne = graph.ne(s);
                src.push(match node.op {
                    // One sink a head, along the first dimension.
                    Op::SoftMax { .. } if i == 2 => slice(graph, s, 0, from, count)?,
                    _ if ne[2] == n_head => slice(graph, s, 2, from, count)?,
                    _ => s,
                });
            }
            chain.push(graph.same(node.op, &src));
        }
        let Op::MulMat(params) = graph.node(self.out).op else { unreachable!("found as a product") };
        let out = graph.mul_mat_with(v, chain[chain.len() - 1], params)?;
        Ok(Attention { k, q, v, chain, out })
    }

    /// Gradients of keys, queries and values from `g`, that of the result: `[(value, gradient)]`. `rule` gives the
    /// gradients of a node's sources, added up.
    pub(super) fn backward(
        &self,
        graph: &mut Graph,
        g: Value,
        chunk: usize,
        rule: &mut dyn FnMut(&mut Graph, &Attention, Value, Value) -> Gradients,
    ) -> Gradients {
        let n_head = graph.ne(self.chain[0])[2];
        let count = self.heads(graph, chunk);
        let g = graph.contiguous(g);
        // For each source the gradients of its windows, by first head.
        let mut pieces: Vec<(Value, Vec<(usize, Value)>)> = [self.k, self.q, self.v].map(|x| (x, Vec::new())).into();
        for from in (0..n_head).step_by(count) {
            let part = self.part(graph, from, count)?;
            let g = slice(graph, g, 2, from, count)?;
            let mut grads = HashMap::from([(part.out, g)]);
            for &node in [part.out].iter().chain(part.chain.iter().rev()) {
                let Some(&g) = grads.get(&node) else { continue };
                for (source, d) in rule(graph, &part, node, g)? {
                    let sum = match grads.get(&source) {
                        Some(&sum) => graph.add(sum, d)?,
                        None => d,
                    };
                    grads.insert(source, sum);
                }
            }
            for ((whole, list), window) in pieces.iter_mut().zip([part.k, part.q, part.v]) {
                let Some(&d) = grads.get(&window) else { continue };
                let head = from / (n_head / graph.ne(*whole)[2]);
                match list.last_mut() {
                    // Another part of the same group.
                    Some((last, sum)) if *last == head => *sum = graph.add(*sum, d)?,
                    _ => list.push((head, d)),
                }
            }
        }
        let mut out = Vec::new();
        for (whole, list) in pieces {
            let mut parts: Vec<Value> = list.into_iter().map(|(_, d)| d).collect();
            // Halving, so that each number is copied log(parts) times.
            while parts.len() > 1 {
                let mut next = Vec::with_capacity(parts.len().div_ceil(2));
                for pair in parts.chunks(2) {
                    next.push(match *pair {
                        [a, b] => graph.concat(a, b, 2)?,
                        _ => pair[0],
                    });
                }
                parts = next;
            }
            out.extend(parts.first().map(|&d| (whole, d)));
        }
        Ok(out)
    }
}

/// `count` steps from `from` on along a dimension.
fn slice(graph: &mut Graph, x: Value, dim: usize, from: usize, count: usize) -> Result<Value, IrError> {
    let node = graph.node(x);
    let (mut ne, nb) = (node.ne, node.nb);
    if from == 0 && ne[dim] == count {
        return Ok(x);
    }
    ne[dim] = count;
    graph.view(x, ne, nb, from * nb[dim])
}
