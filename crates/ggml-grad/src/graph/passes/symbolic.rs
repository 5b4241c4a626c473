//! A lifted graph made for any number of tokens.
//!
//! llama.cpp builds a graph of one form for every batch; only extents differ. Two small batches that differ in the numbers
//! of their tokens and of their outputs show which: an extent that is the same in both is the model's, one that grows as the
//! tokens do is a multiple of these, and so with outputs. Anything else (an extent of another kind, an op whose parameters
//! differ) is refused, and so is an attention that [`super::fuse`] leaves to ggml, whose sums depend on where in the batch a
//! sequence lies.

use super::fuse::fuse;
use crate::graph::emit::Data;
use crate::graph::ir::{Graph, InputId, IrError, Node, Op, Shape, Value};
use crate::graph::lift::{AdapterInput, HookPoint, Lifted};
use crate::llama::Weight;
use std::collections::BTreeSet;

/// A symbolic extent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SymDim {
    /// A number of the model's.
    Fixed(usize),
    /// So many for each token of the batch.
    Tokens(usize),
    /// So many for each token whose logits are asked for.
    Outputs(usize),
}

impl SymDim {
    /// From the extents `x` of two batches of these `sizes`.
    fn of(x: [usize; 2], sizes: [SymDims; 2]) -> Option<Self> {
        let each = |n: [usize; 2]| {
            let k = x[0] / n[0];
            (k > 0 && x == n.map(|n| k * n)).then_some(k)
        };
        if x[0] == x[1] {
            return Some(Self::Fixed(x[0]));
        }
        let tokens = each(sizes.map(|s| s.tokens)).map(Self::Tokens);
        tokens.or_else(|| each(sizes.map(|s| s.outputs)).map(Self::Outputs))
    }
}

/// An input of the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputKind {
    /// Nothing needs it.
    Unused,
    /// The mask of an attention: a row for each token, a column for each token before it and those beside it.
    Mask,
    /// Positions on several axes, which rotations read: those of all tokens on the first, then on the second, and so on.
    Positions {
        /// Number of axes.
        axes: usize,
    },
    /// Anything else.
    Rows([SymDim; 4]),
}

/// A lifted graph whose extents are those of no batch in particular.
#[derive(Debug, Clone)]
pub struct SymbolicGraph {
    /// The graph of the first batch, without nodes that only ggml's kernels need.
    graph: Graph,
    /// For each value.
    extents: Vec<[SymDim; 4]>,
    /// For each input.
    pub inputs: Vec<InputKind>,
    /// Input: the residual stream at the lowest hook point, `[n_embd, n_tokens]`.
    pub residual: InputId,
    /// The steered layers, lowest first.
    pub hook_points: Vec<HookPoint>,
    /// Matrices of adapters.
    pub adapters: Vec<AdapterInput>,
    /// `[n_vocab, n_outputs]`.
    pub logits: Value,
    /// Tensors of the weights.
    pub weights: Vec<Weight>,
}

/// The two extents in which batches differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SymDims {
    /// Tokens of the batch.
    pub tokens: usize,
    /// Tokens whose logits are wanted.
    pub outputs: usize,
}

impl SymDims {
    fn of(self, extent: SymDim) -> usize {
        match extent {
            SymDim::Fixed(n) => n,
            SymDim::Tokens(k) => k * self.tokens,
            SymDim::Outputs(k) => k * self.outputs,
        }
    }

    /// Shape of a mask: as many columns as the attention kernels want.
    pub fn mask(self) -> Shape {
        [self.tokens.next_multiple_of(16), self.tokens, 1, 1]
    }
}

/// A graph with what is needed of it only.
struct Pruned {
    graph: Graph,
    hook_points: Vec<HookPoint>,
    adapters: Vec<AdapterInput>,
    logits: Value,
    masks: BTreeSet<InputId>,
}

