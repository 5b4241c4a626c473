//! Errors of adapters.

use ggml_grad::files::FileError;
use ggml_grad::llama::LlamaError;
use std::path::PathBuf;

/// An error about an adapter or its file.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A GGUF file cannot be read or written, or llama.cpp refuses the adapter.
    #[error(transparent)]
    Llama(#[from] LlamaError),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A metadata key that GGUF cannot hold: nothing was written.
    #[error("cannot write {path}: {source}")]
    Key {
        /// The file that was to be written.
        path: PathBuf,
        /// The key and the reason.
        source: LlamaError,
    },
    /// The file is readable but holds no usable adapter.
    #[error("{path}: {reason}")]
    NotAnAdapter {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// What was asked for cannot be done on this model.
    #[error("{0}")]
    Impossible(String),
    /// The values in memory are no usable adapter; nothing was written.
    #[error("not a usable adapter: {0}")]
    Invalid(String),
}
