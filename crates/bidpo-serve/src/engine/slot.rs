//! One sequence of the context, and what its cache holds.
//!
//! A prompt is computed in pieces of [`PIECE`] tokens that begin at multiples of it, and only whole pieces are used again: a
//! position's K and V are then the same bits whether they were in the cache or not. (A row on its own, and a row among a few, may
//! differ from one among many: ggml's kernels sum in another order. So what was computed token by token, an answer, is
//! computed again when it comes back as part of the next prompt.)

use super::job::Job;
use super::work::Work;
use bidpo_core::steer::ControlVector;
use ggml_grad::llama::Token;
use std::sync::Arc;

/// Tokens of a prompt computed at once. Others wait for their next token that long.
pub(crate) const PIECE: usize = 64;

/// A position in the cache: the token, and what was added to its row.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    pub token: Token,
    pub steering: Option<Arc<ControlVector>>,
    /// Tokens of the prompt that it was computed for.
    pub n_prompt: usize,
    /// Computed as one of a whole piece.
    pub whole: bool,
}

impl Cell {
    /// True if K and V of this cell are those, to the last bit, of position `at` of the job, given that all cells before it are.
    fn is_of(&self, job: &Job, at: usize) -> bool {
        let steering = job.steering_at(at);
        let alike = |s: &Arc<ControlVector>| s.treats_alike(at, self.n_prompt, job.n_prompt);
        self.whole
            && self.token == job.tokens[at]
            && same(self.steering.as_ref(), steering)
            && steering.is_none_or(alike)
    }
}

fn same(a: Option<&Arc<ControlVector>>, b: Option<&Arc<ControlVector>>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a == b,
        _ => false,
    }
}

/// A sequence.
#[derive(Debug)]
pub(crate) struct Slot {
    pub id: i32,
    /// Contents of the KV cache, by position.
    pub cells: Vec<Cell>,
    pub work: Option<Work>,
    /// When it was used last (a count of jobs).
    pub used: u64,
    /// Its cache may hold NaN, and could not be cleared beside those of others: it takes no job until that is done.
    pub unclean: bool,
}

impl Slot {
    pub(crate) fn new(id: i32) -> Self {
        Self { id, cells: Vec::new(), work: None, used: 0, unclean: false }
    }

    /// True if it can take a job.
    pub(crate) fn is_free(&self) -> bool {
        self.work.is_none() && !self.unclean
    }

    /// Number of tokens at the start of the job that are in the cache, computed under the job's own steering. A position's K and V
    /// depend on the tokens and the steering of all positions up to it, and on nothing else.
    pub(crate) fn common(&self, job: &Job) -> usize {
        let n = job.reusable().min(self.cells.len());
        (0..n).take_while(|&at| self.cells[at].is_of(job, at)).count() / PIECE * PIECE
    }
}
