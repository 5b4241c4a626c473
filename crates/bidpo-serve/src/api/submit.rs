//! From a checked request to jobs in the queue.

use crate::api::read::error::ApiError;
use crate::api::read::request::Common;
use crate::engine::job::{Client, Event, Job, Steering};
use crate::engine::sampling::Sampling;
use crate::state::State;
use ggml_grad::llama::{Grammar, Token};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// Events of all jobs of a request, each with the number of its choice.
pub(super) type Events = UnboundedReceiver<(usize, Event)>;

/// One sequence to compute; [`CompletionOptions`] holds what all sequences of a request share.
#[derive(Debug)]
pub(super) struct Sequence {
    pub tokens: Vec<Token>,
    pub n_prompt: usize,
    pub score_from: Option<usize>,
    pub max_tokens: usize,
}

/// Options that all sequences of a request share.
#[derive(Debug)]
pub(super) struct CompletionOptions {
    pub sampling: Sampling,
    pub stop: Vec<String>,
    pub steering: Steering,
    pub top_logprobs: Option<usize>,
    /// With log-probabilities: the token that ends the turn is told too.
    pub tell_end: bool,
    pub grammar: Option<Grammar>,
    /// Control tokens that are written out.
    pub written: Vec<Token>,
}

impl CompletionOptions {
    pub(super) fn of(common: &mut Common, top_logprobs: Option<usize>) -> Self {
        Self {
            sampling: common.sampling.clone(),
            stop: common.stop.clone(),
            steering: common.steering.clone(),
            top_logprobs,
            tell_end: false,
            grammar: common.grammar.take(),
            written: Vec::new(),
        }
    }
}

/// Puts sequences into the queue, each `n` times with seeds that follow one another. Choice `i * n + k` is the k-th of
/// sequence i.
///
/// # Errors
/// 400 for more sequences than the queue has places, 429 while it is full, 503 during shutdown, 500 after the engine stopped.
pub(super) fn submit(
    state: &State,
    client: &Client,
    sequences: Vec<Sequence>,
    n: usize,
    options: &CompletionOptions,
) -> Result<Events, ApiError> {
    let total = sequences.len() * n;
    let places = state.limits.places;
    if total > places {
        let message = format!("the request asks for {total} sequences; this server takes at most {places} at once");
        return Err(ApiError::invalid("n", message));
    }
    if state.is_draining() {
        return Err(ApiError::shutting_down());
    }
    let Ok(mut taken) = Arc::clone(&state.places).try_acquire_many_owned(total as u32) else {
        state.metrics.rejected(total);
        return Err(ApiError::queue_full(places));
    };
    let (events, receiver) = unbounded_channel();
    let since = Instant::now();
    let mut index = 0;
    for sequence in sequences {
        for k in 0..n {
            // As many as were taken.
            let Some(place) = taken.split(1) else { continue };
            let mut sampling = options.sampling.clone();
            sampling.params.seed = sampling.params.seed.wrapping_add(k as u32).min(u32::MAX - 1);
            let job = Job {
                client: client.clone(),
                index,
                tokens: sequence.tokens.clone(),
                n_prompt: sequence.n_prompt,
                steering: options.steering.clone(),
                score_from: sequence.score_from,
                max_tokens: sequence.max_tokens,
                sampling,
                grammar: options.grammar.clone(),
                stop: options.stop.clone(),
                top_logprobs: options.top_logprobs,
                tell_end: options.tell_end,
                written: options.written.clone(),
                events: events.clone(),
                place,
                since,
            };
            index += 1;
            if !state.engine.send(job) {
                return Err(ApiError::internal("the engine has stopped; restart the server"));
            }
        }
    }
    Ok(receiver)
}

/// Checks a prompt against the limits and returns how many tokens may follow it: `asked`, `--max-output` or the remaining
/// context, whichever is smallest.
///
/// # Errors
/// 400 for a prompt above `--max-prompt` or one that leaves no context for an answer.
pub(super) fn remaining_context(
    state: &State,
    param: &str,
    n_prompt: usize,
    asked: Option<usize>,
) -> Result<usize, ApiError> {
    let (limits, n_ctx) = (&state.limits, state.n_ctx);
    // A prompt limit that is no tighter than the context is not what to change.
    if n_prompt > limits.max_prompt && limits.max_prompt < n_ctx {
        let message =
            format!("the prompt has {n_prompt} tokens, this server takes {} (--max-prompt)", limits.max_prompt);
        return Err(ApiError::too_long(param, message));
    }
    if n_prompt > n_ctx || (n_prompt == n_ctx && asked != Some(0)) {
        let message = format!(
            "the prompt has {n_prompt} tokens, and a sequence of this server holds {n_ctx} with its answer (--ctx)"
        );
        return Err(ApiError::too_long(param, message));
    }
    // The last token needs no place in the cache.
    Ok(asked.unwrap_or(usize::MAX).min(limits.max_output).min(n_ctx + 1 - n_prompt))
}
