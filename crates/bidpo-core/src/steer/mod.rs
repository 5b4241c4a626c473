//! Steering vectors as values: arithmetic, norms, provenance, their files (GGUF, safetensors, npy), and what they add up to on a
//! model.

mod architecture;
mod combine;
mod compare;
mod conditional;
mod convention;
mod files;
mod identity;
mod ops;
mod provenance;
mod random;
mod range;
mod row_kinds;
mod rows;
mod vector;

pub use architecture::{Match, match_architecture};
pub use combine::{ControlVector, ScaledVector, architecture_note, combine, warnings};
pub use compare::{LayerComparison, VectorComparison};
pub use conditional::{Change, Conditional, GateMemory, Opening, Openings};
pub(crate) use convention::OUTPUT_WORDS;
pub use convention::{Convention, NormalizedVector};
pub use files::{FileRemark, Format, LoadedVector};
pub use identity::ModelIdentity;
pub use provenance::Provenance;
pub use random::rotated;
pub use range::{MeasuredRange, SafeRange};
pub use row_kinds::RowChanges;
pub use rows::{decode_steered, decode_steered_with};
pub(crate) use vector::mean_fraction;
pub use vector::{SteerError, SteeringVector, TRAINING_CURVE};
