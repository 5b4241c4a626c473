//! From a captured `llama_decode` to the intermediate representation.
//!
//! Only what lies between the entry point (the addition of the control vector) and the logits is lifted. Writes to the
//! KV cache followed by views of it become plain data flow. Reads of the cache are trimmed from llama.cpp's 256-cell
//! steps to 32-cell ones: the cells beyond the batch are masked with -inf, so they add exact zeros to sums whose order
//! does not change at multiples of 32.

use super::capture::{Capture, RawLeaf, RawNode};
use super::emit::{Data, elem_of};
use super::ir::{Elem, Glu, Graph, InputId, IrError, Op, Unary, Value, n_elements};
use crate::llama::{DType, NodeId, Weight, sys};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A graph that cannot be lifted.
#[derive(Debug, thiserror::Error)]
pub enum LiftError {
    /// llama.cpp added no control vector at this layer.
    #[error(
        "llama.cpp does not apply control vectors at layer {layer} of this architecture ({arch}): it cannot be steered"
    )]
    NoEntry {
        /// The layer.
        layer: usize,
        /// The architecture's name.
        arch: String,
    },
    /// More tokens than llama.cpp computes in one pass.
    #[error(
        "llama.cpp ran the {n_tokens} tokens of this batch in several compute passes; the engine needs them in one \
         (a smaller batch, or a context made for more tokens)"
    )]
    Split {
        /// Tokens of the batch.
        n_tokens: usize,
    },
    /// Values from below the lowest steered layer are used above it and were not kept.
    #[error("{} values from below the steered layer are used above it and were not kept", numbers.len())]
    Below {
        /// Numbers of their nodes, in the order of the decode.
        numbers: BTreeSet<usize>,
    },
    /// Two decodes of one batch ran two graphs.
    #[error("llama.cpp ran another graph at the second decode of the same batch: its values cannot be matched")]
    Changed,
    /// An op without a rule.
    #[error("op {op} (node {name}) has no rule in bidpo: this model cannot be trained on yet")]
    UnknownOp {
        /// ggml's name of the op.
        op: &'static str,
        /// The node.
        name: String,
    },
    /// A pattern that this version does not understand.
    #[error("node {name} ({op}): {why}")]
    Pattern {
        /// The node.
        name: String,
        /// Its op.
        op: &'static str,
        /// What was met.
        why: String,
    },
    /// Shapes that do not fit: a fault of the lifting.
    #[error("node {name}: {source}")]
    Ir {
        /// The node.
        name: String,
        /// What does not fit.
        source: IrError,
    },
}

/// A layer whose control vector is an input of the lifted graph.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The layer.
    pub layer: usize,
    /// Input: the vector, `[n_embd]`.
    pub vector: InputId,
    /// The residual stream with the vector added, `[n_embd, n_rows]`: its gradient is that of the vector, row by row.
    pub at: Value,
    /// Euclidean norm of each row of the residual stream there.
    pub norms: Vec<f32>,
}

/// The lifted part of a decode.
#[derive(Debug, Clone)]
pub struct Lifted {
    /// The graph from the entry to the logits.
    pub graph: Graph,
    /// Input: the residual stream before the lowest vector is added, `[n_embd, n_rows]`.
    pub residual: InputId,
    /// The steered layers, lowest first.
    pub entries: Vec<Entry>,
    /// `[n_vocab, n_outputs]`.
    pub logits: Value,
    /// Data of the inputs; those of `residual` and of the vectors are empty here.
    pub inputs: Vec<Data>,
    /// Tensors of the weights.
    pub weights: Vec<Weight>,
    /// Ops met, by ggml's name, with their counts.
    pub ops: BTreeMap<&'static str, usize>,
    /// ggml's name of the op behind each lifted value.
    pub origin: Vec<(Value, &'static str)>,
}

struct Lifter<'a> {
    capture: &'a Capture,
    out: Lifted,
    done: HashMap<NodeId, Value>,
    /// Root of a cache -> index of the node that writes it.
    writes: HashMap<NodeId, usize>,
    /// Index of the entry among the nodes.
    entry_at: usize,
    n_tokens: usize,
    n_kv: usize,
}

