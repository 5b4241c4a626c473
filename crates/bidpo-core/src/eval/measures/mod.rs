//! Measures: from the record of one item to its value. No model is needed here.

pub mod degeneration;
pub mod measure;
pub mod ngram;

pub use measure::{Kind, Measure};
pub use ngram::NgramMetric;
