//! The kernels that ggml has no (fast) equivalent of, run by ggml as custom ops on the CPU.
//!
//! [`matmul_t`]: the product with a transposed quantized weight, one for all rows or one of many for each. [`rows`]: rows
//! added up where integers say. [`gelu`]: without a table. [`head`]: log-probabilities of labels and the gradient
//! of their weighted sum, fused so that no probability table is kept. [`logprobs`]: log-probabilities from hidden states, for
//! evaluation.

pub(super) mod gelu;
pub(super) mod head;
pub(super) mod logprobs;
pub(super) mod matmul_t;
pub(super) mod rows;

/// The part `[from, to)` of `n` units that worker `ith` of `nth` takes.
fn share(n: usize, ith: usize, nth: usize) -> (usize, usize) {
    (n * ith / nth, n * (ith + 1) / nth)
}