/// Cells of the KV cache that the lifted graph keeps for `n_tokens`.
fn trimmed(n_tokens: usize) -> usize {
    n_tokens.next_multiple_of(32)
}

pub(super) fn lift(capture: &mut Capture, n_tokens: usize, layers: &[usize], arch: &str) -> Result<Lifted, LiftError> {
    let mut entries = std::mem::take(&mut capture.entries);
    if capture.split {
        return Err(LiftError::Split { n_tokens });
    }
    if let Some(&layer) = layers.iter().find(|&&l| entries.iter().all(|e| e.layer != l)) {
        return Err(LiftError::NoEntry { layer, arch: arch.to_owned() });
    }
    let lowest = entries[0].node;
    let last = capture.nodes.last().expect("an entry implies nodes").id;
    let entry_node = &capture.nodes[capture.index[&lowest]];
    let wrap = |source| LiftError::Ir { name: entry_node.name.clone(), source };
    let mut graph = Graph::new();
    let mut inputs = vec![Data::F32(Vec::new())];
    let (h, residual) = graph.input(entry_node.ne, Elem::F32);
    let mut done = HashMap::new();
    let vectors: Vec<InputId> = entries
        .iter()
        .map(|e| {
            let (v, id) = graph.input([entry_node.ne[0], 1, 1, 1], Elem::F32);
            inputs.push(Data::F32(Vec::new()));
            done.insert(e.vector, v);
            id
        })
        .collect();
    let at = graph.add(h, done[&entries[0].vector]).map_err(wrap)?;
    done.insert(lowest, at);
    let mut writes = HashMap::new();
    for (i, n) in capture.nodes.iter().enumerate() {
        // Into a leaf, that is, not into another node's result.
        if n.op == sys::GGML_OP_SET_ROWS
            && let Some(root) = n.root.filter(|root| !capture.index.contains_key(root))
        {
            writes.insert(root, i);
        }
    }
    let mut lifter = Lifter {
        capture,
        out: Lifted {
            graph,
            residual,
            entries: Vec::new(),
            logits: at,
            inputs,
            weights: Vec::new(),
            ops: BTreeMap::new(),
            origin: Vec::new(),
        },
        done,
        writes,
        entry_at: capture.index[&lowest],
        n_tokens,
        n_kv: trimmed(n_tokens),
    };
    for i in lifter.reachable(last)? {
        let value = lifter.node(&capture.nodes[i])?;
        lifter.out.origin.push((value, capture.nodes[i].op_name));
        lifter.done.insert(capture.nodes[i].id, value);
    }
    lifter.out.logits = lifter.done[&last];
    for (e, vector) in entries.iter_mut().zip(vectors) {
        let Some(&at) = lifter.done.get(&e.node) else {
            return Err(LiftError::NoEntry { layer: e.layer, arch: arch.to_owned() });
        };
        lifter.out.entries.push(Entry { layer: e.layer, vector, at, norms: std::mem::take(&mut e.norms) });
    }
    Ok(lifter.out)
}

