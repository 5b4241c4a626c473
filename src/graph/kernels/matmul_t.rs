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
        unsafe { self.tiles::<TILE_M, TILE_K, true>() }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn accumulate_avx2(&self) {
        unsafe { self.tiles::<4, 16, true>() }
    }

    unsafe fn accumulate_plain(&self) {
        unsafe { self.tiles::<4, 16, { cfg!(target_arch = "aarch64") }>() }
    }

    /// Walks the tiles: `M` rows of g by `K` columns, the rest row by row and column by column.
    #[inline(always)]
    unsafe fn tiles<const M: usize, const K: usize, const FMA: bool>(&self) {
        let full_k = self.width - self.width % K;
        let mut m = self.m0;
        // SAFETY: m and k stay inside the worker's part.
        unsafe {
            while m + M <= self.m1 {
                for k in (0..full_k).step_by(K) {
                    self.tile::<M, K, FMA>(m, k);
                }
                for k in (full_k..self.width).step_by(16) {
                    self.rest::<M, FMA>(m, k);
                }
                m += M;
            }
            while m < self.m1 {
                for k in (0..full_k).step_by(K) {
                    self.tile::<1, K, FMA>(m, k);
                }
                for k in (full_k..self.width).step_by(16) {
                    self.rest::<1, FMA>(m, k);
                }
                m += 1;
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
