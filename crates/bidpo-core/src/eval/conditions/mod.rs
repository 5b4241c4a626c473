//! Conditions: the model with the vector, and with each baseline that the vector is compared with.

mod baselines;
pub mod caa;
pub mod condition;
mod swap;

pub use baselines::{
    Baseline, BaselineError, BaselineNotice, Baselines, Conditions, OtherVector, Steered, vector_conditions,
    vector_facts,
};
pub use condition::{Condition, STEERED, UNSTEERED};
pub use swap::swapped_places;
