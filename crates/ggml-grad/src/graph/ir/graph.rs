//! The graph, and constructors of its nodes that check what they are given.

mod heads;
mod recurrent;

use super::{Elem, Glu, InputId, IrError, Node, Op, OpParams, Shape, Value, WeightId, contiguous, dense, n_elements};
use std::fmt;

/// A compute graph. Nodes are in order: sources come before their users.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    nodes: Vec<Node>,
    n_inputs: u32,
    n_weights: u32,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty graph that has declared as many inputs and weights as another one: for copies of its nodes.
    pub(in crate::graph) fn beside(other: &Self) -> Self {
        Self { nodes: Vec::new(), n_inputs: other.n_inputs, n_weights: other.n_weights }
    }

    /// A node of another graph, with sources of this one.
    pub(in crate::graph) fn copy(&mut self, node: &Node, src: Vec<Value>) -> Value {
        self.nodes.push(Node { src, ..node.clone() });
        Value(self.nodes.len() as u32 - 1)
    }

    /// A node of another graph, with sources of this one, in a size that fits them.
    ///
    /// # Errors
    /// [`IrError::Shape`] for a window that leaves its source.
    pub(in crate::graph) fn resized(&mut self, node: &Node, ne: Shape) -> Result<Value, IrError> {
        match node.op {
            Op::Permute(axes) => self.permute(node.src[0], axes),
            Op::View { offset } => {
                let mut nb = node.nb;
                for i in 1..4 {
                    if ne[i] == 1 {
                        nb[i] = nb[i - 1] * ne[i - 1];
                    }
                }
                self.view(node.src[0], ne, nb, offset)
            }
            Op::Weight(_) => Ok(self.copy(node, Vec::new())),
            op => Ok(self.push(op, &node.src, ne, dense(ne, node.elem.size().unwrap_or(4)), node.elem)),
        }
    }

    /// All nodes, sources before users.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node that makes a value.
    pub fn node(&self, v: Value) -> &Node {
        &self.nodes[v.0 as usize]
    }

    /// Shape of a value.
    pub fn ne(&self, v: Value) -> Shape {
        self.node(v).ne
    }

    /// Weights that a matmul with their transpose reads: in their file layout, whatever layout the forward pass uses.
    pub fn transposed_weights(&self) -> impl Iterator<Item = WeightId> {
        self.nodes.iter().filter(|n| matches!(n.op, Op::MulMatT | Op::MulMatIdT | Op::LossHead)).filter_map(|n| {
            match self.node(n.src[0]).op {
                Op::Weight(id) => Some(id),
                _ => None,
            }
        })
    }

    /// For each of the first `n` values: whether it is one of `roots` or varies with them. Integers choose; they do not vary.
    pub fn varying(&self, n: usize, roots: &[Value]) -> Vec<bool> {
        let mut varying = vec![false; n];
        for (i, node) in self.nodes[..n].iter().enumerate() {
            let varies = matches!(node.elem, Elem::F32 | Elem::F16);
            varying[i] = roots.contains(&Value(i as u32)) || varies && node.src.iter().any(|s| varying[s.0 as usize]);
        }
        varying
    }

    /// Bytes that the graph itself takes.
    pub fn bytes(&self) -> usize {
        let sources: usize = self.nodes.iter().map(|n| n.src.capacity() * size_of::<Value>()).sum();
        self.nodes.capacity() * size_of::<Node>() + sources
    }

    /// Gives back the memory that is held for nodes to come.
    pub fn shrink(&mut self) {
        self.nodes.shrink_to_fit();
    }

    /// Number of inputs declared.
    pub fn n_inputs(&self) -> usize {
        self.n_inputs as usize
    }

    /// Number of weights declared.
    pub fn n_weights(&self) -> usize {
        self.n_weights as usize
    }

    /// True if the value is laid out without gaps in the order of its dimensions. Weights are.
    pub fn is_contiguous(&self, v: Value) -> bool {
        let n = self.node(v);
        let Some(size) = n.elem.size() else { return !matches!(n.op, Op::View { .. } | Op::Permute(_)) };
        let want = dense(n.ne, size);
        // The stride of an extent of 1 is never used.
        (0..4).all(|i| n.ne[i] == 1 || n.nb[i] == want[i])
    }

    fn push(&mut self, op: Op, src: &[Value], ne: Shape, nb: Shape, elem: Elem) -> Value {
        debug_assert!(src.iter().all(|s| (s.0 as usize) < self.nodes.len()));
        self.nodes.push(Node { op, src: src.to_vec(), ne, nb, elem });
        Value(self.nodes.len() as u32 - 1)
    }

    fn f32(&mut self, op: Op, src: &[Value], ne: Shape) -> Value {
        self.push(op, src, ne, contiguous(ne), Elem::F32)
    }

    /// An op without a gradient rule, with a result of this shape and type: see [`Op::Other`].
    pub fn other(
        &mut self,
        (code, name): (u32, &'static str),
        params: OpParams,
        src: &[Value],
        ne: Shape,
        elem: Elem,
    ) -> Value {
        self.push(Op::Other { code, name, params }, src, ne, dense(ne, elem.size().unwrap_or(4)), elem)
    }

    /// Turns a node into an input of the same shape and type: its value is given from now on instead of computed.
    pub fn freeze(&mut self, v: Value) -> InputId {
        let id = InputId(self.n_inputs);
        self.n_inputs += 1;
        let node = &mut self.nodes[v.0 as usize];
        node.op = Op::Input(id);
        node.src.clear();
        node.nb = dense(node.ne, node.elem.size().unwrap_or(4));
        id
    }

    fn err<T>(op: Op, why: impl fmt::Display) -> Result<T, IrError> {
        Err(IrError::Shape { op: op.name(), why: why.to_string() })
    }

    /// Declares an input.
    pub fn input(&mut self, ne: Shape, elem: Elem) -> (Value, InputId) {
        let id = InputId(self.n_inputs);
        self.n_inputs += 1;
        (self.push(Op::Input(id), &[], ne, dense(ne, elem.size().unwrap_or(4)), elem), id)
    }

    /// Declares a weight. `elem` is [`Elem::F32`] for plain F32 weights (norms, biases), else [`Elem::Weight`].
    pub fn weight(&mut self, ne: Shape, elem: Elem) -> (Value, WeightId) {
        let id = WeightId(self.n_weights);
        self.n_weights += 1;
        (self.push(Op::Weight(id), &[], ne, contiguous(ne), elem), id)
    }

    fn repeats(&self, small: Value, big: Value) -> bool {
        let (s, b) = (self.ne(small), self.ne(big));
        (0..4).all(|i| s[i] != 0 && b[i] % s[i] == 0)
    }

    fn binary(&mut self, op: Op, x: Value, y: Value) -> Result<Value, IrError> {
        if !self.repeats(y, x) {
            return Self::err(op, format!("{:?} cannot be repeated to {:?}", self.ne(y), self.ne(x)));
        }
        Ok(self.f32(op, &[x, y], self.ne(x)))
    }

    /// [`Op::Add`].
    pub fn add(&mut self, x: Value, y: Value) -> Result<Value, IrError> {
        self.binary(Op::Add, x, y)
    }

    /// [`Op::Mul`].
    pub fn mul(&mut self, x: Value, y: Value) -> Result<Value, IrError> {
        self.binary(Op::Mul, x, y)
    }

    /// [`Op::Scale`].
    pub fn scale(&mut self, x: Value, s: f32, b: f32) -> Value {
        self.f32(Op::Scale { s, b }, &[x], self.ne(x))
    }

    /// [`Op::Sub`].
    pub fn sub(&mut self, x: Value, y: Value) -> Result<Value, IrError> {
        self.binary(Op::Sub, x, y)
    }

    /// [`Op::Div`].
    pub fn div(&mut self, x: Value, y: Value) -> Result<Value, IrError> {
        self.binary(Op::Div, x, y)
    }

    /// [`Op::AddId`].
    pub fn add_id(&mut self, x: Value, y: Value, ids: Value) -> Result<Value, IrError> {
        let (a, b, i) = (self.ne(x), self.ne(y), self.ne(ids));
        if a[0] != b[0] || a[1] != i[0] || a[2] != i[1] {
            return Self::err(Op::AddId, format!("{a:?}, {b:?} and {i:?} do not fit"));
        }
        Ok(self.f32(Op::AddId, &[x, y, ids], a))
    }

    /// [`Op::SumRows`].
    pub fn sum_rows(&mut self, x: Value) -> Value {
        let ne = self.ne(x);
        self.f32(Op::SumRows, &[x], [1, ne[1], ne[2], ne[3]])
    }

    /// [`Op::Mean`].
    pub fn mean(&mut self, x: Value) -> Value {
        let ne = self.ne(x);
        self.f32(Op::Mean, &[x], [1, ne[1], ne[2], ne[3]])
    }

    /// [`Op::Repeat`]; the value itself where the shape is the same.
    pub fn repeat(&mut self, x: Value, ne: Shape) -> Result<Value, IrError> {
        let small = self.ne(x);
        if small == ne {
            return Ok(x);
        }
        if (0..4).any(|i| small[i] == 0 || !ne[i].is_multiple_of(small[i])) {
            return Self::err(Op::Repeat, format!("{small:?} cannot be repeated to {ne:?}"));
        }
        Ok(self.f32(Op::Repeat, &[x], ne))
    }

    /// [`Op::MulMat`] with a precision flag of ggml's for the sums (0: none).
    pub fn mul_mat(&mut self, x: Value, y: Value, prec: i32) -> Result<Value, IrError> {
        let mut params = [0; 16];
        params[0] = prec;
        self.mul_mat_with(x, y, params)
    }

    /// [`Op::MulMat`] with all of ggml's parameters.
    pub fn mul_mat_with(&mut self, x: Value, y: Value, params: OpParams) -> Result<Value, IrError> {
        let (a, b) = (self.ne(x), self.ne(y));
        if a[0] != b[0] || b[2] % a[2] != 0 || b[3] % a[3] != 0 {
            return Self::err(Op::MulMat(params), format!("{a:?} and {b:?} do not fit"));
        }
        Ok(self.f32(Op::MulMat(params), &[x, y], [a[1], b[1], b[2], b[3]]))
    }

    /// [`Op::MulMatT`].
    pub fn mul_mat_t(&mut self, w: Value, g: Value) -> Result<Value, IrError> {
        let (a, b) = (self.ne(w), self.ne(g));
        if a[1] != b[0] || b[2] % a[2] != 0 || b[3] % a[3] != 0 || !self.is_contiguous(g) {
            return Self::err(Op::MulMatT, format!("{a:?} and {b:?} do not fit"));
        }
        Ok(self.f32(Op::MulMatT, &[w, g], [a[0], b[1], b[2], b[3]]))
    }

    /// `sum + d`; where d is an [`Op::MulMatT`], as one.
    ///
    /// # Errors
    /// As [`Graph::add`].
    pub fn accumulate(&mut self, sum: Value, d: Value) -> Result<Value, IrError> {
        let node = self.node(d);
        if let (Op::MulMatT, &[w, g]) = (node.op, &node.src[..])
            && node.ne == self.ne(sum)
            && self.is_contiguous(sum)
        {
            return Ok(self.f32(Op::MulMatT, &[w, g, sum], self.ne(sum)));
        }
        self.add(sum, d)
    }

    /// [`Op::MulMatId`].
    pub fn mul_mat_id(&mut self, w: Value, y: Value, ids: Value, params: OpParams) -> Result<Value, IrError> {
        let (a, b, i) = (self.ne(w), self.ne(y), self.ne(ids));
        if a[0] != b[0] || a[3] != 1 || b[3] != 1 || i[2..] != [1, 1] || i[1] != b[2] || i[0] % b[1] != 0 {
            return Self::err(Op::MulMatId(params), format!("{a:?}, {b:?} and {i:?} do not fit"));
        }
        Ok(self.f32(Op::MulMatId(params), &[w, y, ids], [a[1], i[0], b[2], 1]))
    }

    /// [`Op::MulMatIdT`].
    pub fn mul_mat_id_t(&mut self, w: Value, g: Value, ids: Value) -> Result<Value, IrError> {
        let (a, b, i) = (self.ne(w), self.ne(g), self.ne(ids));
        if a[1] != b[0] || a[3] != 1 || i[0] != b[1] || i[1] != b[2] || !self.is_contiguous(g) {
            return Self::err(Op::MulMatIdT, format!("{a:?}, {b:?} and {i:?} do not fit"));
        }
        Ok(self.f32(Op::MulMatIdT, &[w, g, ids], [a[0], b[1], b[2], 1]))
    }

    /// [`Op::OuterSum`] of the rows `x` that a matrix multiplied and of the gradient `g` of its results.
    ///
    /// # Errors
    /// [`IrError::Shape`] for sources that do not fit.
    pub fn outer_sum(&mut self, x: Value, g: Value) -> Result<Value, IrError> {
        let (a, b) = (self.ne(x), self.ne(g));
        if a[1..] != b[1..] || !self.is_contiguous(x) || !self.is_contiguous(g) {
            return Self::err(Op::OuterSum, format!("{a:?} and {b:?} do not fit"));
        }
        Ok(self.f32(Op::OuterSum, &[x, g], [a[0], b[0], 1, 1]))
    }

    /// [`Op::OuterSum`] with a matrix for each row, of `n_expert`.
    ///
    /// # Errors
    /// As [`Graph::outer_sum`].
    pub fn outer_sum_id(&mut self, x: Value, g: Value, ids: Value, n_expert: usize) -> Result<Value, IrError> {
        let (a, b, i) = (self.ne(x), self.ne(g), self.ne(ids));
        let rows = a[2] == b[2] && b[1].is_multiple_of(a[1]) && a[3] * b[3] == 1;
        if !rows || i != [b[1], b[2], 1, 1] || !self.is_contiguous(x) || !self.is_contiguous(g) {
            return Self::err(Op::OuterSum, format!("{a:?}, {b:?} and {i:?} do not fit"));
        }
        Ok(self.f32(Op::OuterSum, &[x, g, ids], [a[0], b[0], n_expert, 1]))
    }

    /// True for a matrix that is given for each run: one of an adapter.
    pub fn is_given_matrix(&self, v: Value) -> bool {
        let node = self.node(v);
        matches!(node.op, Op::Input(_)) && node.elem == Elem::F32 && node.ne[2] * node.ne[3] == 1
    }

    /// An op of the forward pass on its sources, with the shape that follows from them: that of the first source for ops
    /// that have no rule of their own here.
    ///
    /// # Errors
    /// [`IrError::Shape`] for sources that do not fit the op.
    pub fn apply(&mut self, op: Op, src: &[Value]) -> Result<Value, IrError> {
        match (op, src) {
            (Op::Add | Op::Sub | Op::Mul | Op::Div, &[x, y]) => self.binary(op, x, y),
            (Op::AddId, &[x, y, ids]) => self.add_id(x, y, ids),
            (Op::SumRows, &[x]) => Ok(self.sum_rows(x)),
            (Op::Mean, &[x]) => Ok(self.mean(x)),
            (Op::MulMat(params), &[x, y]) => self.mul_mat_with(x, y, params),
            (Op::MulMatId(params), &[w, y, ids]) => self.mul_mat_id(w, y, ids, params),
            (Op::Glu(kind), &[gate, up]) => self.glu(kind, gate, up),
            (Op::Permute(axes), &[x]) => self.permute(x, axes),
            (Op::Pad(extra), &[x]) => Ok(self.pad(x, extra)),
            (Op::Concat { dim }, &[x, y]) => self.concat(x, y, dim),
            (Op::GetRows, &[x, ids]) => self.get_rows(x, ids),
            (Op::SetRows, &[x, y, ids]) => self.set_rows(x, y, ids),
            (Op::MatrixScan(kind), _) => self.matrix_scan(kind, src),
            (Op::MixStreams { scale }, &[x, weights]) => self.mix_streams(x, weights, scale),
            (Op::SsmConv, &[x, filters]) => self.ssm_conv(x, filters),
            (Op::SsmScan, &[state, x, dt, a, b, c, ids]) => self.ssm_scan([state, x, dt, a, b, c, ids]),
            (Op::Rope(_), &[_, _] | &[_, _, _]) | (Op::SoftMax { .. }, &[_, ..]) | (_, &[_]) => Ok(self.same(op, src)),
            _ => Self::err(op, format!("{} sources", src.len())),
        }
    }

    /// Any op whose result has the shape of its first source.
    pub fn same(&mut self, op: Op, src: &[Value]) -> Value {
        let ne = self.ne(src[0]);
        self.f32(op, src, ne)
    }

    /// [`Op::Glu`] of two sources.
    pub fn glu(&mut self, kind: Glu, gate: Value, up: Value) -> Result<Value, IrError> {
        if self.ne(gate) != self.ne(up) {
            return Self::err(Op::Glu(kind), "gate and up differ in shape");
        }
        Ok(self.f32(Op::Glu(kind), &[gate, up], self.ne(gate)))
    }

    /// [`Op::Cont`], in any shape of the same size.
    pub fn cont(&mut self, x: Value, ne: Shape) -> Result<Value, IrError> {
        if n_elements(ne) != n_elements(self.ne(x)) {
            return Self::err(Op::Cont, format!("{:?} has not the size of {ne:?}", self.ne(x)));
        }
        Ok(self.f32(Op::Cont, &[x], ne))
    }

    /// The value itself where it is contiguous, else a contiguous copy.
    pub fn contiguous(&mut self, x: Value) -> Value {
        if self.is_contiguous(x) { x } else { self.f32(Op::Cont, &[x], self.ne(x)) }
    }

    /// [`Op::Reshape`]; the value itself where nothing changes.
    pub fn reshape(&mut self, x: Value, ne: Shape) -> Result<Value, IrError> {
        if self.ne(x) == ne {
            return Ok(x);
        }
        if n_elements(ne) != n_elements(self.ne(x)) || !self.is_contiguous(x) {
            return Self::err(Op::Reshape, format!("{:?} cannot become {ne:?}", self.ne(x)));
        }
        let elem = self.node(x).elem;
        Ok(self.push(Op::Reshape, &[x], ne, dense(ne, elem.size().unwrap_or(4)), elem))
    }

    /// [`Op::View`]; strides and offset in bytes. A window into a window, or into a permuted value, becomes one into what
    /// lies behind it: they share their memory.
    pub fn view(&mut self, x: Value, ne: Shape, nb: Shape, offset: usize) -> Result<Value, IrError> {
        let (mut x, mut offset) = (x, offset);
        loop {
            match self.node(x).op {
                Op::View { offset: before } => offset += before,
                Op::Permute(_) => {}
                _ => break,
            }
            x = self.node(x).src[0];
        }
        let s = self.node(x);
        let elem = s.elem;
        if ne.contains(&0) || elem.size().is_some_and(|size| nb[0] != size) {
            return Self::err(Op::View { offset }, format!("a window {ne:?} with strides {nb:?} is not supported"));
        }
        // Only the weight itself knows the extent of its blocks.
        if let Some(size) = elem.size() {
            let span = |ne: Shape, nb: Shape| (0..4).map(|i| (ne[i] - 1) * nb[i]).sum::<usize>() + size;
            if offset + span(ne, nb) > span(s.ne, s.nb) {
                return Self::err(Op::View { offset }, format!("window {ne:?} leaves its source {:?}", s.ne));
            }
        }
        Ok(self.push(Op::View { offset }, &[x], ne, nb, elem))
    }

    /// [`Op::Permute`].
    pub fn permute(&mut self, x: Value, axes: [usize; 4]) -> Result<Value, IrError> {
        let mut seen = [false; 4];
        for a in axes {
            if a > 3 || seen[a] {
                return Self::err(Op::Permute(axes), "not a permutation");
            }
            seen[a] = true;
        }
        let s = self.node(x);
        let (mut ne, mut nb) = ([0; 4], [0; 4]);
        for i in 0..4 {
            ne[axes[i]] = s.ne[i];
            nb[axes[i]] = s.nb[i];
        }
        let elem = s.elem;
        Ok(self.push(Op::Permute(axes), &[x], ne, nb, elem))
    }

    /// `x` with its first two dimensions exchanged, contiguous.
    pub fn transposed(&mut self, x: Value) -> Result<Value, IrError> {
        let t = self.permute(x, [1, 0, 2, 3])?;
        Ok(self.contiguous(t))
    }

    /// [`Op::Pad`]; the value itself where nothing is added.
    pub fn pad(&mut self, x: Value, extra: [usize; 4]) -> Value {
        if extra == [0; 4] {
            return x;
        }
        let mut ne = self.ne(x);
        for i in 0..4 {
            ne[i] += extra[i];
        }
        self.f32(Op::Pad(extra), &[x], ne)
    }

    /// [`Op::Concat`].
    pub fn concat(&mut self, x: Value, y: Value, dim: usize) -> Result<Value, IrError> {
        let (a, b) = (self.ne(x), self.ne(y));
        if dim > 3 || (0..4).any(|i| i != dim && a[i] != b[i]) {
            return Self::err(Op::Concat { dim }, format!("{a:?} and {b:?} do not fit"));
        }
        let mut ne = a;
        ne[dim] += b[dim];
        Ok(self.f32(Op::Concat { dim }, &[x, y], ne))
    }

    /// [`Op::Cast`].
    pub fn cast(&mut self, x: Value, elem: Elem) -> Value {
        let ne = self.ne(x);
        self.push(Op::Cast, &[x], ne, dense(ne, elem.size().unwrap_or(4)), elem)
    }

    /// [`Op::GetRows`].
    pub fn get_rows(&mut self, x: Value, ids: Value) -> Result<Value, IrError> {
        let (a, b) = (self.ne(x), self.ne(ids));
        if self.node(ids).elem != Elem::I32 || a[2] != b[1] || a[3] != b[2] || b[3] != 1 {
            return Self::err(Op::GetRows, format!("{a:?} by {b:?} is not supported"));
        }
        let ne = [a[0], b[0], b[1], b[2]];
        let elem = if self.node(x).elem == Elem::I32 { Elem::I32 } else { Elem::F32 };
        Ok(self.push(Op::GetRows, &[x, ids], ne, contiguous(ne), elem))
    }

    /// Gradient of [`Op::GetRows`]: [`Op::GetRowsBack`] for a matrix, [`Op::ScatterRows`] for several; `ne` is the shape
    /// that the rows were taken from.
    pub fn get_rows_back(&mut self, g: Value, ids: Value, ne: Shape) -> Value {
        let op = if ne[2] == 1 && ne[3] == 1 { Op::GetRowsBack } else { Op::ScatterRows };
        self.f32(op, &[g, ids], ne)
    }

    /// [`Op::SetRows`].
    pub fn set_rows(&mut self, x: Value, y: Value, ids: Value) -> Result<Value, IrError> {
        let (a, b, i) = (self.ne(x), self.ne(y), self.ne(ids));
        if a[0] != b[0] || a[2..] != b[2..] || b[1] != i[0] || self.node(x).elem != Elem::F32 || !self.is_contiguous(x)
        {
            return Self::err(Op::SetRows, format!("{a:?}, {b:?} and {i:?} do not fit"));
        }
        Ok(self.f32(Op::SetRows, &[x, y, ids], a))
    }

    /// [`Op::RepeatBack`]; the value itself where the shape is the same.
    pub fn repeat_back(&mut self, x: Value, ne: Shape) -> Value {
        if self.ne(x) == ne { x } else { self.f32(Op::RepeatBack, &[x], ne) }
    }

    /// [`Op::Acc`].
    pub fn acc(&mut self, x: Value, y: Value, nb: [usize; 3], offset: usize) -> Result<Value, IrError> {
        // ggml keeps these four in 32 bits.
        if nb.iter().chain([&offset]).any(|&n| i32::try_from(n).is_err()) {
            return Self::err(Op::Acc { nb, offset }, "a window of more than 2 GiB: shorten the longest pairs");
        }
        Ok(self.f32(Op::Acc { nb, offset }, &[x, y], self.ne(x)))
    }

    /// [`Op::Attention`]. `plain`: the same result made of other ops.
    ///
    /// # Errors
    /// [`IrError::Shape`] for sources that do not fit.
    pub fn attention(&mut self, src: [Value; 4], scale: f32, plain: Value) -> Result<Value, IrError> {
        let ne = self.attention_ne(src, scale)?;
        if self.ne(plain) != ne || !self.is_contiguous(plain) {
            return Self::err(Op::Attention { scale }, format!("{:?} is not {ne:?}", self.ne(plain)));
        }
        let [q, k, v, mask] = src;
        Ok(self.f32(Op::Attention { scale }, &[q, k, v, mask, plain], ne))
    }

    /// The shape of the result of [`Op::Attention`] of queries, keys, values and a mask.
    ///
    /// # Errors
    /// As [`Graph::attention`].
    pub fn attention_ne(&self, src: [Value; 4], scale: f32) -> Result<Shape, IrError> {
        let [nq, nk, nv, nm] = src.map(|v| self.ne(v));
        let fits = nq[0] == nk[0]
            && nk[1..] == nv[1..]
            && nq[1].is_multiple_of(nk[1])
            && nq[3] * nk[3] == 1
            && nm[1] >= nq[2]
            && nm[0] >= nk[2]
            && nm[2] * nm[3] == 1;
        let floats = |&v: &Value| self.node(v).elem == Elem::F32 && self.node(v).nb[0] == 4;
        if !fits || !src.iter().all(floats) {
            return Self::err(Op::Attention { scale }, format!("{nq:?}, {nk:?}, {nv:?} and {nm:?} do not fit"));
        }
        Ok([nv[0], nq[1], nq[2], 1])
    }

    /// Gradients of the sources of an [`Op::Attention`] from that of its result: queries, keys, values, as they lie there but
    /// contiguous.
    ///
    /// # Errors
    /// [`IrError::Shape`].
    pub fn attention_back(&mut self, attention: Value, g: Value) -> Result<[Value; 3], IrError> {
        let Op::Attention { scale } = self.node(attention).op else {
            return Self::err(self.node(attention).op, "not an attention");
        };
        let g = self.contiguous(g);
        let mut src = self.node(attention).src[..4].to_vec();
        let [nq, nk, nv] = [0, 1, 2].map(|i| self.ne(src[i]));
        src.push(g);
        let for_q = self.f32(Op::AttentionBackQ { scale }, &src, [n_elements(nq), 1, 1, 1]);
        src.push(for_q);
        let (of_k, of_v) = (n_elements(nk), n_elements(nv));
        let for_kv = self.f32(Op::AttentionBackKv { scale }, &src, [of_k + of_v, 1, 1, 1]);
        Ok([
            self.view(for_q, nq, contiguous(nq), 0)?,
            self.view(for_kv, nk, contiguous(nk), 0)?,
            self.view(for_kv, nv, contiguous(nv), 4 * of_k)?,
        ])
    }
}
