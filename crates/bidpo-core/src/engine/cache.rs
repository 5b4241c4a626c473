//! Traced pairs on disk between runs: one file a trace, named after all that decides its numbers.
//!
//! The files are safetensors, so that other tools can read the residual streams: `residual` `[n_rows, n_embd]` (F32 or
//! BF16), `norms.N` `[n_rows]` of each steered layer, `reference` `[n_pairs, 2]` (F64: chosen, rejected), and `kept.N`, the
//! raw bytes of values from below the layer that are used above it. The metadata's `capture` holds format, key and a SHA-256
//! over it all.

use super::PairLogp;
use crate::data::TokenizedPair;
use ggml_grad::numeric::{f32_from_le, f64_from_le};
use half::bf16;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Storage type of the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CacheType {
    /// As it was computed.
    #[default]
    F32,
    /// Rounded to 16-bit brain floats: half the size. Training then starts from the rounded numbers, in the run that
    /// writes them too.
    Bf16,
}

impl CacheType {
    /// `f32` or `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// The residual stream as a file would give it back.
    pub(super) fn round(self, rows: &mut [f32]) {
        if self == Self::Bf16 {
            rows.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
        }
    }
}

impl std::str::FromStr for CacheType {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        [Self::F32, Self::Bf16].into_iter().find(|t| t.name() == s).ok_or_else(|| "must be f32 or bf16".into())
    }
}

/// Reads and writes of a cache in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheUse {
    /// Captures read from it.
    pub reused: usize,
    /// Bytes read.
    pub bytes_read: u64,
    /// Captures written to it.
    pub written: usize,
    /// Bytes written.
    pub bytes_written: u64,
}

/// A folder of captured pairs.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    kind: CacheType,
    context: String,
    used: CacheUse,
    notices: Vec<String>,
}

/// Contents of a cache file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Stored {
    /// `[n_rows, n_embd]`
    pub residual: Vec<f32>,
    /// Of each layer.
    pub norms: Vec<Vec<f32>>,
    /// See [`ggml_grad::graph::SavedTensors`].
    pub kept: BTreeMap<usize, Vec<u8>>,
    pub reference: Vec<PairLogp>,
}

impl Cache {
    /// Version of the files and of what is in them. Goes up whenever the numbers of a capture change.
    pub const VERSION: &str = "bidpo captured pairs 4";

    /// A cache in `folder`, which is made if there is none. `context`: the hash of the model file, and how its weights are
    /// held.
    ///
    /// # Errors
    /// The system's, when the folder cannot be made or written to.
    pub fn open(folder: &Path, kind: CacheType, context: &str) -> std::io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        ggml_grad::files::check_writable(&folder.join("x"))?;
        Ok(Self {
            folder: folder.to_owned(),
            kind,
            context: context.to_owned(),
            used: CacheUse::default(),
            notices: Vec::new(),
        })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Storage type of residual streams.
    pub fn kind(&self) -> CacheType {
        self.kind
    }

    /// Reads and writes so far.
    pub fn used(&self) -> CacheUse {
        self.used
    }

    /// Files that could not be used or written since this was asked last, as sentences.
    pub fn take_notices(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices)
    }

    /// The name of a capture: a hash of its tokens, of the cache's context, and of what the engine says decides numbers.
    pub(super) fn key(&self, engine: &str, pairs: &[&TokenizedPair]) -> String {
        let mut h = Sha256::new();
        for part in [Self::VERSION, self.kind.name(), &self.context, engine] {
            h.update((part.len() as u64).to_le_bytes());
            h.update(part);
        }
        for part in pairs.iter().flat_map(|p| [&p.prompt, &p.chosen, &p.rejected]) {
            h.update((part.len() as u64).to_le_bytes());
            part.iter().for_each(|t| h.update(t.to_le_bytes()));
        }
        ggml_grad::files::hex(&h.finalize())
    }

    fn path(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{key}.safetensors"))
    }

    /// Reads the capture of a key, and says whether it can be used.
    pub fn holds(&mut self, key: &str) -> bool {
        self.load(key).is_some()
    }

    /// The contents stored under a key. A file that cannot be trusted is noticed and counts as none.
    pub(super) fn load(&mut self, key: &str) -> Option<Stored> {
        let path = self.path(key);
        let bytes = match ggml_grad::files::read_whole(&path) {
            Ok(bytes) => bytes,
            Err(e) => {
                if e.kind() != std::io::ErrorKind::NotFound {
                    self.distrust(key, &e.to_string());
                }
                return None;
            }
        };
        match parse(&bytes, key, self.kind) {
            Ok(stored) => {
                self.used.reused += 1;
                self.used.bytes_read += bytes.len() as u64;
                Some(stored)
            }
            Err(reason) => {
                self.distrust(key, &reason);
                None
            }
        }
    }

    /// Notes that a file cannot be used.
    pub(super) fn distrust(&mut self, key: &str, reason: &str) {
        let path = self.path(key);
        self.notices.push(format!("cache file {} cannot be used ({reason}): computed again", path.display()));
    }

    /// Takes back that the last file read was of use.
    pub(super) fn unused(&mut self, key: &str, reason: &str) {
        self.used.reused -= 1;
        self.distrust(key, reason);
    }

    /// Writes a capture. A cache that cannot be written is noticed: the run goes on without.
    pub(super) fn store(&mut self, key: &str, stored: &Stored) {
        let path = self.path(key);
        let written = serialize(stored, key, self.kind)
            .map_err(std::io::Error::other)
            .and_then(|bytes| ggml_grad::files::write_atomically(&path, &bytes).map(|()| bytes.len() as u64));
        match written {
            Ok(n) => {
                self.used.written += 1;
                self.used.bytes_written += n;
            }
            Err(e) => self.notices.push(format!("cannot write the cache file {}: {e}", path.display())),
        }
    }
}

