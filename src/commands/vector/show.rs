//! `bidpo vector show`: layers, norms, provenance.

use super::adapter;
use super::words::{clean, significant, value_text};
use crate::terminal::streams;
use bidpo_core::adapter::AdapterFile;
use bidpo_core::intervention::Kind;
use bidpo_core::layers::Layers;
use bidpo_core::steer::SteeringVector;
use ggml_grad::llama::GgufValue;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The order in which a reader wants to know; other keys follow by name.
const ORDER: [&str; 31] = [
    "method",
    "objective",
    "beta",
    "lr",
    "schedule",
    "warmup",
    "weight_decay",
    "batch",
    "steps",
    "epochs",
    "layer",
    "layers",
    "hook_point",
    "layer_convention",
    "norm",
    "scaled_by",
    "made_of",
    "moved_from",
    "residual_norm_median",
    "residual_norm_mean",
    "model_name",
    "model_architecture",
    "model_quantization",
    "model_sha256",
    "template_name",
    "template_sha256",
    "data_name",
    "data_sha256",
    "data_pairs",
    "seed",
    "version",
];

const CONVENTION_UNKNOWN: &str = "not stated; llama.cpp and bidpo add direction.N to the output of block N (blocks counted \
                                  from 0), as repeng means it; llama.cpp's cvector-generator measures one block earlier \
                                  (--convention generator)";

/// What a file holds.
pub enum Shown {
    /// A vector.
    Vector(Box<SteeringVector>),
    /// A LoRA adapter.
    Adapter(Box<AdapterFile>),
}

