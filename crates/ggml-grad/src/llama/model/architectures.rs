//! The architectures that llama.cpp knows by name.

use std::ffi::{CStr, c_char, c_uint};

unsafe extern "C" {
    /// `csrc/architectures.cpp`.
    safe fn ggml_grad_architecture(i: c_uint) -> *const c_char;
}

/// llama.cpp's word behind its last architecture.
const UNKNOWN: &str = "(unknown)";

/// llama.cpp's names of the architectures that it knows (`general.architecture`), in its own order: decoders, encoders and all
/// other kinds. Some are names only, which no file is loaded as.
pub fn architectures() -> Vec<&'static str> {
    let name = |i| {
        // SAFETY: the name is a string constant of llama.cpp.
        unsafe { CStr::from_ptr(ggml_grad_architecture(i)) }.to_str().unwrap_or(UNKNOWN)
    };
    (0..).map(name).take_while(|&name| name != UNKNOWN).collect()
}
