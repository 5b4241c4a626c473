//! `d = W^T g` for a weight `W` in any type ggml can de-quantize.
//!
//! W has `n` rows of `k` numbers, g has `m` rows of `n`, d gets `m` rows of `k`: `d[m][k] = sum_n g[m][n] W[n][k]`.
//! Blocks of W's rows are de-quantized to an F32 panel that stays in the cache, and a register-blocked product adds the
//! panel's part to d. All sums are F32, in the same order whatever the number of threads: each number of d is summed by
//! one worker.

use super::share;
use crate::llama::sys;
use std::cell::RefCell;
use std::ffi::{c_int, c_void};

/// Rows of W in a panel.
const PANEL_ROWS: usize = 64;
/// Columns of a register tile.
const TILE_K: usize = 64;
/// Rows of g in a register tile.
const TILE_M: usize = 6;
/// Columns are dealt to workers in these units: whole quantization blocks of every type, whole tiles where possible.
const UNIT_LCM: usize = 64;

thread_local! {
    /// The panel of this worker, kept between calls.
    static PANEL: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// The custom op: src0 = W, src1 = g, dst = d.
pub(in crate::graph) unsafe extern "C" fn run(dst: *mut sys::ggml_tensor, ith: c_int, nth: c_int, _: *mut c_void) {
    // SAFETY: ggml calls with the tensors that `emit` built: W [k, n] of any type, g [n, m...] and d [k, m...]
    // contiguous F32, all in host memory. Workers write disjoint parts of d.
    unsafe {
        let (d, w, g) = (&*dst, &*(*dst).src[0], &*(*dst).src[1]);
        let (k, n) = (w.ne[0] as usize, w.ne[1] as usize);
        let m = (g.ne[1] * g.ne[2] * g.ne[3]) as usize;
        let traits = &*sys::ggml_get_type_traits(w.type_);
        let block = traits.blck_size as usize;

        // Columns first: each worker then de-quantizes only what it multiplies. Rows of g as well only where there are
        // more workers than column units.
        let unit = if block > UNIT_LCM { block } else { UNIT_LCM };
        let units = k.div_ceil(unit);
        let (ith, nth) = (ith as usize, nth as usize);
        let across = units.min(nth);
        let down = nth / across;
        if ith >= across * down {
            return;
        }
        let (u0, u1) = share(units, ith % across, across);
        let (k0, k1) = (u0 * unit, (u1 * unit).min(k));
        let (m0, m1) = share(m, ith / across, down);
        if k0 >= k1 || m0 >= m1 {
            return;
        }
        let width = k1 - k0;
        let first = w.data.cast::<u8>().add(sys::ggml_row_size(w.type_, k0 as i64));
        let g_data = std::slice::from_raw_parts(g.data.cast::<f32>(), m * n);
        let d_data = d.data.cast::<f32>();
        for row in m0..m1 {
            std::slice::from_raw_parts_mut(d_data.add(row * k + k0), width).fill(0.0);
        }
        PANEL.with_borrow_mut(|panel| {
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
                let panel = &panel[..rows * width];
                let part = Part { panel, width, rows, g: g_data, n, n0, m0, m1, d: d_data.add(k0), stride: k };
                part.accumulate();
            }
        });
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
                if std::arch::is_x86_feature_detected!("avx512f") {
                    return self.accumulate_avx512();
                }
                if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
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
        unsafe { self.tiles::<4, 16, true>(&|m, k, rows| self.tile_of::<4, 16, true>(m, k, rows)) }
    }

    unsafe fn accumulate_plain(&self) {
        const FMA: bool = cfg!(target_arch = "aarch64");
        unsafe { self.tiles::<4, 16, FMA>(&|m, k, rows| self.tile_of::<4, 16, FMA>(m, k, rows)) }
    }

    /// Walks the tiles: `M` rows of g by `K` columns by `tile(m, k, rows)`, the columns at the right edge otherwise.
    #[inline(always)]
    unsafe fn tiles<const M: usize, const K: usize, const FMA: bool>(&self, tile: &impl Fn(usize, usize, usize)) {
        let full_k = self.width - self.width % K;
        // Columns outside: a panel's columns of one tile stay in the first-level cache for all rows of g.
        // SAFETY: m and k stay inside the worker's part.
        for k in (0..full_k).step_by(K) {
            for m in (self.m0..self.m1).step_by(M) {
                tile(m, k, M.min(self.m1 - m));
            }
        }
        for k in (full_k..self.width).step_by(16) {
            for m in self.m0..self.m1 {
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
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// A weight of `n` rows of `k` random numbers in a type of ggml's, and what it de-quantizes to.
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
                sys::ggml_quantize_chunk(kind, exact.as_ptr(), to, 0, n as i64, k as i64, std::ptr::null());
                if let Some(convert) = (*sys::ggml_get_type_traits(kind)).to_float {
                    convert(bytes.as_ptr().cast::<c_void>(), values.as_mut_ptr(), (n * k) as i64);
                }
                Self { kind, bytes, values, k, n }
            }
        }

        /// `W^T g` by the op with `nth` workers, one after the other: a number that two of them write would be lost.
        fn product(&mut self, g: &mut [f32], nth: usize) -> Vec<f32> {
            let (k, n, m) = (self.k, self.n, g.len() / self.n);
            let mut d = vec![f32::NAN; m * k];
            // SAFETY: tensors without memory of their own, pointed at buffers of their size; freed with the context.
            unsafe {
                let ctx = sys::ggml_init(sys::ggml_init_params {
                    mem_size: sys::ggml_tensor_overhead() * 4,
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
                    run(dst, ith as c_int, nth as c_int, std::ptr::null_mut());
                }
                sys::ggml_free(ctx);
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
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let types = [
            (sys::GGML_TYPE_F32, &[1, 15, 17, 64, 200][..]),
            (sys::GGML_TYPE_F16, &[1, 50, 64, 130]),
            (sys::GGML_TYPE_BF16, &[48, 65]),
            (sys::GGML_TYPE_Q4_0, &[32, 96, 192]),
            (sys::GGML_TYPE_Q4_1, &[32, 160]),
            (sys::GGML_TYPE_Q5_0, &[64, 224]),
            (sys::GGML_TYPE_Q8_0, &[32, 288]),
            (sys::GGML_TYPE_Q4_K, &[256, 768]),
            (sys::GGML_TYPE_Q6_K, &[256, 512]),
        ];
        for (kind, widths) in types {
            for &k in widths {
                for (n, m) in [(1, 1), (1, 7), (63, 5), (64, 6), (65, 13), (130, 2)] {
                    let mut w = Weight::new(kind, k, n, &mut rng);
                    let mut g: Vec<f32> = (0..n * m).map(|_| rng.random_range(-1.0..1.0)).collect();
                    let one = w.product(&mut g, 1);
                    let what = format!("type {kind}, {n} rows of {k}, {m} rows of g");
                    assert_exact(&one, &w.exact(&g), &what);
                    for nth in [2, 3, 5] {
                        assert_eq!(bits(&w.product(&mut g, nth)), bits(&one), "{what}: {nth} threads");
                    }
                }
            }
        }
    }

    /// The version for each instruction set, on whatever this CPU has of them.
    #[test]
    fn every_instruction_set_agrees() {
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
            // SAFETY (also below): the part is whole; each version runs only where the CPU has its features.
            assert_exact(&product(|p| unsafe { p.accumulate_plain() }), &want, "plain");
            #[cfg(target_arch = "x86_64")]
            {
                if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
                    assert_exact(&product(|p| unsafe { p.accumulate_avx2() }), &want, "avx2");
                }
                if std::arch::is_x86_feature_detected!("avx512f") {
                    assert_exact(&product(|p| unsafe { p.accumulate_avx512() }), &want, "avx512");
                }
            }
        }
    }
}
