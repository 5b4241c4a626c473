//! The file: a GGUF control vector as llama.cpp loads it, with provenance in keys of our own. See docs/vector-file.md.

use crate::steer::{Provenance, SteerError, SteeringVector};
use ggml_grad::llama::{DType, GgufFile, GgufValue, GgufWriter};
use std::collections::BTreeMap;
use std::path::Path;

const ARCHITECTURE: &str = "controlvector";
const PREFIX: &str = "bidpo.";
/// Far above any model (the widest have some 20,000); a larger number can only come from a damaged file.
pub(super) const MAX_N_EMBD: usize = 1 << 20;

impl SteeringVector {
    /// Reads a GGUF control vector: bidpo's own, llama.cpp's `cvector-generator`'s, repeng's.
    ///
    /// # Errors
    /// [`SteerError::Llama`] for a file that cannot be read, is no GGUF, is damaged or cut short;
    /// [`SteerError::NotAVector`] for a GGUF that is no usable control vector.
    pub fn load_gguf(path: &Path) -> Result<Self, SteerError> {
        let refuse = |reason: String| SteerError::NotAVector { path: path.to_owned(), reason };
        let file = GgufFile::open(path)?;
        match file.get("general.architecture") {
            Some(GgufValue::Str(a)) if a == ARCHITECTURE => {}
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
        let mut directions: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
        let mut n_embd = None;
        for (name, dtype, ne) in file.tensors() {
            let layer = layer_of(name).ok_or_else(|| {
                refuse(format!("tensor {name:?} is no direction: a control vector holds direction.N, N a layer from 1"))
            })?;
            if layer == 0 {
                return Err(refuse(
                    "it holds direction.0: layer 0 cannot be steered (llama.cpp counts blocks from 0 and starts at 1)"
                        .into(),
                ));
            }
            if dtype != DType::F32 {
                return Err(refuse(format!("{name} has type {}, a direction must be f32", dtype.name())));
            }
            if ne[1..] != [1, 1, 1] {
                return Err(refuse(format!("{name} has the shape {ne:?}, a direction must have one dimension")));
            }
            if ne[0] == 0 || ne[0] > MAX_N_EMBD {
                return Err(refuse(format!("{name} has {} values, expected 1 to {MAX_N_EMBD}", ne[0])));
            }
            let expected = *n_embd.get_or_insert(ne[0]);
            if ne[0] != expected {
                return Err(refuse(format!(
                    "{name} has {} values where the first direction has {expected}: all layers need the same width",
                    ne[0]
                )));
            }
            let direction = file.read_f32(name)?;
            if let Some(i) = direction.iter().position(|x| !x.is_finite()) {
                return Err(refuse(format!("{name}, element {i} is {}: every value must be finite", direction[i])));
            }
            if directions.insert(layer, direction).is_some() {
                return Err(refuse(format!("it holds two directions for layer {layer}")));
            }
        }
        if directions.is_empty() {
            return Err(refuse("it holds no direction".into()));
        }
        let entries = file
            .meta()
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?.to_owned(), value.clone())))
            .collect();
        Ok(Self { directions, model_hint, provenance: Provenance { entries } })
    }

    /// Writes the file (all of it or nothing), so that llama.cpp loads it unchanged.
    ///
    /// # Errors
    /// [`SteerError::Invalid`] for values that no reader would take, [`SteerError::Key`] for a provenance key that GGUF
    /// cannot hold, [`SteerError::Llama`] when the file cannot be written.
    pub fn save_gguf(&self, path: &Path) -> Result<(), SteerError> {
        self.check()?;
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

/// N of `direction.N`, plain digits only.
pub(super) fn layer_of(name: &str) -> Option<usize> {
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
