//! De-quantizing a whole model file to F32, for the checks that need a forward pass without rounding.

use super::{LlamaError, init, logging::last_log_lines, sys};
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
