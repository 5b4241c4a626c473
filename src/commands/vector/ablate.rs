//! `bidpo vector ablate`.

use crate::args::ModelArgs;
use crate::args::names;
use crate::args::outputs::{self, Kind};
use crate::args::steering::{load_vector, say_doubts};
use anyhow::{Context as _, ensure};
use bidpo_core::adapter::{Ablation, AdapterKind};
use bidpo_core::layers::Layers;
use bidpo_core::steer::{Convention, ModelIdentity};
use ggml_grad::files::{display_name, sha256_of_file};
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `bidpo vector ablate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The vector whose direction is taken out; also a part of the name of one in ./vectors.
    #[arg(value_name = "DIRECTION")]
    file: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    /// The layer of the vector whose direction it is [default: the vector's main layer].
    #[arg(long, value_name = "N")]
    layer: Option<usize>,
    /// Only the matrices of these blocks [default: all]: 15, or 10-20 (both ends included), or 5,9,12-14.
    #[arg(long, value_name = "LIST")]
    blocks: Option<Layers>,
    /// Share of the component that is taken out at scale 1.
    #[arg(long, value_name = "S", default_value_t = 1.0, allow_hyphen_values = true)]
    strength: f32,
    /// Layer convention of direction.N: output or generator.
    #[arg(long, value_name = "C", default_value_t = Convention::Output)]
    convention: Convention,
    /// Write 16-bit floats.
    #[arg(long)]
    f16: bool,
    /// Output file (GGUF).
    #[arg(long, short = 'o', value_name = "FILE.gguf")]
    output: PathBuf,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let file = names::vector(&args.file, &args.model.model)?;
    outputs::check(&args.output, Kind::Adapter, &[&file, &args.model.model])?;
    ensure!(
        args.strength.is_finite() && args.strength != 0.0,
        "--strength is {}: give a number other than 0",
        args.strength
    );
    let vector = load_vector(&file, None, args.convention)?.vector;
    let model = args.model.load()?;
    say_doubts(&file, &vector, &model);
    let layer = args.layer.unwrap_or_else(|| vector.main_layer());
    vector.require_control_vector("an ablation").with_context(|| file.display().to_string())?;
    let direction = vector.directions.get(&layer).with_context(|| {
        format!("{} has no direction for layer {layer}: it has layers {:?}", file.display(), vector.layers())
    })?;
    let Ablation { mut adapter, inexact } =
        Ablation::new(model.path(), direction, args.strength, args.blocks.as_ref())?;
    let facts = &mut adapter.provenance;
    facts.set_str("method", "ablation");
    facts.set_str("direction_file", display_name(&file));
    facts.set_str("direction_sha256", sha256_of_file(&file).with_context(|| file.display().to_string())?);
    facts.set_int("direction_layer", layer as i64);
    facts.set_float("strength", f64::from(args.strength));
    facts.set_str("version", env!("CARGO_PKG_VERSION"));
    ModelIdentity::of(&model).with_context(|| format!("hashing {}", model.path().display()))?.record(facts);
    adapter.save(&args.output, if args.f16 { AdapterKind::F16 } else { AdapterKind::F32 })?;
    for reason in &inexact {
        eprintln!("bidpo: note: {reason}");
    }
    println!(
        "written: {} ({} matrices of {} blocks, rank 1)",
        args.output.display(),
        adapter.pairs.len(),
        adapter.layers().len()
    );
    Ok(ExitCode::SUCCESS)
}
