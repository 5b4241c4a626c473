//! Reports: Markdown (also for a terminal), JSON, HTML.

mod html;
mod json;
pub mod svg;
mod text;

pub use html::html;
pub use json::json;
pub use text::markdown;