/// Prints what the files hold.
pub fn show(files: &[PathBuf], shown: Vec<Shown>, as_json: bool) -> anyhow::Result<ExitCode> {
    if as_json {
        let of = |(file, shown): (&PathBuf, &Shown)| match shown {
            Shown::Vector(vector) => to_json(file, vector),
            Shown::Adapter(adapter) => adapter::to_json(file, adapter),
        };
        let list: Vec<Value> = files.iter().zip(&shown).map(of).collect();
        streams::out_json(serde_json::to_string_pretty(&list)?);
        return Ok(ExitCode::SUCCESS);
    }
    for (i, (file, shown)) in files.iter().zip(&shown).enumerate() {
        if i > 0 {
            println!();
        }
        match shown {
            Shown::Vector(vector) => print!("{}", to_text(file, vector)),
            Shown::Adapter(adapter) => print!("{}", adapter::to_text(file, adapter)),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Keys and values in reading order.
fn ordered(vector: &SteeringVector) -> Vec<(&String, &GgufValue)> {
    let mut entries: Vec<_> = vector.provenance.entries.iter().collect();
    // Stable: what is not in the list keeps the order of its names, behind what is.
    // Keys of single layers (`lr.12`) are listed in the place of the key itself, by layer.
    entries.sort_by_key(|(key, _)| {
        let (base, layer) = match key.rsplit_once('.').map(|(base, n)| (base, n.parse::<usize>())) {
            Some((base, Ok(n))) => (base, n),
            _ => (key.as_str(), 0),
        };
        (ORDER.iter().position(|o| *o == base).unwrap_or(ORDER.len()), layer)
    });
    entries
}

fn to_text(file: &Path, vector: &SteeringVector) -> String {
    let mut out = format!("{}\n", file.display());
    let mut line = |label: &str, text: String| out.push_str(&format!("  {label:<16} {text}\n"));
    let hint = if vector.model_hint.is_empty() { "not stated".to_owned() } else { clean(&vector.model_hint) };
    line("architecture", hint);
    line("dimensions", vector.n_embd().to_string());
    if !vector.is_control_vector() {
        line("kind", kind_words(vector));
        line("acts", format!("scope {}: {}", vector.scope, vector.scope.words()));
        line("llama.cpp", "cannot run it; bidpo vector export --constant writes what it can run".to_owned());
    }
    let layers = vector.layers();
    if let Some((layer, r)) = only_residual_norm(vector) {
        line("residual norm", format!("{} (median at layer {layer})", significant(r)));
    }
    let percent = |layer: usize| {
        vector
            .residual_norm(layer)
            .map_or_else(String::new, |r| format!(" ({:.2} % of the residual norm)", 100.0 * vector.norm(layer) / r))
    };
    line(
        "layers",
        match &layers[..] {
            [one] => one.to_string(),
            _ => format!(
                "{} ({} of them)",
                Layers::new(layers.iter().copied()).map_or_else(|e| e.to_string(), |l| l.to_string()),
                layers.len()
            ),
        },
    );
    if let (2.., Some(p)) = (layers.len(), vector.percent_of_scale(1.0)) {
        line("scale 1", format!("{p:.2} % of the residual norm (mean over the layers)"));
    }
    if let Some(range) = vector.measured_range() {
        line(
            "safe range",
            format!(
                "scales {} (measured: KL(unsteered || steered) on neutral text at most {} nats a token)",
                range.in_words(),
                significant(range.budget)
            ),
        );
    }
    for (first, last, text) in norm_runs(vector, percent) {
        let at = if first == last { first.to_string() } else { format!("{first}-{last}") };
        line(&format!("norm at {at}"), text);
    }
    line("layer convention", clean(vector.provenance.str("layer_convention").unwrap_or(CONVENTION_UNKNOWN)));
    let entries = ordered(vector);
    if entries.is_empty() {
        line("provenance", "none (a file of another tool)".to_owned());
    } else {
        out.push_str("  provenance\n");
        for (key, value) in entries.iter().filter(|(k, _)| *k != "layer_convention") {
            out.push_str(&format!("    {:<24} {}\n", clean(key), value_text(value)));
        }
    }
    out
}

/// What the kind does, in a sentence.
fn kind_words(vector: &SteeringVector) -> String {
    let Some(rows) = &vector.rows else { return "add: the same vector at each position of its scope".to_owned() };
    let settings = rows.spec.settings();
    let settings = if settings.is_empty() { String::new() } else { format!(" ({settings})") };
    let bias = rows.theta.get(rows.n_embd).map_or_else(String::new, |b| significant(f64::from(*b)));
    let text = match rows.spec.kind {
        Kind::Add => "the same vector at each position".to_owned(),
        Kind::Gate => {
            format!("adds its vector at each token as far as the token opens a gate (bias {bias}: 0 is half open)")
        }
        Kind::LinearGate => format!("adds its vector times a factor that is linear in the token (bias {bias})"),
        Kind::PromptGate => {
            format!("decides once from the prompt how far its vector is added to the answer (bias {bias})")
        }
        Kind::Project => format!("takes {bias} of the component along one direction away"),
        Kind::Clamp => format!("moves the component along one direction to a level, by a share of {bias}"),
        Kind::LowRank => format!("edits {} dimensions of the residual stream, by what is in it", rows.spec.rank),
    };
    format!("{}{settings}: {text}", rows.spec.kind)
}

/// The residual norm that the file states once, for one layer, and that layer.
fn only_residual_norm(vector: &SteeringVector) -> Option<(usize, f64)> {
    vector.provenance.number("residual_norm_median")?;
    let layer = vector.main_layer();
    Some((layer, vector.residual_norm(layer)?))
}

/// Norms by layer; neighbours with the same text (files of unit vectors) share a line: `(first, last, text)`.
fn norm_runs(vector: &SteeringVector, percent: impl Fn(usize) -> String) -> Vec<(usize, usize, String)> {
    let mut runs: Vec<(usize, usize, String)> = Vec::new();
    for layer in vector.layers() {
        let text = format!("{}{}", significant(vector.norm(layer)), percent(layer));
        match runs.last_mut() {
            Some((_, last, t)) if *last + 1 == layer && *t == text => *last = layer,
            _ => runs.push((layer, layer, text)),
        }
    }
    runs
}

fn to_json(file: &Path, vector: &SteeringVector) -> Value {
    let layers: Vec<Value> = vector
        .layers()
        .into_iter()
        .map(|layer| {
            let residual = vector.residual_norm(layer);
            json!({
                "layer": layer,
                "norm": vector.norm(layer),
                "residual_norm_median": residual,
                "percent_of_residual_norm": residual.map(|r| 100.0 * vector.norm(layer) / r),
            })
        })
        .collect();
    let provenance: Map<String, Value> = ordered(vector)
        .into_iter()
        .map(|(key, value)| {
            let value = match value {
                GgufValue::Str(s) => json!(s),
                GgufValue::Int(n) => json!(n),
                GgufValue::Float(x) => json!(x),
                GgufValue::Bool(b) => json!(b),
                GgufValue::Other(_) => Value::Null,
            };
            (key.clone(), value)
        })
        .collect();
    json!({
        "file": file.display().to_string(),
        "architecture": if vector.model_hint.is_empty() { None } else { Some(&vector.model_hint) },
        "n_embd": vector.n_embd(),
        "layers": layers,
        "residual_norm_median": only_residual_norm(vector).map(|(_, r)| r),
        "percent_of_residual_norm": vector.percent_of_scale(1.0),
        "safe_range": vector.measured_range().map(|r| json!({ "low": r.low, "high": r.high, "kl_budget": r.budget })),
        "kind": vector.kind().name(),
        "scope": vector.scope.to_string(),
        "runs_in_llama_cpp": vector.is_control_vector(),
        "layer_convention": vector.provenance.str("layer_convention"),
        "provenance": provenance,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn provenance_comes_in_reading_order() {
        let mut v = SteeringVector::single(3, vec![3.0, 4.0], "llama").unwrap();
        v.provenance.set_float("heldout_accuracy", 0.75);
        v.provenance.set_str("version", "0.1.0");
        v.provenance.set_str("method", "bidpo");
        v.provenance.set_float("residual_norm_median", 100.0);
        let text = to_text(Path::new("v.gguf"), &v);
        let at = |s: &str| text.find(s).unwrap_or_else(|| panic!("{s} missing in\n{text}"));
        assert!(at("method") < at("version") && at("version") < at("heldout_accuracy"));
        assert!(text.contains("norm at 3        5 (5.00 % of the residual norm)"), "{text}");
    }
}
