//! What runs leave behind: results, splits, checkpoints, captures, gold files.

use super::{file, shown};
use bidpo_core::check::Gold;
use bidpo_core::data::SplitFile;
use bidpo_core::engine::{Add, Cache, CacheType};
use bidpo_core::eval::analysis::analyse;
use bidpo_core::eval::report;
use bidpo_core::eval::results::merge;
use bidpo_core::train::{Checkpoint, IdentitySource, RecordedIdentity, RunInputs, TrainConfig};
use safetensors::tensor::{SafeTensors, TensorView};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};

/// What `report` does: reads, analyses, and prints in three forms.
pub(super) fn results(bytes: &[u8]) -> bool {
    let runs = match merge(&[file("r.jsonl", bytes)]) {
        Ok(runs) => runs,
        Err(error) => {
            shown(&error.to_string());
            return false;
        }
    };
    for run in &runs {
        match analyse(run) {
            Err(error) => shown(&error.to_string()),
            Ok(analysis) => {
                report::json(&analysis);
                report::html(std::slice::from_ref(&analysis));
                report::markdown(&analysis);
                analysis.summary();
            }
        }
    }
    true
}

pub(super) fn split(bytes: &[u8]) -> bool {
    match SplitFile::load(&file("s.json", bytes), "ab") {
        Ok(_) => true,
        Err(error) => {
            shown(&error.to_string());
            false
        }
    }
}

pub(super) fn gold(bytes: &[u8]) -> bool {
    match Gold::load(&file("gold.json", bytes)) {
        Ok(_) => true,
        Err(error) => {
            shown(&error.to_string());
            false
        }
    }
}

/// Parameters of the run whose checkpoint is read.
const N: usize = 4;

/// Calls with the run whose checkpoint is read.
fn with_run<T>(call: impl FnOnce(&IdentitySource<'_>) -> T) -> T {
    let config = TrainConfig::new("3".parse().expect("a layer"));
    call(&IdentitySource { config: &config, inputs: &RunInputs::default(), train: &[], valid: &[] })
}

/// A checkpoint of that run.
pub(super) fn a_checkpoint() -> Vec<u8> {
    let path = file("seed.ckpt", b"");
    let numbers = |x: f64| vec![x; N];
    let mut checkpoint = Checkpoint {
        v: numbers(0.5),
        m: numbers(-1e-3),
        s: numbers(2.0),
        best: numbers(0.25),
        good: numbers(0.0),
        ..Checkpoint::default()
    };
    checkpoint.state.identity = with_run(|run| RecordedIdentity::Current { identity: run.identity(640) });
    checkpoint.save(&path).expect("a checkpoint can be written");
    std::fs::read(path).expect("it was written")
}

/// As it is: then only what was written is accepted; and with its checksum put right.
pub(super) fn checkpoint(bytes: &[u8]) -> bool {
    let load = |bytes: &[u8]| {
        let path = file("v.ckpt", bytes);
        if let Err(error) = Checkpoint::identity(&path) {
            shown(&error.to_string());
        }
        let add = Add { n_layers: 1, n_embd: N };
        with_run(|run| Checkpoint::load(&path, run, &add)).map_err(|error| shown(&error.to_string())).ok()
    };
    let accepted = load(bytes).is_some();
    if let Some(sealed) = seal_checkpoint(bytes)
        && let Some(checkpoint) = load(&sealed)
    {
        assert!([&checkpoint.v, &checkpoint.m, &checkpoint.best].iter().all(|x| x.len() == N));
    }
    accepted
}

/// The checkpoint with the checksum of its contents.
fn seal_checkpoint(bytes: &[u8]) -> Option<Vec<u8>> {
    let tensors = SafeTensors::deserialize(bytes).ok()?;
    let (_, header) = SafeTensors::read_metadata(bytes).ok()?;
    let state = header.metadata().as_ref()?.get("state")?.clone();
    let json =
        state.strip_prefix("sha256:").and_then(|rest| rest.split_once('\n')).map_or(&state[..], |(_, json)| json);
    let mut hash = Sha256::new();
    hash.update(format!("state {}\n{json}", json.len()));
    for name in ["v", "m", "s", "best", "good"] {
        let data = tensors.tensor(name).ok()?.data();
        hash.update(format!("{name} {}\n", data.len()));
        hash.update(data);
    }
    let state = format!("sha256:{}\n{json}", ggml_grad::files::hex(&hash.finalize()));
    safetensors::serialize(tensors.tensors(), Some(HashMap::from([("state".to_owned(), state)]))).ok()
}

/// Name of the capture that is read.
const KEY: &str = "0123";

/// A capture of two tokens of a residual stream of width two.
pub(super) fn a_capture() -> Vec<u8> {
    use safetensors::tensor::Dtype;
    let numbers = |n: usize| -> Vec<u8> { (0..n).flat_map(|i| (i as f32 / 4.0).to_le_bytes()).collect() };
    let (residual, norms) = (numbers(4), numbers(2));
    let reference: Vec<u8> = [-1.5, -2.5].iter().flat_map(|x: &f64| x.to_le_bytes()).collect();
    let view = |dtype, shape, bytes| TensorView::new(dtype, shape, bytes).expect("sizes that fit");
    let tensors = vec![
        ("residual", view(Dtype::F32, vec![2, 2], &residual)),
        ("norms.0", view(Dtype::F32, vec![2], &norms)),
        ("reference", view(Dtype::F64, vec![1, 2], &reference)),
        ("kept.3", view(Dtype::U8, vec![3], &[1, 2, 3])),
    ];
    let what = HashMap::from([("capture".to_owned(), format!("{}; {KEY}; ", Cache::VERSION))]);
    let open = safetensors::serialize(tensors, Some(what)).expect("tensors with unique names");
    seal_capture(&open).expect("a capture")
}

/// As it is, and with its checksum put right.
pub(super) fn cache(bytes: &[u8]) -> bool {
    let path = file(&format!("cache/{KEY}.safetensors"), bytes);
    let folder = path.parent().expect("a folder");
    let mut cache = Cache::open(folder, CacheType::F32, "model").expect("a folder that can be written");
    let accepted = cache.holds(KEY);
    if let Some(sealed) = seal_capture(bytes) {
        file(&format!("cache/{KEY}.safetensors"), &sealed);
        cache.holds(KEY);
    }
    cache.take_notices().iter().for_each(|notice| shown(notice));
    accepted
}

/// The capture with the checksum of its contents.
fn seal_capture(bytes: &[u8]) -> Option<Vec<u8>> {
    let file = SafeTensors::deserialize(bytes).ok()?;
    let tensors = file.tensors();
    let sorted: BTreeMap<&str, &TensorView<'_>> = tensors.iter().map(|(name, view)| (name.as_str(), view)).collect();
    let mut hash = Sha256::new();
    hash.update(KEY);
    for (name, view) in sorted {
        hash.update(format!("{name} {:?} {:?} {}\n", view.dtype(), view.shape(), view.data().len()));
        hash.update(view.data());
    }
    let what = [Cache::VERSION, KEY, &ggml_grad::files::hex(&hash.finalize())].join("; ");
    safetensors::serialize(tensors, Some(HashMap::from([("capture".to_owned(), what)]))).ok()
}
