//! Fields common to all computing requests: sampling, limits, steering.

use super::error::ApiError;
use super::fields::{Fields, short};
use crate::job::{Scope, Steering};
use crate::sampling::Sampling;
use crate::state::State;
use crate::vectors::{ScaleSpec, SteerSpec};
use bidpo_core::layers::Layers;
use ggml_grad::llama::{PenaltyParams, SamplerParams, Token};
use serde_json::Value;

/// The most choices, stop sequences, vectors, and likely tokens that a request may ask for.
const MAX_CHOICES: i64 = 16;
const MAX_STOPS: usize = 16;
const MAX_STEERING: usize = 16;
pub(super) const MAX_TOP_LOGPROBS: i64 = 20;

/// Fields that OpenAI's API has and that change nothing here.
const HARMLESS: [&str; 6] =
    ["user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier"];

/// Fields that would change the answer, each with the values that ask for nothing.
const UNSUPPORTED: [(&str, &[&str]); 17] = [
    ("tools", &["[]"]),
    ("tool_choice", &["\"none\"", "\"auto\""]),
    ("parallel_tool_calls", &["true", "false"]),
    ("functions", &["[]"]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("response_format", &["{\"type\":\"text\"}"]),
    ("modalities", &["[\"text\"]"]),
    ("audio", &[]),
    ("prediction", &[]),
    ("reasoning_effort", &["\"none\""]),
    ("verbosity", &[]),
    ("web_search_options", &[]),
    ("moderation", &[]),
    ("store", &["false"]),
    ("suffix", &["\"\""]),
    ("best_of", &["1"]),
    ("context_management", &[]),
];

/// Options common to all computing requests.
#[derive(Debug)]
pub(super) struct Common {
    pub n: usize,
    pub sampling: Sampling,
    pub stop: Vec<String>,
    pub stream: bool,
    pub include_usage: bool,
    pub steering: Steering,
}

/// Reads the fields that chat and completion share, and refuses those that cannot be obeyed.
pub(super) fn common(fields: &mut Fields, state: &State) -> Result<Common, ApiError> {
    model(fields, state)?;
    for key in HARMLESS {
        fields.take(key);
    }
    for (key, nothing) in UNSUPPORTED {
        if let Some(value) = fields.take(key).filter(|v| !nothing.contains(&v.to_string().as_str())) {
            let name = fields.name(key);
            return Err(ApiError::unsupported(
                &name,
                format!("{name} is not supported by this server (got {})", short(&value)),
            ));
        }
    }
    let n = fields.integer("n", 1..=MAX_CHOICES)?.unwrap_or(1) as usize;
    let stream = fields.boolean("stream")?.unwrap_or(false);
    let mut include_usage = false;
    if let Some(options) = fields.take("stream_options") {
        let mut options = Fields::new(options, "stream_options")?;
        include_usage = options.boolean("include_usage")?.unwrap_or(false);
        options.boolean("include_obfuscation")?;
        options.done()?;
        if !stream {
            return Err(fields.wrong("stream_options", "is only for stream: true"));
        }
    }
    Ok(Common {
        n,
        sampling: sampling(fields, state)?,
        stop: stop(fields)?,
        stream,
        include_usage,
        steering: steering(fields, state)?,
    })
}

/// Checks the field `model`, which may be left out.
pub(super) fn model(fields: &mut Fields, state: &State) -> Result<(), ApiError> {
    match fields.text("model")? {
        Some(name) if name != state.model_id => Err(ApiError::no_model(&name, &state.model_id)),
        _ => Ok(()),
    }
}

fn sampling(fields: &mut Fields, state: &State) -> Result<Sampling, ApiError> {
    // OpenAI's defaults, where the API has them; off, where it has not.
    let temperature = fields.number("temperature", 0.0..=100.0)?.unwrap_or(1.0) as f32;
    let top_p = fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0) as f32;
    let min_p = fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0) as f32;
    let top_k = fields.integer("top_k", 0..=i64::from(i32::MAX))?.unwrap_or(0) as i32;
    let repeat_penalty = fields.number("repeat_penalty", 0.01..=10.0)?.unwrap_or(1.0) as f32;
    let frequency = fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0) as f32;
    let presence = fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0) as f32;
    let seed = match fields.integer("seed", i64::MIN..=i64::MAX)? {
        Some(seed) => fold_seed(seed),
        None => fold_seed(rand::random()),
    };
    let mut bias = Vec::new();
    if let Some(map) = fields.take("logit_bias") {
        let Value::Object(map) = map else { return Err(fields.wrong("logit_bias", "must be an object")) };
        let n_vocab = state.model.n_vocab();
        for (key, value) in map {
            let token = key.parse::<Token>().ok().filter(|&t| t >= 0 && (t as usize) < n_vocab);
            let token = token.ok_or_else(|| {
                fields.wrong(
                    "logit_bias",
                    &format!("has {key:?}, which is no token of this model (0 to {})", n_vocab - 1),
                )
            })?;
            let number = value.as_f64().filter(|b| (-100.0..=100.0).contains(b));
            let number = number.ok_or_else(|| fields.wrong("logit_bias", "must hold numbers from -100 to 100"))?;
            bias.push((token, number as f32));
        }
    }
    Ok(Sampling {
        params: SamplerParams { temperature, top_p, min_p, top_k, repeat_penalty, seed },
        penalties: PenaltyParams { frequency, presence, window: state.limits.max_output },
        bias,
    })
}

