//! Fields common to all computing requests.

use crate::api::read::constraint::constraint;
use crate::api::read::error::ApiError;
use crate::api::read::fields::{Fields, short};
use crate::api::read::samplers::{sampling, stop};
use crate::api::read::steering::model_and_steering;
use crate::engine::job::Steering;
use crate::engine::sampling::Sampling;
use crate::state::State;
use ggml_grad::llama::Grammar;

/// The most choices and likely tokens that a request may ask for.
const MAX_CHOICES: i64 = 16;
pub(in crate::api) const MAX_TOP_LOGPROBS: i64 = 20;

/// Fields of OpenAI's API that change no answer of this server: names, records, caches, hints of speed.
const HARMLESS: [&str; 14] = [
    "cache_control",
    "cache_prompt",
    "metadata",
    "moderation",
    "parallel_tool_calls",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
    "verbosity",
];

/// Fields that would change the form of the answer, each with the values that ask for nothing.
const UNSUPPORTED: [(&str, &[&str]); 9] = [
    ("tools", &["[]"]),
    ("tool_choice", &["\"none\"", "\"auto\"", "\"\""]),
    ("functions", &["[]"]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("modalities", &["[\"text\"]", "[]"]),
    ("audio", &["{}"]),
    ("web_search_options", &[]),
    ("suffix", &["\"\""]),
    ("use_beam_search", &["false"]),
];

/// Options common to all computing requests.
#[derive(Debug)]
pub(in crate::api) struct Common {
    /// The model's name, as the client gave it.
    pub model: String,
    pub n: usize,
    pub sampling: Sampling,
    pub stop: Vec<String>,
    pub stream: bool,
    pub include_usage: bool,
    pub steering: Steering,
    /// The answer's form.
    pub grammar: Option<Grammar>,
}

/// Reads the fields that chat and completion share, and refuses those that cannot be obeyed.
pub(in crate::api) fn common(fields: &mut Fields, state: &State) -> Result<Common, ApiError> {
    let (model, steering) = model_and_steering(fields, state)?;
    for key in HARMLESS {
        fields.take(key);
    }
    for (key, nothing) in UNSUPPORTED {
        if let Some(value) = fields.take(key).filter(|v| !nothing.contains(&v.to_string().as_str())) {
            let name = fields.name(key);
            let instead =
                if key.starts_with("function") { ": send tools and tool_choice, which replaced it" } else { "" };
            let message = format!("{name} is not supported by this server (got {}){instead}", short(&value));
            return Err(ApiError::unsupported(&name, message));
        }
    }
    let n = fields.integer("n", 1..=MAX_CHOICES)?.unwrap_or(1);
    if fields.integer("best_of", 0..=MAX_CHOICES)?.is_some_and(|best| best > n) {
        return Err(ApiError::unsupported("best_of", "best_of above n is not supported by this server"));
    }
    let stream = fields.boolean("stream")?.unwrap_or(false);
    let mut include_usage = false;
    if let Some(options) = fields.take("stream_options") {
        // Some clients send it without stream: true.
        let mut options = Fields::new(options, "stream_options")?;
        include_usage = options.boolean("include_usage")?.unwrap_or(false);
    }
    Ok(Common {
        model,
        n: n as usize,
        sampling: sampling(fields, state)?,
        stop: stop(fields)?,
        stream,
        include_usage,
        steering,
        grammar: constraint(fields, state)?,
    })
}
