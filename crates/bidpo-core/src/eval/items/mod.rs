//! Items to measure, where they come from, and the protocol that turns one into requests.

pub mod benchmark;
mod item;
pub mod protocol;
pub mod truthfulqa;

pub use benchmark::{Benchmark, Group};
pub use item::Item;
pub use protocol::Protocol;
