//! A loaded model and its vocabulary.

mod architectures;
mod chat_template;
mod pieces;
mod placement;
mod support;
mod tensors;
mod vet;

pub use architectures::architectures;
pub use chat_template::{apply_builtin_chat_format, builtin_chat_formats};
pub(in crate::llama) use pieces::Pieces;
pub use placement::{Offload, Placement, SplitMode};
pub use support::{Obstacle, Unsupported, Use};
use tensors::model_tensors;

use crate::files::FileError;
use crate::llama::process::guard::{guarded, throwing};
use crate::llama::process::name_mapped_file;
use crate::llama::tensor::TransposedTensor;
use crate::llama::{DType, FileTensor, LlamaError, Token, init, last_log_lines, sys};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

/// Options of loading a model.
#[derive(Debug, Clone)]
pub struct ModelParams {
    /// Keep the weights as they lie in the file, so that the training engine can read them. `false` lets llama.cpp
    /// repack them for its own kernels (a little faster for generation on some CPUs, unreadable for the engine).
    pub plain_weights: bool,
    /// Placement of the layers on devices.
    pub offload: Offload,
    /// Load the vocabulary only.
    pub vocab_only: bool,
}

impl Default for ModelParams {
    fn default() -> Self {
        Self { plain_weights: true, offload: Offload::none(), vocab_only: false }
    }
}

/// A loaded GGUF model. Shared: contexts hold an `Arc` of it.
#[derive(Debug)]
pub struct Model {
    raw: *mut sys::llama_model,
    vocab: *const sys::llama_vocab,
    path: PathBuf,
    /// The weights are used where the file is mapped: memory that the system counts as free until they are touched, and
    /// takes back when it is short.
    mapped: bool,
    /// Plain copies of weights that the CPU cannot read where llama.cpp keeps them, made when first asked for.
    plain: Mutex<HashMap<String, Arc<FileTensor>>>,
    /// Transposed copies of weights that lie on a device, made when first asked for.
    transposed: Mutex<HashMap<(String, DType), Arc<TransposedTensor>>>,
    placement: Placement,
    /// Texts of the vocabulary, in order, made when first asked for.
    pieces: OnceLock<Arc<Pieces>>,
}

// SAFETY: llama.cpp never writes to a model after loading; all calls made here through &self are reads.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

