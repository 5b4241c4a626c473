//! The tensors of a loaded model, with the devices whose memory holds them.

use crate::llama::devices::device_name;
use crate::llama::sys;
use std::ffi::{CStr, c_char, c_void};

unsafe extern "C" {
    /// `csrc/tensors.cpp`.
    fn ggml_grad_each_tensor(
        model: *const sys::llama_model,
        visit: unsafe extern "C" fn(*mut c_void, *const c_char, *const sys::ggml_tensor),
        data: *mut c_void,
    );
}

/// One weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::llama) struct ModelTensor {
    /// Name, as in the file.
    pub name: String,
    /// Device whose memory holds it.
    pub device: String,
    /// Size in bytes.
    pub n_bytes: usize,
}

/// All weights of a model. A tied output that lies on another device than the table of embeddings is listed under the
/// table's name, a second time.
///
/// # Safety
/// `model` is a live model.
pub(in crate::llama) unsafe fn model_tensors(model: *const sys::llama_model) -> Vec<ModelTensor> {
    let mut found: Vec<ModelTensor> = Vec::new();
    // SAFETY: the model is live by contract; `found` outlives the call, and `visit` knows its type.
    unsafe { ggml_grad_each_tensor(model, visit, (&raw mut found).cast()) };
    found
}

/// # Safety
/// `data` is a `Vec<ModelTensor>`, `name` a NUL-terminated string, `tensor` a live tensor.
unsafe extern "C" fn visit(data: *mut c_void, name: *const c_char, tensor: *const sys::ggml_tensor) {
    // SAFETY: by contract.
    let (found, name) = unsafe { (&mut *data.cast::<Vec<ModelTensor>>(), CStr::from_ptr(name)) };
    found.push(ModelTensor {
        name: name.to_string_lossy().into_owned(),
        // SAFETY: a live tensor.
        device: unsafe { device_of(tensor) },
        // SAFETY: a live tensor.
        n_bytes: unsafe { sys::ggml_nbytes(tensor) },
    });
}

/// Name of the device whose memory holds a tensor; `CPU` for all memory that the CPU reads through a pointer.
///
/// # Safety
/// A live tensor.
unsafe fn device_of(tensor: *const sys::ggml_tensor) -> String {
    const CPU: &str = "CPU";
    // SAFETY: by contract; a view has no buffer, its source has.
    let buffer = unsafe {
        let source = (*tensor).view_src;
        if source.is_null() { (*tensor).buffer } else { (*source).buffer }
    };
    if buffer.is_null() {
        return CPU.to_owned();
    }
    // SAFETY: a live buffer has a type, which lives as long as its device.
    let device = unsafe {
        let buffer_type = sys::ggml_backend_buffer_get_type(buffer);
        match sys::ggml_backend_buft_is_host(buffer_type) {
            true => std::ptr::null_mut(),
            false => sys::ggml_backend_buft_get_device(buffer_type),
        }
    };
    if device.is_null() { CPU.to_owned() } else { device_name(device) }
}
