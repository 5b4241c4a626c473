//! A tensor of our own in memory of a given kind.

use crate::llama::{DType, sys};
use std::ffi::c_void;

/// One tensor with its buffer.
#[derive(Debug)]
pub(in crate::llama) struct OwnedTensor {
    ctx: *mut sys::ggml_context,
    buffer: sys::ggml_backend_buffer_t,
    raw: *mut sys::ggml_tensor,
}

// SAFETY: filled through `&mut self`, read only afterwards.
unsafe impl Send for OwnedTensor {}
// SAFETY: as above.
unsafe impl Sync for OwnedTensor {}

impl OwnedTensor {
    /// A tensor without data in a buffer of this type; None where there is no room for it.
    ///
    /// # Safety
    /// `memory` is one of ggml's buffer types, which live forever.
    pub(in crate::llama) unsafe fn new(
        memory: sys::ggml_backend_buffer_type_t,
        dtype: DType,
        ne: [usize; 4],
    ) -> Option<Self> {
        // SAFETY: the context holds one tensor header; what is made is owned by the result and freed in its drop.
        let held = unsafe {
            let ctx = sys::ggml_init(sys::ggml_init_params {
                mem_size: sys::ggml_tensor_overhead() * 2,
                mem_buffer: std::ptr::null_mut(),
                no_alloc: true,
            });
            if ctx.is_null() {
                return None;
            }
            let raw = sys::ggml_new_tensor(ctx, dtype.0, 4, ne.map(|n| n as i64).as_ptr());
            Self { ctx, buffer: sys::ggml_backend_alloc_ctx_tensors_from_buft(ctx, memory), raw }
        };
        (!held.buffer.is_null()).then_some(held)
    }

    /// Writes bytes from `offset` on.
    ///
    /// # Panics
    /// Beyond the end of the tensor: a mistake of the caller.
    pub(in crate::llama) fn write(&mut self, offset: usize, bytes: &[u8]) {
        // SAFETY: the tensor is alive, and the range was checked.
        unsafe {
            assert!(offset + bytes.len() <= sys::ggml_nbytes(self.raw), "write past the end of a tensor");
            sys::ggml_backend_tensor_set(self.raw, bytes.as_ptr().cast::<c_void>(), offset, bytes.len());
        }
    }

    /// Has ggml's scheduler run products where this tensor is.
    pub(in crate::llama) fn is_weight(&mut self) {
        // SAFETY: a live buffer.
        unsafe { sys::ggml_backend_buffer_set_usage(self.buffer, sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS) };
    }

    pub(in crate::llama) fn raw(&self) -> *mut sys::ggml_tensor {
        self.raw
    }
}

impl Drop for OwnedTensor {
    fn drop(&mut self) {
        // SAFETY: each freed once, the buffer before the context whose tensor lies in it.
        unsafe {
            if !self.buffer.is_null() {
                sys::ggml_backend_buffer_free(self.buffer);
            }
            sys::ggml_free(self.ctx);
        }
    }
}
