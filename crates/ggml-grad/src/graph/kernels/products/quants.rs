//! Unpacked quantized weights: every element as `scale * (u - offset) + min`, with `u` an unsigned byte and scale and
//! min shared by a group of neighbours.
//!
//! The layouts are those of ggml (`ggml-common.h`), which the GGUF format publishes. Only types whose numbers are integers
//! of at most eight bits in each group are here; ggml's conversions dequantize all others.

use crate::llama::sys;

/// The block format of a type.
#[derive(Debug, Clone, Copy)]
pub(in crate::graph::kernels) struct Format {
    /// Numbers in a stored block.
    pub block: usize,
    /// Bytes of a stored block.
    pub bytes: usize,
    /// Neighbours that share a scale and a min: 16 or 32.
    pub group: usize,
    /// Subtracted from every `u`.
    pub offset: i32,
    /// True if groups have a minimum.
    pub has_min: bool,
    /// The type that ggml quantizes activations to for matmuls with this one.
    pub activations: Activations,
    /// Writes a row's bytes, and the scale and min of each of its groups.
    unpack: Unpack,
}

/// Unpacks a stored row into bytes, scales and mins.
type Unpack = unsafe fn(&[u8], &mut [u8], &mut [f32], &mut [f32]);

/// The [`Unpack`] of a type: the same code for any CPU and for those with [`crate::graph::kernels::cpu::CpuLevel::Avx512`].
macro_rules! unpack {
    ($block:ident, $numbers:literal, $bytes:literal, $groups:literal) => {{
        unsafe fn plain(r: &[u8], u: &mut [u8], s: &mut [f32], m: &mut [f32]) {
            blocks::<$numbers, $bytes, $groups>(r, u, s, m, |r, u, s, m| $block(r, u, s, m));
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
        unsafe fn wide(r: &[u8], u: &mut [u8], s: &mut [f32], m: &mut [f32]) {
            blocks::<$numbers, $bytes, $groups>(r, u, s, m, |r, u, s, m| $block(r, u, s, m));
        }
        #[cfg(target_arch = "x86_64")]
        let unpack: Unpack = if crate::graph::kernels::cpu::level().has_avx512() { wide } else { plain };
        #[cfg(not(target_arch = "x86_64"))]
        let unpack: Unpack = plain;
        unpack
    }};
}

/// Types of quantized activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::graph::kernels) enum Activations {
    /// 32 signed bytes and a 16-bit scale.
    Q8_0,
    /// The same and the scaled sum of the bytes as a 16-bit float.
    Q8_1,
    /// 256 signed bytes and a scale, with the sums of 16 each.
    Q8K,
}

impl Activations {
    /// ggml's type.
    pub(in crate::graph::kernels) fn kind(self) -> sys::ggml_type {
        match self {
            Self::Q8_0 => sys::GGML_TYPE_Q8_0,
            Self::Q8_1 => sys::GGML_TYPE_Q8_1,
            Self::Q8K => sys::GGML_TYPE_Q8_K,
        }
    }
}

impl Format {
    /// The format of ggml's type; None for those that are not unpacked here.
    pub(in crate::graph::kernels) fn of(kind: sys::ggml_type) -> Option<Self> {
        let simple = |bytes, offset, unpack| Self {
            block: 32,
            bytes,
            group: 32,
            offset,
            has_min: false,
            activations: Activations::Q8_0,
            unpack,
        };
        let with_min = |format: Self| Self { has_min: true, activations: Activations::Q8_1, ..format };
        let k = |bytes, group, offset, has_min, unpack| Self {
            block: 256,
            bytes,
            group,
            offset,
            has_min,
            activations: Activations::Q8K,
            unpack,
        };
        Some(match kind {
            sys::GGML_TYPE_Q4_0 => simple(18, 8, unpack!(q4_0, 32, 18, 1)),
            sys::GGML_TYPE_Q4_1 => with_min(simple(20, 0, unpack!(q4_1, 32, 20, 1))),
            sys::GGML_TYPE_Q5_0 => simple(22, 16, unpack!(q5_0, 32, 22, 1)),
            sys::GGML_TYPE_Q5_1 => with_min(simple(24, 0, unpack!(q5_1, 32, 24, 1))),
            sys::GGML_TYPE_Q8_0 => simple(34, 128, unpack!(q8_0, 32, 34, 1)),
            sys::GGML_TYPE_IQ4_NL => simple(18, 128, unpack!(iq4_nl, 32, 18, 1)),
            sys::GGML_TYPE_Q4_K => k(144, 32, 0, true, unpack!(q4_k, 256, 144, 8)),
            sys::GGML_TYPE_Q5_K => k(176, 32, 0, true, unpack!(q5_k, 256, 176, 8)),
            sys::GGML_TYPE_Q6_K => k(210, 16, 32, false, unpack!(q6_k, 256, 210, 16)),
            _ => return None,
        })
    }

