//! The division of traced pairs into batches: a value that planning returns and steps are given.

use std::ops::Range;

/// Division of traced pairs into batches. Batching changes the last bits of gradients, so the plan is part of a run's
/// identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BatchPlan {
    max_tokens: usize,
}

impl BatchPlan {
    /// Each pair is computed alone.
    pub const UNBATCHED: Self = Self { max_tokens: 0 };

    /// Batches of at most `max_tokens` tokens, or of one longer pair; 0: each pair alone.
    pub const fn with_max_tokens(max_tokens: usize) -> Self {
        Self { max_tokens }
    }

    /// Tokens of a batch, at most; 0 where each pair is computed alone.
    pub const fn max_tokens(self) -> usize {
        self.max_tokens
    }

    /// True where pairs are batched at all.
    pub const fn is_batched(self) -> bool {
        self.max_tokens > 0
    }

    /// Divides pairs of so many tokens into batches: ranges of neighbours of about equal size.
    pub fn batches(self, tokens: &[usize]) -> Vec<Range<usize>> {
        let most = self.max_tokens;
        let total: usize = tokens.iter().sum();
        let count = if most == 0 { tokens.len() } else { total.div_ceil(most) }.max(1);
        let largest = tokens.iter().max().copied().unwrap_or(0);
        let limit = most.min(total.div_ceil(count) + largest / 2);
        let mut batches: Vec<Range<usize>> = Vec::new();
        let mut sum = 0;
        for (i, &n) in tokens.iter().enumerate() {
            match batches.last_mut() {
                Some(batch) if sum + n <= limit => {
                    batch.end = i + 1;
                    sum += n;
                }
                _ => {
                    batches.push(i..i + 1);
                    sum = n;
                }
            }
        }
        batches
    }
}

/// A plan with the memory that it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedBatches {
    /// The plan.
    pub plan: BatchPlan,
    /// Bytes of inputs and activations for the gradient of the longest pair alone.
    pub step_bytes: u64,
    /// Estimated bytes of inputs and activations for the gradient of the largest batch; 0 where pairs are not batched.
    pub batch_bytes: u64,
    /// Estimated bytes of inputs and activations for a gradient, by token.
    pub token_bytes: u64,
    /// Tokens of batches that are computed at once, at most: this changes no bit.
    pub tokens_at_once: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batches(tokens: &[usize], most: usize) -> Vec<Range<usize>> {
        BatchPlan::with_max_tokens(most).batches(tokens)
    }

    #[test]
    fn batches_hold_every_pair_within_the_limit() {
        assert_eq!(batches(&[155; 4], 640).first(), Some(&(0..4)));
        assert_eq!(batches(&[155; 5], 640), [0..3, 3..5]);
        assert_eq!(batches(&[10, 700, 10], 640), [0..1, 1..2, 2..3]);
        assert_eq!(batches(&[5, 6], 0), [0..1, 1..2]);
        assert!(batches(&[], 640).is_empty());
        let sizes: Vec<usize> = (0..50).map(|i| 20 + i * 37 % 190).collect();
        let all = batches(&sizes, 640);
        assert_eq!(all.iter().cloned().flatten().collect::<Vec<_>>(), (0..50).collect::<Vec<_>>());
        assert!(all.iter().all(|g| sizes[g.clone()].iter().sum::<usize>() <= 640));
    }
}
