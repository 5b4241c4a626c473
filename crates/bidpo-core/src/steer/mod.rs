//! Steering vectors as values: arithmetic, norms, provenance, their files (GGUF, safetensors, npy), and what they add up to on a
//! model.

mod combine;
mod compare;
mod convention;
mod formats;
mod gguf;
mod identity;
mod npy;
mod ops;
mod random;
mod rows;
mod tensors;
mod vector;

pub use combine::{ControlVector, ScaledVector, combine, warnings};
pub use compare::{LayerComparison, VectorComparison};
pub(crate) use convention::OUTPUT_WORDS;
pub use convention::{Convention, NormalizedVector};
pub use formats::Format;
pub use identity::ModelIdentity;
pub use random::rotated;
pub use rows::decode_steered;
pub(crate) use vector::mean_fraction;
pub use vector::{Provenance, SteerError, SteeringVector, TRAINING_CURVE};
