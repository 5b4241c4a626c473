//! GGUF files that are not models: metadata and F32 tensors, through ggml's own reader and writer.

use super::{DType, LlamaError, init, logging::last_log_lines, sys};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

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
    /// [`LlamaError::Read`], [`LlamaError::NotGguf`], or [`LlamaError::Gguf`] with ggml's reason for a damaged file.
    pub fn open(path: &Path) -> Result<Self, LlamaError> {
        init();
        let read_error = |source| LlamaError::Read { path: path.to_owned(), source };
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
        let raw = unsafe {
            sys::gguf_init_from_file(
                c_path.as_ptr(),
                sys::gguf_init_params { no_alloc: true, ctx: std::ptr::null_mut() },
            )
        };
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

    /// Reads an F32 tensor, `ne[0]` fastest.
    ///
    /// # Errors
    /// [`LlamaError::Gguf`] when there is no such tensor or it is not F32; [`LlamaError::Read`] when the file fails.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, LlamaError> {
        let t = self
            .tensors
            .iter()
            .find(|t| t.name == name)
            .ok_or_else(|| LlamaError::Gguf(format!("{} has no tensor {name}", self.path.display())))?;
        if t.dtype != DType::F32 {
            return Err(LlamaError::Gguf(format!(
                "{}: tensor {name} is {}, bidpo reads f32 here",
                self.path.display(),
                t.dtype.name()
            )));
        }
        let read_error = |source| LlamaError::Read { path: self.path.clone(), source };
        let mut bytes = vec![0u8; t.ne.iter().product::<usize>() * 4];
        let mut file = std::fs::File::open(&self.path).map_err(read_error)?;
        file.seek(SeekFrom::Start(t.offset)).map_err(read_error)?;
        file.read_exact(&mut bytes).map_err(read_error)?;
        Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }
}

/// Builds a GGUF file of metadata and one-dimensional F32 tensors.
#[derive(Debug)]
pub struct GgufWriter {
    raw: *mut sys::gguf_context,
    tensors: Vec<(CString, Vec<f32>)>,
}

impl Default for GgufWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl GgufWriter {
    /// An empty file.
    pub fn new() -> Self {
        init();
        // SAFETY: no arguments; the context is freed in drop.
        Self { raw: unsafe { sys::gguf_init_empty() }, tensors: Vec::new() }
    }

    fn key(key: &str) -> CString {
        CString::new(key).expect("metadata keys are constants of this program without NUL bytes")
    }

    /// Sets a metadata value. Integers are written as `i64`, floats as `f64`; [`GgufValue::Other`] is skipped.
    pub fn set(&mut self, key: &str, value: &GgufValue) {
        let key = Self::key(key);
        // SAFETY: raw is alive; ggml copies keys and values.
        unsafe {
            match value {
                GgufValue::Str(s) => {
                    let s = CString::new(s.replace('\0', " ")).unwrap_or_default();
                    sys::gguf_set_val_str(self.raw, key.as_ptr(), s.as_ptr());
                }
                GgufValue::Int(n) => sys::gguf_set_val_i64(self.raw, key.as_ptr(), *n),
                GgufValue::Float(x) => sys::gguf_set_val_f64(self.raw, key.as_ptr(), *x),
                GgufValue::Bool(b) => sys::gguf_set_val_bool(self.raw, key.as_ptr(), *b),
                GgufValue::Other(_) => {}
            }
        }
    }

    /// Sets a 32-bit integer, for keys whose readers insist on that type.
    pub fn set_i32(&mut self, key: &str, value: i32) {
        // SAFETY: as in set().
        unsafe { sys::gguf_set_val_i32(self.raw, Self::key(key).as_ptr(), value) };
    }

    /// Adds a one-dimensional F32 tensor.
    pub fn add_f32(&mut self, name: &str, data: Vec<f32>) {
        self.tensors.push((Self::key(name), data));
    }

    /// Writes the file: to a temporary name beside `path`, then renamed, so that a reader never sees half of it.
    ///
    /// # Errors
    /// [`LlamaError::Gguf`] when the folder cannot be written to or the disk is full.
    pub fn write(&self, path: &Path) -> Result<(), LlamaError> {
        let fail = |what: &dyn std::fmt::Display| LlamaError::Gguf(format!("cannot write {}: {what}", path.display()));
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        let temporary =
            tempfile::Builder::new().prefix(".bidpo-").suffix(".gguf").tempfile_in(folder).map_err(|e| fail(&e))?;
        let c_path = CString::new(temporary.path().as_os_str().as_encoded_bytes()).map_err(|e| fail(&e))?;
        // SAFETY: the ggml context only holds tensor headers (no_alloc); their data pointers point into self.tensors,
        // which outlives the write. The gguf context copies the headers, so a second write must start from a copy:
        // set_kv copies the metadata into a fresh one.
        let ok = unsafe {
            let overhead = sys::ggml_tensor_overhead();
            let ctx = sys::ggml_init(sys::ggml_init_params {
                mem_size: overhead * (self.tensors.len() + 1),
                mem_buffer: std::ptr::null_mut(),
                no_alloc: true,
            });
            if ctx.is_null() {
                return Err(fail(&"ggml has no memory"));
            }
            let out = sys::gguf_init_empty();
            sys::gguf_set_kv(out, self.raw);
            for (name, data) in &self.tensors {
                let t = sys::ggml_new_tensor_1d(ctx, sys::GGML_TYPE_F32, data.len() as i64);
                sys::ggml_set_name(t, name.as_ptr());
                (*t).data = data.as_ptr().cast_mut().cast();
                sys::gguf_add_tensor(out, t);
            }
            let ok = sys::gguf_write_to_file(out, c_path.as_ptr(), false);
            sys::gguf_free(out);
            sys::ggml_free(ctx);
            ok
        };
        if !ok {
            return Err(fail(&last_log_lines()));
        }
        temporary.as_file().sync_all().map_err(|e| fail(&e))?;
        crate::files::persist(temporary, path).map_err(|e| fail(&e))
    }
}

impl Drop for GgufWriter {
    fn drop(&mut self) {
        // SAFETY: freed once.
        unsafe { sys::gguf_free(self.raw) };
    }
}
