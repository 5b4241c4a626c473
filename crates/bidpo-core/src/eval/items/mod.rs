//! Items to measure, where they come from, and the protocol that turns one into requests.

pub mod benchmark;
mod item;
pub mod protocol;
mod selection;
pub mod truthfulqa;

pub use benchmark::{Benchmark, Group};
pub use item::Item;
pub use protocol::Protocol;
pub use selection::{ItemSelection, SelectionError, part_facts};