impl Model {
    /// Loads a model file.
    ///
    /// # Errors
    /// [`LlamaError::File`], [`LlamaError::NotGguf`] or [`LlamaError::Load`] with llama.cpp's reason (a truncated file
    /// is found here: llama.cpp checks that every tensor lies inside the file); [`LlamaError::Device`] for a device or a
    /// worker that is not there.
    pub fn load(path: &Path, params: &ModelParams) -> Result<Arc<Self>, LlamaError> {
        init();
        let read_error = FileError::read(path);
        let mut magic = [0u8; 4];
        let mut file = std::fs::File::open(path).map_err(read_error)?;
        if file.metadata().map_err(read_error)?.is_dir() {
            return Err(read_error(std::io::Error::other("it is a directory, not a file")).into());
        }
        let mut n = 0;
        while n < 4 {
            match file.read(&mut magic[n..]).map_err(read_error)? {
                0 => break,
                k => n += k,
            }
        }
        if &magic != b"GGUF" {
            let found = String::from_utf8_lossy(&magic[..n]).into_owned();
            return Err(LlamaError::NotGguf { path: path.to_owned(), found });
        }
        let c_path = CString::new(path.as_os_str().as_encoded_bytes())
            .map_err(|_| LlamaError::Load { path: path.to_owned(), reason: "the path holds a NUL byte".into() })?;
        vet::tensors_and_sizes(path)?;
        let devices = params.offload.resolve()?;
        let shares = params.offload.shares(devices.len())?;
        // NULL ends the list. Without a device llama.cpp keeps everything in the CPU's memory.
        let mut list = devices.clone();
        list.push(std::ptr::null_mut());
        let _ = last_log_lines();
        // SAFETY: the defaults are a plain struct; the path is NUL-terminated, and it and the lists outlive the call.
        let p = unsafe {
            let mut p = sys::llama_model_default_params();
            p.devices = list.as_mut_ptr();
            p.n_gpu_layers = match params.offload.n_gpu_layers {
                _ if devices.is_empty() => 0,
                Some(n) => i32::try_from(n).unwrap_or(i32::MAX),
                None => -1,
            };
            p.split_mode = match params.offload.split_mode {
                SplitMode::None => sys::LLAMA_SPLIT_MODE_NONE,
                SplitMode::Layer => sys::LLAMA_SPLIT_MODE_LAYER,
                SplitMode::Row => sys::LLAMA_SPLIT_MODE_ROW,
            };
            p.main_gpu = params.offload.main_gpu as i32;
            p.tensor_split = shares.as_ref().map_or(std::ptr::null(), |s| s.as_ptr());
            p.use_extra_bufts = !params.plain_weights;
            p.vocab_only = params.vocab_only;
            p
        };
        let name = c_path.as_ptr();
        // SAFETY: as above.
        let loaded = guarded(|| unsafe { throwing::llama_model_load_from_file(name, p) });
        let raw = *loaded.as_ref().unwrap_or(&std::ptr::null_mut());
        if raw.is_null() {
            vet::tokens(path)?;
            let mut reason = loaded.err().unwrap_or_else(last_log_lines);
            if reason.contains("failed to read") || reason.contains("not within the file bounds") {
                reason += "; the file seems to be cut short or damaged: fetch it again";
            } else if reason.contains("'controlvector'") {
                reason += "; this file is a control vector, it goes to --vector";
            }
            return Err(LlamaError::Load { path: path.to_owned(), reason });
        }
        name_mapped_file(path);
        // SAFETY: raw is a live model.
        let (vocab, n_layer) = unsafe { (sys::llama_model_get_vocab(raw), sys::llama_model_n_layer(raw)) };
        // SAFETY: raw is a live model.
        let tensors = unsafe { model_tensors(raw) };
        let placement = Placement::of(&tensors, usize::try_from(n_layer).unwrap_or(0), &devices);
        Ok(Arc::new(Self {
            raw,
            vocab,
            path: path.to_owned(),
            mapped: params.plain_weights,
            plain: Mutex::default(),
            transposed: Mutex::default(),
            placement,
            pieces: OnceLock::new(),
        }))
    }

    /// A plain copy of one of the model's tensors, read from the file at the first call.
    ///
    /// # Errors
    /// As [`FileTensor::load`].
    pub(in crate::llama) fn plain(
        &self,
        name: &str,
        dtype: DType,
        ne: [usize; 4],
    ) -> Result<Arc<FileTensor>, LlamaError> {
        let mut plain = self.plain.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(tensor) = plain.get(name) {
            return Ok(Arc::clone(tensor));
        }
        let tensor = Arc::new(FileTensor::load(self, name, dtype, ne)?);
        plain.insert(name.to_owned(), Arc::clone(&tensor));
        Ok(tensor)
    }

    /// A transposed copy of one of the model's tensors on the device it lies on, as `kind`, made at the first call.
    ///
    /// # Errors
    /// As [`TransposedTensor::load`].
    pub(in crate::llama) fn transposed(
        &self,
        name: &str,
        dtype: DType,
        ne: [usize; 4],
        device: sys::ggml_backend_dev_t,
        kind: DType,
    ) -> Result<Arc<TransposedTensor>, LlamaError> {
        let mut all = self.transposed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let key = (name.to_owned(), kind);
        if let Some(tensor) = all.get(&key) {
            return Ok(Arc::clone(tensor));
        }
        let tensor = Arc::new(TransposedTensor::load(self, name, dtype, ne, device, kind)?);
        all.insert(key, Arc::clone(&tensor));
        Ok(tensor)
    }

    /// True if a transposed copy of the tensor in this type is there.
    pub(in crate::llama) fn has_transposed(&self, name: &str, kind: DType) -> bool {
        let all = self.transposed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.contains_key(&(name.to_owned(), kind))
    }

    /// Lets go of transposed copies in this type; their memory is free once no example uses them.
    pub fn forget_transposed(&self, kind: DType) {
        let mut all = self.transposed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.retain(|(_, dtype), _| *dtype != kind);
    }

