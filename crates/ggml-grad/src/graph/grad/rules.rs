//! The rules: the gradients of an op's sources from the gradient of its result.

mod recurrent;

use crate::graph::ir::{Elem, Glu, Graph, IrError, Node, Op, Unary, Value, n_elements};

/// A contribution to the gradient of a source.
pub(super) enum Cotangent {
    /// In the shape of the result or of the source; the driver sums it over what the source was repeated to.
    Whole(Value),
    /// Of a window into the source.
    Window(Window),
}

/// The gradient of a window into a value.
pub(super) struct Window {
    /// In the shape of the window.
    pub g: Value,
    /// Strides of the window's dimensions 1 to 3, in bytes.
    pub nb: [usize; 3],
    /// Bytes from the start of the value.
    pub offset: usize,
}

/// Most sources of an op.
pub(super) const SOURCES: usize = 7;

/// By source.
pub(super) type Cotangents = [Option<Cotangent>; SOURCES];

/// The cotangents of the first sources.
fn leading<const N: usize>(parts: [Option<Cotangent>; N]) -> Cotangents {
    let mut all = Cotangents::default();
    all.iter_mut().zip(parts).for_each(|(slot, part)| *slot = part);
    all
}

/// The cotangent of the first source only.
fn first(d: Value) -> Cotangents {
    leading([Some(Cotangent::Whole(d))])
}

/// The cotangents of two sources.
fn both(dx: Option<Value>, dy: Option<Value>) -> Cotangents {
    leading([dx.map(Cotangent::Whole), dy.map(Cotangent::Whole)])
}

