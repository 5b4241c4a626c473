//! The kernels that ggml has no (fast) equivalent of, run by ggml as custom ops on the CPU.
//!
//! [`matmul_t`]: the product with a transposed quantized weight, one for all rows or one of many for each. [`rows`]: rows
//! added up where integers say. [`attention`]: without a table of scores. [`pointwise`]: gradients of activations and
//! norms. [`gelu`]: without a table. [`head`]: log-probabilities of labels and the gradient
//! of their weighted sum, fused so that no probability table is kept. [`loss_head`]: the same with the output matrix, so that
//! no table of logits is kept either.
//! [`logprobs`]: log-probabilities from hidden states, for evaluation.
//!
//! [`int8`]: products with quantized weights in ggml's integer arithmetic, from weights taken apart by [`quants`] and
//! activations rounded by [`activations`]; [`bf16`]: products of panels in BF16. Both need instructions that [`cpu`] asks
//! for; elsewhere ggml's kernels and F32 do the work. [`kernel_override`]: the same products in llama.cpp's own graphs.

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

/// The part `[from, to)` of `n` units that worker `ith` of `nth` takes.
fn share(n: usize, ith: usize, nth: usize) -> (usize, usize) {
    (n * ith / nth, n * (ith + 1) / nth)
}

/// How a table of `units` by `rows` is dealt to workers: so many parts across and so many down, at most `nth` in all, that
/// the largest part costs least; that cost comes first. Of equals, the one with more parts across.
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
