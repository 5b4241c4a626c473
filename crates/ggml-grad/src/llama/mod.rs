//! Safe Rust over llama.cpp: model, context, batch, sampling, control vector, tap.
//!
//! This is the only place (with `graph::emit` and `graph::kernels`) that touches llama.cpp's C API. Everything that
//! crosses the boundary is checked here first: sizes, ranges, NUL bytes. ggml answers a broken promise with `abort()`,
//! so a mistake that reaches it cannot be reported any more.

#![allow(unsafe_code)] // The C API of llama.cpp.

mod adapter;
mod callback;
mod context;
mod devices;
mod gguf;
mod model;
mod process;
mod sampling;
mod tensor;

pub use adapter::Adapter;
pub use callback::{EvalCallback, KernelOverride, Node, NodeId, RowChange};
pub use context::{
    Batch, BatchRow, Context, ContextParams, KvType, Pool, ReferenceContext, default_threads, first_token,
};
pub use devices::{
    CpuFeature, Device, LLAMA_CPP_SYS_VERSION, backends, connect_worker, cpu_features, device_memory, devices,
    ggml_commit, ggml_version, resolve_endpoint, serve_devices, system_info,
};
pub(crate) use devices::{device_name, is_rpc};
pub use gguf::{GgufFile, GgufValue, GgufWriter, TensorSink};
pub use model::{
    Model, ModelParams, Obstacle, Offload, Placement, SplitMode, Unsupported, Use, apply_builtin_chat_format,
    architectures, builtin_chat_formats,
};
pub use process::{AbortMessage, keeping_ignored_hangup, last_log_lines, set_abort_message, set_verbose};
pub use sampling::{Grammar, GrammarError, PenaltyParams, Sampler, SamplerParams};
pub use tensor::{DType, FileTensor, Weight, dequantize, quantize, to_f32};

pub(crate) use llama_cpp_sys_2 as sys;

use crate::files::FileError;
use std::path::PathBuf;

/// A token id of the model's vocabulary.
pub type Token = i32;

/// Errors of llama.cpp and its files.
#[derive(Debug, thiserror::Error)]
pub enum LlamaError {
    /// The file cannot be opened, read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file does not start with the GGUF magic.
    #[error(
        "{path} is not a GGUF file (it starts with {found:?}, a GGUF file starts with \"GGUF\"); models and control vectors both are GGUF files"
    )]
    NotGguf {
        /// The file.
        path: PathBuf,
        /// Its first four bytes.
        found: String,
    },
    /// llama.cpp refused the file.
    #[error("llama.cpp cannot load {path}: {reason}")]
    Load {
        /// The file.
        path: PathBuf,
        /// llama.cpp's last words.
        reason: String,
    },
    /// A context could not be made.
    #[error("llama.cpp cannot make a context of {n_ctx} tokens: {reason}")]
    Context {
        /// Tokens asked for.
        n_ctx: u32,
        /// llama.cpp's last words.
        reason: String,
    },
    /// Text that the tokenizer cannot take.
    #[error("cannot tokenize: {0}")]
    Tokenize(String),
    /// A batch that does not fit.
    #[error("{0}")]
    Batch(String),
    /// `llama_decode` failed.
    #[error("llama_decode failed with code {code} on {n_tokens} tokens: {reason}")]
    Decode {
        /// The return code (1: no room in the KV cache).
        code: i32,
        /// Tokens in the batch.
        n_tokens: usize,
        /// llama.cpp's last words.
        reason: String,
    },
    /// The flag of [`Context::set_interrupt`] became true. The batch's tokens are not in the cache.
    #[error("the computation was interrupted")]
    Interrupted,
    /// A batch gave NaN or infinite logits. Its part of the cache must not be used any more.
    #[error("the model's logits are not finite (NaN or infinity): a steering scale is too large, or {path} is damaged")]
    NotFinite {
        /// The model's file.
        path: PathBuf,
    },
    /// A LoRA adapter that cannot be loaded or does not fit the model.
    #[error("the LoRA adapter {path} cannot be used: {reason}")]
    Adapter {
        /// The file.
        path: PathBuf,
        /// llama.cpp's last words.
        reason: String,
    },
    /// A control vector that does not fit the model.
    #[error("{0}")]
    ControlVector(String),
    /// Reading or writing a GGUF file's metadata failed.
    #[error("{0}")]
    Gguf(String),
    /// A metadata key that a GGUF file cannot hold.
    #[error("the metadata key {key:?} cannot be written to a GGUF file: {reason}")]
    GgufKey {
        /// The key.
        key: String,
        /// Why not.
        reason: &'static str,
    },
    /// A grammar that is too ambiguous at some point of a text.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
    /// llama.cpp threw an exception, or a check of its own failed.
    #[error("llama.cpp failed: {0}")]
    Failed(String),
    /// A tensor or a value of a model's file that llama.cpp cannot compute with.
    #[error("{path} cannot be used as a model: {reason}")]
    Vetted {
        /// The file.
        path: PathBuf,
        /// The tensor or key, its value, and what would do.
        reason: String,
    },
    /// The model cannot be used with this tool.
    #[error("{0}")]
    Unsupported(String),
    /// A device or a worker that is not there, or not usable.
    #[error("{0}")]
    Device(String),
    /// A kernel override failed.
    #[error("internal error in a kernel override: {0}")]
    Kernel(String),
    /// A graph callback panicked; the panic was kept on the Rust side of the boundary.
    #[error("internal error in a graph callback: {0}")]
    Callback(String),
}

/// Starts llama.cpp once for the process. Called by every constructor; calling it again costs nothing.
pub(crate) fn init() {
    unsafe extern "C" {
        /// `csrc/waiting.cpp`.
        fn ggml_grad_waiting();
    }
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        process::logging::install();
        process::install_abort_message();
        // SAFETY: no arguments; called once, before any other llama.cpp call.
        unsafe {
            ggml_grad_waiting();
            sys::llama_backend_init();
        };
    });
}
