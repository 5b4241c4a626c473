//! `bidpo calibrate`: the range of scales within which a vector or an adapter leaves neutral text nearly as it is.

use crate::args::ModelArgs;
use crate::args::names;
use crate::args::outputs::{self, Kind};
use crate::args::steering::{SteeringArgs, VectorArg, load_vector, measure_residual_norms, say_doubts};
use crate::terminal::interrupt::stop_flag;
use crate::terminal::streams;
use anyhow::{Context as _, bail, ensure};
use bidpo_core::adapter::{AdapterFile, AdapterKind};
use bidpo_core::data::ChatTemplate;
use bidpo_core::eval::calibrate::{BUDGET, Calibrated, Calibration};
use bidpo_core::eval::price::{Price, neutral_passages};
use bidpo_core::steer::{Convention, Format, LoadedVector, ModelIdentity, ScaledVector, SteeringVector};
use ggml_grad::files::{check_writable, display_name, same_file};
use ggml_grad::llama::Model;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Options of `bidpo calibrate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The vector, of any kind, or a LoRA adapter; also a part of the name of one in ./vectors.
    #[arg(value_name = "FILE")]
    vector: PathBuf,
    /// LoRA adapter that is loaded on both sides, at scale 1 or FILE:SCALE: KL is measured against the model with it. Can be
    /// repeated.
    #[arg(long = "lora", value_name = "FILE.gguf[:SCALE]")]
    loras: Vec<VectorArg>,
    /// KL(unsteered || steered) on neutral text that the range stays within, nats a token.
    #[arg(long, value_name = "KL", default_value_t = BUDGET, allow_hyphen_values = true, value_parser = budget)]
    budget: f64,
    /// File of the vector with its range [default: the vector's own file, where bidpo wrote it].
    #[arg(long = "output", short = 'o', value_name = "FILE")]
    output: Option<PathBuf>,
    /// Layer convention of direction.N: output (of block N: bidpo, repeng) or generator (output of block N - 1: llama.cpp's
    /// cvector-generator).
    #[arg(long, value_name = "C", default_value_t = Convention::Output)]
    convention: Convention,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// A budget of KL.
///
/// # Errors
/// It is not a positive number.
pub fn budget(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|x| x.is_finite() && *x > 0.0);
    number.ok_or_else(|| format!("{text:?} is not a budget: give nats a token, a number above 0 such as {BUDGET}"))
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let passages = n_passages()?;
    let file = names::vector(&args.vector, &args.model.model)?;
    if AdapterFile::is_one(&file).unwrap_or(false) {
        return adapter(&args, &file, passages);
    }
    let loaded = load_vector(&file, None, args.convention)?;
    let out = output(&args, &file, &loaded)?;
    let model = args.model.load()?;
    let n_threads = args.model.threads();
    say_doubts(&file, &loaded.vector, &model);
    let mut dial = ScaledVector { name: display_name(&file), vector: Arc::new(loaded.vector), scale: 1.0 };
    measure_residual_norms(&mut dial, &model, n_threads)?;
    let identity = ModelIdentity::of(&model).with_context(|| format!("hashing {}", model.path().display()))?;
    let mut vector = Arc::unwrap_or_clone(dial.vector);
    let scope = ChatTemplate::scoped_by(None, &vector.scope, &model).with_context(|| file.display().to_string())?;
    let found = measure(&args, &file, &SteeringVector { scope, ..vector.clone() }, &model, passages)?;
    found.record(&mut vector.provenance, &identity.sha256);
    vector.save(&out)?;
    print(&args, &file, &out, &found);
    Ok(ExitCode::SUCCESS)
}

/// The range of an adapter.
fn adapter(args: &Args, file: &Path, passages: usize) -> anyhow::Result<ExitCode> {
    ensure!(
        args.convention == Convention::Output,
        "{}: it is a LoRA adapter, which has no directions: leave --convention out",
        file.display()
    );
    let mut adapter = AdapterFile::load(file)?;
    let out = args.output.as_deref().unwrap_or(file);
    let in_gguf = out.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    ensure!(in_gguf, "{} would not hold the range: give an -o that ends in .gguf", out.display());
    if !same_file(out, file) {
        outputs::check(out, Kind::Adapter, &[&args.model.model, file])?;
    } else if adapter.provenance.entries.is_empty() {
        bail!(
            "{} was not written by bidpo and stays as it is: give -o FILE.gguf for a copy with the range",
            file.display()
        );
    } else {
        check_writable(file).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let kind = AdapterKind::of_file(file)?;
    let model = args.model.load()?;
    let identity = ModelIdentity::of(&model).with_context(|| format!("hashing {}", model.path().display()))?;
    let vector = SteeringVector::open_adapter(file, &model)?;
    say_doubts(file, &vector, &model);
    let found = measure(args, file, &vector, &model, passages)?;
    found.record(&mut adapter.provenance, &identity.sha256);
    adapter.save(out, kind)?;
    print(args, file, out, &found);
    Ok(ExitCode::SUCCESS)
}

/// Searches the range of a vector or an adapter beside those of --lora.
fn measure(
    args: &Args,
    file: &Path,
    vector: &SteeringVector,
    model: &Arc<Model>,
    passages: usize,
) -> anyhow::Result<Calibrated> {
    let given = SteeringArgs { loras: args.loras.clone(), ..SteeringArgs::default() };
    let beside = given.load(model, None, args.model.threads())?.dials;
    let interrupt = stop_flag("stopping: the file stays as it is; press Ctrl-C again to stop at once")?;
    let of = Calibration {
        model,
        budget: args.budget,
        passages,
        n_threads: args.model.threads(),
        beside: &beside,
        interrupt: &interrupt,
    };
    of.measure(vector, &mut say_scale).with_context(|| file.display().to_string())
}

/// Neutral passages to measure on: all of them. Tests, which train hundreds of vectors, take fewer by BIDPO_NEUTRAL_PASSAGES; the
/// output and the card give their number.
pub fn n_passages() -> anyhow::Result<usize> {
    const VARIABLE: &str = "BIDPO_NEUTRAL_PASSAGES";
    let all = neutral_passages().len();
    let Some(value) = std::env::var_os(VARIABLE) else { return Ok(all) };
    let n = value.to_str().and_then(|v| v.parse().ok()).filter(|n| (2..=all).contains(n));
    n.with_context(|| format!("{VARIABLE} is {value:?}: expected a number from 2 to {all}"))
}

/// Prints a scale with its price on stderr.
pub fn say_scale(scale: f64, price: &Price) {
    let kl = match price.not_finite {
        0 => format!("KL {} nats a token", price.kl_in_words()),
        n => format!("predictions on {n} of {} passages are not finite", n + price.passages),
    };
    eprintln!("scale {:+.4}: {kl}", scale);
}

/// The file to write: that of `--output`, or the vector's own if bidpo wrote it and all of it was read.
fn output(args: &Args, file: &Path, loaded: &LoadedVector) -> anyhow::Result<PathBuf> {
    let out = args.output.as_deref().unwrap_or(file);
    let keeps = matches!(Format::of(out), Format::Gguf | Format::Safetensors);
    ensure!(keeps, "{} would not hold the range: give an -o that ends in .gguf or .safetensors", out.display());
    if !same_file(out, file) {
        outputs::check(out, Kind::Vector, &[&args.model.model, file])?;
        return Ok(out.to_owned());
    }
    let vector = &loaded.vector;
    if vector.is_control_vector() && vector.provenance.entries.is_empty() {
        bail!(
            "{} was not written by bidpo and stays as it is: give -o FILE.gguf for a copy with the range",
            file.display()
        );
    }
    if !loaded.remarks.is_empty() || args.convention != Convention::Output {
        bail!(
            "{} would lose or move directions if it were written again: give -o FILE.gguf for a copy with the range",
            file.display()
        );
    }
    check_writable(file).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file.to_owned())
}

fn print(args: &Args, file: &Path, out: &Path, found: &Calibrated) {
    if args.json {
        streams::out_json(json!({
            "vector": file.display().to_string(),
            "output": out.display().to_string(),
            "budget": found.budget,
            "low": found.low,
            "high": found.high,
            "scales_measured": found.tried,
            "summary": found.in_words(),
        }));
        return;
    }
    println!("{}", found.in_words());
    for end in [&found.low, &found.high] {
        if let Some(price) = &end.price {
            println!("{}", price.in_words_of(&format!("scale {:+.4}", end.scale), "neutral passages", ""));
        }
    }
    println!("written: {}", out.display());
}
