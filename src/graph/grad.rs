//! Reverse-mode differentiation as a graph-to-graph transform: one rule for each op.
//!
//! [`vjp`] is the whole table. A rule gets the gradient `g` of the node's result and answers with the gradient of each
//! active source (vector-Jacobian product). Weights, masks and positions are never active.

use super::ir::{Glu, Graph, IrError, Op, Shape, Unary, Value};

/// Extends `graph` by the gradients of a scalar with respect to each of `wrt`, given `seed`, its gradient with respect to
/// `of`. Values of `wrt` may depend on each other: each gets its total derivative.
///
/// # Errors
/// [`IrError::NoRule`] naming the first op on the way that cannot be differentiated.
pub fn differentiate(graph: &mut Graph, of: Value, seed: Value, wrt: &[Value]) -> Result<Vec<Value>, IrError> {
    let nowhere = |why: &str| IrError::NoRule { op: "graph".into(), why: why.to_owned() };
    let n = of.0 as usize + 1;
    let mut active = vec![false; n];
    for v in wrt {
        *active.get_mut(v.0 as usize).ok_or_else(|| nowhere("the result does not depend on the entry"))? = true;
    }
    for i in 0..n {
        active[i] |= graph.nodes()[i].src.iter().any(|s| active[s.0 as usize]);
    }
    if !active[of.0 as usize] {
        return Err(nowhere("the result does not depend on the entry"));
    }
    let lowest = wrt.iter().map(|v| v.0 as usize).min().ok_or_else(|| nowhere("there is no entry"))?;
    let mut grads: Vec<Option<Value>> = vec![None; n];
    grads[of.0 as usize] = Some(seed);
    for i in (lowest + 1..n).rev() {
        let (true, Some(g)) = (active[i], grads[i]) else { continue };
        for (source, d) in vjp(graph, Value(i as u32), g, &active)? {
            let slot = source.0 as usize;
            grads[slot] = Some(match grads[slot] {
                Some(sum) => graph.add(sum, d)?,
                None => d,
            });
        }
    }
    wrt.iter()
        .map(|v| {
            let g = grads[v.0 as usize].ok_or_else(|| nowhere("no gradient reaches the entry"))?;
            Ok(graph.contiguous(g))
        })
        .collect()
}

