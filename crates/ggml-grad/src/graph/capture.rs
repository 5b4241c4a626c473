//! Watching one `llama_decode`: every node, the inputs' data, and the residual stream at the lowest hook point. Nodes
//! that depend on it are recorded but not computed: the lifted graph computes them.

use crate::llama::{DType, EvalCallback, Node, NodeId, Weight, sys};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// A recorded node: enough to lift it after the graph itself is gone.
#[derive(Debug, Clone)]
pub(super) struct RawNode {
    pub id: NodeId,
    pub op: u32,
    pub op_name: &'static str,
    pub name: String,
    pub params: [i32; 16],
    pub dtype: DType,
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
    /// A matrix of a LoRA adapter that lies on the context.
    Adapter { name: String, ne: [usize; 4], dtype: DType, bytes: Vec<u8> },
    /// States of recurrent layers, one for each sequence. Those of the sequences of a capture are zero when it begins.
    State,
    /// Anything else: a cache, a control vector.
    Other { name: String },
}

/// The marker that a control vector of a layer carries so that its addition can be told from any other, those of other
/// layers included: `1e-30 (layer n_embd + i + 1)`, far below the rounding of any residual stream.
pub fn marker(n_embd: usize, layer: usize) -> Vec<f32> {
    (0..n_embd).map(|i| 1e-30 * (layer * n_embd + i + 1) as f32).collect()
}

/// A hook point in the decode: the addition of a control vector, or the look-up of the tokens' embeddings.
#[derive(Debug, Clone)]
pub(super) struct RawHookPoint {
    /// The layer whose marker was found; 0 for the embeddings.
    pub layer: usize,
    /// The addition or the look-up.
    pub node: NodeId,
    /// The leaf that holds the vector; None for the embeddings.
    pub vector: Option<NodeId>,
}

/// The name of the matrix that the tokens' embeddings are rows of.
const EMBEDDINGS: &str = "token_embd.weight";

/// True for the names of llama.cpp's memory of recurrent states: of convolutions, and of scans.
fn is_state(name: &str) -> bool {
    let name = copied_name(name).unwrap_or(name);
    // Kimi Linear's graph gives the memory of its convolutions a name of its own.
    ["cache_r_l", "cache_s_l", "conv_states_all-"].iter().any(|start| name.starts_with(start))
}

/// The name of a matrix of an adapter as it stands in the adapter's file, from the name that llama.cpp gives to it or to a copy of
/// it; `None` for any other tensor.
fn adapter_matrix(name: &str) -> Option<&str> {
    let name = copied_name(name).unwrap_or(name);
    (name.ends_with(".weight.lora_a") || name.ends_with(".weight.lora_b")).then_some(name)
}

/// Part of the graph that is computed while it is traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CaptureMode {
    /// Nodes that do not depend on the lowest hook point's result.
    Below,
    /// Nothing: only the structure and the inputs are wanted.
    Nothing,
}

/// The tap: collects the graph and the residual stream at the lowest hook point.
#[derive(Debug)]
pub(super) struct Capture {
    pub nodes: Vec<RawNode>,
    pub index: HashMap<NodeId, usize>,
    pub leaves: HashMap<NodeId, RawLeaf>,
    /// The additions of the control vectors, in the order of the graph.
    pub hook_points: Vec<RawHookPoint>,
    /// The residual stream at the first one, before the addition, `[n_rows, n_embd]`; empty if it was not computed.
    pub residual: Vec<f32>,
    /// True if a layer's vector was added twice: llama.cpp ran the batch in several compute passes.
    pub split: bool,
    /// Numbers of the nodes, in the order of the decode, whose results are kept.
    keep: BTreeSet<usize>,
    /// Their results.
    pub kept: BTreeMap<usize, Vec<u8>>,
    /// Layer and bytes of each marker.
    markers: Vec<(usize, Vec<u8>)>,
    /// Bytes of a layer's control vector.
    vector_bytes: usize,
    /// The embeddings are the lowest hook point (layer 0): llama.cpp adds no control vector there.
    embeddings: bool,
    mode: CaptureMode,
    /// Nodes that depend on the first hook point's result, and caches that such a node writes to.
    above: HashSet<NodeId>,
    /// For each copy that the scheduler made of a node's result for another device: the node.
    copies: HashMap<NodeId, NodeId>,
    /// The node that was asked about last is not to be computed.
    skip: bool,
}

