//! A steering vector and where it came from.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// What can be wrong with a vector file or with its use.
#[derive(Debug, thiserror::Error)]
pub enum SteerError {
    /// The file cannot be read or written.
    #[error(transparent)]
    Llama(#[from] crate::llama::LlamaError),
    /// The file is a GGUF but not a usable control vector.
    #[error("{path}: {reason}")]
    NotAVector {
        /// The file.
        path: PathBuf,
        /// What is missing or wrong.
        reason: String,
    },
    /// The vector does not fit the model.
    #[error("{0}")]
    Mismatch(String),
}

/// How a vector was made: the `bidpo.*` keys of its file. All optional: files of other tools have none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Provenance {
    /// Key (without the `bidpo.` prefix) and value, in key order.
    pub entries: BTreeMap<String, crate::llama::GgufValue>,
}

/// One direction for each steered layer, added to the residual stream after that block (counted from 0).
#[derive(Debug, Clone, PartialEq)]
pub struct SteeringVector {
    /// Layer -> direction, `[n_embd]` each; never empty, never layer 0.
    pub directions: BTreeMap<usize, Vec<f32>>,
    /// `controlvector.model_hint`: the architecture it was made for.
    pub model_hint: String,
    /// How it was made.
    pub provenance: Provenance,
}
