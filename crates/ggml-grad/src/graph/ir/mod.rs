//! The intermediate representation: a compute graph in SSA form, of the ops that llama.cpp's graphs are made of.
//!
//! Shapes are ggml's: four extents, fastest first, so a matrix of `n` rows of `k` elements is `[k, n, 1, 1]`. This module
//! knows nothing of llama.cpp, ggml or the kernels: weights and inputs are numbers that are resolved when the graph is run.

mod graph;

pub use graph::Graph;

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

impl Elem {
    /// Bytes of an element; None for a weight's own type.
    pub fn size(self) -> Option<usize> {
        match self {
            Self::F32 | Self::I32 => Some(4),
            Self::F16 => Some(2),
            Self::Weight => None,
        }
    }
}

/// Shape: extents, fastest first.
pub type Shape = [usize; 4];

/// Number of elements of a shape.
pub fn n_elements(ne: Shape) -> usize {
    ne.iter().product()
}

/// Elementwise functions of one argument.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Unary {
    /// Hyperbolic tangent.
    Tanh,
    /// `x * sigmoid(x)`.
    Silu,
    /// GELU, tanh form.
    Gelu,
    /// GELU with the error function: `x (1 + erf(x / sqrt 2)) / 2`.
    GeluErf,
    /// GELU, sigmoid form: `x * sigmoid(1.702 x)`.
    GeluQuick,
    /// `max(x, 0)`.
    Relu,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// `e^x`.
    Exp,
    /// `log(1 + e^x)`.
    Softplus,
    /// `-x`.
    Neg,
    /// `|x|`.
    Abs,
    /// -1, 0 or 1.
    Sgn,
    /// 1 where x > 0, else 0.
    Step,
    /// xIELU (Huang & Schlag 2024, arXiv 2411.13010): `p x^2 + beta x` above 0, `n (e^min(x, eps) - 1 - x) + beta x`
    /// below.
    Xielu {
        /// Curvature below 0.
        n: f32,
        /// Curvature above 0.
        p: f32,
        /// Slope at 0.
        beta: f32,
        /// Largest argument of the exponential.
        eps: f32,
    },
}

/// Gated activations: `act(gate) * up`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Glu {
    /// ReLU gate.
    Reglu,
    /// SiLU gate.
    Swiglu,
    /// GELU gate, tanh form.
    Geglu,
    /// GELU gate with the error function.
    GegluErf,
    /// GELU gate, sigmoid form.
    GegluQuick,
    /// `a sigmoid(alpha a) (b + 1)` with `a = min(gate, limit)`, `b` = up between `-limit` and `limit` (gpt-oss).
    SwigluOai {
        /// Factor inside the sigmoid.
        alpha: f32,
        /// Bound of both sources.
        limit: f32,
    },
    /// `silu(min(gate, limit)) b`, `b` = up between `-limit` and `limit`.
    SwigluClamp {
        /// Bound of both sources.
        limit: f32,
    },
}

/// Scans over states that are matrices, `M` with a row for each number of the value v. Sources are in ggml's order; `n` numbers a
/// head, tokens of all sequences one after the other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MatrixScan {
    /// RWKV 6 (Peng et al. 2024, arXiv 2404.05892): k, v, r `[n, n_head, tokens]`, u `[n, n_head]`, w, states;
    /// `y = (M + v (u k)^T) r`, then `M <- M diag(w) + v k^T`.
    Wkv6,
    /// RWKV 7 (Peng et al. 2025, arXiv 2503.14456): r, w, k, v, a, b `[n, n_head, tokens]`, states;
    /// `M <- M (diag(w) + a b^T) + v k^T`, `y = M r`.
    Wkv7,
    /// Gated linear attention (Yang et al. 2023, arXiv 2312.06635): k, v, q, g `[n, n_head, tokens]`, states;
    /// `M <- M diag(g) + v k^T`, `y = scale M q`.
    Gated {
        /// Factor on the result.
        scale: f32,
    },
    /// Gated delta net (Yang et al. 2024, arXiv 2412.06464; with a gate for each number of the key: Kimi Linear, arXiv
    /// 2510.26692): q, k `[n, heads, tokens, sequences]`, v `[n, n_head, tokens, sequences]`, g `[1 or n, ...]`, beta `[1, ...]`,
    /// states `[n, n, n_head, sequences]`; `M <- M diag(e^g)`, `M <- M + beta (v - M k) k^T`, `y = M q / sqrt n`.
    DeltaNet,
}

/// Forms of [`Op::MatrixScanBack`]: `M <- M diag(w) + (M a) b^T + v k^T`, `y = M r`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MatrixScanBack {
    /// There are a and b.
    pub delta: bool,
    /// y is read from the states before the token.
    pub before: bool,
    /// The states at the start have a row for each number of the key.
    pub by_key: bool,
}

/// An op's parameters as ggml keeps them (floats as their bits).
pub type OpParams = [i32; 16];

