//! Reports: Markdown (also for a terminal), JSON, HTML.

mod html;
mod json;
pub mod svg;
mod text;

pub use html::html;
pub use json::json;
pub use text::markdown;

/// Text as it may stand in HTML and in its attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            c => out.push(c),
        }
    }
    out
}
