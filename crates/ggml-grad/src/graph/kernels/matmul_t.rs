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

use super::bf16;
use super::int8::Rows;
use super::quants::Format;
use super::{grid, share};
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
    (!user.is_null() && super::cpu::level().has_bf16()).then(|| Format::of(w.type_)).flatten()
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
                if super::cpu::level().has_avx512() {
                    return self.accumulate_avx512();
                }
                if super::cpu::level().has_avx2() {
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
mod tests {
    use super::*;
    use crate::graph::kernels::cpu::tests::at_every_level;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// A weight of `n` rows of `k` random numbers in a type of ggml's, and what it dequantizes to.
    struct Weight {
        kind: sys::ggml_type,
        bytes: Vec<u8>,
        values: Vec<f32>, // [n, k]
        k: usize,
        n: usize,
    }

    impl Weight {
        fn new(kind: sys::ggml_type, k: usize, n: usize, rng: &mut ChaCha8Rng) -> Self {
            crate::llama::init();
            let exact: Vec<f32> = (0..n * k).map(|_| rng.random_range(-1.0..1.0)).collect();
            let mut values = exact.clone();
            // SAFETY: the buffers hold n rows of k numbers, k a multiple of the type's block.
            unsafe {
                assert_eq!(k % sys::ggml_blck_size(kind) as usize, 0);
                let mut bytes = vec![0u8; n * sys::ggml_row_size(kind, k as i64)];
                let to = bytes.as_mut_ptr().cast::<c_void>();
                // Some types insist on weights of importance.
                let importance = vec![1.0f32; k];
                sys::ggml_quantize_chunk(kind, exact.as_ptr(), to, 0, n as i64, k as i64, importance.as_ptr());
                if let Some(convert) = (*sys::ggml_get_type_traits(kind)).to_float {
                    convert(bytes.as_ptr().cast::<c_void>(), values.as_mut_ptr(), (n * k) as i64);
                }
                Self { kind, bytes, values, k, n }
            }
        }

        /// `W^T g` by the op with `nth` workers, one after the other: a number that two of them write would be lost.
        fn product(&mut self, g: &mut [f32], nth: usize) -> Vec<f32> {
            self.product_in(false, g, nth)
        }

        /// The same, in BF16 if `half`.
        fn product_in(&mut self, half: bool, g: &mut [f32], nth: usize) -> Vec<f32> {
            let (k, n, m) = (self.k, self.n, g.len() / self.n);
            let mut d = vec![f32::NAN; m * k];
            // SAFETY: tensors without memory of their own, pointed at buffers of their size; freed with the context.
            unsafe {
                let ctx = sys::ggml_init(sys::ggml_init_params {
                    mem_size: sys::ggml_tensor_overhead() * 5,
                    mem_buffer: std::ptr::null_mut(),
                    no_alloc: true,
                });
                let tensor = |kind, ne0: usize, ne1: usize, data: *mut c_void| {
                    let t = sys::ggml_new_tensor_2d(ctx, kind, ne0 as i64, ne1 as i64);
                    (*t).data = data;
                    t
                };
                let dst = tensor(sys::GGML_TYPE_F32, k, m, d.as_mut_ptr().cast());
                (*dst).src[0] = tensor(self.kind, k, n, self.bytes.as_mut_ptr().cast());
                (*dst).src[1] = tensor(sys::GGML_TYPE_F32, n, m, g.as_mut_ptr().cast());
                for ith in 0..nth {
                    run(dst, ith as c_int, nth as c_int, task(half));
                }
                // With something to add, the sum of both, to the rounding of one more addition.
                let mut more: Vec<f32> = (0..m * k).map(|i| (i % 17) as f32 - 8.0).collect();
                let alone = d.clone();
                (*dst).src[2] = tensor(sys::GGML_TYPE_F32, k, m, more.as_mut_ptr().cast());
                for ith in 0..nth {
                    run(dst, ith as c_int, nth as c_int, task(half));
                }
                let size = alone.iter().fold(8.0f32, |max, x| max.max(x.abs()));
                for ((sum, x), more) in d.iter().zip(&alone).zip(&more) {
                    let close = (sum - (x + more)).abs() <= 1e-5 * size;
                    assert!(close || x.is_nan() && sum.is_nan(), "{sum} for {x} + {more}");
                }
                sys::ggml_free(ctx);
                d = alone;
            }
            d
        }

        /// The same product in f64, and for each number the sum of its terms' magnitudes.
        fn exact(&self, g: &[f32]) -> Vec<(f64, f64)> {
            let (k, n) = (self.k, self.n);
            let mut out = Vec::new();
            for g in g.chunks_exact(n) {
                for column in 0..k {
                    let terms = (0..n).map(|r| f64::from(g[r]) * f64::from(self.values[r * k + column]));
                    out.push(terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs())));
                }
            }
            out
        }
    }

    fn bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|x| x.to_bits()).collect()
    }

    /// F32 sums of up to some hundred terms: a few units in the last place of the terms' magnitudes.
    fn assert_exact(got: &[f32], want: &[(f64, f64)], what: &str) {
        assert_eq!(got.len(), want.len(), "{what}");
        for (i, (got, (want, size))) in got.iter().zip(want).enumerate() {
            // Written so that NaN fails.
            assert!((f64::from(*got) - want).abs() <= 2e-6 * size, "{what}: number {i} is {got}, not {want}");
        }
    }

    /// Sizes at the edges: one row, one column, a panel and one more, parts of a tile on either side, more workers than
    /// column units. The bytes may not depend on the number of workers.
    #[test]
    fn every_type_and_edge_against_f64() {
        at_every_level(|_| every_type_and_edge_against_f64_here());
    }

    fn every_type_and_edge_against_f64_here() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let types = [
            (sys::GGML_TYPE_F32, &[1, 15, 17, 64, 200][..]),
            (sys::GGML_TYPE_F16, &[1, 50, 64, 130]),
            (sys::GGML_TYPE_BF16, &[48, 65]),
            (sys::GGML_TYPE_Q4_0, &[32, 96, 192]),
            (sys::GGML_TYPE_Q4_1, &[32, 160]),
            (sys::GGML_TYPE_Q5_0, &[64, 224]),
            (sys::GGML_TYPE_Q8_0, &[32, 288]),
            (sys::GGML_TYPE_Q5_1, &[32, 96]),
            (sys::GGML_TYPE_Q2_K, &[256]),
            (sys::GGML_TYPE_Q3_K, &[512]),
            (sys::GGML_TYPE_Q4_K, &[256, 768]),
            (sys::GGML_TYPE_Q5_K, &[256]),
            (sys::GGML_TYPE_Q6_K, &[256, 512]),
            (sys::GGML_TYPE_IQ4_NL, &[96]),
            (sys::GGML_TYPE_IQ4_XS, &[256]),
            (sys::GGML_TYPE_MXFP4, &[64]),
            (sys::GGML_TYPE_TQ1_0, &[256]),
            (sys::GGML_TYPE_TQ2_0, &[256]),
        ];
        for (kind, widths) in types {
            for &k in widths {
                for (n, m) in [(1, 1), (1, 7), (63, 5), (64, 6), (65, 13), (130, 2)] {
                    let mut w = Weight::new(kind, k, n, &mut rng);
                    let mut g: Vec<f32> = (0..n * m).map(|_| rng.random_range(-1.0..1.0)).collect();
                    let one = w.product(&mut g, 1);
                    let what = format!("type {kind}, {n} rows of {k}, {m} rows of g");
                    assert_exact(&one, &w.exact(&g), &what);
                    for nth in [2, 3, 5, 16] {
                        assert_eq!(bits(&w.product(&mut g, nth)), bits(&one), "{what}: {nth} threads");
                    }
                }
            }
        }
    }

    /// Each term is off by at most two roundings of 2^-8; weights that are not quantized stay as they are.
    #[test]
    fn bf16_against_f64() {
        at_every_level(|_| bf16_against_f64_here());
    }

    fn bf16_against_f64_here() {
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        let types = [
            (sys::GGML_TYPE_F32, &[64, 90][..]),
            (sys::GGML_TYPE_Q4_0, &[32, 160]),
            (sys::GGML_TYPE_Q4_1, &[96, 576]),
            (sys::GGML_TYPE_Q5_0, &[224]),
            (sys::GGML_TYPE_Q5_1, &[96]),
            (sys::GGML_TYPE_Q8_0, &[32, 288]),
            (sys::GGML_TYPE_IQ4_NL, &[64]),
            (sys::GGML_TYPE_Q4_K, &[768]),
            (sys::GGML_TYPE_Q5_K, &[256]),
            (sys::GGML_TYPE_Q6_K, &[512]),
            (sys::GGML_TYPE_Q3_K, &[256]),
        ];
        for (kind, widths) in types {
            for &k in widths {
                for (n, m) in [(1, 1), (2, 7), (63, 5), (64, 6), (131, 13)] {
                    let mut w = Weight::new(kind, k, n, &mut rng);
                    let mut g: Vec<f32> = (0..n * m).map(|_| rng.random_range(-1.0..1.0)).collect();
                    let one = w.product_in(true, &mut g, 1);
                    let rounds = !bits(&one).eq(&bits(&w.product(&mut g, 1)));
                    assert!(!rounds || Format::of(kind).is_some(), "type {kind} was rounded");
                    for (i, (got, (want, size))) in one.iter().zip(w.exact(&g)).enumerate() {
                        assert!(
                            (f64::from(*got) - want).abs() <= size / 127.0,
                            "{kind}, {n} x {k}: {i}: {got}, {want}"
                        );
                    }
                    for nth in [2, 3, 5, 16] {
                        assert_eq!(bits(&w.product_in(true, &mut g, nth)), bits(&one), "type {kind}: {nth} threads");
                    }
                    g[0] = f32::NAN;
                    assert!(w.product_in(true, &mut g, 1)[..k].iter().all(|x| x.is_nan()), "NaN is lost");
                }
            }
        }
    }

    /// The types that are slow to quantize to, with one shape each.
    #[test]
    fn types_of_few_bits_against_f64() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        for kind in [
            sys::GGML_TYPE_IQ1_S,
            sys::GGML_TYPE_IQ1_M,
            sys::GGML_TYPE_IQ2_XXS,
            sys::GGML_TYPE_IQ2_XS,
            sys::GGML_TYPE_IQ2_S,
            sys::GGML_TYPE_IQ3_XXS,
            sys::GGML_TYPE_IQ3_S,
        ] {
            let mut w = Weight::new(kind, 512, 3, &mut rng);
            let mut g: Vec<f32> = (0..3 * 7).map(|_| rng.random_range(-1.0..1.0)).collect();
            let one = w.product(&mut g, 1);
            assert_exact(&one, &w.exact(&g), &format!("type {kind}"));
            assert_eq!(bits(&w.product(&mut g, 2)), bits(&one), "type {kind}: 2 threads");
        }
    }

    /// One of several matrices for each plane of g, or for each row: against the products with one matrix.
    #[test]
    fn several_matrices() {
        at_every_level(|_| several_matrices_here());
    }

    fn several_matrices_here() {
        const EXPERTS: usize = 3;
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for (kind, k, n) in [(sys::GGML_TYPE_F32, 150, 7), (sys::GGML_TYPE_Q4_K, 512, 70), (sys::GGML_TYPE_Q8_0, 96, 5)]
        {
            let matrices: Vec<Weight> = (0..EXPERTS).map(|_| Weight::new(kind, k, n, &mut rng)).collect();
            let mut bytes: Vec<u8> = matrices.iter().flat_map(|w| w.bytes.clone()).collect();
            // Planes: two of g to each matrix. Rows: slots and tokens, with a number that names no matrix.
            let (m, planes) = (4, 2 * EXPERTS);
            let mut ids: Vec<i32> = (0..m * planes).map(|_| rng.random_range(0..EXPERTS as i32)).collect();
            ids[5] = 99;
            let mut g: Vec<f32> = (0..n * m * planes).map(|_| rng.random_range(-1.0..1.0)).collect();
            let mut want = [Vec::new(), Vec::new()];
            for (row, g) in g.chunks_exact(n).enumerate() {
                want[0].extend(matrices[row / m / 2].exact(g));
                match matrices.get(ids[row] as usize) {
                    Some(w) => want[1].extend(w.exact(g)),
                    None => want[1].extend(vec![(0.0, 0.0); k]),
                }
            }
            for (by_row, want) in [false, true].into_iter().zip(&want) {
                for nth in [1, 2, 5, 16] {
                    let mut d = vec![f32::NAN; k * m * planes];
                    // SAFETY: as in `product`.
                    unsafe {
                        let ctx = sys::ggml_init(sys::ggml_init_params {
                            mem_size: sys::ggml_tensor_overhead() * 5,
                            mem_buffer: std::ptr::null_mut(),
                            no_alloc: true,
                        });
                        let tensor = |kind, ne: [usize; 3], data: *mut c_void| {
                            let t = sys::ggml_new_tensor_3d(ctx, kind, ne[0] as i64, ne[1] as i64, ne[2] as i64);
                            (*t).data = data;
                            t
                        };
                        let dst = tensor(sys::GGML_TYPE_F32, [k, m, planes], d.as_mut_ptr().cast());
                        (*dst).src[0] = tensor(kind, [k, n, EXPERTS], bytes.as_mut_ptr().cast());
                        (*dst).src[1] = tensor(sys::GGML_TYPE_F32, [n, m, planes], g.as_mut_ptr().cast());
                        if by_row {
                            (*dst).src[2] = tensor(sys::GGML_TYPE_I32, [m, planes, 1], ids.as_mut_ptr().cast());
                        }
                        for ith in 0..nth {
                            let op = if by_row { run_id } else { run };
                            op(dst, ith, nth, std::ptr::null_mut());
                        }
                        sys::ggml_free(ctx);
                    }
                    assert_exact(&d, want, &format!("type {kind}, {nth} threads, by row {by_row}"));
                }
            }
        }
    }

    #[test]
    fn every_level_agrees() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        for (k, n, m) in [(150, 40, 13), (64, 64, 6), (9, 1, 1)] {
            let w = Weight::new(sys::GGML_TYPE_F32, k, n, &mut rng);
            let g: Vec<f32> = (0..n * m).map(|_| rng.random_range(-1.0..1.0)).collect();
            let product = |which: unsafe fn(&Part<'_>)| {
                let mut d = vec![0.0; m * k];
                let part = Part {
                    panel: &w.values,
                    width: k,
                    rows: n,
                    g: &g,
                    n,
                    n0: 0,
                    m0: 0,
                    m1: m,
                    d: d.as_mut_ptr(),
                    stride: k,
                };
                // SAFETY: d holds m rows of k numbers; the caller checks the CPU's features.
                unsafe { which(&part) };
                d
            };
            let want = w.exact(&g);
            // SAFETY: the part is intact.
            at_every_level(|level| assert_exact(&product(|p| unsafe { p.accumulate() }), &want, level.name()));
        }
    }
}
