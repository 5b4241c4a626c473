//! `d = W^T g` for a weight `W` in any type ggml can dequantize.
//!
//! W has `n` rows of `k` numbers, g has `m` rows of `n`, d gets `m` rows of `k`: `d[m][k] = sum_n g[m][n] W[n][k]`.
//! W may also be one matrix of several: one for each plane of g (`run`) or for each row of g (`run_id`, mixtures of
//! experts).
//!
//! Blocks of W's rows are dequantized to a panel that stays in the cache, and a register-blocked product adds the panel's
//! part to d. The panel is F32, or BF16 (with g) where that is asked for and the CPU multiplies BF16; only weights that are
//! quantized themselves are rounded so. All sums are F32, in the same order whatever the number of threads: each number
//! of d is summed by one worker.

use crate::graph::kernels::products::bf16;
use crate::graph::kernels::products::int8::Rows;
use crate::graph::kernels::products::quants::Format;
use crate::graph::kernels::{grid, share};
use crate::llama::sys;
use std::cell::RefCell;
use std::ffi::{c_int, c_void};

/// Rows of W in a panel.
const PANEL_ROWS: usize = 128;
/// Columns of a register tile.
const TILE_K: usize = 64;
/// Rows of g in a register tile.
const TILE_M: usize = 6;
/// Columns are dealt to workers in these units: whole quantization blocks of every type, whole tiles where possible.
const UNIT: usize = 64;
/// The same where there are few columns: half tiles, but as many for each worker.
const SMALL_UNIT: usize = 32;

thread_local! {
    /// The panel of this worker, kept between calls.
    static PANEL: RefCell<Panel> = RefCell::default();
}

/// A worker's buffers, kept between calls.
#[derive(Default)]
struct Panel {
    rows: Rows,
    full: Vec<f32>, // [PANEL_ROWS, width]
    half: Vec<u32>, // [PANEL_ROWS / 2, width]
    g: Vec<u16>,    // [m, n], BF16
    order: Vec<u32>,
}

/// The user data of the ops: whether BF16 may be used.
pub(in crate::graph) fn task(half: bool) -> *mut c_void {
    usize::from(half) as *mut c_void
}

/// The format of a weight that is to be multiplied in BF16.
fn half_format(w: &sys::ggml_tensor, user: *mut c_void) -> Option<Format> {
    (!user.is_null() && crate::graph::kernels::cpu::level().has_bf16()).then(|| Format::of(w.type_)).flatten()
}

/// The custom op: src0 = W `[k, n, a, b]`, src1 = g `[n, m, c, d]`, dst `[k, m, c, d]`; W is repeated over the two outer
/// dimensions. A third source of the result's shape is added to it.
pub(in crate::graph) unsafe extern "C" fn run(dst: *mut sys::ggml_tensor, ith: c_int, nth: c_int, user: *mut c_void) {
    // SAFETY: ggml calls with the tensors that `emit` built: W of any type, g and d contiguous F32, all in host memory.
    // Workers write disjoint parts of d.
    unsafe {
        let (d, w, g) = (&*dst, &*(*dst).src[0], &*(*dst).src[1]);
        let [wa, wb] = [w.ne[2] as usize, w.ne[3] as usize];
        let [n, mut m, mut c, mut b] = g.ne.map(|x| x as usize);
        if wa * wb == 1 {
            // One matrix for all: one product of all rows.
            (m, c, b) = (m * c * b, 1, 1);
        }
        let Some(share) = Share::new(w, m, ith as usize, nth as usize) else { return };
        let (k, half) = (w.ne[0] as usize, half_format(w, user));
        let addend = (*dst).src[2].as_ref().map(|t| t.data.cast::<f32>().cast_const());
        for plane in 0..c * b {
            let (i2, i3) = (plane % c, plane / c);
            let matrix = w.data.cast::<u8>().add(i2 / (c / wa) * w.nb[2] + i3 / (b / wb) * w.nb[3]);
            let g = std::slice::from_raw_parts(g.data.cast::<f32>().add(plane * m * n), m * n);
            let offset = plane * m * k + share.k0;
            let to = Tile {
                m0: share.m0,
                m1: share.m1,
                d: d.data.cast::<f32>().add(offset),
                stride: k,
                addend: addend.map(|a| a.add(offset)),
            };
            share.product(w, half, matrix, g, to);
        }
    }
}

