//! Watching one `llama_decode` from the entry point on: every node, the inputs' data, and the residual stream there.

use crate::llama::{DType, Node, NodeId, Tap, Weight};
use std::collections::HashMap;

/// What is remembered of a node: enough to lift it after the graph itself is gone.
#[derive(Debug, Clone)]
pub(super) struct RawNode {
    pub id: NodeId,
    pub op: u32,
    pub op_name: String,
    pub name: String,
    pub params: [i32; 16],
    pub ne: [usize; 4],
    pub nb: [usize; 4],
    pub src: Vec<Option<NodeId>>,
    /// The leaf at the root of a chain of views, and the offset into it.
    pub root: Option<NodeId>,
    pub view_offset: usize,
}

/// A leaf of the graph.
#[derive(Debug, Clone)]
pub(super) enum RawLeaf {
    /// A tensor of the model.
    Weight(Weight),
    /// Filled for each batch; its data was copied.
    Input { ne: [usize; 4], dtype: DType, bytes: Vec<u8> },
    /// Anything else: a cache, a control vector.
    Other { name: String },
}

/// The marker that a control vector of layer L carries so that its addition can be told from any other:
/// `1e-30 (i + 1)`, far below the rounding of any residual stream.
pub(crate) fn marker(n_embd: usize) -> Vec<f32> {
    (0..n_embd).map(|i| 1e-30 * (i + 1) as f32).collect()
}

/// The tap: collects the graph and the residual stream at the entry point.
#[derive(Debug)]
pub(super) struct Capture {
    pub nodes: Vec<RawNode>,
    pub index: HashMap<NodeId, usize>,
    pub leaves: HashMap<NodeId, RawLeaf>,
    /// The addition of the control vector.
    pub entry: Option<NodeId>,
    /// Its result: the residual stream there (plus the marker), `[n_rows, n_embd]`.
    pub residual: Vec<f32>,
    marker: Vec<u8>,
}

impl Capture {
    pub fn new(n_embd: usize) -> Self {
        Self {
            nodes: Vec::new(),
            index: HashMap::new(),
            leaves: HashMap::new(),
            entry: None,
            residual: Vec::new(),
            marker: marker(n_embd).iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }

    fn note_leaf(&mut self, leaf: &Node<'_>) {
        if self.leaves.contains_key(&leaf.id()) {
            return;
        }
        let raw = if let Some(weight) = leaf.weight() {
            RawLeaf::Weight(weight)
        } else if leaf.is_input() {
            // Inputs are set before the graph runs and stay untouched until their last use, which is this node or a
            // later one.
            RawLeaf::Input { ne: leaf.ne(), dtype: leaf.dtype(), bytes: leaf.read_bytes() }
        } else {
            RawLeaf::Other { name: leaf.name() }
        };
        self.leaves.insert(leaf.id(), raw);
    }

    fn is_entry(&self, node: &Node<'_>) -> bool {
        if self.entry.is_some() || node.op() != crate::llama::sys::GGML_OP_ADD {
            return false;
        }
        let Some(v) = node.src(1) else { return false };
        v.is_leaf()
            && !v.is_input()
            && v.dtype() == DType::F32
            && v.n_bytes() == self.marker.len()
            && v.read_bytes() == self.marker
    }
}

impl Tap for Capture {
    fn wants(&mut self, node: &Node<'_>) -> bool {
        let mut src = Vec::with_capacity(3);
        let is_entry = self.is_entry(node);
        for i in 0..10 {
            let s = node.src(i);
            if let Some(leaf) = s.filter(Node::is_leaf) {
                // The copy of large inputs is only needed above the entry, but inputs are small.
                self.note_leaf(&leaf);
            }
            src.push(s.map(|s| s.id()));
        }
        while src.last().is_some_and(Option::is_none) {
            src.pop();
        }
        let (mut root, mut offset) = (None, 0);
        if let Some(base) = node.view_src() {
            // ggml flattens chains of views: view_src is the root and view_offset counts from it.
            root = Some(base.id());
            offset = node.view_offset();
        }
        self.index.insert(node.id(), self.nodes.len());
        self.nodes.push(RawNode {
            id: node.id(),
            op: node.op(),
            op_name: node.op_name(),
            name: node.name(),
            params: node.params(),
            ne: node.ne(),
            nb: node.nb(),
            src,
            root,
            view_offset: offset,
        });
        if is_entry {
            self.entry = Some(node.id());
        }
        is_entry
    }

    fn computed(&mut self, node: &Node<'_>) -> bool {
        if Some(node.id()) == self.entry {
            self.residual = node.read_f32();
        }
        true
    }
}
