//! Reports: Markdown (also for a terminal), JSON, HTML.

mod json;
mod text;

pub use json::json;
pub use text::markdown;
