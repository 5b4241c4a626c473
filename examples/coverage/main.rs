//! Writes the tables of docs/evaluation.md on coverage, false claims and power:
//!
//! ```sh
//! cargo run --release --example coverage                                   # print them
//! cargo run --release --example coverage -- --write docs/evaluation.md     # put them between the marks of that page
//! ```
//!
//! `--replicates N` (default 10000) and `--seed N` (0) set the simulation. No model is needed.

#[allow(unreachable_pub)] // shared with tests/coverage.rs
mod simulation;

use std::process::ExitCode;

const BEGIN: &str = "<!-- coverage: begin -->\n";
const END: &str = "<!-- coverage: end -->\n";

fn number(arguments: &[String], name: &str, default: u64) -> Result<u64, String> {
    let Some(at) = arguments.iter().position(|a| a == name) else { return Ok(default) };
    let value = arguments.get(at + 1).ok_or(format!("{name} needs a number"))?;
    value.parse().map_err(|_| format!("{name} {value:?}: not a whole number"))
}

fn run(arguments: &[String]) -> Result<(), String> {
    let replicates = number(arguments, "--replicates", 10_000)?.max(1) as usize;
    let tables = simulation::markdown(replicates, number(arguments, "--seed", 0)?);
    let Some(at) = arguments.iter().position(|a| a == "--write") else {
        print!("{tables}");
        return Ok(());
    };
    let path = arguments.get(at + 1).ok_or("--write needs a file")?;
    let page = std::fs::read_to_string(path).map_err(|e| format!("cannot read {path}: {e}"))?;
    let (before, rest) = page.split_once(BEGIN).ok_or(format!("{path} has no line {}", BEGIN.trim()))?;
    let (_, after) = rest.split_once(END).ok_or(format!("{path} has no line {}", END.trim()))?;
    let page = format!("{before}{BEGIN}\n{tables}\n{END}{after}");
    ggml_grad::files::write_atomically(path.as_ref(), page.as_bytes()).map_err(|e| format!("cannot write {path}: {e}"))
}

fn main() -> ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("coverage: {error}");
            ExitCode::FAILURE
        }
    }
}
