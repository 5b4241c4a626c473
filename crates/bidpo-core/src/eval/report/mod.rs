//! Reports: Markdown (also for a terminal), JSON, HTML.

mod html;
mod json;
mod markdown;
mod plots;
pub mod svg;
mod tables;

pub use html::html;
pub use json::json;
pub use markdown::markdown;
