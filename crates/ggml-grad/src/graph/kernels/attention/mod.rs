//! Softmax attention and its gradient, without a table of scores.
//!
//! Scores of a few queries at a time are made, softened and used while they lie in the first cache; the backward pass makes
//! them again, as Dao et al. do (FlashAttention, arXiv 2205.14135; the split into a pass over queries and a pass over keys
//! is FlashAttention-2's, arXiv 2307.08691). Units of sixteen keys that the mask hides from a whole tile of queries cost
//! nothing: in a preference pair, where the two responses do not see each other, that is more than half of them. All
//! numbers are F32; sums are in one order whatever the number of threads.
//!
//! Shapes: queries `[k, n_head, n]`, keys `[k, n_head_kv, n_kv]`, values `[k_v, n_head_kv, n_kv]`, mask `[>= n_kv, >= n]`,
//! result `[k_v, n_head, n]`; extents `k` and `k_v` are multiples of 16, rows are contiguous.

mod tile;

use crate::llama::sys;
use half::slice::HalfFloatSliceExt;
use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use tile::{Kernels, LANES, ROWS, Tile, UNITS, Units, kernels};

/// The user data of the ops: the factor on the scores.
pub(in crate::graph) fn task(scale: f32) -> *mut c_void {
    scale.to_bits() as usize as *mut c_void
}

/// Floats of the result of [`backward_q`]: the gradient of the queries, then for each head and query the logarithm of the
/// softmax's sum and what its gradient subtracts, each head's rounded up to units.
pub(in crate::graph) fn backward_q_floats(k: usize, n_head: usize, n: usize) -> usize {
    k * n_head * n + 2 * n_head * n.next_multiple_of(LANES)
}

/// True for extents that the kernels support: `k` and `k_v` in whole units, and a mask that covers the keys in whole units.
pub(in crate::graph) fn supports(k: usize, k_v: usize, n_kv: usize, mask: usize) -> bool {
    k.is_multiple_of(LANES) && k_v.is_multiple_of(LANES) && mask >= n_kv.next_multiple_of(LANES)
}

/// A source with heads; strides in floats.
#[derive(Clone, Copy)]
struct Heads {
    data: *mut f32,
    k: usize,
    heads: usize,
    rows: usize,
    head: usize,
    row: usize,
}

impl Heads {
    /// # Safety
    /// A live tensor of floats.
    unsafe fn of(t: *const sys::ggml_tensor) -> Self {
        // SAFETY: by contract.
        let t = unsafe { &*t };
        let [k, heads, rows, _] = t.ne.map(|n| n as usize);
        Self { data: t.data.cast(), k, heads, rows, head: t.nb[1] / 4, row: t.nb[2] / 4 }
    }

    /// Contiguous, at some memory.
    fn at_memory(data: *mut f32, k: usize, heads: usize, rows: usize) -> Self {
        Self { data, k, heads, rows, head: k, row: k * heads }
    }

    /// # Safety
    /// The head and the row exist.
    unsafe fn at(&self, head: usize, row: usize) -> *mut f32 {
        // SAFETY: by contract.
        unsafe { self.data.add(head * self.head + row * self.row) }
    }

    /// Rows from `first` on, for a tile.
    unsafe fn rows(&self, head: usize, first: usize, count: usize) -> [*const f32; ROWS] {
        // SAFETY: the rows exist; the last is repeated.
        std::array::from_fn(|i| unsafe { self.at(head, first + i.min(count - 1)) }.cast_const())
    }

    unsafe fn rows_mut(&self, head: usize, first: usize, count: usize) -> [*mut f32; ROWS] {
        // SAFETY: the rows exist; the last is repeated.
        std::array::from_fn(|i| unsafe { self.at(head, first + i.min(count - 1)) })
    }

    /// Floats of a head in units of rows.
    fn unit_floats(&self) -> usize {
        self.rows.next_multiple_of(LANES) * self.k
    }
}

/// Rows of a table of scores that is kept for one tile, and which units its columns stand for.
#[derive(Default)]
struct Scores {
    units: Vec<usize>,
    table: Vec<f32>, // [ROWS, 16 units]
    other: Vec<f32>, // the same
}

