//! Sums, products, activations, rotations, moves: one node each.

use super::*;

/// A node of two sources of one shape, the second of them repeated: either is active alone, and both together.
fn repeated(name: &str, node: fn(&mut Graph, Value, Value) -> Result<Value, IrError>) -> Vec<BTreeSet<usize>> {
    let whole = [3, 4, 2, 1];
    let mut reached = Vec::new();
    for ne in [whole, [3, 1, 1, 1], [1, 4, 1, 1], [3, 2, 1, 1]] {
        let mut c = Case::new(whole);
        let y = c.fixed(ne);
        let z = node(&mut c.graph, c.entry, y).unwrap();
        reached.push(c.check(&format!("{name}, x active, y {ne:?}"), z));

        let mut c = Case::new(ne);
        let x = c.fixed(whole);
        let z = node(&mut c.graph, x, c.entry).unwrap();
        reached.push(c.check(&format!("{name}, y {ne:?} active"), z));

        let mut c = Case::new(whole);
        let y = c.window(ne);
        let z = node(&mut c.graph, c.entry, y).unwrap();
        reached.push(c.check(&format!("{name}, both active, y {ne:?}"), z));
    }
    reached
}

/// z = x + y, y repeated.  dL/dx = g,  dL/dy = g summed over the repetitions.
pub(crate) fn add() -> Vec<BTreeSet<usize>> {
    repeated("add", Graph::add)
}

/// z = x y, y repeated.  dL/dx = g y,  dL/dy = g x summed over the repetitions.
pub(crate) fn mul() -> Vec<BTreeSet<usize>> {
    repeated("mul", Graph::mul)
}

/// z = s x + b.  dL/dx = s g.
pub(crate) fn scale() -> Vec<BTreeSet<usize>> {
    let mut c = Case::new([5, 3, 1, 1]);
    let z = c.graph.scale(c.entry, -1.7, 0.4);
    vec![c.check("scale with bias", z)]
}

/// z[n, m] = sum_k x[k, n] y[k, m].  dL/dx[k, n] = sum_m y[k, m] g[n, m],  dL/dy[k, m] = sum_n x[k, n] g[n, m]; a head of
/// x that several heads of y use gets the sum over them.
pub(crate) fn mul_mat() -> Vec<BTreeSet<usize>> {
    let mut reached = Vec::new();
    // [k, n, hx, s] and [k, m, h, s]
    for (nx, ny) in [
        ([5, 3, 1, 1], [5, 4, 1, 1]),
        ([5, 3, 2, 1], [5, 4, 2, 1]),
        ([5, 3, 2, 2], [5, 4, 6, 2]),
        ([4, 3, 1, 1], [4, 1, 3, 1]),
    ] {
        let mut c = Case::new(nx);
        let y = c.fixed(ny);
        let z = c.graph.mul_mat(c.entry, y, 0).unwrap();
        reached.push(c.check(&format!("mul_mat, x {nx:?} active, y {ny:?}"), z));

        let mut c = Case::new(ny);
        let x = c.fixed(nx);
        let z = c.graph.mul_mat(x, c.entry, 0).unwrap();
        reached.push(c.check(&format!("mul_mat, x {nx:?}, y {ny:?} active"), z));
    }
    // As in an adapter: few long rows or many short ones, more than one tile of either.
    for (nx, ny) in [([530, 2, 1, 1], [530, 3, 1, 1]), ([2, 520, 1, 1], [2, 3, 2, 1])] {
        let mut c = Case::new(nx);
        let y = c.fixed(ny);
        let z = c.graph.mul_mat(c.entry, y, 0).unwrap();
        reached.push(c.check(&format!("mul_mat, matrix {nx:?} active, y {ny:?}"), z));
    }
    let mut c = Case::new([5, 4, 2, 1]);
    let z = c.graph.mul_mat(c.entry, c.entry, 0).unwrap();
    reached.push(c.check("mul_mat, x and y the same", z));

    // As in attention: a permuted x, grouped queries.
    let mut c = Case::new([5, 4, 4, 1]);
    let k = c.window([5, 2, 3, 1]); // [k, hx, n]
    let k = c.graph.permute(k, [0, 2, 1, 3]).unwrap(); // [k, n, hx]
    let z = c.graph.mul_mat(k, c.entry, 0).unwrap();
    reached.push(c.check("mul_mat, both active, x permuted, grouped", z));
    reached
}

