//! The vector as a safetensors file: a tensor `direction.N` for each layer, everything else as JSON in one metadata key.

use super::LoadedVector;
use super::loose::{self, Tensor};
use crate::layers::Layers;
use crate::steer::{SteerError, SteeringVector};
use ::safetensors::tensor::{Dtype, SafeTensors, TensorView};
use ggml_grad::llama::GgufValue;
use ggml_grad::numeric;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::path::Path;

/// The metadata key. A single one: the crate writes several in an order that changes from run to run.
const KEY: &str = "control_vector";

impl SteeringVector {
    /// Reads a safetensors file: tensors `direction.N` of one dimension, F32, or F64, F16, BF16, which become F32. Of other tools
    /// also `layers.N`, `N`, or one tensor for the `layers` that are given.
    ///
    /// # Errors
    /// [`SteerError::Io`] for a file that cannot be read, [`SteerError::NotAVector`] for one that is no safetensors file
    /// or no usable control vector.
    pub(super) fn open_safetensors(path: &Path, layers: Option<&Layers>) -> Result<LoadedVector, SteerError> {
        let refuse = |reason: String| SteerError::NotAVector { path: path.to_owned(), reason };
        let bytes = super::read(path)?;
        let damaged = |e: ::safetensors::SafeTensorError| refuse(format!("not a safetensors file, or damaged: {e}"));
        let file = SafeTensors::deserialize(&bytes).map_err(damaged)?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(damaged)?;
        let mut tensors = Vec::new();
        for (name, tensor) in file.tensors() {
            let values = floats(&tensor).ok_or_else(|| {
                refuse(format!("{name} has type {:?}, expected F32, F64, F16 or BF16", tensor.dtype()))
            })?;
            tensors.push(Tensor { name, shape: tensor.shape().to_vec(), values });
        }
        let found = loose::by_layer(tensors, path, layers).map_err(refuse)?;
        let mut vector = Self { directions: found.by_layer, ..Self::empty() };
        let meta = header.metadata().as_ref().and_then(|m| m.get(KEY));
        if let Some(text) = meta {
            let meta: Value =
                serde_json::from_str(text).map_err(|e| refuse(format!("metadata {KEY} is no JSON: {e}")))?;
            vector.model_hint = meta["model_hint"].as_str().unwrap_or_default().to_owned();
            for (key, value) in meta["provenance"].as_object().into_iter().flatten() {
                let value = match value {
                    Value::String(s) => GgufValue::Str(s.clone()),
                    Value::Bool(b) => GgufValue::Bool(*b),
                    Value::Number(n) => match (n.as_i64(), n.as_f64()) {
                        (Some(n), _) => GgufValue::Int(n),
                        (None, Some(x)) => GgufValue::Float(x),
                        (None, None) => continue,
                    },
                    _ => continue,
                };
                vector.provenance.entries.insert(key.clone(), value);
            }
        }
        Ok(LoadedVector { vector, remarks: found.remarks })
    }

    /// The bytes of the safetensors file; the same vector gives the same bytes.
    ///
    /// # Errors
    /// [`SteerError::Invalid`] for values that no reader would take.
    pub fn to_safetensors(&self) -> Result<Vec<u8>, SteerError> {
        self.check()?;
        let invalid = |e: ::safetensors::SafeTensorError| SteerError::Invalid(e.to_string());
        let data: Vec<(String, Vec<u8>)> = self
            .directions
            .iter()
            .map(|(layer, d)| (format!("direction.{layer}"), d.iter().flat_map(|x| x.to_le_bytes()).collect()))
            .collect();
        let views = data
            .iter()
            .map(|(name, bytes)| Ok((name, TensorView::new(Dtype::F32, vec![self.n_embd()], bytes)?)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(invalid)?;
        let provenance: Map<String, Value> = self
            .provenance
            .entries
            .iter()
            .filter_map(|(key, value)| {
                let value = match value {
                    GgufValue::Str(s) => json!(s),
                    GgufValue::Int(n) => json!(n),
                    GgufValue::Float(x) if x.is_finite() => json!(x),
                    GgufValue::Bool(b) => json!(b),
                    GgufValue::Float(_) | GgufValue::Other(_) => return None,
                };
                Some((key.clone(), value))
            })
            .collect();
        let meta = json!({ "model_hint": self.model_hint, "provenance": provenance }).to_string();
        ::safetensors::serialize(views, Some(HashMap::from([(KEY.to_owned(), meta)]))).map_err(invalid)
    }
}

/// A tensor's numbers as f32; `None` for other types.
fn floats(tensor: &TensorView<'_>) -> Option<Vec<f32>> {
    let data = tensor.data();
    Some(match tensor.dtype() {
        Dtype::F32 => numeric::f32_from_le(data),
        Dtype::F64 => numeric::f64_from_le(data).into_iter().map(|x| x as f32).collect(),
        Dtype::F16 => numeric::f16_from_le(data),
        Dtype::BF16 => numeric::bf16_from_le(data),
        _ => return None,
    })
}
