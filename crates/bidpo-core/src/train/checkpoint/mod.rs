//! Checkpoints: everything a run needs to continue as if it had never stopped.

mod identity;
mod parts;

pub use identity::{IdentitySource, RecordedIdentity, RunIdentity, RunInputs};
pub use parts::{CheckpointParts, HeldOutFractions, Parts, PartsError, UnheldParts, checkpoint_parts};

use crate::engine::Intervention;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::path::Path;

/// The state of a run after `step` optimizer steps.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Checkpoint {
    /// The parameters.
    pub v: Vec<f64>,
    /// Adam's first moment.
    pub m: Vec<f64>,
    /// Adam's second moment.
    pub s: Vec<f64>,
    /// The parameters with the best validation loss so far.
    pub best: Vec<f64>,
    /// The last parameters under which every loss of a step was finite.
    pub good: Vec<f64>,
    /// Everything else.
    pub state: State,
}

/// The part of a checkpoint that is not an array.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The run that the checkpoint belongs to.
    #[serde(flatten)]
    pub identity: RecordedIdentity,
    /// Kind of the intervention; absent for vectors that are added.
    #[serde(default = "added", skip_serializing_if = "is_added")]
    pub kind: String,
    /// Steps taken.
    pub step: usize,
    /// Lowest validation loss so far.
    #[serde(with = "bits")]
    pub best_loss: f64,
    /// Steps taken when it was measured.
    pub best_step: usize,
    /// Steps after which `good` was the vector.
    pub good_step: usize,
    /// Epochs since `best_step`.
    pub bad_epochs: usize,
    /// Sum of the training losses of the current epoch.
    #[serde(with = "bits")]
    pub epoch_loss: f64,
    /// Pairs in that sum.
    pub epoch_pairs: usize,
    /// Weight of the retained texts; absent where there are none.
    #[serde(with = "bits", default, skip_serializing_if = "is_zero")]
    pub retain_weight: f64,
    /// How far the best parameters are above the budget of the retained texts, in budgets; absent where they are not.
    #[serde(with = "bits", default, skip_serializing_if = "is_zero")]
    pub best_excess: f64,
    /// Losses of the epochs so far.
    pub history: Vec<Point>,
}

fn added() -> String {
    "add".into()
}

fn is_zero(x: &f64) -> bool {
    x.to_bits() == 0
}

fn is_added(kind: &str) -> bool {
    kind == "add"
}

impl Default for State {
    fn default() -> Self {
        Self {
            identity: RecordedIdentity::default(),
            kind: added(),
            step: 0,
            best_loss: 0.0,
            best_step: 0,
            good_step: 0,
            bad_epochs: 0,
            epoch_loss: 0.0,
            epoch_pairs: 0,
            retain_weight: 0.0,
            best_excess: 0.0,
            history: Vec::new(),
        }
    }
}

/// Floats as their bits: JSON has no infinity.
mod bits {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(in crate::train) fn serialize<S: Serializer>(x: &f64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(x.to_bits())
    }

    pub(in crate::train) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        u64::deserialize(from).map(f64::from_bits)
    }
}

/// Losses at the end of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Point {
    /// Steps taken.
    pub step: usize,
    /// Mean training loss of the epoch.
    pub train_loss: f64,
    /// Mean validation loss over the directions of [`crate::train::TrainConfig::validation`]; `None` without validation pairs.
    pub valid_loss: Option<f64>,
    /// Preference accuracy: the fraction of validation pairs and directions whose preferred response became more probable.
    pub valid_accuracy: Option<f64>,
    /// L2 norm of the vector; with several layers, of all directions concatenated.
    pub norm: f64,
    /// Mean divergence on the retained texts, nats a token, over the same directions; `None` without such texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retained_kl: Option<f64>,
    /// Weight of that divergence in the loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain_weight: Option<f64>,
    /// That norm in percent of the median residual norm; with several layers, the mean over them.
    #[serde(default)] // absent from checkpoints written when there was one layer only, whose cards do not show it
    pub percent: f64,
}

/// A checkpoint that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Reading or writing failed.
    #[error("checkpoint {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Not a checkpoint.
    #[error("checkpoint {path} is damaged: {reason}; delete it or start again with --fresh")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A checkpoint of another run.
    #[error(
        "checkpoint {path} belongs to another run (other settings, kind of intervention, layers, data, template or \
         model): use the settings it was made with (the defaults of bidpo 0.2.0 and before had --weight-decay 0.05), or start again with --fresh"
    )]
    OtherRun {
        /// The file.
        path: String,
    },
}

