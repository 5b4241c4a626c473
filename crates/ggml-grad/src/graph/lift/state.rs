//! States of recurrent layers. A capture begins with an empty memory and decodes each of its sequences from its first token in
//! one pass, so what is read are zeros, and nothing reads what is written.

use super::{LiftError, Lifter};
use crate::graph::capture::{RawLeaf, RawNode};
use crate::graph::emit::Data;
use crate::graph::ir::{Elem, Shape, Value, n_elements};
use crate::llama::{NodeId, sys};

impl Lifter<'_> {
    /// True for the memory of states, as it is or in another shape.
    pub(super) fn is_state(&self, id: NodeId) -> bool {
        let root = match self.capture.index.get(&id) {
            Some(&at) => self.capture.nodes[at].root.unwrap_or(id),
            None => id,
        };
        matches!(self.capture.leaves.get(&root), Some(RawLeaf::State))
    }

    /// True for a node that takes the states of the batch's sequences out of the memory.
    pub(super) fn reads_states(&self, node: &RawNode) -> bool {
        node.op == sys::GGML_OP_GET_ROWS && node.src.first().copied().flatten().is_some_and(|id| self.is_state(id))
    }

    /// An input of zeros.
    pub(super) fn zeros(&mut self, ne: Shape) -> Value {
        if let Some(&v) = self.zeros.get(&ne) {
            return v;
        }
        let (v, _) = self.out.graph.input(ne, Elem::F32);
        self.out.inputs.push(Data::F32(vec![0.0; n_elements(ne)]));
        self.zeros.insert(ne, v);
        v
    }

    /// Sources of a scan, which reads its states from the memory by itself: here, one state of zeros for all sequences.
    pub(super) fn scan_sources(&mut self, node: &RawNode) -> Result<Vec<Value>, LiftError> {
        let mut src = (1..6).map(|i| self.value(node, i)).collect::<Result<Vec<Value>, LiftError>>()?;
        let state = node.src.first().copied().flatten().filter(|&id| self.is_state(id));
        let state = state.and_then(|id| self.capture.index.get(&id)).map(|&at| self.capture.nodes[at].ne);
        let [n_state, dim, n_head, _] = state.ok_or_else(|| self.pattern(node, "states that are not in the memory"))?;
        let n_sequences = self.out.graph.ne(src[0])[3];
        src.insert(0, self.zeros([n_state, dim, n_head, 1]));
        let (ids, _) = self.out.graph.input([n_sequences, 1, 1, 1], Elem::I32);
        self.out.inputs.push(Data::I32(vec![0; n_sequences]));
        src.push(ids);
        Ok(src)
    }
}
