//! `bidpo vector show` of a LoRA adapter.

use super::words::{clean, significant, value_text};
use bidpo_core::adapter::AdapterFile;
use bidpo_core::layers::Layers;
use ggml_grad::llama::GgufValue;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Norms of `B A` at scale 1, the pairs of a block taken together; `None` for matrices outside the blocks.
fn norms(adapter: &AdapterFile) -> BTreeMap<Option<usize>, f64> {
    let mut squares: BTreeMap<Option<usize>, f64> = BTreeMap::new();
    for (target, pair) in &adapter.pairs {
        *squares.entry(target.layer).or_default() += (adapter.factor(pair, 1.0) * pair.norm()).powi(2);
    }
    squares.into_iter().map(|(layer, sum)| (layer, sum.sqrt())).collect()
}

/// What it is, in plain words.
pub fn to_text(file: &Path, adapter: &AdapterFile) -> String {
    let mut out = format!("{}\n", file.display());
    let mut line = |label: &str, text: String| out.push_str(&format!("  {label:<18} {text}\n"));
    line("kind", "LoRA adapter: each matrix W becomes W + scale * B A".to_owned());
    line("architecture", clean(&adapter.architecture));
    let (low, high) = adapter.ranks();
    line("rank", if low == high { low.to_string() } else { format!("{low} to {high}") });
    line(
        "alpha",
        match adapter.alpha {
            Some(alpha) if alpha != 0.0 => {
                format!(
                    "{alpha}: at scale 1 B A is multiplied by alpha / rank ({})",
                    significant(f64::from(alpha) / high as f64)
                )
            }
            _ => "not stated: B A is multiplied by the scale alone".to_owned(),
        },
    );
    line(
        "matrices",
        format!("{} ({} pairs, {} numbers)", adapter.matrices().join(", "), adapter.pairs.len(), adapter.n_values()),
    );
    let layers = adapter.layers();
    let blocks = Layers::new(layers.iter().copied()).map_or_else(|_| "none".to_owned(), |l| l.to_string());
    line("blocks", format!("{blocks} ({} of them, counted from 0)", layers.len()));
    line("acts", "at every position, the prompt included; at scale 0 it is absent".to_owned());
    line("llama.cpp", "loads it: --lora FILE, --lora-scaled FILE:SCALE, field lora of a request".to_owned());
    let norms = norms(adapter);
    for (layer, norm) in &norms {
        let at = layer.map_or_else(|| "outside blocks".to_owned(), |l| format!("at block {l}"));
        line(&format!("norm {at}"), format!("{} (Frobenius, scale 1)", significant(*norm)));
    }
    if norms.values().all(|norm| *norm == 0.0) {
        line("effect", "none: every B A is zero".to_owned());
    }
    if !adapter.skipped.is_empty() {
        line(
            "passed over",
            format!(
                "{} norms, which llama.cpp leaves out: {}",
                adapter.skipped.len(),
                clean(&adapter.skipped.join(", "))
            ),
        );
    }
    if !adapter.invocation_tokens.is_empty() {
        let tokens: Vec<String> = adapter.invocation_tokens.iter().map(ToString::to_string).collect();
        line(
            "invocation tokens",
            format!("{} (aLoRA: meant to act from these on; bidpo applies it everywhere)", tokens.join(" ")),
        );
    }
    for (key, value) in &adapter.other {
        line(&clean(key), value_text(value));
    }
    if adapter.provenance.entries.is_empty() {
        line("provenance", "none (a file of another tool)".to_owned());
    } else {
        out.push_str("  provenance\n");
        for (key, value) in &adapter.provenance.entries {
            out.push_str(&format!("    {:<24} {}\n", clean(key), value_text(value)));
        }
    }
    out
}

/// The same for programs.
pub fn to_json(file: &Path, adapter: &AdapterFile) -> Value {
    let value = |value: &GgufValue| match value {
        GgufValue::Str(s) => json!(s),
        GgufValue::Int(n) => json!(n),
        GgufValue::Float(x) => json!(x),
        GgufValue::Bool(b) => json!(b),
        GgufValue::Other(_) => Value::Null,
    };
    let pairs: Vec<Value> = adapter
        .pairs
        .iter()
        .map(|(target, pair)| {
            json!({
                "tensor": target.tensor(),
                "layer": target.layer,
                "matrix": target.matrix,
                "rank": pair.rank,
                "n_in": pair.n_in,
                "n_out": pair.n_out,
                "n_experts": pair.n_experts,
                "norm": adapter.factor(pair, 1.0) * pair.norm(),
            })
        })
        .collect();
    let provenance: Map<String, Value> =
        adapter.provenance.entries.iter().map(|(k, v)| (k.clone(), value(v))).collect();
    let other: Map<String, Value> = adapter.other.iter().map(|(k, v)| (k.clone(), value(v))).collect();
    json!({
        "file": file.display().to_string(),
        "kind": "lora",
        "architecture": adapter.architecture,
        "alpha": adapter.alpha,
        "pairs": pairs,
        "layers": adapter.layers(),
        "passed_over": adapter.skipped,
        "invocation_tokens": adapter.invocation_tokens,
        "runs_in_llama_cpp": true,
        "other": other,
        "provenance": provenance,
    })
}
