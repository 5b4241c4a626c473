//! Steering vectors as values: arithmetic, norms, provenance, the GGUF control vector file.

mod vector;

pub use vector::{Provenance, SteerError, SteeringVector};
