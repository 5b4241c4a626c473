//! Reading a GGUF file: its metadata, and the data of single tensors.

use super::GgufValue;
use crate::files::FileError;
use crate::llama::process::guard::{guarded, throwing};
use crate::llama::{DType, LlamaError, init, last_log_lines, sys};
use crate::numeric;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

#[derive(Debug, Clone)]
struct TensorInfo {
    name: String,
    dtype: DType,
    ne: [usize; 4],
    offset: u64,
}

/// A GGUF file, its metadata read.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    meta: BTreeMap<String, GgufValue>,
    /// Short lists of `u32`.
    lists: BTreeMap<String, Vec<u32>>,
    /// Keys whose value is an `f32`.
    singles: BTreeSet<String>,
    tensors: Vec<TensorInfo>,
}

/// Lists of numbers up to this length are kept: longer ones are tables of a vocabulary.
const SHORT_LIST: usize = 4096;

impl GgufFile {
    /// Reads a file's metadata.
    ///
    /// # Errors
    /// [`LlamaError::File`], [`LlamaError::NotGguf`], or [`LlamaError::Gguf`] with ggml's reason for a damaged file.
    pub fn open(path: &Path) -> Result<Self, LlamaError> {
        init();
        let read_error = FileError::read(path);
        let mut file = std::fs::File::open(path).map_err(read_error)?;
        let size = file.metadata().map_err(read_error)?.len();
        let mut magic = Vec::new();
        (&mut file).take(4).read_to_end(&mut magic).map_err(read_error)?;
        if magic != b"GGUF" {
            let found = String::from_utf8_lossy(&magic).into_owned();
            return Err(LlamaError::NotGguf { path: path.to_owned(), found });
        }
        let c_path = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| LlamaError::Gguf(format!("{}: the path holds a NUL byte", path.display())))?;
        let _ = last_log_lines();
        // SAFETY: the path is NUL-terminated; no ggml context is asked for, so only metadata is read.
        let (name, params) = (c_path.as_ptr(), sys::gguf_init_params { no_alloc: true, ctx: std::ptr::null_mut() });
        // SAFETY: as above.
        let raw = guarded(|| unsafe { throwing::gguf_init_from_file(name, params) })
            .map_err(|reason| LlamaError::Gguf(format!("{} is damaged: {reason}", path.display())))?;
        if raw.is_null() {
            return Err(LlamaError::Gguf(format!("{} is damaged: {}", path.display(), last_log_lines())));
        }
        // SAFETY: raw is a live gguf context; ids run below the counts it gives; each getter is called for the type
        // that the key has (ggml aborts otherwise).
        let (meta, lists, singles, tensors, n_keys) = unsafe {
            let mut meta = BTreeMap::new();
            let (mut lists, mut singles) = (BTreeMap::new(), BTreeSet::new());
            let n_keys = sys::gguf_get_n_kv(raw);
            for id in 0..n_keys {
                let key = CStr::from_ptr(sys::gguf_get_key(raw, id)).to_string_lossy().into_owned();
                let kind = sys::gguf_get_kv_type(raw, id);
                if kind == sys::GGUF_TYPE_FLOAT32 {
                    singles.insert(key.clone());
                }
                if kind == sys::GGUF_TYPE_ARRAY && sys::gguf_get_arr_type(raw, id) == sys::GGUF_TYPE_UINT32 {
                    let n = sys::gguf_get_arr_n(raw, id);
                    let values = sys::gguf_get_arr_data(raw, id).cast::<u32>();
                    if n <= SHORT_LIST {
                        let list = (0..n).map(|i| values.add(i).read_unaligned()).collect();
                        lists.insert(key.clone(), list);
                    }
                }
                let value = match kind {
                    sys::GGUF_TYPE_STRING => {
                        GgufValue::Str(CStr::from_ptr(sys::gguf_get_val_str(raw, id)).to_string_lossy().into_owned())
                    }
                    sys::GGUF_TYPE_UINT8 => GgufValue::Int(sys::gguf_get_val_u8(raw, id).into()),
                    sys::GGUF_TYPE_INT8 => GgufValue::Int(sys::gguf_get_val_i8(raw, id).into()),
                    sys::GGUF_TYPE_UINT16 => GgufValue::Int(sys::gguf_get_val_u16(raw, id).into()),
                    sys::GGUF_TYPE_INT16 => GgufValue::Int(sys::gguf_get_val_i16(raw, id).into()),
                    sys::GGUF_TYPE_UINT32 => GgufValue::Int(sys::gguf_get_val_u32(raw, id).into()),
                    sys::GGUF_TYPE_INT32 => GgufValue::Int(sys::gguf_get_val_i32(raw, id).into()),
                    sys::GGUF_TYPE_INT64 => GgufValue::Int(sys::gguf_get_val_i64(raw, id)),
                    sys::GGUF_TYPE_UINT64 => match i64::try_from(sys::gguf_get_val_u64(raw, id)) {
                        Ok(n) => GgufValue::Int(n),
                        Err(_) => GgufValue::Other("u64 beyond i64".into()),
                    },
                    sys::GGUF_TYPE_FLOAT32 => GgufValue::Float(sys::gguf_get_val_f32(raw, id).into()),
                    sys::GGUF_TYPE_FLOAT64 => GgufValue::Float(sys::gguf_get_val_f64(raw, id)),
                    sys::GGUF_TYPE_BOOL => GgufValue::Bool(sys::gguf_get_val_bool(raw, id)),
                    other => {
                        GgufValue::Other(CStr::from_ptr(sys::gguf_type_name(other)).to_string_lossy().into_owned())
                    }
                };
                meta.insert(key, value);
            }
            let data = sys::gguf_get_data_offset(raw) as u64;
            let tensors = (0..sys::gguf_get_n_tensors(raw))
                .map(|id| TensorInfo {
                    name: CStr::from_ptr(sys::gguf_get_tensor_name(raw, id)).to_string_lossy().into_owned(),
                    dtype: DType(sys::gguf_get_tensor_type(raw, id)),
                    ne: std::slice::from_raw_parts(sys::gguf_get_tensor_ne(raw, id), 4)
                        .iter()
                        .map(|&n| n.max(0) as usize)
                        .collect::<Vec<_>>()
                        .try_into()
                        .unwrap_or([0; 4]),
                    offset: data + sys::gguf_get_tensor_offset(raw, id) as u64,
                })
                .collect::<Vec<_>>();
            sys::gguf_free(raw);
            (meta, lists, singles, tensors, n_keys)
        };
        // A key ends at its first NUL byte here: one that begins with it, or two that are the same up to it, would be lost, and
        // ggml's writer ends the process on an empty one.
        if meta.contains_key("") || meta.len() as i64 != n_keys {
            return Err(LlamaError::Gguf(format!("{} is damaged: a key with a NUL byte", path.display())));
        }
        for t in &tensors {
            let end = t.offset + (t.dtype.row_bytes(t.ne[0]) * t.ne[1] * t.ne[2] * t.ne[3]) as u64;
            if end > size {
                return Err(LlamaError::Gguf(format!(
                    "{} is truncated: tensor {} ends at byte {end}, the file has {size}",
                    path.display(),
                    t.name
                )));
            }
        }
        Ok(Self { path: path.to_owned(), meta, lists, singles, tensors })
    }

    /// A metadata value.
    pub fn get(&self, key: &str) -> Option<&GgufValue> {
        self.meta.get(key)
    }

    /// A list of at most 4096 `u32`.
    pub fn u32s(&self, key: &str) -> Option<&[u32]> {
        self.lists.get(key).map(Vec::as_slice)
    }

    /// True where the value is an `f32`: llama.cpp ends the process on another type where it wants that one.
    pub fn is_f32(&self, key: &str) -> bool {
        self.singles.contains(key)
    }

    /// All metadata, sorted by key.
    pub fn meta(&self) -> &BTreeMap<String, GgufValue> {
        &self.meta
    }

    /// Names, element types and shapes of the tensors, in file order.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, DType, [usize; 4])> {
        self.tensors.iter().map(|t| (t.name.as_str(), t.dtype, t.ne))
    }

    /// Opens a model and, where it is split over several files (`NAME-00001-of-00003.gguf`), the others.
    ///
    /// # Errors
    /// As [`GgufFile::open`]; [`LlamaError::Gguf`] when the first file is not called so, or another is given.
    pub fn open_parts(path: &Path) -> Result<Vec<Self>, LlamaError> {
        let first = Self::open(path)?;
        let count = match first.get("split.count") {
            Some(GgufValue::Int(n)) if *n > 1 => *n,
            _ => return Ok(vec![first]),
        };
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let Some(stem) = name.strip_suffix(&format!("-00001-of-{count:05}.gguf")) else {
            return Err(LlamaError::Gguf(format!(
                "{} is one of {count} parts of a model: name the first, called ...-00001-of-{count:05}.gguf",
                path.display()
            )));
        };
        let mut parts = vec![first];
        for i in 2..=count {
            parts.push(Self::open(&path.with_file_name(format!("{stem}-{i:05}-of-{count:05}.gguf")))?);
        }
        Ok(parts)
    }

    /// Opens the part of a model that holds a tensor of this name, type and shape.
    ///
    /// # Errors
    /// As [`GgufFile::open_parts`]; [`LlamaError::Gguf`] where no part holds it.
    pub(in crate::llama) fn open_with(
        model: &Path,
        name: &str,
        dtype: DType,
        ne: [usize; 4],
    ) -> Result<Self, LlamaError> {
        let holds = |f: &Self| f.tensors().any(|(n, d, shape)| n == name && d == dtype && shape == ne);
        Self::open_parts(model)?.into_iter().find(holds).ok_or_else(|| {
            LlamaError::Gguf(format!(
                "{} has no tensor {name} of type {} and shape {ne:?}: was the file replaced since it was loaded?",
                model.display(),
                dtype.name()
            ))
        })
    }

    /// Bytes of the tensors of a model, over all its parts. Only the headers are read.
    ///
    /// # Errors
    /// As [`GgufFile::open_parts`].
    pub fn weight_bytes(path: &Path) -> Result<u64, LlamaError> {
        let parts = Self::open_parts(path)?;
        let bytes = |(_, dtype, ne): (&str, DType, [usize; 4])| {
            [ne[1], ne[2], ne[3]].iter().fold(dtype.row_bytes(ne[0]) as u64, |sum, &n| sum.saturating_mul(n as u64))
        };
        Ok(parts.iter().flat_map(Self::tensors).map(bytes).fold(0, u64::saturating_add))
    }

    fn tensor(&self, name: &str) -> Result<&TensorInfo, LlamaError> {
        self.tensors
            .iter()
            .find(|t| t.name == name)
            .ok_or_else(|| LlamaError::Gguf(format!("{} has no tensor {name}", self.path.display())))
    }

    /// Reads the bytes of a tensor, at most `piece` at a time.
    ///
    /// # Errors
    /// [`LlamaError::Gguf`] when there is no such tensor; [`LlamaError::File`] when the file fails.
    pub fn read_pieces(&self, name: &str, piece: usize, take: &mut dyn FnMut(&[u8])) -> Result<(), LlamaError> {
        let t = self.tensor(name)?;
        let read_error = FileError::read(&self.path);
        let mut left = t.dtype.row_bytes(t.ne[0]) * t.ne[1] * t.ne[2] * t.ne[3];
        let mut bytes = vec![0u8; piece.clamp(1, left.max(1))];
        let mut file = std::fs::File::open(&self.path).map_err(read_error)?;
        file.seek(SeekFrom::Start(t.offset)).map_err(read_error)?;
        while left > 0 {
            let n = bytes.len().min(left);
            file.read_exact(&mut bytes[..n]).map_err(read_error)?;
            take(&bytes[..n]);
            left -= n;
        }
        Ok(())
    }

    /// Reads an F32 tensor, `ne[0]` fastest.
    ///
    /// # Errors
    /// [`LlamaError::Gguf`] when there is no such tensor or it is not F32; [`LlamaError::File`] when the file fails.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, LlamaError> {
        let t = self.tensor(name)?;
        if t.dtype != DType::F32 {
            return Err(LlamaError::Gguf(format!(
                "{}: tensor {name} is {}, bidpo reads f32 here",
                self.path.display(),
                t.dtype.name()
            )));
        }
        Ok(self.read_floats(name)?.unwrap_or_default())
    }

    /// Reads a tensor of F32, F64, F16 or BF16 as f32, `ne[0]` fastest; `None` for other types.
    ///
    /// # Errors
    /// [`LlamaError::Gguf`] when there is no such tensor; [`LlamaError::File`] when the file fails.
    pub fn read_floats(&self, name: &str) -> Result<Option<Vec<f32>>, LlamaError> {
        let t = self.tensor(name)?;
        let convert: fn(&[u8]) -> Vec<f32> = match t.dtype {
            DType::F32 => numeric::f32_from_le,
            DType::F64 => |bytes| numeric::f64_from_le(bytes).into_iter().map(|x| x as f32).collect(),
            DType::F16 => numeric::f16_from_le,
            DType::BF16 => numeric::bf16_from_le,
            _ => return Ok(None),
        };
        let mut values = Vec::with_capacity(t.ne.iter().product::<usize>());
        self.read_pieces(name, 1 << 20, &mut |bytes| values.extend(convert(bytes)))?;
        Ok(Some(values))
    }
}
