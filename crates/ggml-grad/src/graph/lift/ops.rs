//! From a node of ggml's graph to a node of the IR, op by op.

use super::{LiftError, Lifter};
use crate::graph::capture::RawNode;
use crate::graph::ir::{Elem, Glu, Op, Unary, Value, contiguous, n_elements};
use crate::llama::{DType, sys};

impl Lifter<'_> {
    pub(super) fn node(&mut self, node: &RawNode) -> Result<Value, LiftError> {
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
        let dense = contiguous(ne);
        let is_dense = (0..4).all(|i| ne[i] == 1 || node.nb[i] == dense[i]);
        if offset == 0 && is_dense && g.is_contiguous(x) && n_elements(ne) == n_elements(g.ne(x)) {
            return g.reshape(x, ne).map_err(wrap);
        }
        g.view(x, ne, node.nb, offset).map_err(wrap)
    }
}
