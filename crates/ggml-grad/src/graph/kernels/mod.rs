//! The kernels that ggml has no (fast) equivalent of, run by ggml as custom ops on the CPU.
//!
//! - [`products`]: matmuls with quantized weights: transposed ones, int8, BF16.
//! - [`head`]: log-probabilities of labels and their gradient, also fused with the LM head.
//! - [`attention`]: attention and its gradient, without a table of scores.
//! - [`recurrent`]: gradients of convolutions over time and of scans.
//! - [`pointwise`]: gradients of activations and norms. [`gelu`]: GELU without ggml's table. [`rows`]: scatter-add of rows.
//! - [`kernel_override`]: the same matmuls and attention in llama.cpp's own graphs.
//! - [`cpu`]: the level of vector instructions that is used. [`numeric`]: arithmetic on rows that several kernels share.

#![allow(unsafe_code)] // Kernels work on raw tensors, with vector instructions.

pub(super) mod attention;
pub(super) mod cpu;
pub(super) mod gelu;
pub(super) mod head;
pub(super) mod kernel_override;
pub(super) mod numeric;
pub(super) mod pointwise;
pub(super) mod products;
pub(super) mod recurrent;
pub(super) mod rows;

/// The part `[from, to)` of `n` units of worker `ith` of `nth`.
fn share(n: usize, ith: usize, nth: usize) -> (usize, usize) {
    (n * ith / nth, n * (ith + 1) / nth)
}

/// Partitions a table of `units` by `rows` among workers: parts across and parts down, at most `nth` in all, such that the
/// largest part costs least. Returns (that cost, parts across, parts down). Of equals, the one with more parts across.
fn grid(units: usize, rows: usize, nth: usize, cost: impl Fn(usize, usize) -> f64) -> (f64, usize, usize) {
    let mut best = (f64::INFINITY, 1, 1);
    for across in (1..=units.min(nth).max(1)).rev() {
        let down = (nth / across).min(rows).max(1);
        let largest = cost(units.div_ceil(across), rows.div_ceil(down));
        if largest < best.0 {
            best = (largest, across, down);
        }
    }
    best
}

#[cfg(test)]
mod tests;
