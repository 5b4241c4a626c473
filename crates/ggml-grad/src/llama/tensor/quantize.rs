//! Between F32 and the types that weights are kept in.

use crate::llama::{DType, GgufFile, GgufWriter, LlamaError, sys};
use std::path::Path;

/// Values de-quantized at a time.
const PIECE: usize = 1 << 20;

/// Writes an F32 copy of the model `from` to `to`: every tensor of floats, exactly de-quantized. Of a model that is split
/// over several files, `from` is the first.
///
/// # Errors
/// [`LlamaError::Gguf`] or [`LlamaError::File`] naming the file.
pub fn to_f32(from: &Path, to: &Path) -> Result<(), LlamaError> {
    let files = GgufFile::open_parts(from)?;
    let mut writer = GgufWriter::with_meta_of(from)?;
    for key in ["split.no", "split.count", "split.tensors.count"] {
        writer.remove(key);
    }
    writer.set_u32("general.file_type", 0)?;
    let mut sources = Vec::new();
    for file in &files {
        for (name, dtype, ne) in file.tensors() {
            writer.declare(name, if dtype.is_float() { DType::F32 } else { dtype }, ne)?;
            sources.push((file, name, dtype, ne));
        }
    }
    writer.write_with(to, &mut |i, sink| {
        let (file, name, dtype, ne) = sources[i];
        // Whole rows: a row is whole blocks.
        let rows = (PIECE / ne[0].max(1)).max(1);
        let mut failed = Ok(());
        file.read_pieces(name, rows * dtype.row_bytes(ne[0]), &mut |bytes| {
            if failed.is_ok() {
                failed = if dtype.is_float() {
                    let values = dequantize(dtype, bytes);
                    sink.push(&values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
                } else {
                    sink.push(bytes)
                };
            }
        })?;
        failed
    })
}

/// The numbers that whole blocks of a type of floats stand for.
///
/// # Panics
/// For a type that is none of floats, or bytes that are no whole number of blocks: mistakes of the caller.
pub fn dequantize(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    assert!(dtype.is_float(), "{} holds no floats", dtype.name());
    let block_bytes = dtype.row_bytes(dtype.block());
    assert!(bytes.len().is_multiple_of(block_bytes), "{} bytes are no whole blocks of {}", bytes.len(), dtype.name());
    let n = bytes.len() / block_bytes * dtype.block();
    let mut values = vec![0.0f32; n];
    // SAFETY: bytes holds n values of the type, values has room for n.
    unsafe {
        match (*sys::ggml_get_type_traits(dtype.0)).to_float {
            Some(convert) => convert(bytes.as_ptr().cast(), values.as_mut_ptr(), n as i64),
            // F32 has no conversion.
            None => std::ptr::copy_nonoverlapping(bytes.as_ptr(), values.as_mut_ptr().cast(), bytes.len()),
        }
    }
    values
}

impl DType {
    /// The types of weights that this ggml can quantize to and de-quantize from.
    pub const WEIGHTS: [Self; 28] = [
        Self::F32,
        Self::F16,
        Self(sys::GGML_TYPE_BF16),
        Self(sys::GGML_TYPE_Q8_0),
        Self(sys::GGML_TYPE_Q4_0),
        Self(sys::GGML_TYPE_Q4_1),
        Self(sys::GGML_TYPE_Q5_0),
        Self(sys::GGML_TYPE_Q5_1),
        Self(sys::GGML_TYPE_Q2_K),
        Self(sys::GGML_TYPE_Q3_K),
        Self(sys::GGML_TYPE_Q4_K),
        Self(sys::GGML_TYPE_Q5_K),
        Self(sys::GGML_TYPE_Q6_K),
        Self(sys::GGML_TYPE_IQ1_S),
        Self(sys::GGML_TYPE_IQ1_M),
        Self(sys::GGML_TYPE_IQ2_XXS),
        Self(sys::GGML_TYPE_IQ2_XS),
        Self(sys::GGML_TYPE_IQ2_S),
        Self(sys::GGML_TYPE_IQ3_XXS),
        Self(sys::GGML_TYPE_IQ3_S),
        Self(sys::GGML_TYPE_IQ4_NL),
        Self(sys::GGML_TYPE_IQ4_XS),
        Self(sys::GGML_TYPE_MXFP4),
        Self(sys::GGML_TYPE_NVFP4),
        Self(sys::GGML_TYPE_TQ1_0),
        Self(sys::GGML_TYPE_TQ2_0),
        Self(sys::GGML_TYPE_Q1_0),
        Self(sys::GGML_TYPE_Q2_0),
    ];

    /// True for F32 and every type that ggml turns into F32.
    pub fn is_float(self) -> bool {
        // SAFETY: the traits of a type are static.
        self == Self::F32 || unsafe { (*sys::ggml_get_type_traits(self.0)).to_float.is_some() }
    }

    /// The weight type that ggml calls `name` (`q4_k`, `IQ4_XS`: case does not matter), if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::WEIGHTS.into_iter().find(|t| t.name().eq_ignore_ascii_case(name))
    }
}

/// Quantizes rows of `n_per_row` values, as ggml keeps them. Where ggml's method needs to know how much each column
/// matters, all matter equally.
///
/// # Errors
/// [`LlamaError::Gguf`] for a type that is not one of [`DType::WEIGHTS`], rows that are no multiple of its block, a rest
/// that fills no row, or a value that is not finite.
pub fn quantize(dtype: DType, values: &[f32], n_per_row: usize) -> Result<Vec<u8>, LlamaError> {
    let name = dtype.name();
    if !DType::WEIGHTS.contains(&dtype) {
        return Err(LlamaError::Gguf(format!("ggml cannot quantize to {name}")));
    }
    if n_per_row == 0 || !n_per_row.is_multiple_of(dtype.block()) {
        return Err(LlamaError::Gguf(format!(
            "rows of {n_per_row} values cannot be {name}: it takes multiples of {}",
            dtype.block()
        )));
    }
    if !values.len().is_multiple_of(n_per_row) {
        return Err(LlamaError::Gguf(format!("{} values are no whole number of rows of {n_per_row}", values.len())));
    }
    if let Some((i, x)) = values.iter().enumerate().find(|(_, x)| !x.is_finite()) {
        return Err(LlamaError::Gguf(format!("value {i} is {x}: only finite numbers can be {name}")));
    }
    let n_rows = values.len() / n_per_row;
    let mut out = vec![0u8; dtype.row_bytes(n_per_row) * n_rows];
    if n_rows == 0 {
        return Ok(out);
    }
    // SAFETY: the type is one of those that ggml_quantize_chunk knows; values and out hold n_rows rows; the importance
    // matrix holds one value a column.
    unsafe {
        let importance = sys::ggml_quantize_requires_imatrix(dtype.0).then(|| vec![1.0f32; n_per_row]);
        sys::ggml_quantize_chunk(
            dtype.0,
            values.as_ptr(),
            out.as_mut_ptr().cast(),
            0,
            n_rows as i64,
            n_per_row as i64,
            importance.as_ref().map_or(std::ptr::null(), |w| w.as_ptr()),
        );
    }
    Ok(out)
}
