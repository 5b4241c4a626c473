//! Files of interventions that llama.cpp cannot run. They hold no `direction.N`: llama.cpp would add that to every row without a
//! word. Its architecture, [`ARCHITECTURE`], is one that older versions of bidpo and llama.cpp refuse by name.
//!
//! Tensors end in the layer: `gate.weight.15`, `gate.bias.15`, `vector.15`. See docs/interventions.md.

use super::MAX_N_EMBD;
use super::gguf::PREFIX;
use crate::intervention::{Kind, KindSpec, Scope};
use crate::steer::{Provenance, RowChanges, SteerError, SteeringVector};
use ggml_grad::llama::{DType, GgufFile, GgufValue, GgufWriter};
use std::path::Path;

/// `general.architecture` of these files.
pub(super) const ARCHITECTURE: &str = "bidpo.intervention";
/// Version of the format. A reader refuses a newer one.
const VERSION: i64 = 1;
/// Keys that say how the tensors are read; all others are provenance.
const STRUCTURE: [&str; 6] = ["file_version", "kind", "scope", "tau", "decided_by", "rank"];
/// Name of a constant vector's tensors.
const VECTOR: &str = "vector";
/// Elements of a tensor, at most: a larger number can only come from a damaged file.
const MOST: usize = 1 << 28;

/// Reads the file.
pub(super) fn load(file: &GgufFile, path: &Path) -> Result<SteeringVector, SteerError> {
    let refuse = |reason: String| SteerError::NotAVector { path: path.to_owned(), reason };
    let key = |name: &str| file.get(&format!("{PREFIX}{name}"));
    let text = |name: &str| match key(name) {
        Some(GgufValue::Str(s)) => Ok(s.clone()),
        _ => Err(refuse(format!("it has no text key {PREFIX}{name}: it is damaged"))),
    };
    match key("file_version") {
        Some(GgufValue::Int(1..=VERSION)) => {}
        Some(GgufValue::Int(n)) if *n > VERSION => {
            return Err(refuse(format!(
                "it has file version {n}, and this bidpo ({}) reads up to {VERSION}: it was written by a newer bidpo",
                env!("CARGO_PKG_VERSION")
            )));
        }
        _ => return Err(refuse(format!("it has no usable key {PREFIX}file_version: it is damaged"))),
    }
    let name = text("kind")?;
    let kind: Kind = name.parse().map_err(|e| refuse(format!("{e}; a newer bidpo may know it")))?;
    let scope: Scope = text("scope")?.parse().map_err(|e| refuse(format!("{e}; a newer bidpo may know it")))?;
    // A kind's own settings are there; those of other kinds do not matter.
    let missing =
        |name: &str| refuse(format!("kind {kind} needs the key {PREFIX}{name}, which it lacks: it is damaged"));
    let default = KindSpec::default();
    let spec = KindSpec {
        kind,
        tau: match key("tau") {
            Some(GgufValue::Float(x)) if *x > 0.0 && x.is_finite() => *x,
            Some(_) => return Err(refuse(format!("{PREFIX}tau must be a positive number"))),
            None if matches!(kind, Kind::Gate | Kind::PromptGate) => return Err(missing("tau")),
            None => default.tau,
        },
        mean: match key("decided_by") {
            Some(GgufValue::Str(rows)) if rows == "mean" => true,
            Some(GgufValue::Str(rows)) if rows == "last" => false,
            Some(_) => {
                return Err(refuse(format!("{PREFIX}decided_by must be last or mean; a newer bidpo may know more")));
            }
            None if kind == Kind::PromptGate => return Err(missing("decided_by")),
            None => default.mean,
        },
        rank: match key("rank") {
            Some(GgufValue::Int(n @ 1..=4096)) => *n as usize,
            Some(_) => return Err(refuse(format!("{PREFIX}rank must be 1 to 4096"))),
            None if kind == Kind::LowRank => return Err(missing("rank")),
            None => default.rank,
        },
    };
    let mut vector = SteeringVector { scope, ..SteeringVector::empty() };
    if let Some(GgufValue::Str(hint)) = file.get("controlvector.model_hint") {
        vector.model_hint.clone_from(hint);
    }
    let keys =
        file.meta().iter().filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?.to_owned(), value.clone())));
    vector.provenance = Provenance { entries: keys.filter(|(key, _)| !STRUCTURE.contains(&key.as_str())).collect() };
    let mut tensors = Vec::new();
    for (name, dtype, ne) in file.tensors() {
        let (part, layer) = name
            .rsplit_once('.')
            .and_then(|(part, n)| Some((part.to_owned(), n.parse::<usize>().ok().filter(|&n| n > 0)?)))
            .ok_or_else(|| refuse(format!("tensor {name:?} does not end in a layer from 1")))?;
        if dtype != DType::F32 || ne.iter().product::<usize>() > MOST || ne[0] > MAX_N_EMBD {
            return Err(refuse(format!(
                "tensor {name} is {} {ne:?}: f32 of at most {MOST} values is expected",
                dtype.name()
            )));
        }
        tensors.push((part, layer, ne, file.read_f32(name)?));
    }
    if kind == Kind::Add {
        for (part, layer, _, data) in tensors {
            if part != VECTOR || vector.directions.insert(layer, data).is_some() {
                return Err(refuse(format!("tensor {part}.{layer} has no place in kind add")));
            }
        }
    } else {
        // A part as wide as the residual stream is the first one of every kind.
        let (Some(n_embd), Some(layer)) = (tensors.first().map(|t| t.2[0]), tensors.first().map(|t| t.1)) else {
            return Err(refuse("it holds no tensor".into()));
        };
        let rows = spec.rows(n_embd).map_err(|e| refuse(e.to_string()))?;
        let parts = rows.map_or_else(Vec::new, |rows| rows.parts());
        let mut theta = Vec::new();
        for part in &parts {
            let found = tensors.iter().find(|t| t.0 == part.name && t.1 == layer);
            let (_, _, ne, data) = found.ok_or_else(|| refuse(format!("tensor {}.{layer} is missing", part.name)))?;
            if data.len() != part.params.len() || Some(&ne[0]) != part.shape.last() {
                return Err(refuse(format!(
                    "tensor {}.{layer} has the shape {ne:?}, expected {:?}",
                    part.name, part.shape
                )));
            }
            theta.extend(data);
        }
        if tensors.len() != parts.len() {
            return Err(refuse(format!("it holds {} tensors, and kind {kind} has {}", tensors.len(), parts.len())));
        }
        vector.rows = Some(RowChanges { spec, layer, n_embd, theta });
    }
    vector.check().map_err(|e| refuse(e.to_string()))?;
    Ok(vector)
}

