//! The files that a command writes: never one that it reads, and no file of a stranger's without `--force`.
//!
//! A file may be replaced where its content shows that bidpo wrote one of the same kind: a script that repeats a command goes
//! on working, wherever it runs.

use anyhow::{Context as _, bail, ensure};
use bidpo_core::adapter::MERGED;
use ggml_grad::files::{check_writable, same_file};
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

static FORCE: AtomicBool = AtomicBool::new(false);

/// What `--force` says, for the whole process.
pub fn set_force(on: bool) {
    FORCE.store(on, Ordering::Relaxed);
}

/// True where `--force` was given.
pub fn is_forced() -> bool {
    FORCE.load(Ordering::Relaxed)
}

/// A kind of file that bidpo writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A steering vector, in any of its formats.
    Vector,
    /// A LoRA adapter.
    Adapter,
    /// A model with adapters merged.
    MergedModel,
    /// A vector's card.
    Card,
    /// A random model.
    RandomModel,
    /// Residual streams of `extract`.
    Activations,
    /// A report as a web page.
    Page,
    /// A split of a data file.
    Split,
    /// Preference pairs of a benchmark.
    Pairs,
}

/// The start of a file that is looked at.
const LOOKED_AT: u64 = 1 << 16;

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Vector => "a steering vector",
            Self::Adapter => "a LoRA adapter of bidpo",
            Self::MergedModel => "a model that bidpo merged",
            Self::Card => "a vector's card",
            Self::RandomModel => "a random model of `bidpo synth`",
            Self::Activations => "a file of `bidpo extract`",
            Self::Page => "a report of bidpo",
            Self::Split => "a split of bidpo",
            Self::Pairs => "preference pairs",
        }
    }

    /// True if a file that begins so is of this kind.
    fn begins(self, head: &[u8]) -> bool {
        let holds = |text: &[u8]| head.windows(text.len()).any(|w| w == text);
        match self {
            Self::Vector => {
                (head.starts_with(b"GGUF") && holds(b"controlvector"))
                    || head.starts_with(b"\x93NUMPY")
                    || (head.get(8) == Some(&b'{') && holds(b"direction."))
            }
            Self::Adapter => head.starts_with(b"GGUF") && holds(b"adapter.type") && holds(b"bidpo."),
            Self::MergedModel => head.starts_with(b"GGUF") && holds(MERGED.as_bytes()),
            Self::Card => head.starts_with(b"# ") && holds(b"with bidpo"),
            // Its vocabulary: single letters, the most frequent first, each with its length before it.
            Self::RandomModel => {
                let letters: Vec<u8> =
                    "etaoins".bytes().flat_map(|c| [&1u64.to_le_bytes()[..], &[c]].concat()).collect();
                head.starts_with(b"GGUF") && holds(&letters)
            }
            Self::Activations => head.get(8) == Some(&b'{') && holds(b"layer_convention"),
            Self::Page => holds(b"<!DOCTYPE html>") && holds(b"bidpo"),
            Self::Split => holds(b"\"bidpo_split\""),
            Self::Pairs => {
                let line = head.split(|&b| b == b'\n').next().unwrap_or_default();
                serde_json::from_slice::<serde_json::Value>(line)
                    .is_ok_and(|v| ["prompt", "chosen", "rejected"].iter().all(|key| !v[key].is_null()))
            }
        }
    }
}

/// Checks, before any work, that `out` may be written.
///
/// # Errors
/// It cannot be written, is one of `inputs`, or holds something else than bidpo writes there.
pub fn check(out: &Path, kind: Kind, inputs: &[&Path]) -> anyhow::Result<()> {
    not_an_input(out, inputs)?;
    check_writable(out).with_context(|| format!("cannot write {}", out.display()))?;
    let Ok(file) = std::fs::File::open(out) else { return Ok(()) };
    let mut head = Vec::new();
    file.take(LOOKED_AT).read_to_end(&mut head).with_context(|| format!("cannot read {}", out.display()))?;
    ensure!(
        head.is_empty() || kind.begins(&head) || is_forced(),
        "{} exists and is not {}: give another name, or --force to replace it",
        out.display(),
        kind.name()
    );
    Ok(())
}

/// Checks that `out` is none of the files that the command reads.
///
/// # Errors
/// It is one, under this name or another.
pub fn not_an_input(out: &Path, inputs: &[&Path]) -> anyhow::Result<()> {
    match inputs.iter().find(|input| same_file(out, input)) {
        Some(input) => {
            bail!("{} would replace the input {}: give another name to write to", out.display(), input.display())
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bidpo_core::steer::SteeringVector;

    #[test]
    fn files_of_bidpo_are_known_by_their_contents() {
        let dir = tempfile::tempdir().unwrap();
        let vector = SteeringVector::single(3, vec![0.5; 8], "llama").unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["v.gguf", "v.safetensors", "v.npy"] {
            vector.save(&at(name)).unwrap();
            check(&at(name), Kind::Vector, &[]).unwrap();
        }
        let family = ggml_grad::synth::family("llama").unwrap();
        ggml_grad::synth::write(&at("m.gguf"), family, &family.shape(), ggml_grad::llama::DType::F32, 1).unwrap();
        check(&at("m.gguf"), Kind::RandomModel, &[]).unwrap();
        std::fs::write(at("empty"), b"").unwrap();
        check(&at("empty"), Kind::Vector, &[]).unwrap();
        check(&at("new"), Kind::Vector, &[&at("m.gguf")]).unwrap();
        std::fs::write(at("notes.txt"), b"# Notes\n").unwrap();
        for (name, kind) in [
            ("m.gguf", Kind::Vector),
            ("v.gguf", Kind::RandomModel),
            ("notes.txt", Kind::Card),
            ("notes.txt", Kind::Pairs),
            ("v.safetensors", Kind::Activations),
        ] {
            let error = check(&at(name), kind, &[]).unwrap_err().to_string();
            assert!(error.contains("--force"), "{error}");
        }
        let error = check(&at("v.gguf"), Kind::Vector, &[&at("m.gguf"), &at("v.gguf")]).unwrap_err().to_string();
        assert!(error.contains("would replace the input"), "{error}");
    }
}
