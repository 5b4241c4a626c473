//! Text on a terminal: columns, line editing, Markdown, errors, Ctrl-C, and the streams themselves.

#[macro_use]
pub mod streams;

pub mod columns;
pub mod editor;
pub mod interrupt;
pub mod markdown;
mod message;
pub mod transfer;

pub use message::message;
