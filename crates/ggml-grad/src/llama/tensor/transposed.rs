//! Transposed copies of weights in a device's memory.
//!
//! On a device the backward product with a weight is an ordinary one, with a copy of the weight that lies the other way
//! round: no GPU backend of ggml multiplies by the transpose of a quantized matrix. The copy costs memory (two bytes a
//! weight in BF16) and rounds the weights to 8 bits of mantissa.

use crate::llama::tensor::OwnedTensor;
use crate::llama::{DType, GgufFile, LlamaError, Model, dequantize, device_name, sys};
use half::bf16;

impl DType {
    /// 16-bit float with F32's range.
    pub const BF16: Self = Self(sys::GGML_TYPE_BF16);
}

/// A matrix of a model, or a stack of them, transposed, on a device.
#[derive(Debug)]
pub(in crate::llama) struct TransposedTensor {
    held: OwnedTensor,
    dtype: DType,
    bytes: usize,
}

/// Columns and rows that are turned at a time: whole blocks of every type, and few enough to stay in the cache.
const TILE: (usize, usize) = (256, 512);

impl TransposedTensor {
    /// The first of `types` in which the device multiplies by the transpose of a weight `[k, n, experts]`.
    ///
    /// # Errors
    /// [`LlamaError::Device`] where it does in none.
    pub(in crate::llama) fn choose(
        ne: [usize; 4],
        device: sys::ggml_backend_dev_t,
        types: &[DType],
    ) -> Result<DType, LlamaError> {
        types.iter().copied().find(|&t| multiplies(device, t, [ne[1], ne[0], ne[2], ne[3]])).ok_or_else(|| {
            LlamaError::Device(format!(
                "{} multiplies none of {} that a transposed copy of a weight of {ne:?} could be: keep this model's layers on \
                 the CPU (--gpu-layers 0)",
                device_name(device),
                types.iter().map(|t| t.name()).collect::<Vec<_>>().join(", ")
            ))
        })
    }

    /// Reads a tensor `[k, n, experts]` from the model's file and puts `[n, k, experts]` on the device, as `kind`.
    ///
    /// # Errors
    /// [`LlamaError::Gguf`] when the file has no such tensor any more, [`LlamaError::Device`] when the device has no room;
    /// [`LlamaError::File`] when the file fails.
    pub(in crate::llama) fn load(
        model: &Model,
        name: &str,
        dtype: DType,
        ne: [usize; 4],
        device: sys::ggml_backend_dev_t,
        kind: DType,
    ) -> Result<Self, LlamaError> {
        let file = GgufFile::open_with(model.path(), name, dtype, ne)?;
        let bytes = kind.row_bytes(ne.iter().product());
        // SAFETY: the buffer type of a live device.
        let held =
            unsafe { OwnedTensor::new(sys::ggml_backend_dev_buffer_type(device), kind, [ne[1], ne[0], ne[2], ne[3]]) };
        let mut held = held.ok_or_else(|| {
            LlamaError::Device(format!(
                "{} has no room for a transposed copy of {name} ({} MiB in {}), which the backward pass needs: offload \
                 fewer layers (--gpu-layers), or train at a higher layer",
                device_name(device),
                bytes >> 20,
                kind.name()
            ))
        })?;
        held.is_weight();
        // One matrix of a stack at a time: they lie one after the other.
        let [k, n, ..] = ne;
        let mut offset = 0;
        file.read_pieces(name, dtype.row_bytes(k) * n, &mut |matrix| {
            let turned = transpose(dtype, matrix, k, n, kind);
            held.write(offset, &turned);
            offset += turned.len();
        })?;
        Ok(Self { held, dtype: kind, bytes })
    }

    pub(in crate::llama) fn raw(&self) -> *mut sys::ggml_tensor {
        self.held.raw()
    }

