//! Kinds of interventions and adapters, as `--kind` names them.

use bidpo_core::intervention::Kind;
use std::fmt;
use std::str::FromStr;

/// What `--kind` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KindChoice {
    /// A change of the residual stream.
    Stream(Kind),
    /// An adapter.
    Lora,
    /// An adapter with a vector.
    LoraAdd,
}

impl FromStr for KindChoice {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "lora" => Ok(Self::Lora),
            "lora+add" => Ok(Self::LoraAdd),
            _ => s.parse().map(Self::Stream).map_err(|e: String| format!("{e}, lora, lora+add")),
        }
    }
}

impl fmt::Display for KindChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream(kind) => kind.fmt(f),
            Self::Lora => f.write_str("lora"),
            Self::LoraAdd => f.write_str("lora+add"),
        }
    }
}

impl KindChoice {
    /// The change of the residual stream; [`Kind::Add`] beside or instead of which an adapter is trained.
    pub fn stream(self) -> Kind {
        match self {
            Self::Stream(kind) => kind,
            Self::Lora | Self::LoraAdd => Kind::Add,
        }
    }

    /// True where an adapter is trained.
    pub fn is_lora(self) -> bool {
        matches!(self, Self::Lora | Self::LoraAdd)
    }
}