impl Pruned {
    fn new(lifted: &Lifted) -> Result<Self, String> {
        let at: Vec<Value> = lifted.entries().collect();
        let (fused, map) = fuse(&lifted.graph, &at).map_err(|e| e.to_string())?;
        let logits = map[lifted.logits.0 as usize];
        // Of an attention, the kernel's sources only.
        let sources = |node: &Node| match node.op {
            Op::Attention { .. } => node.src[..4].to_vec(),
            _ => node.src.clone(),
        };
        let mut needed = vec![false; fused.nodes().len()];
        needed[logits.0 as usize] = true;
        for i in (0..needed.len()).rev().filter(|&i| i <= logits.0 as usize) {
            if needed[i] {
                sources(&fused.nodes()[i]).iter().for_each(|s| needed[s.0 as usize] = true);
            }
        }
        let mut graph = Graph::beside(&fused);
        let mut new = vec![None; needed.len()];
        let mut masks = BTreeSet::new();
        for (i, node) in fused.nodes().iter().enumerate().filter(|(i, _)| needed[*i]) {
            // Lifting pads for attentions that stay ggml's, and for nothing else.
            if let Op::Pad(_) = node.op {
                return Err("an attention that bidpo's kernels do not take".into());
            }
            if let Op::Attention { .. } = node.op {
                let Op::Input(id) = fused.node(node.src[3]).op else {
                    return Err("an attention whose mask is computed".into());
                };
                masks.insert(id);
            }
            let src = sources(node).iter().map(|s| new[s.0 as usize].expect("sources come first")).collect();
            new[i] = Some(graph.copy(node, src));
        }
        let moved = |v: Value| new[map[v.0 as usize].0 as usize].ok_or("an entry that the logits do not depend on");
        let hook_points = lifted
            .hook_points
            .iter()
            .map(|e| Ok(HookPoint { at: moved(e.at)?, ..e.clone() }))
            .collect::<Result<Vec<HookPoint>, &str>>()?;
        let adapters = lifted
            .adapters
            .iter()
            .map(|a| Ok(AdapterInput { at: moved(a.at)?, ..a.clone() }))
            .collect::<Result<Vec<AdapterInput>, &str>>()?;
        Ok(Self { graph, hook_points, adapters, logits: moved(lifted.logits)?, masks })
    }
}

impl SymbolicGraph {
    /// From the graphs of two batches, whose numbers of tokens and of outputs must differ, in different proportions. The error says
    /// why these graphs cannot be made for any batch.
    pub fn infer_dims(a: &Lifted, b: &Lifted, sizes: [SymDims; 2]) -> Result<Self, String> {
        let (one, two) = (Pruned::new(a)?, Pruned::new(b)?);
        if one.graph.nodes().len() != two.graph.nodes().len() || one.masks != two.masks || one.logits != two.logits {
            return Err("llama.cpp builds different graphs for different numbers of tokens".into());
        }
        let mut extents = Vec::new();
        let mut inputs = vec![InputKind::Unused; one.graph.n_inputs()];
        let mut masks = BTreeSet::new();
        for (x, y) in one.graph.nodes().iter().zip(two.graph.nodes()) {
            if (x.op, &x.src, x.elem) != (y.op, &y.src, y.elem) {
                return Err(format!("{} with other parameters for another number of tokens", x.op.name()));
            }
            let mut all = [SymDim::Fixed(1); 4];
            if let Op::Input(id) = x.op
                && one.masks.contains(&id)
            {
                masks.insert(Value(extents.len() as u32));
                inputs[id.0 as usize] = InputKind::Mask;
            } else {
                for (i, slot) in all.iter_mut().enumerate() {
                    *slot = SymDim::of([x.ne[i], y.ne[i]], sizes)
                        .ok_or_else(|| format!("{} of {:?} and {:?}", x.op.name(), x.ne, y.ne))?;
                }
                if let Op::Input(id) = x.op {
                    inputs[id.0 as usize] = InputKind::Rows(all);
                }
            }
            // A mask is read by attention alone.
            let reads =
                |(i, s): (usize, &Value)| masks.contains(s) && !(i == 3 && matches!(x.op, Op::Attention { .. }));
            if x.src.iter().enumerate().any(reads) {
                return Err(format!("a mask that {} reads", x.op.name()));
            }
            extents.push(all);
        }
        for (i, x) in one.graph.nodes().iter().enumerate() {
            let Op::Input(id) = x.op else { continue };
            let v = Value(i as u32);
            let rotates =
                |node: &Node| matches!(node.op, Op::Rope(_)) && node.src[0] != v && node.src.get(2) != Some(&v);
            let mut readers = one.graph.nodes().iter().filter(|node| node.src.contains(&v)).peekable();
            if let SymDim::Tokens(axes @ 2..) = extents[i][0]
                && extents[i][1..].iter().all(|e| *e == SymDim::Fixed(1))
                && readers.peek().is_some()
                && readers.all(rotates)
            {
                inputs[id.0 as usize] = InputKind::Positions { axes };
            }
        }
        let Pruned { graph, hook_points, adapters, logits, .. } = one;
        let weights = a.weights.clone();
        let symbolic = Self { graph, extents, inputs, residual: a.residual, hook_points, adapters, logits, weights };
        // For the two batches, the symbolic graph must give the graphs that it was made from.
        for (size, graph) in sizes.into_iter().zip([&symbolic.graph, &two.graph]) {
            let made = symbolic.at(size).map_err(|e| e.to_string())?;
            let differ = |(x, y): (&Node, &Node)| {
                let is_mask = matches!(x.op, Op::Input(id) if symbolic.inputs[id.0 as usize] == InputKind::Mask);
                !is_mask && (x.ne != y.ne || (0..4).any(|i| x.ne[i] != 1 && x.nb[i] != y.nb[i]))
            };
            if let Some((x, y)) = made.nodes().iter().zip(graph.nodes()).find(|&pair| differ(pair)) {
                return Err(format!("{} with strides {:?}, not {:?}", x.op.name(), x.nb, y.nb));
            }
        }
        Ok(symbolic)
    }

