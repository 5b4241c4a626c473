//! A little GGUF writer of its own, so that files can be wrong, or as other tools write them, in ways that bidpo's writer refuses.

use std::path::{Path, PathBuf};

/// ggml's numbers of element types.
pub const F32: u32 = 0;
pub const F16: u32 = 1;
pub const BF16: u32 = 30;

/// A control vector file.
#[derive(Clone)]
pub struct Raw {
    pub architecture: &'static str,
    /// `controlvector.model_hint`.
    pub hint: &'static str,
    /// Name, ggml type, dimensions, data.
    pub tensors: Vec<(&'static str, u32, Vec<u64>, Vec<u8>)>,
}

pub fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

impl Raw {
    pub fn new(tensors: Vec<(&'static str, u32, Vec<u64>, Vec<u8>)>) -> Self {
        Self { architecture: "controlvector", hint: "llama", tensors }
    }

    pub fn one(name: &'static str, values: &[f32]) -> Self {
        Self::new(vec![(name, F32, vec![values.len() as u64], floats(values))])
    }

    /// F32 directions of one dimension.
    pub fn directions(hint: &'static str, directions: &[(&'static str, &[f32])]) -> Self {
        let tensors = directions.iter().map(|(name, d)| (*name, F32, vec![d.len() as u64], floats(d))).collect();
        Self { hint, ..Self::new(tensors) }
    }

    /// The layout of the GGUF specification, version 3: magic, version, counts, key-values, tensor infos, data aligned
    /// to 32.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        let string = |out: &mut Vec<u8>, s: &str| {
            out.extend((s.len() as u64).to_le_bytes());
            out.extend(s.as_bytes());
        };
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend(2u64.to_le_bytes());
        for (key, value) in [("general.architecture", self.architecture), ("controlvector.model_hint", self.hint)] {
            string(&mut out, key);
            out.extend(8u32.to_le_bytes());
            string(&mut out, value);
        }
        let mut offset = 0u64;
        for (name, kind, ne, data) in &self.tensors {
            string(&mut out, name);
            out.extend((ne.len() as u32).to_le_bytes());
            ne.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset += (data.len() as u64).next_multiple_of(32);
        }
        for (_, _, _, data) in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(data);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out
    }

    pub fn write(&self, folder: &Path) -> PathBuf {
        self.write_as(folder, "made.gguf")
    }

    pub fn write_as(&self, folder: &Path, name: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, self.bytes()).unwrap();
        path
    }
}
