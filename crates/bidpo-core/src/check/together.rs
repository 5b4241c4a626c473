//! Pairs computed together, as training computes those of a step, against each by itself.

use super::difference::random_vector;
use crate::data::TokenizedPair;
use crate::engine::{Engine, EngineError, TracedPair};
use crate::numbers::cosine;

/// Least cosine of the gradient of joined pairs to the sum of their own: the backward pass rounds to 16 bits. 0.99999 is
/// usual.
pub const TOGETHER_COSINE: f64 = 0.999;

/// What joining pairs changes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Together {
    /// Largest difference of a response's log-probability, in nats. Equality is demanded.
    pub log_probability: f64,
    /// Cosine of the angle between the gradients, summed over the pairs.
    pub cosine: f64,
    /// Rows of the pairs.
    pub rows: usize,
    /// Rows that were computed.
    pub joined_rows: usize,
}

impl Together {
    /// Written so that NaN fails.
    pub fn passed(&self) -> bool {
        self.log_probability == 0.0 && self.cosine >= TOGETHER_COSINE
    }
}

/// Compares; the inner error says why pairs are not joined on this model.
pub(super) fn together(engine: &mut Engine, pairs: &[&TokenizedPair]) -> Result<Result<Together, String>, EngineError> {
    if pairs.len() < 2 {
        return Ok(Err("there is one pair only".into()));
    }
    if let Err(reason) = engine.batches_pairs() {
        return Ok(Err(reason.to_string()));
    }
    let examples = pairs.iter().map(|pair| engine.trace(pair)).collect::<Result<Vec<_>, _>>()?;
    let members: Vec<&TracedPair> = examples.iter().collect();
    let Some(joined) = engine.join(&members)? else {
        return Ok(Err("their graphs have inputs that cannot be put together".into()));
    };
    let at = random_vector(engine, examples[0].as_ref(), 1);
    let batch = engine.run_batch(&members, &at, Some(&|_| 1.0))?;
    let mut found = Together {
        log_probability: 0.0,
        cosine: 0.0,
        rows: examples.iter().map(TracedPair::n_tokens).sum(),
        joined_rows: joined.n_tokens(),
    };
    let mut sum = vec![0.0; batch.grad.len()];
    for (example, together) in examples.iter().zip(&batch.logp) {
        let alone = engine.run(example, &at, true)?;
        let differences =
            [alone.logp[0].chosen - together.chosen, alone.logp[0].rejected - together.rejected].map(f64::abs);
        for d in differences {
            // What is no number stays none.
            found.log_probability = if d > found.log_probability || d.is_nan() { d } else { found.log_probability };
        }
        sum.iter_mut().zip(&alone.grads[0]).for_each(|(sum, g)| *sum += g);
    }
    found.cosine = cosine(&batch.grad, &sum);
    Ok(Ok(found))
}
