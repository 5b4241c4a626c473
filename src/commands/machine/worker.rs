//! `bidpo worker`: this machine's devices for `--rpc` of another one.

use ggml_grad::llama::{default_threads, resolve_endpoint, serve_devices};
use std::process::ExitCode;

/// Options of `bidpo worker`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address to listen on. The protocol has no authentication and no encryption: use loopback or a private network.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:50052")]
    listen: String,
    /// Devices to offer (see `bidpo doctor`) [default: every GPU, or the CPU if there is none]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    device: Vec<String>,
    /// Number of threads of the CPU device [default: the physical cores that it may use]
    #[arg(long, short = 't', value_name = "N", env = "BIDPO_THREADS", value_parser = clap::value_parser!(u32).range(1..=512))]
    threads: Option<u32>,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let addresses = resolve_endpoint(&args.listen)?;
    if !addresses.iter().all(|a| a.ip().is_loopback()) {
        eprintln!(
            "WARNING: {} can be reached from other machines, and the protocol has no authentication: whoever reaches it \
             reads and writes this program's memory. Use it on a network of your own, or through an SSH tunnel to a \
             worker on 127.0.0.1.",
            args.listen
        );
    }
    eprintln!("one client at a time; Ctrl-C ends");
    serve_devices(&args.listen, &args.device, args.threads.unwrap_or_else(default_threads))?;
    Ok(ExitCode::FAILURE)
}
