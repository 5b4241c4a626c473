//! `bidpo serve`: a server with OpenAI's HTTP API, steering per request, and a web page.

use crate::args::names;
use crate::args::steering::{Scale, VectorArg, each_lora};
use crate::args::template::VariableArgs;
use anyhow::{Context as _, anyhow, bail, ensure};
use bidpo_core::chat::Generator;
use bidpo_core::data::{TemplateChoice, Think};
use bidpo_serve::{Limits, LogSink, ModelNames, ServeOptions, Server, VectorStore, offered_adapter};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Options of `bidpo serve`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: crate::args::ModelArgs,
    /// Directory of control vectors (GGUF); requests name them without the extension.
    #[arg(long, value_name = "DIR")]
    vectors: Option<PathBuf>,
    /// LoRA adapter (GGUF) that acts at scale 1 on requests that do not name it; FILE:SCALE gives another scale (0: only where a
    /// request asks). Requests dial it as a vector, by name, or by llama-server's field lora. Can be repeated.
    #[arg(long = "lora", value_name = "FILE.gguf[:SCALE]")]
    loras: Vec<VectorArg>,
    /// Address to listen on; 0.0.0.0 accepts other machines.
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Port; 0 picks a free one.
    #[arg(long, value_name = "N", default_value_t = 8080)]
    port: u16,
    /// Model name for clients [default: the file name without .gguf]. NAME=MODEL@VECTOR:SCALE,... is another name for the
    /// steered model (short=@honest:1.5). Can be repeated.
    #[arg(long = "alias", value_name = "NAME[=MODEL@VECTOR:SCALE]")]
    aliases: Vec<String>,
    /// Chat format: auto (the model's own), none, chatml, llama2, llama3, gemma, mistral, zephyr, phi3, or a Jinja file.
    #[arg(long, value_name = "T", default_value_t = TemplateChoice::Auto)]
    template: TemplateChoice,
    #[command(flatten)]
    variables: VariableArgs,
    /// Sequences computed at once, each with a separate KV cache.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    slots: u16,
    /// Context of a sequence in tokens, prompt and answer [default: the model's training context, at most 4096].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(8..=1_048_576))]
    ctx: Option<u32>,
    /// Refuse requests with unknown parameters (default: ignore and name them in the header x-bidpo-warning).
    #[arg(long)]
    strict_api: bool,
    /// Answer a chat that ends with the assistant's message with a new message (default: continue that message; a request
    /// decides with continue_final_message or add_generation_prompt).
    #[arg(long)]
    no_prefill_assistant: bool,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    access: AccessArgs,
}

/// Limits of a request.
#[derive(Debug, clap::Args)]
struct LimitArgs {
    /// Sequences that may wait for a slot; further requests get status 429.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    queue: u32,
    /// Maximum size of a request body in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20, value_parser = clap::value_parser!(u64).range(1024..=1 << 30))]
    max_body: u64,
    /// Maximum number of prompt tokens [default: --ctx].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_prompt: Option<u32>,
    /// Maximum number of answer tokens [default: --ctx].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_output: Option<u32>,
    /// Seconds that running answers may take to finish after Ctrl-C or SIGTERM; a second signal cancels them at once.
    #[arg(long, value_name = "S", default_value_t = 30)]
    grace: u64,
}

/// Access control.
#[derive(Debug, clap::Args)]
struct AccessArgs {
    /// API key that clients must send ("Authorization: Bearer KEY"). Can be repeated.
    #[arg(long = "api-key", value_name = "KEY", env = "BIDPO_API_KEY", hide_env_values = true)]
    api_keys: Vec<String>,
    /// File of API keys, one per line (other users of the machine can read the command line).
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Site whose pages may call this server (CORS), such as https://example.org; * for all. Can be repeated.
    #[arg(long = "cors-origin", value_name = "ORIGIN")]
    origins: Vec<String>,
    /// Additional Host name to accept while listening on loopback (behind a proxy). Can be repeated.
    #[arg(long = "allow-host", value_name = "NAME")]
    hosts: Vec<String>,
}

impl AccessArgs {
    fn keys(&self) -> anyhow::Result<Vec<String>> {
        let mut keys = self.api_keys.clone();
        if let Some(file) = &self.api_key_file {
            let text = ggml_grad::files::read_text(file).with_context(|| format!("cannot read {}", file.display()))?;
            keys.extend(text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned));
            ensure!(!keys.is_empty(), "{} holds no API key: write one per line", file.display());
        }
        ensure!(keys.iter().all(|k| !k.trim().is_empty()), "an API key is empty");
        Ok(keys)
    }
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let keys = args.access.keys()?;
    let open_to_others = !args.host.is_loopback() && keys.is_empty();
    let model = args.model.load()?;
    let template = args.variables.open(&model, &args.template, Think::Auto)?;
    let n_threads = args.model.threads();
    let mut notices = Vec::new();
    let mut vectors = match &args.vectors {
        Some(folder) => VectorStore::load(folder, &model, &template, n_threads, &mut notices)?,
        None => VectorStore::empty(&model),
    };
    for VectorArg { path, scale } in &each_lora(&args.loras)? {
        let Scale::Factor(scale) = scale.unwrap_or(Scale::Factor(1.0)) else {
            bail!("--lora {}: an adapter has no scale in percent: give a number", path.display());
        };
        let file = names::vector(path, model.path())?;
        let adapter = offered_adapter(&file, &model, &mut notices).map_err(|e| anyhow!("--lora: {e}"))?;
        vectors = vectors.with_adapter(adapter, scale)?;
    }
    for notice in notices {
        eprintln!("bidpo: warning: {}", bidpo_core::chat::printable(&notice));
    }
    let n_slots = usize::from(args.slots);
    let n_ctx = args.ctx.map_or_else(|| Generator::default_context(&model), |n| n as usize);
    let stem = args.model.model.file_stem().map(|s| s.to_string_lossy().into_owned());
    let options = ServeOptions {
        addr: SocketAddr::new(args.host, args.port),
        names: ModelNames::parse(&args.aliases, stem.as_deref().unwrap_or("model"))?,
        n_slots,
        n_ctx,
        n_threads,
        limits: Limits {
            max_body: args.limits.max_body as usize,
            max_prompt: args.limits.max_prompt.map_or(n_ctx, |n| n as usize),
            max_output: args.limits.max_output.map_or(n_ctx, |n| n as usize),
            places: n_slots + args.limits.queue as usize,
        },
        log: LogSink::new(|line| eprintln!("bidpo: {}", bidpo_core::chat::printable(line))),
        strict_api: args.strict_api,
        continue_answers: !args.no_prefill_assistant,
        keys,
        origins: args.access.origins,
        hosts: args.access.hosts,
        grace: Duration::from_secs(args.limits.grace),
    };
    let names: Vec<String> = vectors.vectors().iter().map(|v| v.name.clone()).collect();
    let server = Server::new(&model, template, vectors, &options)?;
    let addr = server.addr()?;
    eprintln!(
        "{}, {n_slots} sequences of {n_ctx} tokens, vectors: {}",
        model.description(),
        if names.is_empty() { "none (--vectors DIR)".to_owned() } else { names.join(", ") }
    );
    if open_to_others {
        eprintln!("bidpo: warning: everyone who reaches {} may use this server: --api-key asks for a key", args.host);
    }
    let signals = crate::terminal::interrupt::server_signals()?;
    println!("listening on http://{addr}");
    server.run(signals)?;
    eprintln!("bidpo: stopped");
    Ok(ExitCode::SUCCESS)
}
