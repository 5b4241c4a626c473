//! Matmuls of small tiles in F32, and the softmax of their rows: what attention is made of, for the CPU at hand.

use crate::graph::kernels::numeric::{fast_exp, max16, sum16};

/// Rows of a tile.
pub(super) const ROWS: usize = 6;
/// Floats of a unit of columns.
pub(super) const LANES: usize = 16;
/// Units of columns in a tile, at most.
pub(super) const UNITS: usize = 4;

/// `c[i][16 j + l] (+)= sum over s < k of a[i][s] b[j][s step + l]` for `i < rows`, `j < units`, `l < 16`.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub rows: usize,
    pub units: usize,
    pub k: usize,
    pub a: [*const f32; ROWS],
    pub b: [*const f32; UNITS],
    pub step: usize,
    pub c: [*mut f32; ROWS],
    /// Add to what `c` holds.
    pub add: bool,
}

/// The kernels of one instruction set.
pub(super) struct Kernels {
    /// Computes a [`Tile`]. Rows and units as it says must be valid for reads, those of `c` for writes.
    pub product: unsafe fn(&Tile),
    /// See [`soften`].
    pub soften: unsafe fn(&mut [f32], Units<'_>, f32) -> f32,
    /// See [`slope`].
    pub slope: unsafe fn(&[f32], &mut [f32], f32) -> f32,
    /// See [`again`].
    pub again: unsafe fn(&mut [f32], &mut [f32], Units<'_>, [*const f32; 2], f32),
    /// See [`lanes`].
    pub lanes: unsafe fn(*const f32, usize, usize, usize, &mut [f32]),
}

/// Units of a row's columns, and the row's mask, whose units are `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Units<'a> {
    pub units: &'a [usize],
    pub mask: *const f32,
    pub stride: usize,
}

/// Sixteen floats.
///
/// # Safety
/// They exist.
#[inline(always)]
unsafe fn sixteen<'a>(at: *const f32) -> &'a [f32; LANES] {
    // SAFETY: by contract.
    unsafe { &*at.cast() }
}

/// A number of `[0, 1]` as a multiple of 2^-40: sums of some thousands of these are exact in F64, and with that the same in
/// any order.
#[inline(always)]
fn grain(x: f32) -> f64 {
    const PLACES: f64 = 6144.0; // 1.5 * 2^12: a sum with this has no place for less than 2^-40
    (f64::from(x) + PLACES) - PLACES
}

/// Makes scores into probabilities: `exp(scale s + mask)` over its sum, and the logarithm of that sum. The
/// result is batch-invariant, bit for bit: it depends on the keys that a query sees, not on their place in the units.
#[inline(always)]
unsafe fn soften(s: &mut [f32], row: Units<'_>, scale: f32) -> f32 {
    let mut top = [f32::NEG_INFINITY; LANES];
    for (s, &unit) in s.as_chunks_mut::<LANES>().0.iter_mut().zip(row.units) {
        // SAFETY: a unit of the mask.
        let mask = unsafe { sixteen(row.mask.add(unit * row.stride)) };
        for l in 0..LANES {
            s[l] = s[l] * scale + mask[l];
            top[l] = if s[l] > top[l] { s[l] } else { top[l] };
        }
    }
    let top = max16(&top);
    let mut sums = [0.0f64; LANES];
    for s in s.as_chunks_mut::<LANES>().0 {
        for l in 0..LANES {
            s[l] = exp(s[l] - top);
            sums[l] += grain(s[l]);
        }
    }
    let sum = sums.iter().sum::<f64>() as f32;
    let factor = 1.0 / sum;
    s.iter_mut().for_each(|s| *s *= factor);
    top + sum.ln()
}

/// Makes gradients of probabilities into gradients of what [`soften`] was given: `scale p (d - sum of p d)`. Returns that
/// sum.
#[inline(always)]
unsafe fn slope(p: &[f32], d: &mut [f32], scale: f32) -> f32 {
    let mut sums = [0.0f32; LANES];
    for (p, d) in p.as_chunks::<LANES>().0.iter().zip(d.as_chunks::<LANES>().0) {
        for l in 0..LANES {
            sums[l] += p[l] * d[l];
        }
    }
    let sum = sum16(&sums);
    for (p, d) in p.as_chunks::<LANES>().0.iter().zip(d.as_chunks_mut::<LANES>().0) {
        for l in 0..LANES {
            d[l] = scale * p[l] * (d[l] - sum);
        }
    }
    sum
}

/// Both for a column, whose rows have logarithms of sums and what their gradients subtract: `s` becomes probabilities, `d`
/// gradients.
#[inline(always)]
unsafe fn again(s: &mut [f32], d: &mut [f32], column: Units<'_>, [log, dot]: [*const f32; 2], scale: f32) {
    let units = s.as_chunks_mut::<LANES>().0.iter_mut().zip(d.as_chunks_mut::<LANES>().0);
    for ((s, d), &unit) in units.zip(column.units) {
        // SAFETY: units of the three.
        let (mask, log, dot) = unsafe {
            let at = unit * LANES;
            (sixteen(column.mask.add(unit * column.stride)), sixteen(log.add(at)), sixteen(dot.add(at)))
        };
        for l in 0..LANES {
            s[l] = exp(s[l] * scale + mask[l] - log[l]);
            d[l] = scale * s[l] * (d[l] - dot[l]);
        }
    }
}

/// e^x, and 0 where that is next to nothing.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let e = fast_exp(x);
    if x < -86.0 { 0.0 } else { e }
}