    /// Transposed copies on devices, so far: how many, their bytes, and the types they are kept in.
    pub fn transposed_copies(&self) -> (usize, u64, Vec<String>) {
        let all = self.transposed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut types: Vec<String> = all.values().map(|t| t.dtype().name()).collect();
        types.sort();
        types.dedup();
        (all.len(), all.values().map(|t| t.bytes() as u64).sum(), types)
    }

    /// Placement of the layers.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    #[cfg(test)]
    pub(in crate::llama) fn vocab(&self) -> *const sys::llama_vocab {
        self.vocab
    }

    pub(in crate::llama) fn raw(&self) -> *mut sys::llama_model {
        self.raw
    }

    /// The file the model was loaded from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Width of the residual stream.
    pub fn n_embd(&self) -> usize {
        // SAFETY: raw is a live model.
        unsafe { sys::llama_model_n_embd(self.raw) as usize }
    }

    /// Number of blocks (layers).
    pub fn n_layer(&self) -> usize {
        // SAFETY: raw is a live model.
        unsafe { sys::llama_model_n_layer(self.raw) as usize }
    }

    /// Number of tokens in the vocabulary.
    pub fn n_vocab(&self) -> usize {
        // SAFETY: vocab belongs to the live model.
        unsafe { sys::llama_vocab_n_tokens(self.vocab) as usize }
    }

    /// Context length the model was trained for.
    pub fn n_ctx_train(&self) -> usize {
        // SAFETY: raw is a live model.
        unsafe { sys::llama_model_n_ctx_train(self.raw) as usize }
    }

    /// Total number of parameters.
    pub fn n_params(&self) -> u64 {
        // SAFETY: raw is a live model.
        unsafe { sys::llama_model_n_params(self.raw) }
    }

    /// Total size of the weights in bytes.
    pub fn size(&self) -> u64 {
        // SAFETY: raw is a live model.
        unsafe { sys::llama_model_size(self.raw) }
    }

    /// Bytes of weights that are read from the mapped file: they need memory that the system still counts as free. Layers
    /// count as equally large where some lie on devices.
    pub fn mapped_bytes(&self) -> u64 {
        if self.mapped { (self.size() as f64 * self.placement.share_on_cpu()) as u64 } else { 0 }
    }

    /// True for models that carry a recurrent state (mamba, rwkv) instead of, or beside, a KV cache.
    pub fn is_recurrent(&self) -> bool {
        // SAFETY: raw is a live model.
        unsafe { sys::llama_model_is_recurrent(self.raw) || sys::llama_model_is_hybrid(self.raw) }
    }

    /// True for models that write no text from left to right: encoders (BERT) and diffusion models.
    pub fn is_not_causal(&self) -> bool {
        let attention = self.meta(&format!("{}.attention.causal", self.architecture()));
        attention.as_deref() == Some("false")
            // SAFETY: raw is a live model.
            || unsafe { !sys::llama_model_has_decoder(self.raw) || sys::llama_model_is_diffusion(self.raw) }
    }

    /// True for encoder-decoder models.
    pub fn has_encoder(&self) -> bool {
        // SAFETY: raw is a live model.
        unsafe { sys::llama_model_has_encoder(self.raw) }
    }

    /// A metadata value of the GGUF file as text, or `None` where the file has no such key.
    pub fn meta(&self, key: &str) -> Option<String> {
        let key = CString::new(key).ok()?;
        let mut buf = vec![0u8; 256];
        loop {
            // SAFETY: buf is writable for buf.len() bytes; llama.cpp writes a NUL-terminated string of at most that.
            let n = unsafe {
                sys::llama_model_meta_val_str(self.raw, key.as_ptr(), buf.as_mut_ptr().cast::<c_char>(), buf.len())
            };
            if n < 0 {
                return None;
            }
            let n = n as usize;
            if n < buf.len() {
                buf.truncate(n);
                return Some(String::from_utf8_lossy(&buf).into_owned());
            }
            buf.resize(n + 1, 0);
        }
    }

    /// The architecture's name (`llama`, `gemma3`, ...).
    pub fn architecture(&self) -> String {
        self.meta("general.architecture").unwrap_or_else(|| "unknown".into())
    }

