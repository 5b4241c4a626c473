//! Reports of a running training, for whoever watches it, and why it ended.

use super::checkpoint::Point;
use super::summary::RunSummary;
use crate::engine::CacheUse;
use std::path::Path;
use std::time::Duration;

/// Progress of a run, told to its observer.
#[derive(Debug)]
pub enum Event<'a> {
    /// Training and validation pairs traced so far.
    Captured {
        /// Pairs traced.
        done: usize,
        /// Pairs in all.
        total: usize,
        /// Tokens of the last one.
        tokens: usize,
    },
    /// The longest pair was traced: additional memory of the run.
    Memory(&'a MemoryNeed),
    /// A notice for the user.
    Notice(&'a str),
    /// All pairs are traced, some of them read from a cache.
    Cache {
        /// The folder.
        folder: &'a Path,
        /// Pairs and bytes read and written.
        used: CacheUse,
        /// Largest change of a response's log-probability on the first pair caused by the rounding of the cache, in nats.
        rounding: f64,
    },
    /// All pairs are traced: facts about model and data.
    Ready(&'a RunSummary),
    /// The next of several seeds begins.
    Seed {
        /// The seed.
        seed: u64,
        /// Its place among them, from 1.
        number: usize,
        /// Seeds in all.
        of: usize,
        /// Steps planned.
        steps: usize,
    },
    /// A checkpoint was loaded.
    Resumed {
        /// Steps taken when it was written.
        step: usize,
    },
    /// The retained texts are traced.
    Retaining {
        /// Number of texts.
        texts: usize,
        /// Tokens predicted in them.
        predictions: usize,
        /// Bytes held.
        bytes: usize,
    },
    /// A step was taken.
    Step(&'a StepReport),
    /// An epoch ended and validation was run.
    Epoch(&'a Point),
    /// The vector is measured on held-out pairs.
    Measuring {
        /// Number of pairs.
        pairs: usize,
    },
}

/// Additional memory of a run: without the model and llama.cpp's buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryNeed {
    /// Tokens of the longest pair.
    pub longest: usize,
    /// Bytes of inputs and activations for its gradient.
    pub step_bytes: u64,
    /// Tokens of a batch of pairs, at most; 0 where pairs are not batched.
    pub joined_tokens: usize,
    /// Bytes of inputs and activations for the gradient of such a batch, estimated.
    pub joined_bytes: u64,
    /// Bytes for batches that are computed at once, estimated; 0 where they are computed in turn.
    pub at_once_bytes: u64,
    /// Bytes of all traced pairs, at most.
    pub captured_bytes: u64,
    /// Bytes of all retained texts, at most; 0 without such texts.
    pub retained_bytes: u64,
}

/// Losses and speed after a step.
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
    /// Mean of `d * margin`, the log-ratio margin in nats, before it is multiplied by beta.
    pub margin: f64,
    /// Preference accuracy: the fraction of pairs whose preferred response, for their direction, became more probable:
    /// `d * margin > 0`. Of answers alone, the fraction that became more probable.
    pub accuracy: f64,
    /// L2 norm of the vector; with several layers, of all directions concatenated.
    pub norm: f64,
    /// That norm in percent of the median residual norm; with several layers, the mean over them.
    pub percent: f64,
    /// Divergence on the step's retained texts, nats a token; `None` without such texts.
    pub retained_kl: Option<f64>,
    /// L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens trained on per second, since the first step of this process.
    pub tokens_per_second: f64,
    /// Time left at this speed.
    pub left: Duration,
    /// Time that mean, clipping and the optimizer took.
    pub update: Duration,
}

/// Why a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Stop {
    /// All steps were taken.
    Finished,
    /// The validation loss stopped falling.
    Early,
    /// The user interrupted.
    Interrupted,
    /// The loss or a gradient was not finite.
    NotFinite {
        /// The step, from 1.
        step: usize,
        /// The pair's name.
        pair: String,
    },
}