impl Scores {
    fn width(&self) -> usize {
        self.units.len() * LANES
    }

    /// Room for the units, and the rows of both tables.
    fn rows(&mut self) -> ([*mut f32; ROWS], [*mut f32; ROWS]) {
        let width = self.width();
        for table in [&mut self.table, &mut self.other] {
            if table.len() < ROWS * width {
                table.resize(ROWS * width, 0.0);
            }
        }
        let (table, other) = (self.table.as_mut_ptr(), self.other.as_mut_ptr());
        // SAFETY: inside the tables.
        unsafe { (std::array::from_fn(|i| table.add(i * width)), std::array::from_fn(|i| other.add(i * width))) }
    }

    /// Fills both tables: matmuls of a tile's rows with the operands in units, each operand with rows as long as those that
    /// it is multiplied with. Returns the rows of both.
    ///
    /// # Safety
    /// The rows and the units exist.
    unsafe fn multiply(
        &mut self,
        kernels: &Kernels,
        TileRows { head, first, count }: TileRows,
        operands: [(&Heads, &[f32]); 2],
    ) -> ([*mut f32; ROWS], [*mut f32; ROWS]) {
        let (p, dp) = self.rows();
        for ((rows, units), to) in operands.into_iter().zip([p, dp]) {
            // SAFETY: by contract.
            unsafe {
                let a = (rows.rows(head, first, count), count);
                multiply(kernels, &self.units, a, (units.as_ptr(), rows.k), to);
            }
        }
        (p, dp)
    }
}

/// The rows of a tile in one head.
#[derive(Clone, Copy)]
struct TileRows {
    head: usize,
    first: usize,
    count: usize,
}

/// `c[i] = rows a . rows of the units`, for the units that count.
///
/// # Safety
/// Rows and units of `k` floats exist; `c` has room for all units.
unsafe fn multiply(
    kernels: &Kernels,
    units: &[usize],
    (a, rows): ([*const f32; ROWS], usize),
    (b, k): (*const f32, usize),
    c: [*mut f32; ROWS],
) {
    for (i, four) in units.chunks(UNITS).enumerate() {
        // SAFETY: by contract.
        unsafe {
            let b = std::array::from_fn(|j| b.add(four[j.min(four.len() - 1)] * k * LANES));
            let c = c.map(|c| c.add(i * UNITS * LANES));
            (kernels.product)(&Tile { rows, units: four.len(), k, a, b, step: LANES, c, add: false });
        }
    }
}

/// `c[i] (+)= sum over the rows of x in the units of table[i] x[row]`.
///
/// # Safety
/// The head of `x` exists, the table has a column for each row of the units, `c` has rows as long as those of `x`.
unsafe fn combine(
    kernels: &Kernels,
    units: &[usize],
    (table, rows): ([*mut f32; ROWS], usize),
    (x, head): (&Heads, usize),
    c: [*mut f32; ROWS],
    mut add: bool,
) {
    let mut at = 0;
    while at < units.len() {
        let run = (at..units.len()).take_while(|&i| units[i] == units[at] + i - at).count();
        let first = units[at] * LANES;
        let k = (run * LANES).min(x.rows - first);
        for column in (0..x.k / LANES).step_by(UNITS) {
            let n = UNITS.min(x.k / LANES - column);
            // SAFETY: by contract.
            unsafe {
                let a = table.map(|t| t.add(at * LANES).cast_const());
                let x_row = x.at(head, first).cast_const();
                let b = std::array::from_fn(|j| x_row.add((column + j.min(n - 1)) * LANES));
                let c = c.map(|c| c.add(column * LANES));
                (kernels.product)(&Tile { rows, units: n, k, a, b, step: x.row, c, add });
            }
        }
        add = true;
        at += run;
    }
}

/// Sets rows of `k` floats.
///
/// # Safety
/// They exist.
unsafe fn fill(rows: &[*mut f32], k: usize, value: f32) {
    for &row in rows {
        // SAFETY: by contract.
        unsafe { std::slice::from_raw_parts_mut(row, k) }.fill(value);
    }
}

