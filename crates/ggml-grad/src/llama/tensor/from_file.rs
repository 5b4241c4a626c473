//! Weights as they lie in the file, for those that llama.cpp keeps in another form or another memory.

use crate::llama::tensor::OwnedTensor;
use crate::llama::{DType, GgufFile, LlamaError, Model, sys};

/// A tensor of a model in host memory, byte for byte as in its file.
#[derive(Debug)]
pub struct FileTensor(OwnedTensor);

impl FileTensor {
    /// Reads a tensor from the model's file.
    ///
    /// # Errors
    /// [`LlamaError::Gguf`] when the file has no such tensor any more or there is no memory for it;
    /// [`LlamaError::File`] when the file fails.
    pub fn load(model: &Model, name: &str, dtype: DType, ne: [usize; 4]) -> Result<Self, LlamaError> {
        let file = GgufFile::open_with(model.path(), name, dtype, ne)?;
        // SAFETY: ggml's own buffer type.
        let held = unsafe { OwnedTensor::new(sys::ggml_backend_cpu_buffer_type(), dtype, ne) };
        let mut held = held.ok_or_else(|| {
            LlamaError::Gguf(format!("no memory for a plain copy of {name} ({ne:?}, {})", dtype.name()))
        })?;
        let mut offset = 0;
        file.read_pieces(name, 1 << 24, &mut |bytes| {
            held.write(offset, bytes);
            offset += bytes.len();
        })?;
        Ok(Self(held))
    }

    /// ggml's tensor, alive as long as the copy.
    pub fn raw(&self) -> *mut sys::ggml_tensor {
        self.0.raw()
    }
}
