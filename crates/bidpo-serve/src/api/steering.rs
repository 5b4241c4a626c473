//! The steering of a request.

use super::error::ApiError;
use super::fields::{Fields, short};
use crate::job::{Scope, Steering};
use crate::state::State;
use crate::vectors::{ScaleSpec, SteerSpec};
use bidpo_core::layers::Layers;
use serde_json::Value;

/// The most vectors of a request.
const MAX_STEERING: usize = 16;

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
    fields.none_left()?;
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
}
