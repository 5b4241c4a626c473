//! Errors of a run.

use crate::eval::prompt::PromptError;
use crate::eval::results::ResultsError;
use crate::eval::scoring::ScoreError;

/// Errors of a run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A prompt cannot be made.
    #[error("{place}: {source}")]
    Prompt {
        /// The condition.
        place: String,
        /// Reason.
        source: PromptError,
    },
    /// An item cannot be scored.
    #[error("{place}: {source}")]
    Score {
        /// The item or the condition.
        place: String,
        /// Reason.
        source: ScoreError,
    },
    /// The model gives no numbers.
    #[error(
        "{place}: the model's log-probabilities are not finite under {condition:?}: is the scale of the vector far too large?"
    )]
    NotFinite {
        /// The item.
        place: String,
        /// The condition.
        condition: String,
    },
    /// The results file cannot be written or read.
    #[error(transparent)]
    Results(#[from] ResultsError),
    /// The shard is empty.
    #[error("shard {shard} holds none of the {items} items")]
    EmptyShard {
        /// The shard.
        shard: crate::eval::results::Shard,
        /// Items of all shards.
        items: usize,
    },
}

impl RunError {
    /// An error of scoring that concerns a condition and no single item.
    pub(super) fn under(condition: &str) -> impl Fn(ScoreError) -> Self + Copy {
        move |source| Self::Score { place: format!("condition {condition:?}"), source }
    }
}
