//! What speaks against a file.

use std::fmt;

/// A reason not to use a file as it is.
#[derive(Debug, Clone, PartialEq)]
pub enum Problem {
    /// Parts that change nothing.
    WithoutEffect {
        /// Their names.
        parts: Vec<String>,
        /// All parts.
        of: usize,
    },
    /// No logit moves.
    NothingMoves,
    /// Predictions that are not finite.
    NotFinite {
        /// On so many passages.
        passages: usize,
        /// Of so many.
        of: usize,
    },
    /// The chosen answers become less likely.
    SignReversed {
        /// Change of the log-probability difference from scale -1 to +1, halved, nats a pair.
        change: f64,
    },
    /// The directions are those of the block below.
    OneBlockEarlier,
    /// The directions are those of the block above.
    OneBlockLater,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WithoutEffect { parts, of } => {
                let shown = parts.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
                let more = if parts.len() > 8 { ", ..." } else { "" };
                write!(f, "{} of {of} parts change nothing in this model: {shown}{more}", parts.len())
            }
            Self::NothingMoves => f.write_str("no logit moves: the file has no effect on this model"),
            Self::NotFinite { passages, of } => {
                write!(f, "at scale 1 the predictions on {passages} of {of} passages are not finite: it breaks the model")
            }
            Self::SignReversed { change } => write!(
                f,
                "the sign is reversed for these pairs: scale +1 makes the chosen answers less likely ({change:+.3} nats a pair): \
                 use negative scales"
            ),
            Self::OneBlockEarlier => f.write_str(
                "direction.N looks like the activations at the output of block N - 1 (llama.cpp's cvector-generator): give \
                 --convention generator wherever the file is used",
            ),
            Self::OneBlockLater => f.write_str(
                "direction.N looks like the activations at the output of block N + 1: no convention that bidpo reads numbers layers \
                 so; write the file again with direction.N measured at the output of block N",
            ),
        }
    }
}