impl Capture {
    pub(super) fn new(n_embd: usize, layers: &[usize], keep: BTreeSet<usize>, mode: CaptureMode) -> Self {
        Self {
            nodes: Vec::new(),
            index: HashMap::new(),
            leaves: HashMap::new(),
            hook_points: Vec::new(),
            residual: Vec::new(),
            split: false,
            keep,
            kept: BTreeMap::new(),
            embeddings: layers.contains(&0),
            vector_bytes: n_embd * size_of::<f32>(),
            markers: layers
                .iter()
                .filter(|&&l| l > 0)
                .map(|&l| (l, marker(n_embd, l).iter().flat_map(|x| x.to_le_bytes()).collect()))
                .collect(),
            mode,
            above: HashSet::new(),
            copies: HashMap::new(),
            skip: false,
        }
    }

    /// Notes whether the node depends on the first hook point's result: through a source, or by reading memory (a cache, a
    /// tensor changed in place) that such a node writes to.
    fn depends(&mut self, node: &Node<'_>) -> bool {
        let root = node.view_src().map(|base| base.id());
        let sources = (0..10).filter_map(|i| node.src(i)).map(|s| self.original(s.id()));
        let found = sources.chain(root).any(|id| self.above.contains(&id));
        if found {
            self.above.insert(node.id());
            // A view of something below has no source above; so this is a write into it.
            self.above.extend(root);
        }
        found
    }

    /// The node whose result a tensor holds a copy of; the tensor itself where it is no copy.
    fn original(&self, id: NodeId) -> NodeId {
        self.copies.get(&id).copied().unwrap_or(id)
    }

    /// Records the source of a copy. In a graph on several devices ggml's scheduler replaces a source on another device by a
    /// copy, `DEVICE#NAME#NUMBER`; only the name leads back to the source. Names repeat, but a copy is of the tensor that
    /// was computed last under its name, shape and type: the same tensor is not copied twice to one device.
    fn note_copy(&mut self, leaf: &Node<'_>) {
        if self.copies.contains_key(&leaf.id()) {
            return;
        }
        let name = leaf.name();
        let Some(of) = copied_name(&name) else { return };
        let same = |n: &&RawNode| n.name == of && n.ne == leaf.ne() && n.dtype == leaf.dtype();
        if let Some(node) = self.nodes.iter().rev().find(same) {
            self.copies.insert(leaf.id(), node.id);
        }
    }

    fn note_leaf(&mut self, leaf: &Node<'_>) {
        self.note_copy(leaf);
        if self.leaves.contains_key(&leaf.id()) || self.copies.contains_key(&leaf.id()) {
            return;
        }
        let raw = if is_state(&leaf.name()) {
            RawLeaf::State
        } else if let Some(name) = adapter_matrix(&leaf.name()) {
            RawLeaf::Adapter { name: name.to_owned(), ne: leaf.ne(), dtype: leaf.dtype(), bytes: leaf.read_bytes() }
        } else if let Some(weight) = leaf.weight() {
            RawLeaf::Weight(weight)
        } else if leaf.is_input() || leaf.n_bytes() == self.vector_bytes || copied_name(&leaf.name()).is_some() {
            // A leaf of the size of a control vector that is not marked: the zeros of a layer between two steered ones, or a
            // vector that the context carries at every capture. A copy that is of no node is of an input.
            // Inputs are set before the graph runs and stay untouched until their last use, which is this node or a
            // later one.
            RawLeaf::Input { ne: leaf.ne(), dtype: leaf.dtype(), bytes: leaf.read_bytes() }
        } else {
            RawLeaf::Other { name: leaf.name() }
        };
        self.leaves.insert(leaf.id(), raw);
    }

    /// The layer whose marker this node adds, and the leaf that holds it; layer 0 for the look-up of the embeddings.
    fn hook_point(&self, node: &Node<'_>) -> Option<(usize, Option<NodeId>)> {
        if self.embeddings && self.hook_points.is_empty() && node.op() == sys::GGML_OP_GET_ROWS {
            let looks_up = node.is_computed() && node.src(0).is_some_and(|s| s.name() == EMBEDDINGS);
            return looks_up.then_some((0, None));
        }
        if node.op() != sys::GGML_OP_ADD {
            return None;
        }
        let v = node.src(1)?;
        let own = !v.is_input() || copied_name(&v.name()).is_some();
        if !v.is_leaf() || !own || v.is_weight() || v.dtype() != DType::F32 || v.n_bytes() != self.vector_bytes {
            return None;
        }
        let bytes = v.read_bytes();
        let (layer, _) = self.markers.iter().find(|(_, marker)| *marker == bytes)?;
        Some((*layer, Some(v.id())))
    }
}

