//! What the build and the machine offer.

use super::{init, sys};
use std::ffi::CStr;

/// A device that ggml can compute on.
#[derive(Debug, Clone)]
pub struct Device {
    /// ggml's name, for example `CPU` or `CUDA0`.
    pub name: String,
    /// What it is.
    pub description: String,
    /// Free memory in bytes.
    pub free: usize,
    /// Total memory in bytes.
    pub total: usize,
}

/// All devices of this build.
pub fn devices() -> Vec<Device> {
    init();
    // SAFETY: indices below ggml_backend_dev_count are valid; the strings are static.
    unsafe {
        (0..sys::ggml_backend_dev_count())
            .map(|i| {
                let dev = sys::ggml_backend_dev_get(i);
                let (mut free, mut total) = (0, 0);
                sys::ggml_backend_dev_memory(dev, &raw mut free, &raw mut total);
                Device {
                    name: CStr::from_ptr(sys::ggml_backend_dev_name(dev)).to_string_lossy().into_owned(),
                    description: CStr::from_ptr(sys::ggml_backend_dev_description(dev)).to_string_lossy().into_owned(),
                    free,
                    total,
                }
            })
            .collect()
    }
}

/// llama.cpp's own line about the features it was compiled with.
pub fn system_info() -> String {
    init();
    // SAFETY: llama.cpp answers with a static string.
    unsafe { CStr::from_ptr(sys::llama_print_system_info()) }.to_string_lossy().trim().to_owned()
}

/// CPU features ggml was compiled with, by name, and whether this CPU has them: `(name, compiled in)`.
pub fn cpu_features() -> Vec<(&'static str, bool)> {
    // SAFETY: these are constant functions of the build.
    unsafe {
        [
            ("SSE3", sys::ggml_cpu_has_sse3()),
            ("AVX", sys::ggml_cpu_has_avx()),
            ("AVX2", sys::ggml_cpu_has_avx2()),
            ("F16C", sys::ggml_cpu_has_f16c()),
            ("FMA", sys::ggml_cpu_has_fma()),
            ("AVX512", sys::ggml_cpu_has_avx512()),
            ("AVX512_VNNI", sys::ggml_cpu_has_avx512_vnni()),
            ("AVX512_BF16", sys::ggml_cpu_has_avx512_bf16()),
            ("NEON", sys::ggml_cpu_has_neon()),
            ("DOTPROD", sys::ggml_cpu_has_dotprod()),
            ("SVE", sys::ggml_cpu_has_sve()),
        ]
        .into_iter()
        .map(|(name, n)| (name, n != 0))
        .collect()
    }
}
