//! The kinds by name, and their settings.

use super::{Add, Gate, Intervention, LowRank, OneLayer, Pool, Project, RowKind};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A kind of intervention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// A constant vector, one for each layer.
    #[default]
    Add,
    /// A vector behind a sigmoid gate, for each token.
    Gate,
    /// A vector whose factor is linear in the normalised row.
    LinearGate,
    /// A vector behind a gate that the prompt decides.
    PromptGate,
    /// A direction that is removed.
    Project,
    /// A direction along which the stream is moved to a level.
    Clamp,
    /// An edit in a subspace.
    LowRank,
}

impl Kind {
    /// Every kind.
    pub const EACH: [Self; 7] =
        [Self::Add, Self::Gate, Self::LinearGate, Self::PromptGate, Self::Project, Self::Clamp, Self::LowRank];

    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Gate => "gate",
            Self::LinearGate => "linear-gate",
            Self::PromptGate => "prompt-gate",
            Self::Project => "project",
            Self::Clamp => "clamp",
            Self::LowRank => "lowrank",
        }
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Self::EACH.into_iter().find(|k| k.name() == s).ok_or_else(|| {
            let names = Self::EACH.map(Self::name).join(", ");
            format!("there is no kind of intervention {s:?}: expected one of {names}")
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A kind with its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KindSpec {
    /// The kind.
    pub kind: Kind,
    /// Temperature of a sigmoid gate.
    pub tau: f64,
    /// A prompt gate reads the mean of the prompt instead of its last token.
    pub mean: bool,
    /// Rank of [`Kind::LowRank`].
    pub rank: usize,
}

impl Default for KindSpec {
    fn default() -> Self {
        Self { kind: Kind::Add, tau: 1.0, mean: false, rank: 8 }
    }
}

impl From<Kind> for KindSpec {
    fn from(kind: Kind) -> Self {
        Self { kind, ..Self::default() }
    }
}

/// A kind that cannot be used as asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KindError {
    /// Several layers for a kind at one.
    #[error(
        "an intervention of kind {kind} changes one layer, and {n_layers} were given: only kind add takes several (its rows are \
         known there before the graph runs). Give one layer with --layer"
    )]
    Layers {
        /// The kind.
        kind: Kind,
        /// Layers given.
        n_layers: usize,
    },
    /// A rank that does not fit.
    #[error("rank {rank} does not fit a residual stream of {n_embd} dimensions: give 1 to {n_embd}")]
    Rank {
        /// The rank.
        rank: usize,
        /// Width of the residual stream.
        n_embd: usize,
    },
    /// A gate that reads the whole prompt, at a layer where llama.cpp does not compute it.
    #[error(
        "a prompt gate that the mean of the prompt decides cannot be at layer {layer}: in its last block llama.cpp computes only \
         the rows whose logits are asked for. Choose a lower layer, or let the prompt's last token decide (--decided-by last)"
    )]
    LastLayer {
        /// The layer.
        layer: usize,
    },
}

impl KindSpec {
    /// Checks that what the kind reads is computed at `layer` of a model of `n_layer` blocks.
    ///
    /// # Errors
    /// [`KindError::LastLayer`].
    pub fn check_layer(&self, layer: usize, n_layer: usize) -> Result<(), KindError> {
        match self.kind {
            Kind::PromptGate if self.mean && layer + 1 == n_layer => Err(KindError::LastLayer { layer }),
            _ => Ok(()),
        }
    }

    /// The kind as changes of single rows; `None` for constant vectors.
    ///
    /// # Errors
    /// [`KindError::Rank`].
    pub fn rows(&self, n_embd: usize) -> Result<Option<Arc<dyn RowKind>>, KindError> {
        let gate = |tau, pool| -> Arc<dyn RowKind> { Arc::new(Gate { n_embd, tau, pool }) };
        let held = if self.mean { Pool::Mean } else { Pool::Last };
        Ok(Some(match self.kind {
            Kind::Add => return Ok(None),
            Kind::Gate => gate(Some(self.tau), Pool::Each),
            Kind::LinearGate => gate(None, Pool::Each),
            Kind::PromptGate => gate(Some(self.tau), held),
            Kind::Project => Arc::new(Project { n_embd, clamps: false }),
            Kind::Clamp => Arc::new(Project { n_embd, clamps: true }),
            Kind::LowRank if self.rank == 0 || self.rank > n_embd => {
                return Err(KindError::Rank { rank: self.rank, n_embd });
            }
            Kind::LowRank => Arc::new(LowRank { n_embd, rank: self.rank }),
        }))
    }

    /// The kind as an intervention at so many layers.
    ///
    /// # Errors
    /// [`KindError`].
    pub fn intervention(&self, n_layers: usize, n_embd: usize) -> Result<Arc<dyn Intervention>, KindError> {
        match self.rows(n_embd)? {
            None => Ok(Arc::new(Add { n_layers, n_embd })),
            Some(_) if n_layers != 1 => Err(KindError::Layers { kind: self.kind, n_layers }),
            Some(rows) => Ok(Arc::new(OneLayer(rows))),
        }
    }

    /// Settings that are not those of a kind by default, in words; empty where the kind has none.
    pub fn settings(&self) -> String {
        match self.kind {
            Kind::Gate => format!("tau {}", self.tau),
            Kind::PromptGate => {
                format!(
                    "tau {}, decided by {}",
                    self.tau,
                    if self.mean { "the prompt's mean" } else { "its last token" }
                )
            }
            Kind::LowRank => format!("rank {}", self.rank),
            Kind::Add | Kind::LinearGate | Kind::Project | Kind::Clamp => String::new(),
        }
    }
}