    /// llama.cpp's one-line description, for example `llama ?B Q4_1`.
    pub fn description(&self) -> String {
        let mut buf = vec![0u8; 256];
        // SAFETY: as in meta().
        let n = unsafe { sys::llama_model_desc(self.raw, buf.as_mut_ptr().cast::<c_char>(), buf.len()) };
        buf.truncate((n.max(0) as usize).min(255));
        String::from_utf8_lossy(&buf).into_owned()
    }

    /// The chat template (Jinja) that the GGUF file carries, if any.
    pub fn chat_template(&self) -> Option<String> {
        // SAFETY: a NULL name asks for the default template; the string belongs to the model.
        let p = unsafe { sys::llama_model_chat_template(self.raw, std::ptr::null()) };
        if p.is_null() {
            return None;
        }
        // SAFETY: NUL-terminated and alive as long as the model.
        Some(unsafe { CStr::from_ptr(p) }.to_string_lossy().into_owned())
    }

    /// The beginning-of-sequence token, if the vocabulary has one.
    pub fn bos(&self) -> Option<Token> {
        // SAFETY: vocab belongs to the live model.
        let t = unsafe { sys::llama_vocab_bos(self.vocab) };
        (t >= 0).then_some(t)
    }

    /// The end-of-sequence token, if the vocabulary has one.
    pub fn eos(&self) -> Option<Token> {
        // SAFETY: vocab belongs to the live model.
        let t = unsafe { sys::llama_vocab_eos(self.vocab) };
        (t >= 0).then_some(t)
    }

    /// True if the tokenizer puts a BOS token before plain text.
    pub fn adds_bos(&self) -> bool {
        // SAFETY: vocab belongs to the live model.
        unsafe { sys::llama_vocab_get_add_bos(self.vocab) }
    }

    /// True for tokens that end a generation.
    pub fn is_eog(&self, token: Token) -> bool {
        // SAFETY: vocab belongs to the live model; llama.cpp checks the token's range.
        unsafe { sys::llama_vocab_is_eog(self.vocab, token) }
    }

    /// True for tokens that steer the model instead of being text (`<|im_end|>`, `<s>`, ...).
    pub fn is_control(&self, token: Token) -> bool {
        if token < 0 || token as usize >= self.n_vocab() {
            return false;
        }
        // SAFETY: the token is in range.
        let attr = unsafe { sys::llama_vocab_get_attr(self.vocab, token) };
        attr & (sys::LLAMA_TOKEN_ATTR_CONTROL | sys::LLAMA_TOKEN_ATTR_UNKNOWN) != 0
    }

    /// True for tokens that `tokenize` finds in any text, also where `parse_special` is off: added by the model's maker, as
    /// text or as markup.
    pub fn is_user_defined(&self, token: Token) -> bool {
        if token < 0 || token as usize >= self.n_vocab() {
            return false;
        }
        // SAFETY: the token is in range.
        let attr = unsafe { sys::llama_vocab_get_attr(self.vocab, token) };
        attr & sys::LLAMA_TOKEN_ATTR_USER_DEFINED != 0
    }

    /// The texts that `tokenize` reads as control tokens when `parse_special` is on, longest first.
    pub fn control_texts(&self) -> Vec<String> {
        self.texts_of(|t| self.is_control(t))
    }

    /// The texts of user-defined tokens ([`Model::is_user_defined`]), longest first.
    pub fn user_defined_texts(&self) -> Vec<String> {
        self.texts_of(|t| self.is_user_defined(t))
    }

    fn texts_of(&self, which: impl Fn(Token) -> bool) -> Vec<String> {
        let mut texts: Vec<String> = (0..self.n_vocab() as Token)
            .filter(|&t| which(t))
            .map(|t| String::from_utf8_lossy(&self.token_bytes(t, true)).into_owned())
            .filter(|text| !text.trim().is_empty())
            .collect();
        texts.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        texts.dedup();
        texts
    }

