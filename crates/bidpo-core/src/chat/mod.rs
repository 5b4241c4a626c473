//! Talking to a steered model: one answer ([`Generator`]), a conversation ([`ChatSession`]), its commands ([`Command`]).

mod command;
mod compare;
mod generate;
mod input;
mod printable;
mod session;
mod stats;
mod transcript;
mod utf8;

pub use command::{COMMANDS, Command, CommandError, NOTES};
pub use compare::{Comparison, Side};
pub use generate::{ChatError, GateTrace, GenerateOptions, Generation, Generator, GeneratorParams, StopReason};
pub use input::{is_complete, joined};
pub use printable::{Printable, printable};
pub use session::ChatSession;
pub use stats::{Stats, TokenStats};
pub use transcript::Transcript;
pub use utf8::Utf8Decoder;