impl Checkpoint {
    /// Writes the checkpoint atomically: after a crash at any moment the file is the old one or the new one.
    ///
    /// # Errors
    /// [`CheckpointError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), CheckpointError> {
        let bytes: Vec<(&str, Vec<u8>)> =
            [("v", &self.v), ("m", &self.m), ("s", &self.s), ("best", &self.best), ("good", &self.good)]
                .into_iter()
                .map(|(name, x)| (name, x.iter().flat_map(|x| x.to_le_bytes()).collect()))
                .collect();
        let fail = |source| CheckpointError::Io { path: path.display().to_string(), source };
        let views = bytes
            .iter()
            .map(|(name, b)| Ok((*name, TensorView::new(Dtype::F64, vec![b.len() / 8], b)?)))
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
            .map_err(|e| fail(std::io::Error::other(e)))?;
        let state = serde_json::to_string(&self.state).map_err(|e| fail(e.into()))?;
        let sum = checksum(&state, bytes.iter().map(|(name, b)| (*name, &b[..])));
        let meta = HashMap::from([("state".to_owned(), format!("{SUM}{sum}\n{state}"))]);
        let file = safetensors::serialize(views, Some(meta)).map_err(|e| fail(std::io::Error::other(e)))?;
        ggml_grad::files::write_atomically(path, &file).map_err(fail)
    }

    /// Reads the identity of the run that wrote a checkpoint.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], [`CheckpointError::Damaged`].
    pub fn identity(path: &Path) -> Result<RecordedIdentity, CheckpointError> {
        let file = ggml_grad::files::read_whole(path)
            .map_err(|source| CheckpointError::Io { path: path.display().to_string(), source })?;
        Ok(state_of(&file, path)?.identity)
    }

    /// Reads a checkpoint and checks that it belongs to this run of this intervention.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn load(
        path: &Path,
        source: &IdentitySource<'_>,
        intervention: &dyn Intervention,
    ) -> Result<Self, CheckpointError> {
        let name = || path.display().to_string();
        let damaged = |reason: String| CheckpointError::Damaged { path: name(), reason };
        let file = ggml_grad::files::read_whole(path).map_err(|source| CheckpointError::Io { path: name(), source })?;
        let state = state_of(&file, path)?;
        if !source.accepts(&state.identity) || state.kind != intervention.kind() {
            return Err(CheckpointError::OtherRun { path: name() });
        }
        let tensors = SafeTensors::deserialize(&file).map_err(|e| damaged(e.to_string()))?;
        verify(&file, &tensors).map_err(damaged)?;
        let n = intervention.n_params();
        let read = |key: &str| -> Result<Vec<f64>, CheckpointError> {
            let t = tensors.tensor(key).map_err(|e| damaged(e.to_string()))?;
            if t.dtype() != Dtype::F64 || t.shape() != [n] {
                return Err(damaged(format!("tensor {key} is {:?} {:?}, expected F64 [{n}]", t.dtype(), t.shape())));
            }
            Ok(ggml_grad::numeric::f64_from_le(t.data()))
        };
        Ok(Self { v: read("v")?, m: read("m")?, s: read("s")?, best: read("best")?, good: read("good")?, state })
    }
}

/// The state in a checkpoint file.
fn state_of(file: &[u8], path: &Path) -> Result<State, CheckpointError> {
    let damaged = |reason: String| CheckpointError::Damaged { path: path.display().to_string(), reason };
    let (_, meta) = SafeTensors::read_metadata(file).map_err(|e| damaged(e.to_string()))?;
    let state =
        meta.metadata().as_ref().and_then(|m| m.get("state")).ok_or_else(|| damaged("no state in it".into()))?;
    serde_json::from_str(parts(state).1).map_err(|e| damaged(e.to_string()))
}

/// What stands before the checksum in the state's text. Checkpoints of bidpo 0.2.0 and before have none: theirs begins with
/// a brace.
const SUM: &str = "sha256:";
/// The arrays, in the order in which they are summed.
const ARRAYS: [&str; 5] = ["v", "m", "s", "best", "good"];

/// The checksum, where there is one, and the JSON behind it.
fn parts(state: &str) -> (Option<&str>, &str) {
    match state.strip_prefix(SUM).and_then(|rest| rest.split_once('\n')) {
        Some((sum, json)) => (Some(sum), json),
        None => (None, state),
    }
}

