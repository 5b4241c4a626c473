//! The `bidpo` command: parse, dispatch, exit codes. 0 done, 1 failed, 2 wrong usage.

#![allow(rustdoc::bare_urls)] // the documentation of a flag is its help text
#![allow(unreachable_pub)] // nothing is reachable from outside a program

// First: it defines the macros with which the others print.
#[macro_use]
mod terminal;

mod args;
mod commands;

use std::process::ExitCode;

fn main() -> ExitCode {
    bidpo_core::guard::quiet_guarded_panics();
    match commands::Cli::read(std::env::args_os()).run() {
        Ok(code) => {
            terminal::streams::flush();
            code
        }
        Err(error) => {
            eprintln!("bidpo: {}", terminal::message(&error));
            ExitCode::FAILURE
        }
    }
}
