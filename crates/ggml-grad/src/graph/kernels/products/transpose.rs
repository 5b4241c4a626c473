//! Sixteen words by sixteen, rows to columns.

use std::arch::x86_64::*;

/// Writes the columns of sixteen rows of sixteen words: `out[column][row]`.
///
/// # Safety
/// On a CPU with [`crate::graph::kernels::cpu::CpuLevel::Avx512`]; `out` has room for 256 words.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
#[inline]
pub(in crate::graph::kernels) unsafe fn transpose16(r: [__m512i; 16], out: *mut u32) {
    // Words of two rows, then of four, side by side in each quarter of a register.
    let two: [__m512i; 16] = std::array::from_fn(|i| {
        let (a, b) = (r[i & !1], r[i | 1]);
        if i % 2 == 0 { _mm512_unpacklo_epi32(a, b) } else { _mm512_unpackhi_epi32(a, b) }
    });
    // four[4 q + w]: rows 4q..4q+4, words w, w+4, w+8, w+12.
    let four: [__m512i; 16] = std::array::from_fn(|i| {
        let (q, w) = (i / 4 * 4, i % 4);
        let (a, b) = (two[q + w / 2], two[q + 2 + w / 2]);
        if w % 2 == 0 { _mm512_unpacklo_epi64(a, b) } else { _mm512_unpackhi_epi64(a, b) }
    });
    for w in 0..4 {
        let (a, b, c, d) = (four[w], four[4 + w], four[8 + w], four[12 + w]);
        let (ab0, ab1) = (_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
        let (cd0, cd1) = (_mm512_shuffle_i32x4(c, d, 0x88), _mm512_shuffle_i32x4(c, d, 0xdd));
        for (column, x) in [
            (w, _mm512_shuffle_i32x4(ab0, cd0, 0x88)),
            (w + 4, _mm512_shuffle_i32x4(ab1, cd1, 0x88)),
            (w + 8, _mm512_shuffle_i32x4(ab0, cd0, 0xdd)),
            (w + 12, _mm512_shuffle_i32x4(ab1, cd1, 0xdd)),
        ] {
            // SAFETY: by the caller.
            unsafe { _mm512_storeu_si512(out.add(column * 16).cast(), x) };
        }
    }
}
