//! `bidpo self-test`: the checks of the engine on small random models, for a build or a machine that is new.

use crate::terminal::streams;
use anyhow::Context as _;
use bidpo_core::check::{CheckReport, Checks, F32Copy, LIMIT, builtin_pairs, check, middle_layer};
use ggml_grad::llama::{DType, Model, ModelParams, default_threads};
use ggml_grad::synth;
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;

/// Family and weight type of each model: dense, with sliding windows and norms behind the sublayers, with experts.
const MODELS: [(&str, &str); 3] = [("llama", "q4_k"), ("gemma3", "q8_0"), ("qwen3moe", "q5_0")];

/// Options of `bidpo self-test`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// CPU threads [default: all cores, at most 16].
    #[arg(long, short = 't', value_name = "N", value_parser = clap::value_parser!(u32).range(1..=512))]
    threads: Option<u32>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let threads = args.threads.unwrap_or_else(default_threads);
    let folder = tempfile::tempdir().context("making a temporary folder for the random models")?;
    let mut reports = Vec::new();
    let mut passed = true;
    for (family, dtype) in MODELS {
        let path = folder.path().join(format!("{family}.gguf"));
        let (report, line, ok) =
            one(&path, family, dtype, threads).with_context(|| format!("the random {family} model"))?;
        passed &= ok;
        if !args.json {
            println!("{} {line}", if ok { "ok    " } else { "FAILED" });
        }
        reports.push(report);
    }
    if args.json {
        streams::out_json(serde_json::to_string_pretty(&json!({ "models": reports, "passed": passed }))?);
    } else {
        println!(
            "{}",
            if passed {
                "this build computes right on this machine"
            } else {
                "this build must not be used on this machine"
            }
        );
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Writes the model and checks it: the report, a line about it, and whether all checks passed.
fn one(path: &Path, family: &str, dtype: &str, threads: u32) -> anyhow::Result<(serde_json::Value, String, bool)> {
    let family = synth::family(family)?;
    let dtype = DType::from_name(dtype).with_context(|| format!("there is no type {dtype} of weights"))?;
    synth::write(path, family, &family.shape(), dtype, 1)?;
    let model = Model::load(path, &ModelParams { plain_weights: true, ..ModelParams::default() })?;
    let copy = F32Copy::new(&model).context("making the f32 copy")?;
    let checks = check(&model, Some(copy.model()), &[middle_layer(&model)], &builtin_pairs(&model)?, threads)?;
    let report = CheckReport::new(&model, &checks, &[]);
    let line = format!("{}, {}: {}", family.name(), dtype.name(), found(&checks));
    Ok((serde_json::to_value(&report)?, line, report.passed()))
}

/// What was found, in words.
fn found(checks: &Checks) -> String {
    let Some(engine) = &checks.engine else {
        let missing: Vec<&str> = checks.survey.missing().collect();
        return format!("no gradient rule for {}", missing.join(", "));
    };
    let gradient = engine.differences.as_ref().map_or_else(String::new, |d| {
        format!(", gradient within {:.1e} of central differences (limit {LIMIT:.0e})", d.relative_error)
    });
    let differ = engine.agreement.unsteered.max(engine.agreement.steered);
    format!("largest difference of {} logits from llama_decode's {differ:.0e}{gradient}", engine.agreement.n_logits)
}
