//! The steering of a request.

use crate::api::read::error::ApiError;
use crate::api::read::fields::{Fields, short};
use crate::engine::job::{SteeredRows, Steering};
use crate::state::State;
use crate::vectors::{ScaleSpec, SteerSpec};
use bidpo_core::intervention::{Scope, ScopePart};
use bidpo_core::layers::Layers;
use serde_json::Value;

/// The most vectors of a request.
const MAX_STEERING: usize = 16;

/// Reads `model`, which may be left out, `steering`, `lora` and `scope`. The vectors that the model's name holds come first.
pub(in crate::api) fn model_and_steering(fields: &mut Fields, state: &State) -> Result<(String, Steering), ApiError> {
    let name = fields.text("model")?.filter(|name| !name.is_empty()).unwrap_or_else(|| state.names.base.clone());
    let Some(of_model) = state.names.find(&name) else { return Err(ApiError::no_model(&name, &state.names.base)) };
    let steering = steering(fields, state, of_model).map_err(|e| match e {
        SteeringError::Model(reason) => ApiError::model_without(&name, &reason),
        SteeringError::Api(error) => error,
    })?;
    Ok((name, steering))
}

/// An error about the vectors of the model's name, or about a field.
enum SteeringError {
    Model(String),
    Api(ApiError),
}

impl From<ApiError> for SteeringError {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

/// Reads `steering`, `lora` and `scope`. `of_model`: what is added before.
fn steering(fields: &mut Fields, state: &State, of_model: Vec<SteerSpec>) -> Result<Steering, SteeringError> {
    let scope = scope(fields, state)?;
    let list = fields.list("steering")?.unwrap_or_default();
    let at = fields.name("steering");
    let n = of_model.len() + list.len();
    if n > MAX_STEERING {
        let message = format!("{at} holds {n} entries with the model's own, {MAX_STEERING} are allowed");
        return Err(ApiError::invalid(&at, message).into());
    }
    let n_model = of_model.len();
    let mut specs = of_model;
    for (i, value) in list.into_iter().enumerate() {
        specs.push(spec(value, &format!("{at}[{i}]"))?);
    }
    specs.extend(adapters(fields, state, &specs)?);
    let lora = fields.name("lora");
    let resolve = |scope| {
        state.vectors.resolve(&specs, scope).map_err(|e| match e.entry.checked_sub(n_model) {
            None => SteeringError::Model(e.reason),
            Some(_) if e.entry >= n => SteeringError::Api(ApiError::invalid(&lora, format!("{lora}: {}", e.reason))),
            Some(entry) => {
                let name = format!("{at}[{entry}].{}", e.field);
                SteeringError::Api(ApiError::invalid(&name, format!("{name}: {}", e.reason)))
            }
        })
    };
    let Some(scope) = scope else { return Ok(Steering { vector: resolve(None)?, rows: SteeredRows::All }) };
    if resolve(None)?.is_some_and(|v| !v.adapters.is_empty()) {
        let name = fields.name("scope");
        let message = format!("{name} must be left out: an adapter of this request acts at every position");
        return Err(ApiError::invalid(&name, message).into());
    }
    // Vectors that act at every row are left away from the others: the cache of those is that of an unsteered request.
    let rows = match scope.parts() {
        [ScopePart::Prompt] => Some(SteeredRows::Prompt),
        [ScopePart::Answer] => Some(SteeredRows::Answer),
        _ => None,
    };
    if let Some(rows) = rows {
        let vector = resolve(None)?;
        if !vector.as_ref().is_some_and(|v| v.depends_on_prompt()) {
            return Ok(Steering { vector, rows });
        }
    }
    Ok(Steering { vector: resolve(Some(&scope))?, rows: SteeredRows::All })
}

/// Reads `scope`, in the words of the command's `--scope`. None: each vector acts where it was trained to act.
fn scope(fields: &mut Fields, state: &State) -> Result<Option<Scope>, ApiError> {
    let Some(text) = fields.text("scope")? else { return Ok(None) };
    let at = fields.name("scope");
    let wrong = |reason: String| ApiError::invalid(&at, format!("{at}: {reason}"));
    let scope: Scope = text.trim().parse().map_err(wrong)?;
    if scope.is_all() {
        return Ok(None);
    }
    state.template.scoped(&scope, &state.model).map(Some).map_err(|e| wrong(e.to_string()))
}

/// The adapters of the field `lora`, as llama-server has it: `[{"id": 0, "scale": 0.5}]`, those that are not named at scale 0.
/// Without it the adapters of the command line act at their own scales, unless `named` (the model's name and `steering`) dials them.
fn adapters(fields: &mut Fields, state: &State, named: &[SteerSpec]) -> Result<Vec<SteerSpec>, ApiError> {
    let Some(list) = fields.list("lora")? else {
        let mut defaults = state.vectors.defaults();
        defaults.retain(|d| named.iter().all(|n| n.vector != d.vector));
        return Ok(defaults);
    };
    let known = state.vectors.adapters();
    let at = fields.name("lora");
    if list.len() > MAX_STEERING {
        return Err(fields.wrong("lora", &format!("holds {} entries, {MAX_STEERING} are allowed", list.len())));
    }
    let mut specs = Vec::new();
    for (i, value) in list.into_iter().enumerate() {
        let mut entry = Fields::new(value, format!("{at}[{i}]"))?;
        let id = entry.integer("id", 0..=i64::MAX)?.ok_or_else(|| entry.wrong("id", "is missing"))?;
        let Some((name, _)) = known.get(id as usize) else {
            let many = known.len();
            return Err(entry.wrong("id", &format!("is {id}: this server has {many} adapters (see /lora-adapters)")));
        };
        let scale = entry.number("scale", f64::from(f32::MIN)..=f64::from(f32::MAX))?;
        let scale = scale.ok_or_else(|| entry.wrong("scale", "is missing"))? as f32;
        entry.none_left()?;
        specs.push(SteerSpec { vector: name.clone(), scale: ScaleSpec::Factor(scale), layers: None });
    }
    Ok(specs)
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
