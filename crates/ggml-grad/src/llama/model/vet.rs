//! What is checked in a model's file before llama.cpp loads it: values on which it ends the process, or reads past a table.

use crate::llama::process::guard::{guarded, throwing};
use crate::llama::{DType, GgufFile, GgufValue, LlamaError, sys};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::path::Path;

/// Blocks that llama.cpp has room for (`LLAMA_MAX_LAYERS`).
const MOST_BLOCKS: i64 = 512;
/// The scalings of positions that llama.cpp knows.
const ROPE_SCALINGS: [&str; 4] = ["none", "linear", "yarn", "longrope"];
/// A table of token ids: the one tensor of integers among llama.cpp's models.
const INTEGER_TABLE: &str = "ffn_gate_tid2eid";

/// Checks the types of the tensors and the sizes in the metadata.
///
/// # Errors
/// [`LlamaError::Vetted`]. A file that cannot be read passes: llama.cpp says why.
pub(in crate::llama) fn tensors_and_sizes(path: &Path) -> Result<(), LlamaError> {
    let Ok(parts) = GgufFile::open_parts(path) else { return Ok(()) };
    let refuse = |reason| LlamaError::Vetted { path: path.to_owned(), reason };
    for (name, dtype, ne) in parts.iter().flat_map(GgufFile::tensors) {
        tensor(name, dtype, ne).map_err(refuse)?;
    }
    parts.first().map_or(Ok(()), sizes).map_err(refuse)
}

fn tensor(name: &str, dtype: DType, ne: [usize; 4]) -> Result<(), String> {
    // SAFETY: ggml has an entry for each type of the enum, and its reader refuses others.
    let multiplies = unsafe { (*sys::ggml_get_type_traits_cpu(dtype.0)).vec_dot.is_some() };
    let is_table = dtype == DType::I32 && name.contains(INTEGER_TABLE);
    if !multiplies && !is_table {
        let of = dtype.name();
        return Err(format!("tensor {name} is of type {of}, and ggml multiplies no matrix of that type"));
    }
    let added = ne[1..] == [1, 1, 1] && (name.contains("norm") || name.ends_with(".bias"));
    if added && dtype != DType::F32 {
        let of = dtype.name();
        return Err(format!("tensor {name} is of type {of}, and ggml takes norms and biases as f32 only"));
    }
    Ok(())
}

fn sizes(file: &GgufFile) -> Result<(), String> {
    let Some(GgufValue::Str(architecture)) = file.get("general.architecture") else { return Ok(()) };
    let key = |name: &str| format!("{architecture}.{name}");
    let int = |name: &str| match file.get(&key(name)) {
        Some(&GgufValue::Int(n)) => Some(n),
        _ => None,
    };
    let within = |name: &str, least: i64, most: i64| match int(name) {
        Some(n) if n < least || n > most => Err(format!("{} is {n}: llama.cpp takes {least} to {most}", key(name))),
        _ => Ok(()),
    };
    within("block_count", 1, MOST_BLOCKS)?;
    for (name, least, most) in [
        ("embedding_length", 1, 1 << 20),
        ("context_length", 1, 1 << 30),
        ("feed_forward_length", 0, 1 << 24),
        ("attention.head_count", 0, 1 << 16),
        ("attention.head_count_kv", 0, 1 << 16),
        ("attention.key_length", 1, 1 << 20),
        ("attention.value_length", 1, 1 << 20),
        ("rope.dimension_count", 0, 1 << 20),
        ("expert_count", 0, 1 << 16),
    ] {
        within(name, least, most)?;
    }
    within("expert_used_count", 0, int("expert_count").unwrap_or(0).max(0))?;
    for name in ["attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "rope.freq_base"] {
        if let Some(&GgufValue::Float(x)) = file.get(&key(name))
            && !(x.is_finite() && x >= 0.0)
        {
            return Err(format!("{} is {x}: a positive number is wanted", key(name)));
        }
    }
    if let Some(GgufValue::Str(scaling)) = file.get(&key("rope.scaling.type"))
        && !ROPE_SCALINGS.contains(&scaling.as_str())
    {
        let known = ROPE_SCALINGS.join(", ");
        return Err(format!("{} is {scaling:?}: llama.cpp knows {known}", key("rope.scaling.type")));
    }
    Ok(())
}

/// Looks for a token that the vocabulary holds twice: llama.cpp does not say which one it stumbled over.
///
/// # Errors
/// [`LlamaError::Vetted`]. A file that cannot be read passes.
pub(in crate::llama) fn tokens(path: &Path) -> Result<(), LlamaError> {
    let Ok(c_path) = CString::new(path.as_os_str().as_encoded_bytes()) else { return Ok(()) };
    let (name, params) = (c_path.as_ptr(), sys::gguf_init_params { no_alloc: true, ctx: std::ptr::null_mut() });
    // SAFETY: the path is NUL-terminated; only metadata is read.
    let Ok(raw) = guarded(|| unsafe { throwing::gguf_init_from_file(name, params) }) else { return Ok(()) };
    if raw.is_null() {
        return Ok(());
    }
    let mut twice = None;
    // SAFETY: raw is a live gguf context, freed once at the end; the array is read where it is one of texts, below its
    // length, and its texts are copied before the context is freed.
    unsafe {
        let id = sys::gguf_find_key(raw, c"tokenizer.ggml.tokens".as_ptr());
        if id >= 0
            && sys::gguf_get_kv_type(raw, id) == sys::GGUF_TYPE_ARRAY
            && sys::gguf_get_arr_type(raw, id) == sys::GGUF_TYPE_STRING
        {
            let mut seen = HashMap::new();
            for i in 0..sys::gguf_get_arr_n(raw, id) {
                let text = CStr::from_ptr(sys::gguf_get_arr_str(raw, id, i)).to_bytes().to_vec();
                if let Some(first) = seen.insert(text.clone(), i) {
                    twice = Some((String::from_utf8_lossy(&text).into_owned(), first, i));
                    break;
                }
            }
        }
        sys::gguf_free(raw);
    }
    match twice {
        Some((text, first, second)) => Err(LlamaError::Vetted {
            path: path.to_owned(),
            reason: format!("its vocabulary holds {text:?} twice, as token {first} and as token {second}"),
        }),
        None => Ok(()),
    }
}
