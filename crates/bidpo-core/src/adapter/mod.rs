//! LoRA adapters as values and as files: `y = W x + s B (A x)` (Hu et al. 2021, arXiv 2106.09685, equation 3).

mod error;
mod file;
mod low_rank;
mod target;

pub use error::AdapterError;
pub use file::{AdapterFile, AdapterKind};
pub use low_rank::LowRank;
pub use target::Target;
