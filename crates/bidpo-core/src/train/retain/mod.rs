//! Retention: texts on which the intervention should change nothing.
//!
//! With KL_t the divergence KL(unsteered || steered) of the next-token distribution at position t, a step's loss is the mean
//! loss of its pairs plus
//!
//! `w mean_t KL_t`
//!
//! over the positions of some retained texts. w is fixed, or follows a budget B by dual ascent on the constraint
//! `mean_t KL_t <= b`, b = 0.9 B, with a term in proportion to the violation (Stooke et al. 2020, arXiv 2007.03964, section 4:
//! dual ascent alone integrates, and swings). With r = mean_t KL_t / b of the step, at most [`MOST`], the step's weight is `r w`, and then
//!
//! `w <- w exp(eta (min(r, 4) - 1))`, eta = [`UP`] where r > 1, [`DOWN`] otherwise:
//!
//! dual ascent in log w, so that w stays positive and a beginning that is far off is found in few steps. In equilibrium r is 1, and w is the
//! constraint's multiplier. b is below B, for r swings about 1.

mod texts;

pub use texts::{ANSWER, LONGEST, RetainError, RetainItem, RetainSet};

use crate::data::permutation;
use crate::train::pairs::NamedPair;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Step of the dual ascent above the aim.
const UP: f64 = 0.1;
/// And below it: a run begins with no divergence at all.
const DOWN: f64 = 0.03;
/// Part of the budget that the weight aims at.
const AIM: f64 = 0.9;
/// A batch of texts counts as at most so many times the aim: one odd text must not decide the run.
const MOST: f64 = 10.0;

/// Settings of retention.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Retain {
    /// Weight of the divergence in the loss; with a budget, the weight that the run begins with.
    pub weight: f64,
    /// Largest divergence wanted, nats a token.
    pub budget: Option<f64>,
    /// Texts in a step; `None` for half as many as there are pairs in it.
    pub texts: Option<usize>,
}

impl Retain {
    /// The default weight.
    pub const WEIGHT: f64 = 1.0;

    /// The divergence in aims; `None` without a budget.
    fn ratio(&self, kl: f64) -> Option<f64> {
        self.budget.map(|budget| (kl / (AIM * budget)).min(MOST))
    }

    /// The weight in a step that measures this divergence, nats a token.
    pub fn step_weight(&self, weight: f64, kl: f64) -> f64 {
        self.ratio(kl).map_or(weight, |r| r * weight)
    }

    /// The weight after that step.
    pub fn next_weight(&self, weight: f64, kl: f64) -> f64 {
        let grown = |r: f64| weight * ((if r > 1.0 { UP } else { DOWN }) * (r.min(4.0) - 1.0)).exp();
        self.ratio(kl).map_or(weight, grown)
    }

    /// How far a divergence is above the budget, in budgets; 0 within it.
    pub fn excess(&self, kl: f64) -> f64 {
        self.budget.map_or(0.0, |budget| (kl / budget - 1.0).max(0.0))
    }

    /// Texts in a step, where there are `n` and a step has `batch` pairs.
    pub fn texts_of(&self, n: usize, batch: usize) -> usize {
        self.texts.unwrap_or(batch.div_ceil(2)).clamp(1, n.max(1))
    }

    /// As a run's identity has it.
    pub(in crate::train) fn identity(&self) -> String {
        format!("{:?} {:?} {:?}", self.weight, self.budget, self.texts)
    }
}

/// What a run reached on the retained texts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Retained {
    /// Mean divergence of the finished intervention, nats a token, over the directions of validation.
    pub kl: f64,
    /// Texts.
    pub texts: usize,
    /// Predictions compared.
    pub predictions: usize,
    /// The weight at the end.
    pub weight: f64,
    /// The budget, nats a token.
    pub budget: Option<f64>,
}

impl Retained {
    /// Whether the budget was met; `None` without one.
    pub fn met(&self) -> Option<bool> {
        self.budget.map(|budget| self.kl <= budget)
    }

    /// In one sentence.
    pub fn in_words(&self) -> String {
        let budget = match (self.budget, self.met()) {
            (Some(budget), Some(true)) => format!(", within the budget of {budget}"),
            (Some(budget), _) => format!(", ABOVE the budget of {budget}"),
            _ => String::new(),
        };
        format!(
            "On the {} retained text{} ({} predictions) KL(unsteered || steered) is {:.4} nats a token{budget}; the weight of \
             that divergence in the loss was {} at the end.",
            self.texts,
            if self.texts == 1 { "" } else { "s" },
            self.predictions,
            self.kl,
            crate::text::numbers::fixed(self.weight, 3)
        )
    }
}