/// The custom op with a matrix for each row: src0 = W `[k, n, experts]`, src1 = g `[n, slots, tokens]`, src2 = numbers of
/// the matrices `[slots, tokens]`, dst `[k, slots, tokens]`. Rows of one matrix are brought together and multiplied at
/// once; a row whose number names no matrix becomes zero.
pub(in crate::graph) unsafe extern "C" fn run_id(
    dst: *mut sys::ggml_tensor,
    ith: c_int,
    nth: c_int,
    user: *mut c_void,
) {
    // SAFETY: as in `run`; the numbers are I32 with any strides. Workers write disjoint columns, or disjoint rows, of d.
    unsafe {
        let (d, w, g, ids) = (&*dst, &*(*dst).src[0], &*(*dst).src[1], &*(*dst).src[2]);
        let [n, slots, tokens] = [g.ne[0] as usize, g.ne[1] as usize, g.ne[2] as usize];
        let k = w.ne[0] as usize;
        let Some(share) = Share::new(w, slots * tokens, ith as usize, nth as usize) else { return };
        let (width, half) = (share.k1 - share.k0, half_format(w, user));
        let mut rows_of = vec![Vec::new(); w.ne[2] as usize];
        for row in share.m0..share.m1 {
            let at = ids.data.cast::<u8>().add(row % slots * ids.nb[0] + row / slots * ids.nb[1]);
            match rows_of.get_mut(at.cast::<i32>().read_unaligned() as usize) {
                Some(rows) => rows.push(row),
                None => {
                    std::slice::from_raw_parts_mut(d.data.cast::<f32>().add(row * k + share.k0), width).fill(0.0);
                }
            }
        }
        let (mut gathered, mut sums) = (Vec::new(), Vec::new()); // [rows of one matrix, n], [rows of one matrix, width]
        for (expert, rows) in rows_of.iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
            gathered.clear();
            for row in rows {
                gathered.extend_from_slice(std::slice::from_raw_parts(g.data.cast::<f32>().add(row * n), n));
            }
            sums.resize(rows.len() * width, 0.0);
            let matrix = w.data.cast::<u8>().add(expert * w.nb[2]);
            let to = Tile { m0: 0, m1: rows.len(), d: sums.as_mut_ptr(), stride: width, addend: None };
            share.product(w, half, matrix, &gathered, to);
            for (row, sum) in rows.iter().zip(sums.chunks_exact(width)) {
                let to = d.data.cast::<f32>().add(row * k + share.k0);
                std::ptr::copy_nonoverlapping(sum.as_ptr(), to, width);
            }
        }
    }
}

/// The part of d that one matmul writes: rows `m0..m1`, from the worker's first column on.
#[derive(Clone, Copy)]
struct Tile {
    m0: usize,
    m1: usize,
    /// Row 0, at the worker's first column.
    d: *mut f32, // [m, stride]
    /// Floats from one row to the next.
    stride: usize,
    /// Added to the result; laid out like `d`.
    addend: Option<*const f32>,
}

/// A worker's columns of the rows of W, as stored.
#[derive(Clone, Copy)]
struct StoredRows {
    /// Row 0, at the worker's first column.
    first: *const u8,
    /// Bytes from one row to the next.
    stride: usize,
    /// Bytes of the worker's columns of a row.
    bytes: usize,
    n: usize,
    width: usize,
}

/// One worker's part of d: columns `k0..k1` of rows `m0..m1`.
struct Share {
    k0: usize,
    k1: usize,
    m0: usize,
    m1: usize,
}

