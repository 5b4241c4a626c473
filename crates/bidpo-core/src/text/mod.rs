//! Text for people: numbers, Markdown tables, templates. Reports, cards and the command use the same.

pub mod numbers;
mod table;
mod template;

pub use table::Table;
pub use template::{TemplateFileError, escape, render};
