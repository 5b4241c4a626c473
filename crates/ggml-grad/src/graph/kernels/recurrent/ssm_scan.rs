//! The gradient of the selective scan of Mamba 1 and 2.
//!
//! With `d = log(1 + e^dt)`, `a = e^(d A)` and `u = d x` a row of the state (a channel of a head) is `h_t = a_t h_(t-1) + u_t B_t`,
//! and `y_t = <C_t, h_t>`. From the gradient `g_t` of `y_t`, with `G_t` that of `h_t`:
//!
//! ```text
//! G_t  = g_t C_t + a_(t+1) G_(t+1)
//! dC_t = g_t h_t,  dB_t = u_t G_t                      summed over the rows of a group
//! dx_t = d_t <G_t, B_t>
//! dd_t = x_t <G_t, B_t> + <G_t, A a_t h_(t-1)>         summed over the rows of a head
//! ddt  = dd e^dt / (1 + e^dt)
//! ```
//!
//! Heads are divided in at most [`PLANES`] planes, each with sums of its own for dB and dC, which a second op adds up.

use super::{extents, numbers};
use crate::graph::ir::{Graph, Node};
use crate::graph::kernels::cpu::for_this_cpu;
use crate::graph::kernels::numeric::{fast_exp, sum16};
use crate::graph::kernels::share;
use crate::llama::sys;
use std::ffi::{c_int, c_void};
use std::ops::Range;

/// Tokens at a time: their states are computed again from the one before them.
const CHUNK: usize = 64;
/// Most parts that the heads are divided in.
const PLANES: usize = 16;

/// Extents of a scan.
#[derive(Debug, Clone, Copy)]
pub(in crate::graph) struct Sizes {
    n_state: usize,
    dim: usize,
    n_head: usize,
    n_group: usize,
    tokens: usize,
    sequences: usize,
}

impl Sizes {
    /// Of a node of the IR, an [`crate::graph::ir::Op::SsmScanBack`].
    pub(in crate::graph) fn of(graph: &Graph, node: &Node) -> Self {
        Self::new(graph.ne(node.src[1]), graph.ne(node.src[4]))
    }

    /// From the shapes of x and B.
    fn new([dim, n_head, tokens, sequences]: [usize; 4], [n_state, n_group, ..]: [usize; 4]) -> Self {
        Self { n_state, dim, n_head, n_group, tokens, sequences }
    }

    fn planes(self) -> usize {
        PLANES.min(self.n_head)
    }

    fn n_x(self) -> usize {
        self.dim * self.n_head * self.tokens * self.sequences
    }

    fn n_dt(self) -> usize {
        self.n_head * self.tokens * self.sequences
    }

    fn n_b(self) -> usize {
        self.n_state * self.n_group * self.tokens * self.sequences
    }

    /// Floats of the first op's result: dx, ddt, then dB and dC of each plane.
    pub(in crate::graph) fn floats(self) -> usize {
        self.n_x() + self.n_dt() + 2 * self.n_b() * self.planes()
    }
}

/// A tensor of a sequence: where its tokens begin.
struct Tokens<'a> {
    data: &'a [f32],
    stride: usize,
}

impl<'a> Tokens<'a> {
    /// # Safety
    /// As [`numbers`]; strides are those of whole floats.
    unsafe fn new(t: *const sys::ggml_tensor, (token, sequence): (usize, usize), which: usize) -> Self {
        // SAFETY: by contract.
        unsafe { Self { data: &numbers(t)[which * (*t).nb[sequence] / 4..], stride: (*t).nb[token] / 4 } }
    }

    /// `n` numbers of a token, from `first` on.
    #[inline(always)]
    fn row(&self, token: usize, first: usize, n: usize) -> &'a [f32] {
        &self.data[token * self.stride + first..][..n]
    }
}

/// What a unit of work reads: one sequence, the heads of one plane.
struct Unit<'a> {
    sizes: Sizes,
    heads: Range<usize>,
    /// `[n_state, rows]`
    start: &'a [f32],
    x: Tokens<'a>,
    dt: Tokens<'a>,
    /// `[n_state or 1, n_head]`
    a: &'a [f32],
    b: Tokens<'a>,
    c: Tokens<'a>,
    g: Tokens<'a>,
}

