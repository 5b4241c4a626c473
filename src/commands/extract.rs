//! `bidpo extract`: the residual stream of a model, as a safetensors file.

use crate::args::names;
use crate::args::outputs;
use crate::args::steering::{VectorArg, each_lora, load_lora};
use crate::args::template::{VariableArgs, say_notes};
use crate::terminal::interrupt::Interrupt;
use crate::terminal::streams;
use anyhow::{Context as _, ensure};
use bidpo_core::adapter::Adapters;
use bidpo_core::data::{TemplateChoice, Think};
use bidpo_core::eval::results::Shard;
use bidpo_core::extract::{ExtractJob, Positions, read_prompts};
use bidpo_core::layers::{Layers, LayersError};
use bidpo_core::steer::ModelIdentity;
use ggml_grad::files;
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Options of `bidpo extract`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: crate::args::ModelArgs,
    /// Prompts: one per line (.txt), one JSON value per line (.jsonl), or a column prompt, question or text (.csv).
    #[arg(long, short = 'd', value_name = "FILE")]
    data: PathBuf,
    /// Layers to read: all, or for example 15, 10-20 or 5,9,12-14. Layer N is the output of block N, counted from 0; vectors
    /// steer from layer 1 on.
    #[arg(long, value_name = "LIST")]
    layers: WhichLayers,
    /// Token positions to keep: the last of each prompt, all, or the mean over each prompt.
    #[arg(long, value_name = "WHICH", default_value = "last")]
    positions: PositionsArg,
    /// Chat format: none, auto (the model's own), chatml, llama2, llama3, gemma, mistral, zephyr, phi3, or a Jinja file.
    #[arg(long, value_name = "T", default_value_t = TemplateChoice::None)]
    template: TemplateChoice,
    #[command(flatten)]
    variables: VariableArgs,
    /// LoRA adapter (GGUF) under which the model runs, at scale 1; FILE:SCALE gives another scale. Can be repeated.
    #[arg(long = "lora", value_name = "FILE.gguf[:SCALE]")]
    loras: Vec<VectorArg>,
    /// Run only shard i of n: every n-th prompt, from the i-th on. Each shard writes a separate file.
    #[arg(long, value_name = "i/n", default_value_t = Shard::WHOLE)]
    shard: Shard,
    /// Output file.
    #[arg(long, short = 'o', value_name = "FILE.safetensors")]
    output: PathBuf,
    /// Print the norms as JSON on stdout.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum PositionsArg {
    Last,
    All,
    Mean,
}

impl From<PositionsArg> for Positions {
    fn from(arg: PositionsArg) -> Self {
        match arg {
            PositionsArg::Last => Self::Last,
            PositionsArg::All => Self::All,
            PositionsArg::Mean => Self::Mean,
        }
    }
}

/// `all`, or a list.
#[derive(Debug, Clone, PartialEq, Eq)]
enum WhichLayers {
    All,
    These(Layers),
}

impl FromStr for WhichLayers {
    type Err = LayersError;

