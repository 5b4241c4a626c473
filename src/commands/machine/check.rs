//! `bidpo check`: checks of the engine on a model.

use crate::args::kinds::KindChoice;
use crate::terminal::streams;
use anyhow::{Context as _, bail};
use bidpo_core::check::{
    BatchCheck, CheckReport, Checks, DEVICE_COSINE, EngineChecks, F32Copy, Gold, GoldResult, LIMIT, PartDifference,
    adapter_differences, builtin_pairs, check, kind_differences, long_pair, middle_layer,
};
use bidpo_core::engine::{DEVICE_LIMIT, check_model};
use bidpo_core::intervention::{LoraSpec, Scope};
use bidpo_core::layers::Layers;
use bidpo_core::train::Precision;
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `bidpo check`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: crate::args::ModelArgs,
    /// Layer to check [default: the middle one].
    #[arg(long, short = 'l', value_name = "L")]
    layer: Option<usize>,
    /// Several layers at once, as `train --layers` steers them: 10-20, or 5,9,12-14.
    #[arg(long, value_name = "LIST", conflicts_with = "layer")]
    layers: Option<Layers>,
    /// Reference files to compare with (log-probabilities, loss and gradient computed elsewhere).
    #[arg(long, visible_alias = "reference", value_name = "FILE.json", num_args = 1..)]
    gold: Vec<PathBuf>,
    /// Check with one pair of N tokens (prompt and both answers) instead of three short ones. Says what memory a gradient
    /// over that many takes.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(4..=1_000_000))]
    tokens: Option<u32>,
    /// Check the gradient of every parameter of a kind of intervention too: gate, linear-gate, prompt-gate, project, clamp or
    /// lowrank (docs/interventions.md), or lora, of rank 8 on the usual matrices of the blocks above the layer.
    #[arg(long, value_name = "KIND", conflicts_with_all = ["layers", "no_f32"])]
    kind: Option<KindChoice>,
    /// Leave out what needs an F32 copy of the model (4 bytes a parameter in the temporary folder).
    #[arg(long)]
    no_f32: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let golds = args.gold.iter().map(|p| Gold::load(p)).collect::<Result<Vec<_>, _>>()?;
    let model = args.model.load()?;
    let threads = args.model.threads();
    let layers = args.layers.clone().unwrap_or_else(|| Layers::one(args.layer.unwrap_or_else(|| middle_layer(&model))));
    for &layer in layers.iter() {
        check_model(&model, layer)?;
    }

    let pairs = match args.tokens {
        Some(n) => vec![long_pair(&model, n as usize)?],
        None => builtin_pairs(&model)?,
    };
    let copy = if args.no_f32 {
        None
    } else {
        eprintln!("making an f32 copy of {} ...", model.path().display());
        Some(F32Copy::new(&model).context("making the f32 copy (--no-f32 leaves out what needs it)")?)
    };
    let checks = check(&model, copy.as_ref().map(F32Copy::model), &layers, &pairs, threads)?;
    let mut golds_compared: Vec<GoldResult> = Vec::new();
    for gold in golds.iter().filter(|_| checks.engine.is_some()) {
        golds_compared.push(gold.compare(&model, false, Precision::default(), threads)?);
        if checks.engine.as_ref().is_some_and(|e| e.rounding.is_some()) {
            golds_compared.push(gold.compare(&model, false, Precision::EXACT, threads)?);
        }
        if let Some(copy) = &copy {
            golds_compared.push(gold.compare(copy.model(), true, Precision::default(), threads)?);
        }
    }
    let mut parts = Vec::new();
    if let (Some(kind), Some(copy), [layer]) = (args.kind, &copy, &layers[..]) {
        parts = match kind {
            KindChoice::Stream(kind) => {
                kind_differences(copy.model(), *layer, &kind.into(), &Scope::ALL, &pairs, threads)?
            }
            KindChoice::Lora => {
                let last = model.n_layer() - 1;
                let blocks = Layers::new((layer + 1).min(last)..=last)?;
                let spec =
                    LoraSpec { rank: 8, alpha: None, targets: Vec::new(), blocks, lr: None, with_vectors: false };
                adapter_differences(copy.model(), &spec, &pairs, threads)?
            }
            KindChoice::LoraAdd => bail!("kind lora+add has the gradients of lora and add: check --kind lora"),
        };
    }
    let report = CheckReport::new(&model, &checks, &golds_compared);
    let passed = report.passed() && parts.iter().all(PartDifference::passed);
    if args.json {
        let mut value = serde_json::to_value(&report)?;
        value["passed"] = passed.into();
        if let Some(kind) = args.kind {
            value["kind"] = serde_json::json!({ "name": kind.to_string(), "parts": parts });
        }
        streams::out_json(serde_json::to_string_pretty(&value)?);
    } else {
        println!("{} ({}), {}", model.path().display(), model.description(), layers.labelled());
        print_ops(&checks);
        if let Some(e) = &checks.engine {
            print_engine(e);
        }
        for r in &golds_compared {
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
        for d in &parts {
            println!(
                "{} gradient of {} ({}, {}) against central differences, f32 weights: {:.6e} and {:.6e}, relative error {:.1e} (limit {LIMIT:.0e})",
                verdict(d.passed()),
                d.part,
                d.applied,
                d.of,
                d.analytic,
                d.numeric,
                d.relative_error
            );
        }
        println!("{}", if passed { "all checks passed" } else { "some checks FAILED: do not train on this model" });
    }
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn verdict(passed: bool) -> &'static str {
    if passed { "ok    " } else { "FAILED" }
}

