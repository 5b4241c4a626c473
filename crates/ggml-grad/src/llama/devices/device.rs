//! Devices, and the features of the build and the machine.

use crate::llama::{LlamaError, init, sys};
use std::ffi::{CStr, CString, c_char};

/// Version of the crate that brings llama.cpp's source, as pinned in Cargo.toml.
pub const LLAMA_CPP_SYS_VERSION: &str = "0.1.161";

/// A device that ggml can compute on.
#[derive(Debug, Clone)]
pub struct Device {
    /// ggml's name, for example `CPU` or `CUDA0`.
    pub name: String,
    /// Kind of device.
    pub description: String,
    /// `CPU`, `GPU`, `integrated GPU` or `accelerator`.
    pub kind: &'static str,
    /// Free memory in bytes.
    pub free: usize,
    /// Total memory in bytes.
    pub total: usize,
}

/// # Safety
/// `p` is NULL or a NUL-terminated string.
unsafe fn text(p: *const c_char) -> String {
    if p.is_null() {
        return String::new();
    }
    // SAFETY: by the contract above.
    unsafe { CStr::from_ptr(p) }.to_string_lossy().trim().to_owned()
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
                let kind = match sys::ggml_backend_dev_type(dev) {
                    sys::GGML_BACKEND_DEVICE_TYPE_CPU => "CPU",
                    sys::GGML_BACKEND_DEVICE_TYPE_GPU => "GPU",
                    sys::GGML_BACKEND_DEVICE_TYPE_IGPU => "integrated GPU",
                    _ => "accelerator",
                };
                let name = text(sys::ggml_backend_dev_name(dev));
                let description = text(sys::ggml_backend_dev_description(dev));
                Device { name, description, kind, free, total }
            })
            .collect()
    }
}

/// Free and total bytes of a device's memory, by ggml's name of the device; None where there is none of that name, or it does
/// not say.
pub fn device_memory(name: &str) -> Option<(u64, u64)> {
    let device = find_device(name).ok()?;
    let (mut free, mut total) = (0, 0);
    // SAFETY: a live device.
    unsafe { sys::ggml_backend_dev_memory(device, &raw mut free, &raw mut total) };
    (total > 0).then_some((free as u64, total as u64))
}

/// The GPUs of this machine: discrete ones, or where there is none an integrated one.
pub(in crate::llama) fn local_gpus() -> Vec<sys::ggml_backend_dev_t> {
    init();
    // SAFETY: indices below the count are valid; devices live forever.
    unsafe {
        let of_kind = |kind| {
            (0..sys::ggml_backend_dev_count())
                .map(|i| sys::ggml_backend_dev_get(i))
                .filter(|&d| sys::ggml_backend_dev_type(d) == kind && !is_rpc(d))
                .collect::<Vec<_>>()
        };
        let gpus = of_kind(sys::GGML_BACKEND_DEVICE_TYPE_GPU);
        if gpus.is_empty() { of_kind(sys::GGML_BACKEND_DEVICE_TYPE_IGPU).into_iter().take(1).collect() } else { gpus }
    }
}

/// True for a device of a worker.
pub(crate) fn is_rpc(device: sys::ggml_backend_dev_t) -> bool {
    // SAFETY: a live device; names are static strings.
    unsafe {
        let reg = sys::ggml_backend_dev_backend_reg(device);
        !reg.is_null() && CStr::from_ptr(sys::ggml_backend_reg_name(reg)).to_bytes().starts_with(b"RPC")
    }
}

/// ggml's name of a device.
pub(crate) fn device_name(device: sys::ggml_backend_dev_t) -> String {
    // SAFETY: a live device; names are static strings.
    unsafe { CStr::from_ptr(sys::ggml_backend_dev_name(device)) }.to_string_lossy().into_owned()
}

/// ggml's name of a device with its description, where there is one: `CUDA0 (NVIDIA H100)`.
pub(in crate::llama) fn device_description(device: sys::ggml_backend_dev_t) -> String {
    // SAFETY: a live device; descriptions live as long as the device.
    let description = unsafe { CStr::from_ptr(sys::ggml_backend_dev_description(device)) }.to_string_lossy();
    match (device_name(device), description.trim()) {
        (name, "") => name,
        (name, what) => format!("{name} ({what})"),
    }
}

/// A device by ggml's name of it (case does not matter).
pub(in crate::llama) fn find_device(name: &str) -> Result<sys::ggml_backend_dev_t, LlamaError> {
    init();
    let wanted = CString::new(name).unwrap_or_default();
    // SAFETY: NUL-terminated; NULL where there is none.
    let device = unsafe { sys::ggml_backend_dev_by_name(wanted.as_ptr()) };
    if device.is_null() {
        let all: Vec<String> = devices().into_iter().map(|d| d.name).collect();
        return Err(LlamaError::Device(format!(
            "there is no device {name:?}; there are {}, and none (`bidpo doctor` tells what they are)",
            all.join(", ")
        )));
    }
    Ok(device)
}