/// The rules: cotangents of the sources of `node`, whose result is `v`, from `g`, the gradient of the result. `wanted[i]`:
/// source `i` depends on what is differentiated. The driver drops all other cotangents; a rule looks at `wanted` only to
/// leave out work, or to refuse a source.
pub(super) fn vjp(
    graph: &mut Graph,
    node: &Node,
    v: Value,
    g: Value,
    wanted: [bool; SOURCES],
) -> Result<Cotangents, IrError> {
    let none = |why: &str| IrError::NoRule { op: node.op.name(), why: why.to_owned() };
    // A rule that multiplies or reshapes wants its gradient without gaps.
    let g = graph.contiguous(g);
    let src = &node.src[..];
    Ok(match node.op {
        Op::Input(_) | Op::Weight(_) => Cotangents::default(),
        // d(x + y) = dx + dy
        Op::Add => both(Some(g), Some(g)),
        // The bias rows are weights.
        Op::AddId => {
            if wanted[1] {
                return Err(none("a bias that depends on the steered residual stream"));
            }
            first(g)
        }
        // d(x - y) = dx - dy
        Op::Sub => both(Some(g), wanted[1].then(|| graph.scale(g, -1.0, 0.0))),
        // d(x y) = y dx + x dy
        Op::Mul => {
            let dx = if wanted[0] { Some(graph.mul(g, src[1])?) } else { None };
            let dy = if wanted[1] {
                let x = graph.contiguous(src[0]);
                Some(graph.mul(g, x)?)
            } else {
                None
            };
            both(dx, dy)
        }
        // d(x / y) = dx / y - (x / y) dy / y
        Op::Div => {
            let gy = graph.div(g, src[1])?;
            let dy = if wanted[1] {
                let gvy = graph.mul(gy, v)?;
                Some(graph.scale(gvy, -1.0, 0.0))
            } else {
                None
            };
            both(Some(gy), dy)
        }
        // d(s x + b) = s dx
        Op::Scale { s, .. } => first(graph.scale(g, s, 0.0)),
        // 1 between the bounds, 0 outside
        Op::Clamp { min, max } => {
            let x = graph.contiguous(node.src[0]);
            first(inside(graph, g, x, min, max)?)
        }
        // d x^2 = 2 x dx
        Op::Sqr => {
            let x = graph.contiguous(node.src[0]);
            let gx = graph.mul(g, x)?;
            first(graph.scale(gx, 2.0, 0.0))
        }
        // y = sqrt x:  dx = g / (2 y)
        Op::Sqrt => {
            let gy = graph.div(g, v)?;
            first(graph.scale(gy, 0.5, 0.0))
        }
        // d sum(x) = sum(dx):  each element of the row counts once, or 1/n times.
        Op::SumRows | Op::Mean => {
            let ne = graph.ne(node.src[0]);
            let d = if node.op == Op::Mean { graph.scale(g, 1.0 / ne[0] as f32, 0.0) } else { g };
            first(graph.repeat(d, ne)?)
        }
        Op::Repeat => first(g),
        Op::MulMat(_) => mul_mat_rule(graph, node, g, wanted)?,
        // out[n, s, t] = sum_k x[k, n, id(s, t)] y[k, s, t]:  dy[k, s, t] = sum_n x[k, n, id(s, t)] g[n, s, t]
        Op::MulMatId(_) => {
            let d = if wanted[1] { Some(graph.mul_mat_id_t(node.src[0], g, node.src[2])?) } else { None };
            // dx[k, n, e] = the sum over the rows (s, t) of expert e of y[k, s, t] g[n, s, t]
            let dx = match wanted[0] {
                true => {
                    let y = graph.contiguous(node.src[1]);
                    Some(graph.outer_sum_id(y, g, node.src[2], graph.ne(node.src[0])[2])?)
                }
                false => None,
            };
            // One row of y may serve all slots of its token.
            both(dx, d)
        }
        Op::RmsNorm { eps } => {
            let x = graph.contiguous(node.src[0]);
            // Most norms are followed by a product with a row of weights: in one with it.
            let behind = graph.node(g);
            let mut src = vec![g, x];
            if let (Op::Mul, &[product, w]) = (behind.op, &behind.src[..])
                && graph.ne(w) == [node.ne[0], 1, 1, 1]
                && graph.node(w).elem == Elem::F32
                && [product, w].iter().all(|&v| graph.is_contiguous(v))
            {
                src = vec![product, x, w];
            }
            src[0] = graph.contiguous(src[0]);
            first(graph.same(Op::RmsNormBack { eps }, &src))
        }
        // The mean of squares of x - mean(x) is the variance of x: this is RmsNorm of c = x - mean(x).
        // dx = dc - mean(dc)
        Op::Norm { eps } => {
            let x = graph.contiguous(node.src[0]);
            let c = centred(graph, x)?;
            let dc = graph.same(Op::RmsNormBack { eps }, &[g, c]);
            first(centred(graph, dc)?)
        }
        // x / |x| = rms_norm(x) / sqrt(n), but for rows shorter than eps
        Op::L2Norm { eps } => {
            let x = graph.contiguous(node.src[0]);
            let n = node.ne[0] as f32;
            let scaled = graph.scale(g, 1.0 / n.sqrt(), 0.0);
            first(graph.same(Op::RmsNormBack { eps: eps * eps / n }, &[scaled, x]))
        }
        // A rotation: the gradient turns back by the same angles.
        Op::Rope(params) => {
            let mut src = node.src.clone();
            src[0] = g;
            first(graph.same(Op::RopeBack(params), &src))
        }
        // y = softmax(s x + mask):  dx = s y (g - <g, y>). A sink takes its share of the sums but has no column, so the
        // same holds with it.
        Op::SoftMax { scale, .. } => {
            if wanted[1] || wanted[2] {
                return Err(none("a mask or a sink that depends on the steered residual stream"));
            }
            first(graph.same(Op::SoftMaxBack { scale }, &[g, v]))
        }
        Op::MatrixScan(kind) => recurrent::matrix_scan(graph, kind, src, g, wanted)?,
        Op::Attention { .. } => leading(graph.attention_back(v, g)?.map(|d| Some(Cotangent::Whole(d)))),
        // y[i, t] = s sum_h x[i, h, t] w[h, t]:  dx[i, h, t] = s w[h, t] g[i, t],  dw[h, t] = s sum_i x[i, h, t] g[i, t]
        Op::MixStreams { scale } => {
            let [n, streams, tokens, _] = graph.ne(src[0]);
            let g = graph.scale(g, scale, 0.0);
            let g = graph.reshape(g, [n, 1, tokens, 1])?;
            let dx = if wanted[0] {
                let each = graph.repeat(g, [n, streams, tokens, 1])?;
                let w = graph.contiguous(src[1]);
                let w = graph.reshape(w, [1, streams, tokens, 1])?;
                Some(graph.mul(each, w)?)
            } else {
                None
            };
            let dw = if wanted[1] {
                let x = graph.contiguous(src[0]);
                let product = graph.mul(x, g)?;
                let sums = graph.sum_rows(product);
                Some(graph.reshape(sums, [streams, tokens, 1, 1])?)
            } else {
                None
            };
            both(dx, dw)
        }
        // dx[j] = sum_k w[k] g[j - k]
        Op::SsmConv => {
            if wanted[1] {
                return Err(none("filters that depend on the steered residual stream"));
            }
            first(graph.ssm_conv_back(g, src[1])?)
        }
        // See the kernel. The states at the start are those of fresh sequences.
        Op::SsmScan => {
            if wanted[0] || wanted[3] {
                return Err(none("a first state or a decay that depends on the steered residual stream"));
            }
            let [dx, ddt, db, dc] = graph.ssm_scan_back(v, g)?.map(|d| Some(Cotangent::Whole(d)));
            leading([None, dx, ddt, None, db, dc])
        }
        Op::Glu(kind) => glu_rule(graph, kind, src, g, wanted)?,
        // Piecewise constant.
        Op::Unary(Unary::Sgn | Unary::Step) => Cotangents::default(),
        Op::Unary(kind) => first(unary_back(graph, kind, g, src[0])?),
        Op::Cont | Op::Reshape => first(graph.reshape(g, graph.ne(src[0]))?),
        // Rounding aside, a cast is the identity.
        Op::Cast => {
            let f32 = graph.node(node.src[0]).elem == Elem::F32 && node.elem == Elem::F32;
            if !f32 {
                return Err(none("a cast between different types"));
            }
            first(g)
        }
        Op::View { offset } => {
            let x = node.src[0];
            let whole =
                graph.is_contiguous(x) && graph.is_contiguous(v) && n_elements(node.ne) == n_elements(graph.ne(x));
            if whole {
                first(graph.reshape(g, graph.ne(x))?)
            } else if graph.is_contiguous(x) {
                let nb = [node.nb[1], node.nb[2], node.nb[3]];
                leading([Some(Cotangent::Window(Window { g, nb, offset }))])
            } else {
                return Err(none("a window into a source with gaps"));
            }
        }
        Op::Permute(axes) => {
            let mut inverse = [0; 4];
            for i in 0..4 {
                inverse[axes[i]] = i;
            }
            let d = graph.permute(g, inverse)?;
            first(graph.contiguous(d))
        }
        Op::Pad(_) => {
            let nb = graph.node(g).nb;
            let d = graph.view(g, graph.ne(src[0]), nb, 0)?;
            first(graph.contiguous(d))
        }
        Op::Concat { dim } => {
            let nb = graph.node(g).nb;
            let mut parts = [None; 2];
            let mut offset = 0;
            for (i, part) in parts.iter_mut().enumerate() {
                let ne = graph.ne(src[i]);
                if wanted[i] {
                    let d = graph.view(g, ne, nb, offset)?;
                    *part = Some(graph.contiguous(d));
                }
                offset += nb[dim] * ne[dim];
            }
            let [dx, dy] = parts;
            both(dx, dy)
        }
        Op::GetRows => {
            let (x, ids) = (src[0], src[1]);
            first(graph.get_rows_back(g, ids, graph.ne(x)))
        }
        Op::Other { .. } => {
            return Err(none(
                "training on this model is not possible yet; `bidpo check` lists every op that is missing",
            ));
        }
        Op::MulMatT
        | Op::MulMatIdT
        | Op::OuterSum
        | Op::RmsNormBack { .. }
        | Op::RopeBack(_)
        | Op::SoftMaxBack { .. }
        | Op::AttentionBackQ { .. }
        | Op::AttentionBackKv { .. }
        | Op::SiluBack
        | Op::GeluBack
        | Op::GetRowsBack
        | Op::ScatterRows
        | Op::SsmConvBack
        | Op::SsmScanBack
        | Op::MatrixScanBack(_)
        | Op::SetRows
        | Op::RepeatBack
        | Op::Acc { .. }
        | Op::LossHead
        | Op::LogProbHead => return Err(none("it occurs in gradients and in choices only")),
    })
}