/// Texts of the step after `step` steps, of `n`, `k` at a time, and whether the intervention is applied to them in the opposite
/// direction: every other step where `both`. They depend on seed and step alone, so that a resumed run meets the same.
pub(in crate::train) fn texts_of_step(seed: u64, step: usize, n: usize, k: usize, both: bool) -> (Vec<usize>, bool) {
    let pass = |i: usize| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(u64::MAX - i as u64);
        permutation(n, rng.next_u64())
    };
    // Where both directions take turns, each meets all texts.
    let turn = if both { step / 2 } else { step };
    let (mut texts, mut at) = (Vec::with_capacity(k), turn * k);
    while texts.len() < k {
        let order = pass(at / n);
        let from = at % n;
        let take = (n - from).min(k - texts.len());
        texts.extend_from_slice(&order[from..from + take]);
        at += take;
    }
    texts.sort_unstable();
    texts.dedup();
    (texts, both && step % 2 == 1)
}

/// SHA-256 of retained texts' tokens, hexadecimal; `None` for no text.
pub fn retained_sha256(texts: &[NamedPair]) -> Option<String> {
    let mut hash = Sha256::new();
    for part in texts.iter().flat_map(|t| [&t.tokens.prompt, &t.tokens.chosen]) {
        hash.update((part.len() as u64).to_le_bytes());
        part.iter().for_each(|t| hash.update(t.to_le_bytes()));
    }
    (!texts.is_empty()).then(|| ggml_grad::files::hex(&hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_weight_follows_the_budget() {
        let fixed = Retain { weight: 2.0, budget: None, texts: None };
        assert_eq!(fixed.next_weight(2.0, 5.0), 2.0);
        let retain = Retain { weight: 2.0, budget: Some(0.1), texts: None };
        assert!((retain.next_weight(3.0, 0.09) - 3.0).abs() < 1e-12);
        assert!((retain.next_weight(3.0, 0.18) - 3.0 * UP.exp()).abs() < 1e-12);
        assert!((retain.next_weight(3.0, 0.0) - 3.0 * (-DOWN).exp()).abs() < 1e-12);
        assert!((retain.step_weight(2.0, 0.18) - 4.0).abs() < 1e-12 && fixed.step_weight(2.0, 5.0) == 2.0);
        // One odd text: at most ten times the aim.
        assert_eq!(retain.step_weight(1.0, 1e9), 10.0);
        assert_eq!(retain.next_weight(1.0, 1e9), retain.next_weight(1.0, 1.0));
        assert_eq!((retain.excess(0.1), fixed.excess(9.0)), (0.0, 0.0));
        assert!((retain.excess(0.15) - 0.5).abs() < 1e-12);
    }

    /// The known solution of a problem with a constraint: the least (x - 1)^2 with x^2 <= b is at x = sqrt(b), where the
    /// multiplier of x^2 is 1 / sqrt(b) - 1.
    #[test]
    fn dual_ascent_finds_the_multiplier() {
        let retain = Retain { weight: 1.0, budget: Some(0.25 / AIM), texts: None };
        let (mut x, mut w) = (0.0f64, retain.weight);
        for _ in 0..4000 {
            x -= 0.02 * (2.0 * (x - 1.0) + retain.step_weight(w, x * x) * 2.0 * x);
            w = retain.next_weight(w, x * x);
        }
        assert!((x - 0.5).abs() < 1e-2 && (w - 1.0).abs() < 5e-2, "x {x}, w {w}");
    }

    #[test]
    fn every_text_has_its_turn() {
        for both in [false, true] {
            let mut seen = [0; 10];
            let steps = if both { 10 } else { 5 };
            for step in 0..steps {
                let (texts, opposite) = texts_of_step(3, step, 10, 4, both);
                assert_eq!(opposite, both && step % 2 == 1);
                assert_eq!(texts, texts_of_step(3, step, 10, 4, both).0);
                texts.iter().for_each(|&t| seen[t] += 1);
            }
            // Five steps of four: each of ten texts twice, but for repeats within a step at the end of a pass.
            assert!(seen.iter().all(|&n| (1..=2 * steps / 5).contains(&n)), "{seen:?}");
        }
        assert_ne!(texts_of_step(1, 0, 50, 4, false).0, texts_of_step(2, 0, 50, 4, false).0);
        assert_eq!(texts_of_step(0, 7, 1, 1, true).0, [0]);
    }
}
