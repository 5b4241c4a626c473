//! Ctrl-C as a flag that long work looks at.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Ctrl-C while an answer is being written stops the answer; at any other time, or a second time before the answer has
/// stopped, it ends the program.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    /// True once the answer should stop.
    pub stop: Arc<AtomicBool>,
    busy: Arc<AtomicBool>,
}

impl Interrupt {
    /// Installs the handler; once for the process.
    pub fn install() -> anyhow::Result<Self> {
        let this = Self::default();
        let handler = this.clone();
        ctrlc::set_handler(move || {
            if !handler.busy.load(Ordering::SeqCst) || handler.stop.swap(true, Ordering::SeqCst) {
                std::process::exit(1);
            }
        })?;
        Ok(this)
    }

    /// Runs `work` with Ctrl-C turned into the flag.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        self.stop.store(false, Ordering::SeqCst);
        self.busy.store(true, Ordering::SeqCst);
        let result = work();
        self.busy.store(false, Ordering::SeqCst);
        result
    }
}