/// `x - mean(x)`, row by row.
fn centred(graph: &mut Graph, x: Value) -> Result<Value, IrError> {
    let sum = graph.sum_rows(x);
    let mean = graph.scale(sum, 1.0 / graph.ne(x)[0] as f32, 0.0);
    graph.sub(x, mean)
}

/// `g` where `min < x < max`, else 0. Bounds may be infinite.
fn inside(graph: &mut Graph, g: Value, x: Value, min: f32, max: f32) -> Result<Value, IrError> {
    let mut g = g;
    for (s, bound) in [(1.0, -min), (-1.0, max)] {
        if bound.is_finite() {
            let distance = graph.scale(x, s, bound);
            let one = graph.same(Op::Unary(Unary::Step), &[distance]);
            g = graph.mul(g, one)?;
        }
    }
    Ok(g)
}

/// y = act(a) b:  da = g b act'(a),  db = g act(a)
fn glu_rule(
    graph: &mut Graph,
    kind: Glu,
    src: &[Value],
    g: Value,
    wanted: [bool; SOURCES],
) -> Result<Cotangents, IrError> {
    let (mut da, mut db) = (None, None);
    let (a, b) = (graph.contiguous(src[0]), graph.contiguous(src[1]));
    let unary = match kind {
        Glu::Reglu => Unary::Relu,
        Glu::Swiglu => Unary::Silu,
        Glu::Geglu => Unary::Gelu,
        Glu::GegluErf => Unary::GeluErf,
        Glu::GegluQuick => Unary::GeluQuick,
        Glu::SwigluOai { .. } | Glu::SwigluClamp { .. } => {
            // Both sources are clamped first; what is then multiplied is silu(s a) / s and b, or b + 1.
            let (s, limit, one) = match kind {
                Glu::SwigluOai { alpha, limit } => (alpha, limit, 1.0),
                Glu::SwigluClamp { limit } => (1.0, limit, 0.0),
                _ => unreachable!("matched above"),
            };
            let low = graph.same(Op::Clamp { min: f32::NEG_INFINITY, max: limit }, &[a]);
            let sa = graph.scale(low, s, 0.0);
            if wanted[0] {
                let clamped = graph.same(Op::Clamp { min: -limit, max: limit }, &[b]);
                let factor = graph.scale(clamped, 1.0, one);
                let gb = graph.mul(g, factor)?;
                let d = graph.same(Op::SiluBack, &[gb, sa]);
                da = Some(inside(graph, d, a, f32::NEG_INFINITY, limit)?);
            }
            if wanted[1] {
                let silu = graph.same(Op::Unary(Unary::Silu), &[sa]);
                let act = graph.scale(silu, 1.0 / s, 0.0);
                let d = graph.mul(g, act)?;
                db = Some(inside(graph, d, b, -limit, limit)?);
            }
            return Ok(both(da, db));
        }
    };
    let g = graph.contiguous(g);
    if wanted[0] {
        da = Some(match unary {
            Unary::Silu => graph.same(Op::SiluBack, &[g, a, b]),
            Unary::Gelu => graph.same(Op::GeluBack, &[g, a, b]),
            _ => {
                let gb = graph.mul(g, b)?;
                unary_back(graph, unary, gb, a)?
            }
        });
    }
    if wanted[1] {
        // The same with g in the place of b.
        db = Some(graph.glu(kind, a, g)?);
    }
    Ok(both(da, db))
}

