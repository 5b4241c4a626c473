//! File formats, chosen by file extension.

mod gguf;
mod npy;
mod safetensors;

use super::{SteerError, SteeringVector};
use ggml_grad::files::FileError;
use std::path::Path;

/// A format that holds steering vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A GGUF control vector: what llama.cpp loads.
    Gguf,
    /// safetensors, `direction.N` as in the GGUF file.
    Safetensors,
    /// The numbers alone.
    Npy,
}

impl Format {
    /// By the file's ending; GGUF for `.gguf` and whatever is not known.
    pub fn of(path: &Path) -> Self {
        let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        match ending.as_deref() {
            Some("safetensors") => Self::Safetensors,
            Some("npy") => Self::Npy,
            _ => Self::Gguf,
        }
    }
}

impl SteeringVector {
    /// Reads a control vector: GGUF (bidpo's own, llama.cpp's `cvector-generator`'s, repeng's), or safetensors by the file's
    /// ending. A `.npy` file does not say its layers: [`SteeringVector::load_npy`].
    ///
    /// # Errors
    /// [`SteerError::Llama`] or [`SteerError::Io`] for a file that cannot be read, is damaged or cut short;
    /// [`SteerError::NotAVector`] for a file that is no usable control vector.
    pub fn load(path: &Path) -> Result<Self, SteerError> {
        match Format::of(path) {
            Format::Gguf => Self::load_gguf(path),
            Format::Safetensors => Self::load_safetensors(path),
            Format::Npy => Err(SteerError::NotAVector {
                path: path.to_owned(),
                reason: "a .npy file does not say which layer it steers: bidpo vector convert --layers N makes a .gguf of it"
                    .into(),
            }),
        }
    }

    /// Writes the format that the file's ending names (GGUF for any but `.safetensors` and `.npy`); all of it or nothing.
    ///
    /// # Errors
    /// [`SteerError::Invalid`] for values that no reader would take; [`SteerError::Io`] or [`SteerError::Llama`] when the
    /// file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), SteerError> {
        let bytes = match Format::of(path) {
            Format::Gguf => return self.save_gguf(path),
            Format::Safetensors => self.to_safetensors()?,
            Format::Npy => self.to_npy()?,
        };
        Ok(ggml_grad::files::write_atomically(path, &bytes).map_err(FileError::write(path))?)
    }
}

/// The whole file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, SteerError> {
    Ok(std::fs::read(path).map_err(FileError::read(path))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::Layers;
    use ggml_grad::llama::GgufValue;

    fn vector() -> SteeringVector {
        let layers: Layers = "2,10".parse().unwrap();
        let mut v =
            SteeringVector::from_layers(&layers, &[1.0, -0.0, f32::MIN_POSITIVE, 3.4e38, 0.1, 5.0], "gemma3").unwrap();
        v.provenance.set_str("method", "bidpo \u{e9} \"quoted\"");
        v.provenance.set_int("seed", i64::MIN);
        v.provenance.set_float("beta", 0.1);
        v.provenance.set_float("whole", 2.0);
        v.provenance.entries.insert("flag".into(), GgufValue::Bool(true));
        v
    }

    #[test]
    fn every_format_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let v = vector();
        for name in ["v.gguf", "v.safetensors"] {
            let path = folder.path().join(name);
            v.save(&path).unwrap();
            let first = std::fs::read(&path).unwrap();
            let back = SteeringVector::load(&path).unwrap();
            assert_eq!(back, v, "{name}");
            assert!(back.directions[&2][1].is_sign_negative());
            back.save(&path).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), first, "{name}: the same vector gives the same bytes");
        }
        let path = folder.path().join("v.npy");
        v.save(&path).unwrap();
        let layers = Layers::new(v.layers()).unwrap();
        assert_eq!(SteeringVector::load_npy(&path, &layers).unwrap().directions, v.directions);
        assert!(SteeringVector::load(&path).unwrap_err().to_string().contains("--layers"));
        let error = SteeringVector::load_npy(&path, &Layers::one(3)).unwrap_err().to_string();
        assert!(error.contains("holds 2 directions") && error.contains("v.npy"), "{error}");
        SteeringVector::single(4, vec![1.0, 2.0], "").unwrap().save(&path).unwrap();
        let one = SteeringVector::load_npy(&path, &Layers::one(4)).unwrap();
        assert_eq!(one.directions[&4], [1.0, 2.0]);
    }

    #[test]
    fn damaged_files_are_errors_and_never_crashes() {
        let folder = tempfile::tempdir().unwrap();
        let v = vector();
        let layers = Layers::new(v.layers()).unwrap();
        for name in ["v.safetensors", "v.npy"] {
            let path = folder.path().join(name);
            v.save(&path).unwrap();
            let whole = std::fs::read(&path).unwrap();
            let load = |bytes: &[u8]| {
                std::fs::write(&path, bytes).unwrap();
                if name == "v.npy" { SteeringVector::load_npy(&path, &layers) } else { SteeringVector::load(&path) }
            };
            for length in 0..whole.len() {
                assert!(load(&whole[..length]).is_err(), "{name}: the first {length} of {} bytes", whole.len());
            }
            for i in 0..whole.len() {
                for value in [0, 1, b'9', 0x7f, 0xff, whole[i] ^ 1] {
                    let mut bytes = whole.clone();
                    bytes[i] = value;
                    if let Ok(v) = load(&bytes) {
                        v.check().unwrap();
                    }
                }
            }
        }
    }

    #[test]
    fn nothing_is_written_for_a_broken_vector() {
        let folder = tempfile::tempdir().unwrap();
        let mut v = vector();
        v.directions.insert(3, vec![f32::NAN; 3]);
        for name in ["v.gguf", "v.safetensors", "v.npy"] {
            let path = folder.path().join(name);
            assert!(matches!(v.save(&path), Err(SteerError::Invalid(_))), "{name}");
            assert!(!path.exists());
        }
    }
}
