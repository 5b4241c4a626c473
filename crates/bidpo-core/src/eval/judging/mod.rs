//! Pairwise comparison of generated answers by a language model.

pub mod pairwise;

pub use pairwise::{PairwiseComparison, PairwiseResult};
