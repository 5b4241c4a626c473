//! The rules: for each op the gradient of its sources from the gradient of its result.

use crate::graph::ir::{Elem, Glu, Graph, IrError, Op, Shape, Unary, Value, n_elements};

/// A contribution to the gradient of a value.
pub(super) enum Part {
    /// In the shape of the value.
    Whole(Value),
    /// Of a window into it: strides of dimensions 1 to 3 and offset.
    Window(Value, [usize; 3], usize),
}

/// The rules. `active[v]`: value `v` depends on what is differentiated.
pub(super) fn vjp(graph: &mut Graph, v: Value, g: Value, active: &[bool]) -> Result<Vec<(Value, Part)>, IrError> {
    let node = graph.node(v).clone();
    let on = |i: usize| node.src.get(i).is_some_and(|s| active[s.0 as usize]);
    let none = |why: &str| IrError::NoRule { op: node.op.name(), why: why.to_owned() };
    // A rule that multiplies or reshapes wants its gradient without gaps.
    let g = graph.contiguous(g);
    let mut out: Vec<(Value, Value)> = Vec::with_capacity(2);
    match node.op {
        Op::Input(_) | Op::Weight(_) => {}
        // d(x + y) = dx + dy;  the bias rows of AddId are weights
        Op::Add | Op::AddId => {
            let (x, y) = (node.src[0], node.src[1]);
            if on(0) {
                out.push((x, g));
            }
            if on(1) && node.op == Op::AddId {
                return Err(none("a bias that depends on the steered residual stream"));
            }
            if on(1) {
                out.push((y, sum_to(graph, g, graph.ne(y))));
            }
        }
        // d(x - y) = dx - dy
        Op::Sub => {
            let (x, y) = (node.src[0], node.src[1]);
            if on(0) {
                out.push((x, g));
            }
            if on(1) {
                let minus = graph.scale(g, -1.0, 0.0);
                out.push((y, sum_to(graph, minus, graph.ne(y))));
            }
        }
        // d(x y) = y dx + x dy
        Op::Mul => {
            let (x, y) = (node.src[0], node.src[1]);
            if on(0) {
                out.push((x, graph.mul(g, y)?));
            }
            if on(1) {
                let x = graph.contiguous(x);
                let gx = graph.mul(g, x)?;
                out.push((y, sum_to(graph, gx, graph.ne(y))));
            }
        }
        // d(x / y) = dx / y - (x / y) dy / y
        Op::Div => {
            let (x, y) = (node.src[0], node.src[1]);
            let gy = graph.div(g, y)?;
            if on(0) {
                out.push((x, gy));
            }
            if on(1) {
                let gvy = graph.mul(gy, v)?;
                let minus = graph.scale(gvy, -1.0, 0.0);
                out.push((y, sum_to(graph, minus, graph.ne(y))));
            }
        }
        // d(s x + b) = s dx
        Op::Scale { s, .. } => out.push((node.src[0], graph.scale(g, s, 0.0))),
        // 1 between the bounds, 0 outside
        Op::Clamp { min, max } => {
            let x = graph.contiguous(node.src[0]);
            out.push((node.src[0], inside(graph, g, x, min, max)?));
        }
        // d x^2 = 2 x dx
        Op::Sqr => {
            let x = graph.contiguous(node.src[0]);
            let gx = graph.mul(g, x)?;
            out.push((node.src[0], graph.scale(gx, 2.0, 0.0)));
        }
        // y = sqrt x:  dx = g / (2 y)
        Op::Sqrt => {
            let gy = graph.div(g, v)?;
            out.push((node.src[0], graph.scale(gy, 0.5, 0.0)));
        }
        // Every number of the row counts once, or 1/n times.
        Op::SumRows | Op::Mean => {
            let ne = graph.ne(node.src[0]);
            let d = if node.op == Op::Mean { graph.scale(g, 1.0 / ne[0] as f32, 0.0) } else { g };
            out.push((node.src[0], graph.repeat(d, ne)?));
        }
        Op::Repeat => out.push((node.src[0], sum_to(graph, g, graph.ne(node.src[0])))),
        // out[n, m] = sum_k x[k, n] y[k, m]:  dy = x^T-product of g,  dx[k, n] = sum_m y[k, m] g[n, m]
        Op::MulMat(_) => mul_mat_rule(graph, &node.src, g, (on(0), on(1)), &mut out, &none)?,
        // out[n, s, t] = sum_k x[k, n, id(s, t)] y[k, s, t]:  dy[k, s, t] = sum_n x[k, n, id(s, t)] g[n, s, t]
        Op::MulMatId(_) => {
            if on(0) {
                return Err(none("expert matrices that depend on the steered residual stream"));
            }
            let d = graph.mul_mat_id_t(node.src[0], g, node.src[2])?;
            // One row of y may serve all slots of its token.
            out.push((node.src[1], sum_to(graph, d, graph.ne(node.src[1]))));
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
            out.push((node.src[0], graph.same(Op::RmsNormBack { eps }, &src)));
        }
        // The mean of squares of x - mean(x) is the variance of x: this is RmsNorm of c = x - mean(x).
        // dx = dc - mean(dc)
        Op::Norm { eps } => {
            let x = graph.contiguous(node.src[0]);
            let c = centred(graph, x)?;
            let dc = graph.same(Op::RmsNormBack { eps }, &[g, c]);
            out.push((node.src[0], centred(graph, dc)?));
        }
        // x / |x| = rms_norm(x) / sqrt(n), but for rows shorter than eps
        Op::L2Norm { eps } => {
            let x = graph.contiguous(node.src[0]);
            let n = node.ne[0] as f32;
            let scaled = graph.scale(g, 1.0 / n.sqrt(), 0.0);
            out.push((node.src[0], graph.same(Op::RmsNormBack { eps: eps * eps / n }, &[scaled, x])));
        }
        // A rotation: the gradient turns back by the same angles.
        Op::Rope(params) => {
            let mut src = node.src.clone();
            src[0] = g;
            out.push((node.src[0], graph.same(Op::RopeBack(params), &src)));
        }
        // y = softmax(s x + mask):  dx = s y (g - <g, y>). A sink takes its share of the sums but has no column, so the
        // same holds with it.
        Op::SoftMax { scale, .. } => {
            if on(1) || on(2) {
                return Err(none("a mask or a sink that depends on the steered residual stream"));
            }
            out.push((node.src[0], graph.same(Op::SoftMaxBack { scale }, &[g, v])));
        }
        Op::Attention { .. } => {
            let d = graph.attention_back(v, g)?;
            for i in (0..3).filter(|&i| on(i)) {
                out.push((node.src[i], d[i]));
            }
        }
        Op::Glu(kind) => glu_rule(graph, kind, &node.src, g, (on(0), on(1)), &mut out)?,
        // Constant but for jumps.
        Op::Unary(Unary::Sgn | Unary::Step) => {}
        Op::Unary(kind) => out.push((node.src[0], unary_back(graph, kind, g, node.src[0])?)),
        Op::Cont | Op::Reshape => {
            let x = node.src[0];
            out.push((x, graph.reshape(g, graph.ne(x))?));
        }
        // Rounding aside, a cast is the identity.
        Op::Cast => {
            let f32 = graph.node(node.src[0]).elem == Elem::F32 && node.elem == Elem::F32;
            if !f32 {
                return Err(none("a cast between different types"));
            }
            out.push((node.src[0], g));
        }
        Op::View { offset } => {
            let x = node.src[0];
            let whole =
                graph.is_contiguous(x) && graph.is_contiguous(v) && n_elements(node.ne) == n_elements(graph.ne(x));
            if whole {
                out.push((x, graph.reshape(g, graph.ne(x))?));
            } else if graph.is_contiguous(x) {
                return Ok(vec![(x, Part::Window(g, [node.nb[1], node.nb[2], node.nb[3]], offset))]);
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
            out.push((node.src[0], graph.contiguous(d)));
        }
        Op::Pad(_) => {
            let x = node.src[0];
            let nb = graph.node(g).nb;
            let d = graph.view(g, graph.ne(x), nb, 0)?;
            out.push((x, graph.contiguous(d)));
        }
        Op::Concat { dim } => {
            let nb = graph.node(g).nb;
            let mut offset = 0;
            for i in 0..2 {
                let ne = graph.ne(node.src[i]);
                if on(i) {
                    let d = graph.view(g, ne, nb, offset)?;
                    out.push((node.src[i], graph.contiguous(d)));
                }
                offset += nb[dim] * ne[dim];
            }
        }
        Op::GetRows => {
            let (x, ids) = (node.src[0], node.src[1]);
            out.push((x, graph.get_rows_back(g, ids, graph.ne(x))));
        }
        Op::Other { .. } => {
            return Err(none(
                "training on this model is not possible yet; `bidpo check` lists every op that is missing",
            ));
        }
        Op::MulMatT
        | Op::MulMatIdT
        | Op::RmsNormBack { .. }
        | Op::RopeBack(_)
        | Op::SoftMaxBack { .. }
        | Op::AttentionBackQ { .. }
        | Op::AttentionBackKv { .. }
        | Op::SiluBack
        | Op::GeluBack
        | Op::GetRowsBack
        | Op::ScatterRows
        | Op::SetRows
        | Op::RepeatBack
        | Op::Acc { .. }
        | Op::LossHead
        | Op::LogProbHead => return Err(none("it occurs in gradients and in choices only")),
    }
    Ok(out.into_iter().map(|(source, d)| (source, Part::Whole(d))).collect())
}

/// Sums `g` down to a shape it was repeated from.
fn sum_to(graph: &mut Graph, g: Value, ne: Shape) -> Value {
    graph.repeat_back(g, ne)
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
    (on_a, on_b): (bool, bool),
    out: &mut Vec<(Value, Value)>,
) -> Result<(), IrError> {
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
            if on_a {
                let clamped = graph.same(Op::Clamp { min: -limit, max: limit }, &[b]);
                let factor = graph.scale(clamped, 1.0, one);
                let gb = graph.mul(g, factor)?;
                let d = graph.same(Op::SiluBack, &[gb, sa]);
                out.push((src[0], inside(graph, d, a, f32::NEG_INFINITY, limit)?));
            }
            if on_b {
                let silu = graph.same(Op::Unary(Unary::Silu), &[sa]);
                let act = graph.scale(silu, 1.0 / s, 0.0);
                let d = graph.mul(g, act)?;
                out.push((src[1], inside(graph, d, b, -limit, limit)?));
            }
            return Ok(());
        }
    };
    let g = graph.contiguous(g);
    if on_a {
        let d = match unary {
            Unary::Silu => graph.same(Op::SiluBack, &[g, a, b]),
            Unary::Gelu => graph.same(Op::GeluBack, &[g, a, b]),
            _ => {
                let gb = graph.mul(g, b)?;
                unary_back(graph, unary, gb, a)?
            }
        };
        out.push((src[0], d));
    }
    if on_b {
        // The same with g in the place of b.
        out.push((src[1], graph.glu(kind, a, g)?));
    }
    Ok(())
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
        // A kernel of its own: about ten passes over the widest activations of the graph otherwise.
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

