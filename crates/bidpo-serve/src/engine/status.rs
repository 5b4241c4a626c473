//! What the slots are at, for whoever asks.

use super::slot::Slot;
use std::sync::{Arc, Mutex, PoisonError};

/// A slot at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SlotStatus {
    /// Tokens that its cache holds.
    pub n_cached: usize,
    /// The job that it computes.
    pub job: Option<JobStatus>,
}

/// A job at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct JobStatus {
    /// Which job of the server's it is.
    pub number: u64,
    /// Tokens of the prompt, and how many of them are computed.
    pub n_prompt: usize,
    pub n_prompt_done: usize,
    /// Tokens of the answer, and how many more there may be.
    pub n_generated: usize,
    pub n_left: usize,
}

impl SlotStatus {
    fn of(slot: &Slot) -> Self {
        let job = slot.work.as_ref().map(|work| {
            let n_prompt = work.job.tokens.len();
            JobStatus {
                number: slot.used,
                n_prompt,
                n_prompt_done: work.n_done.min(n_prompt),
                n_generated: work.n_generated(),
                n_left: work.job.max_tokens.saturating_sub(work.n_generated()),
            }
        });
        Self { n_cached: slot.cells.len(), job }
    }
}

/// The slots as the engine left them last, shared with those who ask.
#[derive(Debug, Clone)]
pub(crate) struct Board(Arc<Mutex<Vec<SlotStatus>>>);

impl Board {
    /// `n` slots that were never used.
    pub(crate) fn new(n: usize) -> Self {
        Self(Arc::new(Mutex::new(vec![SlotStatus { n_cached: 0, job: None }; n])))
    }

    /// Writes down what the slots are at.
    pub(super) fn write(&self, slots: &[Slot]) {
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        list.clear();
        list.extend(slots.iter().map(SlotStatus::of));
    }

    /// The slots, by number.
    pub(crate) fn read(&self) -> Vec<SlotStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
