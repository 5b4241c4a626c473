//! `bidpo probe-model`, hidden: a trial run of a model file, in a process of its own (see `args/probe.rs`).

use ggml_grad::llama::{Batch, Context, ContextParams, Model, ModelParams, Sampler, SamplerParams};
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `bidpo probe-model`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The model.
    model: PathBuf,
}

/// Characters of one to four bytes.
const TEXT: &str = "The caf\u{e9} \u{65e5} \u{1f44b}\n";

/// Loads the model and computes a few tokens, as a prompt and one by one. The exit code is 0 unless ggml ends the process:
/// errors are for the command that was asked for, which will meet them too.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Ok(model) = Model::load(&args.model, &ModelParams::default()) else { return Ok(ExitCode::SUCCESS) };
    let trial = || -> anyhow::Result<()> {
        let params = ContextParams { n_ctx: 64, n_batch: 64, n_threads: 1, ..ContextParams::default() };
        for flash_attention in [true, false] {
            let mut ctx = Context::new(&model, &ContextParams { flash_attention, ..params.clone() })?;
            let mut tokens = model.tokenize(TEXT, true, false).unwrap_or_default();
            tokens.truncate(16);
            tokens.extend([0, model.n_vocab() as i32 - 1]);
            let mut row = ctx.prefill(&tokens, 0)?;
            let mut sampler = Sampler::new(model.n_vocab(), &SamplerParams::default());
            for at in 0..2 {
                let token = sampler.sample(&ctx, row)?;
                model.token_bytes(token, true);
                let mut batch = Batch::new();
                row = batch.add(token, tokens.len() + at, &[0], true);
                ctx.decode(&batch)?;
            }
        }
        Ok(())
    };
    let _ = trial();
    Ok(ExitCode::SUCCESS)
}