/// Gradient of an elementwise function: `g f'(x)`.
fn unary_back(graph: &mut Graph, kind: Unary, g: Value, x: Value) -> Result<Value, IrError> {
    let x = graph.contiguous(x);
    let f = |graph: &mut Graph, kind: Unary, x: Value| graph.same(Op::Unary(kind), &[x]);
    let slope = match kind {
        Unary::Silu => {
            let g = graph.contiguous(g);
            return Ok(graph.same(Op::SiluBack, &[g, x]));
        }
        // d tanh(x) = 1 - tanh(x)^2
        Unary::Tanh => {
            let t = f(graph, Unary::Tanh, x);
            let tt = graph.mul(t, t)?;
            graph.scale(tt, -1.0, 1.0)
        }
        // One kernel: made of other ops, it would be about ten passes over the widest activations of the graph.
        Unary::Gelu => {
            let g = graph.contiguous(g);
            return Ok(graph.same(Op::GeluBack, &[g, x]));
        }
        // gelu(x) = x P(x) with the normal distribution P and its density p:  gelu'(x) = P(x) + x p(x). P is taken from
        // gelu itself, as gelu(z) / z; within 1e-6 of 0 at a z nearby, where P is the same to 1e-6.
        Unary::GeluErf => {
            const NEAR: f32 = 1e-6;
            let size = f(graph, Unary::Abs, x);
            let beyond = graph.scale(size, 1.0, -NEAR);
            let far = f(graph, Unary::Step, beyond);
            let shift = graph.scale(far, -2.0 * NEAR, 2.0 * NEAR);
            let z = graph.add(x, shift)?;
            let gelu = f(graph, Unary::GeluErf, z);
            let p = graph.div(gelu, z)?;
            let xx = graph.mul(x, x)?;
            let exponent = graph.scale(xx, -0.5, 0.0);
            let bell = f(graph, Unary::Exp, exponent);
            let xbell = graph.mul(bell, x)?;
            let density = graph.scale(xbell, 0.398_942_3, 0.0); // 1 / sqrt(2 pi)
            graph.add(p, density)?
        }
        // x s(c x) = silu(c x) / c, so its slope is silu'(c x), c = 1.702
        Unary::GeluQuick => {
            let cx = graph.scale(x, 1.702, 0.0);
            return Ok(graph.same(Op::SiluBack, &[g, cx]));
        }
        Unary::Relu => f(graph, Unary::Step, x),
        // s' = s (1 - s)
        Unary::Sigmoid => {
            let s = f(graph, Unary::Sigmoid, x);
            let rest = graph.scale(s, -1.0, 1.0);
            graph.mul(s, rest)?
        }
        Unary::Exp => f(graph, Unary::Exp, x),
        Unary::Softplus => f(graph, Unary::Sigmoid, x),
        Unary::Neg => return Ok(graph.scale(g, -1.0, 0.0)),
        Unary::Abs => f(graph, Unary::Sgn, x),
        Unary::Sgn | Unary::Step => graph.scale(x, 0.0, 0.0),
        // above 0: 2 p x + beta;  below: n (e^x - 1) + beta, and n (-1) + beta where the exponent is clamped
        Unary::Xielu { n, p, beta, eps } => {
            let positive = f(graph, Unary::Relu, x);
            let above = graph.scale(positive, 2.0 * p, beta);
            let minus = graph.scale(x, -1.0, 0.0);
            let depth = f(graph, Unary::Relu, minus);
            let negative = graph.scale(depth, -1.0, 0.0);
            let e = f(graph, Unary::Exp, negative);
            let free = inside(graph, e, x, f32::NEG_INFINITY, eps)?;
            let below = graph.scale(free, n, -n);
            // Of the two halves the one that does not apply: `below` above 0, where it must not count.
            let on = f(graph, Unary::Step, minus);
            let below = graph.mul(below, on)?;
            graph.add(above, below)?
        }
    };
    graph.mul(g, slope)
}

