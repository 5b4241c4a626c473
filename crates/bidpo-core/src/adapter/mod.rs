//! LoRA adapters as values and as files: `y = W x + s B (A x)` (Hu et al. 2021, arXiv 2106.09685, equation 3).

mod ablation;
mod error;
mod file;
mod loaded;
mod low_rank;
mod merge;
mod peft;
mod target;

pub use ablation::{Ablation, Inexact};
pub use error::AdapterError;
pub use file::{AdapterFile, AdapterKind};
pub use loaded::{Adapters, LoadedAdapter, OpenedAdapter};
pub use low_rank::LowRank;
pub use merge::{MERGED, MergedTensor, merge};
pub use peft::{CONFIG, HeadCounts, WEIGHTS};
pub use target::Target;
