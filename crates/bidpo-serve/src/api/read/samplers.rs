//! Sampling fields, stop sequences and limits of tokens.

use crate::api::read::error::ApiError;
use crate::api::read::fields::{Fields, short};
use crate::engine::sampling::Sampling;
use crate::state::State;
use ggml_grad::llama::{PenaltyParams, SamplerParams, Token};
use serde_json::{Value, json};

/// The most stop sequences of a request, and bytes of one.
const MAX_STOPS: usize = 64;
const MAX_STOP_BYTES: usize = 1024;

/// A limit of tokens; `None` where the client sets none: missing, null, or negative (llama.cpp, LM Studio). A limit above the
/// server's own is cut to that later.
pub(in crate::api) fn token_limit(fields: &mut Fields, key: &str, least: i64) -> Result<Option<usize>, ApiError> {
    match fields.integer(key, i64::MIN..=i64::MAX)? {
        Some(n) if n < 0 => Ok(None),
        Some(n) if n < least => {
            Err(fields.wrong(key, &format!("must be a whole number from {least}, or -1 for no limit, not {n}")))
        }
        n => Ok(n.map(|n| usize::try_from(n).unwrap_or(usize::MAX))),
    }
}

/// Limits of an answer's tokens under the names of OpenAI's two APIs, Hugging Face, llama.cpp and Ollama.
const LIMITS: [&str; 6] =
    ["max_completion_tokens", "max_tokens", "max_output_tokens", "max_new_tokens", "n_predict", "num_predict"];

/// True where a request sets a limit, under any name.
pub(in crate::api) fn sets_limit(fields: &Fields) -> bool {
    LIMITS.iter().any(|key| fields.is_set(key))
}

/// The smallest of all limits that a request sets: it obeys each.
pub(in crate::api) fn answer_limit(fields: &mut Fields, least: i64) -> Result<Option<usize>, ApiError> {
    let limits = LIMITS.iter().map(|key| token_limit(fields, key, least)).collect::<Result<Vec<_>, _>>()?;
    Ok(limits.into_iter().flatten().min())
}

/// Reads the sampling fields: OpenAI's defaults, where its API has them; off, where it has not.
pub(in crate::api) fn sampling(fields: &mut Fields, state: &State) -> Result<Sampling, ApiError> {
    let temperature = fields.number("temperature", 0.0..=100.0)?.unwrap_or(1.0) as f32;
    let top_p = fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0) as f32;
    let min_p = fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0) as f32;
    // vLLM's -1 and llama.cpp's 0 both mean off.
    let top_k = fields.integer("top_k", i64::MIN..=i64::MAX)?.unwrap_or(0).clamp(0, i64::from(i32::MAX)) as i32;
    // Some front-ends send 0 for off.
    let mut penalty = |key: &str| Ok::<_, ApiError>(fields.number(key, 0.0..=10.0)?.filter(|&x| x != 0.0));
    let repeat_penalty = match penalty("repeat_penalty")? {
        None => penalty("repetition_penalty")?,
        given => {
            fields.take("repetition_penalty");
            given
        }
    };
    let frequency = fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0) as f32;
    let presence = fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0) as f32;
    Ok(Sampling {
        params: SamplerParams {
            temperature,
            top_p,
            min_p,
            top_k,
            repeat_penalty: repeat_penalty.unwrap_or(1.0) as f32,
            seed: seed(fields)?,
        },
        penalties: PenaltyParams { frequency, presence, window: state.limits.max_output },
        bias: bias(fields, state.model.n_vocab(), |text| state.model.tokenize(text, false, false).ok())?,
    })
}

/// Reads `seed`; missing and -1 are a random one.
fn seed(fields: &mut Fields) -> Result<u32, ApiError> {
    let given = match fields.take("seed") {
        None => None,
        // A text may be a number.
        Some(value) => match value.as_u64().or_else(|| value.as_str()?.trim().parse().ok()) {
            Some(seed) => Some(seed as i64),
            None => {
                fields.put("seed", value);
                fields.integer("seed", i64::MIN..=i64::MAX)?
            }
        },
    };
    Ok(fold_seed(given.filter(|&seed| seed != -1).unwrap_or_else(rand::random)))
}

/// llama.cpp's seeds have 32 bits, and the largest one means "at random".
fn fold_seed(seed: i64) -> u32 {
    let seed = seed as u64;
    ((seed ^ (seed >> 32)) as u32).min(u32::MAX - 1)
}

