//! GGUF files: metadata and tensors, through ggml's own reader and writer.

use super::guard::{guarded, throwing};
use super::{DType, LlamaError, init, logging::last_log_lines, sys};
use crate::files::FileError;
use crate::numeric;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Tensors start at multiples of this many bytes: GGUF's default.
const ALIGNMENT: u64 = 32;
/// ggml's buffer for a tensor's name, its NUL byte included.
const MAX_NAME: usize = 64;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum GgufValue {
    /// Text.
    Str(String),
    /// Any integer type that fits.
    Int(i64),
    /// `f32` or `f64`.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// Something this reader has no use for: its type's name.
    Other(String),
}

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
    tensors: Vec<TensorInfo>,
}

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
        let (meta, tensors) = unsafe {
            let mut meta = BTreeMap::new();
            for id in 0..sys::gguf_get_n_kv(raw) {
                let key = CStr::from_ptr(sys::gguf_get_key(raw, id)).to_string_lossy().into_owned();
                let kind = sys::gguf_get_kv_type(raw, id);
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
            (meta, tensors)
        };
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
        Ok(Self { path: path.to_owned(), meta, tensors })
    }

    /// A metadata value.
    pub fn get(&self, key: &str) -> Option<&GgufValue> {
        self.meta.get(key)
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
    pub(super) fn open_with(model: &Path, name: &str, dtype: DType, ne: [usize; 4]) -> Result<Self, LlamaError> {
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

/// A tensor of a file to be written: its data given now, or asked for while the file is written.
#[derive(Debug)]
struct NewTensor {
    name: CString,
    dtype: DType,
    ne: [usize; 4],
    data: Option<Vec<f32>>,
}

impl NewTensor {
    fn name(&self) -> std::borrow::Cow<'_, str> {
        self.name.to_string_lossy()
    }

    fn n_bytes(&self) -> u64 {
        self.dtype.row_bytes(self.ne[0]) as u64 * self.ne[1..].iter().map(|&n| n as u64).product::<u64>()
    }
}

/// Builds a GGUF file of metadata and tensors.
#[derive(Debug)]
pub struct GgufWriter {
    raw: *mut sys::gguf_context,
    tensors: Vec<NewTensor>,
}

impl Default for GgufWriter {
    fn default() -> Self {
        Self::new()
    }
}

/// Takes the bytes of one tensor, in pieces of any size.
pub struct TensorSink<'a> {
    out: &'a mut dyn Write,
    taken: u64,
    size: u64,
    fail: &'a dyn Fn(&dyn std::fmt::Display) -> LlamaError,
}

impl std::fmt::Debug for TensorSink<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TensorSink").field("taken", &self.taken).field("size", &self.size).finish()
    }
}

impl TensorSink<'_> {
    /// Appends bytes, laid out as ggml keeps the tensor's rows.
    ///
    /// # Errors
    /// [`LlamaError::Gguf`] when the disk is full.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), LlamaError> {
        self.taken += bytes.len() as u64;
        self.out.write_all(bytes).map_err(|e| (self.fail)(&e))
    }
}

impl GgufWriter {
    /// An empty file.
    pub fn new() -> Self {
        init();
        // SAFETY: no arguments; the context is freed in drop.
        Self { raw: unsafe { sys::gguf_init_empty() }, tensors: Vec::new() }
    }

