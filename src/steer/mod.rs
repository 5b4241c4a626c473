//! Steering vectors as values: arithmetic, norms, provenance, the GGUF control vector file.

mod control;
mod vector;

pub use control::ControlVector;
pub use vector::{Provenance, SteerError, SteeringVector};