impl Share {
    /// A worker dequantizes all rows of its columns, and rounds all of its rows of g: where there are many workers, parts
    /// that are not as wide and as long as they could be cost less. None for a worker without work.
    fn new(w: &sys::ggml_tensor, m: usize, ith: usize, nth: usize) -> Option<Self> {
        let k = w.ne[0] as usize;
        // SAFETY: arithmetic on the type's traits.
        let block = unsafe { sys::ggml_blck_size(w.type_) as usize };
        // For each row of W, in cycles: multiplications, columns unpacked, rows rounded. Half a tile takes more than half.
        let cost = |width: usize, rows: usize| {
            let tiles = (width / TILE_K) as f64 + if width.is_multiple_of(TILE_K) { 0.0 } else { 0.6 };
            tiles * rows as f64 + 0.5 * width as f64 + 0.15 * rows as f64
        };
        let way = |unit: usize| {
            let unit = block.max(unit);
            (unit, grid(k.div_ceil(unit), m, nth, |units, rows| cost((units * unit).min(k), rows)))
        };
        let (whole, half) = (way(UNIT), way(SMALL_UNIT));
        let (unit, (_, across, down)) = if half.1.0 < whole.1.0 { half } else { whole };
        if ith >= across * down {
            return None;
        }
        let (u0, u1) = share(k.div_ceil(unit), ith % across, across);
        let (k0, k1) = (u0 * unit, (u1 * unit).min(k));
        let (m0, m1) = share(m, ith / across, down);
        (k0 < k1 && m0 < m1).then_some(Self { k0, k1, m0, m1 })
    }

    /// The tile's rows of g `[m, n]` times the matrix's columns of this worker, written to the tile.
    ///
    /// # Safety
    /// `matrix` points to n rows of the type and row stride of `w`; the tile is valid for its rows and these columns.
    unsafe fn product(&self, w: &sys::ggml_tensor, half: Option<Format>, matrix: *const u8, g: &[f32], to: Tile) {
        let Tile { m0, m1, d, stride, addend } = to;
        let n = w.ne[1] as usize;
        let width = self.k1 - self.k0;
        // SAFETY: by contract.
        unsafe {
            let traits = &*sys::ggml_get_type_traits(w.type_);
            let stored = sys::ggml_row_size(w.type_, width as i64);
            let first = matrix.add(sys::ggml_row_size(w.type_, self.k0 as i64));
            if let Some(addend) = addend {
                for row in m0..m1 {
                    std::ptr::copy_nonoverlapping(addend.add(row * stride), d.add(row * stride), width);
                }
            }
            let empty = addend.is_none();
            PANEL.with_borrow_mut(|panel| {
                if let Some(format) = half {
                    let rows = StoredRows { first, stride: w.nb[1], bytes: stored, n, width };
                    panel.product(&format, rows, g, to);
                    return;
                }
                if empty {
                    for row in m0..m1 {
                        std::slice::from_raw_parts_mut(d.add(row * stride), width).fill(0.0);
                    }
                }
                let panel = &mut panel.full;
                panel.resize(PANEL_ROWS * width, 0.0);
                for n0 in (0..n).step_by(PANEL_ROWS) {
                    let rows = PANEL_ROWS.min(n - n0);
                    for r in 0..rows {
                        let from = first.add((n0 + r) * w.nb[1]);
                        let to = panel.as_mut_ptr().add(r * width);
                        match traits.to_float {
                            Some(convert) => convert(from.cast::<c_void>(), to, width as i64),
                            // F32 has no conversion.
                            None => std::ptr::copy_nonoverlapping(from.cast::<f32>(), to, width),
                        }
                    }
                    let part = Part { panel: &panel[..rows * width], width, rows, g, n, n0, m0, m1, d, stride };
                    part.accumulate();
                }
            });
        }
    }
}

