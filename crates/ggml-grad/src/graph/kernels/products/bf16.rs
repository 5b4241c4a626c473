//! Matmuls of panels in BF16, summed in F32 (AVX512-BF16).
//!
//! A panel holds rows of dequantized weights in pairs: `[rows / 2, width]` words, the lower half of each from the even
//! row. Rounding to BF16 keeps eight significant bits, more than the quantized types have themselves; the errors are
//! independent and average out over the sums.

use crate::graph::kernels::products::int8::Row;

/// Rows of a register tile.
const TILE_ROWS: usize = 6;
/// Widths are multiples of this.
pub(in crate::graph::kernels) const WIDTH_UNIT: usize = 16;

/// The nearest BF16, ties to even; for finite numbers.
#[inline(always)]
fn round(x: f32) -> u32 {
    let bits = x.to_bits();
    bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16
}

/// Rounds to BF16 as the CPU does it: what is not a number stays so.
///
/// # Safety
/// On a CPU with [`crate::graph::kernels::cpu::CpuLevel::Avx512Bf16`].
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma"))]
pub(in crate::graph::kernels) unsafe fn round_all(x: &[f32], out: &mut [u16]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = if x.is_nan() { 0x7fc0 } else { round(x) as u16 };
    }
}

/// Writes two rows (the second may be missing: zeros) as a row of pairs.
///
/// # Safety
/// As [`round_all`].
#[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma"))]
pub(in crate::graph::kernels) unsafe fn pair(even: Row<'_>, odd: Option<Row<'_>>, out: &mut [u32]) {
    let (group, offset) = (even.format.group, even.format.offset);
    for (g, out) in out.chunks_exact_mut(group).enumerate() {
        let at = g * group..(g + 1) * group;
        let (s, m, u) = (even.scale[g], even.min[g], &even.u[at.clone()]);
        match odd {
            Some(odd) => {
                let (s1, m1, u1) = (odd.scale[g], odd.min[g], &odd.u[at]);
                for ((out, &a), &b) in out.iter_mut().zip(u).zip(u1) {
                    let a = s * (i32::from(a) - offset) as f32 + m;
                    let b = s1 * (i32::from(b) - offset) as f32 + m1;
                    *out = round(a) | round(b) << 16;
                }
            }
            None => {
                for (out, &a) in out.iter_mut().zip(u) {
                    *out = round(s * (i32::from(a) - offset) as f32 + m);
                }
            }
        }
    }
}

/// `d[row] += sum over the panel's rows r of a[row][r] panel[r]` for some rows.
pub(in crate::graph::kernels) struct Product<'a> {
    /// `d` holds nothing yet: `=` instead of `+=`, in [`Product::add`].
    pub first: bool,
    /// `[pairs, width]`.
    pub panel: &'a [u32],
    pub width: usize,
    pub pairs: usize,
    /// `[rows, a_stride]` BF16, at each row `2 pairs` numbers from `a_offset` on.
    pub a: &'a [u16],
    pub a_stride: usize,
    pub a_offset: usize,
    /// `[rows, d_stride]`.
    pub d: *mut f32,
    pub d_stride: usize,
}