/// What it writes. dB and dC are `[n_state, n_group, tokens]` of the plane and the sequence.
struct Sums<'a> {
    db: &'a mut [f32],
    dc: &'a mut [f32],
}

/// Steps of a head in a chunk.
struct Steps {
    /// `log(1 + e^dt)`
    d: [f32; CHUNK],
    /// Its slope.
    slope: [f32; CHUNK],
    /// `e^(d A)`, `[n_state or 1, CHUNK]`
    decay: Vec<f32>,
}

impl Steps {
    #[inline(always)]
    fn fill(&mut self, unit: &Unit<'_>, head: usize, chunk: &Range<usize>) {
        let width = unit.a.len() / unit.sizes.n_head;
        let a = &unit.a[head * width..][..width];
        for (i, token) in chunk.clone().enumerate() {
            let dt = unit.dt.row(token, head, 1)[0];
            // As ggml has it.
            (self.d[i], self.slope[i]) =
                if dt > 20.0 { (dt, 1.0) } else { (dt.exp().ln_1p(), 1.0 / (1.0 + (-dt).exp())) };
            let d = self.d[i];
            self.decay[i * width..][..width].iter_mut().zip(a).for_each(|(e, a)| *e = fast_exp(d * a));
        }
    }
}

/// `h = a before + u b`, with one decay or one for each number.
#[inline(always)]
fn advance<const ONE: bool>(before: &[f32], a: &[f32], u: f32, b: &[f32], h: &mut [f32]) {
    if ONE {
        let a = a[0];
        for ((h, &before), &b) in h.iter_mut().zip(before).zip(b) {
            *h = before * a + b * u;
        }
    } else {
        for (((h, &before), &b), &a) in h.iter_mut().zip(before).zip(b).zip(a) {
            *h = before * a + b * u;
        }
    }
}

/// A step back.
struct Back<'a> {
    before: &'a [f32],
    h: &'a [f32],
    decay: &'a [f32],
    a: &'a [f32],
    b: &'a [f32],
    c: &'a [f32],
    /// Gradient of y.
    g: f32,
    u: f32,
}

impl Back<'_> {
    /// Takes `carry`, the part of `G` that comes from later tokens, to that of the token before. Returns `<G, B>` and
    /// `<G, A a h_(t-1)>`.
    #[inline(always)]
    fn step<const ONE: bool>(&self, carry: &mut [f32], db: &mut [f32], dc: &mut [f32]) -> (f32, f32) {
        let n = carry.len();
        let (mut of_b, mut along) = ([0f32; 16], [0f32; 16]);
        let (db, dc) = (&mut db[..n], &mut dc[..n]);
        let (before, h, b, c) = (&self.before[..n], &self.h[..n], &self.b[..n], &self.c[..n]);
        let mut first = 0;
        while first < n {
            let width = 16.min(n - first);
            let part = first..first + width;
            let (carry, db, dc) = (&mut carry[part.clone()], &mut db[part.clone()], &mut dc[part.clone()]);
            let (before, h, b, c) = (&before[part.clone()], &h[part.clone()], &b[part.clone()], &c[part.clone()]);
            let (decay, a) = if ONE { (self.decay, self.a) } else { (&self.decay[part.clone()], &self.a[part]) };
            let mut each = |i: usize| {
                let (e, a) = if ONE { (decay[0], 1.0) } else { (decay[i], a[i]) };
                let grad = carry[i] + self.g * c[i];
                dc[i] += self.g * h[i];
                db[i] += self.u * grad;
                of_b[i] += grad * b[i];
                carry[i] = grad * e;
                along[i] += carry[i] * a * before[i];
            };
            if width == 16 {
                (0..16).for_each(&mut each);
            } else {
                (0..width).for_each(&mut each);
            }
            first += width;
        }
        let along = if ONE { sum16(&along) * self.a[0] } else { sum16(&along) };
        (sum16(&of_b), along)
    }
}

/// The chunks of the tokens.
fn chunks(tokens: usize) -> impl DoubleEndedIterator<Item = (usize, Range<usize>)> {
    (0..tokens.div_ceil(CHUNK)).map(move |i| (i, i * CHUNK..((i + 1) * CHUNK).min(tokens)))
}

/// Takes a chunk, its dx `[rows, CHUNK]` and its ddt `[heads, CHUNK]`.
type Write<'a> = &'a mut dyn FnMut(&Range<usize>, &[f32], &[f32]);

