//! `torch.save`: a zip archive of a pickled program (`data.pkl`) that describes tensors, and a file of numbers for each storage.
//! Read as data, without Python's pickle: docs/vector-file.md.

use super::loose::{FileRemark, Tensor, layer_in};
use super::pickle::{Id, Pickle, PickleError, Value};
use ggml_grad::numeric;
use std::collections::HashMap;
use std::io::{Cursor, Read};
use std::path::Path;
use zip::ZipArchive;

/// Bytes that are read of one archive: far above any set of vectors.
const MAX_BYTES: u64 = 1 << 30;
/// Dictionaries within dictionaries.
const MAX_DEPTH: usize = 8;
/// Keys of a dict that name the layer of its tensor.
const LAYER_ENTRIES: [&str; 3] = ["layer", "layer_idx", "layer_id"];
/// Entries of all dictionaries: those within others may be the same one many times.
const MAX_ENTRIES: usize = 1 << 16;

/// Tensors of a file, and remarks about it.
pub(super) struct Contents {
    pub(super) tensors: Vec<Tensor>,
    pub(super) remarks: Vec<FileRemark>,
}

/// Bytes of a file that `torch.save` wrote before PyTorch 1.6: a pickled magic number.
const OLD_MAGIC: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

/// What to do with a file that is not read.
fn by_python(path: &Path) -> String {
    let name = ggml_grad::files::display_name(path);
    advice(path, &format!("torch.load(\"{name}\", map_location=\"cpu\", weights_only=False)"))
}

/// The same, with what Python loads the file by.
fn advice(path: &Path, load: &str) -> String {
    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    format!(
        "write its tensors with PyTorch, as a tensor or a dict of layer and tensor (torch.as_tensor makes one of an array): \
         torch.save(x, \"{stem}-plain.pt\") after x = {load}, which runs the file's code: only if you trust it"
    )
}

/// Reads an archive.
pub(super) fn read(bytes: &[u8], path: &Path) -> Result<Contents, String> {
    if bytes.starts_with(OLD_MAGIC) {
        return Err(format!("it was written in PyTorch's format before 1.6; {}", by_python(path)));
    }
    if bytes.first() == Some(&0x80) {
        let load = format!("pickle.load(open(\"{}\", \"rb\"))", ggml_grad::files::display_name(path));
        return Err(format!("it is a Python pickle and no archive of torch.save; {}", advice(path, &load)));
    }
    let damaged = |e: &dyn std::fmt::Display| format!("not an archive of torch.save, or damaged: {e}");
    let mut archive = Archive::open(bytes).map_err(|e| damaged(&e))?;
    let Some(folder) = archive.folder() else {
        return Err("not an archive of torch.save: it holds no data.pkl".into());
    };
    if archive.has(&format!("{folder}constants.pkl")) {
        return Err(format!("it is a TorchScript program; {}", by_python(path)));
    }
    let program = archive.file(&format!("{folder}data.pkl")).map_err(|e| damaged(&e))?;
    let big_endian = archive.file(&format!("{folder}byteorder")).is_ok_and(|order| order.trim_ascii() == b"big");
    let pickle = Pickle::read(&program).map_err(|e| match e {
        PickleError::Damaged(_) => e.to_string(),
        PickleError::Code(_) | PickleError::Opcode(_) => format!("{e}; {}", by_python(path)),
    })?;
    let mut reader = Reader {
        pickle: &pickle,
        archive,
        folder,
        big_endian,
        storages: HashMap::new(),
        left: MAX_BYTES,
        entries: 0,
        others: Vec::new(),
    };
    let tensors = reader.contents()?;
    let others = std::mem::take(&mut reader.others);
    let remarks = if others.is_empty() { Vec::new() } else { vec![FileRemark::NotTensors(others)] };
    Ok(Contents { tensors, remarks })
}

/// A zip archive in memory.
pub(super) struct Archive<'a>(ZipArchive<Cursor<&'a [u8]>>);