/// Rows of `k` floats, `stride` apart, to units of 16 rows side by side: `[rows / 16, k, 16]`; rows that are missing at the
/// end become zeros.
#[inline(always)]
unsafe fn lanes(x: *const f32, stride: usize, rows: usize, k: usize, out: &mut [f32]) {
    for (unit, out) in out.chunks_exact_mut(k * LANES).enumerate() {
        let here = rows.saturating_sub(unit * LANES).min(LANES);
        // SAFETY: rows that exist.
        unsafe {
            let x = x.add(unit * LANES * stride);
            for lane in 0..here {
                let row = std::slice::from_raw_parts(x.add(lane * stride), k);
                for (out, x) in out.as_chunks_mut::<LANES>().0.iter_mut().zip(row) {
                    out[lane] = *x;
                }
            }
        }
        for out in out.as_chunks_mut::<LANES>().0 {
            out[here..].fill(0.0);
        }
    }
}

/// The product in plain Rust, for compilers to vectorise: `M` rows by one unit at a time. `FMA`: only where the CPU has it.
#[inline(always)]
unsafe fn product<const FMA: bool>(t: &Tile) {
    #[inline(always)]
    unsafe fn rows<const M: usize, const FMA: bool>(t: &Tile, first: usize, j: usize) {
        // SAFETY: as `Kernels::product`.
        unsafe {
            let a: [*const f32; M] = std::array::from_fn(|i| t.a[first + i]);
            let c: [*mut [f32; LANES]; M] = std::array::from_fn(|i| t.c[first + i].add(j * LANES).cast());
            let mut sum = [[0.0f32; LANES]; M];
            if t.add {
                for i in 0..M {
                    sum[i] = c[i].read_unaligned();
                }
            }
            let mut b = t.b[j];
            for s in 0..t.k {
                let w = b.cast::<[f32; LANES]>().read_unaligned();
                for i in 0..M {
                    let x = *a[i].add(s);
                    for l in 0..LANES {
                        sum[i][l] = if FMA { x.mul_add(w[l], sum[i][l]) } else { x * w[l] + sum[i][l] };
                    }
                }
                b = b.add(t.step);
            }
            for i in 0..M {
                c[i].write_unaligned(sum[i]);
            }
        }
    }
    for j in 0..t.units {
        let mut first = 0;
        while first < t.rows {
            // SAFETY: by contract.
            unsafe {
                match t.rows - first {
                    4.. => rows::<4, FMA>(t, first, j),
                    3 => rows::<3, FMA>(t, first, j),
                    2 => rows::<2, FMA>(t, first, j),
                    _ => rows::<1, FMA>(t, first, j),
                }
            }
            first += 4;
        }
    }
}

/// All kernels of an instruction set, compiled for it.
macro_rules! kernels {
    ($name:ident, $features:literal, $product:path, $lanes:path) => {
        mod $name {
            use super::*;

            #[target_feature(enable = $features)]
            unsafe fn product_here(t: &Tile) {
                // SAFETY: as `Kernels::product`.
                unsafe { $product(t) }
            }

            #[target_feature(enable = $features)]
            unsafe fn soften_here(s: &mut [f32], row: Units<'_>, scale: f32) -> f32 {
                // SAFETY: as the function.
                unsafe { soften(s, row, scale) }
            }

            #[target_feature(enable = $features)]
            unsafe fn slope_here(p: &[f32], d: &mut [f32], scale: f32) -> f32 {
                // SAFETY: as the function.
                unsafe { slope(p, d, scale) }
            }

            #[target_feature(enable = $features)]
            unsafe fn again_here(s: &mut [f32], d: &mut [f32], column: Units<'_>, sums: [*const f32; 2], scale: f32) {
                // SAFETY: as the function.
                unsafe { again(s, d, column, sums, scale) }
            }

            #[target_feature(enable = $features)]
            unsafe fn lanes_here(x: *const f32, stride: usize, rows: usize, k: usize, out: &mut [f32]) {
                // SAFETY: as the function.
                unsafe { $lanes(x, stride, rows, k, out) }
            }

            pub(super) static KERNELS: Kernels = Kernels {
                product: product_here,
                soften: soften_here,
                slope: slope_here,
                again: again_here,
                lanes: lanes_here,
            };
        }
    };
}