    /// The graph for a batch of these extents.
    ///
    /// # Errors
    /// [`IrError`] where an op cannot be that large.
    pub fn at(&self, size: SymDims) -> Result<Graph, IrError> {
        let mut graph = Graph::beside(&self.graph);
        for (node, extents) in self.graph.nodes().iter().zip(&self.extents) {
            let ne = match node.op {
                Op::Input(id) if self.inputs[id.0 as usize] == InputKind::Mask => size.mask(),
                _ => extents.map(|e| size.of(e)),
            };
            graph.resized(node, ne)?;
        }
        Ok(graph)
    }

    /// Shape of an input for a batch of these extents; None for a mask, or one that nothing needs.
    pub fn shape(&self, input: usize, size: SymDims) -> Option<Shape> {
        match self.inputs[input] {
            InputKind::Rows(extents) => Some(extents.map(|e| size.of(e))),
            InputKind::Positions { axes } => Some([axes * size.tokens, 1, 1, 1]),
            InputKind::Mask | InputKind::Unused => None,
        }
    }

    /// The graph for some batch.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }
}

/// Rows of an input whose extent along one dimension is tokens, taken from the same input of other batches: `rows[i]` is
/// (which of `parts`, which of its tokens).
pub fn gather(parts: &[&Data], ne: &[SymDim], rows: &[(usize, usize)]) -> Option<Data> {
    let axis = ne.iter().position(|e| *e == SymDim::Tokens(1))?;
    let fixed = |e: &SymDim| match e {
        SymDim::Fixed(n) => Some(*n),
        _ => None,
    };
    let inner = ne[..axis].iter().map(fixed).product::<Option<usize>>()?;
    let outer = ne[axis + 1..].iter().map(fixed).product::<Option<usize>>()?;
    fn pick<T: Copy>(parts: &[&[T]], inner: usize, outer: usize, rows: &[(usize, usize)]) -> Option<Vec<T>> {
        let mut out = Vec::with_capacity(inner * outer * rows.len());
        for plane in 0..outer {
            for &(part, row) in rows {
                let data = parts.get(part)?;
                let tokens = data.len() / (inner * outer);
                if row >= tokens {
                    return None;
                }
                let at = (plane * tokens + row) * inner;
                out.extend_from_slice(data.get(at..at + inner)?);
            }
        }
        Some(out)
    }
    match parts.first()? {
        Data::F32(_) => {
            let parts = parts.iter().map(|d| if let Data::F32(v) = d { Some(&v[..]) } else { None });
            pick(&parts.collect::<Option<Vec<_>>>()?, inner, outer, rows).map(Data::F32)
        }
        Data::I32(_) => {
            let parts = parts.iter().map(|d| if let Data::I32(v) = d { Some(&v[..]) } else { None });
            pick(&parts.collect::<Option<Vec<_>>>()?, inner, outer, rows).map(Data::I32)
        }
        Data::Bytes(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::ir::Elem;
    use std::collections::BTreeMap;

    /// Residual stream plus vector, some rows of it, and a scale: with `spoil`, of another factor for each batch.
    fn lifted(size: SymDims, width: usize, spoil: bool) -> Lifted {
        let mut graph = Graph::new();
        let (h, residual) = graph.input([width, size.tokens, 1, 1], Elem::F32);
        let (v, vector) = graph.input([width, 1, 1, 1], Elem::F32);
        let (ids, _) = graph.input([size.outputs, 1, 1, 1], Elem::I32);
        let at = graph.add(h, v).unwrap();
        let folded = graph.reshape(at, [2, size.tokens * width / 2, 1, 1]).unwrap();
        let unfolded = graph.reshape(folded, [width, size.tokens, 1, 1]).unwrap();
        let turned = graph.transposed(unfolded).unwrap();
        let back = graph.transposed(turned).unwrap();
        let rows = graph.get_rows(back, ids).unwrap();
        let logits = graph.scale(rows, if spoil { size.tokens as f32 } else { 2.0 }, 0.0);
        Lifted {
            graph,
            residual,
            hook_points: vec![HookPoint { layer: 1, vector, at }],
            adapters: Vec::new(),
            logits,
            inputs: vec![Data::F32(Vec::new()); 3],
            weights: Vec::new(),
            ops: BTreeMap::new(),
            origin: Vec::new(),
        }
    }

    const SIZES: [SymDims; 2] = [SymDims { tokens: 18, outputs: 12 }, SymDims { tokens: 23, outputs: 16 }];

    #[test]
    fn a_graph_of_any_size_is_the_one_that_would_be_lifted() {
        let symbolic =
            SymbolicGraph::infer_dims(&lifted(SIZES[0], 8, false), &lifted(SIZES[1], 8, false), SIZES).unwrap();
        let size = SymDims { tokens: 41, outputs: 7 };
        let (made, want) = (symbolic.at(size).unwrap(), Pruned::new(&lifted(size, 8, false)).unwrap());
        assert_eq!(made.nodes().len(), want.graph.nodes().len());
        for (a, b) in made.nodes().iter().zip(want.graph.nodes()) {
            assert_eq!((a.op, &a.src, a.ne, a.nb, a.elem), (b.op, &b.src, b.ne, b.nb, b.elem));
        }
        assert_eq!(symbolic.shape(0, size), Some([8, 41, 1, 1]));
        assert_eq!(symbolic.shape(2, size), Some([7, 1, 1, 1]));
        assert_eq!((symbolic.logits, symbolic.hook_points[0].at), (want.logits, want.hook_points[0].at));
    }

    #[test]
    fn what_differs_otherwise_is_refused() {
        let infer = |a: Lifted, b: Lifted| SymbolicGraph::infer_dims(&a, &b, SIZES).map(|_| ());
        let reason = infer(lifted(SIZES[0], 8, true), lifted(SIZES[1], 8, true)).unwrap_err();
        assert!(reason.contains("Scale"), "{reason}");
        // An extent that grows with neither.
        let reason = infer(lifted(SIZES[0], 8, false), lifted(SIZES[1], 10, false)).unwrap_err();
        assert!(reason.contains("Input"), "{reason}");
    }

    #[test]
    fn rows_are_gathered_along_the_tokens() {
        use SymDim::{Fixed, Tokens};
        // [2, tokens, 2] of two parts, of two and of three tokens.
        let (a, b) = (Data::I32((0..8).collect()), Data::I32((100..112).collect()));
        let got = gather(&[&a, &b], &[Fixed(2), Tokens(1), Fixed(2), Fixed(1)], &[(1, 2), (0, 0)]);
        assert_eq!(got, Some(Data::I32(vec![104, 105, 0, 1, 110, 111, 4, 5])));
        // [tokens, 4]: positions on four axes.
        let got = gather(&[&a, &b], &[Tokens(1), Fixed(4)], &[(0, 1), (1, 2)]);
        assert_eq!(got, Some(Data::I32(vec![1, 102, 3, 105, 5, 108, 7, 111])));
        assert_eq!(gather(&[&a], &[Fixed(2), Tokens(1), Fixed(2), Fixed(1)], &[(0, 2)]), None);
        assert_eq!(gather(&[&a], &[Fixed(2), Fixed(4), Fixed(1), Fixed(1)], &[(0, 0)]), None);
    }
}
