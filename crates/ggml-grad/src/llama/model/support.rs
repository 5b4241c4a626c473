//! Models that are refused, for each use.

use crate::llama::Model;
use std::path::PathBuf;

/// A use of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Training on the graph above a layer.
    Train,
    /// Gradients of log-probabilities ([`crate::trace`]).
    Trace,
    /// A conversation, or a single continuation.
    Chat,
    /// Answering several clients at once.
    Serve,
    /// Scoring answers that share a prompt.
    Score,
}

/// The property of a model for which a use is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// An encoder-decoder model (T5).
    EncoderDecoder,
    /// A model without causal attention: an encoder (BERT) or a diffusion model.
    NotCausal,
}

/// A model that cannot be used for a purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported {
    /// The model's file.
    pub model: PathBuf,
    /// llama.cpp's name of its architecture.
    pub architecture: String,
    /// The refused use.
    pub purpose: Use,
    /// The reason.
    pub obstacle: Obstacle,
}

impl std::error::Error for Unsupported {}

impl std::fmt::Display for Unsupported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (path, arch) = (self.model.display(), &self.architecture);
        let needs = if self.purpose == Use::Trace { "gradients need" } else { "bidpo trains on" };
        match (self.purpose, self.obstacle) {
            (Use::Chat, _) => write!(f, "{path} is an encoder-decoder model ({arch}): only decoder models can chat"),
            (Use::Serve, _) => {
                write!(f, "{path} does not write text from left to right ({arch}): it cannot be served")
            }
            (Use::Score, _) => write!(f, "{path} is an encoder-decoder model ({arch}): only decoders can be scored"),
            (Use::Train | Use::Trace, Obstacle::EncoderDecoder) => {
                write!(f, "{path} is an encoder-decoder model ({arch}): {needs} decoders only")
            }
            (Use::Train | Use::Trace, Obstacle::NotCausal) => write!(
                f,
                "{path} does not write from left to right ({arch}, an encoder or a diffusion model): {needs} \
                 autoregressive decoders"
            ),
        }
    }
}

impl Use {
    /// The obstacles that rule this use out, in the order in which they are reported.
    const fn obstacles(self) -> &'static [Obstacle] {
        match self {
            Self::Train | Self::Trace => &[Obstacle::EncoderDecoder, Obstacle::NotCausal],
            Self::Chat => &[Obstacle::EncoderDecoder],
            Self::Serve => &[Obstacle::EncoderDecoder, Obstacle::NotCausal],
            Self::Score => &[Obstacle::EncoderDecoder],
        }
    }
}

impl Model {
    /// Checks that the model can be used for `purpose`.
    ///
    /// # Errors
    /// [`Unsupported`] with the first obstacle.
    pub fn supports(&self, purpose: Use) -> Result<(), Unsupported> {
        let has = |obstacle: &&Obstacle| match obstacle {
            Obstacle::EncoderDecoder => self.has_encoder(),
            Obstacle::NotCausal => self.is_not_causal(),
        };
        match purpose.obstacles().iter().find(has) {
            None => Ok(()),
            Some(&obstacle) => {
                Err(Unsupported { model: self.path().to_owned(), architecture: self.architecture(), purpose, obstacle })
            }
        }
    }
}
