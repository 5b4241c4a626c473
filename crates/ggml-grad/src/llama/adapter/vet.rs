//! What is checked in an adapter's file before llama.cpp loads it: values and shapes on which it ends the process, now or at the
//! first token.

use crate::llama::{DType, GgufFile, GgufValue, LlamaError, Model, sys};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// Texts that llama.cpp reads without a look at their type.
const TEXTS: [&str; 3] = ["general.type", "general.architecture", "adapter.type"];
/// The number that it reads as an `f32` without a look at its type.
const ALPHA: &str = "adapter.lora.alpha";
/// The table of embeddings, whose A and B are flipped.
const TABLE: &str = "token_embd.weight";

/// Checks that llama.cpp can load an adapter beside `model` and compute with it.
///
/// # Errors
/// [`LlamaError::Adapter`], and as [`GgufFile::open`].
pub(super) fn fits(model: &Model, path: &Path) -> Result<(), LlamaError> {
    let refused = |reason| LlamaError::Adapter { path: path.to_path_buf(), reason };
    let file = GgufFile::open(path)?;
    metadata(&file, &model.architecture()).map_err(refused)?;
    let parts = GgufFile::open_parts(model.path())?;
    let of_model: HashMap<&str, (DType, [usize; 4])> =
        parts.iter().flat_map(GgufFile::tensors).map(|(name, dtype, ne)| (name, (dtype, ne))).collect();
    tensors(&file, &of_model).map_err(refused)
}

fn metadata(file: &GgufFile, architecture: &str) -> Result<(), String> {
    let text = |key: &str| match file.get(key) {
        None => Err(format!("it has no key {key}")),
        Some(GgufValue::Str(text)) => Ok(text.as_str()),
        Some(_) => Err(format!("its key {key} is no text")),
    };
    let [kind, of, form] = TEXTS;
    if text(kind)? != "adapter" {
        return Err(format!("{kind} is {:?}: an adapter says \"adapter\"", text(kind)?));
    }
    if text(of)? != architecture {
        let found = text(of)?;
        return Err(format!("it is for models of architecture {found:?}, and the model's is {architecture:?}"));
    }
    if text(form)? != "lora" {
        return Err(format!("{form} is {:?}: llama.cpp loads \"lora\" only", text(form)?));
    }
    match file.get(ALPHA) {
        Some(GgufValue::Float(x)) if file.is_f32(ALPHA) && x.is_finite() => Ok(()),
        None => Ok(()),
        Some(other) => Err(format!("{ALPHA} is {other:?}: llama.cpp takes a finite f32 only")),
    }
}

fn tensors(file: &GgufFile, of_model: &HashMap<&str, (DType, [usize; 4])>) -> Result<(), String> {
    let shapes: HashMap<&str, [usize; 4]> = file.tensors().map(|(name, _, ne)| (name, ne)).collect();
    let mut pairs = HashSet::new();
    for (name, dtype, _) in file.tensors() {
        let Some(base) = name.strip_suffix(".lora_a").or_else(|| name.strip_suffix(".lora_b")) else {
            if name.ends_with("_norm.weight") {
                continue;
            }
            return Err(format!("tensor {name} ends neither in .lora_a nor in .lora_b"));
        };
        // SAFETY: ggml has an entry for each type of the enum, and its reader refuses others.
        let multiplies = unsafe { (*sys::ggml_get_type_traits_cpu(dtype.0)).vec_dot.is_some() };
        if !multiplies {
            return Err(format!("tensor {name} is of type {}, and ggml multiplies no matrix of it", dtype.name()));
        }
        if base.ends_with(TABLE) && dtype != DType::F32 && dtype != DType::F16 {
            return Err(format!("tensor {name} is of type {}: F32 or F16 is needed there", dtype.name()));
        }
        pairs.insert(base);
    }
    if pairs.is_empty() {
        return Err("it holds no pair of matrices".to_owned());
    }
    for base in pairs {
        let part = |end: &str| {
            let name = format!("{base}.{end}");
            shapes.get(name.as_str()).copied().ok_or_else(|| format!("tensor {name} is missing"))
        };
        let (a, b) = (part("lora_a")?, part("lora_b")?);
        let Some(&(dtype, of)) = of_model.get(base) else {
            return Err(format!("the model has no tensor {base}"));
        };
        if dtype == DType(sys::GGML_TYPE_NVFP4) {
            return Err(format!("the model's {base} is NVFP4, beside which llama.cpp takes no adapter"));
        }
        pair(base, a, b, of)?;
        if base == TABLE && !of_model.contains_key("output.weight") {
            return Err(format!(
                "it changes {TABLE}, which is the model's output matrix too (tied), and llama.cpp would multiply it with the wrong \
                 shape"
            ));
        }
    }
    Ok(())
}

/// Checks the shapes of a pair against its model tensor's.
fn pair(base: &str, a: [usize; 4], b: [usize; 4], of: [usize; 4]) -> Result<(), String> {
    let table = base.ends_with(TABLE);
    let (n_in, n_out) = if table { (b[1], a[1]) } else { (a[0], b[1]) };
    let rank = if table { (a[0], b[0]) } else { (a[1], b[0]) };
    if rank.0 != rank.1 || rank.0 == 0 {
        return Err(format!("{base}: A {a:?} and B {b:?} have no common rank"));
    }
    if (n_in, n_out) != (of[0], of[1]) {
        return Err(format!("{base}: A {a:?} and B {b:?} do not fit the model's matrix {of:?}"));
    }
    // ggml multiplies experts one by one, and a matrix without experts as one.
    if a[2..] != of[2..] || b[2..] != of[2..] {
        return Err(format!("{base}: A {a:?} and B {b:?} need as many experts as the model's matrix {of:?}"));
    }
    Ok(())
}
