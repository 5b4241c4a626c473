//! The rules of scans over states that are matrices: each is brought into the form that one kernel differentiates.

use super::{Cotangent, Cotangents, SOURCES, leading};
use crate::graph::ir::{Graph, IrError, MatrixScan, MatrixScanBack, Op, Unary, Value, n_elements};

fn whole(d: Value) -> Option<Cotangent> {
    Some(Cotangent::Whole(d))
}

/// Cotangents of the sources of an [`Op::MatrixScan`] from `g`, the gradient of its result, whose states count as unused.
pub(super) fn matrix_scan(
    graph: &mut Graph,
    kind: MatrixScan,
    src: &[Value],
    g: Value,
    wanted: [bool; SOURCES],
) -> Result<Cotangents, IrError> {
    let fixed = match kind {
        MatrixScan::Wkv6 => &[3, 5][..],
        MatrixScan::Wkv7 => &[6],
        MatrixScan::Gated { .. } => &[4],
        MatrixScan::DeltaNet => &[5],
    };
    if fixed.iter().any(|&i| wanted[i]) {
        let why = "a first state or a bonus that depends on the steered residual stream".to_owned();
        return Err(IrError::NoRule { op: Op::MatrixScan(kind).name(), why });
    }
    let state = src[src.len() - 1];
    // All sources as [n, n_head, tokens, sequences].
    let shape = graph.ne(src[if kind == MatrixScan::DeltaNet { 2 } else { 0 }]);
    let n_sequences = if kind == MatrixScan::DeltaNet { shape[3] } else { graph.ne(state)[1] };
    let ne = [shape[0], shape[1], shape[2] * shape[3] / n_sequences, n_sequences];
    let of_y = graph.view(g, ne, crate::graph::ir::contiguous(ne), 0)?;
    let g = graph.contiguous(of_y);
    debug_assert_eq!(n_elements(shape), n_elements(ne));
    if kind == MatrixScan::DeltaNet {
        return delta_net(graph, src, g);
    }
    let at = |graph: &mut Graph, i: usize| graph.reshape(src[i], ne);
    let back = |graph: &mut Graph, d: Value| graph.reshape(d, shape).map(whole);
    match kind {
        MatrixScan::Wkv7 => {
            let form = MatrixScanBack { delta: true, before: false, by_key: false };
            let rows = (0..6).map(|i| at(graph, i)).collect::<Result<Vec<Value>, IrError>>()?;
            let d = graph.matrix_scan_back(form, state, &rows, g)?;
            let mut all = Cotangents::default();
            for (slot, d) in all.iter_mut().zip(d) {
                *slot = back(graph, d)?;
            }
            Ok(all)
        }
        // k, v, q, g
        MatrixScan::Gated { scale } => {
            let form = MatrixScanBack { delta: false, before: false, by_key: true };
            let q = at(graph, 2)?;
            let r = graph.scale(q, scale, 0.0);
            let rows = [r, at(graph, 3)?, at(graph, 0)?, at(graph, 1)?];
            let d = graph.matrix_scan_back(form, state, &rows, g)?;
            let dq = graph.contiguous(d[0]);
            let dq = graph.scale(dq, scale, 0.0);
            Ok(leading([back(graph, d[2])?, back(graph, d[3])?, back(graph, dq)?, back(graph, d[1])?]))
        }
        // k, v, r, u, w
        _ => {
            let form = MatrixScanBack { delta: false, before: true, by_key: true };
            let (k, v, r, w) = (at(graph, 0)?, at(graph, 1)?, at(graph, 2)?, at(graph, 4)?);
            let d = graph.matrix_scan_back(form, state, &[r, w, k, v], g)?;
            // The bonus, s v with s = <r, u k>:  dv = s g,  dr = <g, v> u k,  dk = <g, v> u r
            let (uk, ur) = (graph.mul(k, src[3])?, graph.mul(r, src[3])?);
            let product = graph.mul(r, uk)?;
            let s = graph.sum_rows(product);
            let gv = graph.mul(g, v)?;
            let ds = graph.sum_rows(gv);
            let more = [graph.mul(ur, ds)?, graph.mul(g, s)?, graph.mul(uk, ds)?];
            let dk = graph.add(d[2], more[0])?;
            let dv = graph.add(d[3], more[1])?;
            let dr = graph.add(d[0], more[2])?;
            Ok(leading([back(graph, dk)?, back(graph, dv)?, back(graph, dr)?, None, back(graph, d[1])?]))
        }
    }
}

/// With E = e^g the scan is that of w = E, a = -beta E k, b = k, values beta v and r = q / sqrt n.
fn delta_net(graph: &mut Graph, src: &[Value], g: Value) -> Result<Cotangents, IrError> {
    let ne = graph.ne(g);
    let scale = 1.0 / (ne[0] as f32).sqrt();
    let &[q, k, v, gate, beta, state] = src else {
        return Err(IrError::Shape { op: "DeltaNet".into(), why: format!("{} sources", src.len()) });
    };
    // Heads of q and k may serve several of v.
    let at = |graph: &mut Graph, x: Value| {
        let x = graph.contiguous(x);
        graph.repeat(x, ne)
    };
    let (q, k, v, w) = (at(graph, q)?, at(graph, k)?, at(graph, v)?, at(graph, gate)?);
    let w = graph.same(Op::Unary(Unary::Exp), &[w]);
    let r = graph.scale(q, scale, 0.0);
    let values = graph.mul(v, beta)?;
    let decayed = graph.mul(w, k)?;
    let by_beta = graph.mul(decayed, beta)?;
    let a = graph.scale(by_beta, -1.0, 0.0);
    let form = MatrixScanBack { delta: true, before: false, by_key: false };
    let d = graph.matrix_scan_back(form, state, &[r, w, k, values, a, k], g)?;
    let d: Vec<Value> = d.into_iter().map(|d| graph.contiguous(d)).collect();
    let [dr, dw, dk, dvalues, da, db] = d[..] else { unreachable!("six gradients of six sources") };
    let dq = graph.scale(dr, scale, 0.0);
    let dv = graph.mul(dvalues, beta)?;
    let da_beta = graph.mul(da, beta)?;
    // dk + db - beta E da
    let through_a = graph.mul(da_beta, w)?;
    let both = graph.add(dk, db)?;
    let dk = graph.sub(both, through_a)?;
    // dg = (dE - beta k da) E
    let through_a = graph.mul(da_beta, k)?;
    let of_w = graph.sub(dw, through_a)?;
    let dgate = graph.mul(of_w, w)?;
    // dbeta = <dvalues, v> - <da, E k>
    let (one, two) = (graph.mul(dvalues, v)?, graph.mul(da, decayed)?);
    let difference = graph.sub(one, two)?;
    let dbeta = graph.sum_rows(difference);
    Ok(leading([dq, dk, dv, dgate, dbeta].map(whole)))
}