/// Names of the backends compiled in, for example `CPU` and `CUDA`.
pub fn backends() -> Vec<String> {
    init();
    // SAFETY: indices below ggml_backend_reg_count are valid; the names are static strings.
    unsafe {
        (0..sys::ggml_backend_reg_count())
            .map(|i| text(sys::ggml_backend_reg_name(sys::ggml_backend_reg_get(i))))
            .collect()
    }
}

/// ggml's version.
pub fn ggml_version() -> String {
    // SAFETY: a static string.
    unsafe { text(sys::ggml_version()) }
}

/// The commit ggml was built from, where its build knew it (a build from the crate's source does not).
pub fn ggml_commit() -> Option<String> {
    // SAFETY: a static string.
    let commit = unsafe { text(sys::ggml_commit()) };
    (!commit.is_empty() && commit != "unknown").then_some(commit)
}

/// llama.cpp's own line about the features it was compiled with.
pub fn system_info() -> String {
    init();
    // SAFETY: llama.cpp answers with a static string.
    unsafe { text(sys::llama_print_system_info()) }
}

/// A vector extension of the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuFeature {
    /// ggml's name for it.
    pub name: &'static str,
    /// This processor has it.
    pub in_cpu: bool,
    /// ggml was compiled to use it.
    pub in_ggml: bool,
    /// bidpo's own code was compiled to use it.
    pub in_bidpo: bool,
}

/// One row for each feature: ggml's name, std's name of it, ggml's question.
#[allow(unused_macros, reason = "each architecture uses its own")]
macro_rules! features {
    ($detected:ident, $(($name:literal, $std:tt, $ggml:ident)),+ $(,)?) => {
        vec![$(CpuFeature {
            name: $name,
            in_cpu: std::arch::$detected!($std),
            // SAFETY: a constant function of the build.
            in_ggml: unsafe { sys::$ggml() } != 0,
            in_bidpo: cfg!(target_feature = $std),
        }),+]
    };
}

/// The features that matter for speed on this architecture; empty where bidpo knows none.
#[cfg(target_arch = "x86_64")]
pub fn cpu_features() -> Vec<CpuFeature> {
    features!(
        is_x86_feature_detected,
        ("SSE3", "sse3", ggml_cpu_has_sse3),
        ("AVX", "avx", ggml_cpu_has_avx),
        ("F16C", "f16c", ggml_cpu_has_f16c),
        ("FMA", "fma", ggml_cpu_has_fma),
        ("AVX2", "avx2", ggml_cpu_has_avx2),
        ("AVX_VNNI", "avxvnni", ggml_cpu_has_avx_vnni),
        ("AVX512", "avx512f", ggml_cpu_has_avx512),
        ("AVX512_VNNI", "avx512vnni", ggml_cpu_has_avx512_vnni),
        ("AVX512_BF16", "avx512bf16", ggml_cpu_has_avx512_bf16),
    )
}

/// The features that matter for speed on this architecture; empty where bidpo knows none.
#[cfg(target_arch = "aarch64")]
pub fn cpu_features() -> Vec<CpuFeature> {
    features!(
        is_aarch64_feature_detected,
        ("NEON", "neon", ggml_cpu_has_neon),
        ("DOTPROD", "dotprod", ggml_cpu_has_dotprod),
        ("MATMUL_INT8", "i8mm", ggml_cpu_has_matmul_int8),
        ("SVE", "sve", ggml_cpu_has_sve),
    )
}

/// The features that matter for speed on this architecture; empty where bidpo knows none.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub fn cpu_features() -> Vec<CpuFeature> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stated_version_is_the_one_in_the_lock_file() {
        let lock = include_str!("../../../../../Cargo.lock");
        let entry = format!("name = \"llama-cpp-sys-2\"\nversion = \"{LLAMA_CPP_SYS_VERSION}\"");
        assert!(lock.contains(&entry), "LLAMA_CPP_SYS_VERSION is out of date");
    }

    #[test]
    fn nothing_is_compiled_in_that_this_processor_lacks() {
        for f in cpu_features() {
            assert!(f.in_cpu || !f.in_ggml && !f.in_bidpo, "{f:?}");
        }
        assert!(devices().iter().any(|d| d.kind == "CPU" && d.total > 0));
        assert!(backends().iter().any(|b| b == "CPU"));
        assert!(!ggml_version().is_empty());
        assert!(find_device("Abacus7").unwrap_err().to_string().contains("CPU"));
    }
}
