//! Fuses an attention into one op, where bidpo's kernels support it.
//!
//! The ops that llama.cpp computes it with stay in the graph: they are what runs where ggml's own kernels are asked for.

use crate::graph::ir::{Elem, Graph, IrError, Node, Op, Value};
use crate::graph::kernels;
use crate::graph::recompute::{self, Attention};
use std::collections::HashMap;

/// Sources of an attention.
struct Sources {
    /// Queries, keys, values as `[k, heads, rows]`, and the mask.
    src: [Value; 4],
    scale: f32,
}

/// The graph with [`Op::Attention`] in place of the attentions that the kernels take, and where each of its values went.
/// `wanted`: values that gradients are wanted of.
///
/// # Errors
/// None that the graph itself does not have.
pub fn fuse(graph: &Graph, wanted: &[Value]) -> Result<(Graph, Vec<Value>), IrError> {
    let n = graph.nodes().len();
    let found = recompute::find(graph, n, &graph.varying(n, wanted), wanted);
    let fused: HashMap<Value, Sources> = found.iter().filter_map(|a| Some((a.out, sources(graph, a)?))).collect();
    let mut new = Graph::beside(graph);
    let mut map: Vec<Value> = Vec::with_capacity(n);
    for (i, node) in graph.nodes().iter().enumerate() {
        let src: Vec<Value> = node.src.iter().map(|s| map[s.0 as usize]).collect();
        if node.op == Op::Cont && node.elem == Elem::F32 && new.is_contiguous(src[0]) {
            // Transposed there and back.
            map.push(new.reshape(src[0], node.ne)?);
            continue;
        }
        // Strides follow from the new sources: a transposed result may have become a contiguous one.
        let copy = new.resized(&Node { src, ..node.clone() }, node.ne)?;
        let Some(of) = fused.get(&Value(i as u32)) else {
            map.push(copy);
            continue;
        };
        const BY_HEAD: [usize; 4] = [0, 2, 1, 3];
        let by_row = new.permute(copy, BY_HEAD)?;
        let plain = new.cont(by_row, new.ne(by_row))?;
        let one = new.attention(of.src.map(|s| map[s.0 as usize]), of.scale, plain)?;
        map.push(new.permute(one, BY_HEAD)?);
    }
    Ok((new, map))
}

/// None for an attention that the kernels do not take.
fn sources(graph: &Graph, a: &Attention) -> Option<Sources> {
    let [_, softmax] = a.chain[..] else { return None };
    let node = graph.node(softmax);
    let (Op::SoftMax { scale, max_bias: 0.0 }, [_, mask]) = (node.op, &node.src[..]) else { return None };
    let q = behind(graph, a.q, [0, 2, 1])?;
    let k = behind(graph, a.k, [0, 2, 1])?;
    let v = behind(graph, a.v, [2, 0, 1])?;
    let src = [q, k, v, *mask];
    graph.attention_ne(src, scale).ok()?;
    let [nq, nk, nv, nm] = src.map(|v| graph.ne(v));
    kernels::attention::supports(nq[0], nv[0], nk[2], nm[0]).then_some(())?;
    Some(Sources { src, scale })
}

/// The value `[k, heads, rows]` that `top` is made of by transposing, copying, and padding with rows that no query sees;
/// `axes[i]`: which of its dimensions is dimension `i` of `top`.
fn behind(graph: &Graph, top: Value, axes: [usize; 3]) -> Option<Value> {
    let (mut at, mut map) = (top, [0, 1, 2]);
    loop {
        let node = graph.node(at);
        match node.op {
            Op::Permute(to) if to[3] == 3 => {
                for m in &mut map {
                    *m = to.iter().position(|t| t == m)?;
                }
            }
            Op::Cont if graph.ne(node.src[0]) == node.ne => {}
            Op::Pad([_, _, _, 0]) => {
                // Only rows may be more than there are.
                let row = map[axes.iter().position(|&a| a == 2)?];
                let (ne, before) = (node.ne, graph.ne(node.src[0]));
                if (0..3).any(|i| i != row && ne[i] != before[i]) {
                    return None;
                }
            }
            _ => break,
        }
        at = node.src[0];
    }
    (map == axes && graph.node(at).elem == Elem::F32).then_some(at)
}