impl Product<'_> {
    /// Adds up the rows that `rows` names.
    ///
    /// # Safety
    /// On a CPU with AVX512-BF16; `d` is valid for the rows named and `width` columns, a multiple of [`WIDTH_UNIT`].
    pub(in crate::graph::kernels) unsafe fn add(&self, rows: &[u32]) {
        debug_assert!(self.width.is_multiple_of(WIDTH_UNIT) && self.panel.len() >= self.pairs * self.width);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: by contract.
        unsafe {
            self.all(rows);
        }
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("used only where the CPU has the instructions: {rows:?}");
    }

    /// Adds up one row, of the panel's first 32 pairs only those whose bit is set in `pairs`.
    ///
    /// # Safety
    /// As [`Product::add`].
    pub(in crate::graph::kernels) unsafe fn add_some(&self, row: u32, pairs: u32) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: by contract; columns stay below the width.
        unsafe {
            let mut column = 0;
            while column < self.width {
                let wide = match (self.width - column) / WIDTH_UNIT {
                    8.. => 8,
                    4.. => 4,
                    2.. => 2,
                    _ => 1,
                };
                match wide {
                    8 => self.some::<8>(row, pairs, column),
                    4 => self.some::<4>(row, pairs, column),
                    2 => self.some::<2>(row, pairs, column),
                    _ => self.some::<1>(row, pairs, column),
                }
                column += wide * WIDTH_UNIT;
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        unreachable!("used only where the CPU has the instructions: {row} {pairs}");
    }

    /// `16 N` columns of one row.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn some<const N: usize>(&self, row: u32, mut pairs: u32, column: usize) {
        use std::arch::x86_64::*;
        // SAFETY: as `add`. The casts change the name of 512 bits.
        unsafe {
            let a = self.a.as_ptr().add(row as usize * self.a_stride + self.a_offset).cast::<i32>();
            let d = self.d.add(row as usize * self.d_stride + column);
            let mut sum: [__m512; N] = std::array::from_fn(|j| _mm512_loadu_ps(d.add(16 * j)));
            while pairs != 0 {
                let p = pairs.trailing_zeros() as usize;
                pairs &= pairs - 1;
                let panel = self.panel.as_ptr().add(p * self.width + column);
                let a = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(a.add(p).read_unaligned()));
                for (j, sum) in sum.iter_mut().enumerate() {
                    let w = _mm512_loadu_si512(panel.add(16 * j).cast());
                    *sum = _mm512_dpbf16_ps(*sum, a, std::mem::transmute::<__m512i, __m512bh>(w));
                }
            }
            for (j, &sum) in sum.iter().enumerate() {
                _mm512_storeu_ps(d.add(16 * j), sum);
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn all(&self, rows: &[u32]) {
        // SAFETY: as `add`; columns stay below the width.
        unsafe {
            let mut column = 0;
            while column < self.width {
                let wide = match (self.width - column) / WIDTH_UNIT {
                    4.. => 4,
                    2.. => 2,
                    _ => 1,
                };
                for rows in rows.chunks(TILE_ROWS) {
                    match wide {
                        4 => self.rows::<4>(rows, column),
                        2 => self.rows::<2>(rows, column),
                        _ => self.rows::<1>(rows, column),
                    }
                }
                column += wide * WIDTH_UNIT;
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    #[inline]
    unsafe fn rows<const N: usize>(&self, rows: &[u32], column: usize) {
        // SAFETY: as `add`.
        unsafe {
            match rows.len() {
                6.. => self.tile::<6, N>(rows, column),
                5 => self.tile::<5, N>(rows, column),
                4 => self.tile::<4, N>(rows, column),
                3 => self.tile::<3, N>(rows, column),
                2 => self.tile::<2, N>(rows, column),
                _ => self.tile::<1, N>(rows, column),
            }
        }
    }

    /// `M` rows by `16 N` columns.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    #[inline]
    unsafe fn tile<const M: usize, const N: usize>(&self, rows: &[u32], column: usize) {
        use std::arch::x86_64::*;
        // SAFETY: as `add`. The casts change the name of 512 bits.
        unsafe {
            let a: [*const i32; M] =
                std::array::from_fn(|i| self.a.as_ptr().add(rows[i] as usize * self.a_stride + self.a_offset).cast());
            let d: [*mut f32; M] = std::array::from_fn(|i| self.d.add(rows[i] as usize * self.d_stride + column));
            let mut sum = [[_mm512_setzero_ps(); N]; M];
            if !self.first {
                sum = std::array::from_fn(|i| std::array::from_fn(|j| _mm512_loadu_ps(d[i].add(16 * j))));
            }
            let mut panel = self.panel.as_ptr().add(column);
            for p in 0..self.pairs {
                let w: [__m512bh; N] = std::array::from_fn(|j| {
                    std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(panel.add(16 * j).cast()))
                });
                for i in 0..M {
                    let a = _mm512_set1_epi32(a[i].add(p).read_unaligned());
                    let a = std::mem::transmute::<__m512i, __m512bh>(a);
                    for j in 0..N {
                        sum[i][j] = _mm512_dpbf16_ps(sum[i][j], a, w[j]);
                    }
                }
                panel = panel.add(self.width);
            }
            for i in 0..M {
                for (j, &sum) in sum[i].iter().enumerate() {
                    _mm512_storeu_ps(d[i].add(16 * j), sum);
                }
            }
        }
    }
}
