//! Mixtures of experts: a matrix, a bias and a weight for each row.

use super::Case;
use std::collections::BTreeSet;

/// z[n, s, t] = sum_k w[k, n, id(s, t)] y[k, s, t].  dL/dy[k, s, t] = sum_n w[k, n, id(s, t)] g[n, s, t]; a row of y that
/// serves all slots of its token gets the sum over them.
pub fn mul_mat_id() -> Vec<BTreeSet<usize>> {
    let mut reached = Vec::new();
    let (k, n, experts, slots, tokens) = (70, 5, 4, 2, 6); // more columns than one tile
    // Expert 3 is never chosen, expert 0 by almost all.
    let chosen = [0, 1, 1, 0, 0, 2, 0, 2, 2, 0, 0, 1];
    for rows in [1, slots] {
        let mut c = Case::new([k, rows, tokens, 1]);
        let w = c.fixed([k, n, experts, 1]);
        let ids = c.numbers([slots, tokens, 1, 1], &chosen);
        let z = c.graph.mul_mat_id(w, c.entry, ids, [0; 16]).unwrap();
        reached.push(c.check(&format!("mul_mat_id, {rows} rows for {slots} slots"), z));
    }
    // The numbers as a window into longer rows, as a sort leaves them.
    let mut c = Case::new([k, slots, tokens, 1]);
    let w = c.fixed([k, n, experts, 1]);
    let sorted: Vec<i32> = chosen.chunks(2).flat_map(|row| [row[0], row[1], 3, 3]).collect();
    let sorted = c.numbers([4, tokens, 1, 1], &sorted);
    let nb = c.graph.node(sorted).nb;
    let ids = c.graph.view(sorted, [slots, tokens, 1, 1], nb, 0).unwrap();
    let z = c.graph.mul_mat_id(w, c.entry, ids, [0; 16]).unwrap();
    reached.push(c.check("mul_mat_id, numbers in a window", z));
    // The matrices themselves, dL/dw[k, n, e] = the sum over the rows of expert e of y[k, s, t] g[n, s, t]: zero for
    // expert 3.
    for rows in [1, slots] {
        let mut c = Case::new([k, n, experts, 1]);
        let y = c.fixed([k, rows, tokens, 1]);
        let numbers = c.numbers([slots, tokens, 1, 1], &chosen);
        let z = c.graph.mul_mat_id(c.entry, y, numbers, [0; 16]).unwrap();
        reached.push(c.check(&format!("mul_mat_id, matrices active, {rows} rows"), z));
    }
    reached
}

/// Rows of several matrices; a bias for each row; and both with the router's weights, as in a model.
pub fn rows_and_biases() -> Vec<BTreeSet<usize>> {
    let mut reached = Vec::new();
    let mut c = Case::new([3, 5, 2, 2]);
    let ids = c.numbers([4, 2, 2, 1], &[4, 0, 0, 1, 2, 2, 2, 3, 0, 1, 2, 3, 4, 4, 0, 0]);
    let z = c.graph.get_rows(c.entry, ids).unwrap();
    reached.push(c.check("get_rows of four matrices", z));

    let mut c = Case::new([3, 2, 4, 1]);
    let bias = c.fixed([3, 5, 1, 1]);
    let ids = c.numbers([2, 4, 1, 1], &[4, 0, 1, 1, 2, 3, 0, 4]);
    let z = c.graph.add_id(c.entry, bias, ids).unwrap();
    reached.push(c.check("add_id", z));

    // Softmax over 5 experts, the weights of the 2 chosen ones, divided by their sum.
    let mut c = Case::new([5, 4, 1, 1]);
    let ids = c.numbers([2, 4, 1, 1], &[4, 0, 1, 3, 2, 3, 0, 4]);
    let p = c.graph.same(super::Op::SoftMax { scale: 1.0, max_bias: 0.0 }, &[c.entry]);
    let p = c.graph.reshape(p, [1, 5, 4, 1]).unwrap();
    let w = c.graph.get_rows(p, ids).unwrap(); // [1, 2, 4]
    let w = c.graph.reshape(w, [2, 4, 1, 1]).unwrap();
    let sum = c.graph.sum_rows(w);
    let w = c.graph.div(w, sum).unwrap();
    let w = c.graph.reshape(w, [1, 2, 4, 1]).unwrap();
    let out = c.fixed([3, 2, 4, 1]);
    let z = c.graph.mul(out, w).unwrap();
    reached.push(c.check("the weights of chosen experts", z));
    reached
}