fn serialize(stored: &Stored, key: &str, kind: CacheType) -> Result<Vec<u8>, safetensors::SafeTensorError> {
    let rows = stored.norms.first().map_or(0, Vec::len);
    let width = stored.residual.len().checked_div(rows).unwrap_or(0);
    let (dtype, residual): (Dtype, Vec<u8>) = match kind {
        CacheType::F32 => (Dtype::F32, stored.residual.iter().flat_map(|x| x.to_le_bytes()).collect()),
        CacheType::Bf16 => {
            (Dtype::BF16, stored.residual.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect())
        }
    };
    let mut tensors = vec![("residual".to_owned(), dtype, vec![rows, width], residual)];
    for (i, norms) in stored.norms.iter().enumerate() {
        let bytes = norms.iter().flat_map(|x| x.to_le_bytes()).collect();
        tensors.push((format!("norms.{i}"), Dtype::F32, vec![norms.len()], bytes));
    }
    let reference = stored.reference.iter().flat_map(|p| [p.chosen, p.rejected]).flat_map(f64::to_le_bytes).collect();
    tensors.push(("reference".to_owned(), Dtype::F64, vec![stored.reference.len(), 2], reference));
    for (number, bytes) in &stored.kept {
        tensors.push((format!("kept.{number}"), Dtype::U8, vec![bytes.len()], bytes.clone()));
    }
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    // One entry: a map's order is another in each process, and equal captures shall be equal files.
    let what = [Cache::VERSION, key, &digest(key, views.iter().map(|(n, v)| (*n, v)))].join("; ");
    let meta = HashMap::from([("capture".to_owned(), what)]);
    safetensors::serialize(views, Some(meta))
}

/// SHA-256 of a key and some tensors, in the order of their names.
fn digest<'a, 'b: 'a>(key: &str, tensors: impl Iterator<Item = (&'a str, &'a TensorView<'b>)>) -> String {
    let sorted: BTreeMap<&str, &TensorView<'b>> = tensors.collect();
    let mut h = Sha256::new();
    h.update(key);
    for (name, view) in sorted {
        h.update(format!("{name} {:?} {:?} {}\n", view.dtype(), view.shape(), view.data().len()));
        h.update(view.data());
    }
    ggml_grad::files::hex(&h.finalize())
}

