//! One function a reader: bytes in, whether they were accepted out. What must hold for every input is asserted inside.

mod adapters;
mod data;
mod runs;
mod seeds;
mod server;
mod text;
mod vectors;

use super::forms::Form;
use std::path::{Path, PathBuf};

/// A reader, its valid inputs, and their form.
#[derive(Debug, Clone, Copy)]
pub struct Reader {
    /// Name of the target.
    pub name: &'static str,
    /// Form of its input.
    pub form: Form,
    /// Valid inputs.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Reads an input. It returns whether the input was accepted.
    pub read: fn(&[u8]) -> bool,
}

/// All readers of what comes from outside.
pub const READERS: [Reader; 29] = [
    Reader { name: "vector_gguf", form: Form::Gguf, seeds: seeds::gguf_vectors, read: vectors::gguf },
    Reader {
        name: "vector_safetensors",
        form: Form::Safetensors,
        seeds: seeds::safetensors_vectors,
        read: vectors::safetensors,
    },
    Reader { name: "vector_npy", form: Form::Bytes, seeds: seeds::npy_vectors, read: vectors::npy },
    Reader { name: "vector_npz", form: Form::Zip, seeds: seeds::npz_vectors, read: vectors::npz },
    Reader { name: "vector_pt", form: Form::Zip, seeds: seeds::torch_vectors, read: vectors::torch },
    Reader { name: "model_gguf", form: Form::Gguf, seeds: seeds::models, read: vectors::model },
    Reader { name: "adapter_gguf", form: Form::Gguf, seeds: seeds::adapters, read: adapters::gguf },
    Reader { name: "adapter_peft", form: Form::Safetensors, seeds: seeds::peft_weights, read: adapters::peft },
    Reader { name: "adapter_config", form: Form::Json, seeds: seeds::peft_configs, read: adapters::config },
    Reader { name: "ablation", form: Form::Gguf, seeds: seeds::models, read: adapters::ablation },
    Reader { name: "pairs_jsonl", form: Form::JsonLines, seeds: || seeds::pairs("jsonl"), read: data::pairs_jsonl },
    Reader { name: "pairs_json", form: Form::Json, seeds: || seeds::pairs("json"), read: data::pairs_json },
    Reader { name: "pairs_csv", form: Form::Bytes, seeds: || seeds::pairs("csv"), read: data::pairs_csv },
    Reader { name: "pairs_parquet", form: Form::Bytes, seeds: || seeds::pairs("parquet"), read: data::pairs_parquet },
    Reader { name: "truthfulqa_csv", form: Form::Bytes, seeds: seeds::truthfulqa_csv, read: data::truthfulqa_csv },
    Reader { name: "truthfulqa_json", form: Form::Json, seeds: seeds::truthfulqa_json, read: data::truthfulqa_json },
    Reader { name: "choice", form: Form::JsonLines, seeds: seeds::choices, read: data::choice },
    Reader { name: "mmlu", form: Form::Bytes, seeds: seeds::mmlu, read: data::mmlu },
    Reader { name: "mapping", form: Form::Json, seeds: seeds::mappings, read: data::mapping },
    Reader { name: "prompts", form: Form::JsonLines, seeds: seeds::prompts, read: data::prompts },
    Reader { name: "results", form: Form::JsonLines, seeds: seeds::results, read: runs::results },
    Reader { name: "split", form: Form::Json, seeds: seeds::splits, read: runs::split },
    Reader { name: "checkpoint", form: Form::Safetensors, seeds: seeds::checkpoints, read: runs::checkpoint },
    Reader { name: "cache", form: Form::Safetensors, seeds: seeds::captures, read: runs::cache },
    Reader { name: "gold", form: Form::Json, seeds: seeds::gold, read: runs::gold },
    Reader { name: "template", form: Form::Bytes, seeds: seeds::templates, read: text::template },
    Reader { name: "chat_line", form: Form::Bytes, seeds: seeds::chat_lines, read: text::chat_line },
    Reader { name: "grammar", form: Form::Bytes, seeds: seeds::grammars, read: text::grammar },
    Reader { name: "request", form: Form::Http, seeds: seeds::requests, read: server::request },
];

/// The reader of a name.
pub fn reader(name: &str) -> Option<&'static Reader> {
    READERS.iter().find(|reader| reader.name == name)
}

/// A file of this name and content in a folder of this thread's own.
fn file(name: &str, bytes: &[u8]) -> PathBuf {
    thread_local! {
        static FOLDER: tempfile::TempDir = tempfile::tempdir().expect("a folder for temporary files");
    }
    FOLDER.with(|folder| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(&path, bytes).expect("a temporary file can be written");
        path
    })
}

/// A folder of the repository.
fn repository(folder: &str) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = if here.ends_with("fuzz") { here.parent().expect("the repository") } else { here };
    root.join(folder)
}

/// A message is shown on a terminal: nothing in it may steer that.
fn shown(message: &str) {
    let text = bidpo_core::chat::printable(message);
    assert!(text.chars().all(|c| !c.is_control() || c == '\n' || c == '\t'), "{text:?}");
}

/// The value, or its error shown.
fn told<T, E: std::fmt::Display>(read: Result<T, E>) -> Option<T> {
    read.map_err(|error| shown(&error.to_string())).ok()
}
