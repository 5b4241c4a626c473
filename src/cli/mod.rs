//! The commands: flags in, a call into the library, results printed. One file a command.

mod bench;
mod chat;
mod check;
mod columns;
mod data;
mod devices;
mod doctor;
mod eval;
mod extract;
mod first_token;
mod generate;
mod interrupt;
mod judge;
mod report;
mod sampling;
mod serve;
mod steering;
mod sweep;
mod synth;
mod train;
mod vector;
mod worker;

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use bidpo::llama::{GgufFile, Model, ModelParams};
use bidpo::memory;

/// Train BiDPO steering vectors by gradient on the quantized GGUF model you already run, and chat with them.
#[derive(Debug, Parser)]
#[command(name = "bidpo", version, propagate_version = true, max_term_width = 110)]
pub struct Cli {
    /// Print llama.cpp's own log on stderr.
    #[arg(long, global = true)]
    verbose: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a steering vector on preference pairs.
    Train(train::Args),
    /// Answer one prompt, with or without steering.
    Generate(generate::Args),
    /// Chat in the terminal, with a dial for the vector.
    Chat(chat::Args),
    /// Serve a steered model over HTTP: OpenAI's API, steering per request, a web page.
    Serve(serve::Args),
    /// Write the residual stream of a model to a safetensors file.
    Extract(extract::Args),
    /// Measure a model, with or without a vector.
    Eval(Box<eval::Args>),
    /// Try many layers and scales: the best on validation items, reported on test items.
    Sweep(sweep::Args),
    /// Put written answers of `eval` head to head before a judge of your choice.
    Judge(judge::Args),
    /// Compute every figure again from results files; put shards together.
    Report(report::Args),
    /// Look into data files, and split them.
    Data(data::Args),
    /// Check that the engine is right for a model: logits, gradient, reference files.
    Check(check::Args),
    /// Look into control vector files, convert them, add, scale, average and compare them.
    Vector(vector::Args),
    /// Measure speed and memory against llama.cpp itself.
    Bench(bench::Args),
    /// llama.cpp alone, for `bench`.
    #[command(hide = true)]
    FirstToken(first_token::Args),
    /// Write a small random model, for tests and benchmarks.
    Synth(synth::Args),
    /// Show what this build and this machine offer.
    Doctor(doctor::Args),
    /// Let other machines compute on this one's devices (their --rpc).
    Worker(worker::Args),
}

/// Options of every command that loads a model.
#[derive(Debug, Clone, Args)]
pub struct ModelArgs {
    /// The model, a GGUF file.
    #[arg(long, short = 'm', value_name = "FILE.gguf")]
    pub model: PathBuf,
    /// Threads to compute with [default: the machine's cores].
    #[arg(long, short = 't', value_name = "N", env = "BIDPO_THREADS", value_parser = clap::value_parser!(u32).range(1..=512))]
    pub threads: Option<u32>,
    /// Let llama.cpp repack the weights for this CPU, as its own programs do. What needs them as they lie in the file
    /// (training) then keeps a second copy.
    #[arg(long)]
    pub repack: bool,
    #[command(flatten)]
    pub devices: devices::DeviceArgs,
}

impl ModelArgs {
    /// Loads the model, its weights as they lie in the file unless the user wants them repacked.
    pub fn load(&self) -> anyhow::Result<Arc<Model>> {
        let params =
            ModelParams { plain_weights: !self.repack, offload: self.devices.offload(), ..ModelParams::default() };
        let model = Model::load(&self.model, &params)?;
        if model.placement().is_offloaded() {
            eprintln!("{}", model.placement().words());
        }
        Ok(model)
    }

    /// Loads the model to train on it, unless its weights are larger than the memory there is.
    pub fn load_within_memory(&self, allow_swap: bool) -> anyhow::Result<Arc<Model>> {
        // What is no GGUF file, `load` says better.
        // Of a model that goes to devices nobody knows yet how much stays here; the devices say themselves what they lack.
        let here = !allow_swap && !self.devices.offload().offloads()?;
        if let Some(bytes) = GgufFile::weight_bytes(&self.model).ok().filter(|_| here) {
            memory::fits(&self.model, bytes, memory::available())?;
        }
        self.load()
    }

    /// The number of threads to use.
    pub fn threads(&self) -> u32 {
        self.threads.unwrap_or_else(bidpo::llama::default_threads)
    }
}

impl Cli {
    /// Runs the chosen command.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        bidpo::llama::set_verbose(self.verbose);
        match self.command {
            Command::Train(args) => train::run(args),
            Command::Generate(args) => generate::run(args),
            Command::Chat(args) => chat::run(args),
            Command::Serve(args) => serve::run(args),
            Command::Extract(args) => extract::run(args),
            Command::Eval(args) => eval::run(*args),
            Command::Sweep(args) => sweep::run(args),
            Command::Data(args) => data::run(args),
            Command::Judge(args) => judge::run(args),
            Command::Report(args) => report::run(args),
            Command::Check(args) => check::run(args),
            Command::Vector(args) => vector::run(args),
            Command::Bench(args) => bench::run(args),
            Command::FirstToken(args) => first_token::run(args),
            Command::Synth(args) => synth::run(args),
            Command::Doctor(args) => doctor::run(args),
            Command::Worker(args) => worker::run(args),
        }
    }
}

/// An error and its causes in one line. A cause that the text before it already spells out is not said twice: the
/// library's messages are whole sentences that name their source.
pub fn message(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.ends_with(&cause) {
            if !text.is_empty() {
                text += ": ";
            }
            text += &cause;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let error = anyhow::Error::new(bidpo::llama::LlamaError::Read {
            path: "m.gguf".into(),
            source: std::io::Error::other("no such thing"),
        });
        assert_eq!(message(&error), "cannot read m.gguf: no such thing");
        assert_eq!(message(&error.context("loading")), "loading: cannot read m.gguf: no such thing");
    }
}