impl<'a> Archive<'a> {
    pub(super) fn open(bytes: &'a [u8]) -> Result<Self, zip::result::ZipError> {
        Ok(Self(ZipArchive::new(Cursor::new(bytes))?))
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.0.file_names().filter_map(Result::ok).map(std::borrow::Cow::into_owned).collect()
    }

    /// The folder of `data.pkl`, with its slash.
    fn folder(&self) -> Option<String> {
        self.names().iter().find_map(|n| n.strip_suffix("data.pkl").map(str::to_owned))
    }

    fn has(&self, name: &str) -> bool {
        self.0.index_for_name(name).is_some()
    }

    /// A file's bytes, at most [`MAX_BYTES`].
    pub(super) fn file(&mut self, name: &str) -> Result<Vec<u8>, String> {
        let file = self.0.by_name(name).map_err(|e| format!("{name}: {e}"))?;
        let mut bytes = Vec::new();
        let n = file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| format!("{name}: {e}"))? as u64;
        if n > MAX_BYTES {
            return Err(format!("{name} is larger than {MAX_BYTES} bytes"));
        }
        Ok(bytes)
    }
}

struct Reader<'a> {
    pickle: &'a Pickle,
    archive: Archive<'a>,
    folder: String,
    big_endian: bool,
    /// Values of storages that were read, by key.
    storages: HashMap<String, Vec<f32>>,
    /// Bytes of storages and tensors that may still be read.
    left: u64,
    /// Entries of dictionaries that were read.
    entries: usize,
    /// Names of entries that are no tensors.
    others: Vec<String>,
}

