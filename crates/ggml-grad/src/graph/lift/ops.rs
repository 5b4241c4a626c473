//! From a node of ggml's graph to a node of the IR, op by op.

use super::{LiftError, Lifter};
use crate::graph::capture::RawNode;
use crate::graph::ggml_ops;
use crate::graph::ir::{Elem, Op, Value, contiguous, n_elements};
use crate::llama::{DType, sys};

impl Lifter<'_> {
    /// Lifts one node. Its op and parameters are a row of [`ggml_ops`], unless its shape or its memory decides what it is.
    pub(super) fn node(&mut self, node: &RawNode) -> Result<Value, LiftError> {
        *self.out.ops.entry(node.op_name).or_default() += 1;
        if let Some(write) = self.cache_write(node) {
            let write = write.clone();
            return self.cache_read(node, &write);
        }
        if self.reads_states(node) {
            return Ok(self.zeros(node.ne));
        }
        let wrap = |source| LiftError::Ir { name: node.name.clone(), source };
        if let Some(op @ Op::SsmScan) = ggml_ops::lift(node.op, &node.params) {
            let src = self.scan_sources(node)?;
            return self.out.graph.apply(op, &src).map_err(wrap);
        }
        let x = self.value(node, 0)?;
        match node.op {
            // A copy that keeps the shape follows a source whose cells were trimmed.
            sys::GGML_OP_CONT | sys::GGML_OP_DUP => {
                let ne = if self.raw_shape(node, 0) == Some(node.ne) { self.out.graph.ne(x) } else { node.ne };
                self.out.graph.cont(x, ne).map_err(wrap)
            }
            sys::GGML_OP_CPY if node.root.is_none() => {
                let elem = self.elem(node)?;
                Ok(self.out.graph.cast(x, elem))
            }
            sys::GGML_OP_RESHAPE => self.out.graph.reshape(x, node.ne).map_err(wrap),
            sys::GGML_OP_REPEAT => self.out.graph.repeat(x, node.ne).map_err(wrap),
            sys::GGML_OP_VIEW => self.view(node, x),
            _ => match ggml_ops::lift(node.op, &node.params) {
                Some(op) => {
                    let src = self.op_sources(node, op)?;
                    self.out.graph.apply(op, &src).map_err(wrap)
                }
                None if node.op == sys::GGML_OP_GLU => Err(self.unknown(node)),
                None => self.other(node),
            },
        }
    }

    /// The sources of a node as the IR's op has them.
    fn op_sources(&mut self, node: &RawNode, op: Op) -> Result<Vec<Value>, LiftError> {
        let has = |i: usize| node.src.get(i).copied().flatten().is_some();
        let x = self.value(node, 0)?;
        let mut src = vec![x];
        match op {
            Op::SoftMax { .. } => {
                if has(1) {
                    src.push(self.mask(node, self.out.graph.ne(x)[0])?);
                }
                if has(2) {
                    if !has(1) {
                        return Err(self.pattern(node, "attention sinks without a mask"));
                    }
                    src.push(self.value(node, 2)?);
                }
            }
            // One tensor holds both halves of each row; `swapped` puts the gate second.
            Op::Glu(_) if !has(1) => {
                let wrap = |source| LiftError::Ir { name: node.name.clone(), source };
                let n = self.out.graph.node(x).clone();
                let half = [n.ne[0] / 2, n.ne[1], n.ne[2], n.ne[3]];
                let first = self.out.graph.view(x, half, n.nb, 0).map_err(wrap)?;
                let second = self.out.graph.view(x, half, n.nb, half[0] * 4).map_err(wrap)?;
                src = if node.params[1] != 0 { vec![second, first] } else { vec![first, second] };
            }
            _ => {
                for i in (1..).take_while(|&i| has(i)) {
                    src.push(self.value(node, i)?);
                }
                // ggml's order: the rows, their numbers, the tensor that they are written to.
                if op == Op::SetRows {
                    src.rotate_right(1);
                }
            }
        }
        Ok(src)
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
    pub(super) fn elem(&self, node: &RawNode) -> Result<Elem, LiftError> {
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
        let dense = contiguous(ne);
        let is_dense = (0..4).all(|i| ne[i] == 1 || node.nb[i] == dense[i]);
        if offset == 0 && is_dense && g.is_contiguous(x) && n_elements(ne) == n_elements(g.ne(x)) {
            return g.reshape(x, ne).map_err(wrap);
        }
        g.view(x, ne, node.nb, offset).map_err(wrap)
    }
}
