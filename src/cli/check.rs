//! `bidpo check`: is the engine right for this model?

use anyhow::Context as _;
use bidpo::check::{Differences, F32Copy, Gold, GoldResult, builtin_pairs, central_differences, middle_layer};
use bidpo::data::TokenizedPair;
use bidpo::train::{Agreement, Engine, check_model};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `bidpo check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: super::ModelArgs,
    /// Layer to check [default: the middle one].
    #[arg(long, short = 'l', value_name = "L")]
    layer: Option<usize>,
    /// Reference files to compare with (log-probabilities, loss and gradient computed elsewhere).
    #[arg(long, value_name = "FILE.json", num_args = 1..)]
    gold: Vec<PathBuf>,
    /// Leave out what needs an F32 copy of the model (4 bytes a parameter in the temporary folder).
    #[arg(long)]
    no_f32: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Largest relative error of the gradient against central differences. SiLU models reach 2e-4; GELU ones 1e-2, because
/// ggml evaluates GELU through a table of 16-bit floats, a staircase of its own.
fn difference_limit(gelu: bool) -> f64 {
    if gelu { 3e-2 } else { 2e-3 }
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let golds = args.gold.iter().map(|p| Gold::load(p)).collect::<Result<Vec<_>, _>>()?;
    let model = args.model.load()?;
    let threads = args.model.threads();
    let layer = args.layer.unwrap_or_else(|| middle_layer(&model));
    check_model(&model, layer)?;

    let pairs = builtin_pairs(&model)?;
    let refs: Vec<&TokenizedPair> = pairs.iter().collect();
    let max = pairs.iter().map(TokenizedPair::n_tokens).sum();
    let mut engine = Engine::new(&model, &[layer], max, pairs.len(), threads)?;
    let example = engine.capture(&refs)?;
    let agreement = engine.compare(&refs, &example)?;
    let gelu = example.ops.keys().any(|op| op.contains("GEGLU") || op.contains("GELU"));

    let copy = if args.no_f32 {
        None
    } else {
        eprintln!("making an f32 copy of {} ...", model.path().display());
        Some(F32Copy::new(&model, threads).context("making the f32 copy (--no-f32 leaves out what needs it)")?)
    };
    let differences = match &copy {
        Some(copy) => {
            let mut engine = Engine::new(copy.model(), &[layer], max, pairs.len(), threads)?;
            let example = engine.capture(&refs)?;
            Some(central_differences(&mut engine, &example, 6, 1)?)
        }
        None => None,
    };
    let mut results: Vec<GoldResult> = Vec::new();
    for gold in &golds {
        results.push(gold.compare(&model, false, threads)?);
        if let Some(copy) = &copy {
            results.push(gold.compare(copy.model(), true, threads)?);
        }
    }

    let limit = difference_limit(gelu);
    let exact = agreement.unsteered == 0.0 && agreement.steered == 0.0;
    let moves = agreement.effect > 0.0;
    let smooth = differences.as_ref().is_none_or(|d| d.relative_error <= limit);
    let passed = exact && moves && smooth && results.iter().all(|r| r.passed);
    if args.json {
        let report = json!({
            "model": model.path().display().to_string(),
            "architecture": model.architecture(),
            "layer": layer,
            "ops": example.ops,
            "logits": { "compared": agreement.n_logits, "max_difference": agreement.unsteered,
                        "max_difference_steered": agreement.steered, "effect_of_vector": agreement.effect },
            "gradient": differences.as_ref().map(|d| json!({ "directions": d.directions, "cosine": d.cosine,
                        "relative_error": d.relative_error, "limit": limit })),
            "gold": results,
            "passed": passed,
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{} ({}), layer {layer}", model.path().display(), model.description());
        let ops = example.ops.iter().map(|(op, n)| format!("{op} {n}")).collect::<Vec<_>>().join(", ");
        println!("ops above the layer, each with a gradient rule: {ops}");
        print_agreement(&agreement, exact, moves);
        print_differences(differences.as_ref(), limit);
        for r in &results {
            println!(
                "{} {} ({}): 1 - cosine {:.1e}, relative error {:.1e}, norm ratio {:.4}, log-probabilities within {:.1e}, loss within {:.1e}",
                verdict(r.passed),
                r.file,
                r.mode,
                1.0 - r.cosine,
                r.relative_error,
                r.norm_ratio,
                r.logp_difference,
                r.loss_difference,
            );
        }
        println!("{}", if passed { "all checks passed" } else { "some checks FAILED: do not train on this model" });
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn verdict(passed: bool) -> &'static str {
    if passed { "ok    " } else { "FAILED" }
}

fn print_agreement(a: &Agreement, exact: bool, moves: bool) {
    println!(
        "{} lifted graph against llama_decode: largest difference {:e} without, {:e} with a vector ({} logits each; equality is demanded)",
        verdict(exact),
        a.unsteered,
        a.steered,
        a.n_logits
    );
    println!("{} a vector of 5 % of the residual norm moves logits by up to {:.3}", verdict(moves), a.effect);
}

fn print_differences(d: Option<&Differences>, limit: f64) {
    match d {
        Some(d) => println!(
            "{} gradient against central differences, f32 weights, {} directions, step {} % of the residual norm: relative error {:.1e} (limit {limit:.0e}), cosine {:.8}",
            verdict(d.relative_error <= limit),
            d.directions,
            d.step_percent,
            d.relative_error,
            d.cosine
        ),
        None => println!("skipped: gradient against central differences (--no-f32)"),
    }
}
