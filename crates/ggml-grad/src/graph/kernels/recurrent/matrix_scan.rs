//! The gradient of scans whose states are matrices: RWKV 6 and 7, gated linear attention, gated delta nets.
//!
//! A row of the state, which belongs to one number `v` of the value, is `M_t = w_t M_(t-1) + <a_t, M_(t-1)> b_t + v_t k_t`, and
//! the result is `y_t = <r_t, M_t>` (of RWKV 6: `<r_t, M_(t-1)>`). From the gradient `g_t` of `y_t`, with `G_t` that of `M_t`:
//!
//! ```text
//! G_t     = g_t r_t + carry_t        (of RWKV 6: carry_t)
//! dr_t    = g_t M_t                  (of RWKV 6: g_t M_(t-1))
//! dv_t    = <G_t, k_t>,              dk_t = v_t G_t
//! ds      = <G_t, b_t>,              db_t = <a_t, M_(t-1)> G_t
//! dw_t    = G_t M_(t-1),             da_t = ds M_(t-1)
//! carry_(t-1) = w_t G_t + ds a_t     (of RWKV 6: + g_t r_t)
//! ```
//!
//! with sums over the rows in all but dv. Without the delta rule there is no a and no b.

use super::{extents, numbers};
use crate::graph::ir::MatrixScanBack;
use crate::graph::kernels::cpu::for_this_cpu;
use crate::graph::kernels::numeric::sum16;
use crate::graph::kernels::share;
use crate::llama::sys;
use std::ffi::{c_int, c_void};

/// Tokens at a time: their states are computed again from the one before them.
const CHUNK: usize = 64;

/// The user data of [`backward`].
pub(in crate::graph) fn task(kind: MatrixScanBack) -> *mut c_void {
    (usize::from(kind.delta) | usize::from(kind.before) << 1 | usize::from(kind.by_key) << 2) as *mut c_void
}

fn kind_of(user: *mut c_void) -> MatrixScanBack {
    let bits = user as usize;
    MatrixScanBack { delta: bits & 1 != 0, before: bits & 2 != 0, by_key: bits & 4 != 0 }
}

/// A source of one head of one sequence: rows of `width` numbers, `stride` apart.
#[derive(Clone, Copy)]
struct Rows<'a> {
    data: &'a [f32],
    stride: usize,
    width: usize,
}

impl<'a> Rows<'a> {
    #[inline(always)]
    fn at(self, token: usize) -> &'a [f32] {
        &self.data[token * self.stride..][..self.width]
    }
}

/// A head of a sequence. Of scans without the delta rule, a and b are not read.
struct Unit<'a> {
    kind: MatrixScanBack,
    tokens: usize,
    /// `[n, n]`, a row for each number of the value, or of the key.
    start: &'a [f32],
    r: Rows<'a>,
    w: Rows<'a>,
    k: Rows<'a>,
    v: Rows<'a>,
    a: Rows<'a>,
    b: Rows<'a>,
    g: Rows<'a>,
}

/// Gradients of a chunk, `[n, CHUNK]` each, in the order of the sources: r, w, k, v, a, b.
struct Tiles(Vec<Vec<f32>>);

#[inline(always)]
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut sums = [0f32; 16];
    let ((x16, x), (y16, y)) = (x.as_chunks::<16>(), y.as_chunks::<16>());
    for (x, y) in x16.iter().zip(y16) {
        for i in 0..16 {
            sums[i] += x[i] * y[i];
        }
    }
    for (sum, (x, y)) in sums.iter_mut().zip(x.iter().zip(y)) {
        *sum += x * y;
    }
    sum16(&sums)
}

/// `sum += s x`
#[inline(always)]
fn add_scaled(sum: &mut [f32], s: f32, x: &[f32]) {
    sum.iter_mut().zip(x).for_each(|(sum, x)| *sum += s * x);
}

/// The state of row `row` after a token, in `next`.
#[inline(always)]
fn advance(unit: &Unit<'_>, token: usize, row: usize, before: &[f32], next: &mut [f32]) {
    let v = unit.v.at(token)[row];
    for (((m, &before), &w), &k) in next.iter_mut().zip(before).zip(unit.w.at(token)).zip(unit.k.at(token)) {
        *m = before * w + v * k;
    }
    if unit.kind.delta {
        add_scaled(next, dot(unit.a.at(token), before), unit.b.at(token));
    }
}

/// A row's way through a chunk, from `states[..n]` on.
#[inline(always)]
fn walk(unit: &Unit<'_>, first: usize, length: usize, row: usize, states: &mut [f32]) {
    let n = unit.k.width;
    for j in 0..length {
        let (before, next) = states.split_at_mut((j + 1) * n);
        advance(unit, first + j, row, &before[j * n..], &mut next[..n]);
    }
}

type Write<'a> = &'a mut dyn FnMut(usize, usize, &Tiles);

