//! What concerns the whole process: exceptions and failed asserts of llama.cpp, its log, signals, its cores.

mod abort;
mod cores;
pub(super) mod guard;
pub(super) mod logging;
mod signals;

pub(super) use abort::install as install_abort_message;
pub use abort::{AbortMessage, set_abort_message};
pub(super) use cores::usable_cores;
pub use logging::{last_log_lines, set_verbose};
pub use signals::keeping_ignored_hangup;
pub(super) use signals::name_mapped_file;