/// The mask of scores, `[n, stride]`.
#[derive(Clone, Copy)]
struct Mask {
    data: *const f32,
    stride: usize,
}

/// True if the mask lets anything through in this unit.
///
/// # Safety
/// Sixteen floats.
#[inline(always)]
unsafe fn lets_through(mask: *const f32) -> bool {
    // SAFETY: by contract.
    let mask = unsafe { &*mask.cast::<[f32; LANES]>() };
    mask.iter().fold(false, |any, &m| any | (m > f32::NEG_INFINITY))
}

/// A worker's buffers, kept between calls.
#[derive(Default)]
struct Scratch {
    /// For each tile of rows, or of columns, the units that the mask does not hide.
    open: Vec<Vec<usize>>,
    scores: Scores,
    first: Vec<f32>,  // a head's keys (values, queries, gradients) in units
    second: Vec<f32>, // the same
    mask: Vec<f32>,   // the mask with queries in units: [n / 16, n_kv, 16]
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The sources of all three ops.
struct Sources {
    q: Heads,
    k: Heads,
    v: Heads,
    mask: Mask,
    scale: f32,
    group: usize,
    kernels: &'static Kernels,
}

impl Sources {
    /// # Safety
    /// `dst` is a node with queries, keys, values and mask as its first sources.
    unsafe fn of(dst: *const sys::ggml_tensor, user: *mut c_void) -> Self {
        // SAFETY: by contract.
        unsafe {
            let src = &(*dst).src;
            let (q, k, v) = (Heads::of(src[0]), Heads::of(src[1]), Heads::of(src[2]));
            let mask = Mask { data: (*src[3]).data.cast(), stride: (*src[3]).nb[1] / 4 };
            let scale = f32::from_bits(user as usize as u32);
            Self { group: q.heads / k.heads, q, k, v, mask, scale, kernels: kernels() }
        }
    }

    /// Fills in which units of keys each tile of queries sees.
    unsafe fn seen_by_queries(&self, open: &mut Vec<Vec<usize>>) {
        let (tiles, units) = (self.q.rows.div_ceil(ROWS), self.k.rows.div_ceil(LANES));
        open.resize_with(tiles, Vec::new);
        for (tile, open) in open.iter_mut().enumerate() {
            open.clear();
            let rows = tile * ROWS..((tile + 1) * ROWS).min(self.q.rows);
            open.extend((0..units).filter(|unit| {
                // SAFETY: the mask has these rows and whole units.
                rows.clone().any(|r| unsafe { lets_through(self.mask.data.add(r * self.mask.stride + unit * LANES)) })
            }));
        }
    }

    /// A query's units.
    unsafe fn query<'a>(&self, row: usize, units: &'a [usize]) -> Units<'a> {
        // SAFETY: the mask has this row.
        Units { units, mask: unsafe { self.mask.data.add(row * self.mask.stride) }, stride: LANES }
    }
}

/// Partition of tiles among workers: heads in order, each worker gets a contiguous range of about equal cost. So it
/// has to do with few heads, whose keys it brings into units for itself.
struct Deal {
    /// Cost of a head's tiles before each, and of all.
    before: Vec<usize>,
    heads: usize,
    ith: usize,
    nth: usize,
}

impl Deal {
    fn new(open: &[Vec<usize>], heads: usize, (ith, nth): (usize, usize)) -> Self {
        let mut before = vec![0];
        // A tile that sees nothing is work too.
        before.extend(open.iter().scan(0, |sum, units| {
            *sum += 2 * (units.len() + 1);
            Some(*sum)
        }));
        Self { before, heads, ith, nth }
    }

    /// This worker's tiles of a head.
    fn tiles(&self, head: usize) -> Vec<usize> {
        let all = self.before[self.before.len() - 1];
        let worker = |pair: &[usize]| (head * all + (pair[0] + pair[1]) / 2) * self.nth / (self.heads * all);
        let mine = |(tile, pair)| (worker(pair) == self.ith).then_some(tile);
        self.before.windows(2).enumerate().filter_map(mine).collect()
    }
}

