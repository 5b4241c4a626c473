//! `print!`, `println!`, `eprint!` and `eprintln!` of this program. They take the place of the standard library's, which panic
//! where a stream is closed or full, and hands on what a file or a model put into the text: here everything that would steer a
//! terminal is spelled out ([`printable`]).
//!
//! A reader that left (`| head`, a closed pager) has what it wanted: the process ends quietly, with 0. Any other error of stdout
//! is one message and 1. Commands print results after they have saved them, so nothing is lost. Where stderr cannot be written,
//! the work goes on: results do not depend on it.

use super::markdown::Styled;
use bidpo_core::chat::printable;
use std::fmt::{Arguments, Display};
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
    out_bytes(printable(&text.to_string()).as_bytes());
}

/// Writes text with styles to stdout; ends the process where that fails.
pub fn out_styled(text: &Styled) {
    out_bytes(text.as_bytes());
}

/// Writes JSON and a new line to stdout; ends the process where that fails. What would steer a terminal is spelled out as JSON
/// spells it.
pub fn out_json(value: impl Display) {
    out_bytes((json_shown(&value.to_string()) + "\n").as_bytes());
}

fn json_shown(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        // Inside a string these may stand as they are; a line feed stands between values.
        if c != '\n' && printable(c.encode_utf8(&mut [0; 4])).len() > c.len_utf8() {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| text += &format!("\\u{unit:04x}"));
        } else {
            text.push(c);
        }
    }
    text
}

/// Writes bytes as they are to stdout: for files and other programs. It ends the process where that fails.
pub fn out_bytes(bytes: &[u8]) {
    done(std::io::stdout().lock().write_all(bytes));
}

/// Hands on what stdout still holds back; ends the process where that fails.
pub fn flush() {
    done(std::io::stdout().lock().flush());
}

/// Writes to stderr where that is possible.
pub fn err(text: Arguments<'_>) {
    let _ = std::io::stderr().lock().write_all(printable(&text.to_string()).as_bytes());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_the_same_value_and_steers_no_terminal() {
        let all: String = (0..0x3000).filter_map(char::from_u32).chain(['\u{1f600}', '\u{e0001}']).collect();
        let value = serde_json::json!({ "text": all, "list": [1, 2.5, null] });
        for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
            let shown = json_shown(&text);
            assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
            assert_eq!(printable(&shown), shown.as_str());
        }
    }
}
