//! The intermediate representation: a compute graph in SSA form, of the ops that llama.cpp's graphs are made of.
//!
//! Shapes are ggml's: four extents, fastest first, so a matrix of `n` rows of `k` numbers is `[k, n, 1, 1]`. This module
//! knows nothing of llama.cpp: weights and inputs are numbers that whoever runs the graph resolves.

use std::fmt;

/// A value of the graph: the result of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(pub u32);

/// Number of an input: data set for each run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InputId(pub u32);

/// Number of a weight: data that belongs to the model and never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub u32);

/// Element type of a value. Activations are always `F32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Elem {
    /// 32-bit float.
    F32,
    /// 16-bit float (masks of some builds).
    F16,
    /// 32-bit integer (positions, row numbers).
    I32,
    /// A weight's own type, known to the weight only.
    Weight,
}

/// Shape: extents, fastest first.
pub type Shape = [usize; 4];

/// Number of elements of a shape.
pub fn n_elements(ne: Shape) -> usize {
    ne.iter().product()
}

/// Elementwise functions of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Unary {
    /// Hyperbolic tangent.
    Tanh,
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU, tanh form.
    Gelu,
}

/// Gated activations: `act(gate) * up`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Glu {
    /// SiLU gate.
    Swiglu,
    /// GELU gate, tanh form.
    Geglu,
}

/// The parameters of a rotary embedding, as ggml keeps them (floats as their bits).
pub type RopeParams = [i32; 16];

/// An operation. Sources are in [`Node::src`]; `x`, `y` below are its first and second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    /// Data set for each run.
    Input(InputId),
    /// A frozen tensor of the model.
    Weight(WeightId),
    /// `x + y`, `y` repeated to `x`'s shape.
    Add,
    /// `x * y`, `y` repeated to `x`'s shape.
    Mul,
    /// `s * x + b`.
    Scale {
        /// Factor.
        s: f32,
        /// Bias.
        b: f32,
    },
    /// Rows of `x` times rows of `y`: `[k, n] , [k, m] -> [n, m]`; `x` repeated over `y`'s two outer dimensions.
    MulMat {
        /// ggml's precision flag.
        prec: i32,
    },
    /// `x^T y` for a weight `x`: `[k, n] , [n, m] -> [k, m]`. The product a backward pass is made of.
    MulMatT,
    /// Root-mean-square normalisation of each row.
    RmsNorm {
        /// Added to the mean square.
        eps: f32,
    },
    /// Gradient of [`Op::RmsNorm`]: `x` is the gradient of the result, `y` the normalised value's source.
    RmsNormBack {
        /// As in the forward op.
        eps: f32,
    },
    /// Rotary position embedding; `y` holds positions, a third source may hold frequency factors.
    Rope(RopeParams),
    /// The inverse rotation: gradient of [`Op::Rope`].
    RopeBack(RopeParams),
    /// Softmax of `scale * x + slope * y` over each row; the mask `y` may be missing.
    SoftMax {
        /// Factor on the scores.
        scale: f32,
        /// ALiBi bias (0: none).
        max_bias: f32,
    },
    /// Gradient of [`Op::SoftMax`]: `x` is the gradient of the result, `y` the result.
    SoftMaxBack {
        /// As in the forward op.
        scale: f32,
    },
    /// A gated activation of two sources, gate first.
    Glu(Glu),
    /// An elementwise function.
    Unary(Unary),
    /// Gradient of SiLU: `x` is the gradient of the result, `y` the argument.
    SiluBack,
    /// A contiguous copy.
    Cont,
    /// The same elements in another shape (contiguous source).
    Reshape,
    /// A window into the source: strides in [`Node::nb`], offset in bytes.
    View {
        /// Bytes from the start of the source.
        offset: usize,
    },
    /// Dimension `i` of the source becomes dimension `axes[i]`.
    Permute([usize; 4]),
    /// Zeros appended at the end of each dimension.
    Pad([usize; 4]),
    /// `x` then `y` along a dimension.
    Concat {
        /// The dimension.
        dim: usize,
    },
    /// Rows of `x` named by the integers `y`.
    GetRows,
    /// Gradient of [`Op::GetRows`]: rows of `x` added up at the rows that `y` names.
    GetRowsBack,
    /// Gradient of a repetition: `x` summed down to the node's shape.
    RepeatBack,
    /// `x` with `y` added into the window that the strides and the offset (bytes) describe.
    Acc {
        /// Strides of dimensions 1 to 3 of the window.
        nb: [usize; 3],
        /// Offset of the window.
        offset: usize,
    },
    /// From logits `[n_vocab, n_rows]` to the gradient of `sum over rows and labels of coef * log p(label)`; the rows'
    /// labels and coefficients are given to the executor, which also records each log p.
    LogProbHead,
}

impl Op {
    /// A short name for messages.
    pub fn name(&self) -> String {
        let text = format!("{self:?}");
        text.split(['(', ' ', '{']).next().unwrap_or(&text).to_owned()
    }
}

/// A node: an op, its sources, and the value it makes.
#[derive(Debug, Clone)]
pub struct Node {
    /// The operation.
    pub op: Op,
    /// Sources, in the op's order.
    pub src: Vec<Value>,
    /// Shape of the result.
    pub ne: Shape,
    /// Strides of the result in bytes.
    pub nb: Shape,
    /// Element type of the result.
    pub elem: Elem,
}