impl Reader<'_> {
    fn contents(&mut self) -> Result<Vec<Tensor>, String> {
        let mut tensors = Vec::new();
        match self.pickle.get(self.pickle.root) {
            Value::Tensor { .. } => tensors.push(self.tensor(String::new(), self.pickle.root)?),
            Value::List(items) | Value::Tuple(items) => tensors.push(self.rows(items)?),
            Value::Dict(entries) => {
                self.dict("", self.pickle.root, 0, &mut tensors)?;
                // An entry `layer` beside a single tensor says where that belongs.
                let layer = entries.iter().find_map(|&(key, value)| self.layer_entry(key, value));
                if let ([one], Some(layer)) = (&mut tensors[..], layer)
                    && layer_in(&one.name).is_none()
                {
                    one.name = format!("layer_{layer}");
                    self.others.retain(|name| !LAYER_ENTRIES.contains(&name.as_str()));
                }
            }
            _ => return Err("it holds no tensor".into()),
        }
        Ok(tensors)
    }

    /// The number in an entry `layer` of a dict.
    fn layer_entry(&self, key: Id, value: Id) -> Option<usize> {
        match (self.pickle.get(key), self.pickle.get(value)) {
            (Value::Text(key), Value::Int(n)) if LAYER_ENTRIES.contains(&key.as_str()) => usize::try_from(*n).ok(),
            _ => None,
        }
    }

    /// The tensors of a dict and of the dicts in it, named by their keys.
    fn dict(&mut self, prefix: &str, id: Id, depth: usize, tensors: &mut Vec<Tensor>) -> Result<(), String> {
        let Value::Dict(entries) = self.pickle.get(id) else { return Ok(()) };
        if depth > MAX_DEPTH {
            return Err(format!("it holds dicts within dicts, more than {MAX_DEPTH} deep"));
        }
        for &(key, value) in entries {
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(format!("its dicts hold more than {MAX_ENTRIES} entries"));
            }
            let key = match self.pickle.get(key) {
                Value::Text(text) => text.clone(),
                Value::Int(n) => n.to_string(),
                _ => return Err("a key of its dict is neither a text nor a number".into()),
            };
            let name = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
            match self.pickle.get(value) {
                Value::Tensor { .. } => tensors.push(self.tensor(name, value)?),
                Value::Dict(_) => self.dict(&name, value, depth + 1, tensors)?,
                _ => self.others.push(name),
            }
        }
        Ok(())
    }

    /// A list of directions as the rows of one tensor: a list does not say which layers they belong to.
    fn rows(&mut self, items: &[Id]) -> Result<Tensor, String> {
        let mut values = Vec::new();
        let mut width = None;
        for (i, &id) in items.iter().enumerate() {
            let row = match self.pickle.get(id) {
                Value::Tensor { .. } => self.tensor(String::new(), id)?,
                _ => return Err(format!("entry {i} of its list is no tensor")),
            };
            if row.shape.iter().filter(|&&n| n != 1).count() > 1 {
                return Err(format!("entry {i} of its list has the shape {:?}, expected one direction", row.shape));
            }
            let n = *width.get_or_insert(row.values.len());
            if row.values.len() != n {
                return Err(format!("entry {i} of its list has {} values, the first has {n}", row.values.len()));
            }
            values.extend(row.values);
        }
        Ok(Tensor { name: String::new(), shape: vec![items.len(), width.unwrap_or(0)], values })
    }

    fn tensor(&mut self, name: String, id: Id) -> Result<Tensor, String> {
        let Value::Tensor { storage, offset, shape, strides } = self.pickle.get(id) else {
            return Err("it holds no tensor".into());
        };
        let label = if name.is_empty() { "the tensor" } else { &name };
        let wrong = || format!("{label} (shape {shape:?}, strides {strides:?}) reaches over the end of its numbers");
        let n = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or_else(wrong)?;
        self.left = (n as u64).checked_mul(4).and_then(|bytes| self.left.checked_sub(bytes)).ok_or_else(wrong)?;
        if shape.len() != strides.len() {
            return Err(wrong());
        }
        let storage = self.storage(*storage, label)?;
        let mut values = Vec::new();
        let mut index = vec![0usize; shape.len()];
        for _ in 0..n {
            let at = index.iter().zip(strides).try_fold(*offset, |at, (&i, &s)| at.checked_add(i.checked_mul(s)?));
            values.push(*at.and_then(|at| storage.get(at)).ok_or_else(wrong)?);
            for d in (0..shape.len()).rev() {
                index[d] += 1;
                if index[d] < shape[d] {
                    break;
                }
                index[d] = 0;
            }
        }
        Ok(Tensor { name, shape: shape.clone(), values })
    }

    fn storage(&mut self, id: Id, label: &str) -> Result<&[f32], String> {
        let Value::Storage { kind, key } = self.pickle.get(id) else {
            return Err(format!("{label} has no numbers"));
        };
        if !self.storages.contains_key(key) {
            let bytes = self.archive.file(&format!("{}data/{key}", self.folder))?;
            self.left = self
                .left
                .checked_sub(bytes.len() as u64)
                .ok_or_else(|| format!("it holds more than {MAX_BYTES} bytes"))?;
            let values = floats(kind, bytes, self.big_endian)
                .ok_or_else(|| format!("{label} is a {kind}, expected floats: Float, Double, Half or BFloat16"))?;
            self.storages.insert(key.clone(), values);
        }
        Ok(&self.storages[key])
    }
}

/// A storage's numbers as f32; `None` for other types.
fn floats(kind: &str, mut bytes: Vec<u8>, big_endian: bool) -> Option<Vec<f32>> {
    let width = match kind {
        "FloatStorage" => 4,
        "DoubleStorage" => 8,
        "HalfStorage" | "BFloat16Storage" => 2,
        _ => return None,
    };
    if big_endian {
        bytes.chunks_exact_mut(width).for_each(<[u8]>::reverse);
    }
    Some(match kind {
        "FloatStorage" => numeric::f32_from_le(&bytes),
        "DoubleStorage" => numeric::f64_from_le(&bytes).into_iter().map(|x| x as f32).collect(),
        "HalfStorage" => numeric::f16_from_le(&bytes),
        _ => numeric::bf16_from_le(&bytes),
    })
}