    /// Unpacks a row: `u` gets a byte for each number, `scale` and `min` one number for each group.
    pub(in crate::graph::kernels) fn unpack_row(&self, row: &[u8], u: &mut [u8], scale: &mut [f32], min: &mut [f32]) {
        // SAFETY: chosen for this CPU.
        unsafe { (self.unpack)(row, u, scale, min) };
    }

    /// The numbers themselves, from what [`Format::unpack_row`] gave.
    pub(in crate::graph::kernels) fn to_f32(self, u: &[u8], scale: &[f32], min: &[f32], out: &mut [f32]) {
        let groups = u.chunks_exact(self.group).zip(out.chunks_exact_mut(self.group));
        for ((u, out), (&scale, &min)) in groups.zip(scale.iter().zip(min)) {
            for (out, &u) in out.iter_mut().zip(u) {
                *out = scale * (i32::from(u) - self.offset) as f32 + min;
            }
        }
    }
}

/// Block after block, with all sizes known to the compiler.
#[inline(always)]
fn blocks<const BLOCK: usize, const BYTES: usize, const GROUPS: usize>(
    row: &[u8],
    u: &mut [u8],
    scale: &mut [f32],
    min: &mut [f32],
    unpack: impl Fn(&[u8; BYTES], &mut [u8; BLOCK], &mut [f32; GROUPS], &mut [f32; GROUPS]),
) {
    let (u, scale, min) =
        (u.as_chunks_mut::<BLOCK>().0, scale.as_chunks_mut::<GROUPS>().0, min.as_chunks_mut::<GROUPS>().0);
    for (((block, u), scale), min) in row.as_chunks::<BYTES>().0.iter().zip(u).zip(scale).zip(min) {
        unpack(block, u, scale, min);
    }
}

/// The value of a 16-bit float.
#[inline(always)]
fn f16(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let rest = u32::from(bits & 0x7fff);
    if rest >= 0x7c00 {
        return f32::from_bits(sign | 0x7f80_0000 | (rest & 0x3ff) << 13);
    }
    // Exponent and fraction in the place of an f32's, then the difference of the biases; right for subnormals too.
    let scaled = f32::from_bits(rest << 13) * f32::from_bits((112 + 127) << 23);
    f32::from_bits(sign | scaled.to_bits())
}

/// The 16-bit float at a place.
#[inline(always)]
pub(in crate::graph::kernels) fn half(b: &[u8], at: usize) -> f32 {
    f16(u16::from_le_bytes([b[at], b[at + 1]]))
}

#[inline(always)]
fn nibbles<const BYTES: usize>(b: &[u8; BYTES], at: usize, u: &mut [u8; 32]) {
    for i in 0..16 {
        u[i] = b[at + i] & 15;
        u[i + 16] = b[at + i] >> 4;
    }
}

