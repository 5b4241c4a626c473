//! The loss as the kernels see it: labels in, log-probabilities out.

use std::ops::Range;

/// A label to score: the row of logits, the token, and the coefficient of its log-probability in the sum that is
/// differentiated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Label {
    /// Row of the logits.
    pub row: u32,
    /// Token id.
    pub token: u32,
    /// Coefficient in the sum.
    pub coef: f32,
}

/// Coefficients of the labels from their log-probabilities, for a loss whose gradient depends on its value. The function
/// may not change which rows have coefficients that add up to zero.
pub type LabelWeightFn<'a> = &'a (dyn Fn(&[f64]) -> Vec<f32> + Sync);

/// Labels and results of one run, shared by all workers: the user data of [`crate::graph::kernels::head::log_prob_head`] and
/// [`crate::graph::kernels::head::loss_head`].
pub(in crate::graph) struct LossTask<'a> {
    /// Labels sorted by row.
    pub labels: Vec<Label>,
    /// Replaces the labels' coefficients, which then only say which rows have a gradient. Used by [`crate::graph::kernels::head::loss_head`]
    /// alone.
    pub weigh: Option<LabelWeightFn<'a>>,
    /// log p of each label, written by the run.
    pub log_probs: Vec<f64>,
    /// For each label, KL(reference || policy) of its row, nats; written by heads that have a reference.
    pub divergences: Vec<f64>,
    /// True if [`crate::graph::kernels::head::loss_head`] computes the gradient too.
    pub grad: bool,
    /// Logit of each label, written by [`crate::graph::kernels::head::loss_head`].
    pub logits: Vec<f32>,
    /// Results of each worker of [`crate::graph::kernels::head::loss_head`].
    pub workers: Vec<WorkerSums>,
}

/// One worker's sums over the vocabulary. Vectors have an element for each row, of which it uses its own.
#[derive(Debug, Default, Clone)]
pub(in crate::graph) struct WorkerSums {
    /// The worker's rows. Rows of a reference are those of the same labels.
    pub rows: Range<usize>,
    /// For each row, the maximum that `sum` and the gradient are relative to.
    pub max: Vec<f32>,
    /// For each row, sum of `exp(z - max)`.
    pub sum: Vec<f64>,
    /// For each row with a reference, sum of `exp(z_ref - max_ref) (z_ref - z)`; empty without one.
    pub cross: Vec<f64>,
    /// Tokens of large probability, which are added in F32.
    pub large: Vec<LargeToken>,
}

/// A token of large probability in one row.
#[derive(Debug, Clone, Copy)]
pub(in crate::graph) struct LargeToken {
    /// Row of the logits.
    pub row: u32,
    /// Token id.
    pub token: u32,
    /// Its logit.
    pub logit: f32,
}

impl<'a> LossTask<'a> {
    /// A task for `n_workers` workers.
    pub(in crate::graph) fn new(labels: &[Label], weigh: Option<LabelWeightFn<'a>>, n_workers: usize) -> Self {
        Self {
            labels: labels.to_vec(),
            weigh,
            log_probs: vec![f64::NAN; labels.len()],
            divergences: vec![f64::NAN; labels.len()],
            grad: false,
            logits: vec![f32::NAN; labels.len()],
            workers: vec![WorkerSums::default(); n_workers],
        }
    }
}
