//! Groups of flags that several commands share.

pub mod data;
pub mod devices;
pub mod eval;
pub mod habits;
pub mod headings;
pub mod kinds;
mod llama_options;
mod model;
pub mod names;
pub mod outputs;
mod probe;
pub mod sampling;
pub mod shipped;
pub mod steering;
pub mod template;
pub mod writing;

pub use model::{ModelArgs, ModelFile};
