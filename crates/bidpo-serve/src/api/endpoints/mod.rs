//! One file for each endpoint, or for those that belong together.

pub(in crate::api) mod chat;
pub(in crate::api) mod completions;
pub(in crate::api) mod info;
pub(in crate::api) mod llama;
pub(crate) mod ollama;
pub(in crate::api) mod responses;
pub(in crate::api) mod score;
pub(in crate::api) mod tokens;