    /// The type that the copy is kept in.
    pub(in crate::llama) fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes in the device's memory.
    pub(in crate::llama) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// True if the device multiplies F32 activations by a matrix of this type. (Of a worker's device nobody knows: it is
/// taken at its word.)
fn multiplies(device: sys::ggml_backend_dev_t, kind: DType, ne: [usize; 4]) -> bool {
    // SAFETY: four tensor headers in a context of their own, without data: backends look at types and shapes.
    unsafe {
        let ctx = sys::ggml_init(sys::ggml_init_params {
            mem_size: sys::ggml_tensor_overhead() * 8,
            mem_buffer: std::ptr::null_mut(),
            no_alloc: true,
        });
        if ctx.is_null() {
            return false;
        }
        let [n, k, experts, _] = ne.map(|n| n as i64);
        let w = sys::ggml_new_tensor_3d(ctx, kind.0, n, k, experts);
        let product = if experts > 1 {
            let g = sys::ggml_new_tensor_3d(ctx, sys::GGML_TYPE_F32, n, 1, 32);
            let ids = sys::ggml_new_tensor_2d(ctx, sys::GGML_TYPE_I32, 1, 32);
            sys::ggml_mul_mat_id(ctx, w, g, ids)
        } else {
            let g = sys::ggml_new_tensor_2d(ctx, sys::GGML_TYPE_F32, n, 32);
            sys::ggml_mul_mat(ctx, w, g)
        };
        let yes = sys::ggml_backend_dev_supports_op(device, product);
        sys::ggml_free(ctx);
        yes
    }
}

/// `[n, k]` in `to` from `[k, n]` in `from` (fastest dimension first), on all cores.
fn transpose(from: DType, bytes: &[u8], k: usize, n: usize, to: DType) -> Vec<u8> {
    let row = to.row_bytes(n);
    let mut out = vec![0u8; row * k]; // [k][n]
    let n_threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(16);
    let tiles = k.div_ceil(TILE.0);
    let share = tiles.div_ceil(n_threads).max(1) * TILE.0; // columns of the source for one thread
    std::thread::scope(|scope| {
        for (i, out) in out.chunks_mut(share * row).enumerate() {
            scope.spawn(move || transpose_columns(from, bytes, (k, n), i * share, to, out));
        }
    });
    out
}

/// The part of [`transpose`] from column `first` on, as much as `out` takes.
fn transpose_columns(from: DType, bytes: &[u8], (k, n): (usize, usize), first: usize, to: DType, out: &mut [u8]) {
    let (source_row, row) = (from.row_bytes(k), to.row_bytes(n));
    let last = first + out.len() / row;
    let mut tile = vec![0.0f32; TILE.0 * TILE.1]; // [columns][rows]
    for c0 in (first..last).step_by(TILE.0) {
        let c1 = (c0 + TILE.0).min(last);
        let span = from.row_bytes(c0)..from.row_bytes(c1);
        for r0 in (0..n).step_by(TILE.1) {
            let r1 = (r0 + TILE.1).min(n);
            for r in r0..r1 {
                let start = r * source_row;
                let values = dequantize(from, &bytes[start + span.start..start + span.end]);
                for (c, x) in values.into_iter().enumerate() {
                    tile[c * TILE.1 + r - r0] = x;
                }
            }
            for c in c0..c1 {
                let values = &tile[(c - c0) * TILE.1..][..r1 - r0];
                let at = (c - first) * row + to.row_bytes(r0);
                round_into(to, values, &mut out[at..at + to.row_bytes(r1 - r0)]);
            }
        }
    }
}

/// F32 values as F32, F16 or BF16, rounded to the nearest.
fn round_into(to: DType, values: &[f32], out: &mut [u8]) {
    debug_assert_eq!(out.len(), to.row_bytes(values.len()));
    match to {
        DType::F32 => {
            for (x, o) in values.iter().zip(out.chunks_exact_mut(4)) {
                o.copy_from_slice(&x.to_le_bytes());
            }
        }
        DType::F16 => {
            let mut halves = vec![0u16; values.len()];
            // SAFETY: room for as many halves as there are values.
            unsafe { sys::ggml_fp32_to_fp16_row(values.as_ptr(), halves.as_mut_ptr(), values.len() as i64) };
            for (x, o) in halves.iter().zip(out.chunks_exact_mut(2)) {
                o.copy_from_slice(&x.to_le_bytes());
            }
        }
        DType::BF16 => {
            for (x, o) in values.iter().zip(out.chunks_exact_mut(2)) {
                o.copy_from_slice(&bf16::from_f32(*x).to_le_bytes());
            }
        }
        other => unreachable!("no transposed copy is kept in {}", other.name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::quantize;

    #[test]
    fn turns_every_kind_of_block() {
        for (from, k, n) in [
            (DType::F32, 7, 5),
            (DType::from_name("q4_1").unwrap(), 96, 700),
            (DType::from_name("q6_k").unwrap(), 768, 513),
        ] {
            let values: Vec<f32> = (0..k * n).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
            let bytes = quantize(from, &values, k).unwrap();
            let plain = dequantize(from, &bytes);
            let turned = transpose(from, &bytes, k, n, DType::F32);
            let turned: Vec<f32> = turned.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            for (c, r) in [(0, 0), (k - 1, 0), (0, n - 1), (k - 1, n - 1), (k / 2, n / 3)] {
                assert_eq!(turned[c * n + r], plain[r * k + c], "{} at {c}, {r}", from.name());
            }
            let half = transpose(from, &bytes, k, n, DType::BF16);
            let widen = |b: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
            for (b, x) in half.chunks_exact(2).zip(&turned) {
                assert!((widen(b) - x).abs() <= x.abs() / 256.0, "{} for {x}", widen(b));
            }
            let f16 = dequantize(DType::F16, &transpose(from, &bytes, k, n, DType::F16));
            assert!(f16.iter().zip(&turned).all(|(a, b)| (a - b).abs() <= b.abs() / 1024.0));
        }
    }
}