#[inline(always)]
fn body(unit: &Unit<'_>, write: Write<'_>) {
    let n = unit.k.width;
    let n_chunks = unit.tokens.div_ceil(CHUNK);
    let length = |chunk: usize| CHUNK.min(unit.tokens - chunk * CHUNK);
    // States before each chunk, `[n, rows, n_chunks]`.
    let mut starts = vec![0f32; n * n * n_chunks];
    for row in 0..n {
        for i in 0..n {
            starts[row * n + i] = unit.start[if unit.kind.by_key { i * n + row } else { row * n + i }];
        }
    }
    let mut states = vec![0f32; n * (CHUNK + 1)];
    for chunk in 0..n_chunks - 1 {
        for row in 0..n {
            states[..n].copy_from_slice(&starts[(chunk * n + row) * n..][..n]);
            walk(unit, chunk * CHUNK, CHUNK, row, &mut states);
            starts[((chunk + 1) * n + row) * n..][..n].copy_from_slice(&states[CHUNK * n..]);
        }
    }
    let mut carries = vec![0f32; n * n];
    let mut grad = vec![0f32; n];
    let mut tiles = Tiles(vec![vec![0f32; n * CHUNK]; if unit.kind.delta { 6 } else { 4 }]);
    for chunk in (0..n_chunks).rev() {
        tiles.0.iter_mut().for_each(|tile| tile.fill(0.0));
        let first = chunk * CHUNK;
        for row in 0..n {
            states[..n].copy_from_slice(&starts[(chunk * n + row) * n..][..n]);
            walk(unit, first, length(chunk), row, &mut states);
            let carry = &mut carries[row * n..][..n];
            for j in (0..length(chunk)).rev() {
                let token = first + j;
                let (before, now) = (&states[j * n..][..n], &states[(j + 1) * n..][..n]);
                let (r, w, k) = (unit.r.at(token), unit.w.at(token), unit.k.at(token));
                let (g, v) = (unit.g.at(token)[row], unit.v.at(token)[row]);
                let at = j * n..(j + 1) * n;
                grad.copy_from_slice(carry);
                if !unit.kind.before {
                    add_scaled(&mut grad, g, r);
                }
                add_scaled(&mut tiles.0[0][at.clone()], g, if unit.kind.before { before } else { now });
                for (((dw, carry), (&grad, &before)), &w) in
                    tiles.0[1][at.clone()].iter_mut().zip(carry.iter_mut()).zip(grad.iter().zip(before)).zip(w)
                {
                    *dw += grad * before;
                    *carry = grad * w;
                }
                add_scaled(&mut tiles.0[2][at.clone()], v, &grad);
                tiles.0[3][j * n + row] = dot(&grad, k);
                if unit.kind.before {
                    add_scaled(carry, g, r);
                }
                if unit.kind.delta {
                    let (a, b) = (unit.a.at(token), unit.b.at(token));
                    let slope = dot(&grad, b);
                    add_scaled(&mut tiles.0[4][at.clone()], slope, before);
                    add_scaled(&mut tiles.0[5][at], dot(a, before), &grad);
                    add_scaled(carry, slope, a);
                }
            }
        }
        write(first, length(chunk), &tiles);
    }
}

fn unit_back(unit: &Unit<'_>, write: Write<'_>) {
    for_this_cpu!(body, (unit: &Unit<'_>, write: Write<'_>) -> ())
}

/// The custom op: src0 = states at the start `[n, n, n_head, sequences]`, then r, w, k, v (and a, b) and the gradient of the
/// result, `[n, n_head, tokens, sequences]` each; dst = the gradients of all but the first and the last, one after the other.
pub(in crate::graph) unsafe extern "C" fn backward(
    dst: *mut sys::ggml_tensor,
    ith: c_int,
    nth: c_int,
    user: *mut c_void,
) {
    // SAFETY: `emit` passes contiguous F32 tensors of these shapes in host memory. Workers take disjoint pairs of a head and a
    // sequence, which write disjoint rows of dst.
    unsafe {
        let kind = kind_of(user);
        let parts = if kind.delta { 6 } else { 4 };
        let [n, n_head, tokens, sequences] = extents(&*(*dst).src[1]);
        let out = (*dst).data.cast::<f32>();
        let size = n * n_head * tokens * sequences;
        let (from, to) = share(n_head * sequences, ith as usize, nth as usize);
        for number in from..to {
            let (head, sequence) = (number % n_head, number / n_head);
            let at = (sequence * tokens * n_head + head) * n;
            let rows = |i: usize| Rows { data: &numbers((*dst).src[i])[at..], stride: n * n_head, width: n };
            let unit = Unit {
                kind,
                tokens,
                start: &numbers((*dst).src[0])[number * n * n..][..n * n],
                r: rows(1),
                w: rows(2),
                k: rows(3),
                v: rows(4),
                a: rows(if kind.delta { 5 } else { 1 }),
                b: rows(if kind.delta { 6 } else { 1 }),
                g: rows(parts + 1),
            };
            unit_back(&unit, &mut |first, length, tiles| {
                for (part, tile) in tiles.0.iter().enumerate() {
                    for j in 0..length {
                        let to = out.add(part * size + at + (first + j) * n * n_head);
                        std::ptr::copy_nonoverlapping(tile[j * n..][..n].as_ptr(), to, n);
                    }
                }
            });
        }
    }
}
