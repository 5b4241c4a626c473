//! Lifting: a captured (traced) `llama_decode` is imported into the intermediate representation.
//!
//! Only the subgraph between the lowest hook point (the addition of the control vector) and the logits is lifted. Writes to the
//! KV cache followed by views of it become plain data flow. Reads of the cache are trimmed from llama.cpp's 256-cell
//! steps to 32-cell ones: the cells beyond the batch are masked with -inf, so they add exact zeros to sums whose order
//! does not change at multiples of 32. Reads of recurrent states are reads of zeros: each sequence of a capture is a fresh one.

mod cache;
mod ops;
mod state;

use super::capture::{Capture, RawLeaf, RawNode};
use super::emit::{Data, elem_of};
use super::ir::{Elem, Graph, InputId, IrError, Shape, Value};
use crate::llama::{DType, Model, NodeId, Weight, sys};
use crate::numeric;
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
    /// A pattern that lifting does not know.
    #[error("node {name} ({op}): {why}")]
    SymbolicGraph {
        /// The node.
        name: String,
        /// Its op.
        op: &'static str,
        /// The pattern.
        why: String,
    },
    /// Shapes that do not fit: an error in the lifting.
    #[error("node {name}: {source}")]
    Ir {
        /// The node.
        name: String,
        /// The mismatch.
        source: IrError,
    },
}

/// A layer whose control vector is an input of the lifted graph.
#[derive(Debug, Clone)]
pub struct HookPoint {
    /// The layer.
    pub layer: usize,
    /// Input: the vector, `[n_embd]`.
    pub vector: InputId,
    /// The residual stream with the vector added, `[n_embd, n_rows]`: its gradient is that of the vector, row by row.
    pub at: Value,
}

/// A matrix of a LoRA adapter: an input of the lifted graph.
#[derive(Debug, Clone)]
pub struct AdapterInput {
    /// Its name in the adapter's file: that of the weight, with `.lora_a` or `.lora_b`.
    pub name: String,
    /// The input.
    pub input: InputId,
    /// Its value, `[n_in, rank]` (A) or `[rank, n_out]` (B), for experts with one matrix for each.
    pub at: Value,
}

/// The lifted part of a decode.
#[derive(Debug, Clone)]
pub struct Lifted {
    /// The graph from the lowest hook point to the logits.
    pub graph: Graph,
    /// Input: the residual stream before the lowest vector is added, `[n_embd, n_rows]`.
    pub residual: InputId,
    /// The steered layers, lowest first.
    pub hook_points: Vec<HookPoint>,
    /// `[n_vocab, n_outputs]`.
    pub logits: Value,
    /// Matrices of the adapters on the context that the subgraph multiplies with, in the order of the graph. Their inputs hold
    /// the data that the adapter was loaded with.
    pub adapters: Vec<AdapterInput>,
    /// Data of the inputs; those of `residual` and of the vectors are empty here.
    pub inputs: Vec<Data>,
    /// Tensors of the weights.
    pub weights: Vec<Weight>,
    /// Ops met, by ggml's name, with their counts.
    pub ops: BTreeMap<&'static str, usize>,
    /// ggml's name of the op behind each lifted value.
    pub origin: Vec<(Value, &'static str)>,
}

impl Lifted {
    /// The values that gradients may be wanted of: the residual stream at each hook point, then the matrices of adapters.
    pub fn entries(&self) -> impl Iterator<Item = Value> + '_ {
        self.hook_points.iter().map(|h| h.at).chain(self.adapters.iter().map(|a| a.at))
    }
}

struct Lifter<'a> {
    capture: &'a Capture,
    out: Lifted,
    done: HashMap<NodeId, Value>,
    /// Root of a cache -> index of the node that writes it.
    writes: HashMap<NodeId, usize>,
    /// Index of the lowest hook point among the nodes.
    hook_at: usize,
    n_tokens: usize,
    n_kv: usize,
    /// Inputs of zeros, by shape: the states of fresh sequences.
    zeros: HashMap<Shape, Value>,
}

/// Cells of the KV cache that the lifted graph keeps for `n_tokens`. On a device, all that llama.cpp reads: its kernels
/// depend on the shape, and the time of the masked cells does not count there.
fn kept_cells(n_tokens: usize, on_device: bool) -> usize {
    n_tokens.next_multiple_of(if on_device { 256 } else { 32 })
}

