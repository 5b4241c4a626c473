//! Pairwise comparison of generated answers by a language model.

mod judge;
pub mod pairwise;

pub use judge::{Judge, JudgeError, Judging, judged_file};
pub use pairwise::{PairwiseComparison, PairwiseResult};
