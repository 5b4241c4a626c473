//! The HTTP API: requests checked, jobs handed to the engine, answers in OpenAI's shapes.

mod body;
mod chat;
mod completions;
mod constraint;
mod error;
mod fields;
mod info;
mod messages;
mod notes;
pub(super) mod ollama;
mod request;
mod respond;
mod responses;
mod samplers;
mod score;
mod steering;
mod submit;
mod thoughts;
mod tokens;
mod tools;

pub(super) use chat::chat;
pub(super) use completions::completions;
pub(super) use error::ApiError;
pub(super) use info::{change_vectors, health, lora_adapters, metrics, model, models, not_offered, vectors};
pub(super) use responses::responses;
pub(super) use score::score;
pub(super) use tokens::{apply_template, detokenize, props, tokenize, tokenizer_info};