    /// A file with the metadata of another.
    ///
    /// # Errors
    /// [`LlamaError::Gguf`] when that one cannot be read.
    pub fn with_meta_of(path: &Path) -> Result<Self, LlamaError> {
        let writer = Self::new();
        let c_path = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| LlamaError::Gguf(format!("{}: the path holds a NUL byte", path.display())))?;
        let _ = last_log_lines();
        // SAFETY: the path is NUL-terminated; no ggml context is asked for, so only metadata is read; set_kv copies.
        unsafe {
            let params = sys::gguf_init_params { no_alloc: true, ctx: std::ptr::null_mut() };
            let name = c_path.as_ptr();
            let from = guarded(|| throwing::gguf_init_from_file(name, params))
                .map_err(|reason| LlamaError::Gguf(format!("{} cannot be read: {reason}", path.display())))?;
            if from.is_null() {
                return Err(LlamaError::Gguf(format!("{} cannot be read: {}", path.display(), last_log_lines())));
            }
            sys::gguf_set_kv(writer.raw, from);
            sys::gguf_free(from);
        }
        Ok(writer)
    }

    /// Removes a key; without effect where there is none.
    pub fn remove(&mut self, key: &str) {
        if let Ok(key) = CString::new(key) {
            // SAFETY: raw is alive; the key is NUL-terminated.
            unsafe { sys::gguf_remove_key(self.raw, key.as_ptr()) };
        }
    }

    /// A key that ggml takes.
    ///
    /// # Errors
    /// [`LlamaError::GgufKey`] for a NUL byte, and for keys on which ggml aborts.
    fn key(key: &str) -> Result<CString, LlamaError> {
        let refuse = |reason| LlamaError::GgufKey { key: key.to_owned(), reason };
        match key {
            "" => Err(refuse("it is empty")),
            "general.alignment" => Err(refuse("ggml sets it itself")),
            _ => CString::new(key).map_err(|_| refuse("it holds a NUL byte")),
        }
    }

    fn text(text: &str) -> CString {
        CString::new(text.replace('\0', " ")).unwrap_or_default()
    }

    /// Sets a metadata value. Integers are written as `i64`, floats as `f64`; [`GgufValue::Other`] is skipped. A NUL byte
    /// in a text becomes a space: C readers would end the text there.
    ///
    /// # Errors
    /// [`LlamaError::GgufKey`] for a key that GGUF cannot hold; the same holds for all setters.
    pub fn set(&mut self, key: &str, value: &GgufValue) -> Result<(), LlamaError> {
        let key = Self::key(key)?;
        // SAFETY: raw is alive; key and text are NUL-terminated; ggml copies keys and values.
        unsafe {
            match value {
                GgufValue::Str(s) => sys::gguf_set_val_str(self.raw, key.as_ptr(), Self::text(s).as_ptr()),
                GgufValue::Int(n) => sys::gguf_set_val_i64(self.raw, key.as_ptr(), *n),
                GgufValue::Float(x) => sys::gguf_set_val_f64(self.raw, key.as_ptr(), *x),
                GgufValue::Bool(b) => sys::gguf_set_val_bool(self.raw, key.as_ptr(), *b),
                GgufValue::Other(_) => {}
            }
        }
        Ok(())
    }

    /// Sets a 32-bit integer, for keys whose readers insist on that type.
    ///
    /// # Errors
    /// As [`GgufWriter::set`].
    pub fn set_i32(&mut self, key: &str, value: i32) -> Result<(), LlamaError> {
        let key = Self::key(key)?;
        // SAFETY: raw is alive; the key is NUL-terminated; ggml copies key and value.
        unsafe { sys::gguf_set_val_i32(self.raw, key.as_ptr(), value) };
        Ok(())
    }

    /// Sets an unsigned 32-bit integer: the type of a model's sizes.
    ///
    /// # Errors
    /// As [`GgufWriter::set`].
    pub fn set_u32(&mut self, key: &str, value: u32) -> Result<(), LlamaError> {
        let key = Self::key(key)?;
        // SAFETY: raw is alive; the key is NUL-terminated; ggml copies key and value.
        unsafe { sys::gguf_set_val_u32(self.raw, key.as_ptr(), value) };
        Ok(())
    }

    /// Sets a 32-bit float: the type of a model's constants.
    ///
    /// # Errors
    /// As [`GgufWriter::set`].
    pub fn set_f32(&mut self, key: &str, value: f32) -> Result<(), LlamaError> {
        let key = Self::key(key)?;
        // SAFETY: raw is alive; the key is NUL-terminated; ggml copies key and value.
        unsafe { sys::gguf_set_val_f32(self.raw, key.as_ptr(), value) };
        Ok(())
    }

    /// Sets a boolean.
    ///
    /// # Errors
    /// As [`GgufWriter::set`].
    pub fn set_bool(&mut self, key: &str, value: bool) -> Result<(), LlamaError> {
        let key = Self::key(key)?;
        // SAFETY: raw is alive; the key is NUL-terminated; ggml copies key and value.
        unsafe { sys::gguf_set_val_bool(self.raw, key.as_ptr(), value) };
        Ok(())
    }

    /// Sets a text. A NUL byte becomes a space.
    ///
    /// # Errors
    /// As [`GgufWriter::set`].
    pub fn set_text(&mut self, key: &str, value: &str) -> Result<(), LlamaError> {
        let key = Self::key(key)?;
        // SAFETY: raw is alive; the key is NUL-terminated; ggml copies key and value.
        unsafe { sys::gguf_set_val_str(self.raw, key.as_ptr(), Self::text(value).as_ptr()) };
        Ok(())
    }

    /// Sets a list of texts. A NUL byte becomes a space.
    ///
    /// # Errors
    /// As [`GgufWriter::set`].
    pub fn set_texts<S: AsRef<str>>(&mut self, key: &str, values: &[S]) -> Result<(), LlamaError> {
        let key = Self::key(key)?;
        let texts: Vec<CString> = values.iter().map(|s| Self::text(s.as_ref())).collect();
        let mut pointers: Vec<*const std::ffi::c_char> = texts.iter().map(|s| s.as_ptr()).collect();
        // SAFETY: as in set(); the pointers are valid for the call, which copies the texts.
        unsafe { sys::gguf_set_arr_str(self.raw, key.as_ptr(), pointers.as_mut_ptr(), pointers.len()) };
        Ok(())
    }

    /// Sets a list of 32-bit floats.
    ///
    /// # Errors
    /// As [`GgufWriter::set`].
    pub fn set_f32s(&mut self, key: &str, values: &[f32]) -> Result<(), LlamaError> {
        self.set_list(key, sys::GGUF_TYPE_FLOAT32, values)
    }

    /// Sets a list of 32-bit integers.
    ///
    /// # Errors
    /// As [`GgufWriter::set`].
    pub fn set_i32s(&mut self, key: &str, values: &[i32]) -> Result<(), LlamaError> {
        self.set_list(key, sys::GGUF_TYPE_INT32, values)
    }

    /// Sets a list of booleans.
    ///
    /// # Errors
    /// As [`GgufWriter::set`].
    pub fn set_bools(&mut self, key: &str, values: &[bool]) -> Result<(), LlamaError> {
        self.set_list(key, sys::GGUF_TYPE_BOOL, values)
    }

    fn set_list<T>(&mut self, key: &str, kind: sys::gguf_type, values: &[T]) -> Result<(), LlamaError> {
        let key = Self::key(key)?;
        // SAFETY: T has the size that kind says (f32, i32, and bool, which GGUF keeps as one byte); ggml copies.
        unsafe { sys::gguf_set_arr_data(self.raw, key.as_ptr(), kind, values.as_ptr().cast(), values.len()) };
        Ok(())
    }

    /// A tensor's name as a C string.
    ///
    /// # Errors
    /// [`LlamaError::Gguf`] for a NUL byte. Empty, long and repeated names are found by [`GgufWriter::write_with`].
    fn name(name: &str) -> Result<CString, LlamaError> {
        CString::new(name).map_err(|_| LlamaError::Gguf(format!("the tensor name {name:?} holds a NUL byte")))
    }

    /// Adds a one-dimensional F32 tensor.
    ///
    /// # Errors
    /// [`LlamaError::Gguf`] for a name that holds a NUL byte.
    pub fn add_f32(&mut self, name: &str, data: Vec<f32>) -> Result<(), LlamaError> {
        let ne = [data.len(), 1, 1, 1];
        self.tensors.push(NewTensor { name: Self::name(name)?, dtype: DType::F32, ne, data: Some(data) });
        Ok(())
    }

    /// Adds an F32 tensor of rows of `width` elements.
    ///
    /// # Errors
    /// [`LlamaError::Gguf`] for a name that holds a NUL byte, and elements that are no whole number of rows.
    pub fn add_f32_rows(&mut self, name: &str, width: usize, data: Vec<f32>) -> Result<(), LlamaError> {
        if width == 0 || !data.len().is_multiple_of(width) {
            return Err(LlamaError::Gguf(format!("tensor {name}: {} elements are no rows of {width}", data.len())));
        }
        let ne = [width, data.len() / width, 1, 1];
        self.tensors.push(NewTensor { name: Self::name(name)?, dtype: DType::F32, ne, data: Some(data) });
        Ok(())
    }

    /// Adds a tensor of `ne[0] x ne[1] x ne[2] x ne[3]` elements (`ne[0]` fastest, unused dimensions 1) whose bytes
    /// [`GgufWriter::write_with`] will ask for.
    ///
    /// # Errors
    /// [`LlamaError::Gguf`] for a name that holds a NUL byte.
    pub fn declare(&mut self, name: &str, dtype: DType, ne: [usize; 4]) -> Result<(), LlamaError> {
        self.tensors.push(NewTensor { name: Self::name(name)?, dtype, ne, data: None });
        Ok(())
    }

    /// Writes the file: to a temporary name beside `path`, then renamed, so that a reader never sees half of it.
    ///
    /// # Errors
    /// [`LlamaError::Gguf`] when the folder cannot be written to or the disk is full.
    pub fn write(&self, path: &Path) -> Result<(), LlamaError> {
        self.write_with(path, &mut |_, _| Ok(()))
    }

    /// Like [`GgufWriter::write`]; `fill(i, sink)` gives the bytes of tensor `i` (counted in the order of adding), one
    /// tensor after the other, so that a large model never lies in memory as a whole.
    ///
    /// # Errors
    /// Those of [`GgufWriter::write`]; [`LlamaError::Gguf`] for a shape that the type cannot have, a name used twice, or
    /// a tensor that got more or fewer bytes than it has.
    pub fn write_with(
        &self,
        path: &Path,
        fill: &mut dyn FnMut(usize, &mut TensorSink<'_>) -> Result<(), LlamaError>,
    ) -> Result<(), LlamaError> {
        let fail = |what: &dyn std::fmt::Display| LlamaError::Gguf(format!("cannot write {}: {what}", path.display()));
        self.check().map_err(|what| fail(&what))?;
        let mut temporary = crate::files::temporary_beside(path).map_err(|e| fail(&e))?;
        let c_path = CString::new(temporary.path().as_os_str().as_encoded_bytes()).map_err(|e| fail(&e))?;
        if !self.write_head(&c_path) {
            return Err(fail(&last_log_lines()));
        }
        let mut out = BufWriter::new(temporary.as_file_mut());
        out.seek(SeekFrom::End(0)).map_err(|e| fail(&e))?;
        for (i, t) in self.tensors.iter().enumerate() {
            let mut sink = TensorSink { out: &mut out, taken: 0, size: t.n_bytes(), fail: &fail };
            match &t.data {
                Some(data) => {
                    for piece in data.chunks(1 << 14) {
                        sink.push(&piece.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())?;
                    }
                }
                None => fill(i, &mut sink)?,
            }
            if sink.taken != sink.size {
                return Err(fail(&format!("tensor {} has {} bytes, {} were given", t.name(), sink.size, sink.taken)));
            }
            let padding = (sink.size.next_multiple_of(ALIGNMENT) - sink.size) as usize;
            out.write_all(&[0; ALIGNMENT as usize][..padding]).map_err(|e| fail(&e))?;
        }
        out.flush().map_err(|e| fail(&e))?;
        drop(out);
        temporary.as_file().sync_all().map_err(|e| fail(&e))?;
        crate::files::persist(temporary, path).map_err(|e| fail(&e))
    }

    /// A value that ggml would abort on.
    fn check(&self) -> Result<(), String> {
        let mut names = std::collections::HashSet::new();
        for t in &self.tensors {
            let (name, ne) = (t.name(), t.ne);
            if t.name.as_bytes().len() >= MAX_NAME {
                return Err(format!("the tensor name {name} is longer than {} bytes", MAX_NAME - 1));
            }
            if !names.insert(t.name.as_c_str()) {
                return Err(format!("two tensors are called {name}"));
            }
            let elements = ne.iter().try_fold(1usize, |n, &k| n.checked_mul(k)).unwrap_or(0);
            if elements == 0 || elements > i64::MAX as usize / 8 || ne[0] % t.dtype.block() != 0 {
                return Err(format!(
                    "tensor {name} cannot have the shape {ne:?} in {} (rows are multiples of {})",
                    t.dtype.name(),
                    t.dtype.block()
                ));
            }
        }
        Ok(())
    }

    /// Writes everything but the tensors' data. The metadata goes through a copy, so that a writer can write twice.
    fn write_head(&self, path: &CStr) -> bool {
        // SAFETY: the ggml context only holds tensor headers (no_alloc), and only_meta reads no data; the gguf context
        // copies the headers. check() has seen to what ggml asserts.
        unsafe {
            let ctx = sys::ggml_init(sys::ggml_init_params {
                mem_size: sys::ggml_tensor_overhead() * (self.tensors.len() + 1),
                mem_buffer: std::ptr::null_mut(),
                no_alloc: true,
            });
            if ctx.is_null() {
                return false;
            }
            let out = sys::gguf_init_empty();
            sys::gguf_set_kv(out, self.raw);
            for tensor in &self.tensors {
                let ne = tensor.ne.map(|n| n as i64);
                let n_dims = 1 + ne[1..].iter().rposition(|&n| n > 1).map_or(0, |i| i + 1);
                let t = sys::ggml_new_tensor(ctx, tensor.dtype.0, n_dims as i32, ne.as_ptr());
                sys::ggml_set_name(t, tensor.name.as_ptr());
                sys::gguf_add_tensor(out, t);
            }
            let ok = sys::gguf_write_to_file(out, path.as_ptr(), true);
            sys::gguf_free(out);
            sys::ggml_free(ctx);
            ok
        }
    }
}

