//! `bidpo merge`: a model with LoRA adapters in its weights, for programs that load no adapters.

use super::calibrate::n_passages;
use crate::args::outputs::{self, Kind};
use crate::args::steering::{Scale, VectorArg, each_lora};
use crate::args::{ModelArgs, names};
use crate::terminal::interrupt::stop_flag;
use crate::terminal::streams;
use anyhow::{Context as _, bail, ensure};
use bidpo_core::adapter::{AdapterFile, merge};
use bidpo_core::eval::price::Price;
use bidpo_core::steer::{ScaledVector, SteeringVector, combine};
use ggml_grad::llama::{Model, ModelParams};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Options of `bidpo merge`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// LoRA adapter (GGUF), at scale 1; FILE:SCALE gives another scale. Can be repeated.
    #[arg(long = "lora", value_name = "FILE.gguf[:SCALE]", required = true)]
    loras: Vec<VectorArg>,
    /// Merged model (GGUF).
    #[arg(long, short = 'o', value_name = "FILE.gguf")]
    output: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let passages = n_passages()?;
    let mut loras = Vec::new();
    for VectorArg { path, scale } in each_lora(&args.loras)? {
        let scale = match scale.unwrap_or(Scale::Factor(1.0)) {
            Scale::Factor(scale) => scale,
            Scale::Percent(_) => bail!("--lora {}: an adapter has no scale in percent: give a number", path.display()),
        };
        ensure!(scale != 0.0, "--lora {}: at scale 0 there is nothing to merge", path.display());
        loras.push((names::vector(&path, &args.model.model)?, scale));
    }
    let inputs: Vec<_> = loras.iter().map(|(path, _)| path.as_path()).chain([args.model.model.as_path()]).collect();
    outputs::check(&args.output, Kind::MergedModel, &inputs)?;
    let model = args.model.load()?;
    let n_threads = args.model.threads();
    let (mut dials, mut adapters) = (Vec::new(), Vec::new());
    for (path, scale) in &loras {
        // llama.cpp's own loader looks at it first.
        let vector = Arc::new(SteeringVector::open_adapter(path, &model)?);
        dials.push(ScaledVector { name: path.display().to_string(), vector, scale: *scale });
        adapters.push((AdapterFile::load(path)?, *scale));
    }
    let Some(control) = combine(&dials, None, &model)? else {
        bail!("the adapters cancel each other: nothing to merge")
    };
    let merged = merge(model.path(), &adapters, &args.output)?;
    let mut types: BTreeMap<String, usize> = BTreeMap::new();
    for tensor in &merged {
        let change = match tensor.from == tensor.to {
            true => tensor.to.name(),
            false => format!("{} instead of {}, to which ggml cannot quantize", tensor.to.name(), tensor.from.name()),
        };
        *types.entry(change).or_default() += 1;
    }
    // The same file as a model: what quantizing again has cost, beside what the adapter does.
    let params = ModelParams { plain_weights: true, ..ModelParams::default() };
    let new = Model::load(&args.output, &params).with_context(|| args.output.display().to_string())?;
    let interrupt = stop_flag("stopping: the merged file is written and stays")?;
    let cost = Price::between(&model, &control, &new, passages, n_threads, &interrupt)?;
    let own = Price::measure(&model, &control, passages, n_threads, &interrupt)?;
    ensure!(
        cost.passages > 0,
        "{} is written, and the model's predictions are not finite under it: is the adapter's scale too large?",
        args.output.display()
    );
    if args.json {
        streams::out_json(format_args!(
            "{:#}",
            json!({
                "output": args.output.display().to_string(),
                "tensors": merged.len(),
                "types": types,
                "cost": cost,
                "adapter": own,
            })
        ));
        return Ok(ExitCode::SUCCESS);
    }
    let list: Vec<String> = types.iter().map(|(to, n)| format!("{n} as {to}")).collect();
    println!("written: {} ({} tensors changed: {})", args.output.display(), merged.len(), list.join(", "));
    println!(
        "Quantizing again, on {} neutral passages ({} tokens): KL(adapter || merged) {} nats a token, {:.1} % of the tokens have another \
         most probable prediction. The adapter itself: KL(model || adapter) {} nats a token.",
        cost.passages,
        cost.tokens,
        cost.kl_in_words(),
        100.0 * cost.changed_top_tokens.value,
        own.kl_in_words()
    );
    if cost.kl_per_token.value > 0.5 * own.kl_per_token.value {
        eprintln!(
            "bidpo: warning: quantizing again moves the model by more than half of what the adapter does: merge into a model of a \
             finer type (Q8_0, F16), or load the adapter instead"
        );
    }
    Ok(ExitCode::SUCCESS)
}