fn mul_mat_rule(
    graph: &mut Graph,
    src: &[Value],
    g: Value, // [n, m, h, s], contiguous
    (on_x, on_y): (bool, bool),
    out: &mut Vec<(Value, Value)>,
    none: &dyn Fn(&str) -> IrError,
) -> Result<(), IrError> {
    let (x, y) = (src[0], src[1]); // [k, n, hx, s], [k, m, h, s]
    // Frozen, in a type of its own or a matrix of the model.
    if graph.node(x).elem == Elem::Weight || matches!(graph.node(x).op, Op::Weight(_)) {
        if on_y {
            out.push((y, graph.mul_mat_t(x, g)?));
        }
        return Ok(());
    }
    let (nx, ny, ng) = (graph.ne(x), graph.ne(y), graph.ne(g));
    if nx[3] != ny[3] {
        return Err(none("a product repeated over the outermost dimension"));
    }
    if on_y {
        // dy[k, m] = sum_n x[k, n] g[n, m]
        let xt = graph.transposed(x)?; // [n, k, hx, s]
        out.push((y, graph.mul_mat(xt, g, 0)?));
    }
    if on_x {
        // Heads that share x (grouped-query attention) lie next to each other in y: as more rows of one product, the
        // sum over them is part of the product.
        let group = ny[2] / nx[2];
        let y = graph.contiguous(y);
        let y = graph.reshape(y, [ny[0], ny[1] * group, nx[2], nx[3]])?; // [k, m*group, hx, s]
        let g = graph.reshape(g, [ng[0], ng[1] * group, nx[2], nx[3]])?; // [n, m*group, hx, s]
        let yt = graph.transposed(y)?; // [m*group, k, hx, s]
        let gt = graph.transposed(g)?; // [m*group, n, hx, s]
        out.push((x, graph.mul_mat(yt, gt, 0)?)); // [k, n, hx, s]
    }
    Ok(())
}
