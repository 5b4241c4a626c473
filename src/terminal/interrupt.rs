//! Ctrl-C as a flag that long work looks at.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Ctrl-C while an answer is being written stops the answer; at any other time it ends the program, and so does a second
/// one before the answer has stopped, unless that comes too soon to mean it.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    /// True once the answer should stop.
    pub stop: Arc<AtomicBool>,
    busy: Arc<AtomicBool>,
    first: Arc<Mutex<Option<Instant>>>,
}

impl Interrupt {
    /// Installs the handler; once for the process. A second Ctrl-C less than `patience` after the first is not a new one:
    /// a conversation should not be lost to a key pressed twice.
    pub fn install(patience: Duration) -> anyhow::Result<Self> {
        let this = Self::default();
        let handler = this.clone();
        ctrlc::set_handler(move || {
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

    /// Runs `work` with Ctrl-C turned into the flag.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        self.stop.store(false, Ordering::SeqCst);
        *self.first.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.busy.store(true, Ordering::SeqCst);
        let result = work();
        self.busy.store(false, Ordering::SeqCst);
        result
    }
}
