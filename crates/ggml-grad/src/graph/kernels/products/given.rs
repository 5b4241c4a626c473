//! Matmuls with F32 matrices that are given for each run (those of an adapter), and the gradients of such matrices.
//!
//! Each number is summed by one worker in an order that neither the number of threads nor the other rows decide: results are
//! deterministic, and the product is batch-invariant.

use crate::graph::kernels::share;
use crate::llama::sys;
use std::ffi::{c_int, c_void};

/// Rows of the matrix at a time, where they are short; also columns of a gradient at a time.
const BLOCK: usize = 512;
/// Rows of a gradient at a time: a tile of `ROWS x BLOCK` floats stays in the first-level cache.
const ROWS: usize = 8;
/// Longest row that counts as short: its products are summed column by column.
const SHORT: usize = 64;
/// Partial sums of a long row.
const LANES: usize = 32;

/// Sum of the products of two rows, in [`LANES`] partial sums.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let (mut of_a, mut of_b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    for (a, b) in of_a.by_ref().zip(of_b.by_ref()) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    for (sum, (a, b)) in sums.iter_mut().zip(of_a.remainder().iter().zip(of_b.remainder())) {
        *sum += a * b;
    }
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}

/// `sum += s x`.
fn add_scaled(sum: &mut [f32], s: f32, x: &[f32]) {
    sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += s * x);
}

/// The custom op: src0 = W `[k, n]`, src1 = x `[k, m, a, b]`, dst `[n, m, a, b]`.
pub(in crate::graph) unsafe extern "C" fn product(dst: *mut sys::ggml_tensor, ith: c_int, nth: c_int, _: *mut c_void) {
    // SAFETY: `emit` passes contiguous F32 tensors of these shapes, all in host memory. Workers write disjoint parts of dst.
    unsafe {
        let (d, w, x) = (&*dst, &*(*dst).src[0], &*(*dst).src[1]);
        let (k, n) = (w.ne[0] as usize, w.ne[1] as usize);
        let m = x.ne[1..].iter().product::<i64>() as usize;
        let w = std::slice::from_raw_parts(w.data.cast::<f32>(), k * n);
        let x = std::slice::from_raw_parts(x.data.cast::<f32>(), k * m);
        let out = d.data.cast::<f32>();
        let (from, to) = share(m, ith as usize, nth as usize);
        if k > SHORT {
            for row in from..to {
                let out = std::slice::from_raw_parts_mut(out.add(row * n), n);
                out.iter_mut().zip(w.chunks_exact(k)).for_each(|(out, w)| *out = dot(w, &x[row * k..(row + 1) * k]));
            }
            return;
        }
        let mut columns = vec![0f32; k * BLOCK]; // [k, rows of W]
        for first in (0..n).step_by(BLOCK) {
            let width = BLOCK.min(n - first);
            for (i, row) in w[first * k..(first + width) * k].chunks_exact(k).enumerate() {
                row.iter().enumerate().for_each(|(j, &w)| columns[j * width + i] = w);
            }
            for row in from..to {
                let out = std::slice::from_raw_parts_mut(out.add(row * n + first), width);
                out.fill(0.0);
                for (column, &x) in columns.chunks_exact(width).zip(&x[row * k..(row + 1) * k]) {
                    add_scaled(out, x, column);
                }
            }
        }
    }
}