/// z = x / r, r = sqrt(mean(x^2) + eps).  dL/dx = (g - x <g, x> / (n r^2)) / r.
pub(crate) fn rms_norm() -> Vec<BTreeSet<usize>> {
    let mut reached = Vec::new();
    for eps in [1e-6, 0.3] {
        let mut c = Case::new([7, 3, 2, 1]);
        let z = c.graph.same(Op::RmsNorm { eps }, &[c.entry]);
        reached.push(c.check(&format!("rms_norm, eps {eps}"), z));
    }
    reached
}

/// z = R(position) x with R a rotation times a constant.  dL/dx = R^T g.
pub(crate) fn rotary() -> Vec<BTreeSet<usize>> {
    let mut reached = Vec::new();
    for (mode, kind) in [(0, "norm"), (2, "neox")] {
        for (n_dims, scale, yarn, attn) in [(8, 1.0, 0.0, 1.0), (6, 0.5, 0.0, 1.0), (8, 0.25, 1.0, 1.3)] {
            for factors in [false, true] {
                let mut c = Case::new([8, 2, 3, 1]);
                let mut src = vec![c.entry, c.integers(&[0, 3, 11])];
                if factors {
                    src.push(c.given([n_dims / 2, 1, 1, 1], (0..n_dims / 2).map(|i| 1.0 + i as f32).collect()));
                }
                let z = c.graph.same(Op::Rope(rope(n_dims, mode, scale, yarn, attn)), &src);
                let name = format!("rope {kind}, {n_dims} of 8, yarn {yarn}, factors {factors}");
                reached.push(c.check(&name, z));
            }
        }
    }
    // Positions on several axes: those of the first for all tokens, then those of the second, and so on.
    for (mode, kind) in [(8, "mrope"), (40, "interleaved mrope")] {
        let mut params = rope(8, mode, 1.0, 0.0, 1.0);
        params[11..15].copy_from_slice(&[2, 1, 1, 0]);
        let mut c = Case::new([8, 2, 3, 1]);
        let positions = c.integers(&[0, 3, 11, 0, 5, 2, 0, 7, 1, 0, 0, 0]);
        let z = c.graph.same(Op::Rope(params), &[c.entry, positions]);
        reached.push(c.check(&format!("rope {kind}"), z));
    }
    reached
}

/// z = softmax(s x + mask).  dL/dx = s z (g - <g, z>).
pub(crate) fn soft_max() -> Vec<BTreeSet<usize>> {
    let mut reached = Vec::new();
    for (masked, max_bias) in [(false, 0.0), (true, 0.0), (true, 8.0)] {
        let mut c = Case::new([6, 4, 2, 1]);
        let mut src = vec![c.entry];
        if masked {
            // Row i sees the first i + 3 columns, at random distances; the same for all heads.
            let mut mask = c.random(6 * 4);
            for i in 0..4 {
                mask[i * 6 + (i + 3).min(6)..(i + 1) * 6].fill(f32::NEG_INFINITY);
            }
            src.push(c.given([6, 4, 1, 1], mask));
        }
        let z = c.graph.same(Op::SoftMax { scale: 0.7, max_bias }, &src);
        reached.push(c.check(&format!("soft_max, mask {masked}, bias {max_bias}"), z));
    }
    reached
}

