//! The kernels that ggml has no (fast) equivalent of, run by ggml as custom ops on the CPU.
//!
//! - [`matmul_t`]: matmul with a transposed quantized weight, one weight for all rows or one of many for each row.
//! - [`rows`]: scatter-add of rows.
//! - [`attention`]: attention and its gradient, without a table of scores.
//! - [`pointwise`]: gradients of activations and norms. [`gelu`]: GELU without ggml's table.
//! - [`log_prob_head`]: log-probabilities of labels and the gradient of their weighted sum, from logits. [`loss_head`]: the
//!   same fused with the LM head, without a table of logits. [`task`]: their labels and results.
//! - [`logprobs`]: log-probabilities from hidden states, for evaluation.
//! - [`int8`]: int8 matmuls, from weights unpacked by [`quants`] and activations quantized by [`activations`]. [`bf16`]:
//!   matmuls of panels in BF16. Both need a [`cpu`] level; below it, ggml's kernels and F32 take their place.
//! - [`kernel_override`]: the same matmuls and attention in llama.cpp's own graphs.
//! - [`numeric`]: arithmetic on rows that several of them share.

#![allow(unsafe_code)] // Kernels work on raw tensors, with vector instructions.

pub(super) mod activations;
pub(super) mod attention;
mod bf16;
pub(super) mod cpu;
pub(super) mod gelu;
pub(super) mod int8;
pub(super) mod kernel_override;
pub(super) mod log_prob_head;
pub(super) mod logprobs;
pub(super) mod loss_head;
pub(super) mod matmul_t;
pub(super) mod numeric;
pub(super) mod pointwise;
mod quants;
pub(super) mod rows;
pub(super) mod task;
#[cfg(target_arch = "x86_64")]
mod transpose;

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
