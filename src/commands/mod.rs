//! The commands: flags in, a call into the library, results printed. One file a command; rooms for
//! those that belong together.

mod chat;
mod data;
mod demo;
mod extract;
mod generate;
mod machine;
mod measure;
mod merge;
mod models;
mod serve;
mod template;
mod train;
mod vector;
mod verify;

use self::machine::{bench, check, completions, doctor, first_token, probe, self_test, synth, worker};
use self::measure::{calibrate, eval, judge, report, sweep};
use crate::args::habits;
use crate::args::headings::grouped;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::process::ExitCode;

/// Train BiDPO steering vectors by gradient on the quantized GGUF model you already run, and chat with them.
#[derive(Debug, Parser)]
#[command(name = "bidpo", version, propagate_version = true, max_term_width = 110)]
pub struct Cli {
    /// Print llama.cpp's own log on stderr.
    #[arg(long, global = true)]
    verbose: bool,
    /// Replace an existing output file that bidpo did not write.
    #[arg(long, global = true, hide = true)]
    force: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a vector on a small model and turn dials: a tour of some minutes.
    Demo(demo::Args),
    /// List, fetch and verify models.
    Models(models::Args),
    /// Train a steering vector on preference pairs.
    Train(Box<train::Args>),
    /// Measure the range of scales within which a vector leaves neutral text nearly as it is.
    Calibrate(calibrate::Args),
    /// Answer one prompt, with or without steering.
    Generate(generate::Args),
    /// Chat in the terminal and change the steering strength as you go.
    Chat(chat::Args),
    /// Serve a model over HTTP: OpenAI's API, steering for each request, a web page.
    Serve(serve::Args),
    /// Show the text and the tokens that a model gets of a chat or a preference pair.
    Template(template::Args),
    /// Write the residual stream of a model to a safetensors file.
    Extract(extract::Args),
    /// Evaluate a model with and without a vector: multiple choice, open-ended generation, text.
    Eval(Box<eval::Args>),
    /// Sweep layers and scales: choose on validation items, report on test items.
    Sweep(sweep::Args),
    /// Compare generated answers of `eval` pairwise with a judge of your choice.
    Judge(judge::Args),
    /// Recompute all metrics from results files; merge shards.
    Report(report::Args),
    /// Inspect data files, convert and split them; fetch the files of benchmarks.
    Data(data::Args),
    /// Verify the engine on a model: logits, gradients, reference files.
    Check(check::Args),
    /// Inspect, convert, add, scale, average and compare control vector files.
    Vector(vector::Args),
    /// Write a model with LoRA adapters merged into its weights, and measure what quantizing again costs.
    Merge(merge::Args),
    /// Check what anyone's vector or LoRA adapter does on a model: its parts, its strength, its sign, its layers.
    Verify(verify::Args),
    /// Benchmark speed and memory against llama.cpp.
    Bench(bench::Args),
    /// llama.cpp alone, for `bench`.
    #[command(hide = true)]
    FirstToken(first_token::Args),
    /// A trial run of a model file.
    #[command(hide = true, name = "probe-model")]
    Probe(probe::Args),
    /// Write a small random model, for tests and benchmarks.
    Synth(synth::Args),
    /// Report CPU features, devices and settings of this build and machine.
    Doctor(doctor::Args),
    /// Check this build on this machine: the engine on small random models, in seconds.
    SelfTest(self_test::Args),
    /// Print the completions of a shell for this command line.
    Completions(completions::Args),
    /// Write manual pages, one for each command.
    Man(completions::ManArgs),
    /// Offer this machine's devices to other machines (their --rpc).
    Worker(worker::Args),
}

impl Cli {
    /// Reads the command line. A wrong one, `--help` and `--version` end the program.
    pub fn read(args: impl IntoIterator<Item = OsString>) -> Self {
        let mut command = grouped(Self::command());
        let args: Vec<OsString> = args.into_iter().collect();
        let verbose = args.iter().any(|a| a == "--verbose");
        let scaled = args.iter().any(|a| a == "-s");
        let args = habits::translate(args, &command).unwrap_or_else(|unknown| {
            let mut of = &mut command;
            of.build();
            for name in &unknown.path {
                of = of.find_subcommand_mut(name).expect("the command line named it");
            }
            of.error(clap::error::ErrorKind::UnknownArgument, unknown.hint).exit()
        });
        let read = command.try_get_matches_from_mut(args).and_then(|matches| Self::from_arg_matches(&matches));
        read.unwrap_or_else(|error| {
            let error = with_model_hint(error).format(&mut command);
            // Help and version are results: a full disk is an error there too.
            if !error.use_stderr() {
                if verbose && error.kind() == clap::error::ErrorKind::DisplayVersion {
                    print!("{}", doctor::build());
                    crate::terminal::streams::flush();
                    std::process::exit(0);
                }
                let text = error.render();
                if std::io::stdout().is_terminal() {
                    crate::terminal::streams::out_bytes(text.ansi().to_string().as_bytes());
                } else {
                    print!("{text}");
                }
                crate::terminal::streams::flush();
                std::process::exit(0);
            }
            if scaled && error.kind() == clap::error::ErrorKind::MissingRequiredArgument {
                eprint!("{}", error.render());
                eprintln!("note: -s is the scale of a vector; a seed is given with --seed");
                std::process::exit(2);
            }
            error.exit()
        })
    }

    /// Runs the chosen command.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        ggml_grad::llama::set_verbose(self.verbose);
        crate::args::outputs::set_force(self.force);
        match self.command {
            Command::Demo(args) => demo::run(args),
            Command::Models(args) => models::run(args),
            Command::Train(args) => train::run(*args),
            Command::Calibrate(args) => calibrate::run(args),
            Command::Generate(args) => generate::run(args),
            Command::Chat(args) => chat::run(args),
            Command::Serve(args) => serve::run(args),
            Command::Template(args) => template::run(args),
            Command::Extract(args) => extract::run(args),
            Command::Eval(args) => eval::run(*args),
            Command::Sweep(args) => sweep::run(args),
            Command::Data(args) => data::run(args),
            Command::Judge(args) => judge::run(args),
            Command::Report(args) => report::run(args),
            Command::Check(args) => check::run(args),
            Command::Vector(args) => vector::run(args),
            Command::Merge(args) => merge::run(args),
            Command::Verify(args) => verify::run(args),
            Command::Bench(args) => bench::run(args),
            Command::FirstToken(args) => first_token::run(args),
            Command::Probe(args) => probe::run(args),
            Command::Synth(args) => synth::run(args),
            Command::Doctor(args) => doctor::run(args),
            Command::SelfTest(args) => self_test::run(args),
            Command::Completions(args) => completions::run(&args, grouped(Self::command())),
            Command::Man(args) => completions::man(&args, grouped(Self::command())),
            Command::Worker(args) => worker::run(args),
        }
    }
}

/// The error with a hint, where it is about a missing `--model`: a first run has none.
fn with_model_hint(mut error: clap::Error) -> clap::Error {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    let lacks_model = matches!(
        error.get(ContextKind::InvalidArg),
        Some(ContextValue::Strings(missing)) if missing.iter().any(|arg| arg.starts_with("--model "))
    );
    if error.kind() == ErrorKind::MissingRequiredArgument && lacks_model {
        let tips = [
            "`bidpo models` lists the models that are here: --model takes a part of a name, or a GGUF file",
            "`bidpo models fetch smollm2` fetches a small one, and `bidpo demo` shows what can be done with it",
        ];
        let tips = tips.into_iter().map(Into::into).collect();
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
    }
    error
}
