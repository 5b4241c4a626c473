//! Runs: items under conditions, from the model into records.

pub mod choice;
pub mod generate;
pub mod text;

pub use choice::{Measurement, RunError};
pub use generate::{Generation, GenerationOptions};
pub use text::Windows;
