//! GGUF files: metadata and tensors, through ggml's own reader and writer.

mod reader;
mod writer;

pub use reader::GgufFile;
pub use writer::{GgufWriter, TensorSink};

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum GgufValue {
    /// Text.
    Str(String),
    /// Any integer type that fits.
    Int(i64),
    /// `f32` or `f64`.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Something this reader has no use for: its type's name.
    Other(String),
}
