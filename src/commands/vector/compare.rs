//! `bidpo vector compare`: do vectors point the same way?

use super::words::significant;
use crate::terminal::streams;
use bidpo_core::steer::{SteeringVector, VectorComparison};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;

/// Prints each pair of the vectors.
pub fn compare(files: &[PathBuf], vectors: &[SteeringVector], as_json: bool) -> anyhow::Result<ExitCode> {
    let mut pairs = Vec::new();
    for i in 0..files.len() {
        for j in i + 1..files.len() {
            pairs.push((i, j, vectors[i].compare(&vectors[j])?));
        }
    }
    if as_json {
        let list: Vec<Value> = pairs
            .iter()
            .map(|(i, j, c)| json!({ "a": name(&files[*i]), "b": name(&files[*j]), "comparison": to_json(c) }))
            .collect();
        streams::out_json(serde_json::to_string_pretty(&list)?);
        return Ok(ExitCode::SUCCESS);
    }
    for (n, (i, j, c)) in pairs.iter().enumerate() {
        if n > 0 {
            println!();
        }
        println!("a: {}\nb: {}", name(&files[*i]), name(&files[*j]));
        print!("{}", to_text(c));
    }
    Ok(ExitCode::SUCCESS)
}

fn name(file: &std::path::Path) -> String {
    file.display().to_string()
}

fn to_text(c: &VectorComparison) -> String {
    let cosine = |x: Option<f64>| x.map_or_else(|| "-".to_owned(), |x| format!("{x:+.4}"));
    let norm = |x: Option<f64>| x.map_or_else(|| "-".to_owned(), significant);
    let mut out = format!("{:>7}  {:>9}  {:>10}  {:>10}\n", "layer", "cosine", "norm of a", "norm of b");
    let mut line = |label: &str, cos, a, b| {
        out += &format!("{label:>7}  {:>9}  {:>10}  {:>10}\n", cosine(cos), norm(a), norm(b));
    };
    for l in &c.layers {
        line(&l.layer.to_string(), l.cosine, l.norms.0, l.norms.1);
    }
    line("all", c.cosine, Some(c.norms.0), Some(c.norms.1));
    out
}

fn to_json(c: &VectorComparison) -> Value {
    let layers: Vec<Value> = c
        .layers
        .iter()
        .map(|l| json!({ "layer": l.layer, "cosine": l.cosine, "norm_a": l.norms.0, "norm_b": l.norms.1 }))
        .collect();
    json!({ "cosine": c.cosine, "norm_a": c.norms.0, "norm_b": c.norms.1, "layers": layers })
}
