//! `bidpo serve`: a steered model behind OpenAI's HTTP API, and a web page.
//!
//! One thread owns the llama.cpp context and computes all requests side by side (`engine`); tokio and axum do the talking.
//! Each sequence has a KV cache of its own and every row of a batch its own steering. The same request gives the same bits
//! alone and in company, with a full cache and an empty one: flash attention is off (with it, the order of a sum depends on
//! what else is in the batch), prompts are always cut at the same places, and only whole pieces of them are used again. That
//! is tested for weights in Q4_0 to Q8_0 and K-quants on the CPU; with F32, F16 and IQ4_NL ggml sums in another order where a batch
//! has more than one row.

#![warn(clippy::print_stdout, clippy::print_stderr)]

mod api;
mod connections;
mod engine;
mod http;
mod listen;
mod log;
mod metrics;
mod models;
mod page;
mod schema;
mod startup;
mod state;
mod vectors;

pub use log::LogSink;
pub use models::{Alias, AliasError, ModelNames};
pub use startup::check_steering;
pub use state::Limits;
pub use vectors::folder::offered_adapter;
pub use vectors::{OfferedVector, ScaleSpec, SteerSpec, VectorChange, VectorStore, VectorsError};

use bidpo_core::data::{ChatTemplate, TemplateChoice, TemplateError};
use ggml_grad::llama::{Context, ContextParams, LlamaError, Model, Use};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{Semaphore, watch};

