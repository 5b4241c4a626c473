//! The evaluation callback: watching a graph while llama.cpp computes it, replacing kernels, changing rows.

mod eval_callback;
mod node;
mod row_change;

pub(super) use eval_callback::{CallbackSlot, aborts, trampoline};
pub use eval_callback::{EvalCallback, KernelOverride};
pub(super) use node::COMPUTE;
pub use node::{Node, NodeId};
pub use row_change::RowChange;
pub(super) use row_change::RowHook;
