//! Reverse-mode differentiation as a graph-to-graph transform: one rule for each op.
//!
//! `rules::vjp` is the table. A rule gets the gradient `g` of the node's result and returns a cotangent for each source
//! (vector-Jacobian product). The driver here drops those of inactive sources, sums the rest down to their sources' shapes
//! and accumulates them. Weights, masks and positions are never active.

mod rules;

use super::ir::{Graph, IrError, Value};
use super::recompute::{self, Attention, AttentionMemory};
use rules::{Cotangent, SOURCES, Window, vjp};
use std::collections::HashMap;

/// Extends `graph` by the gradients of a scalar with respect to each of `wrt`, given `seed`, its gradient with respect to
/// `of`. Values of `wrt` may depend on each other: each gets its total derivative.
///
/// # Errors
/// [`IrError::NoRule`] naming the first op on the way that cannot be differentiated.
pub fn differentiate(graph: &mut Graph, of: Value, seed: Value, wrt: &[Value]) -> Result<Vec<Value>, IrError> {
    differentiate_within(graph, of, seed, wrt, AttentionMemory::default())
}

/// As [`differentiate`], with a limit on the attention scores that are kept for the backward pass.
///
/// # Errors
/// As [`differentiate`].
pub fn differentiate_within(
    graph: &mut Graph,
    of: Value,
    seed: Value,
    wrt: &[Value],
    memory: AttentionMemory,
) -> Result<Vec<Value>, IrError> {
    let mut sweep = Sweep::new(graph, of, wrt)?;
    let attentions = recompute::find(graph, of.0 as usize + 1, &sweep.active, wrt);
    if attentions.iter().map(|a| a.score_bytes(graph)).sum::<usize>() > memory.keep {
        sweep.again = attentions.into_iter().map(|a| (a.out, a)).collect();
        sweep.chunk = memory.chunk;
    }
    sweep.run(graph, of, seed, wrt, &mut |_, e| Err(e))?;
    wrt.iter()
        .map(|v| {
            let g = sweep.grads[v.0 as usize].ok_or_else(|| nowhere("no gradient reaches the entry"))?;
            Ok(graph.contiguous(g))
        })
        .collect()
}

/// Gradient status of an op: whether a gradient reaches it, and whether it has a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GradStatus {
    /// No gradient passes through it: it does not depend on a hook point, or leads to integers only.
    NotNeeded,
    /// Its rule is used.
    Rule,
    /// A gradient reaches it and there is no rule.
    Missing,
}

/// The gradient status of each node up to `of`, as [`differentiate`] would find it, without stopping at the first op that
/// has no rule. No gradient passes a missing rule, so nodes that only lead to one count as not needed.
///
/// # Errors
/// [`IrError`] when `of` does not depend on `wrt` at all.
pub fn survey(graph: &Graph, of: Value, seed: Value, wrt: &[Value]) -> Result<Vec<GradStatus>, IrError> {
    let mut graph = graph.clone();
    let mut sweep = Sweep::new(&graph, of, wrt)?;
    let mut missing = Vec::new();
    sweep.run(&mut graph, of, seed, wrt, &mut |v, _| {
        missing.push(v);
        Ok(())
    })?;
    Ok((0..=of.0)
        .map(|i| match (missing.contains(&Value(i)), sweep.active[i as usize], sweep.grads[i as usize]) {
            (true, ..) => GradStatus::Missing,
            (false, true, Some(_)) => GradStatus::Rule,
            _ => GradStatus::NotNeeded,
        })
        .collect())
}

fn nowhere(why: &str) -> IrError {
    IrError::NoRule { op: "graph".into(), why: why.to_owned() }
}

/// One walk from the result back to `wrt`.
struct Sweep {
    /// For each value: whether it depends on a value of `wrt`.
    active: Vec<bool>,
    /// For each value: its gradient so far.
    grads: Vec<Option<Value>>,
    /// Attentions that are recomputed, by their result.
    again: HashMap<Value, Attention>,
    /// Bytes of scores to recompute at a time.
    chunk: usize,
}

