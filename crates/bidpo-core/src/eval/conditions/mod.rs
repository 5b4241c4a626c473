//! Conditions: the model with the vector, and with each baseline that the vector is compared with.

mod baselines;
pub mod caa;
pub mod condition;
mod other;
mod swap;
mod systems;

pub use baselines::{
    Baseline, BaselineError, BaselineNotice, Baselines, Conditions, Steered, training_pairs, unique_names,
    vector_conditions, vector_facts,
};
pub use condition::{Condition, STEERED, UNSTEERED};
pub use other::{OtherVector, other_conditions};
pub use swap::swapped_places;
pub use systems::{BUILTIN_SYSTEM_PROMPTS, SystemPrompts, refuses_system_prompts};
