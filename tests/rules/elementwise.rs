//! Arithmetic and functions of one argument.

use super::{Case, Elem, Glu, Op, Unary};
use std::collections::BTreeSet;

/// z = x - y, y repeated.  dL/dx = g,  dL/dy = -g summed over the repetitions.
pub fn sub() -> Vec<BTreeSet<usize>> {
    let mut reached = Vec::new();
    for ne in [[3, 4, 2, 1], [1, 4, 1, 1], [3, 2, 1, 1]] {
        let mut c = Case::new([3, 4, 2, 1]);
        let y = c.window(ne);
        let y = c.graph.scale(y, 0.7, 0.0);
        let z = c.graph.sub(c.entry, y).unwrap();
        reached.push(c.check(&format!("sub, both active, y {ne:?}"), z));
    }
    reached
}

/// z = x / y, y repeated.  dL/dx = g / y,  dL/dy = -g x / y^2 summed over the repetitions.
pub fn div() -> Vec<BTreeSet<usize>> {
    let mut reached = Vec::new();
    for ne in [[3, 4, 2, 1], [1, 4, 1, 1], [3, 2, 1, 1]] {
        let mut c = Case::new([3, 4, 2, 1]);
        let y = c.window(ne);
        let y = c.graph.scale(y, 0.3, 1.5); // away from 0
        let z = c.graph.div(c.entry, y).unwrap();
        reached.push(c.check(&format!("div, both active, y {ne:?}"), z));
    }
    reached
}

/// dL/dx = g between the bounds, 0 outside.
pub fn clamp() -> Vec<BTreeSet<usize>> {
    let mut reached = Vec::new();
    for (min, max) in [(-0.5, 0.9), (f32::NEG_INFINITY, 0.4), (0.0, f32::INFINITY)] {
        let mut c = Case::new([5, 4, 1, 1]).avoid(&[min, max]);
        let z = c.graph.same(Op::Clamp { min, max }, &[c.entry]);
        reached.push(c.check(&format!("clamp from {min} to {max}"), z));
    }
    reached
}

/// (x^2)' = 2 x;  sqrt(x)' = 1 / (2 sqrt x).
pub fn square_and_root() -> Vec<BTreeSet<usize>> {
    let mut c = Case::new([5, 4, 1, 1]);
    let z = c.graph.same(Op::Sqr, &[c.entry]);
    let mut reached = vec![c.check("sqr", z)];
    let mut c = Case::new([5, 4, 1, 1]);
    let x = c.graph.scale(c.entry, 0.5, 1.2); // positive
    let z = c.graph.same(Op::Sqrt, &[x]);
    reached.push(c.check("sqrt", z));
    reached
}

/// z = sum of a row, or its mean.  dL/dx = g for every number of the row, or g / n.
pub fn reductions() -> Vec<BTreeSet<usize>> {
    let mut c = Case::new([5, 3, 2, 1]);
    let z = c.graph.sum_rows(c.entry);
    let mut reached = vec![c.check("sum_rows", z)];
    let mut c = Case::new([5, 3, 2, 1]);
    let z = c.graph.mean(c.entry);
    reached.push(c.check("mean", z));
    reached
}

/// dL/dx = g summed over the repetitions.
pub fn repeat() -> Vec<BTreeSet<usize>> {
    let mut reached = Vec::new();
    for ne in [[6, 2, 1, 1], [3, 4, 2, 1], [3, 2, 1, 3]] {
        let mut c = Case::new([3, 2, 1, 1]);
        let z = c.graph.repeat(c.entry, ne).unwrap();
        reached.push(c.check(&format!("repeat to {ne:?}"), z));
    }
    reached
}

