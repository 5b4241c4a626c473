//! Ctrl-C (and SIGTERM) in three modes: a flag that long work looks at ([`stop_flag`]), a flag for one answer at a time
//! ([`Interrupt`]), and messages to a server that drains its requests first ([`server_signals`]). A process installs one of them.

use anyhow::Context;
use bidpo_serve::ServerSignals;
use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::unbounded_channel;

const HANDLER: &str = "cannot install a handler for Ctrl-C";

fn install(handler: impl FnMut() + Send + 'static) -> anyhow::Result<()> {
    // Under nohup a run goes on when its terminal closes.
    ggml_grad::llama::keeping_ignored_hangup(|| ctrlc::set_handler(handler)).context(HANDLER)
}

/// A flag that the first Ctrl-C sets, after printing `notice` on stderr. The second one exits at once with status 1. Later
/// calls return the same flag.
///
/// # Errors
/// The system refuses the handler.
pub fn stop_flag(notice: &'static str) -> anyhow::Result<Arc<AtomicBool>> {
    static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    if let Some(stop) = STOP.get() {
        return Ok(Arc::clone(stop));
    }
    let stop = STOP.get_or_init(Arc::default);
    install(move || {
        if stop.swap(true, Ordering::Relaxed) {
            std::process::exit(1);
        }
        eprintln!("\n{notice}");
    })?;
    Ok(Arc::clone(stop))
}

/// Messages to a server: each Ctrl-C and SIGTERM asks it to stop; SIGHUP to read its vectors again, or to stop where it means that
/// the terminal was closed.
///
/// # Errors
/// The system refuses a handler.
pub fn server_signals() -> anyhow::Result<ServerSignals> {
    let (stop_sender, stop) = unbounded_channel();
    let (rescan_sender, rescan) = unbounded_channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context(HANDLER)?;
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let at_terminal = std::io::stdin().is_terminal() || std::io::stderr().is_terminal();
        let closed = move || at_terminal && !std::io::stdin().is_terminal() && !std::io::stderr().is_terminal();
        let inside = runtime.enter();
        let int = signal(SignalKind::interrupt()).context(HANDLER)?;
        let term = signal(SignalKind::terminate()).context(HANDLER)?;
        let hangup = ggml_grad::llama::keeping_ignored_hangup(|| signal(SignalKind::hangup())).context(HANDLER)?;
        let (mut int, mut term, mut hangup) = (int, term, hangup);
        drop(inside);
        let listen = async move {
            loop {
                let to = tokio::select! {
                    _ = int.recv() => &stop_sender,
                    _ = term.recv() => &stop_sender,
                    _ = hangup.recv() => if closed() { &stop_sender } else { &rescan_sender },
                };
                // The receiver is gone once the server has stopped.
                let _ = to.send(());
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(move || runtime.block_on(listen)).context(HANDLER)?;
    }
    #[cfg(not(unix))]
    {
        let listen = async move {
            while tokio::signal::ctrl_c().await.is_ok() {
                let _ = stop_sender.send(());
            }
            drop(rescan_sender);
        };
        std::thread::Builder::new().name("signals".into()).spawn(move || runtime.block_on(listen)).context(HANDLER)?;
    }
    Ok(ServerSignals { stop, rescan })
}

/// Ctrl-C during [`Interrupt::during`] stops the answer in progress; at any other time it ends the process. A second one
/// during the same answer ends the process too, unless it comes within the patience given to [`Interrupt::install`].
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    /// True once the answer should stop.
    pub stop: Arc<AtomicBool>,
    busy: Arc<AtomicBool>,
    first: Arc<Mutex<Option<Instant>>>,
}

impl Interrupt {
    /// Installs the handler, once for the process. A second Ctrl-C less than `patience` after the first is ignored: a key
    /// pressed twice must not lose a conversation.
    ///
    /// # Errors
    /// The system refuses the handler.
    pub fn install(patience: Duration) -> anyhow::Result<Self> {
        let this = Self::default();
        let handler = this.clone();
        install(move || {
            if !handler.busy.load(Ordering::SeqCst) {
                std::process::exit(1);
            }
            let mut first = handler.first.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            if handler.stop.swap(true, Ordering::SeqCst) && first.is_some_and(|f| now - f >= patience) {
                std::process::exit(1);
            }
            first.get_or_insert(now);
        })?;
        Ok(this)
    }

    /// Runs `work`, during which Ctrl-C sets [`Interrupt::stop`] instead of ending the process.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        self.stop.store(false, Ordering::SeqCst);
        *self.first.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.busy.store(true, Ordering::SeqCst);
        let result = work();
        self.busy.store(false, Ordering::SeqCst);
        result
    }
}
