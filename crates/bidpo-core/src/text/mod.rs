//! Text for people: numbers, Markdown tables, templates. Reports, cards and the command use the same.

mod negation;
pub mod numbers;
mod table;
mod template;

pub use negation::{is_negated, is_negation, words};
pub use table::Table;
pub use template::{TemplateFileError, escape, render};