impl Panel {
    /// The matmul in BF16, written to the tile, or added to it where it holds the addend.
    ///
    /// # Safety
    /// As [`Share::product`]; the CPU multiplies BF16.
    unsafe fn product(
        &mut self,
        format: &Format,
        StoredRows { first, stride: row_stride, bytes, n, width }: StoredRows,
        g: &[f32],
        Tile { m0, m1, d, stride, addend }: Tile,
    ) {
        let (m, groups) = (m1 - m0, width / format.group);
        let a_stride = n.next_multiple_of(2);
        self.g.resize(m * a_stride, 0);
        for (row, out) in (m0..m1).zip(self.g.chunks_exact_mut(a_stride)) {
            // For odd n the last pair has one value only.
            out[n..].fill(0);
            // SAFETY: by contract, the CPU has BF16.
            unsafe { bf16::round_all(&g[row * n..(row + 1) * n], out) };
        }
        self.order.clear();
        self.order.extend(0..m as u32);
        self.rows.resize(PANEL_ROWS, width, groups);
        self.half.resize(PANEL_ROWS / 2 * width, 0);
        for n0 in (0..n).step_by(PANEL_ROWS) {
            let count = PANEL_ROWS.min(n - n0);
            for r in 0..count {
                // SAFETY: by contract, whole blocks of a stored row.
                let row = unsafe { std::slice::from_raw_parts(first.add((n0 + r) * row_stride), bytes) };
                self.rows.unpack(format, row, r);
            }
            let pairs = count.div_ceil(2);
            for (p, out) in self.half.chunks_exact_mut(width).enumerate().take(pairs) {
                let odd = (2 * p + 1 < count).then(|| self.rows.row(*format, 2 * p + 1));
                // SAFETY: as above.
                unsafe { bf16::pair(self.rows.row(*format, 2 * p), odd, out) };
            }
            let product = bf16::Product {
                first: addend.is_none() && n0 == 0,
                panel: &self.half,
                width,
                pairs,
                a: &self.g,
                a_stride,
                a_offset: n0,
                // SAFETY: row m0 is the first of this worker's rows.
                d: unsafe { d.add(m0 * stride) },
                d_stride: stride,
            };
            // SAFETY: by contract; a width is a multiple of a format's block.
            unsafe { product.add(&self.order) };
        }
    }
}

/// One panel's contribution to a worker's part of d.
struct Part<'a> {
    panel: &'a [f32], // [rows, width]
    width: usize,
    rows: usize,
    g: &'a [f32], // [m, n]
    n: usize,
    n0: usize,
    m0: usize,
    m1: usize,
    d: *mut f32, // [m, stride], offset to the worker's first column
    stride: usize,
}

