//! File formats: known by their first bytes when they are read, by the file's ending when they are written.

mod gguf;
mod interventions;
mod loose;
mod npy;
mod pickle;
mod safetensors;
mod torch;

use super::{SteerError, SteeringVector};
use crate::layers::Layers;
use ggml_grad::files::FileError;
pub use loose::FileRemark;
use std::io::Read;
use std::path::Path;

/// Far above any model (the widest have some 20,000); a larger number can only come from a damaged file.
const MAX_N_EMBD: usize = 1 << 20;

/// A format that holds steering vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A GGUF control vector: what llama.cpp loads.
    Gguf,
    /// safetensors, `direction.N` as in the GGUF file.
    Safetensors,
    /// The numbers alone.
    Npy,
    /// numpy's archive of arrays, read only.
    Npz,
    /// PyTorch's archive of tensors, read only.
    Torch,
}

impl Format {
    /// By the file's ending; GGUF for `.gguf` and whatever is not known.
    pub fn of(path: &Path) -> Self {
        let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
        match ending.as_deref() {
            Some("safetensors") => Self::Safetensors,
            Some("npy") => Self::Npy,
            Some("npz") => Self::Npz,
            Some("pt" | "pth") => Self::Torch,
            _ => Self::Gguf,
        }
    }

    /// By the file's first bytes, else by its ending.
    fn found(path: &Path) -> Result<Self, SteerError> {
        let mut start = Vec::new();
        let read_error = FileError::read(path);
        std::fs::File::open(path).map_err(read_error)?.take(16).read_to_end(&mut start).map_err(read_error)?;
        let by_name = Self::of(path);
        Ok(match &start[..] {
            [b'G', b'G', b'U', b'F', ..] => Self::Gguf,
            [0x93, b'N', b'U', b'M', b'P', b'Y', ..] => Self::Npy,
            [b'P', b'K', 3, 4, ..] if by_name == Self::Npz => Self::Npz,
            [b'P', b'K', 3, 4, ..] | [0x80, 2..=5, ..] => Self::Torch,
            // Length of the header, then the header's JSON.
            [_, _, _, _, _, _, _, _, b'{', ..] => Self::Safetensors,
            _ => by_name,
        })
    }
}

/// A vector as its file holds it, and what was done to it.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadedVector {
    /// The vector.
    pub vector: SteeringVector,
    /// What was left out or assumed.
    pub remarks: Vec<FileRemark>,
}

impl SteeringVector {
    /// Reads a control vector: GGUF (bidpo's own, llama.cpp's `cvector-generator`'s, repeng's, EasySteer's), safetensors,
    /// `.npy`, `.npz`, and PyTorch's `.pt` as CAA and BiPO write it. `layers` are the layers of a file that does not name its
    /// own, lowest first; otherwise they are checked only for layer 0, which cannot be steered. Without it a direction for
    /// layer 0 is left out.
    ///
    /// # Errors
    /// [`SteerError::Llama`] or [`SteerError::Io`] for a file that cannot be read, is damaged or cut short;
    /// [`SteerError::NotAVector`] for a file that is no usable control vector.
    pub fn open(path: &Path, layers: Option<&Layers>) -> Result<LoadedVector, SteerError> {
        let refuse = |reason: String| SteerError::NotAVector { path: path.to_owned(), reason };
        let loaded = match Format::found(path)? {
            Format::Gguf => Self::open_gguf(path, layers)?,
            Format::Safetensors => Self::open_safetensors(path, layers)?,
            format => {
                let (tensors, mut remarks) = match format {
                    Format::Npy => (vec![npy::array(&read(path)?, path)?], Vec::new()),
                    Format::Npz => (npy::arrays(&read(path)?, path)?, Vec::new()),
                    _ => {
                        let contents = torch::read(&read(path)?, path).map_err(refuse)?;
                        (contents.tensors, contents.remarks)
                    }
                };
                let directions = loose::by_layer(tensors, path, layers).map_err(refuse)?;
                remarks.extend(directions.remarks);
                let vector = Self { directions: directions.by_layer, ..Self::empty() };
                LoadedVector { vector, remarks }
            }
        };
        loaded.vector.check().map_err(|e| refuse(e.to_string()))?;
        Ok(loaded)
    }

    /// [`SteeringVector::open`] for a file that names its layers, without its remarks: a direction for layer 0 is left out.
    ///
    /// # Errors
    /// As [`SteeringVector::open`].
    pub fn load(path: &Path) -> Result<Self, SteerError> {
        Ok(Self::open(path, None)?.vector)
    }

    /// Writes the format that the file's ending names (GGUF for an unknown one); all of it or nothing.
    ///
    /// # Errors
    /// [`SteerError::Invalid`] for values that no reader would take; [`SteerError::ReadOnly`] for a format that bidpo does not
    /// write; [`SteerError::Io`] or [`SteerError::Llama`] when the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), SteerError> {
        let bytes = match Format::of(path) {
            Format::Gguf => return self.save_gguf(path),
            Format::Safetensors | Format::Npy if !self.is_control_vector() => {
                self.require_control_vector("a file of this format")?;
                return Ok(());
            }
            Format::Safetensors => self.to_safetensors()?,
            Format::Npy => self.to_npy()?,
            Format::Npz | Format::Torch => return Err(SteerError::ReadOnly(path.to_owned())),
        };
        Ok(ggml_grad::files::write_atomically(path, &bytes).map_err(FileError::write(path))?)
    }
}