/// Writes the file (all of it or nothing).
pub(super) fn save(vector: &SteeringVector, path: &Path) -> Result<(), SteerError> {
    let mut writer = GgufWriter::new();
    let refused = |source| SteerError::Key { path: path.to_owned(), source };
    let spec = vector.rows.as_ref().map_or_else(KindSpec::default, |rows| rows.spec);
    writer.set("general.architecture", &GgufValue::Str(ARCHITECTURE.into()))?;
    writer.set("controlvector.model_hint", &GgufValue::Str(vector.model_hint.clone()))?;
    let mut set = |key: &str, value: GgufValue| writer.set(&format!("{PREFIX}{key}"), &value).map_err(refused);
    set("file_version", GgufValue::Int(VERSION))?;
    set("kind", GgufValue::Str(spec.kind.name().into()))?;
    set("scope", GgufValue::Str(vector.scope.to_string()))?;
    if matches!(spec.kind, Kind::Gate | Kind::PromptGate) {
        set("tau", GgufValue::Float(spec.tau))?;
    }
    if spec.kind == Kind::PromptGate {
        set("decided_by", GgufValue::Str(if spec.mean { "mean" } else { "last" }.into()))?;
    }
    if spec.kind == Kind::LowRank {
        set("rank", GgufValue::Int(spec.rank as i64))?;
    }
    for (key, value) in vector.provenance.entries.iter().filter(|(key, _)| !STRUCTURE.contains(&key.as_str())) {
        set(key, value.clone())?;
    }
    for (layer, direction) in &vector.directions {
        writer.add_f32(&format!("{VECTOR}.{layer}"), direction.clone())?;
    }
    if let Some(rows) = &vector.rows {
        for part in rows.rows()?.parts() {
            let data = rows.theta[part.params].to_vec();
            let name = format!("{}.{}", part.name, rows.layer);
            match part.shape[..] {
                [_, width] => writer.add_f32_rows(&name, width, data)?,
                _ => writer.add_f32(&name, data)?,
            }
        }
    }
    Ok(writer.write(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::random_parameters;

    fn each() -> Vec<SteeringVector> {
        let of = |spec: KindSpec| {
            let theta = random_parameters(&*spec.intervention(1, 12).unwrap(), 30.0, 12, 1);
            let mut v = SteeringVector {
                model_hint: "llama".into(),
                scope: "answer".parse().unwrap(),
                ..SteeringVector::empty()
            };
            match spec.kind {
                Kind::Add => v.directions = [(3, theta.clone()), (5, theta)].into(),
                _ => v.rows = Some(RowChanges { spec, layer: 3, n_embd: 12, theta }),
            }
            v.provenance.set_float("residual_norm_median", 30.0);
            v.provenance.set_str("method", "BiDPO");
            v
        };
        let mut specs: Vec<KindSpec> = Kind::EACH.into_iter().map(KindSpec::from).collect();
        specs.push(KindSpec { mean: true, tau: 0.25, ..Kind::PromptGate.into() });
        specs.push(KindSpec { rank: 2, ..Kind::LowRank.into() });
        specs.into_iter().map(of).collect()
    }

    #[test]
    fn every_kind_comes_back_and_gives_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.gguf");
        for v in each() {
            v.save(&path).unwrap();
            let first = std::fs::read(&path).unwrap();
            let back = SteeringVector::load(&path).unwrap();
            assert_eq!(back, v);
            back.save(&path).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), first);
            let file = GgufFile::open(&path).unwrap();
            assert!(
                file.tensors().all(|(name, _, _)| !name.starts_with("direction.")),
                "llama.cpp would add it everywhere"
            );
        }
    }

    #[test]
    fn newer_and_damaged_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.gguf");
        let v = &each()[1];
        v.save(&path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let load = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            SteeringVector::load(&path)
        };
        // The last tensor has 12 numbers; what is behind them fills a block of 32 bytes up, and nothing reads it.
        let padding = (12usize * 4).next_multiple_of(32) - 12 * 4;
        for length in 0..whole.len() - padding {
            assert!(load(&whole[..length]).is_err(), "the first {length} bytes of {}", whole.len());
        }
        for i in 0..whole.len() {
            for value in [0, 0xff, whole[i] ^ 1] {
                let mut bytes = whole.clone();
                bytes[i] = value;
                if let Ok(v) = load(&bytes) {
                    v.check().unwrap();
                }
            }
        }
        let key = b"bidpo.file_version";
        let at = whole.windows(key.len()).position(|w| w == key).unwrap() + key.len() + 4;
        let mut newer = whole.clone();
        newer[at] = 9;
        let error = load(&newer).unwrap_err().to_string();
        assert!(error.contains("file version 9") && error.contains("newer bidpo"), "{error}");
        // Settings under another name, and one that this version does not know.
        for v in each() {
            let Some(rows) = &v.rows else { continue };
            let keys: &[&str] = match rows.spec.kind {
                Kind::Gate => &["tau"],
                Kind::PromptGate => &["tau", "decided_by"],
                Kind::LowRank => &["rank"],
                _ => &[],
            };
            v.save(&path).unwrap();
            let whole = std::fs::read(&path).unwrap();
            for key in keys {
                let name = format!("bidpo.{key}");
                let at = whole.windows(name.len()).position(|w| w == name.as_bytes()).unwrap() + name.len();
                let mut renamed = whole.clone();
                renamed[at - 1] = b'X';
                let error = load(&renamed).unwrap_err().to_string();
                assert!(error.contains(&format!("needs the key {name}")), "{error}");
                // Behind a text's key stand its type and its length.
                if *key == "decided_by" {
                    let mut other = whole.clone();
                    other[at + 12] = b'X';
                    let error = load(&other).unwrap_err().to_string();
                    assert!(error.contains("must be last or mean"), "{error}");
                }
            }
        }
        for name in ["v.npy", "v.safetensors"] {
            let error = v.save(&folder.path().join(name)).unwrap_err().to_string();
            assert!(error.contains("export --constant"), "{error}");
        }
    }
}