impl Drop for GgufWriter {
    fn drop(&mut self) {
        // SAFETY: freed once.
        unsafe { sys::gguf_free(self.raw) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_ggml_aborts_on_are_errors() {
        let mut writer = GgufWriter::new();
        for (bad, reason) in [("a\0b", "NUL"), ("", "empty"), ("general.alignment", "ggml")] {
            let error = writer.set(bad, &GgufValue::Int(1)).unwrap_err();
            assert!(matches!(&error, LlamaError::GgufKey { key, .. } if key == bad), "{error}");
            assert!(error.to_string().contains(reason), "{error}");
            assert!(writer.set_texts(bad, &["x"]).is_err() && writer.set_bools(bad, &[true]).is_err());
        }
        writer.remove("a\0b");
        assert!(writer.add_f32("t\0", vec![1.0]).unwrap_err().to_string().contains("NUL"));
        assert!(writer.declare("t\0", DType::F32, [1; 4]).is_err());
    }

    #[test]
    fn a_nul_byte_in_a_text_becomes_a_space() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t.gguf");
        let mut writer = GgufWriter::new();
        writer.set("key", &GgufValue::Str("a\0b".into())).unwrap();
        writer.write(&path).unwrap();
        assert_eq!(GgufFile::open(&path).unwrap().get("key"), Some(&GgufValue::Str("a b".into())));
    }
}
