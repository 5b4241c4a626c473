//! The `bidpo` command: parse, dispatch, exit codes. 0 done, 1 failed, 2 wrong usage.

mod cli;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bidpo: {}", cli::message(&error));
            ExitCode::FAILURE
        }
    }
}