/// More bytes than any vector has.
const MOST_BYTES: u64 = 1 << 28;

/// The whole file.
fn read(path: &Path) -> Result<Vec<u8>, SteerError> {
    Ok(ggml_grad::files::read_at_most(path, MOST_BYTES).map_err(FileError::read(path))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::Layers;
    use ggml_grad::llama::GgufValue;
    use std::collections::BTreeMap;

    fn open(path: &Path, layers: &Layers) -> Result<SteeringVector, SteerError> {
        Ok(SteeringVector::open(path, Some(layers))?.vector)
    }

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
        assert_eq!(open(&path, &layers).unwrap().directions, v.directions);
        assert!(SteeringVector::load(&path).unwrap_err().to_string().contains("--layers"));
        let error = open(&path, &Layers::one(3)).unwrap_err().to_string();
        assert!(error.contains("holds 2 directions") && error.contains("v.npy"), "{error}");
        SteeringVector::single(4, vec![1.0, 2.0], "").unwrap().save(&path).unwrap();
        let one = open(&path, &Layers::one(4)).unwrap();
        assert_eq!(one.directions[&4], [1.0, 2.0]);
    }

    fn gold(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/gold/torch").join(name)
    }

    /// Files that PyTorch and numpy wrote: tests/gold/torch/torch_files.py.
    #[test]
    fn files_of_pytorch_and_numpy() {
        let values = std::fs::read_to_string(gold("values.json")).unwrap();
        let values: BTreeMap<String, BTreeMap<usize, Vec<f64>>> = serde_json::from_str(&values).unwrap();
        assert!(values.len() >= 12);
        for (name, expected) in values {
            let layers: Option<Layers> = match name.as_str() {
                "stack.pt" => Some("0-2".parse().unwrap()),
                "list.pt" => Some("1-3".parse().unwrap()),
                _ => None,
            };
            let LoadedVector { vector, remarks } = SteeringVector::open(&gold(&name), layers.as_ref()).unwrap();
            let lost = remarks.contains(&FileRemark::Layer0);
            assert_eq!(lost, ["stack.pt", "by_layer.pt", "plain.npz", "packed.npz"].contains(&&name[..]), "{name}");
            let found: BTreeMap<usize, Vec<f64>> =
                vector.directions.iter().map(|(&l, d)| (l, d.iter().map(|&x| f64::from(x)).collect())).collect();
            let expected: BTreeMap<_, _> = expected.into_iter().filter(|(layer, _)| *layer > 0).collect();
            assert_eq!(found, expected, "{name}");
        }
        let refused = |name: &str| SteeringVector::load(&gold(name)).unwrap_err().to_string();
        assert!(refused("stack.pt").contains("name them with --layers") && refused("list.pt").contains("3 rows"));
        assert!(refused("old_layer1.pt").contains("before 1.6") && refused("old_layer1.pt").contains("torch.save("));
        assert!(refused("object.pt").contains("pathlib") && refused("object.pt").contains("torch.save("));
        assert!(refused("integers_layer1.pt").contains("LongStorage"));
        let folder = tempfile::tempdir().unwrap();
        let unnamed = folder.path().join("vector.bin");
        std::fs::copy(gold("f64_layer1.pt"), &unnamed).unwrap();
        assert!(SteeringVector::load(&unnamed).unwrap_err().to_string().contains("--layers"));
        assert_eq!(open(&unnamed, &Layers::one(7)).unwrap().layers(), [7]);
        let v = vector();
        assert!(matches!(v.save(&folder.path().join("v.pt")), Err(SteerError::ReadOnly(_))));
    }

    #[test]
    fn damaged_files_are_errors_and_never_crashes() {
        let folder = tempfile::tempdir().unwrap();
        let v = vector();
        let layers = Layers::new(v.layers()).unwrap();
        let foreign = ["with_settings.pt", "named.pt", "packed.npz"];
        for name in ["v.safetensors", "v.npy"].iter().chain(&foreign) {
            let path = folder.path().join(name);
            if foreign.contains(name) {
                std::fs::copy(gold(name), &path).unwrap();
            } else {
                v.save(&path).unwrap();
            }
            let whole = std::fs::read(&path).unwrap();
            let load = |bytes: &[u8]| {
                std::fs::write(&path, bytes).unwrap();
                if *name == "v.npy" { open(&path, &layers) } else { SteeringVector::load(&path) }
            };
            // A zip archive has its index at the end.
            let step = if foreign.contains(name) { 41 } else { 1 };
            for length in (0..whole.len()).step_by(step) {
                assert!(load(&whole[..length]).is_err(), "{name}: the first {length} of {} bytes", whole.len());
            }
            for i in (0..whole.len()).step_by(step) {
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