pub(super) fn lift(
    capture: &mut Capture,
    n_tokens: usize,
    layers: &[usize],
    model: &Model,
) -> Result<Lifted, LiftError> {
    let arch = model.architecture();
    let hook_points = std::mem::take(&mut capture.hook_points);
    if capture.split {
        return Err(LiftError::Split { n_tokens });
    }
    if let Some(&layer) = layers.iter().find(|&&l| hook_points.iter().all(|e| e.layer != l)) {
        return Err(LiftError::NoEntry { layer, arch });
    }
    let lowest = hook_points[0].node;
    let last = capture.nodes.last().expect("a hook point implies nodes").id;
    let hook_node = &capture.nodes[capture.index[&lowest]];
    let wrap = |source| LiftError::Ir { name: hook_node.name.clone(), source };
    let mut graph = Graph::new();
    let mut inputs = vec![Data::F32(Vec::new())];
    let (h, residual) = graph.input(hook_node.ne, Elem::F32);
    let mut done = HashMap::new();
    let vectors: Vec<(Value, InputId)> = hook_points
        .iter()
        .map(|e| {
            let (v, id) = graph.input([hook_node.ne[0], 1, 1, 1], Elem::F32);
            inputs.push(Data::F32(Vec::new()));
            if let Some(vector) = e.vector {
                done.insert(vector, v);
            }
            (v, id)
        })
        .collect();
    let at = graph.add(h, vectors[0].0).map_err(wrap)?;
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
            hook_points: Vec::new(),
            logits: at,
            adapters: Vec::new(),
            inputs,
            weights: Vec::new(),
            ops: BTreeMap::new(),
            origin: Vec::new(),
        },
        done,
        writes,
        hook_at: capture.index[&lowest],
        n_tokens,
        n_kv: kept_cells(n_tokens, model.placement().is_offloaded()),
        zeros: HashMap::new(),
    };
    for i in lifter.reachable(last)? {
        let value = lifter.node(&capture.nodes[i])?;
        lifter.out.origin.push((value, capture.nodes[i].op_name));
        lifter.done.insert(capture.nodes[i].id, value);
    }
    lifter.out.logits = lifter.done[&last];
    for (e, (_, vector)) in hook_points.iter().zip(vectors) {
        let Some(&at) = lifter.done.get(&e.node) else {
            return Err(LiftError::NoEntry { layer: e.layer, arch });
        };
        lifter.out.hook_points.push(HookPoint { layer: e.layer, vector, at });
    }
    Ok(lifter.out)
}

impl Lifter<'_> {
    /// The nodes between the lowest hook point and `last`, sources before users: those that are reached from `last`
    /// backwards, through sources and through the cache, without passing the hook point.
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
            if i < self.hook_at && self.is_constant(node) {
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

    /// True for a node below the hook point that computes something. Views, and nodes made of leaves alone, are lifted as
    /// they are.
    fn is_constant(&self, node: &RawNode) -> bool {
        let looks =
            matches!(node.op, sys::GGML_OP_VIEW | sys::GGML_OP_RESHAPE | sys::GGML_OP_PERMUTE | sys::GGML_OP_TRANSPOSE);
        !looks && node.src.iter().flatten().any(|s| self.capture.index.contains_key(s))
    }

    /// The sources that matter: of a cache read, the value that was written; of a view, what it looks into; no states.
    fn sources(&self, node: &RawNode) -> Vec<NodeId> {
        if let Some(write) = self.cache_write(node) {
            return write.src[0].into_iter().collect();
        }
        if self.reads_states(node) {
            return Vec::new();
        }
        node.src.iter().flatten().copied().filter(|&id| !self.is_state(id)).collect()
    }

    fn pattern(&self, node: &RawNode, why: impl Into<String>) -> LiftError {
        LiftError::SymbolicGraph { name: node.name.clone(), op: node.op_name, why: why.into() }
    }

    /// The value of a source: a lifted node, a weight or an input.
    fn value(&mut self, node: &RawNode, i: usize) -> Result<Value, LiftError> {
        let id = node.src.get(i).copied().flatten().ok_or_else(|| self.pattern(node, format!("no source {i}")))?;
        if let Some(&v) = self.done.get(&id) {
            return Ok(v);
        }
        let capture = self.capture;
        // A saved value from below the hook point: an input.
        if let Some((at, bytes)) = capture.index.get(&id).and_then(|at| Some((at, capture.kept.get(at)?))) {
            let below = &capture.nodes[*at];
            let data = data_of(below.dtype, bytes)
                .ok_or_else(|| self.pattern(below, format!("a value of type {}", below.dtype.name())))?;
            let (v, _) = self.out.graph.input(below.ne, self.elem(below)?);
            self.out.inputs.push(data);
            self.done.insert(id, v);
            return Ok(v);
        }
        let v = match capture.leaves.get(&id) {
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
            Some(RawLeaf::Adapter { name, ne, dtype, bytes }) => {
                let data = data_of(*dtype, bytes)
                    .ok_or_else(|| self.pattern(node, format!("adapter matrix {name} of type {}", dtype.name())))?;
                let (at, input) = self.out.graph.input(*ne, elem_of(*dtype));
                self.out.inputs.push(data);
                self.out.adapters.push(AdapterInput { name: name.clone(), input, at });
                at
            }
            Some(RawLeaf::State) => return Err(self.pattern(node, "states that are not read row by row")),
            Some(RawLeaf::Other { name }) => {
                return Err(self.pattern(node, format!("leaf {name:?} is neither weight nor input")));
            }
            None => return Err(self.pattern(node, "a source that was never computed")),
        };
        self.done.insert(id, v);
        Ok(v)
    }
}

/// The data of an input.
fn data_of(dtype: DType, bytes: &[u8]) -> Option<Data> {
    match dtype {
        DType::F32 => Some(Data::F32(numeric::f32_from_le(bytes))),
        DType::I32 => Some(Data::I32(numeric::i32_from_le(bytes))),
        DType::F16 => Some(Data::Bytes(bytes.to_vec())),
        _ => None,
    }
}
