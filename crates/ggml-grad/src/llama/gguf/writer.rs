//! Writing a GGUF file, small tensors from memory and large ones in pieces.

use super::GgufValue;
use crate::llama::process::guard::{guarded, throwing};
use crate::llama::{DType, LlamaError, init, last_log_lines, sys};
use std::ffi::{CStr, CString};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::Path;

/// Tensors start at multiples of this many bytes: GGUF's default.
const ALIGNMENT: u64 = 32;
/// ggml's buffer for a tensor's name, its NUL byte included.
const MAX_NAME: usize = 64;

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
        let mut writer = Self::new();
        writer.copy_meta_of(path)?;
        Ok(writer)
    }

    /// Adds the metadata of another file behind what is there; keys that are there too take its values.
    ///
    /// # Errors
    /// As [`GgufWriter::with_meta_of`].
    pub fn copy_meta_of(&mut self, path: &Path) -> Result<(), LlamaError> {
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
            sys::gguf_set_kv(self.raw, from);
            sys::gguf_free(from);
        }
        Ok(())
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

    /// Sets a list of unsigned 32-bit integers.
    ///
    /// # Errors
    /// As [`GgufWriter::set`].
    pub fn set_u32s(&mut self, key: &str, values: &[u32]) -> Result<(), LlamaError> {
        self.set_list(key, sys::GGUF_TYPE_UINT32, values)
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
        // SAFETY: T has the size that kind says (f32, i32, u32, and bool, which GGUF keeps as one byte); ggml copies.
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
    use crate::llama::GgufFile;

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
