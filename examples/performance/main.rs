//! Writes docs/performance.md and its plots: how training time and memory grow with tokens, layers and model size, measured
//! on random models; a cost model fitted to that; and what it predicts for models that were not run. `make bench` runs it.
//!
//! `performance OUT.md BENCH.json [PYTORCH.json]` measures and writes everything; with `reuse` in front it writes again from
//! the last measurements. `performance point ...` is one measurement in a process of its own, so that its peak memory is its
//! own.

#![allow(unreachable_pub)] // nothing is reachable from outside a program

mod document;
mod elsewhere;
mod fit;
mod plan;
mod plot;
mod point;

use plan::{Kind, Measurement};
use point::Point;
use std::error::Error;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

/// A point that was measured.
pub struct Measured {
    /// Its settings.
    pub plan: Measurement,
    /// Its result.
    pub point: Point,
}

/// Runs one measurement as a process.
fn run(m: &Measurement, folder: &Path) -> Result<Measured, Box<dyn Error>> {
    let model = plan::model_file(m.model, folder)?;
    let numbers = [m.layer, m.tokens, m.threads].map(|n| n.to_string());
    let output = Command::new(std::env::current_exe()?)
        .arg("point")
        .arg(model)
        .args(numbers)
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("measuring {m:?} failed").into());
    }
    Ok(Measured { plan: *m, point: serde_json::from_slice(&output.stdout)? })
}

fn all(out: &Path, bench: &Path, pytorch: Option<&Path>, reuse: bool) -> Result<(), Box<dyn Error>> {
    let folder = Path::new("target/performance");
    std::fs::create_dir_all(folder)?;
    let bench = serde_json::from_slice(&std::fs::read(bench)?)?;
    let pytorch = match pytorch {
        Some(path) => Some(serde_json::from_slice(&std::fs::read(path)?)?),
        None => None,
    };
    plan::write_models(folder)?;
    let points = folder.join("points.json");
    let plans = plan::all();
    let mut measured = Vec::new();
    if reuse {
        let known: Vec<Point> = serde_json::from_slice(&std::fs::read(&points)?)?;
        measured.extend(plans.iter().zip(known).map(|(plan, point)| Measured { plan: *plan, point }));
    }
    for (i, m) in plans.iter().enumerate().skip(measured.len()) {
        eprintln!(
            "{} of {}: {}, layer {}, {} tokens, {} threads",
            i + 1,
            plans.len(),
            m.model.name,
            m.layer,
            m.tokens,
            m.threads
        );
        measured.push(run(m, folder)?);
    }
    std::fs::write(&points, serde_json::to_vec(&measured.iter().map(|m| m.point).collect::<Vec<_>>())?)?;
    let fitted: Vec<&Measured> = measured.iter().filter(|m| m.plan.kind == Kind::Fit).collect();
    let costs = fit::Costs::fit(&fitted);
    let pictures = out.with_extension("");
    std::fs::create_dir_all(&pictures)?;
    plot::all(&pictures, &measured, &costs)?;
    std::fs::write(out, document::write(&bench, pytorch.as_ref(), &measured, &costs))?;
    Ok(())
}

fn main() -> ExitCode {
    ggml_grad::llama::set_verbose(false);
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args[..] {
        ["point", model, layer, tokens, threads] => point::print(Path::new(model), [layer, tokens, threads]),
        ["reuse", out, bench, pytorch] => all(Path::new(out), Path::new(bench), Some(Path::new(pytorch)), true),
        [out, bench, pytorch] => all(Path::new(out), Path::new(bench), Some(Path::new(pytorch)), false),
        [out, bench] => all(Path::new(out), Path::new(bench), None, false),
        _ => Err("usage: performance [reuse] OUT.md BENCH.json [PYTORCH.json]".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("performance: {error}");
            ExitCode::FAILURE
        }
    }
}