/// Computes a unit.
#[inline(always)]
fn body<const ONE: bool>(unit: &Unit<'_>, sums: &mut Sums<'_>, write: Write<'_>) {
    let Sizes { n_state: n, dim, n_head, n_group, tokens, .. } = unit.sizes;
    let rows = unit.heads.len() * dim;
    let width = unit.a.len() / n_head;
    let n_chunks = tokens.div_ceil(CHUNK);
    let mut steps = Steps { d: [0.0; CHUNK], slope: [0.0; CHUNK], decay: vec![0.0; width * CHUNK] };
    // States before each chunk, `[n_state, rows, n_chunks]`.
    let mut starts = vec![0f32; n * rows * n_chunks];
    starts[..n * rows].copy_from_slice(unit.start);
    let mut state = vec![0f32; n * (CHUNK + 1)];
    let group = |head: usize| head / (n_head / n_group) * n;
    for (i, chunk) in chunks(tokens).take(n_chunks - 1) {
        for (which, head) in unit.heads.clone().enumerate() {
            steps.fill(unit, head, &chunk);
            for row in which * dim..(which + 1) * dim {
                let (now, next) = starts.split_at_mut((i + 1) * n * rows);
                state[..n].copy_from_slice(&now[(i * rows + row) * n..][..n]);
                for (j, token) in chunk.clone().enumerate() {
                    let u = unit.x.row(token, unit.heads.start * dim + row, 1)[0] * steps.d[j];
                    let (before, h) = state.split_at_mut((j + 1) * n);
                    let (before, decay) = (&before[j * n..], &steps.decay[j * width..][..width]);
                    advance::<ONE>(before, decay, u, unit.b.row(token, group(head), n), &mut h[..n]);
                }
                next[row * n..][..n].copy_from_slice(&state[chunk.len() * n..][..n]);
            }
        }
    }
    let mut carry = vec![0f32; n * rows];
    let (mut dx, mut ddt) = (vec![0f32; rows * CHUNK], vec![0f32; unit.heads.len() * CHUNK]);
    for (i, chunk) in chunks(tokens).rev() {
        ddt.fill(0.0);
        for (which, head) in unit.heads.clone().enumerate() {
            steps.fill(unit, head, &chunk);
            let a = &unit.a[head * width..][..width];
            for row in which * dim..(which + 1) * dim {
                let at = unit.heads.start * dim + row;
                state[..n].copy_from_slice(&starts[(i * rows + row) * n..][..n]);
                for (j, token) in chunk.clone().enumerate() {
                    let u = unit.x.row(token, at, 1)[0] * steps.d[j];
                    let (before, h) = state.split_at_mut((j + 1) * n);
                    let (before, decay) = (&before[j * n..], &steps.decay[j * width..][..width]);
                    advance::<ONE>(before, decay, u, unit.b.row(token, group(head), n), &mut h[..n]);
                }
                let carry = &mut carry[row * n..][..n];
                for (j, token) in chunk.clone().enumerate().rev() {
                    let x = unit.x.row(token, at, 1)[0];
                    let back = Back {
                        before: &state[j * n..][..n],
                        h: &state[(j + 1) * n..][..n],
                        decay: &steps.decay[j * width..][..width],
                        a,
                        b: unit.b.row(token, group(head), n),
                        c: unit.c.row(token, group(head), n),
                        g: unit.g.row(token, at, 1)[0],
                        u: x * steps.d[j],
                    };
                    let place = token * n * n_group + group(head);
                    let (db, dc) = (&mut sums.db[place..][..n], &mut sums.dc[place..][..n]);
                    let (of_b, along) = back.step::<ONE>(carry, db, dc);
                    dx[j * rows + row] = of_b * steps.d[j];
                    ddt[j * unit.heads.len() + which] += (of_b * x + along) * steps.slope[j];
                }
            }
        }
        write(&chunk, &dx, &ddt);
    }
}

