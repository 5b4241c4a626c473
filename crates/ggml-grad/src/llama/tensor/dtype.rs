//! Element types of tensors.

use crate::llama::sys;
use std::ffi::CStr;

/// Element type of a tensor (ggml's number).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DType(pub sys::ggml_type);

impl DType {
    /// 32-bit float.
    pub const F32: Self = Self(sys::GGML_TYPE_F32);
    /// 16-bit float.
    pub const F16: Self = Self(sys::GGML_TYPE_F16);
    /// 64-bit float.
    pub const F64: Self = Self(sys::GGML_TYPE_F64);
    /// 32-bit integer.
    pub const I32: Self = Self(sys::GGML_TYPE_I32);
    /// 64-bit integer.
    pub const I64: Self = Self(sys::GGML_TYPE_I64);

    /// ggml's name, for example `q4_1`.
    pub fn name(self) -> String {
        // SAFETY: ggml answers every value of the enum with a static string.
        unsafe { CStr::from_ptr(sys::ggml_type_name(self.0)) }.to_string_lossy().into_owned()
    }

    /// Bytes of `n` elements in a row (`n` a multiple of the type's block).
    pub fn row_bytes(self, n: usize) -> usize {
        // SAFETY: pure arithmetic on the type's traits.
        unsafe { sys::ggml_row_size(self.0, n as i64) }
    }

    /// Elements in one block of the type (1 for plain types).
    pub fn block(self) -> usize {
        // SAFETY: as above.
        unsafe { sys::ggml_blck_size(self.0) as usize }
    }

    /// True for block-quantized types.
    pub fn is_quantized(self) -> bool {
        // SAFETY: as above.
        unsafe { sys::ggml_is_quantized(self.0) }
    }
}
