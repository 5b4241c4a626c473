//! Does a file of anyone's do on this model what it is meant to do? Which of its parts take effect, how far scale 1 moves the model,
//! and, with a few preference pairs, its sign and the layers that its directions belong to.

mod effect;
mod layers;
mod problem;
mod sign;

pub use effect::{Effect, Part};
pub use layers::{Belongs, Block, LayerFit, Lead, Over};
pub use problem::Problem;
pub use sign::SignChange;

use crate::data::TemplateError;
use crate::eval::ScoreError;
use crate::eval::price::{Price, PriceError};
use crate::extract::ExtractError;
use crate::steer::{ScaledVector, SteerError, combine};
use crate::train::NamedPair;
use ggml_grad::llama::{LlamaError, Model};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A check that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// llama.cpp's reason.
    #[error(transparent)]
    Llama(#[from] LlamaError),
    /// The file does not fit the model.
    #[error(transparent)]
    Steer(#[from] SteerError),
    /// Measuring on neutral text.
    #[error(transparent)]
    Price(#[from] PriceError),
    /// Scoring the pairs.
    #[error(transparent)]
    Score(#[from] ScoreError),
    /// Reading activations.
    #[error(transparent)]
    Extract(#[from] ExtractError),
    /// The test text.
    #[error(transparent)]
    Template(#[from] TemplateError),
}

/// What a file is checked with.
#[derive(Debug)]
pub struct Verification<'a> {
    /// The model.
    pub model: &'a Arc<Model>,
    /// Neutral passages to measure scale 1 on.
    pub passages: usize,
    /// Pairs whose chosen answers the file should make likelier; none: neither sign nor layers are checked.
    pub pairs: &'a [NamedPair],
    /// Threads.
    pub n_threads: u32,
    /// Stops the work.
    pub interrupt: &'a AtomicBool,
}

/// What was found.
#[derive(Debug)]
pub struct Verified {
    /// The layers or matrices, and which of them take effect.
    pub effect: Effect,
    /// How far scale 1 moves the model on neutral text; `None` where nothing is changed.
    pub price: Option<Price>,
    /// What becomes of the pairs.
    pub sign: Option<SignChange>,
    /// Where the directions belong, for constant vectors.
    pub layers: Option<LayerFit>,
    /// What speaks against using the file so.
    pub problems: Vec<Problem>,
}

impl Verification<'_> {
    /// Checks a vector or an adapter at scale 1.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub fn check(&self, dial: &ScaledVector) -> Result<Verified, VerifyError> {
        let mut problems = Vec::new();
        let effect = effect::effect(self, dial)?;
        problems.extend(effect.problems());
        let control = combine(std::slice::from_ref(dial), None, self.model)?;
        let moves = effect.largest_change > 0.0;
        let control = control.filter(|_| moves);
        let price = match &control {
            Some(control) => Some(Price::measure(self.model, control, self.passages, self.n_threads, self.interrupt)?),
            None => None,
        };
        if let Some(price) = price.as_ref().filter(|p| p.not_finite > 0) {
            problems.push(Problem::NotFinite { passages: price.not_finite, of: price.not_finite + price.passages });
        }
        let mut sign = None;
        if let (Some(control), false) = (&control, self.pairs.is_empty()) {
            let found = sign::sign(self, control)?;
            problems.extend(found.problem());
            sign = Some(found);
        }
        let layers = match self.pairs.is_empty() || !dial.vector.is_control_vector() {
            true => None,
            false => layers::layers(self, &dial.vector)?,
        };
        problems.extend(layers.as_ref().and_then(LayerFit::problem));
        Ok(Verified { effect, price, sign, layers, problems })
    }
}
