//! Jobs for the engine, and its events.

use super::sampling::Sampling;
use bidpo_core::adapter::Adapters;
use bidpo_core::steer::{ControlVector, GateMemory, Opening};
use ggml_grad::llama::{Grammar, GrammarError, LlamaError, Token};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedSender;

/// Rows that are steered at all; within them, a vector acts in its own scope. A row belongs to the answer if an answer token is
/// predicted from it: the last token of the prompt, and every token of the answer. The others are the prompt's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum SteeredRows {
    /// Every row.
    #[default]
    All,
    /// The rows of the prompt, without its last one.
    Prompt,
    /// The rows that an answer token is predicted from.
    Answer,
}

impl SteeredRows {
    /// True if the row at position `at` of a sequence whose prompt has `n_prompt` tokens is steered.
    pub(crate) fn covers(self, at: usize, n_prompt: usize) -> bool {
        match self {
            Self::All => true,
            Self::Prompt => at + 1 < n_prompt,
            Self::Answer => at + 1 >= n_prompt,
        }
    }
}

/// The vectors added to the residual stream, and the positions they are added at.
#[derive(Debug, Clone, Default)]
pub(crate) struct Steering {
    /// None: nothing.
    pub vector: Option<Arc<ControlVector>>,
    /// At which rows.
    pub rows: SteeredRows,
}

impl Steering {
    /// The vector added at position `at`.
    pub(crate) fn at(&self, at: usize, n_prompt: usize) -> Option<&Arc<ControlVector>> {
        self.vector.as_ref().filter(|_| self.rows.covers(at, n_prompt))
    }
}

/// Whose turn it is: an API key, or an address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Client {
    /// The number of the key.
    Key(usize),
    /// No key is required.
    Address(std::net::IpAddr),
}

/// One sequence to compute.
#[derive(Debug)]
pub(crate) struct Job {
    /// The client.
    pub client: Client,
    /// The choice of the request it is.
    pub index: usize,
    /// Prompt, and behind it what is scored.
    pub tokens: Vec<Token>,
    /// Number of prompt tokens among them.
    pub n_prompt: usize,
    pub steering: Steering,
    /// Tokens from this one on are scored.
    pub score_from: Option<usize>,
    /// The most tokens to generate behind them.
    pub max_tokens: usize,
    pub sampling: Sampling,
    /// The answer's form.
    pub grammar: Option<Grammar>,
    pub stop: Vec<String>,
    /// Log-probabilities are wanted, and of so many of the most likely tokens.
    pub top_logprobs: Option<usize>,
    /// The token that ends the turn is told too, without text.
    pub tell_end: bool,
    /// Control tokens that are written out.
    pub written: Vec<Token>,
    pub events: UnboundedSender<(usize, Event)>,
    /// Its place in the queue, free again when the job is dropped.
    #[expect(dead_code, reason = "it is there to be dropped")]
    pub place: OwnedSemaphorePermit,
    pub since: Instant,
}

impl Job {
    /// True if nobody waits for the answer any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Tells whoever waits; an abandoned job is found by [`Job::is_abandoned`].
    pub(crate) fn send(&self, event: Event) {
        let _ = self.events.send((self.index, event));
    }

    /// The steering of position `at`.
    pub(crate) fn steering_at(&self, at: usize) -> Option<&Arc<ControlVector>> {
        self.steering.at(at, self.n_prompt)
    }

    /// The adapters under which all of its positions are computed.
    pub(crate) fn adapters(&self) -> Adapters {
        self.steering.vector.as_ref().map(|v| v.adapters.clone()).unwrap_or_default()
    }

    /// Openings of the gates at position `at`, computed in sequence `id`; empty where the steering has no gates.
    pub(crate) fn gates_at(&self, gates: &GateMemory, id: i32, at: usize) -> Vec<Opening> {
        match (self.steering_at(at), &self.steering.vector) {
            (Some(vector), _) => vector.openings_at(gates, id, self.n_prompt, at),
            (None, Some(vector)) => vector.closed_gates(),
            (None, None) => Vec::new(),
        }
    }

    /// True if the logits behind position `at` of its tokens are needed: the last ones always, since they tell whether the
    /// cache holds finite numbers only.
    pub(crate) fn wants_logits(&self, at: usize) -> bool {
        let last = at + 1 == self.tokens.len();
        last || self.score_from.is_some_and(|from| at + 1 >= from)
    }

    /// Number of leading tokens that may come from the cache; the rest is computed for its logits.
    pub(crate) fn reusable(&self) -> usize {
        (0..self.tokens.len()).find(|&at| self.wants_logits(at)).unwrap_or(self.tokens.len().saturating_sub(1))
    }
}

/// A token with its log-probability.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TokenInfo {
    /// The token.
    pub token: Token,
    /// Natural logarithm of its probability, before sampling options; None for the first token of a text.
    pub logprob: Option<f64>,
    /// The most likely tokens there, as many as were asked for.
    pub top: Vec<(Token, f64)>,
    /// How far each gate of the steering was open at the position that the token is predicted from.
    pub gates: Vec<Opening>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    /// The model ended its turn.
    Stop,
    /// The stop sequence of this number was met.
    Sequence(usize),
    /// The limit of tokens was reached, or the context is full.
    Length,
}

impl Finish {
    /// OpenAI's word for it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Stop | Self::Sequence(_) => "stop",
            Self::Length => "length",
        }
    }
}

/// Token counts and times of a job.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// Tokens of the prompt (with what was scored).
    pub n_prompt: usize,
    /// Number of those that were in the cache.
    pub n_reused: usize,
    /// Tokens generated, without the one that ended the turn.
    pub n_generated: usize,
    /// Time in the queue.
    pub waited: Duration,
    /// Time until the prompt was computed, from when its turn came.
    pub prompt_time: Duration,
    /// Time from then on.
    pub answer_time: Duration,
}

/// One step of an answer.
#[derive(Debug)]
pub(crate) enum Event {
    /// Tokens of the prompt with their scores, in order.
    Scored(Vec<TokenInfo>),
    /// Text, and the tokens it is of where log-probabilities are wanted.
    Text {
        /// Whole characters.
        text: String,
        /// Their tokens.
        tokens: Vec<TokenInfo>,
    },
    /// The end.
    Done(Finish, Usage),
    /// The job failed; nothing follows.
    Failed(JobError),
}

/// A job without an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JobError {
    /// llama.cpp's reason.
    #[error("the model could not be run: {0}")]
    Llama(String),
    /// The form of the answer cannot be followed further: the request's fault.
    #[error("the answer's form: {0}")]
    Grammar(GrammarError),
    /// The server stops.
    #[error("the server is shutting down")]
    ShuttingDown,
}

impl From<LlamaError> for JobError {
    fn from(error: LlamaError) -> Self {
        match error {
            LlamaError::Grammar(error) => Self::Grammar(error),
            error => Self::Llama(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::SteeredRows;

    #[test]
    fn every_row_is_prompt_or_answer() {
        let rows = |steered: SteeredRows| (0..5).map(|at| steered.covers(at, 3)).collect::<Vec<_>>();
        assert_eq!(rows(SteeredRows::All), [true; 5]);
        assert_eq!(rows(SteeredRows::Prompt), [true, true, false, false, false]);
        assert_eq!(rows(SteeredRows::Answer), [false, false, true, true, true]);
    }
}
