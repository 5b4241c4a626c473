//! `print!`, `println!`, `eprint!` and `eprintln!` of this program. They take the place of the standard library's, which panic
//! where a stream is closed or full.
//!
//! A reader that left (`| head`, a closed pager) has what it wanted: the process ends quietly, with 0. Any other error of stdout
//! is one message and 1. Commands print results after they have saved them, so nothing is lost. Where stderr cannot be written,
//! the work goes on: results do not depend on it.

use std::fmt::Arguments;
use std::io::{ErrorKind, Result, Write};

macro_rules! print {
    ($($text:tt)*) => { $crate::terminal::streams::out(format_args!($($text)*)) };
}
macro_rules! println {
    () => { $crate::terminal::streams::out(format_args!("\n")) };
    ($($text:tt)*) => { $crate::terminal::streams::out(format_args!("{}\n", format_args!($($text)*))) };
}
macro_rules! eprint {
    ($($text:tt)*) => { $crate::terminal::streams::err(format_args!($($text)*)) };
}
macro_rules! eprintln {
    () => { $crate::terminal::streams::err(format_args!("\n")) };
    ($($text:tt)*) => { $crate::terminal::streams::err(format_args!("{}\n", format_args!($($text)*))) };
}

/// Writes to stdout; ends the process where that fails.
pub fn out(text: Arguments<'_>) {
    done(std::io::stdout().lock().write_fmt(text));
}

/// Writes bytes to stdout; ends the process where that fails.
pub fn out_bytes(bytes: &[u8]) {
    done(std::io::stdout().lock().write_all(bytes));
}

/// Hands on what stdout still holds back; ends the process where that fails.
pub fn flush() {
    done(std::io::stdout().lock().flush());
}

/// Writes to stderr where that is possible.
pub fn err(text: Arguments<'_>) {
    let _ = std::io::stderr().lock().write_fmt(text);
}

fn done(written: Result<()>) {
    match written {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => {
            eprintln!("bidpo: cannot write to standard output: {error}");
            std::process::exit(1)
        }
    }
}