impl Part<'_> {
    /// # Safety
    /// `d` is valid for rows `m0..m1` and `width` columns.
    unsafe fn accumulate(&self) {
        // SAFETY: each version is called only on a CPU that has its features.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            {
                if crate::graph::kernels::cpu::level().has_avx512() {
                    return self.accumulate_avx512();
                }
                if crate::graph::kernels::cpu::level().has_avx2() {
                    return self.accumulate_avx2();
                }
            }
            self.accumulate_plain();
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    unsafe fn accumulate_avx512(&self) {
        // SAFETY: the caller checked the feature; tiles stay inside the worker's part.
        unsafe { self.tiles::<TILE_M, TILE_K, true>(&|m, k, rows| self.tile_avx512(m, k, rows)) }
    }

    /// `rows` (at most [`TILE_M`]) rows of g by [`TILE_K`] columns, in 24 registers of 16 floats. Written with intrinsics:
    /// left to itself the compiler prefers half as wide registers and spills them.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn tile_avx512(&self, m: usize, k: usize, rows: usize) {
        // SAFETY: by the caller, rows m..m+rows and columns k..k+TILE_K are inside the worker's part and the panel.
        unsafe {
            match rows {
                6.. => self.tile_avx512_of::<TILE_M>(m, k),
                5 => self.tile_avx512_of::<5>(m, k),
                4 => self.tile_avx512_of::<4>(m, k),
                3 => self.tile_avx512_of::<3>(m, k),
                2 => self.tile_avx512_of::<2>(m, k),
                _ => self.tile_avx512_of::<1>(m, k),
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn tile_avx512_of<const M: usize>(&self, m: usize, k: usize) {
        use std::arch::x86_64::{
            _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
        };
        // SAFETY: as tile_avx512.
        unsafe {
            let mut sum = [[_mm512_setzero_ps(); TILE_K / 16]; M];
            let g: [*const f32; M] = std::array::from_fn(|i| self.g.as_ptr().add((m + i) * self.n + self.n0));
            let mut panel = self.panel.as_ptr().add(k);
            for r in 0..self.rows {
                let row: [_; TILE_K / 16] = std::array::from_fn(|j| _mm512_loadu_ps(panel.add(16 * j)));
                for i in 0..M {
                    let c = _mm512_set1_ps(*g[i].add(r));
                    for j in 0..TILE_K / 16 {
                        sum[i][j] = _mm512_fmadd_ps(c, row[j], sum[i][j]);
                    }
                }
                panel = panel.add(self.width);
            }
            for (i, sum) in sum.iter().enumerate() {
                let d = self.d.add((m + i) * self.stride + k);
                for (j, &sum) in sum.iter().enumerate() {
                    _mm512_storeu_ps(d.add(16 * j), _mm512_add_ps(_mm512_loadu_ps(d.add(16 * j)), sum));
                }
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn accumulate_avx2(&self) {
        // SAFETY: as `accumulate_avx512`.
        unsafe { self.tiles::<4, 16, true>(&|m, k, rows| self.tile_of::<4, 16, true>(m, k, rows)) }
    }

    unsafe fn accumulate_plain(&self) {
        const FMA: bool = cfg!(target_arch = "aarch64");
        // SAFETY: as `accumulate_avx512`.
        unsafe { self.tiles::<4, 16, FMA>(&|m, k, rows| self.tile_of::<4, 16, FMA>(m, k, rows)) }
    }

    /// Walks the tiles: `M` rows of g by `K` columns by `tile(m, k, rows)`, the columns at the right edge otherwise.
    #[inline(always)]
    unsafe fn tiles<const M: usize, const K: usize, const FMA: bool>(&self, tile: &impl Fn(usize, usize, usize)) {
        let full_k = self.width - self.width % K;
        // Columns outside: a panel's columns of one tile stay in the first-level cache for all rows of g.
        for k in (0..full_k).step_by(K) {
            for m in (self.m0..self.m1).step_by(M) {
                tile(m, k, M.min(self.m1 - m));
            }
        }
        for k in (full_k..self.width).step_by(16) {
            for m in self.m0..self.m1 {
                // SAFETY: m and k stay inside the worker's part.
                unsafe { self.rest::<1, FMA>(m, k) };
            }
        }
    }

    #[inline(always)]
    unsafe fn tile_of<const M: usize, const K: usize, const FMA: bool>(&self, m: usize, k: usize, rows: usize) {
        // SAFETY: as tile.
        unsafe {
            if rows == M {
                self.tile::<M, K, FMA>(m, k);
            } else {
                (m..m + rows).for_each(|m| self.tile::<1, K, FMA>(m, k));
            }
        }
    }

    #[inline(always)]
    unsafe fn tile<const M: usize, const K: usize, const FMA: bool>(&self, m: usize, k: usize) {
        // SAFETY: rows m..m+M and columns k..k+K are inside the worker's part and the panel.
        unsafe {
            let mut sum = [[0.0f32; K]; M];
            let g: [*const f32; M] = std::array::from_fn(|i| self.g.as_ptr().add((m + i) * self.n + self.n0));
            let mut panel = self.panel.as_ptr().add(k);
            for r in 0..self.rows {
                let row = &*panel.cast::<[f32; K]>();
                for i in 0..M {
                    let c = *g[i].add(r);
                    for j in 0..K {
                        sum[i][j] = if FMA { c.mul_add(row[j], sum[i][j]) } else { sum[i][j] + c * row[j] };
                    }
                }
                panel = panel.add(self.width);
            }
            for (i, sum) in sum.iter().enumerate() {
                let d = &mut *self.d.add((m + i) * self.stride + k).cast::<[f32; K]>();
                for j in 0..K {
                    d[j] += sum[j];
                }
            }
        }
    }

    /// Up to 16 columns at the right edge.
    #[inline(always)]
    unsafe fn rest<const M: usize, const FMA: bool>(&self, m: usize, k: usize) {
        let width = 16.min(self.width - k);
        if width == 16 {
            // SAFETY: 16 columns are left.
            return unsafe { self.tile::<M, 16, FMA>(m, k) };
        }
        for i in 0..M {
            for j in k..k + width {
                let mut sum = 0.0f32;
                for r in 0..self.rows {
                    sum += self.g[(m + i) * self.n + self.n0 + r] * self.panel[r * self.width + j];
                }
                // SAFETY: inside the worker's part.
                unsafe { *self.d.add((m + i) * self.stride + j) += sum };
            }
        }
    }
}

#[cfg(test)]
mod tests;
