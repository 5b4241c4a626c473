//! Runs: items under conditions, from the model into records.

mod choice;
mod error;
mod generate;
mod pending;
mod session;
mod text;

pub use choice::Measurement;
pub use error::RunError;
pub use generate::{Generation, GenerationOptions};
pub use pending::{Pending, Runner, Sink};
pub use session::{Ended, Progress, Session, new_manifest};
pub(in crate::eval) use text::TextScorer;
pub use text::{BEGINNING, TextRun, Window, Windows};