    /// Tokenizes `text`.
    ///
    /// `add_special` adds BOS where the model wants one; `parse_special` reads `<|im_end|>` and the like as the tokens
    /// they name (for rendered chat templates) instead of as text.
    ///
    /// # Errors
    /// [`LlamaError::Tokenize`] when the text is too long for llama.cpp.
    pub fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<Token>, LlamaError> {
        let len = i32::try_from(text.len())
            .map_err(|_| LlamaError::Tokenize(format!("a text of {} bytes is too long", text.len())))?;
        let mut tokens: Vec<Token> = vec![0; text.len() + 8];
        for _ in 0..2 {
            let (vocab, p) = (self.vocab, text.as_ptr().cast::<c_char>());
            let (out, n_out) = (tokens.as_mut_ptr(), tokens.len() as i32);
            // SAFETY: text is valid for len bytes, tokens for tokens.len() entries.
            let n =
                guarded(|| unsafe { throwing::llama_tokenize(vocab, p, len, out, n_out, add_special, parse_special) })
                    .map_err(|reason| self.no_token(text, &reason))?;
            if n == i32::MIN {
                break;
            }
            if n >= 0 {
                tokens.truncate(n as usize);
                return Ok(tokens);
            }
            tokens.resize((-n) as usize, 0);
        }
        Err(LlamaError::Tokenize(format!("a text of {} bytes is too long", text.len())))
    }

    /// The error for a text on which the tokenizer failed; names the first character that it cannot take alone.
    fn no_token(&self, text: &str, reason: &str) -> LlamaError {
        let mut characters: Vec<char> = text.chars().take(1000).collect();
        characters.dedup();
        let fails = |c: &char| {
            let (mut buffer, mut tokens) = ([0u8; 4], [0; 16]);
            let alone = c.encode_utf8(&mut buffer);
            let (vocab, p, n) = (self.vocab, alone.as_ptr().cast::<c_char>(), alone.len() as i32);
            let (out, n_out) = (tokens.as_mut_ptr(), tokens.len() as i32);
            // SAFETY: the text is valid for n bytes, tokens for n_out entries.
            guarded(|| unsafe { throwing::llama_tokenize(vocab, p, n, out, n_out, false, false) }).is_err()
        };
        let path = self.path.display();
        LlamaError::Tokenize(match characters.iter().find(|c| fails(c)) {
            Some(c) => format!("the vocabulary of {path} has no token for {c:?}, nor for its bytes: leave it out"),
            None => format!("llama.cpp's tokenizer failed on a text of {} bytes with {path}: {reason}", text.len()),
        })
    }

    /// The bytes of one token. `special`: control tokens give their text (`<|im_end|>`) instead of nothing. A token whose bytes
    /// llama.cpp cannot tell gives those of U+FFFD.
    pub fn token_bytes(&self, token: Token, special: bool) -> Vec<u8> {
        if token < 0 || token as usize >= self.n_vocab() {
            return Vec::new();
        }
        let mut buf = vec![0u8; 64];
        for _ in 0..2 {
            let (vocab, p, size) = (self.vocab, buf.as_mut_ptr().cast::<c_char>(), buf.len() as i32);
            // SAFETY: buf is writable for its length; the token is in range.
            let Ok(n) = guarded(|| unsafe { throwing::llama_token_to_piece(vocab, token, p, size, 0, special) }) else {
                return char::REPLACEMENT_CHARACTER.to_string().into_bytes();
            };
            if n >= 0 {
                buf.truncate(n as usize);
                return buf;
            }
            buf.resize((-n) as usize, 0);
        }
        Vec::new()
    }

    /// The texts of all tokens, control tokens as they are written.
    pub(in crate::llama) fn pieces(&self) -> Arc<Pieces> {
        let one = |token| (self.token_bytes(token, true), self.is_eog(token));
        let all = || Arc::new(Pieces::new((0..self.n_vocab() as Token).map(one)));
        Arc::clone(self.pieces.get_or_init(all))
    }

    /// The text of a run of tokens (invalid UTF-8 is replaced).
    pub fn detokenize(&self, tokens: &[Token], special: bool) -> String {
        let bytes: Vec<u8> = tokens.iter().flat_map(|&t| self.token_bytes(t, special)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: raw came from llama_model_load_from_file and is freed once; contexts hold an Arc of self.
        unsafe { sys::llama_model_free(self.raw) };
    }
}
