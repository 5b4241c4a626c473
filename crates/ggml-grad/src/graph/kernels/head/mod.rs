//! Log-probabilities of labels.
//!
//! - [`log_prob_head`]: with the gradient of their weighted sum, from logits. [`loss_head`]: the same fused with the LM head,
//!   without a table of logits. [`task`]: their labels and results.
//! - [`logprobs`]: from hidden states, for evaluation.

pub(in crate::graph) mod log_prob_head;
pub(in crate::graph) mod logprobs;
pub(in crate::graph) mod loss_head;
pub(in crate::graph) mod task;