/// A graph that cannot be built.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum IrError {
    /// Sources that do not fit an op.
    #[error("{op}: {why}")]
    Shape {
        /// The op.
        op: String,
        /// What does not fit.
        why: String,
    },
    /// An op whose gradient is not known for these sources.
    #[error("no gradient rule for {op}: {why}")]
    NoRule {
        /// The op.
        op: String,
        /// What is missing.
        why: String,
    },
}

/// A compute graph. Nodes are in order: sources come before their users.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    nodes: Vec<Node>,
    n_inputs: u32,
    n_weights: u32,
}

/// Strides of a contiguous F32 value.
pub fn contiguous(ne: Shape) -> Shape {
    let mut nb = [4, 0, 0, 0];
    for i in 1..4 {
        nb[i] = nb[i - 1] * ne[i - 1];
    }
    nb
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
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

    /// Number of inputs declared.
    pub fn n_inputs(&self) -> usize {
        self.n_inputs as usize
    }

    /// Number of weights declared.
    pub fn n_weights(&self) -> usize {
        self.n_weights as usize
    }

    /// True if the value is an F32 value laid out without gaps in the order of its dimensions.
    pub fn is_contiguous(&self, v: Value) -> bool {
        let n = self.node(v);
        let want = contiguous(n.ne);
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

    fn err<T>(op: Op, why: impl fmt::Display) -> Result<T, IrError> {
        Err(IrError::Shape { op: op.name(), why: why.to_string() })
    }

    /// Declares an input.
    pub fn input(&mut self, ne: Shape, elem: Elem) -> (Value, InputId) {
        let id = InputId(self.n_inputs);
        self.n_inputs += 1;
        (self.push(Op::Input(id), &[], ne, contiguous(ne), elem), id)
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

    /// [`Op::MulMat`].
    pub fn mul_mat(&mut self, x: Value, y: Value, prec: i32) -> Result<Value, IrError> {
        let (a, b) = (self.ne(x), self.ne(y));
        if a[0] != b[0] || b[2] % a[2] != 0 || b[3] % a[3] != 0 {
            return Self::err(Op::MulMat { prec }, format!("{a:?} and {b:?} do not fit"));
        }
        Ok(self.f32(Op::MulMat { prec }, &[x, y], [a[1], b[1], b[2], b[3]]))
    }

    /// [`Op::MulMatT`].
    pub fn mul_mat_t(&mut self, w: Value, g: Value) -> Result<Value, IrError> {
        let (a, b) = (self.ne(w), self.ne(g));
        if a[1] != b[0] || a[2] != 1 || a[3] != 1 || !self.is_contiguous(g) {
            return Self::err(Op::MulMatT, format!("{a:?} and {b:?} do not fit"));
        }
        Ok(self.f32(Op::MulMatT, &[w, g], [a[0], b[1], b[2], b[3]]))
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
        Ok(self.push(Op::Reshape, &[x], ne, contiguous(ne), elem))
    }

    /// [`Op::View`]; strides and offset in bytes of an F32 source.
    pub fn view(&mut self, x: Value, ne: Shape, nb: Shape, offset: usize) -> Result<Value, IrError> {
        let span = |ne: Shape, nb: Shape| (0..4).map(|i| (ne[i] - 1) * nb[i]).sum::<usize>() + 4;
        if ne.contains(&0) || nb[0] != 4 {
            return Self::err(Op::View { offset }, format!("a window {ne:?} with strides {nb:?} is not supported"));
        }
        let s = self.node(x);
        if offset + span(ne, nb) > span(s.ne, s.nb) {
            return Self::err(Op::View { offset }, format!("window {ne:?} leaves its source {:?}", s.ne));
        }
        Ok(self.push(Op::View { offset }, &[x], ne, nb, Elem::F32))
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

    /// [`Op::GetRows`] of a matrix.
    pub fn get_rows(&mut self, x: Value, ids: Value) -> Result<Value, IrError> {
        let (a, b) = (self.ne(x), self.ne(ids));
        if self.node(ids).elem != Elem::I32 || a[2] != 1 || a[3] != 1 || b[1..] != [1, 1, 1] {
            return Self::err(Op::GetRows, format!("{a:?} by {b:?} is not supported"));
        }
        Ok(self.f32(Op::GetRows, &[x, ids], [a[0], b[0], 1, 1]))
    }

    /// [`Op::GetRowsBack`]: `n_rows` is the number of rows of the matrix the rows were taken from.
    pub fn get_rows_back(&mut self, g: Value, ids: Value, n_rows: usize) -> Value {
        let ne = [self.ne(g)[0], n_rows, 1, 1];
        self.f32(Op::GetRowsBack, &[g, ids], ne)
    }

    /// [`Op::RepeatBack`]; the value itself where the shape is the same.
    pub fn repeat_back(&mut self, x: Value, ne: Shape) -> Value {
        if self.ne(x) == ne { x } else { self.f32(Op::RepeatBack, &[x], ne) }
    }

    /// [`Op::Acc`].
    pub fn acc(&mut self, x: Value, y: Value, nb: [usize; 3], offset: usize) -> Value {
        self.f32(Op::Acc { nb, offset }, &[x, y], self.ne(x))
    }

    /// [`Op::LogProbHead`].
    pub fn log_prob_head(&mut self, logits: Value) -> Result<Value, IrError> {
        let ne = self.ne(logits);
        if ne[2] != 1 || ne[3] != 1 || !self.is_contiguous(logits) {
            return Self::err(Op::LogProbHead, format!("logits of shape {ne:?}"));
        }
        Ok(self.f32(Op::LogProbHead, &[logits], ne))
    }
}