/// z = act(a) b.  dL/da = g b act'(a),  dL/db = g act(a).
pub(crate) fn glu() -> Vec<BTreeSet<usize>> {
    let mut reached = Vec::new();
    for kind in [Glu::Swiglu, Glu::Geglu] {
        let smooth = kind == Glu::Swiglu;
        let b: Vec<f32> = (0..18).map(|i| (i as f32 * 0.9).sin() + 0.2).collect();

        let mut c = Case::new([6, 3, 1, 1]);
        let up = c.given([6, 3, 1, 1], b.clone());
        let z = c.graph.glu(kind, c.entry, up).unwrap();
        c.formula = (!smooth).then_some(|x| {
            x.iter().enumerate().map(|(i, &x)| gelu(x) * f64::from((i as f32 * 0.9).sin() + 0.2)).collect()
        });
        reached.push(c.check(&format!("{kind:?}, gate active"), z));

        let mut c = Case::new([6, 3, 1, 1]);
        let gate = c.given([6, 3, 1, 1], b.clone());
        let z = c.graph.glu(kind, gate, c.entry).unwrap();
        reached.push(c.check(&format!("{kind:?}, up active"), z));

        // Both halves of one tensor, as in models with a fused gate: windows into rows twice as long.
        let mut c = Case::new([12, 3, 1, 1]);
        let nb = c.graph.node(c.entry).nb;
        let gate = c.graph.view(c.entry, [6, 3, 1, 1], nb, 0).unwrap();
        let up = c.graph.view(c.entry, [6, 3, 1, 1], nb, 24).unwrap();
        let z = c.graph.glu(kind, gate, up).unwrap();
        c.formula = (!smooth).then_some(|x| {
            x.chunks(12).flat_map(|r| (0..6).map(|i| gelu(r[i]) * r[i + 6]).collect::<Vec<_>>()).collect()
        });
        reached.push(c.check(&format!("{kind:?}, both active"), z));
    }
    reached
}

/// tanh' = 1 - tanh^2;  silu' = s (1 + x (1 - s)), s = sigmoid(x);
/// gelu' = (1 + t) / 2 + x (1 - t^2) u' / 2, t = tanh(u), u = sqrt(2 / pi) (x + 0.044715 x^3).
pub(crate) fn unary() -> Vec<BTreeSet<usize>> {
    let mut reached = Vec::new();
    for kind in [Unary::Tanh, Unary::Silu, Unary::Gelu] {
        let mut c = Case::new([7, 5, 1, 1]);
        let z = c.graph.same(Op::Unary(kind), &[c.entry]);
        c.formula = (kind == Unary::Gelu).then_some(|x| x.iter().map(|&x| gelu(x)).collect());
        reached.push(c.check(&format!("{kind:?}"), z));

        // Far from zero, where slopes saturate.
        let mut c = Case::new([7, 5, 1, 1]);
        let far = c.graph.scale(c.entry, 3.0, 0.5);
        let z = c.graph.same(Op::Unary(kind), &[far]);
        c.formula = (kind == Unary::Gelu).then_some(|x| x.iter().map(|&x| gelu(3.0 * x + 0.5)).collect());
        reached.push(c.check(&format!("{kind:?}, wide"), z));
    }
    reached
}