/// SHA-256 of the state and of all arrays, each with its name and length.
fn checksum<'a>(state: &'a str, arrays: impl Iterator<Item = (&'a str, &'a [u8])>) -> String {
    let mut hash = Sha256::new();
    for (name, bytes) in std::iter::once(("state", state.as_bytes())).chain(arrays) {
        hash.update(format!("{name} {}\n", bytes.len()));
        hash.update(bytes);
    }
    ggml_grad::files::hex(&hash.finalize())
}

/// Compares the checksum with the file.
fn verify(file: &[u8], tensors: &SafeTensors<'_>) -> Result<(), String> {
    let (_, meta) = SafeTensors::read_metadata(file).map_err(|e| e.to_string())?;
    let Some(state) = meta.metadata().as_ref().and_then(|m| m.get("state")) else { return Ok(()) };
    let (Some(sum), json) = parts(state) else { return Ok(()) };
    let arrays = ARRAYS.map(|name| Ok((name, tensors.tensor(name).map_err(|e| e.to_string())?.data())));
    let arrays = arrays.into_iter().collect::<Result<Vec<_>, String>>()?;
    match checksum(json, arrays.into_iter()) {
        now if now == sum => Ok(()),
        _ => Err("its checksum does not match its contents".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Add;
    use crate::train::checkpoint::RunInputs;
    use crate::train::{NamedPair, TrainConfig};

    fn add(n_embd: usize) -> Add {
        Add { n_layers: 1, n_embd }
    }

    fn example(source: &IdentitySource<'_>) -> Checkpoint {
        let identity = RecordedIdentity::Current { identity: source.identity(640) };
        Checkpoint {
            v: vec![0.1, -2.0],
            m: vec![1e-300, f64::MIN_POSITIVE],
            s: vec![3.0, 4.0],
            best: vec![0.0, 1.0 / 3.0],
            good: vec![-0.0, 5.0],
            state: State { identity, step: 7, best_loss: f64::INFINITY, epoch_loss: 0.3, ..State::default() },
        }
    }

    fn with_run(seed: u64, test: impl FnOnce(&IdentitySource<'_>)) {
        let config = TrainConfig { seed, ..TrainConfig::new("15".parse().unwrap()) };
        let pairs: [NamedPair; 0] = [];
        test(&IdentitySource { config: &config, inputs: &RunInputs::default(), train: &pairs, valid: &pairs });
    }

    #[test]
    fn comes_back_exactly() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        with_run(0, |run| {
            example(run).save(&path).unwrap();
            assert_eq!(Checkpoint::load(&path, run, &add(2)).unwrap(), example(run));
        });
    }

    #[test]
    fn every_flipped_bit_is_found_and_old_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        with_run(0, |run| {
            example(run).save(&path).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            for at in 0..bytes.len() {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << (at % 8);
                std::fs::write(&path, &flipped).unwrap();
                let read = Checkpoint::load(&path, run, &add(2));
                assert!(read.is_err(), "a flipped bit in byte {at} of {}", bytes.len());
            }
            // As 0.2.0 wrote it: the state alone.
            let start = bytes.windows(SUM.len()).position(|w| w == SUM.as_bytes()).unwrap();
            let length = SUM.len() + 64 + 2; // with the new line, escaped
            let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let mut old = bytes[8..8 + header].to_vec();
            old.drain(start - 8..start - 8 + length);
            old.resize(old.len().next_multiple_of(8), b' ');
            let old = [&(old.len() as u64).to_le_bytes()[..], &old, &bytes[8 + header..]].concat();
            std::fs::write(&path, old).unwrap();
            assert_eq!(Checkpoint::load(&path, run, &add(2)).unwrap(), example(run));
        });
    }

    #[test]
    fn another_run_or_a_damaged_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        with_run(0, |run| example(run).save(&path).unwrap());
        with_run(1, |other| {
            assert!(matches!(Checkpoint::load(&path, other, &add(2)), Err(CheckpointError::OtherRun { .. })));
        });
        with_run(0, |run| {
            assert!(matches!(Checkpoint::load(&path, run, &add(3)), Err(CheckpointError::Damaged { .. })));
            let mut bytes = std::fs::read(&path).unwrap();
            bytes.truncate(bytes.len() - 5);
            std::fs::write(&path, bytes).unwrap();
            assert!(matches!(Checkpoint::load(&path, run, &add(2)), Err(CheckpointError::Damaged { .. })));
        });
    }
}