/// gelu_erf' = P + x p;  gelu_quick' = s + 1.702 x s (1 - s), s = sigmoid(1.702 x);  relu' = [x > 0];
/// sigmoid' = s (1 - s);  exp' = exp;  softplus' = sigmoid;  (-x)' = -1;  |x|' = sign(x).
pub fn unary() -> Vec<BTreeSet<usize>> {
    let mut reached = Vec::new();
    for (kind, kinks) in [
        (Unary::GeluErf, &[][..]),
        (Unary::GeluQuick, &[]),
        (Unary::Relu, &[0.0]),
        (Unary::Sigmoid, &[]),
        (Unary::Exp, &[]),
        (Unary::Softplus, &[]),
        (Unary::Neg, &[]),
        (Unary::Abs, &[0.0]),
    ] {
        for wide in [1.0, 3.0] {
            let mut c = Case::new([7, 5, 1, 1]).avoid(kinks);
            let x = c.graph.scale(c.entry, wide, 0.0);
            let z = c.graph.same(Op::Unary(kind), &[x]);
            if kind == Unary::GeluQuick {
                // Another table of 16-bit floats.
                c.formula = Some(if wide == 1.0 {
                    |x| x.iter().map(|&x| quick(x)).collect()
                } else {
                    |x| x.iter().map(|&x| quick(3.0 * x)).collect()
                });
            }
            reached.push(c.check(&format!("{kind:?}, of {wide} x"), z));
        }
    }
    // At 0 itself gelu(z) / z means nothing.
    let mut c = Case::new([3, 1, 1, 1]);
    c.data[0] = super::Data::F32(vec![0.0, 1e-7, -1e-7]);
    let z = c.graph.same(Op::Unary(Unary::GeluErf), &[c.entry]);
    reached.push(c.check("GeluErf at 0", z));
    reached
}

/// x sigmoid(1.702 x)
fn quick(x: f64) -> f64 {
    x / (1.0 + (-1.702 * x).exp())
}

/// Steps and signs are constant but for jumps: beside another path they add nothing.
pub fn constant_pieces() -> Vec<BTreeSet<usize>> {
    let mut reached = Vec::new();
    for kind in [Unary::Sgn, Unary::Step] {
        let mut c = Case::new([5, 3, 1, 1]).avoid(&[0.0]);
        let jump = c.graph.same(Op::Unary(kind), &[c.entry]);
        let z = c.graph.add(c.entry, jump).unwrap();
        reached.push(c.check(&format!("x + {kind:?}(x)"), z));
    }
    reached
}

/// xielu' = 2 p x + beta above 0;  n (e^x - 1) + beta below.
pub fn xielu() -> Vec<BTreeSet<usize>> {
    let mut c = Case::new([7, 5, 1, 1]).avoid(&[0.0]);
    let z = c.graph.same(Op::Unary(Unary::Xielu { n: 1.3, p: 0.8, beta: 0.5, eps: -1e-6 }), &[c.entry]);
    vec![c.check("Xielu", z)]
}

/// z = act(a) b.  dL/da = g b act'(a),  dL/db = g act(a).
pub fn gated() -> Vec<BTreeSet<usize>> {
    let mut reached = Vec::new();
    for (kind, kinks) in [(Glu::Reglu, &[0.0][..]), (Glu::GegluErf, &[]), (Glu::GegluQuick, &[])] {
        let mut c = Case::new([12, 3, 1, 1]).avoid(kinks);
        let nb = c.graph.node(c.entry).nb;
        let gate = c.graph.view(c.entry, [6, 3, 1, 1], nb, 0).unwrap();
        let up = c.graph.view(c.entry, [6, 3, 1, 1], nb, 24).unwrap();
        let z = c.graph.glu(kind, gate, up).unwrap();
        if kind == Glu::GegluQuick {
            c.formula = Some(|x| {
                x.chunks(12).flat_map(|r| (0..6).map(|i| quick(r[i]) * r[i + 6]).collect::<Vec<_>>()).collect()
            });
        }
        reached.push(c.check(&format!("{kind:?}"), z));
    }
    reached
}

/// Sources beyond the limit have no slope.
pub fn gated_with_limits() -> Vec<BTreeSet<usize>> {
    let mut reached = Vec::new();
    for kind in [Glu::SwigluOai { alpha: 1.702, limit: 0.8 }, Glu::SwigluClamp { limit: 0.8 }] {
        let mut c = Case::new([12, 3, 1, 1]).avoid(&[0.8, -0.8]);
        let nb = c.graph.node(c.entry).nb;
        let gate = c.graph.view(c.entry, [6, 3, 1, 1], nb, 0).unwrap();
        let up = c.graph.view(c.entry, [6, 3, 1, 1], nb, 24).unwrap();
        let z = c.graph.glu(kind, gate, up).unwrap();
        reached.push(c.check(&format!("{kind:?}"), z));
    }
    reached
}

/// A cast to the same type is a copy.
pub fn cast() -> Vec<BTreeSet<usize>> {
    let mut c = Case::new([5, 3, 1, 1]);
    let z = c.graph.cast(c.entry, Elem::F32);
    vec![c.check("cast", z)]
}