impl Sweep {
    fn new(graph: &Graph, of: Value, wrt: &[Value]) -> Result<Self, IrError> {
        let n = of.0 as usize + 1;
        if wrt.iter().any(|v| v.0 as usize >= n) {
            return Err(nowhere("the result does not depend on the entry"));
        }
        let active = graph.varying(n, wrt);
        if wrt.is_empty() || !active[of.0 as usize] {
            return Err(nowhere("the result does not depend on the entry"));
        }
        Ok(Self { active, grads: vec![None; n], again: HashMap::new(), chunk: 0 })
    }

    fn run(
        &mut self,
        graph: &mut Graph,
        of: Value,
        seed: Value,
        wrt: &[Value],
        missing: &mut dyn FnMut(Value, IrError) -> Result<(), IrError>,
    ) -> Result<(), IrError> {
        let lowest = wrt.iter().map(|v| v.0 as usize).min().unwrap_or(0);
        self.grads[of.0 as usize] = Some(seed);
        for i in (lowest + 1..self.grads.len()).rev() {
            let (true, Some(g)) = (self.active[i], self.grads[i]) else { continue };
            if let Some(attention) = self.again.remove(&Value(i as u32)) {
                for (source, d) in self.attend_again(graph, &attention, g)? {
                    self.add(graph, source, Cotangent::Whole(d))?;
                }
                continue;
            }
            match cotangents(graph, Value(i as u32), g, &self.active) {
                Ok(cotangents) => {
                    for (source, cotangent) in cotangents.into_iter().flatten() {
                        self.add(graph, source, cotangent)?;
                    }
                }
                Err(e) => missing(Value(i as u32), e)?,
            }
        }
        Ok(())
    }

    /// Gradients of an attention's sources.
    fn attend_again(&self, graph: &mut Graph, whole: &Attention, g: Value) -> Result<Vec<(Value, Value)>, IrError> {
        let is_active = |v: Value| self.active[v.0 as usize];
        let (k, q, v) = (is_active(whole.k), is_active(whole.q), is_active(whole.v));
        whole.backward(graph, g, self.chunk, &mut |graph, part, node, g| {
            let mut active = vec![false; graph.nodes().len()];
            for (value, on) in [(part.k, k), (part.q, q), (part.v, v)] {
                active[value.0 as usize] = on;
            }
            for value in &part.chain {
                active[value.0 as usize] = k || q;
            }
            let cotangents = cotangents(graph, node, g, &active)?;
            let whole = |(source, cotangent)| match cotangent {
                Cotangent::Whole(d) => Ok((source, d)),
                Cotangent::Window(_) => Err(nowhere("a window inside an attention")),
            };
            cotangents.into_iter().flatten().map(whole).collect()
        })
    }

    /// Adds a contribution to a value's gradient.
    fn add(&mut self, graph: &mut Graph, source: Value, cotangent: Cotangent) -> Result<(), IrError> {
        let slot = source.0 as usize;
        self.grads[slot] = Some(match (self.grads[slot], cotangent) {
            (None, Cotangent::Whole(d)) => d,
            (Some(sum), Cotangent::Whole(d)) => graph.accumulate(sum, d)?,
            (sum, Cotangent::Window(Window { g, nb, offset })) => {
                // Into zeros, or into the gradients of other windows.
                let base = match sum {
                    Some(sum) => graph.contiguous(sum),
                    None => {
                        let x = graph.contiguous(source);
                        graph.scale(x, 0.0, 0.0)
                    }
                };
                graph.acc(base, g, nb, offset)?
            }
        });
        Ok(())
    }
}

/// The cotangents of the active sources of the node that makes `v`, each in the shape of its source.
///
/// # Errors
/// [`IrError::NoRule`].
fn cotangents(
    graph: &mut Graph,
    v: Value,
    g: Value,
    active: &[bool],
) -> Result<[Option<(Value, Cotangent)>; SOURCES], IrError> {
    let node = graph.node(v).clone();
    let source = |i: usize| node.src.get(i).copied().filter(|s| active[s.0 as usize]);
    let wanted = std::array::from_fn(|i| source(i).is_some());
    let mut i = 0;
    Ok(vjp(graph, &node, v, g, wanted)?.map(|cotangent| {
        let source = source(i);
        i += 1;
        Some(match (source?, cotangent?) {
            // A source that was repeated gets the sum over its repetitions.
            (source, Cotangent::Whole(d)) => (source, Cotangent::Whole(graph.repeat_back(d, graph.ne(source)))),
            window => window,
        })
    }))
}
