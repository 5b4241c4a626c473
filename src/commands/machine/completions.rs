//! `bidpo completions` and `bidpo man`: what a shell and `man` know of the command line.

use crate::terminal::streams;
use anyhow::Context as _;
use clap::Command;
use clap_complete::Shell;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of `bidpo completions`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell.
    #[arg(value_name = "bash|zsh|fish|powershell|elvish", hide_possible_values = true)]
    shell: Shell,
}

/// Options of `bidpo man`.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// The folder; it is made where it is not there.
    #[arg(long, short = 'o', value_name = "DIR")]
    out: PathBuf,
}

/// Prints the completions of `command` for a shell.
pub fn run(args: &Args, mut command: Command) -> anyhow::Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "bidpo", &mut text);
    streams::out_bytes(&text);
    Ok(ExitCode::SUCCESS)
}

/// Writes a manual page for `command` and each of its commands.
pub fn man(args: &ManArgs, mut command: Command) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(&args.out).with_context(|| format!("making the folder {}", args.out.display()))?;
    command.build();
    let written = pages(&command, "bidpo", &args.out)?;
    eprintln!("{written} manual pages in {}", args.out.display());
    Ok(ExitCode::SUCCESS)
}

fn pages(command: &Command, name: &str, folder: &Path) -> anyhow::Result<usize> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    let path = folder.join(format!("{name}.1"));
    ggml_grad::files::write_atomically(&path, &page).with_context(|| format!("writing {}", path.display()))?;
    let mut written = 1;
    for sub in command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
        written += pages(sub, &format!("{name}-{}", sub.get_name()), folder)?;
    }
    Ok(written)
}
