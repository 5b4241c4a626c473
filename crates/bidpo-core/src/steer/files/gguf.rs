//! The file: a GGUF control vector as llama.cpp loads it, with provenance in keys of our own. See docs/vector-file.md.

use super::interventions;
use super::loose::{self, Tensor};
use super::{LoadedVector, MAX_N_EMBD};
use crate::layers::Layers;
use crate::steer::{Provenance, SteerError, SteeringVector};
use ggml_grad::llama::{DType, GgufFile, GgufValue, GgufWriter};
use std::collections::BTreeMap;
use std::path::Path;

const ARCHITECTURE: &str = "controlvector";
pub(super) const PREFIX: &str = "bidpo.";

impl SteeringVector {
    /// Reads a GGUF control vector: bidpo's own, llama.cpp's `cvector-generator`'s, repeng's, EasySteer's. Directions of F64, F16
    /// and BF16 become F32. `layers` as in [`SteeringVector::open`].
    ///
    /// # Errors
    /// [`SteerError::Llama`] for a file that cannot be read, is no GGUF, is damaged or cut short;
    /// [`SteerError::NotAVector`] for a GGUF that is no usable control vector.
    pub(super) fn open_gguf(path: &Path, layers: Option<&Layers>) -> Result<LoadedVector, SteerError> {
        let refuse = |reason: String| SteerError::NotAVector { path: path.to_owned(), reason };
        let file = GgufFile::open(path)?;
        match file.get("general.architecture") {
            Some(GgufValue::Str(a)) if a == ARCHITECTURE => {}
            Some(GgufValue::Str(a)) if a == interventions::ARCHITECTURE => {
                let vector = interventions::load(&file, path)?;
                return Ok(LoadedVector { vector, remarks: Vec::new() });
            }
            Some(GgufValue::Str(a)) => {
                return Err(refuse(format!(
                    "not a control vector: it is a GGUF of architecture {a:?} (a control vector says {ARCHITECTURE:?}); \
                     a model goes to --model, a control vector to --vector"
                )));
            }
            _ => return Err(refuse("not a control vector: it has no text key general.architecture".into())),
        }
        let model_hint = match file.get("controlvector.model_hint") {
            Some(GgufValue::Str(hint)) => hint.clone(),
            _ => String::new(),
        };
        let found = match &file.tensors().collect::<Vec<_>>()[..] {
            // One tensor for all layers.
            [(name, _, ne)] if ["direction", "directions", "control_vector"].contains(name) => {
                // [n_layers, n_embd], as numpy counts dimensions.
                let shape = ne.iter().rev().copied().collect();
                let tensor = Tensor { name: String::new(), shape, values: floats(&file, name).map_err(refuse)? };
                loose::by_layer(vec![tensor], path, layers).map_err(refuse)?
            }
            tensors => {
                let directions = directions(&file, tensors).map_err(refuse)?;
                loose::without_layer_0(directions, layers.filter(|l| l.contains(&0))).map_err(refuse)?
            }
        };
        let entries = file
            .meta()
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?.to_owned(), value.clone())))
            .collect();
        let vector =
            Self { directions: found.by_layer, model_hint, provenance: Provenance { entries }, ..Self::empty() };
        Ok(LoadedVector { vector, remarks: found.remarks })
    }

    /// Writes the file (all of it or nothing), so that llama.cpp loads it unchanged.
    ///
    /// # Errors
    /// [`SteerError::Invalid`] for values that no reader would take, [`SteerError::Key`] for a provenance key that GGUF
    /// cannot hold, [`SteerError::Llama`] when the file cannot be written.
    pub fn save_gguf(&self, path: &Path) -> Result<(), SteerError> {
        self.check()?;
        if !self.is_control_vector() {
            return interventions::save(self, path);
        }
        let mut writer = GgufWriter::new();
        let refused = |source| SteerError::Key { path: path.to_owned(), source };
        writer.set("general.architecture", &GgufValue::Str(ARCHITECTURE.into()))?;
        writer.set("controlvector.model_hint", &GgufValue::Str(self.model_hint.clone()))?;
        // The number of directions, as i32: what llama.cpp's own generator writes.
        writer.set_i32("controlvector.layer_count", self.directions.len() as i32)?;
        for (key, value) in &self.provenance.entries {
            writer.set(&format!("{PREFIX}{key}"), value).map_err(refused)?;
        }
        for (layer, direction) in &self.directions {
            writer.add_f32(&format!("direction.{layer}"), direction.clone())?;
        }
        Ok(writer.write(path)?)
    }
}

