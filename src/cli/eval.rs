//! `bidpo eval`.

use std::process::ExitCode;

/// Options of `bidpo eval`.
#[derive(Debug, clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