#[cfg(target_arch = "x86_64")]
kernels!(avx512, "avx512f,avx512bw,avx512vl,avx512dq,fma", wide::product, wide::lanes);
#[cfg(target_arch = "x86_64")]
kernels!(avx2, "avx2,fma", product::<true>, lanes);
#[cfg(target_arch = "aarch64")]
kernels!(neon, "neon", product::<true>, lanes);
#[cfg(not(target_arch = "aarch64"))]
mod plain {
    use super::*;

    pub(super) static KERNELS: Kernels = Kernels { product: product::<false>, soften, slope, again, lanes };
}

/// The product with AVX-512, in intrinsics: left to itself the compiler prefers half as wide registers and spills them.
#[cfg(target_arch = "x86_64")]
mod wide {
    use super::{LANES, ROWS, Tile};
    use crate::graph::kernels::products::transpose::transpose16;
    use std::arch::x86_64::*;

    /// [`super::lanes`] by blocks of sixteen by sixteen.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
    #[inline]
    pub(super) unsafe fn lanes(x: *const f32, stride: usize, rows: usize, k: usize, out: &mut [f32]) {
        if !k.is_multiple_of(LANES) {
            // SAFETY: as there.
            return unsafe { super::lanes(x, stride, rows, k, out) };
        }
        for (unit, out) in out.chunks_exact_mut(k * LANES).enumerate() {
            let here = rows.saturating_sub(unit * LANES).min(LANES);
            for at in (0..k).step_by(LANES) {
                // SAFETY: rows that exist; sixteen by sixteen floats of `out`.
                unsafe {
                    let x = x.add(unit * LANES * stride + at);
                    let r: [__m512i; LANES] = std::array::from_fn(|i| {
                        if i < here { _mm512_loadu_si512(x.add(i * stride).cast()) } else { _mm512_setzero_si512() }
                    });
                    transpose16(r, out.as_mut_ptr().add(at * LANES).cast());
                }
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
    #[inline]
    pub(super) unsafe fn product(t: &Tile) {
        // SAFETY: as `Kernels::product`.
        unsafe {
            match t.units {
                1 => rows::<1>(t),
                2 => rows::<2>(t),
                3 => rows::<3>(t),
                _ => rows::<4>(t),
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
    unsafe fn rows<const N: usize>(t: &Tile) {
        // SAFETY: as `Kernels::product`.
        unsafe {
            match t.rows {
                ROWS.. => tile::<ROWS, N>(t),
                5 => tile::<5, N>(t),
                4 => tile::<4, N>(t),
                3 => tile::<3, N>(t),
                2 => tile::<2, N>(t),
                _ => tile::<1, N>(t),
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
    #[inline]
    unsafe fn tile<const M: usize, const N: usize>(t: &Tile) {
        // SAFETY: as `Kernels::product`.
        unsafe {
            let a: [*const f32; M] = std::array::from_fn(|i| t.a[i]);
            let mut b: [*const f32; N] = std::array::from_fn(|j| t.b[j]);
            let mut sum = [[_mm512_setzero_ps(); N]; M];
            if t.add {
                for (sum, c) in sum.iter_mut().zip(t.c) {
                    for (j, sum) in sum.iter_mut().enumerate() {
                        *sum = _mm512_loadu_ps(c.add(j * LANES));
                    }
                }
            }
            for s in 0..t.k {
                let w: [__m512; N] = std::array::from_fn(|j| _mm512_loadu_ps(b[j]));
                for i in 0..M {
                    let x = _mm512_set1_ps(*a[i].add(s));
                    for j in 0..N {
                        sum[i][j] = _mm512_fmadd_ps(x, w[j], sum[i][j]);
                    }
                }
                for b in &mut b {
                    *b = b.add(t.step);
                }
            }
            for (sum, c) in sum.iter().zip(t.c) {
                for (j, &sum) in sum.iter().enumerate() {
                    _mm512_storeu_ps(c.add(j * LANES), sum);
                }
            }
        }
    }
}

/// The kernels for this CPU.
pub(super) fn kernels() -> &'static Kernels {
    #[cfg(target_arch = "x86_64")]
    {
        let level = crate::graph::kernels::cpu::level();
        if level.has_avx512() {
            return &avx512::KERNELS;
        }
        if level.has_avx2() {
            return &avx2::KERNELS;
        }
    }
    #[cfg(target_arch = "aarch64")]
    return &neon::KERNELS;
    #[cfg(not(target_arch = "aarch64"))]
    &plain::KERNELS
}
