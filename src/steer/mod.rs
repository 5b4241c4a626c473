//! Steering vectors as values: arithmetic, norms, provenance, the GGUF control vector file, and what they add up to on a
//! model.

mod combine;
mod gguf;
mod identity;
mod ops;
mod rows;
mod vector;

pub use combine::{ControlVector, Dial, combine, warnings};
pub use identity::ModelIdentity;
pub use rows::decode_steered;
pub(crate) use vector::mean_fraction;
pub use vector::{Provenance, SteerError, SteeringVector};
