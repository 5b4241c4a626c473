//! Reports of a running training, for whoever watches it, and why it ended.

use super::cache::CacheUse;
use super::checkpoint::Point;
use super::ready::Ready;
use crate::data::TokenizedPair;
use std::path::Path;
use std::time::Duration;

/// A pair with its name, for messages.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedPair {
    /// Id and origin, for example `m017 (prefs.jsonl:17)`.
    pub name: String,
    /// Its tokens.
    pub tokens: TokenizedPair,
}

/// What the trainer tells while it works.
#[derive(Debug)]
pub enum Event<'a> {
    /// Examples captured so far (training and validation pairs), of how many.
    Captured {
        /// Done.
        done: usize,
        /// In all.
        total: usize,
        /// Tokens of this one.
        tokens: usize,
    },
    /// The longest pair was measured: what the run will need beside the model and llama.cpp's own buffers.
    Memory(&'a MemoryNeed),
    /// Something about the cache that the user should know.
    Notice(&'a str),
    /// All pairs are captured, with the help of a cache.
    Cache {
        /// The folder.
        folder: &'a Path,
        /// What it did.
        used: CacheUse,
        /// Largest change of a response's log-probability on the first pair that its rounding makes, in nats.
        rounding: f64,
    },
    /// All is ready: what was found out about model and data.
    Ready(&'a Ready),
    /// A checkpoint was loaded.
    Resumed {
        /// Steps it had taken.
        step: usize,
    },
    /// A step was taken.
    Step(&'a StepReport),
    /// An epoch ended and validation was run.
    Epoch(&'a Point),
}

/// Memory that a run needs beside the model and llama.cpp's own buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryNeed {
    /// Tokens of the longest pair.
    pub longest: usize,
    /// Bytes of inputs and activations for its gradient.
    pub step_bytes: u64,
    /// Tokens of shorter pairs that are computed together, at most; 0 where none are.
    pub joined_tokens: usize,
    /// About what their gradient takes, in bytes.
    pub joined_bytes: u64,
    /// Bytes of all captured pairs, at most.
    pub captured_bytes: u64,
}

/// The state of the run after a step.
#[derive(Debug, Clone, Copy)]
pub struct StepReport {
    /// Steps taken.
    pub step: usize,
    /// Steps planned.
    pub total: usize,
    /// Epoch, from 1.
    pub epoch: usize,
    /// Mean loss of the step's pairs.
    pub loss: f64,
    /// Mean of `d * margin`.
    pub margin: f64,
    /// Share of pairs whose preferred answer (for their direction) won: `d * margin > 0`.
    pub accuracy: f64,
    /// Length of the vector; with several layers, of all their directions taken as one.
    pub norm: f64,
    /// Length in percent of the median residual norm; with several layers, the mean over them.
    pub percent: f64,
    /// Length of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens trained on per second, since the first step of this process.
    pub tokens_per_second: f64,
    /// Time left at this speed.
    pub left: Duration,
}

/// Why a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Stop {
    /// All steps were taken.
    Finished,
    /// Validation loss stopped falling.
    Early,
    /// The user asked.
    Interrupted,
    /// The loss or a gradient was not finite.
    NotFinite {
        /// At which step, from 1.
        step: usize,
        /// At which pair.
        pair: String,
    },
}