/// out[n, m] = sum_k x[k, n] y[k, m]:  dy[k, m] = sum_n x[k, n] g[n, m],  dx[k, n] = sum_m y[k, m] g[n, m]
fn mul_mat_rule(
    graph: &mut Graph,
    node: &Node,
    g: Value, // [n, m, h, s], contiguous
    wanted: [bool; SOURCES],
) -> Result<Cotangents, IrError> {
    let (x, y) = (node.src[0], node.src[1]); // [k, n, hx, s], [k, m, h, s]
    let (mut dx, mut dy) = (None, None);
    // A weight is frozen.
    if graph.node(x).elem == Elem::Weight || matches!(graph.node(x).op, Op::Weight(_)) {
        if wanted[1] {
            dy = Some(graph.mul_mat_t(x, g)?);
        }
        return Ok(both(None, dy));
    }
    // A matrix of an adapter: one for all rows of y.
    if wanted[0] && graph.is_given_matrix(x) {
        if wanted[1] {
            dy = Some(graph.mul_mat_t(x, g)?);
        }
        let y = graph.contiguous(y);
        return Ok(both(Some(graph.outer_sum(y, g)?), dy));
    }
    let (nx, ny, ng) = (graph.ne(x), graph.ne(y), graph.ne(g));
    if nx[3] != ny[3] {
        let why = "a matmul repeated over the outermost dimension".to_owned();
        return Err(IrError::NoRule { op: node.op.name(), why });
    }
    if wanted[1] {
        let xt = graph.transposed(x)?; // [n, k, hx, s]
        dy = Some(graph.mul_mat(xt, g, 0)?);
    }
    if wanted[0] {
        // Heads that share x (grouped-query attention) lie next to each other in y: as more rows of one product, the
        // sum over them is part of the product.
        let group = ny[2] / nx[2];
        let y = graph.contiguous(y);
        let y = graph.reshape(y, [ny[0], ny[1] * group, nx[2], nx[3]])?; // [k, m*group, hx, s]
        let g = graph.reshape(g, [ng[0], ng[1] * group, nx[2], nx[3]])?; // [n, m*group, hx, s]
        let yt = graph.transposed(y)?; // [m*group, k, hx, s]
        let gt = graph.transposed(g)?; // [m*group, n, hx, s]
        dx = Some(graph.mul_mat(yt, gt, 0)?); // [k, n, hx, s]
    }
    Ok(both(dx, dy))
}