/// A server that does not start, or that stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// An origin that is no header value.
    #[error("{0:?} is no origin: give one such as https://example.org, or * for every page")]
    Origin(String),
    /// A name of a steered model that cannot be used.
    #[error(transparent)]
    Alias(#[from] AliasError),
    /// The engine's thread ended by itself.
    #[error("the engine stopped with an internal error")]
    Engine,
    /// A thread or a signal handler cannot be set up.
    #[error("cannot set up the server: {0}")]
    System(#[from] std::io::Error),
    /// The model is of a kind that writes no text.
    #[error(transparent)]
    Unsupported(#[from] ggml_grad::llama::Unsupported),
    /// llama.cpp's reason.
    #[error(transparent)]
    Llama(#[from] LlamaError),
    /// The template's reason.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// Options of a server.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Address to listen on.
    pub addr: SocketAddr,
    /// Names that clients may give the model.
    pub names: ModelNames,
    /// Sequences computed at once.
    pub n_slots: usize,
    /// Context of a sequence in tokens, prompt and answer; llama.cpp rounds up to a multiple of 256.
    pub n_ctx: usize,
    /// Number of threads; 0 is the machine's default.
    pub n_threads: u32,
    /// Limits of a request.
    pub limits: Limits,
    /// Where lines for whoever runs the server go.
    pub log: LogSink,
    /// Refuse requests with fields that the server does not know, instead of ignoring these.
    pub strict_api: bool,
    /// Continue a last message of the assistant, where the request does not say otherwise.
    pub continue_answers: bool,
    /// API keys, one of which a client must send; empty: no authentication.
    pub keys: Vec<String>,
    /// Sites whose pages may call this server.
    pub origins: Vec<String>,
    /// Additional Host names to accept while listening on loopback.
    pub hosts: Vec<String>,
    /// Time that running answers may take to finish after a signal.
    pub grace: Duration,
}

/// Messages to a running server.
#[derive(Debug)]
pub struct ServerSignals {
    /// The first one ends the server in good order, the second at once.
    pub stop: UnboundedReceiver<()>,
    /// The folder of vectors is read again.
    pub rescan: UnboundedReceiver<()>,
}

/// Reads the folder of vectors again for each message.
async fn rescan(state: Arc<state::State>, mut messages: UnboundedReceiver<()>) {
    while messages.recv().await.is_some() {
        let shared = Arc::clone(&state);
        let work = move || {
            let mut notices = Vec::new();
            let done = shared.vectors.change(&VectorChange::Rescan, &mut notices);
            notices.iter().for_each(|notice| shared.log.line(&format!("warning: {notice}")));
            match done {
                Ok(()) => shared.log.line(&format!("vectors: {}", shared.vectors.names().join(", "))),
                Err(error) => shared.log.line(&format!("the vectors stay as they are: {error}")),
            }
        };
        if let Err(error) = tokio::task::spawn_blocking(work).await {
            state.log.line(&format!("the vectors were not read again: {error}"));
        }
    }
}

/// A server that is ready to run.
pub struct Server {
    listener: std::net::TcpListener,
    router: axum::Router,
    state: Arc<state::State>,
    engine: JoinHandle<()>,
    grace: Duration,
}

impl Server {
    /// Makes the context, checks that rows can be steered (if there are vectors), and listens.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn new(
        model: &Arc<Model>,
        template: ChatTemplate,
        vectors: VectorStore,
        options: &ServeOptions,
    ) -> Result<Self, ServeError> {
        model.supports(Use::Serve)?;
        let origins = options.origins.iter().map(|o| o.parse().map_err(|_| ServeError::Origin(o.clone())));
        let origins = origins.collect::<Result<Vec<_>, _>>()?;
        for alias in &options.names.aliases {
            let wrong = |e: vectors::SpecError| AliasError::Steering { name: alias.name.clone(), reason: e.reason };
            vectors.resolve(&alias.steering, None).map_err(wrong)?;
        }
        let no_listener = |source| ServeError::Listen { addr: options.addr, source };
        let listener = std::net::TcpListener::bind(options.addr).map_err(no_listener)?;
        listener.set_nonblocking(true).map_err(no_listener)?;
        let mut ctx = Context::new(model, &context_params(options))?;
        ctx.set_kernel_override(ggml_grad::graph::FastKernels::if_supported());
        // Vectors may come later.
        if vectors.has_folder() {
            startup::check_steering(&mut ctx)?;
        }
        let metrics = Arc::new(metrics::Metrics::new(options.n_slots));
        let n_ctx = ctx.n_ctx_seq().min(options.n_ctx);
        let (engine, thread) = engine::Handle::start(ctx, options.n_slots, n_ctx, Arc::clone(&metrics))?;
        let state = Arc::new(state::State {
            model: Arc::clone(model),
            names: options.names.clone(),
            created: std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs()),
            template,
            plain: ChatTemplate::new(model, &TemplateChoice::None)?,
            vectors,
            n_ctx,
            engine,
            places: Arc::new(Semaphore::new(options.limits.places)),
            limits: options.limits.clone(),
            metrics,
            log: log::Log::new(options.log.clone()),
            strict_api: options.strict_api,
            continue_answers: options.continue_answers,
            keys: state::Keys::new(&options.keys),
            // A page of another site may have its name lead here; a key, which it does not know, keeps it out too.
            hosts: (options.addr.ip().is_loopback() || options.keys.is_empty()).then(|| own_names(&options.hosts)),
            draining: watch::Sender::new(false),
        });
        let router = http::router(&state, &origins);
        Ok(Self { listener, router, state, engine: thread, grace: options.grace })
    }

    /// Address of the listener; with port 0, the port that the system chose.
    ///
    /// # Errors
    /// The system's.
    pub fn addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until a message comes (or all senders are gone), then lets what runs end; a second message ends it at once.
    ///
    /// # Errors
    /// [`ServeError::System`], and [`ServeError::Engine`] if the engine's thread panicked.
    pub fn run(self, signals: ServerSignals) -> Result<(), ServeError> {
        let Self { listener, router, state, engine, grace } = self;
        // The work is the engine's; what talks to clients needs little.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener)?;
            let rescans = tokio::spawn(rescan(Arc::clone(&state), signals.rescan));
            listen::serve(listener, router, &state, grace, signals.stop).await;
            rescans.abort();
            Ok::<(), std::io::Error>(())
        })?;
        state.engine.stop();
        runtime.shutdown_timeout(Duration::from_secs(1));
        drop(state);
        engine.join().map_err(|_| ServeError::Engine)
    }
}

/// The names that were given, and the machine's own.
fn own_names(given: &[String]) -> Vec<String> {
    let mut names = given.to_vec();
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let machine = machine.trim();
    if !machine.is_empty() {
        names.extend([machine.to_owned(), format!("{machine}.local")]);
    }
    names
}

fn context_params(options: &ServeOptions) -> ContextParams {
    let n_ctx = options.n_ctx.next_multiple_of(256);
    ContextParams {
        n_ctx: u32::try_from(n_ctx * options.n_slots).unwrap_or(u32::MAX),
        n_batch: engine::slot::PIECE.max(options.n_slots) as u32,
        n_seq_max: options.n_slots as u32,
        n_threads: options.n_threads,
        flash_attention: false,
        shared_cache: false,
        ..ContextParams::default()
    }
}
