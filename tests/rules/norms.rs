//! Normalisations, and the softmax with sinks.

use super::{Case, Op};
use std::collections::BTreeSet;

/// z = c / s, c = x - mean(x), s = sqrt(mean(c^2) + eps).  dL/dx = (g - mean(g) - z mean(g z)) / s.
pub fn norm() -> Vec<BTreeSet<usize>> {
    let mut reached = Vec::new();
    for eps in [1e-5, 0.3] {
        let mut c = Case::new([7, 3, 2, 1]);
        let x = c.graph.scale(c.entry, 1.0, 2.5); // far from mean 0
        let z = c.graph.same(Op::Norm { eps }, &[x]);
        reached.push(c.check(&format!("norm, eps {eps}"), z));
    }
    reached
}

/// z = x / |x|.  dL/dx = (g - z <g, z>) / |x|.
pub fn l2_norm() -> Vec<BTreeSet<usize>> {
    let mut c = Case::new([7, 3, 2, 1]);
    let z = c.graph.same(Op::L2Norm { eps: 1e-6 }, &[c.entry]);
    vec![c.check("l2_norm", z)]
}

/// z = e^(s x) / (sum e^(s x) + e^sink).  dL/dx = s z (g - <g, z>), the sum over the columns without the sink.
pub fn sinks() -> Vec<BTreeSet<usize>> {
    let mut c = Case::new([6, 4, 2, 1]);
    let mask = c.given([6, 4, 1, 1], vec![0.0; 24]);
    let sinks = c.given([2, 1, 1, 1], vec![0.7, -0.4]);
    let z = c.graph.same(Op::SoftMax { scale: 0.7, max_bias: 0.0 }, &[c.entry, mask, sinks]);
    vec![c.check("soft_max with sinks", z)]
}