#[inline(always)]
fn fifth_bits(b: &[u8], at: usize, u: &mut [u8; 32]) {
    for (eight, &bits) in u.as_chunks_mut::<8>().0.iter_mut().zip(&b[at..at + 4]) {
        // Bit i of a byte to byte i of a word, eight at once: a copy of the byte everywhere, of which each place keeps its
        // own bit; with 127 more the highest bit tells whether there was one.
        const ONES: u64 = u64::from_ne_bytes([1; 8]);
        let own = (u64::from(bits) * ONES) & 0x8040_2010_0804_0201;
        let fifth = ((own + 127 * ONES) & (128 * ONES)) >> 3;
        *eight = (u64::from_le_bytes(*eight) | fifth).to_le_bytes();
    }
}

#[inline(always)]
fn q4_0(b: &[u8; 18], u: &mut [u8; 32], scale: &mut [f32; 1], min: &mut [f32; 1]) {
    (scale[0], min[0]) = (half(b, 0), 0.0);
    nibbles(b, 2, u);
}

#[inline(always)]
fn q4_1(b: &[u8; 20], u: &mut [u8; 32], scale: &mut [f32; 1], min: &mut [f32; 1]) {
    (scale[0], min[0]) = (half(b, 0), half(b, 2));
    nibbles(b, 4, u);
}

#[inline(always)]
fn q5_0(b: &[u8; 22], u: &mut [u8; 32], scale: &mut [f32; 1], min: &mut [f32; 1]) {
    (scale[0], min[0]) = (half(b, 0), 0.0);
    nibbles(b, 6, u);
    fifth_bits(b, 2, u);
}

#[inline(always)]
fn q5_1(b: &[u8; 24], u: &mut [u8; 32], scale: &mut [f32; 1], min: &mut [f32; 1]) {
    (scale[0], min[0]) = (half(b, 0), half(b, 2));
    nibbles(b, 8, u);
    fifth_bits(b, 4, u);
}

#[inline(always)]
fn q8_0(b: &[u8; 34], u: &mut [u8; 32], scale: &mut [f32; 1], min: &mut [f32; 1]) {
    (scale[0], min[0]) = (half(b, 0), 0.0);
    for (u, &q) in u.iter_mut().zip(&b[2..34]) {
        // A signed byte plus 128.
        *u = q ^ 0x80;
    }
}

/// Its sixteen values plus 128.
const IQ4_NL: [u8; 16] = [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241];

#[inline(always)]
fn iq4_nl(b: &[u8; 18], u: &mut [u8; 32], scale: &mut [f32; 1], min: &mut [f32; 1]) {
    (scale[0], min[0]) = (half(b, 0), 0.0);
    for (i, &q) in b[2..18].iter().enumerate() {
        u[i] = IQ4_NL[usize::from(q & 15)];
        u[i + 16] = IQ4_NL[usize::from(q >> 4)];
    }
}

/// Scales and mins of eight groups, six bits each, in twelve bytes.
#[inline(always)]
fn six_bits(b: &[u8], d: f32, d_min: f32, scale: &mut [f32; 8], min: &mut [f32; 8]) {
    for j in 0..8 {
        let (s, m) = if j < 4 {
            (b[j] & 63, b[j + 4] & 63)
        } else {
            ((b[j + 4] & 15) | (b[j - 4] >> 6) << 4, (b[j + 4] >> 4) | (b[j] >> 6) << 4)
        };
        scale[j] = d * f32::from(s);
        min[j] = -(d_min * f32::from(m));
    }
}

#[inline(always)]
fn q4_k(b: &[u8; 144], u: &mut [u8; 256], scale: &mut [f32; 8], min: &mut [f32; 8]) {
    six_bits(&b[4..16], half(b, 0), half(b, 2), scale, min);
    for (u, q) in u.chunks_exact_mut(64).zip(b[16..144].chunks_exact(32)) {
        for (i, &q) in q.iter().enumerate() {
            u[i] = q & 15;
            u[i + 32] = q >> 4;
        }
    }
}