/// A table of the ops above the layer.
fn print_ops(checks: &Checks) {
    println!("op               count  gradient rule");
    for (name, n) in &checks.survey.ops {
        let rule = if n.missing > 0 {
            "MISSING"
        } else if n.with_rule > 0 {
            "yes"
        } else {
            "not needed: no gradient passes"
        };
        println!("{name:<15} {:>6}  {rule}", n.with_rule + n.not_needed + n.missing);
    }
    let missing: Vec<&str> = checks.survey.missing().collect();
    println!(
        "{} every op that a gradient passes has a rule{}",
        verdict(missing.is_empty()),
        if missing.is_empty() { String::new() } else { format!(", but for {}", missing.join(", ")) }
    );
}

fn print_engine(e: &EngineChecks) {
    let a = &e.agreement;
    println!(
        "{} lifted graph against llama_decode: largest difference {:e} without, {:e} with a vector ({} logits each; {})",
        verdict(e.exact()),
        a.unsteered,
        a.steered,
        a.n_logits,
        if a.on_devices {
            format!(
                "on devices {DEVICE_LIMIT} of their standard deviation is allowed in the mean, they differ by {:.1e}",
                a.relative
            )
        } else {
            "equality is required".into()
        }
    );
    println!("{} a vector of zeros against none: largest difference {:e}", verdict(e.zero_vector_is_noop()), a.zero);
    println!("{} a vector of 5 % of the residual norm moves logits by up to {:.3}", verdict(e.has_effect()), a.effect);
    match &e.differences {
        Some(d) => println!(
            "{} gradient against central differences, f32 weights{}, {} directions, step {} % of the residual norm: relative error {:.1e} (limit {:.0e}), cosine {:.8}{}",
            verdict(e.gradient_matches()),
            if a.on_devices { " on the CPU" } else { "" },
            d.directions,
            d.step_percent,
            d.relative_error,
            LIMIT,
            d.cosine,
            if e.points > 1 {
                format!(" (of {} vectors, the best: the first may lie at a kink)", e.points)
            } else {
                String::new()
            }
        ),
        None => println!("skipped: gradient against central differences (--no-f32)"),
    }
    if let Some(c) = e.cosine_to_f32 {
        println!("       gradient through this file's own kernels against the f32 copy's: cosine {c:.6}");
    }
    if let Some(c) = e.cosine_to_cpu {
        println!(
            "{} gradient on devices against the CPU's: cosine {c:.6} (at least {DEVICE_COSINE})",
            verdict(e.devices_agree())
        );
    }
    match e.rounding {
        Some(r) => println!(
            "       what is rounded for speed (--forward fast, --backward bf16): log-probabilities of whole responses within {:.1e} nats{}, gradient 1 - cosine {:.1e}, relative error {:.1e}",
            r.log_probability,
            r.fused_attention
                .map(|d| format!(
                    " (llama.cpp's fused attention, with keys and values in 16 bits, moves them by up to {d:.1e})"
                ))
                .unwrap_or_default(),
            1.0 - r.cosine,
            r.relative_error
        ),
        None => {
            println!("       nothing is rounded for speed: this CPU, or this type of weights, has no faster kernels")
        }
    }
    match &e.batch {
        BatchCheck::Compared(t) => println!(
            "{} pairs in one batch, as in a training step ({} tokens in {}): log-probabilities differ by {:e} from those of each pair alone (equality is required), gradient 1 - cosine {:.1e}",
            verdict(t.passed()),
            t.rows,
            t.joined_rows,
            t.log_probability,
            1.0 - t.cosine
        ),
        BatchCheck::Skipped(reason) => println!("skipped: batched pairs: {reason}"),
    }
    println!(
        "       a gradient over {} tokens takes {:.1} MB of additional memory",
        e.n_tokens,
        e.step_bytes as f64 / 1e6
    );
    for (device, bytes) in &e.device_bytes {
        println!("       and {:.1} MB on {device}", *bytes as f64 / 1e6);
    }
    let copies = &e.transposed;
    if copies.count > 0 {
        println!(
            "       devices hold transposed copies of {} weights: {:.1} MB in {}",
            copies.count,
            copies.bytes as f64 / 1e6,
            copies.types.join(" and ")
        );
    }
}