/// Rows of a tile.
fn tile_rows(tile: usize, n: usize) -> (usize, usize) {
    (tile * ROWS, ROWS.min(n - tile * ROWS))
}

impl Sources {
    /// One worker's part of the result.
    ///
    /// # Safety
    /// The sources are what [`Sources::of`] says, and `out` is `[k_v, n_head, n]`.
    unsafe fn forward(&self, out: Heads, ith: usize, nth: usize) {
        // SAFETY: by contract; workers write disjoint rows of heads.
        unsafe {
            SCRATCH.with_borrow_mut(|scratch| {
                let Scratch { open, scores, first, .. } = scratch;
                self.seen_by_queries(open);
                first.resize(self.k.unit_floats(), 0.0);
                let deal = Deal::new(open, self.q.heads, (ith, nth));
                let mut in_units = None;
                for head in 0..self.q.heads {
                    let kv = head / self.group;
                    for tile in deal.tiles(head) {
                        if in_units != Some(kv) {
                            (self.kernels.lanes)(self.k.at(kv, 0), self.k.row, self.k.rows, self.k.k, first);
                            in_units = Some(kv);
                        }
                        let (row, rows) = tile_rows(tile, self.q.rows);
                        scores.units.clone_from(&open[tile]);
                        let (table, _) = scores.rows();
                        let to = out.rows_mut(head, row, rows);
                        multiply(
                            self.kernels,
                            &scores.units,
                            (self.q.rows(head, row, rows), rows),
                            (first.as_ptr(), self.k.k),
                            table,
                        );
                        for i in 0..rows {
                            let table = std::slice::from_raw_parts_mut(table[i], scores.width());
                            (self.kernels.soften)(table, self.query(row + i, &scores.units), self.scale);
                        }
                        if scores.units.is_empty() {
                            // A query that sees nothing: 0 / 0, as ggml has it.
                            fill(&to[..rows], self.v.k, f32::NAN);
                        }
                        combine(self.kernels, &scores.units, (table, rows), (&self.v, kv), to, false);
                    }
                }
            });
        }
    }

    /// One worker's part of what [`backward_q_floats`] says.
    ///
    /// # Safety
    /// As `forward`; `g` is `[k_v, n_head, n]`.
    unsafe fn backward_q(&self, g: Heads, to: *mut f32, ith: usize, nth: usize) {
        let d = Heads::at_memory(to, self.q.k, self.q.heads, self.q.rows);
        let padded = self.q.rows.next_multiple_of(LANES);
        // SAFETY: by contract; workers write disjoint rows of heads.
        unsafe {
            let log = d.data.add(self.q.k * self.q.heads * self.q.rows);
            let dot = log.add(self.q.heads * padded);
            SCRATCH.with_borrow_mut(|scratch| {
                let Scratch { open, scores, first, second, .. } = scratch;
                self.seen_by_queries(open);
                first.resize(self.k.unit_floats(), 0.0);
                second.resize(self.v.unit_floats(), 0.0);
                let deal = Deal::new(open, self.q.heads, (ith, nth));
                let mut in_units = None;
                for head in 0..self.q.heads {
                    let kv = head / self.group;
                    if head % nth == ith {
                        for sums in [log, dot] {
                            std::slice::from_raw_parts_mut(sums.add(head * padded), padded)[self.q.rows..].fill(0.0);
                        }
                    }
                    for tile in deal.tiles(head) {
                        if in_units != Some(kv) {
                            (self.kernels.lanes)(self.k.at(kv, 0), self.k.row, self.k.rows, self.k.k, first);
                            (self.kernels.lanes)(self.v.at(kv, 0), self.v.row, self.v.rows, self.v.k, second);
                            in_units = Some(kv);
                        }
                        let (row, rows) = tile_rows(tile, self.q.rows);
                        scores.units.clone_from(&open[tile]);
                        let of = TileRows { head, first: row, count: rows };
                        let (p, dp) = scores.multiply(self.kernels, of, [(&self.q, first), (&g, second)]);
                        let (units, width) = (&scores.units, scores.width());
                        for i in 0..rows {
                            let p = std::slice::from_raw_parts_mut(p[i], width);
                            let dp = std::slice::from_raw_parts_mut(dp[i], width);
                            let sum = (self.kernels.soften)(p, self.query(row + i, units), self.scale);
                            log.add(head * padded + row + i).write(sum);
                            dot.add(head * padded + row + i).write((self.kernels.slope)(p, dp, self.scale));
                        }
                        let to = d.rows_mut(head, row, rows);
                        if units.is_empty() {
                            fill(&to[..rows], d.k, f32::NAN);
                        }
                        combine(self.kernels, units, (dp, rows), (&self.k, kv), to, false);
                    }
                }
            });
        }
    }