/// Elements move: dL/dx is g, moved back.
pub(crate) fn moves() -> Vec<BTreeSet<usize>> {
    let mut reached = Vec::new();
    let mut c = Case::new([2, 3, 4, 2]);
    let p = c.graph.permute(c.entry, [2, 0, 3, 1]).unwrap();
    let z = c.graph.cont(p, c.graph.ne(p)).unwrap();
    reached.push(c.check("cont of a permuted value", z));

    let mut c = Case::new([2, 3, 4, 2]);
    let p = c.graph.permute(c.entry, [1, 2, 0, 3]).unwrap();
    let z = c.graph.cont(p, [6, 8, 1, 1]).unwrap();
    reached.push(c.check("cont into another shape", z));

    for axes in [[1, 0, 2, 3], [0, 2, 1, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
        let mut c = Case::new([2, 3, 4, 2]);
        let z = c.graph.permute(c.entry, axes).unwrap();
        reached.push(c.check(&format!("permute {axes:?}"), z));
    }

    let mut c = Case::new([2, 3, 4, 1]);
    let z = c.graph.reshape(c.entry, [6, 2, 1, 2]).unwrap();
    reached.push(c.check("reshape", z));
    reached
}

/// A window: dL/dx is zero outside of it and g inside.
pub(crate) fn view() -> Vec<BTreeSet<usize>> {
    let mut reached = Vec::new();
    let ne = [4, 5, 3, 1]; // strides 4, 16, 80, 240
    for (name, window, nb, offset) in [
        ("the whole", ne, [4, 16, 80, 240], 0),
        ("the whole in another shape", [20, 3, 1, 1], [4, 80, 240, 240], 0),
        ("a slice of the outermost dimension", [4, 5, 2, 1], [4, 16, 80, 240], 80),
        ("part of each row", [2, 5, 3, 1], [4, 16, 80, 240], 4),
        ("every second row", [4, 2, 3, 1], [4, 32, 80, 240], 16),
        ("rows across the dimensions", [3, 3, 2, 1], [4, 80, 16, 240], 36),
        ("one element", [1, 1, 1, 1], [4, 4, 4, 4], 236),
    ] {
        let mut c = Case::new(ne);
        let z = c.graph.view(c.entry, window, nb, offset).unwrap();
        reached.push(c.check(&format!("view, {name}"), z));
    }
    // Windows into values with gaps.
    let mut c = Case::new([4, 4, 1, 1]);
    let gap = c.graph.view(c.entry, [2, 4, 1, 1], [4, 16, 64, 64], 4).unwrap();
    let z = c.graph.view(gap, [1, 4, 1, 1], [4, 16, 64, 64], 4).unwrap();
    reached.push(c.check("view of a view", z));
    let mut c = Case::new(ne);
    let p = c.graph.permute(c.entry, [0, 2, 1, 3]).unwrap(); // [4, 3, 5], strides 4, 80, 16
    let z = c.graph.view(p, [2, 3, 2, 1], [4, 80, 16, 240], 20).unwrap();
    reached.push(c.check("view of a permuted value", z));
    reached
}

/// Zeros appended: dL/dx is g without its edge.
pub(crate) fn pad() -> Vec<BTreeSet<usize>> {
    let mut reached = Vec::new();
    for extra in [[2, 0, 0, 0], [0, 3, 0, 1], [1, 2, 3, 0]] {
        let mut c = Case::new([3, 2, 2, 1]);
        let z = c.graph.pad(c.entry, extra);
        reached.push(c.check(&format!("pad {extra:?}"), z));
    }
    reached
}

/// x then y: each gets its part of g.
pub(crate) fn concat() -> Vec<BTreeSet<usize>> {
    let mut reached = Vec::new();
    for dim in 0..4 {
        let mut other = [3, 2, 4, 2];
        other[dim] += 1;
        let mut c = Case::new([3, 2, 4, 2]);
        let y = c.fixed(other);
        let z = c.graph.concat(c.entry, y, dim).unwrap();
        reached.push(c.check(&format!("concat along {dim}, x active"), z));

        let mut c = Case::new([3, 2, 4, 2]);
        let x = c.fixed(other);
        let z = c.graph.concat(x, c.entry, dim).unwrap();
        reached.push(c.check(&format!("concat along {dim}, y active"), z));

        let mut c = Case::new([3, 2, 4, 2]);
        let y = c.graph.scale(c.entry, 0.5, 0.0);
        let z = c.graph.concat(c.entry, y, dim).unwrap();
        reached.push(c.check(&format!("concat along {dim}, both active"), z));
    }
    reached
}

/// z[i] = x[id[i]].  dL/dx[r] = the sum of g[i] over all i with id[i] = r.
pub(crate) fn get_rows() -> Vec<BTreeSet<usize>> {
    let mut c = Case::new([4, 5, 1, 1]);
    let ids = c.integers(&[3, 0, 3, 4, 3, 0]);
    let z = c.graph.get_rows(c.entry, ids).unwrap();
    vec![c.check("get_rows, rows repeated and left out", z)]
}

/// y[i, t] = s sum_h x[i, h, t] w[h, t], with either source active and with both.
pub(crate) fn mix_streams() -> Vec<BTreeSet<usize>> {
    let (streams, weights) = ([5, 3, 4, 1], [3, 4, 1, 1]);
    let mut c = Case::new(streams);
    let w = c.fixed(weights);
    let z = c.graph.mix_streams(c.entry, w, 0.7).unwrap();
    let mut reached = vec![c.check("mixed streams, streams active", z)];

    let mut c = Case::new(weights);
    let x = c.fixed(streams);
    let z = c.graph.mix_streams(x, c.entry, 0.7).unwrap();
    reached.push(c.check("mixed streams, weights active", z));

    let mut c = Case::new(streams);
    let w = c.window([3, 3, 4, 1]);
    let w = c.graph.sum_rows(w);
    let w = c.graph.reshape(w, weights).unwrap();
    let z = c.graph.mix_streams(c.entry, w, 1.0).unwrap();
    reached.push(c.check("mixed streams, both active", z));
    reached
}