/// Reads `logit_bias`: OpenAI's object, or llama.cpp's list of pairs, in which a text stands for each of its tokens.
fn bias(
    fields: &mut Fields,
    n_vocab: usize,
    tokenize: impl Fn(&str) -> Option<Vec<Token>>,
) -> Result<Vec<(Token, f32)>, ApiError> {
    let pairs: Vec<(Value, Value)> = match fields.take("logit_bias") {
        None => return Ok(Vec::new()),
        Some(Value::Object(map)) => {
            let number = |key: String| key.parse::<u64>().map_or(json!([key]), |token| json!(token));
            map.into_iter().map(|(key, value)| (number(key), value)).collect()
        }
        Some(Value::Array(list)) => {
            let pair = |v: Value| match v {
                Value::Array(pair) if pair.len() == 2 && !pair[0].is_array() => {
                    Some((pair[0].clone(), pair[1].clone()))
                }
                _ => None,
            };
            let pairs = list.into_iter().map(pair).collect::<Option<_>>();
            pairs.ok_or_else(|| fields.wrong("logit_bias", "must be an object, or a list of [token, number]"))?
        }
        Some(_) => return Err(fields.wrong("logit_bias", "must be an object, or a list of [token, number]")),
    };
    let mut bias = Vec::new();
    for (key, value) in pairs {
        let tokens = match &key {
            Value::String(text) => tokenize(text),
            key => key.as_u64().filter(|&t| (t as usize) < n_vocab).map(|t| vec![t as Token]),
        };
        let tokens = tokens.ok_or_else(|| {
            let what = format!("has {key}, which is no token of this model (0 to {})", n_vocab - 1);
            fields.wrong("logit_bias", &what)
        })?;
        let number = match value {
            // llama.cpp's word for "never".
            Value::Bool(false) => Some(f64::NEG_INFINITY),
            Value::String(text) => text.trim().parse().ok().filter(|b| (-100.0..=100.0).contains(b)),
            value => value.as_f64().filter(|b| (-100.0..=100.0).contains(b)),
        };
        let number = number.ok_or_else(|| fields.wrong("logit_bias", "must hold numbers from -100 to 100"))?;
        bias.extend(tokens.into_iter().map(|token| (token, number as f32)));
    }
    Ok(bias)
}

/// Reads `stop`; empty sequences stop nothing.
pub(in crate::api) fn stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let list = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(one) => vec![one],
    };
    let mut stops = Vec::new();
    for value in list {
        match value {
            Value::Null => {}
            Value::String(text) if text.is_empty() => {}
            Value::String(text) if text.len() <= MAX_STOP_BYTES => stops.push(text),
            other => {
                let what =
                    format!("must be one or more strings of at most {MAX_STOP_BYTES} bytes, not {}", short(&other));
                return Err(fields.wrong("stop", &what));
            }
        }
    }
    if stops.len() > MAX_STOPS {
        return Err(fields.wrong("stop", &format!("holds {} sequences, {MAX_STOPS} are allowed", stops.len())));
    }
    Ok(stops)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(value: Value) -> Fields {
        Fields::new(value, "").unwrap()
    }

    #[test]
    fn limits_of_other_servers_mean_none() {
        let limit = |value, least| token_limit(&mut fields(json!({"n": value})), "n", least);
        for (value, want) in [
            (json!(null), None),
            (json!(-1), None),
            (json!(-2), None),
            (json!("5"), Some(5)),
            (json!(""), None),
            (json!(1), Some(1)),
            (json!(100.0), Some(100)),
            (json!(32768), Some(32768)),
            (json!(u64::MAX), Some(i64::MAX as usize)),
            (json!(1e30), Some(i64::MAX as usize)),
        ] {
            assert_eq!(limit(value.clone(), 1), Ok(want), "{value}");
        }
        assert_eq!(limit(json!(0), 0), Ok(Some(0)));
        for value in [json!(0), json!(1.5), json!("five"), json!(true), json!([1])] {
            assert_eq!(limit(value.clone(), 1).unwrap_err().param.as_deref(), Some("n"), "{value}");
        }
    }

    #[test]
    fn empty_stops_stop_nothing() {
        let stops = |value| stop(&mut fields(json!({"stop": value})));
        for value in [json!(null), json!(""), json!([]), json!([""]), json!([null, ""])] {
            assert_eq!(stops(value.clone()), Ok(vec![]), "{value}");
        }
        assert_eq!(stops(json!(["a", "", "b"])), Ok(vec!["a".into(), "b".into()]));
        assert_eq!(stops(json!("a")), Ok(vec!["a".into()]));
        for value in [json!(1), json!(["a", 1]), json!("x".repeat(1025)), json!(vec!["x"; 65])] {
            assert!(stops(value.clone()).is_err(), "{value}");
        }
    }

    #[test]
    fn seeds_fit() {
        assert_eq!((fold_seed(0), fold_seed(42)), (0, 42));
        assert_eq!(fold_seed(i64::from(u32::MAX)), u32::MAX - 1);
        assert_ne!(fold_seed(1 << 40), fold_seed(0));
        let read = |value| seed(&mut fields(json!({"seed": value})));
        assert_eq!((read(json!(7)), read(json!(7.0))), (Ok(7), Ok(7)));
        assert!(read(json!(u64::MAX)).is_ok() && read(json!(1.5)).is_err());
        assert_ne!(read(json!(-1)), read(json!(-1)), "-1 is a random seed");
    }

    #[test]
    fn biases_come_as_object_or_list() {
        let tokenize = |text: &str| Some(text.bytes().map(|b| Token::from(b - b'a')).collect());
        let read = |value| bias(&mut fields(json!({"logit_bias": value})), 10, tokenize);
        assert_eq!(read(json!([["cb", -1], [4, 2]])), Ok(vec![(2, -1.0), (1, -1.0), (4, 2.0)]));
        assert_eq!(read(json!({"3": 5, "4": -100})), Ok(vec![(3, 5.0), (4, -100.0)]));
        assert_eq!(read(json!([[3, 1.5], [4, false]])), Ok(vec![(3, 1.5), (4, f32::NEG_INFINITY)]));
        assert_eq!(read(json!({})), Ok(vec![]));
        for value in [
            json!({"10": 1}),
            json!({"x": 1}),
            json!({"1": 101}),
            json!([3]),
            json!([[[3], 1]]),
            json!([[-1, 1]]),
            json!(1),
        ] {
            assert_eq!(read(value.clone()).unwrap_err().param.as_deref(), Some("logit_bias"), "{value}");
        }
    }
}
