//! Between F32 and the types that weights are kept in.

use super::{DType, LlamaError, init, logging::last_log_lines, sys};
use std::ffi::CString;
use std::path::Path;

/// Writes an F32 copy of the model `from` to `to` (the values are exactly the de-quantized ones).
///
/// # Errors
/// [`LlamaError::Gguf`] with llama.cpp's reason.
pub fn to_f32(from: &Path, to: &Path, n_threads: u32) -> Result<(), LlamaError> {
    init();
    let c = |p: &Path| {
        CString::new(p.as_os_str().as_encoded_bytes())
            .map_err(|_| LlamaError::Gguf(format!("{}: the path holds a NUL byte", p.display())))
    };
    let (c_from, c_to) = (c(from)?, c(to)?);
    let _ = last_log_lines();
    // SAFETY: the defaults are a plain struct; both paths are NUL-terminated and outlive the call.
    let code = unsafe {
        let mut p = sys::llama_model_quantize_default_params();
        p.nthread = n_threads as i32;
        p.ftype = sys::LLAMA_FTYPE_ALL_F32;
        p.allow_requantize = true;
        sys::llama_model_quantize(c_from.as_ptr(), c_to.as_ptr(), &raw const p)
    };
    if code != 0 {
        return Err(LlamaError::Gguf(format!(
            "cannot de-quantize {} to {}: {}",
            from.display(),
            to.display(),
            last_log_lines()
        )));
    }
    Ok(())
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
