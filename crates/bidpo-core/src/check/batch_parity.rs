//! Pairs in one batch, as in a training step, against each pair alone.

use super::difference::random_vector;
use crate::data::TokenizedPair;
use crate::engine::{Engine, EngineError, NotBatched, TracedPair};
use crate::numbers::cosine;
use serde::Serialize;

/// Least cosine of a batch's gradient to the sum of its pairs' own: the backward pass rounds to 16 bits. 0.99999 is usual.
pub const BATCH_COSINE: f64 = 0.999;

/// Difference between a batch and its pairs alone.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BatchParity {
    /// Largest difference of a response's log-probability, in nats. Equality is required.
    pub log_probability: f64,
    /// Cosine of the angle between the gradients, summed over the pairs.
    pub cosine: f64,
    /// Tokens of the pairs.
    pub rows: usize,
    /// Tokens that were computed: shared prefixes count once.
    pub joined_rows: usize,
}

impl BatchParity {
    /// Written so that NaN fails.
    pub fn passed(&self) -> bool {
        self.log_probability == 0.0 && self.cosine >= BATCH_COSINE
    }
}

/// Result of the check of batches.
#[derive(Debug, Clone, PartialEq)]
pub enum BatchCheck {
    /// The pairs were batched.
    Compared(BatchParity),
    /// They are computed one by one.
    Skipped(SkipReason),
}

/// Why batches were not checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SkipReason {
    /// One pair is no batch.
    #[error("batched pairs need at least 2 pairs, got {0}")]
    TooFew(usize),
    /// Pairs of this model are not batched.
    #[error(transparent)]
    NotBatched(#[from] NotBatched),
    /// Inputs that cannot be joined.
    #[error("their graphs have inputs that cannot be joined")]
    Inputs,
}

impl BatchCheck {
    /// The comparison.
    pub fn parity(&self) -> Option<&BatchParity> {
        match self {
            Self::Compared(parity) => Some(parity),
            Self::Skipped(_) => None,
        }
    }

    /// Why there is none.
    pub fn skipped(&self) -> Option<&SkipReason> {
        match self {
            Self::Compared(_) => None,
            Self::Skipped(reason) => Some(reason),
        }
    }
}

/// Compares a batch with its pairs alone.
pub(super) fn batch_parity(engine: &mut Engine, pairs: &[&TokenizedPair]) -> Result<BatchCheck, EngineError> {
    if pairs.len() < 2 {
        return Ok(BatchCheck::Skipped(SkipReason::TooFew(pairs.len())));
    }
    if let Err(reason) = engine.batches_pairs() {
        return Ok(BatchCheck::Skipped(reason.into()));
    }
    let traced = pairs.iter().map(|pair| engine.trace(pair)).collect::<Result<Vec<_>, _>>()?;
    let members: Vec<&TracedPair> = traced.iter().collect();
    let Some(joined) = engine.join(&members)? else {
        return Ok(BatchCheck::Skipped(SkipReason::Inputs));
    };
    let at = random_vector(engine, traced[0].as_ref(), 1);
    let batch = engine.run_batch(&members, &at, Some(&|_| 1.0))?;
    let mut parity = BatchParity {
        log_probability: 0.0,
        cosine: 0.0,
        rows: traced.iter().map(TracedPair::n_tokens).sum(),
        joined_rows: joined.n_tokens(),
    };
    let mut sum = vec![0.0; batch.grad.len()];
    for (pair, batched) in traced.iter().zip(&batch.logp) {
        let alone = engine.run(pair, &at, true)?;
        let differences =
            [alone.logp[0].chosen - batched.chosen, alone.logp[0].rejected - batched.rejected].map(f64::abs);
        for d in differences {
            // NaN stays NaN.
            parity.log_probability = if d > parity.log_probability || d.is_nan() { d } else { parity.log_probability };
        }
        sum.iter_mut().zip(&alone.grads[0]).for_each(|(sum, g)| *sum += g);
    }
    parity.cosine = cosine(&batch.grad, &sum);
    Ok(BatchCheck::Compared(parity))
}