/// The rows of an F32 tensor, whatever its strides, `[n_rows, ne[0]]`.
fn rows_of(tensor: &Node<'_>) -> Vec<f32> {
    let (ne, nb) = (tensor.ne(), tensor.nb());
    let bytes = tensor.read_bytes();
    let mut rows = Vec::with_capacity(ne.iter().product());
    for (i3, i2, i1) in (0..ne[3]).flat_map(|i3| (0..ne[2]).flat_map(move |i2| (0..ne[1]).map(move |i1| (i3, i2, i1))))
    {
        let row = i1 * nb[1] + i2 * nb[2] + i3 * nb[3];
        rows.extend((0..ne[0]).map(|i0| {
            let at = row + i0 * nb[0];
            f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        }));
    }
    rows
}

/// The name of what a copy of ggml's scheduler is a copy of.
fn copied_name(name: &str) -> Option<&str> {
    let (_, rest) = name.split_once('#')?;
    let (of, number) = rest.rsplit_once('#')?;
    (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())).then_some(of)
}

impl EvalCallback for Capture {
    fn wants(&mut self, node: &Node<'_>) -> bool {
        let mut src = Vec::with_capacity(3);
        let hook_point = self.hook_point(node);
        for i in 0..10 {
            let s = node.src(i);
            if let Some(leaf) = s.filter(Node::is_leaf) {
                // The copy of large inputs is only needed above the hook point, but inputs are small.
                self.note_leaf(&leaf);
            }
            src.push(s.map(|s| self.original(s.id())));
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
        let number = self.nodes.len();
        self.index.insert(node.id(), number);
        self.nodes.push(RawNode {
            id: node.id(),
            op: node.op(),
            op_name: node.op_name(),
            name: node.name(),
            params: node.params(),
            dtype: node.dtype(),
            ne: node.ne(),
            nb: node.nb(),
            src,
            root,
            view_offset: offset,
        });
        let first = hook_point.is_some() && self.hook_points.is_empty();
        let above = self.depends(node);
        if first {
            self.above.insert(node.id());
            self.above.extend(root);
        }
        // The addition itself is not computed: ggml may write its result over the residual stream, which is wanted as it is.
        // The embeddings are wanted as they are looked up.
        let added = first && hook_point.is_some_and(|(_, vector)| vector.is_some());
        self.skip = self.mode == CaptureMode::Nothing || above || added;
        if let Some((layer, vector)) = hook_point {
            self.split |= self.hook_points.iter().any(|e| e.layer == layer);
            self.hook_points.push(RawHookPoint { layer, node: node.id(), vector });
        }
        match self.mode {
            CaptureMode::Nothing => false,
            CaptureMode::Below => first || !self.skip && self.keep.contains(&number),
        }
    }

    fn skips(&mut self, _node: &Node<'_>) -> bool {
        self.skip
    }

    fn computed(&mut self, node: &Node<'_>) -> bool {
        if let Some(&number) = self.index.get(&node.id()).filter(|number| self.keep.contains(number)) {
            self.kept.insert(number, node.read_bytes());
        }
        if let Some(hook) = self.hook_points.first().filter(|e| e.node == node.id()) {
            let stream = if hook.vector.is_some() { node.src(0) } else { Some(*node) };
            self.residual = stream.map(|stream| rows_of(&stream)).unwrap_or_default();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::{adapter_matrix, copied_name, is_state};

    #[test]
    fn matrices_of_adapters_are_known_by_their_names() {
        for name in ["blk.3.attn_q.weight.lora_a", "blk.0.ffn_down_exps.weight.lora_b"] {
            assert_eq!(adapter_matrix(name), Some(name));
            assert_eq!(adapter_matrix(&format!("RPC0[127.0.0.1:50052]#{name}#1")), Some(name));
        }
        for name in ["blk.3.attn_q.weight", "lora_a", "blk.3.attn_q.lora_a", "blk.3.attn_q.weight.lora_c"] {
            assert_eq!(adapter_matrix(name), None, "{name}");
        }
    }

    #[test]
    fn states_are_known_by_their_names() {
        assert!(is_state("cache_r_l0") && is_state("cache_s_l31") && is_state("CUDA0#cache_s_l3#0"));
        assert!(is_state("conv_states_all-3"));
        for name in ["cache_k_l3", "cache_v_l3", "l_out-3", "rs_s_copy"] {
            assert!(!is_state(name), "{name}");
        }
    }

    #[test]
    fn copies_are_known_by_their_names() {
        assert_eq!(copied_name("CUDA0#attn_inp_kq_mask#0"), Some("attn_inp_kq_mask"));
        assert_eq!(copied_name("RPC0[127.0.0.1:50052]#l_out-14#3"), Some("l_out-14"));
        for name in ["l_out-14", "a#b", "CUDA0#x#", "CUDA0#x#y", "", "##"] {
            assert_eq!(copied_name(name), None, "{name}");
        }
    }
}
