//! Items to measure, where they come from, and the protocol that turns one into requests.

pub mod benchmark;
mod categories;
mod item;
pub mod protocol;
mod selection;
pub mod truthfulqa;

pub use benchmark::{Benchmark, Group};
pub use categories::{add_categories, categories_beside};
pub use item::Item;
pub use protocol::Protocol;
pub use selection::{ItemSelection, SelectionError, part_facts, part_name};