/// An operation. Sources are in [`Node::src`]; `x`, `y` below are its first and second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    /// Data set for each run.
    Input(InputId),
    /// A frozen tensor of the model.
    Weight(WeightId),
    /// `x + y`, `y` repeated to `x`'s shape.
    Add,
    /// `x - y`, `y` repeated to `x`'s shape.
    Sub,
    /// `x * y`, `y` repeated to `x`'s shape.
    Mul,
    /// `x / y`, `y` repeated to `x`'s shape.
    Div,
    /// `x + y[:, id]`: to each row `[n, slot, token]` the row of the weight `y` that the third source, `[slot, token]`,
    /// names (biases of experts).
    AddId,
    /// `s * x + b`.
    Scale {
        /// Factor.
        s: f32,
        /// Bias.
        b: f32,
    },
    /// `x` between `min` and `max`.
    Clamp {
        /// Lower bound.
        min: f32,
        /// Upper bound.
        max: f32,
    },
    /// `x^2`.
    Sqr,
    /// Square root.
    Sqrt,
    /// Sum of each row: `[n, ...] -> [1, ...]`.
    SumRows,
    /// Mean of each row: `[n, ...] -> [1, ...]`.
    Mean,
    /// `x` repeated to the node's shape.
    Repeat,
    /// Rows of `x` times rows of `y`: `[k, n] , [k, m] -> [n, m]`; `x` repeated over `y`'s two outer dimensions. The
    /// parameters hold ggml's precision flags.
    MulMat(OpParams),
    /// `x^T y` for a weight `x`: `[k, n] , [n, m] -> [k, m]`; `x` repeated over `y`'s two outer dimensions. The product a
    /// backward pass is made of. A third source, of the result's shape, is added.
    MulMatT,
    /// As [`Op::MulMat`], with a separate matrix for each row of `y`: `x [k, n, n_expert]`, `y [k, 1 or slots, tokens]`,
    /// third source the matrices' numbers `[slots, tokens]` `-> [n, slots, tokens]` (mixtures of experts).
    MulMatId(OpParams),
    /// As [`Op::MulMatT`] with a separate matrix for each row: `x [k, n, n_expert]`, `y [n, slots, tokens]`, third source
    /// `[slots, tokens]` `-> [k, slots, tokens]`.
    MulMatIdT,
    /// Gradient of the matrix of an [`Op::MulMat`]: `x [k, m]`, `y [n, m]` `-> [k, n] = sum_m x[k, m] y[n, m]`, over all outer
    /// dimensions. A third source, `[slots, tokens]`, numbers the matrix that each row of `y [n, slots, tokens]` belongs to, as in
    /// [`Op::MulMatId`]: `-> [k, n, n_expert]`.
    OuterSum,
    /// Normalisation of each row to mean 0 and variance 1.
    Norm {
        /// Added to the variance.
        eps: f32,
    },
    /// Root-mean-square normalisation of each row.
    RmsNorm {
        /// Added to the mean square.
        eps: f32,
    },
    /// Gradient of [`Op::RmsNorm`]: `x` is the gradient of the result, `y` the normalised value's source. A third source,
    /// `[n]`, is what each row of the gradient is multiplied with first.
    RmsNormBack {
        /// As in the forward op.
        eps: f32,
    },
    /// Each row divided by its Euclidean length (at least `eps`).
    L2Norm {
        /// The least length.
        eps: f32,
    },
    /// Rotary position embedding; `y` holds positions, a third source may hold frequency factors.
    Rope(OpParams),
    /// The inverse rotation: gradient of [`Op::Rope`].
    RopeBack(OpParams),
    /// Softmax of `scale * x + slope * y` over each row. The mask `y` may be missing; a third source, one number a head,
    /// adds a term to the sums of that head (attention sinks).
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
    /// Softmax attention in one: queries `[k, n_head, n]`, keys and values `[k, n_head_kv, n_kv]`, a mask, and the same
    /// result made of the ops it stands for, which is taken instead where ggml's own kernels are asked for. `-> [k_v, n_head,
    /// n]`, contiguous.
    Attention {
        /// Factor on the scores.
        scale: f32,
    },
    /// Gradient of [`Op::Attention`] with respect to the queries. Sources: queries, keys, values, mask, gradient of the
    /// result. The result holds `k n_head n` elements; the kernel may append what [`Op::AttentionBackKv`] reads.
    AttentionBackQ {
        /// As in the forward op.
        scale: f32,
    },
    /// The same for keys and values, one after the other in the result; the last source is the result of
    /// [`Op::AttentionBackQ`].
    AttentionBackKv {
        /// As in the forward op.
        scale: f32,
    },
    /// Streams of each token added up with weights (hyper-connections): `x [n, streams, tokens]`, weights `y [streams,
    /// tokens]` `-> [n, tokens]`, `scale` times the sum.
    MixStreams {
        /// Factor on the sum.
        scale: f32,
    },
    /// A causal convolution of each channel along the tokens (Mamba): `x [d + tokens - 1, n, sequences]`, filters `y [d, n]`
    /// `-> [n, tokens, sequences]`.
    SsmConv,
    /// Gradient of [`Op::SsmConv`] with respect to `x`, from that of the result and the filters.
    SsmConvBack,
    /// The selective scan of Mamba 1 and 2 (Gu & Dao 2023, arXiv 2312.00752; Dao & Gu 2024, arXiv 2405.21060). Sources: the
    /// states at the start `[n_state, dim, n_head, n]`, x `[dim, n_head, tokens, sequences]`, dt `[n_head, tokens, sequences]`,
    /// A `[n_state or 1, n_head]`, B and C `[n_state, n_group, tokens, sequences]`, and for each sequence the number of its
    /// state, `[sequences]`. With `d = log(1 + e^dt)`: `h <- e^(d A) h + d x B`, `y = C h`. The result is flat: y, shaped as x,
    /// then the last state of each sequence.
    SsmScan,
    /// Gradient of [`Op::SsmScan`] with respect to x, dt, B and C, one after the other in the result. Sources: those of the
    /// scan, and the gradient of its result, whose states count as unused.
    SsmScanBack,
    /// A scan over states that are matrices. The result is flat: y, then the last state of each sequence.
    MatrixScan(MatrixScan),
    /// Gradient of such a scan, in one form for all. Sources: the states at the start, `[n, n, n_head, sequences]`, then r, w, k, v
    /// (with the delta rule, a and b too) and the gradient of y, `[n, n_head, tokens, sequences]` each. Result: the gradients of
    /// those between, one after the other.
    MatrixScanBack(MatrixScanBack),
    /// A gated activation of two sources, gate first.
    Glu(Glu),
    /// An elementwise function.
    Unary(Unary),
    /// Gradient of SiLU: `x` is the gradient of the result, `y` the argument. A third source of the same shape is another
    /// factor.
    SiluBack,
    /// Gradient of GELU in its tanh form, with the sources of [`Op::SiluBack`].
    GeluBack,
    /// A contiguous copy.
    Cont,
    /// The same numbers in another element type, the node's.
    Cast,
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
    /// Rows of `x` named by the integers `y`: `[n, rows, a, b] , [m, a, b] -> [n, m, a, b]`.
    GetRows,
    /// Gradient of [`Op::GetRows`] of a matrix: rows of `x` added up at the rows that `y` names.
    GetRowsBack,
    /// The same for more than one matrix: `x [n, m, a, b] , y [m, a, b] -> [n, rows, a, b]`.
    ScatterRows,
    /// `x` with its rows that the integers of the third source name replaced by those of `y`.
    SetRows,
    /// Gradient of a repetition: `x` summed down to the node's shape.
    RepeatBack,
    /// `x` with `y` added into the window that the strides and the offset (bytes) describe.
    Acc {
        /// Strides of dimensions 1 to 3 of the window.
        nb: [usize; 3],
        /// Offset of the window.
        offset: usize,
    },
    /// An op that the forward pass repeats as it was and that has no gradient rule: choices of experts, mostly, where none
    /// is needed.
    Other {
        /// ggml's number.
        code: u32,
        /// ggml's name.
        name: &'static str,
        /// Its parameters.
        params: OpParams,
    },
    /// The fused LM-head loss: from the LM head `x [n_embd, n_vocab]` and hidden states `y [n_embd, n_rows]` to the gradient of the same sum
    /// with respect to the hidden states: [`Op::MulMat`], [`Op::LogProbHead`] and [`Op::MulMatT`] in one, without a table of
    /// logits. With the hidden states of a reference as a third source: the gradient of `-coef KL(reference || policy)` summed
    /// over the rows, whose coefficients are those of their labels; the executor then records the divergences as well.
    LossHead,
    /// From logits `[n_vocab, n_rows]` to the gradient of `sum over rows and labels of coef * log p(label)`; the rows'
    /// labels and coefficients are given to the executor, which also records each log p. With the logits of a reference as a
    /// second source: as for [`Op::LossHead`].
    LogProbHead,
}

impl Op {
    /// A short name for messages.
    pub fn name(&self) -> String {
        if let Self::Other { name, .. } = self {
            return (*name).to_owned();
        }
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
        /// The mismatch.
        why: String,
    },
    /// An op whose gradient is not known for these sources.
    #[error("no gradient rule for {op}: {why}")]
    NoRule {
        /// The op.
        op: String,
        /// The reason.
        why: String,
    },
}

/// Strides of a contiguous value of 4-byte elements.
pub fn contiguous(ne: Shape) -> Shape {
    dense(ne, 4)
}

fn dense(ne: Shape, size: usize) -> Shape {
    let mut nb = [size, 0, 0, 0];
    for i in 1..4 {
        nb[i] = nb[i - 1] * ne[i - 1];
    }
    nb
}
