//! `bidpo calibrate`: the range of scales within which a vector leaves neutral text nearly as it is.

use crate::args::ModelArgs;
use crate::args::names;
use crate::args::outputs::{self, Kind};
use crate::args::steering::{load_vector, measure_residual_norms, say_doubts};
use crate::terminal::interrupt::stop_flag;
use crate::terminal::streams;
use anyhow::{Context as _, bail, ensure};
use bidpo_core::data::ChatTemplate;
use bidpo_core::eval::calibrate::{BUDGET, Calibrated, Calibration};
use bidpo_core::eval::price::{Price, neutral_passages};
use bidpo_core::steer::{Convention, Format, LoadedVector, ModelIdentity, ScaledVector, SteeringVector};
use ggml_grad::files::{check_writable, display_name, same_file};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Options of `bidpo calibrate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The vector, of any kind; also a part of the name of one in ./vectors.
    #[arg(value_name = "FILE")]
    vector: PathBuf,
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
    let loaded = load_vector(&file, None, args.convention)?;
    let out = output(&args, &file, &loaded)?;
    let model = args.model.load()?;
    let n_threads = args.model.threads();
    say_doubts(&file, &loaded.vector, &model);
    let mut dial = ScaledVector { name: display_name(&file), vector: Arc::new(loaded.vector), scale: 1.0 };
    measure_residual_norms(&mut dial, &model, n_threads)?;
    let identity = ModelIdentity::of(&model).with_context(|| format!("hashing {}", model.path().display()))?;
    let interrupt = stop_flag("stopping: the file stays as it is; press Ctrl-C again to stop at once")?;
    let of = Calibration { model: &model, budget: args.budget, passages, n_threads, interrupt: &interrupt };
    let mut vector = Arc::unwrap_or_clone(dial.vector);
    let here = || file.display().to_string();
    let scope = ChatTemplate::scoped_by(None, &vector.scope, &model).with_context(here)?;
    let found = of.measure(&SteeringVector { scope, ..vector.clone() }, &mut say_scale).with_context(here)?;
    found.record(&mut vector, &identity.sha256);
    vector.save(&out)?;
    print(&args, &file, &out, &found);
    Ok(ExitCode::SUCCESS)
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
