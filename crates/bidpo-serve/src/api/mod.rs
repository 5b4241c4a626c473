//! The HTTP API: requests checked, jobs handed to the engine, answers in OpenAI's shapes.

mod endpoints;
mod read;
mod respond;
mod submit;

pub(super) use endpoints::chat::chat;
pub(super) use endpoints::completions::completions;
pub(super) use endpoints::info::{
    change_vectors, health, lora_adapters, metrics, model, models, not_offered, slots, vectors,
};
pub(super) use endpoints::llama::completion;
pub(super) use endpoints::ollama;
pub(super) use endpoints::responses::responses;
pub(super) use endpoints::score::score;
pub(super) use endpoints::tokens::{apply_template, detokenize, props, tokenize, tokenizer_info};
pub(super) use read::error::ApiError;