    fn from_str(text: &str) -> Result<Self, LayersError> {
        if text == "all" { Ok(Self::All) } else { Ok(Self::These(text.parse()?)) }
    }
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let loras = each_lora(&args.loras)?;
    let adapters = loras.iter().map(|lora| names::vector(&lora.path, &args.model.model));
    let adapters = adapters.collect::<anyhow::Result<Vec<PathBuf>>>()?;
    let inputs: Vec<&Path> = adapters.iter().chain([&args.data, &args.model.model]).map(PathBuf::as_path).collect();
    outputs::check(&args.output, outputs::Kind::Activations, &inputs)?;
    let all = read_prompts(&args.data)?;
    let mine: Vec<usize> = args.shard.items(all.len()).collect();
    ensure!(
        !mine.is_empty(),
        "shard {} holds none of the {} prompts of {}",
        args.shard,
        all.len(),
        args.data.display()
    );
    let model = args.model.load()?;
    let template = args.variables.open(&model, &args.template, Think::Auto)?;
    let tokens = mine
        .iter()
        .map(|&i| {
            let place = || format!("{}: prompt {}", args.data.display(), i + 1);
            template.encode_prompt(&model, &all[i]).with_context(place)
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    say_notes(&template, 0);
    let layers = match &args.layers {
        WhichLayers::All => (0..model.n_layer()).collect(),
        WhichLayers::These(layers) => layers.to_vec(),
    };
    if layers.contains(&0) {
        eprintln!("note: layer 0 is read too; no vector can steer it, since llama.cpp steers from layer 1 on");
    }
    let positions = Positions::from(args.positions);
    let identity = ModelIdentity::of(&model).with_context(|| model.path().display().to_string())?;
    let data_sha256 = files::sha256_of_file(&args.data).with_context(|| args.data.display().to_string())?;
    let mut adapters = Adapters::default();
    for lora in &loras {
        let (dial, path) = load_lora(lora, &model)?;
        if let Some(adapter) = &dial.vector.adapter {
            adapters.add(adapter, dial.scale).with_context(|| path.display().to_string())?;
        }
    }
    let mut metadata = BTreeMap::from(
        [
            ("tool", concat!("bidpo ", env!("CARGO_PKG_VERSION"))),
            ("model", &identity.name),
            ("model_architecture", &identity.architecture),
            ("model_quantization", &identity.quantization),
            ("model_sha256", &identity.sha256),
            ("template", &template.described()),
            ("template_sha256", &template.sha256()),
            ("data_sha256", &data_sha256),
            ("data_prompts", &all.len().to_string()),
            ("shard", &args.shard.to_string()),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned())),
    );

    if !adapters.is_empty() {
        let list: Vec<String> = adapters.iter().map(|(a, scale)| format!("{}:{scale}", a.sha256)).collect();
        metadata.insert("lora_sha256_and_scale".to_owned(), list.join(","));
    }
    let bar = ProgressBar::new(mine.len() as u64); // draws on stderr, and only on a terminal
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} prompts, {eta} left")?);
    let interrupt = Interrupt::install(Duration::ZERO)?;
    let job = ExtractJob {
        model: &model,
        layers: &layers,
        prompts: &tokens,
        positions,
        metadata: &metadata,
        adapters: &adapters,
        n_threads: args.model.threads(),
    };
    let stats = interrupt.during(|| {
        job.write(&args.output, &mut |done| {
            bar.set_position(done as u64);
            !interrupt.stop.load(Ordering::Relaxed)
        })
    });
    bar.finish_and_clear();
    let stats = match args.shard {
        Shard::WHOLE => stats?,
        // The library counts the prompts that it was given.
        shard => stats.with_context(|| format!("shard {shard}, its prompts counted by themselves"))?,
    };

    if args.json {
        let layers: Vec<_> = stats
            .iter()
            .map(|(layer, s)| serde_json::json!({"layer": layer, "norm_median": s.median, "norm_mean": s.mean}))
            .collect();
        let summary = serde_json::json!({
            "output": args.output.display().to_string(),
            "positions": positions.name(),
            "n_prompts": mine.len(),
            "n_tokens": tokens.iter().map(Vec::len).sum::<usize>(),
            "layers": layers,
        });
        streams::out_json(format_args!("{summary:#}"));
    } else {
        // Of the last block no more is computed than llama.cpp itself would compute, or little more.
        let except = if positions == Positions::Last { " (last block: some)" } else { "" };
        println!("Norm of the residual stream after each block, over all token positions{except}:");
        println!("{:>5}  {:>10}  {:>10}", "layer", "median", "mean");
        for (layer, s) in &stats {
            println!("{layer:>5}  {:>10.2}  {:>10.2}", s.median, s.mean);
        }
    }
    eprintln!("bidpo: {} prompts, {} layers: {}", mine.len(), stats.len(), args.output.display());
    Ok(ExitCode::SUCCESS)
}
