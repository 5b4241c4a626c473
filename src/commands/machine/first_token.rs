//! `bidpo first-token`, hidden: llama.cpp alone, for `bidpo bench` to compare the start of `generate` with.

use std::process::ExitCode;

/// Options of `bidpo first-token`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: crate::args::ModelArgs,
    /// The text to go on from, special tokens written out.
    #[arg(long, allow_hyphen_values = true)]
    text: String,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let bytes = ggml_grad::llama::first_token(&args.model.model, &args.text, args.model.threads())?;
    crate::terminal::streams::out_bytes(&bytes);
    crate::terminal::streams::flush();
    println!();
    Ok(ExitCode::SUCCESS)
}