/// The rules. `active[v]`: value `v` depends on what is differentiated.
fn vjp(graph: &mut Graph, v: Value, g: Value, active: &[bool]) -> Result<Vec<(Value, Value)>, IrError> {
    let node = graph.node(v).clone();
    let on = |i: usize| node.src.get(i).is_some_and(|s| active[s.0 as usize]);
    let none = |why: &str| IrError::NoRule { op: node.op.name(), why: why.to_owned() };
    // A rule that multiplies or reshapes wants its gradient without gaps.
    let g = graph.contiguous(g);
    let mut out = Vec::with_capacity(2);
    match node.op {
        Op::Input(_) | Op::Weight(_) => {}
        // d(x + y) = dx + dy
        Op::Add => {
            let (x, y) = (node.src[0], node.src[1]);
            if on(0) {
                out.push((x, g));
            }
            if on(1) {
                out.push((y, sum_to(graph, g, graph.ne(y))));
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
        // d(s x + b) = s dx
        Op::Scale { s, .. } => out.push((node.src[0], graph.scale(g, s, 0.0))),
        // out[n, m] = sum_k x[k, n] y[k, m]:  dy = x^T-product of g,  dx[k, n] = sum_m y[k, m] g[n, m]
        Op::MulMat { .. } => mul_mat_rule(graph, &node.src, g, (on(0), on(1)), &mut out, &none)?,
        Op::RmsNorm { eps } => {
            let x = node.src[0];
            out.push((x, graph.same(Op::RmsNormBack { eps }, &[g, x])));
        }
        // A rotation: the gradient turns back by the same angles.
        Op::Rope(params) => {
            let mut src = node.src.clone();
            src[0] = g;
            out.push((node.src[0], graph.same(Op::RopeBack(params), &src)));
        }
        // y = softmax(s x + mask):  dx = s y (g - <g, y>)
        Op::SoftMax { scale, .. } => {
            if on(1) {
                return Err(none("a mask that depends on the steered residual stream"));
            }
            out.push((node.src[0], graph.same(Op::SoftMaxBack { scale }, &[g, v])));
        }
        // y = act(a) b:  da = g b act'(a),  db = g act(a)
        Op::Glu(kind) => {
            let (a, b) = (node.src[0], node.src[1]);
            let unary = match kind {
                Glu::Swiglu => Unary::Silu,
                Glu::Geglu => Unary::Gelu,
            };
            if on(0) {
                let gb = graph.mul(g, b)?;
                out.push((a, unary_back(graph, unary, gb, a)?));
            }
            if on(1) {
                let a = graph.contiguous(a);
                let act = graph.same(Op::Unary(unary), &[a]);
                out.push((b, graph.mul(g, act)?));
            }
        }
        Op::Unary(kind) => out.push((node.src[0], unary_back(graph, kind, g, node.src[0])?)),
        Op::Cont | Op::Reshape => {
            let x = node.src[0];
            out.push((x, graph.reshape(g, graph.ne(x))?));
        }
        Op::View { offset } => {
            let x = node.src[0];
            let whole = graph.is_contiguous(x)
                && graph.is_contiguous(v)
                && super::ir::n_elements(node.ne) == super::ir::n_elements(graph.ne(x));
            let d = if whole {
                graph.reshape(g, graph.ne(x))?
            } else if graph.is_contiguous(x) {
                // Zeros of the source's shape, with the gradient put back into the window.
                let zeros = graph.scale(x, 0.0, 0.0);
                graph.acc(zeros, g, [node.nb[1], node.nb[2], node.nb[3]], offset)
            } else {
                return Err(none("a window into a source with gaps"));
            };
            out.push((x, d));
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
            let n_rows = graph.ne(x)[1];
            out.push((x, graph.get_rows_back(g, ids, n_rows)));
        }
        Op::MulMatT
        | Op::RmsNormBack { .. }
        | Op::RopeBack(_)
        | Op::SoftMaxBack { .. }
        | Op::SiluBack
        | Op::GetRowsBack
        | Op::RepeatBack
        | Op::Acc { .. }
        | Op::LogProbHead => return Err(none("second derivatives are not needed here")),
    }
    out.retain(|(source, _)| active[source.0 as usize]);
    Ok(out)
}

/// Sums `g` down to a shape it was repeated from.
fn sum_to(graph: &mut Graph, g: Value, ne: Shape) -> Value {
    graph.repeat_back(g, ne)
}

/// Gradient of an elementwise function: `g f'(x)`.
fn unary_back(graph: &mut Graph, kind: Unary, g: Value, x: Value) -> Result<Value, IrError> {
    let x = graph.contiguous(x);
    match kind {
        Unary::Silu => Ok(graph.same(Op::SiluBack, &[g, x])),
        // d tanh(x) = 1 - tanh(x)^2
        Unary::Tanh => {
            let t = graph.same(Op::Unary(Unary::Tanh), &[x]);
            let tt = graph.mul(t, t)?;
            let d = graph.scale(tt, -1.0, 1.0);
            graph.mul(g, d)
        }
        // gelu(x) = x (1 + tanh u) / 2 with u = c x (1 + a x^2)   (Hendrycks & Gimpel 2016, the tanh form)
        // gelu'(x) = (1 + t) / 2 + x (1 - t^2) c (1 + 3 a x^2) / 2 with t = tanh u
        Unary::Gelu => {
            const C: f32 = 0.797_884_6; // sqrt(2 / pi)
            const A: f32 = 0.044_715;
            let xx = graph.mul(x, x)?;
            let poly = graph.scale(xx, C * A, C);
            let u = graph.mul(poly, x)?;
            let t = graph.same(Op::Unary(Unary::Tanh), &[u]);
            let tt = graph.mul(t, t)?;
            let sech2 = graph.scale(tt, -0.5, 0.5);
            let slope = graph.scale(xx, 3.0 * C * A, C);
            let xs = graph.mul(slope, x)?;
            let right = graph.mul(xs, sech2)?;
            let left = graph.scale(t, 0.5, 0.5);
            let d = graph.add(left, right)?;
            graph.mul(g, d)
        }
    }
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
    if matches!(graph.node(x).op, Op::Weight(_)) {
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
