//! Talking to a steered model: one answer ([`Generator`]), a conversation ([`ChatSession`]), its commands ([`Command`]).

mod command;
mod generate;
mod session;
mod utf8;

pub use command::{COMMANDS, Command, CommandError};
pub use generate::{ChatError, GenerateOptions, Generation, Generator, GeneratorParams, StopReason};
pub use session::ChatSession;
pub use utf8::Utf8Pieces;