    /// One worker's part of the gradients of keys and values.
    ///
    /// # Safety
    /// As `backward_q`, whose result is `before`; `to` has room for both.
    unsafe fn backward_kv(&self, g: Heads, before: *const f32, to: *mut f32, ith: usize, nth: usize) {
        let (n, n_kv) = (self.q.rows, self.k.rows);
        let padded = n.next_multiple_of(LANES);
        let dk = Heads::at_memory(to, self.k.k, self.k.heads, n_kv);
        // SAFETY: by contract; workers write disjoint rows of heads.
        unsafe {
            let log = before.add(self.q.k * self.q.heads * n);
            let dot = log.add(self.q.heads * padded);
            let dv = Heads::at_memory(dk.data.add(self.k.k * self.k.heads * n_kv), self.v.k, self.v.heads, n_kv);
            SCRATCH.with_borrow_mut(|scratch| {
                let Scratch { open, scores, first, second, mask } = scratch;
                let columns = n_kv.next_multiple_of(LANES);
                mask.resize(padded * columns, 0.0);
                (self.kernels.lanes)(self.mask.data, self.mask.stride, n, columns, mask);
                for lanes in mask[(padded - LANES) * columns..].as_chunks_mut::<LANES>().0 {
                    lanes[LANES - (padded - n)..].fill(f32::NEG_INFINITY);
                }
                let mask = mask.as_ptr();
                let mask_at = |unit: usize, column: usize| mask.add((unit * columns + column) * LANES);
                let tiles = n_kv.div_ceil(ROWS);
                open.resize_with(tiles, Vec::new);
                for (tile, open) in open.iter_mut().enumerate() {
                    let (column, count) = tile_rows(tile, n_kv);
                    open.clear();
                    open.extend(
                        (0..padded / LANES)
                            .filter(|&unit| (column..column + count).any(|column| lets_through(mask_at(unit, column)))),
                    );
                }
                first.resize(self.q.unit_floats(), 0.0);
                second.resize(padded * self.v.k, 0.0);
                let deal = Deal::new(open, self.k.heads, (ith, nth));
                for head in 0..self.q.heads {
                    let kv = head / self.group;
                    let mine = deal.tiles(kv);
                    if !mine.is_empty() {
                        (self.kernels.lanes)(self.q.at(head, 0), self.q.row, n, self.q.k, first);
                        (self.kernels.lanes)(g.at(head, 0), g.row, n, self.v.k, second);
                    }
                    for tile in mine {
                        let (column, count) = tile_rows(tile, n_kv);
                        scores.units.clone_from(&open[tile]);
                        let of = TileRows { head: kv, first: column, count };
                        let (p, dp) = scores.multiply(self.kernels, of, [(&self.k, first), (&self.v, second)]);
                        let (units, width) = (&scores.units, scores.width());
                        let sums = [log.add(head * padded), dot.add(head * padded)];
                        for i in 0..count {
                            let seen = Units { units, mask: mask_at(0, column + i), stride: columns * LANES };
                            let p = std::slice::from_raw_parts_mut(p[i], width);
                            let dp = std::slice::from_raw_parts_mut(dp[i], width);
                            (self.kernels.again)(p, dp, seen, sums, self.scale);
                        }
                        let (to_k, to_v) = (dk.rows_mut(kv, column, count), dv.rows_mut(kv, column, count));
                        let add = head % self.group != 0;
                        if units.is_empty() && !add {
                            fill(&to_k[..count], dk.k, 0.0);
                            fill(&to_v[..count], dv.k, 0.0);
                        }
                        combine(self.kernels, units, (dp, count), (&self.q, head), to_k, add);
                        combine(self.kernels, units, (p, count), (&g, head), to_v, add);
                    }
                }
            });
        }
    }
}

