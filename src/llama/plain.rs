//! Weights as they lie in the file, for those that llama.cpp keeps in another form or another memory.

use super::{DType, GgufFile, LlamaError, Model, sys};
use std::ffi::c_void;

/// A tensor of a model in host memory, byte for byte as in its file.
#[derive(Debug)]
pub struct PlainTensor {
    ctx: *mut sys::ggml_context,
    buffer: sys::ggml_backend_buffer_t,
    raw: *mut sys::ggml_tensor,
}

// SAFETY: written once, in the constructor; read only afterwards.
unsafe impl Send for PlainTensor {}
// SAFETY: as above.
unsafe impl Sync for PlainTensor {}

impl PlainTensor {
    /// Reads a tensor from the model's file.
    ///
    /// # Errors
    /// [`LlamaError::Gguf`] when the file has no such tensor any more or there is no memory for it;
    /// [`LlamaError::Read`] when the file fails.
    pub fn load(model: &Model, name: &str, dtype: DType, ne: [usize; 4]) -> Result<Self, LlamaError> {
        let files = GgufFile::open_parts(model.path())?;
        let of = |f: &&GgufFile| f.tensors().any(|(n, d, shape)| n == name && d == dtype && shape == ne);
        let file = files.iter().find(of).ok_or_else(|| {
            LlamaError::Gguf(format!(
                "{} has no tensor {name} of type {} and shape {ne:?}: was the file replaced since it was loaded?",
                model.path().display(),
                dtype.name()
            ))
        })?;
        let no_memory = || LlamaError::Gguf(format!("no memory for a plain copy of {name} ({ne:?}, {})", dtype.name()));
        // SAFETY: the context holds one tensor header; what is made is owned by `plain` and freed in its drop. Offsets
        // stay below the tensor's size, which is that of the file's tensor: same type and shape.
        let plain = unsafe {
            let ctx = sys::ggml_init(sys::ggml_init_params {
                mem_size: sys::ggml_tensor_overhead() * 2,
                mem_buffer: std::ptr::null_mut(),
                no_alloc: true,
            });
            if ctx.is_null() {
                return Err(no_memory());
            }
            let raw = sys::ggml_new_tensor(ctx, dtype.0, 4, ne.map(|n| n as i64).as_ptr());
            let buffer = sys::ggml_backend_alloc_ctx_tensors_from_buft(ctx, sys::ggml_backend_cpu_buffer_type());
            Self { ctx, buffer, raw }
        };
        if plain.buffer.is_null() {
            return Err(no_memory());
        }
        let mut offset = 0;
        file.read_pieces(name, 1 << 24, &mut |bytes| {
            // SAFETY: as above.
            unsafe { sys::ggml_backend_tensor_set(plain.raw, bytes.as_ptr().cast::<c_void>(), offset, bytes.len()) };
            offset += bytes.len();
        })?;
        Ok(plain)
    }

    pub(crate) fn raw(&self) -> *mut sys::ggml_tensor {
        self.raw
    }
}

impl Drop for PlainTensor {
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