/// llama.cpp's seeds have 32 bits, and the largest one means "at random".
fn fold_seed(seed: i64) -> u32 {
    let seed = seed as u64;
    ((seed ^ (seed >> 32)) as u32).min(u32::MAX - 1)
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let list = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(one) => vec![one],
    };
    if list.len() > MAX_STOPS {
        return Err(fields.wrong("stop", &format!("holds {} sequences, {MAX_STOPS} are allowed", list.len())));
    }
    list.into_iter()
        .map(|value| match value {
            Value::String(text) if !text.is_empty() && text.len() <= 1024 => Ok(text),
            other => {
                Err(fields
                    .wrong("stop", &format!("must be one or more strings of 1 to 1024 bytes, not {}", short(&other))))
            }
        })
        .collect()
}

/// Reads `steering` and `scope`.
pub(super) fn steering(fields: &mut Fields, state: &State) -> Result<Steering, ApiError> {
    let scope = match fields.text("scope")?.as_deref() {
        None | Some("all") => Scope::All,
        Some("prompt") => Scope::Prompt,
        Some("answer") => Scope::Answer,
        Some(other) => {
            return Err(fields.wrong("scope", &format!("must be \"all\", \"prompt\" or \"answer\", not {other:?}")));
        }
    };
    let list = fields.list("steering")?.unwrap_or_default();
    let at = fields.name("steering");
    if list.len() > MAX_STEERING {
        return Err(ApiError::invalid(&at, format!("{at} holds {} entries, {MAX_STEERING} are allowed", list.len())));
    }
    let specs =
        list.into_iter().enumerate().map(|(i, v)| spec(v, &format!("{at}[{i}]"))).collect::<Result<Vec<_>, _>>()?;
    let vector = state.vectors.resolve(&specs).map_err(|e| {
        let name = format!("{at}[{}].{}", e.entry, e.field);
        ApiError::invalid(&name, format!("{name}: {}", e.reason))
    })?;
    Ok(Steering { vector, scope })
}

/// One entry: `{"vector": "honest", "scale": 1.5, "layers": [10, 20]}`.
fn spec(value: Value, at: &str) -> Result<SteerSpec, ApiError> {
    let mut fields = Fields::new(value, at)?;
    let vector = fields
        .text("vector")?
        .ok_or_else(|| fields.wrong("vector", "is missing: the name of a vector (see /v1/vectors)"))?;
    let scale = match fields.take("scale") {
        None => ScaleSpec::Factor(1.0),
        Some(value) => scale(&value).ok_or_else(|| {
            fields.wrong(
                "scale",
                &format!("must be a number (1.5) or a percentage of the residual norm (\"5%\"), not {}", short(&value)),
            )
        })?,
    };
    let layers = match fields.take("layers") {
        None => None,
        Some(value) => Some(layers(&value).ok_or_else(|| {
            fields.wrong("layers", "must be a range [10, 20] (both ends included) or a list \"5,9,12-14\"")
        })?),
    };
    fields.done()?;
    Ok(SteerSpec { vector, scale, layers })
}

fn scale(value: &Value) -> Option<ScaleSpec> {
    if let Some(number) = value.as_f64() {
        let factor = number as f32;
        return factor.is_finite().then_some(ScaleSpec::Factor(factor));
    }
    let percent: f64 = value.as_str()?.trim().strip_suffix('%')?.trim().parse().ok()?;
    percent.is_finite().then_some(ScaleSpec::Percent(percent))
}

fn layers(value: &Value) -> Option<Layers> {
    match value {
        Value::Array(ends) => {
            let [first, last] = ends.as_slice() else { return None };
            let (first, last) = (first.as_u64()?, last.as_u64()?);
            // The reader of lists checks the order and the size.
            format!("{first}-{last}").parse().ok()
        }
        Value::String(list) => list.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn steering_is_read() {
        let s = spec(json!({"vector": "honest", "scale": 1.5, "layers": [10, 20]}), "steering[0]").unwrap();
        assert_eq!((s.vector.as_str(), s.scale), ("honest", ScaleSpec::Factor(1.5)));
        assert_eq!(s.layers.unwrap().to_string(), "10-20");
        let s = spec(json!({"vector": "a", "scale": " -5 %", "layers": "5,9,12-14"}), "x").unwrap();
        assert_eq!((s.scale, s.layers.unwrap().to_string()), (ScaleSpec::Percent(-5.0), "5,9,12-14".into()));
        assert_eq!(spec(json!({"vector": "a"}), "x").unwrap().scale, ScaleSpec::Factor(1.0));
    }

    #[test]
    fn wrong_steering_is_named() {
        let error = |v| spec(v, "steering[1]").unwrap_err();
        assert_eq!(error(json!({})).param.as_deref(), Some("steering[1].vector"));
        assert_eq!(error(json!("honest")).param.as_deref(), Some("steering[1]"));
        for scale in [json!("5"), json!("x%"), json!(true), json!(1e39), json!("inf%"), json!([])] {
            assert_eq!(error(json!({"vector": "a", "scale": scale})).param.as_deref(), Some("steering[1].scale"));
        }
        for layers in [json!([20, 10]), json!([1]), json!([1, 2, 3]), json!("x"), json!(5), json!([0, 1e12])] {
            assert_eq!(error(json!({"vector": "a", "layers": layers})).param.as_deref(), Some("steering[1].layers"));
        }
        assert_eq!(error(json!({"vector": "a", "path": "/etc/passwd"})).message, "unknown parameter steering[1].path");
    }

    #[test]
    fn seeds_fit() {
        assert_eq!((fold_seed(0), fold_seed(42)), (0, 42));
        assert_eq!(fold_seed(i64::from(u32::MAX)), u32::MAX - 1);
        assert_ne!(fold_seed(1 << 40), fold_seed(0));
    }
}