/// A tensor's numbers.
fn floats(file: &GgufFile, name: &str) -> Result<Vec<f32>, String> {
    match file.read_floats(name) {
        Ok(Some(values)) => Ok(values),
        Ok(None) => {
            let dtype = file.tensors().find(|t| t.0 == name).map_or_else(String::new, |t| t.1.name());
            Err(format!("{name} has type {dtype}, a direction must be f32, f64, f16 or bf16"))
        }
        Err(error) => Err(error.to_string()),
    }
}

/// The tensors `direction.N` by layer, layer 0 included.
fn directions(file: &GgufFile, tensors: &[(&str, DType, [usize; 4])]) -> Result<BTreeMap<usize, Vec<f32>>, String> {
    let mut directions: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
    let mut n_embd = None;
    for (name, _, ne) in tensors {
        let layer = layer_of(name).ok_or_else(|| loose::not_a_direction(name))?;
        // [1, n_embd] and [n_embd, 1] are directions too.
        if ne.iter().filter(|&&n| n != 1).count() > 1 {
            return Err(format!("{name} has the shape {ne:?}, a direction must have one dimension"));
        }
        let n: usize = ne.iter().product();
        if n == 0 || n > MAX_N_EMBD {
            return Err(format!("{name} has {n} values, expected 1 to {MAX_N_EMBD}"));
        }
        let expected = *n_embd.get_or_insert(n);
        if n != expected {
            return Err(format!(
                "{name} has {n} values where the first direction has {expected}: all layers need the same width"
            ));
        }
        let direction = floats(file, name)?;
        if let Some(i) = direction.iter().position(|x| !x.is_finite()) {
            return Err(format!("{name}, element {i} is {}: every value must be finite", direction[i]));
        }
        if directions.insert(layer, direction).is_some() {
            return Err(format!("it holds two directions for layer {layer}"));
        }
    }
    if directions.is_empty() { Err("it holds no direction".into()) } else { Ok(directions) }
}

/// N of `direction.N`, plain digits only.
fn layer_of(name: &str) -> Option<usize> {
    let digits = name.strip_prefix("direction.")?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // llama.cpp reads an int; no model has more blocks than that.
    digits.parse::<i32>().ok().map(|n| n as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensor_names() {
        assert_eq!(layer_of("direction.15"), Some(15));
        assert_eq!(layer_of("direction.0"), Some(0));
        for bad in ["direction.", "direction.-1", "direction.1x", "direction.99999999999", "blk.0.attn_q.weight", ""] {
            assert_eq!(layer_of(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_file_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.gguf");
        let mut v = SteeringVector::single(7, vec![1.0, -0.0, f32::MIN_POSITIVE, 3.4e38], "llama").unwrap();
        v.directions.insert(2, vec![0.1, 0.2, 0.3, 0.4]);
        v.provenance.set_str("method", "bidpo \u{e9}");
        v.provenance.set_int("seed", -3);
        v.provenance.set_float("beta", 0.1);
        v.provenance.entries.insert("flag".into(), GgufValue::Bool(true));
        v.save(&path).unwrap();
        let back = SteeringVector::load(&path).unwrap();
        assert_eq!(back, v);
        assert!(back.directions[&7][1].is_sign_negative());
        let first = std::fs::read(&path).unwrap();
        back.save(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), first, "the same vector gives the same bytes");
    }

    #[test]
    fn nothing_is_written_for_a_broken_vector() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.gguf");
        let mut v = SteeringVector::single(7, vec![1.0], "llama").unwrap();
        v.directions.insert(7, vec![f32::INFINITY]);
        assert!(matches!(v.save(&path), Err(SteerError::Invalid(_))));
        assert!(!path.exists());
    }
}