/// The custom op of [`crate::graph::ir::Op::OuterSum`]: src0 = x `[k, m]` (with numbers: `[k, 1 or slots, tokens]`), src1 = g
/// `[n, m]`, src2 = numbers `[slots, tokens]` or none, dst `[k, n, matrices]`. A number that names no matrix adds to none.
pub(in crate::graph) unsafe extern "C" fn outer_sum(
    dst: *mut sys::ggml_tensor,
    ith: c_int,
    nth: c_int,
    _: *mut c_void,
) {
    // SAFETY: `emit` passes contiguous F32 tensors and I32 numbers with any strides, all in host memory. Workers write disjoint
    // tiles of dst.
    unsafe {
        let (d, x, g) = (&*dst, &*(*dst).src[0], &*(*dst).src[1]);
        let (k, n, matrices) = (d.ne[0] as usize, d.ne[1] as usize, d.ne[2] as usize);
        let m = g.ne[1..].iter().product::<i64>() as usize;
        let (slots, x_slots) = (g.ne[1] as usize, x.ne[1] as usize);
        let all_x = std::slice::from_raw_parts(x.data.cast::<f32>(), x.ne.iter().product::<i64>() as usize);
        let all_g = std::slice::from_raw_parts(g.data.cast::<f32>(), n * m);
        // Rows of x and g that count towards each matrix.
        let mut rows: Vec<Vec<(usize, usize)>> = vec![Vec::new(); matrices];
        match (*dst).src[2].as_ref() {
            None => rows[0] = (0..m).map(|row| (row, row)).collect(),
            Some(ids) => {
                for row in 0..m {
                    let (slot, token) = (row % slots, row / slots);
                    let at = ids.data.cast::<u8>().add(slot * ids.nb[0] + token * ids.nb[1]);
                    let matrix = at.cast::<i32>().read_unaligned() as usize;
                    if let Some(rows) = rows.get_mut(matrix) {
                        rows.push((token * x_slots + slot % x_slots, row));
                    }
                }
            }
        }
        let (across, down) = (k.div_ceil(BLOCK), n.div_ceil(tile_rows(k)));
        let (from, to) = share(across * down * matrices, ith as usize, nth as usize);
        let mut tile = vec![0f32; tile_rows(k) * BLOCK.min(k)]; // [rows, columns]
        for number in from..to {
            let (matrix, place) = (number / (across * down), number % (across * down));
            let (k0, n0) = (place % across * BLOCK, place / across * tile_rows(k));
            let (width, height) = (BLOCK.min(k - k0), tile_rows(k).min(n - n0));
            let tile = &mut tile[..width * height];
            tile.fill(0.0);
            for &(of_x, of_g) in &rows[matrix] {
                let x = &all_x[of_x * k + k0..of_x * k + k0 + width];
                let g = &all_g[of_g * n + n0..of_g * n + n0 + height];
                for (sum, &g) in tile.chunks_exact_mut(width).zip(g) {
                    add_scaled(sum, g, x);
                }
            }
            for (i, sum) in tile.chunks_exact(width).enumerate() {
                let at = d.data.cast::<f32>().add((matrix * n + n0 + i) * k + k0);
                std::slice::from_raw_parts_mut(at, width).copy_from_slice(sum);
            }
        }
    }
}

/// Rows of a tile of a gradient of rows of `k` numbers.
fn tile_rows(k: usize) -> usize {
    (ROWS * BLOCK / k.clamp(1, BLOCK)).max(ROWS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_summed_whole_whatever_its_length() {
        for n in [1usize, 7, 31, 32, 33, 100, 576] {
            let a: Vec<f32> = (0..n).map(|i| (i % 7) as f32 - 3.0).collect();
            let b: Vec<f32> = (0..n).map(|i| (i % 5) as f32 - 1.0).collect();
            let want: f32 = a.iter().zip(&b).map(|(a, b)| a * b).sum(); // small integers: exact in any order
            assert_eq!(dot(&a, &b), want, "{n}");
        }
    }

    /// Neither the number of threads nor the other rows change a bit.
    #[test]
    fn results_depend_on_their_own_rows_alone() {
        use crate::graph::emit::{Bindings, Data, Executor};
        use crate::graph::ir::{Elem, Graph};
        let values = |n: usize, k: f32| Data::F32((0..n).map(|i| (i as f32 * k).sin()).collect());
        for (k, n) in [(700, 5), (6, 600)] {
            let run = |m: usize, threads: u32| {
                let mut graph = Graph::new();
                let (w, _) = graph.input([k, n, 1, 1], Elem::F32);
                let (x, _) = graph.input([k, m, 1, 1], Elem::F32);
                let (g, _) = graph.input([n, m, 1, 1], Elem::F32);
                let product = graph.mul_mat(w, x, 0).unwrap();
                let outer = graph.outer_sum(x, g).unwrap();
                let inputs = [values(k * n, 0.37), values(k * m, 0.61), values(n * m, 0.83)];
                let bind = Bindings { inputs: inputs.iter().collect(), ..Default::default() };
                Executor::new(threads).unwrap().run(&graph, &bind, &[], &[product, outer]).unwrap().values
            };
            let (one, three) = (run(7, 1), run(7, 3));
            assert_eq!(one, three);
            assert_eq!(run(2, 1)[0], one[0][..2 * n]);
        }
    }

    #[test]
    fn a_tile_stays_in_the_cache() {
        for k in [1, 8, 64, 512, 4096] {
            assert!(tile_rows(k) * BLOCK.min(k) <= ROWS * BLOCK, "{k}");
        }
    }
}