impl Lifter<'_> {
    /// The nodes between the entry and `last`, sources before users: what is reached from `last` backwards, through
    /// sources and through the cache, without passing the entry.
    fn reachable(&self, last: NodeId) -> Result<Vec<usize>, LiftError> {
        let mut order = Vec::new();
        let mut missing = BTreeSet::new();
        let mut state: HashMap<NodeId, bool> = HashMap::new(); // false: under way, true: done
        let mut stack = vec![(last, false)];
        while let Some((id, leaving)) = stack.pop() {
            if self.done.contains_key(&id) {
                continue;
            }
            let Some(&i) = self.capture.index.get(&id) else {
                continue; // a leaf
            };
            if leaving {
                if state.insert(id, true) != Some(true) {
                    order.push(i);
                }
                continue;
            }
            if state.contains_key(&id) {
                continue;
            }
            let node = &self.capture.nodes[i];
            if i < self.entry_at && self.is_constant(node) {
                if !self.capture.kept.contains_key(&i) {
                    missing.insert(i);
                }
                continue; // an input
            }
            state.insert(id, false);
            stack.push((id, true));
            for s in self.sources(node) {
                stack.push((s, false));
            }
        }
        if missing.is_empty() { Ok(order) } else { Err(LiftError::Below { numbers: missing }) }
    }

    /// True for a node below the entry that computes something. What only looks at other values, or is made of leaves
    /// alone, is lifted as it is.
    fn is_constant(&self, node: &RawNode) -> bool {
        let looks =
            matches!(node.op, sys::GGML_OP_VIEW | sys::GGML_OP_RESHAPE | sys::GGML_OP_PERMUTE | sys::GGML_OP_TRANSPOSE);
        !looks && node.src.iter().flatten().any(|s| self.capture.index.contains_key(s))
    }

    /// The sources that matter: of a cache read, the value that was written; of a view, what it looks into.
    fn sources(&self, node: &RawNode) -> Vec<NodeId> {
        if let Some(write) = self.cache_write(node) {
            return write.src[0].into_iter().collect();
        }
        node.src.iter().flatten().copied().collect()
    }

    /// The cache write behind a view of a cache.
    fn cache_write(&self, node: &RawNode) -> Option<&RawNode> {
        // A view of a view of a cache is an ordinary view of what the first one gives.
        if node.op != sys::GGML_OP_VIEW || node.src.first().copied().flatten() != node.root {
            return None;
        }
        self.writes.get(&node.root?).map(|&i| &self.capture.nodes[i])
    }

    fn pattern(&self, node: &RawNode, why: impl Into<String>) -> LiftError {
        LiftError::Pattern { name: node.name.clone(), op: node.op_name, why: why.into() }
    }

    /// The value of a source: a lifted node, a weight or an input.
    fn value(&mut self, node: &RawNode, i: usize) -> Result<Value, LiftError> {
        let id = node.src.get(i).copied().flatten().ok_or_else(|| self.pattern(node, format!("no source {i}")))?;
        if let Some(&v) = self.done.get(&id) {
            return Ok(v);
        }
        let kept = self.capture.index.get(&id).and_then(|i| Some((&self.capture.nodes[*i], self.capture.kept.get(i)?)));
        let v = match self.capture.leaves.get(&id) {
            _ if kept.is_some() => {
                let (below, bytes) = kept.expect("just seen");
                let data = data_of(below.dtype, bytes)
                    .ok_or_else(|| self.pattern(below, format!("a value of type {}", below.dtype.name())))?;
                let (v, _) = self.out.graph.input(below.ne, self.elem(below)?);
                self.out.inputs.push(data);
                v
            }
            Some(RawLeaf::Weight(w)) => {
                let (v, _) = self.out.graph.weight(w.node().ne(), elem_of(w.node().dtype()));
                self.out.weights.push(w.clone());
                v
            }
            Some(RawLeaf::Input { ne, dtype, bytes }) => {
                let data = data_of(*dtype, bytes)
                    .ok_or_else(|| self.pattern(node, format!("an input of type {}", dtype.name())))?;
                let elem = elem_of(*dtype);
                let (v, _) = self.out.graph.input(*ne, elem);
                self.out.inputs.push(data);
                v
            }
            Some(RawLeaf::Other { name }) => {
                return Err(self.pattern(node, format!("leaf {name:?} is neither weight nor input")));
            }
            None => return Err(self.pattern(node, "a source that was never computed")),
        };
        self.done.insert(id, v);
        Ok(v)
    }

    fn node(&mut self, node: &RawNode) -> Result<Value, LiftError> {
        *self.out.ops.entry(node.op_name).or_default() += 1;
        if let Some(write) = self.cache_write(node) {
            let write = write.clone();
            return self.cache_read(node, &write);
        }
        let wrap = |source| LiftError::Ir { name: node.name.clone(), source };
        let f = |i: usize| f32::from_bits(node.params[i] as u32);
        let has = |i: usize| node.src.get(i).copied().flatten().is_some();
        let x = self.value(node, 0)?;
        let arg = |lifter: &mut Self, i: usize| lifter.value(node, i);
        let v = match node.op {
            sys::GGML_OP_ADD => {
                let y = arg(self, 1)?;
                self.out.graph.add(x, y).map_err(wrap)?
            }
            sys::GGML_OP_SUB => {
                let y = arg(self, 1)?;
                self.out.graph.sub(x, y).map_err(wrap)?
            }
            sys::GGML_OP_MUL => {
                let y = arg(self, 1)?;
                self.out.graph.mul(x, y).map_err(wrap)?
            }
            sys::GGML_OP_DIV => {
                let y = arg(self, 1)?;
                self.out.graph.div(x, y).map_err(wrap)?
            }
            sys::GGML_OP_ADD_ID => {
                let (y, ids) = (arg(self, 1)?, arg(self, 2)?);
                self.out.graph.add_id(x, y, ids).map_err(wrap)?
            }
            sys::GGML_OP_SCALE => self.out.graph.scale(x, f(0), f(1)),
            sys::GGML_OP_CLAMP => self.out.graph.same(Op::Clamp { min: f(0), max: f(1) }, &[x]),
            sys::GGML_OP_SQR => self.out.graph.same(Op::Sqr, &[x]),
            sys::GGML_OP_SQRT => self.out.graph.same(Op::Sqrt, &[x]),
            sys::GGML_OP_SUM_ROWS => self.out.graph.sum_rows(x),
            sys::GGML_OP_MEAN => self.out.graph.mean(x),
            sys::GGML_OP_REPEAT => self.out.graph.repeat(x, node.ne).map_err(wrap)?,
            sys::GGML_OP_MUL_MAT => {
                let y = arg(self, 1)?;
                self.out.graph.mul_mat_with(x, y, node.params).map_err(wrap)?
            }
            sys::GGML_OP_MUL_MAT_ID => {
                let (y, ids) = (arg(self, 1)?, arg(self, 2)?);
                self.out.graph.mul_mat_id(x, y, ids, node.params).map_err(wrap)?
            }
            sys::GGML_OP_NORM => self.out.graph.same(Op::Norm { eps: f(0) }, &[x]),
            sys::GGML_OP_RMS_NORM => self.out.graph.same(Op::RmsNorm { eps: f(0) }, &[x]),
            sys::GGML_OP_L2_NORM => self.out.graph.same(Op::L2Norm { eps: f(0) }, &[x]),
            sys::GGML_OP_ROPE => {
                let mut src = vec![x, arg(self, 1)?];
                if has(2) {
                    src.push(arg(self, 2)?);
                }
                self.out.graph.same(Op::Rope(node.params), &src)
            }
            sys::GGML_OP_SOFT_MAX => {
                let mut src = vec![x];
                if has(1) {
                    src.push(self.mask(node, self.out.graph.ne(x)[0])?);
                }
                if has(2) {
                    if !has(1) {
                        return Err(self.pattern(node, "attention sinks without a mask"));
                    }
                    src.push(arg(self, 2)?);
                }
                self.out.graph.same(Op::SoftMax { scale: f(0), max_bias: f(1) }, &src)
            }
            sys::GGML_OP_GLU => self.glu(node, x, has(1))?,
            sys::GGML_OP_UNARY => {
                let kind = match sys::ggml_unary_op::try_from(node.params[0]) {
                    Ok(sys::GGML_UNARY_OP_TANH) => Unary::Tanh,
                    Ok(sys::GGML_UNARY_OP_SILU) => Unary::Silu,
                    Ok(sys::GGML_UNARY_OP_GELU) => Unary::Gelu,
                    Ok(sys::GGML_UNARY_OP_GELU_ERF) => Unary::GeluErf,
                    Ok(sys::GGML_UNARY_OP_GELU_QUICK) => Unary::GeluQuick,
                    Ok(sys::GGML_UNARY_OP_RELU) => Unary::Relu,
                    Ok(sys::GGML_UNARY_OP_SIGMOID) => Unary::Sigmoid,
                    Ok(sys::GGML_UNARY_OP_EXP) => Unary::Exp,
                    Ok(sys::GGML_UNARY_OP_SOFTPLUS) => Unary::Softplus,
                    Ok(sys::GGML_UNARY_OP_NEG) => Unary::Neg,
                    Ok(sys::GGML_UNARY_OP_ABS) => Unary::Abs,
                    Ok(sys::GGML_UNARY_OP_SGN) => Unary::Sgn,
                    Ok(sys::GGML_UNARY_OP_STEP) => Unary::Step,
                    Ok(sys::GGML_UNARY_OP_XIELU) => Unary::Xielu { n: f(1), p: f(2), beta: f(3), eps: f(4) },
                    _ => return self.other(node),
                };
                self.out.graph.same(Op::Unary(kind), &[x])
            }
            // A copy that keeps the shape follows a source whose cells were trimmed.
            sys::GGML_OP_CONT | sys::GGML_OP_DUP => {
                let ne = if self.raw_shape(node, 0) == Some(node.ne) { self.out.graph.ne(x) } else { node.ne };
                self.out.graph.cont(x, ne).map_err(wrap)?
            }
            sys::GGML_OP_CPY if node.root.is_none() => {
                let elem = self.elem(node)?;
                self.out.graph.cast(x, elem)
            }
            sys::GGML_OP_RESHAPE => self.out.graph.reshape(x, node.ne).map_err(wrap)?,
            sys::GGML_OP_VIEW => self.view(node, x)?,
            sys::GGML_OP_PERMUTE => {
                let axes = [0, 1, 2, 3].map(|i| node.params[i] as usize);
                self.out.graph.permute(x, axes).map_err(wrap)?
            }
            sys::GGML_OP_TRANSPOSE => self.out.graph.permute(x, [1, 0, 2, 3]).map_err(wrap)?,
            sys::GGML_OP_CONCAT => {
                let y = arg(self, 1)?;
                self.out.graph.concat(x, y, node.params[0] as usize).map_err(wrap)?
            }
            // Only what is appended: pairs of numbers before and after each dimension, and whether it wraps around.
            sys::GGML_OP_PAD if [0, 2, 4, 6, 8].iter().all(|&i| node.params[i] == 0) => {
                self.out.graph.pad(x, [1, 3, 5, 7].map(|i| node.params[i] as usize))
            }
            sys::GGML_OP_GET_ROWS => {
                let ids = arg(self, 1)?;
                self.out.graph.get_rows(x, ids).map_err(wrap)?
            }
            // ggml's order of sources: the rows, their numbers, what they go into.
            sys::GGML_OP_SET_ROWS => {
                let (ids, into) = (arg(self, 1)?, arg(self, 2)?);
                self.out.graph.set_rows(into, x, ids).map_err(wrap)?
            }
            _ => return self.other(node),
        };
        Ok(v)
    }

    /// An op that the IR has no rule for, repeated as it is. Whether a rule is needed shows in the differentiation.
    fn other(&mut self, node: &RawNode) -> Result<Value, LiftError> {
        let src = (0..node.src.len()).map(|i| self.value(node, i)).collect::<Result<Vec<Value>, LiftError>>()?;
        let same_size = |i: usize| self.raw_shape(node, i).is_none_or(|raw| raw == self.out.graph.ne(src[i]));
        // Ops that write into one of their sources need more than a copy of their parameters.
        if node.root.is_some() && node.op != sys::GGML_OP_FILL || !(0..src.len()).all(same_size) || src.len() > 3 {
            return Err(self.unknown(node));
        }
        let elem = self.elem(node)?;
        Ok(self.out.graph.other((node.op, node.op_name), node.params, &src, node.ne, elem))
    }

    /// The element type of a node's result.
    fn elem(&self, node: &RawNode) -> Result<Elem, LiftError> {
        match node.dtype {
            DType::F32 => Ok(Elem::F32),
            DType::F16 => Ok(Elem::F16),
            DType::I32 => Ok(Elem::I32),
            other => Err(self.pattern(node, format!("a result of type {}", other.name()))),
        }
    }

    /// The shape that source `i` has in llama.cpp's graph, if a node makes it.
    fn raw_shape(&self, node: &RawNode, i: usize) -> Option<[usize; 4]> {
        let id = node.src.get(i).copied().flatten()?;
        self.capture.index.get(&id).map(|&at| self.capture.nodes[at].ne)
    }

    fn unknown(&self, node: &RawNode) -> LiftError {
        LiftError::UnknownOp { op: node.op_name, name: node.name.clone() }
    }

    fn glu(&mut self, node: &RawNode, x: Value, split: bool) -> Result<Value, LiftError> {
        let f = |i: usize| f32::from_bits(node.params[i] as u32);
        let kind = match sys::ggml_glu_op::try_from(node.params[0]) {
            Ok(sys::GGML_GLU_OP_REGLU) => Glu::Reglu,
            Ok(sys::GGML_GLU_OP_SWIGLU) => Glu::Swiglu,
            Ok(sys::GGML_GLU_OP_GEGLU) => Glu::Geglu,
            Ok(sys::GGML_GLU_OP_GEGLU_ERF) => Glu::GegluErf,
            Ok(sys::GGML_GLU_OP_GEGLU_QUICK) => Glu::GegluQuick,
            Ok(sys::GGML_GLU_OP_SWIGLU_OAI) => Glu::SwigluOai { alpha: f(2), limit: f(3) },
            Ok(sys::GGML_GLU_OP_SWIGLU_CLAMP) => Glu::SwigluClamp { limit: f(3) },
            _ => return Err(self.unknown(node)),
        };
        let wrap = |source| LiftError::Ir { name: node.name.clone(), source };
        let (gate, up) = if split {
            (x, self.value(node, 1)?)
        } else {
            // One tensor holds both halves of each row; `swapped` puts the gate second.
            let n = self.out.graph.node(x).clone();
            let half = [n.ne[0] / 2, n.ne[1], n.ne[2], n.ne[3]];
            let first = self.out.graph.view(x, half, n.nb, 0).map_err(wrap)?;
            let second = self.out.graph.view(x, half, n.nb, half[0] * 4).map_err(wrap)?;
            if node.params[1] != 0 { (second, first) } else { (first, second) }
        };
        self.out.graph.glu(kind, gate, up).map_err(wrap)
    }

    fn view(&mut self, node: &RawNode, x: Value) -> Result<Value, LiftError> {
        let wrap = |source| LiftError::Ir { name: node.name.clone(), source };
        // ggml counts the offset from the root of a chain of views; here it counts from the source.
        let source_offset = node.src[0]
            .and_then(|s| self.capture.index.get(&s))
            .map(|&i| &self.capture.nodes[i])
            .filter(|s| s.root.is_some())
            .map_or(0, |s| s.view_offset);
        let offset = node.view_offset.checked_sub(source_offset);
        let offset = offset.ok_or_else(|| self.pattern(node, "a view that starts before its source"))?;
        // Of a source whose cells were trimmed, a window over all cells becomes one over all that are left.
        let mut ne = node.ne;
        if let Some(&at) = node.src[0].and_then(|s| self.capture.index.get(&s)) {
            let (raw, lifted) = (&self.capture.nodes[at], self.out.graph.ne(x));
            for j in (0..4).filter(|&j| raw.ne[j] != lifted[j]) {
                let all = (0..4).find(|&i| ne[i] == raw.ne[j] && node.nb[i] == raw.nb[j]);
                let all = all.ok_or_else(|| self.pattern(node, "a window over part of the cells of a cache"))?;
                ne[all] = lifted[j];
            }
        }
        let g = &mut self.out.graph;
        let dense = super::ir::contiguous(ne);
        let is_dense = (0..4).all(|i| ne[i] == 1 || node.nb[i] == dense[i]);
        if offset == 0 && is_dense && g.is_contiguous(x) && n_elements(ne) == n_elements(g.ne(x)) {
            return g.reshape(x, ne).map_err(wrap);
        }
        g.view(x, ne, node.nb, offset).map_err(wrap)
    }

    /// The mask of an attention, its columns trimmed to `n_kv`.
    fn mask(&mut self, node: &RawNode, n_kv: usize) -> Result<Value, LiftError> {
        let id = node.src[1].ok_or_else(|| self.pattern(node, "no mask"))?;
        let Some(RawLeaf::Input { ne, dtype, bytes }) = self.capture.leaves.get(&id) else {
            return Err(self.pattern(node, "a mask that is no input"));
        };
        if *dtype != DType::F32 {
            return Err(self.pattern(node, format!("a mask of type {}", dtype.name())));
        }
        if ne[0] == n_kv {
            return self.value(node, 1);
        }
        if let Some(&v) = self.done.get(&id) {
            return Ok(v);
        }
        if ne[0] < n_kv {
            return Err(self.pattern(node, format!("a mask of {} columns for {n_kv} cells", ne[0])));
        }
        let full = floats(bytes);
        let mut data = Vec::with_capacity(full.len() / ne[0] * n_kv);
        for row in full.chunks_exact(ne[0]) {
            if row[n_kv..].iter().any(|&m| m != f32::NEG_INFINITY) {
                return Err(self.pattern(node, "a mask that lets tokens see beyond the batch"));
            }
            data.extend_from_slice(&row[..n_kv]);
        }
        let (v, _) = self.out.graph.input([n_kv, ne[1], ne[2], ne[3]], Elem::F32);
        self.out.inputs.push(Data::F32(data));
        self.done.insert(id, v);
        Ok(v)
    }

    /// A view of a cache, as the value that was written to it.
    fn cache_read(&mut self, read: &RawNode, write: &RawNode) -> Result<Value, LiftError> {
        let wrap = |source| LiftError::Ir { name: read.name.clone(), source };
        let t = self.n_tokens;
        let written = self.value(write, 0)?;
        let ids = match write.src.get(1).copied().flatten().and_then(|id| self.capture.leaves.get(&id)) {
            Some(RawLeaf::Input { dtype: DType::I64, bytes, .. }) => bytes
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes(b.try_into().expect("chunks of 8")))
                .collect::<Vec<_>>(),
            _ => return Err(self.pattern(write, "row numbers of a cache write that are no 64-bit input")),
        };
        if read.ne[3] != 1 {
            return Err(self.pattern(read, "a cache split in streams"));
        }
        if read.view_offset != 0 {
            return Err(self.pattern(read, "a cache read that does not start at its first cell"));
        }
        let transposed = write.ne[0] == 1 && read.nb[1] > read.nb[2];
        let (head, n_head, cells) =
            if transposed { (read.ne[2], read.ne[1], read.ne[0]) } else { (read.ne[0], read.ne[1], read.ne[2]) };
        // Where layers differ in width, all write rows of the widest one, padded.
        let width = if transposed { ids.len() / t } else { head * n_head };
        // Tokens must sit in cells 0..t in order: then the written value is the cache's content.
        let in_order = if transposed {
            let cell_stride = read.nb[2] / read.nb[0]; // elements from one channel of a head to the next
            ids.len() == width * t
                && width >= head * n_head
                && ids.iter().enumerate().all(|(i, &id)| id as usize == (i % width) * cell_stride + i / width)
        } else {
            ids.len() == t && ids.iter().enumerate().all(|(i, &id)| id as usize == i)
        };
        if !in_order {
            return Err(self.pattern(write, "tokens of the batch are not in the first cells of the cache, in order"));
        }
        if cells < self.n_kv {
            return Err(self.pattern(read, format!("a cache read of {cells} cells for {} tokens", t)));
        }
        let extra = self.n_kv - t;
        let g = &mut self.out.graph;
        // Fused projections are written to the cache as windows into their rows.
        let written = g.contiguous(written);
        let mut rows = g.reshape(written, [width, t, 1, 1]).map_err(wrap)?;
        if width > head * n_head {
            let nb = g.node(rows).nb;
            rows = g.view(rows, [head * n_head, t, 1, 1], nb, 0).map_err(wrap)?;
            rows = g.contiguous(rows);
        }
        let rows = g.reshape(rows, [head, n_head, t, 1]).map_err(wrap)?;
        let padded = g.pad(rows, [0, 0, extra, 0]); // [head, n_head, n_kv]
        if !transposed {
            return Ok(padded);
        }
        let p = g.permute(padded, [2, 1, 0, 3]).map_err(wrap)?; // [n_kv, n_head, head]
        let ne = g.ne(p);
        g.cont(p, ne).map_err(wrap)
    }
}

/// The data of an input.
fn data_of(dtype: DType, bytes: &[u8]) -> Option<Data> {
    match dtype {
        DType::F32 => Some(Data::F32(floats(bytes))),
        DType::I32 => Some(Data::I32(integers(bytes))),
        DType::F16 => Some(Data::Bytes(bytes.to_vec())),
        _ => None,
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn integers(bytes: &[u8]) -> Vec<i32> {
    bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}
