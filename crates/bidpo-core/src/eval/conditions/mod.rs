//! Conditions: the model with the vector, and with each baseline that the vector is compared with.

pub mod caa;
pub mod condition;

pub use condition::{Condition, STEERED, UNSTEERED};