/// The custom op: queries, keys, values, mask to the result.
pub(in crate::graph) unsafe extern "C" fn forward(
    dst: *mut sys::ggml_tensor,
    ith: c_int,
    nth: c_int,
    user: *mut c_void,
) {
    // SAFETY: `emit` builds the node with these shapes, all in host memory.
    unsafe { Sources::of(dst, user).forward(Heads::of(dst), ith as usize, nth as usize) }
}

/// Scale, ALiBi bias and soft cap of llama.cpp's fused attention, from its parameters.
pub(in crate::graph) fn fused_params(params: [i32; 16]) -> [f32; 3] {
    [0, 1, 2].map(|i| f32::from_bits(params[i] as u32))
}

/// The custom op with the sources of llama.cpp's fused attention: queries `[k, n, n_head]`, keys `[k, n_kv, n_head_kv]`, values
/// `[k_v, n_kv, n_head_kv]`, mask in 16-bit floats; the result `[k_v, n_head, n]`.
pub(in crate::graph) unsafe extern "C" fn fused(dst: *mut sys::ggml_tensor, ith: c_int, nth: c_int, user: *mut c_void) {
    thread_local! {
        static MASK: RefCell<Vec<f32>> = RefCell::default();
    }
    // SAFETY: the kernel override took the node for its shapes and types, all in host memory.
    unsafe {
        let src = &(*dst).src;
        let [q, k, v] = [0, 1, 2].map(|i| {
            let t = &*src[i];
            let [k, rows, heads, _] = t.ne.map(|n| n as usize);
            Heads { data: t.data.cast(), k, heads, rows, head: t.nb[2] / 4, row: t.nb[1] / 4 }
        });
        let width = (*src[3]).ne[0] as usize;
        MASK.with_borrow_mut(|mask| {
            mask.resize(q.rows * width, 0.0);
            for (row, mask) in mask.chunks_exact_mut(width).enumerate() {
                let stored = (*src[3]).data.cast::<u8>().add(row * (*src[3]).nb[1]).cast::<half::f16>();
                std::slice::from_raw_parts(stored, width).convert_to_f32_slice(mask);
            }
            let mask = Mask { data: mask.as_ptr(), stride: width };
            let scale = f32::from_bits(user as usize as u32);
            let group = q.heads / k.heads;
            let sources = Sources { q, k, v, mask, scale, group, kernels: kernels() };
            sources.forward(Heads::of(dst), ith as usize, nth as usize);
        });
    }
}

/// The custom op: queries, keys, values, mask, gradient of the result `[k_v, n_head, n]` to what [`backward_q_floats`] says.
pub(in crate::graph) unsafe extern "C" fn backward_q(
    dst: *mut sys::ggml_tensor,
    ith: c_int,
    nth: c_int,
    user: *mut c_void,
) {
    // SAFETY: as `forward`.
    unsafe {
        let g = Heads::of((*dst).src[4]);
        Sources::of(dst, user).backward_q(g, (*dst).data.cast(), ith as usize, nth as usize);
    }
}

/// The custom op: queries, keys, values, mask, gradient of the result, result of [`backward_q`] to the gradients of keys
/// `[k, n_head_kv, n_kv]` and values `[k_v, n_head_kv, n_kv]`, one after the other.
pub(in crate::graph) unsafe extern "C" fn backward_kv(
    dst: *mut sys::ggml_tensor,
    ith: c_int,
    nth: c_int,
    user: *mut c_void,
) {
    // SAFETY: as `forward`.
    unsafe {
        let (g, before) = (Heads::of((*dst).src[4]), (*(*dst).src[5]).data.cast());
        Sources::of(dst, user).backward_kv(g, before, (*dst).data.cast(), ith as usize, nth as usize);
    }
}

#[cfg(test)]
mod tests;
