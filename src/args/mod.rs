//! Groups of flags that several commands share.

pub mod devices;
mod model;
pub mod sampling;
pub mod steering;

pub use model::ModelArgs;