fn unit_back(unit: &Unit<'_>, sums: &mut Sums<'_>, write: Write<'_>) {
    #[inline(always)]
    fn either(unit: &Unit<'_>, sums: &mut Sums<'_>, write: Write<'_>) {
        if unit.a.len() == unit.sizes.n_head && unit.sizes.n_state != 1 {
            body::<true>(unit, sums, write);
        } else {
            body::<false>(unit, sums, write);
        }
    }
    for_this_cpu!(either, (unit: &Unit<'_>, sums: &mut Sums<'_>, write: Write<'_>) -> ())
}

/// The custom op: sources as in [`crate::graph::ir::Op::SsmScanBack`]; dst as in [`Sizes::floats`].
pub(in crate::graph) unsafe extern "C" fn backward(dst: *mut sys::ggml_tensor, ith: c_int, nth: c_int, _: *mut c_void) {
    // SAFETY: `emit` passes F32 tensors (and I32 numbers of states) of the shapes that the IR checked, in host memory. Workers
    // take disjoint pairs of a plane and a sequence, which write disjoint parts of dst.
    unsafe {
        let src: [*const sys::ggml_tensor; 8] = std::array::from_fn(|i| (*dst).src[i].cast_const());
        let [state, x, dt, a, b, c, ids, g] = src;
        let sizes = Sizes::new(extents(&*x), extents(&*b));
        let Sizes { n_state, dim, n_head, n_group, tokens, sequences } = sizes;
        let planes = sizes.planes();
        let out = (*dst).data.cast::<f32>();
        let (from, to) = share(planes * sequences, ith as usize, nth as usize);
        for number in from..to {
            let (plane, sequence) = (number / sequences, number % sequences);
            let (first, last) = share(n_head, plane, planes);
            let rows = (last - first) * dim;
            let id = (*ids).data.cast::<i32>().add(sequence).read_unaligned() as usize;
            let unit = Unit {
                sizes,
                heads: first..last,
                start: &numbers(state)[(id * n_head + first) * dim * n_state..][..rows * n_state],
                x: Tokens::new(x, (2, 3), sequence),
                dt: Tokens::new(dt, (1, 2), sequence),
                a: numbers(a),
                b: Tokens::new(b, (2, 3), sequence),
                c: Tokens::new(c, (2, 3), sequence),
                g: Tokens {
                    data: &numbers(g)[sequence * dim * n_head * tokens..][..dim * n_head * tokens],
                    stride: dim * n_head,
                },
            };
            let of_sequence = n_state * n_group * tokens;
            let at = sizes.n_x() + sizes.n_dt() + 2 * plane * sizes.n_b() + sequence * of_sequence;
            let part = |at: usize| std::slice::from_raw_parts_mut(out.add(at), of_sequence);
            let mut sums = Sums { db: part(at), dc: part(at + sizes.n_b()) };
            sums.db.fill(0.0);
            sums.dc.fill(0.0);
            unit_back(&unit, &mut sums, &mut |chunk, dx, ddt| {
                for (j, token) in chunk.clone().enumerate() {
                    let to = out.add((sequence * tokens + token) * dim * n_head + first * dim);
                    std::ptr::copy_nonoverlapping(dx[j * rows..][..rows].as_ptr(), to, rows);
                    let to = out.add(sizes.n_x() + (sequence * tokens + token) * n_head + first);
                    let heads = last - first;
                    std::ptr::copy_nonoverlapping(ddt[j * heads..][..heads].as_ptr(), to, heads);
                }
            });
        }
    }
}

/// The second custom op: src0 = the first one's result, src1 = x, src2 = dt, src3 = B; dst = dx, ddt, dB, dC.
pub(in crate::graph) unsafe extern "C" fn finish(dst: *mut sys::ggml_tensor, ith: c_int, nth: c_int, _: *mut c_void) {
    // SAFETY: as above; workers take disjoint ranges of dst.
    unsafe {
        let sizes = Sizes::new(extents(&*(*dst).src[1]), extents(&*(*dst).src[3]));
        let (fixed, sums) = (sizes.n_x() + sizes.n_dt(), 2 * sizes.n_b());
        let parts = numbers((*dst).src[0]);
        let (from, to) = share(fixed + sums, ith as usize, nth as usize);
        let out = std::slice::from_raw_parts_mut((*dst).data.cast::<f32>().add(from), to - from);
        out.copy_from_slice(&parts[from..to]);
        let summed = from.max(fixed);
        for plane in 1..sizes.planes() {
            let more = parts[plane * sums..].get(summed..to).unwrap_or_default();
            out[summed.min(to) - from..].iter_mut().zip(more).for_each(|(sum, x)| *sum += x);
        }
    }
}
