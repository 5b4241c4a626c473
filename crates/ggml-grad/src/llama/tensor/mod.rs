//! Tensors: data types, quantization, weights of a model and copies of them in another form.

mod dtype;
mod from_file;
mod owned;
mod quantize;
mod transposed;
mod weight;

pub use dtype::DType;
pub use from_file::FileTensor;
pub(super) use owned::OwnedTensor;
pub use quantize::{dequantize, quantize, to_f32};
pub(super) use transposed::TransposedTensor;
pub use weight::Weight;
