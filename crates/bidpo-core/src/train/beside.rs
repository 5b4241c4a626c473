//! Files that are loaded while something else is trained, as card and provenance tell them.

use crate::steer::Provenance;
use serde_json::{Value, json};

/// An adapter or a vector that was loaded in training, in the policy and in the reference.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct LoadedBeside {
    /// The file's name.
    pub file: String,
    /// SHA-256 of the file, lower-case hex.
    pub sha256: String,
    /// The scale that it was loaded at.
    pub scale: f32,
    /// It is a LoRA adapter, and a vector otherwise.
    pub is_adapter: bool,
}

impl LoadedBeside {
    /// Writes all of them into a file's provenance: `beside.1.file`, `beside.1.sha256`, ...
    pub fn record(all: &[Self], provenance: &mut Provenance) {
        for (i, one) in all.iter().enumerate() {
            let key = |name: &str| format!("beside.{}.{name}", i + 1);
            provenance.set_str(&key("kind"), if one.is_adapter { "lora" } else { "vector" });
            provenance.set_str(&key("file"), &one.file);
            provenance.set_str(&key("sha256"), &one.sha256);
            provenance.set_float(&key("scale"), f64::from(one.scale));
        }
    }

    /// `LoRA adapter honest.gguf at scale 0.5`.
    pub fn in_words(&self) -> String {
        let kind = if self.is_adapter { "LoRA adapter" } else { "vector" };
        format!("{kind} {} at scale {}", self.file, self.scale)
    }

    /// For the templates of cards.
    pub(super) fn to_json(&self) -> Value {
        let (ours, theirs) = match self.is_adapter {
            true => ("--lora", "--lora-scaled"),
            false => ("--vector", "--control-vector-scaled"),
        };
        json!({
            "words": self.in_words(),
            "sha256": self.sha256.get(..16).unwrap_or(&self.sha256),
            "bidpo": format!("{ours} {}:{}", self.file, self.scale),
            "llama": format!("{theirs} {}:{}", self.file, self.scale),
        })
    }
}
