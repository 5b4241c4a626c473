//! Errors of scoring answers.

use ggml_grad::llama::LlamaError;

/// Errors of scoring answers.
#[derive(Debug, thiserror::Error)]
pub enum ScoreError {
    /// llama.cpp failed.
    #[error(transparent)]
    Llama(#[from] LlamaError),
    /// The model cannot share a prompt between sequences.
    #[error(transparent)]
    Model(#[from] ggml_grad::llama::Unsupported),
    /// The model's graph cannot be used for scoring.
    #[error("{0}")]
    Unsupported(String),
    /// A prompt or an answer that cannot be scored.
    #[error("{0}")]
    Input(String),
    /// A prompt with its answer that is longer than the model's context.
    #[error(
        "prompt and answer have {tokens} tokens, the model was trained for {limit}: shorten the preamble or the prompt"
    )]
    TooLong {
        /// Tokens of the prompt and its answer.
        tokens: usize,
        /// Context length that the model was trained for, tokens.
        limit: usize,
    },
    /// One of many requests cannot be scored.
    #[error("request {request}: {source}")]
    Request {
        /// Index of the request in the list, from 0.
        request: usize,
        /// Its error.
        source: Box<ScoreError>,
    },
}