fn parse(bytes: &[u8], key: &str, kind: CacheType) -> Result<Stored, String> {
    let text = |e: safetensors::SafeTensorError| e.to_string();
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(text)?;
    let what = header.metadata().as_ref().and_then(|m| m.get("capture")).cloned().unwrap_or_default();
    let parts: Vec<&str> = what.split("; ").collect();
    let [format, of, sha256] = parts[..] else { return Err("it is no capture of bidpo's".into()) };
    if format != Cache::VERSION {
        return Err(format!("its format is {format:?}, this version of bidpo reads {:?}", Cache::VERSION));
    }
    if of != key {
        return Err("it belongs to another capture".into());
    }
    let file = SafeTensors::deserialize(bytes).map_err(text)?;
    let tensors = file.tensors();
    if sha256 != digest(key, tensors.iter().map(|(n, v)| (n.as_str(), v))) {
        return Err("its checksum is wrong".into());
    }
    let get = |name: &str, dtype: Dtype| {
        let t = file.tensor(name).map_err(text)?;
        if t.dtype() == dtype { Ok(t) } else { Err(format!("{name} is {:?}", t.dtype())) }
    };
    let residual = match kind {
        CacheType::F32 => f32_from_le(get("residual", Dtype::F32)?.data()),
        CacheType::Bf16 => {
            let t = get("residual", Dtype::BF16)?;
            t.data().chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
        }
    };
    let mut norms = Vec::new();
    while file.names().iter().any(|n| **n == format!("norms.{}", norms.len())) {
        norms.push(f32_from_le(get(&format!("norms.{}", norms.len()), Dtype::F32)?.data()));
    }
    let numbers = f64_from_le(get("reference", Dtype::F64)?.data());
    let reference = numbers.chunks_exact(2).map(|p| PairLogp { chosen: p[0], rejected: p[1] }).collect();
    let mut kept = BTreeMap::new();
    for (name, view) in &tensors {
        if let Some(number) = name.strip_prefix("kept.") {
            kept.insert(number.parse().map_err(|_| format!("tensor {name}"))?, view.data().to_vec());
        }
    }
    Ok(Stored { residual, norms, kept, reference })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored() -> Stored {
        Stored {
            residual: vec![1.0, -2.5, f32::MIN_POSITIVE, 1e30],
            norms: vec![vec![2.0, 1e30], vec![3.0, 4.0]],
            kept: BTreeMap::from([(3, vec![1, 2, 3]), (40, vec![9])]),
            reference: vec![PairLogp { chosen: -0.1, rejected: f64::MIN_POSITIVE }],
        }
    }

    fn cache(folder: &Path) -> Cache {
        Cache::open(folder, CacheType::F32, "model").unwrap()
    }

    fn pair() -> TokenizedPair {
        TokenizedPair { prompt: vec![1, 2], chosen: vec![3], rejected: vec![4, 5] }
    }

    #[test]
    fn comes_back_exactly() {
        let dir = tempfile::tempdir().unwrap();
        let mut c = cache(dir.path());
        assert_eq!(c.load("k"), None);
        c.store("k", &stored());
        assert_eq!(c.load("k"), Some(stored()));
        assert_eq!((c.used().reused, c.used().written, c.take_notices()), (1, 1, vec![]));
        assert_eq!(c.used().bytes_read, c.used().bytes_written);
    }

    #[test]
    fn a_key_is_all_that_decides_the_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let c = cache(dir.path());
        let key = c.key("layer 3", &[&pair()]);
        assert_eq!(key, c.key("layer 3", &[&pair()]));
        let moved = TokenizedPair { prompt: vec![1], chosen: vec![2, 3], rejected: vec![4, 5] };
        for other in [
            c.key("layer 4", &[&pair()]),
            c.key("layer 3", &[&moved]),
            c.key("layer 3", &[&pair(), &pair()]),
            Cache::open(dir.path(), CacheType::Bf16, "model").unwrap().key("layer 3", &[&pair()]),
            Cache::open(dir.path(), CacheType::F32, "another").unwrap().key("layer 3", &[&pair()]),
        ] {
            assert_ne!(key, other);
        }
    }

    #[test]
    fn nothing_broken_or_foreign_is_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let mut c = cache(dir.path());
        c.store("k", &stored());
        let whole = std::fs::read(c.path("k")).unwrap();
        let mut refused = |bytes: &[u8], key: &str| {
            std::fs::write(c.path(key), bytes).unwrap();
            assert_eq!(c.load(key), None);
            assert_eq!(c.take_notices().len(), 1);
        };
        refused(&whole, "another"); // renamed
        refused(b"", "k");
        for cut in [1, 7, whole.len() / 2, whole.len() - 1] {
            refused(&whole[..cut], "k");
        }
        for at in 0..whole.len() {
            let mut one = whole.clone();
            one[at] ^= 1;
            std::fs::write(c.path("k"), &one).unwrap();
            // A flipped bit in the header may rename what nobody reads; the numbers are never others.
            assert!(c.load("k").is_none_or(|s| s == stored()), "byte {at}");
        }
    }

    #[test]
    fn bf16_rounds_to_nearest_even() {
        for (x, want) in [(1.0, 1.0), (1.003_906_3, 1.0), (1.011_718_8, 1.015_625), (-3.0, -3.0), (0.0, 0.0)] {
            let mut got = [x];
            CacheType::Bf16.round(&mut got);
            assert_eq!(got, [want], "{x}");
        }
        let mut special = [f32::NAN, f32::INFINITY];
        CacheType::Bf16.round(&mut special);
        assert!(special[0].is_nan() && special[1].is_infinite());
        let mut once = [0.123_456, -789.1];
        CacheType::Bf16.round(&mut once);
        let mut twice = once;
        CacheType::Bf16.round(&mut twice);
        assert_eq!(once, twice);
    }
}
