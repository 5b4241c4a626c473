//! Matmuls with quantized weights.
//!
//! - [`given`]: with the F32 matrices of an adapter, and their gradients.
//! - [`matmul_t`]: with a transposed weight, one weight for all rows or one of many for each row.
//! - [`int8`]: of weights unpacked by [`quants`] and activations quantized by [`activations`]. [`bf16`]: of panels in BF16. Both
//!   need a level of the CPU ([`super::cpu`]); below it, ggml's kernels and F32 take their place.

pub(in crate::graph) mod activations;
pub(super) mod bf16;
pub(in crate::graph) mod given;
pub(in crate::graph) mod int8;
pub(in crate::graph) mod matmul_t;
pub(super) mod quants;
#[cfg(target_arch = "x86_64")]
pub(super) mod transpose;