#[inline(always)]
fn q5_k(b: &[u8; 176], u: &mut [u8; 256], scale: &mut [f32; 8], min: &mut [f32; 8]) {
    six_bits(&b[4..16], half(b, 0), half(b, 2), scale, min);
    let high = &b[16..48];
    for (j, (u, q)) in u.chunks_exact_mut(64).zip(b[48..176].chunks_exact(32)).enumerate() {
        for (i, (&q, &h)) in q.iter().zip(high).enumerate() {
            u[i] = (q & 15) | ((h >> (2 * j)) & 1) << 4;
            u[i + 32] = (q >> 4) | ((h >> (2 * j + 1)) & 1) << 4;
        }
    }
}

#[inline(always)]
fn q6_k(b: &[u8; 210], u: &mut [u8; 256], scale: &mut [f32; 16], min: &mut [f32; 16]) {
    let d = half(b, 208);
    for (s, &q) in scale.iter_mut().zip(&b[192..208]) {
        *s = d * f32::from(q as i8);
    }
    min.fill(0.0);
    let halves = b[..128].chunks_exact(64).zip(b[128..192].chunks_exact(32));
    for (u, (low, high)) in u.chunks_exact_mut(128).zip(halves) {
        for i in 0..32 {
            u[i] = (low[i] & 15) | (high[i] & 3) << 4;
            u[i + 32] = (low[i + 32] & 15) | ((high[i] >> 2) & 3) << 4;
            u[i + 64] = (low[i] >> 4) | ((high[i] >> 4) & 3) << 4;
            u[i + 96] = (low[i + 32] >> 4) | (high[i] >> 6) << 4;
        }
    }
}

/// The types that are unpacked here.
#[cfg(test)]
pub(in crate::graph::kernels) const TYPES: [sys::ggml_type; 9] = [
    sys::GGML_TYPE_Q4_0,
    sys::GGML_TYPE_Q4_1,
    sys::GGML_TYPE_Q5_0,
    sys::GGML_TYPE_Q5_1,
    sys::GGML_TYPE_Q8_0,
    sys::GGML_TYPE_IQ4_NL,
    sys::GGML_TYPE_Q4_K,
    sys::GGML_TYPE_Q5_K,
    sys::GGML_TYPE_Q6_K,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::kernels::cpu::tests::at_every_level;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use std::ffi::c_void;

    /// ggml's own conversions say what the bytes mean.
    #[test]
    fn as_ggml_dequantizes() {
        crate::llama::init();
        at_every_level(|_| dequantizes_as_ggml());
    }

    fn dequantizes_as_ggml() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for kind in TYPES {
            let format = Format::of(kind).unwrap();
            let k = 1024;
            let exact: Vec<f32> = (0..k).map(|_| rng.random_range(-1.0f32..1.0).powi(3)).collect();
            let mut want = vec![0.0f32; k];
            // SAFETY: the buffers hold one row of k numbers.
            let bytes = unsafe {
                let mut bytes = vec![0u8; sys::ggml_row_size(kind, k as i64)];
                let to = bytes.as_mut_ptr().cast::<c_void>();
                sys::ggml_quantize_chunk(kind, exact.as_ptr(), to, 0, 1, k as i64, std::ptr::null());
                let convert = (*sys::ggml_get_type_traits(kind)).to_float.unwrap();
                convert(bytes.as_ptr().cast::<c_void>(), want.as_mut_ptr(), k as i64);
                bytes
            };
            let mut u = vec![0u8; k];
            let (mut scale, mut min) = (vec![0.0; k / format.group], vec![0.0; k / format.group]);
            format.unpack_row(&bytes, &mut u, &mut scale, &mut min);
            let mut got = vec![0.0; k];
            format.to_f32(&u, &scale, &min, &mut got);
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                // ggml's compiler may contract a product and a sum, or not.
                assert!((got - want).abs() <= 1e-6, "type {kind}, number {i}: {got} for {want}");
            }
        }
    }

    #[test]
    fn every_16_bit_float() {
        for bits in 0..=u16::MAX {
            // SAFETY: arithmetic.
            let want = unsafe { sys::ggml_fp16_to_fp32(bits) };
            assert!(f16(bits).to_bits() == want.to_bits() || want.is_nan() && f16(bits).is_nan(), "{bits:#x}");
        }
    }
}
