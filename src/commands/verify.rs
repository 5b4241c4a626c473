//! `bidpo verify`: does anyone's vector or adapter do on this model what it is meant to do?

use super::calibrate::n_passages;
use crate::args::data::DataArgs;
use crate::args::steering::{Scale, load_scaled_vector};
use crate::args::template::VariableArgs;
use crate::args::{ModelArgs, names};
use crate::terminal::interrupt::stop_flag;
use crate::terminal::streams;
use anyhow::Context as _;
use bidpo_core::data::{ChatTemplate, TemplateChoice, Think};
use bidpo_core::steer::{Convention, ScaledVector, warnings};
use bidpo_core::train::encode_pair;
use bidpo_core::verify::{Belongs, Block, Verification, Verified};
use ggml_grad::files::sha256_of_file;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of `bidpo verify`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The vector (of any kind and maker) or LoRA adapter; also a part of the name of one in ./vectors.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Preference pairs whose chosen answers the file should make likelier (a file or a built-in set): tells the sign, and for
    /// vectors the layers that the directions belong to.
    #[arg(long, value_name = "FILE")]
    pairs: Option<PathBuf>,
    /// The most pairs to read.
    #[arg(long, value_name = "N", default_value_t = 32, requires = "pairs", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Layer convention of direction.N: output (of block N: bidpo, repeng) or generator (output of block N - 1: llama.cpp's
    /// cvector-generator).
    #[arg(long, value_name = "C", default_value_t = Convention::Output)]
    convention: Convention,
    /// Chat format of the pairs: auto (the model's own), none, a known name, or a Jinja file.
    #[arg(long, value_name = "T", default_value_t = TemplateChoice::Auto)]
    template: TemplateChoice,
    #[command(flatten)]
    variables: VariableArgs,
    #[command(flatten)]
    data: DataArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let passages = n_passages()?;
    let file = names::vector(&args.file, &args.model.model)?;
    let model = args.model.load()?;
    let n_threads = args.model.threads();
    let mut dial = load_scaled_vector(&file, None, Scale::Factor(1.0), args.convention, &model, n_threads)?;
    let template = args.variables.open(&model, &args.template, Think::Auto)?;
    if dial.vector.scope.reads_thoughts() {
        let scope = ChatTemplate::scoped_by(Some(&template), &dial.vector.scope, &model)
            .with_context(|| file.display().to_string())?;
        std::sync::Arc::make_mut(&mut dial.vector).scope = scope;
    }
    let mut pairs = Vec::new();
    if let Some(source) = &args.pairs {
        let set = args.data.open(source).with_context(|| format!("--pairs {}", source.display()))?;
        for pair in set.pairs.iter().take(args.limit as usize) {
            pairs.push(encode_pair(pair, &model, &template, None)?);
        }
    }
    let interrupt = stop_flag("stopping")?;
    let verification = Verification { model: &model, passages, pairs: &pairs, n_threads, interrupt: &interrupt };
    let found = verification.check(&dial).with_context(|| file.display().to_string())?;
    let doubts = warnings(&dial.vector, &model);
    if args.json {
        streams::out_json(format_args!("{:#}", to_json(&file, &dial, &found, &doubts, model.path())?));
    } else {
        print!("{}", to_text(&file, &dial, &found, &doubts, model.path()));
    }
    Ok(if found.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `LoRA adapter of rank 4`, `vector of kind gate`.
fn kind(dial: &ScaledVector) -> String {
    match &dial.vector.adapter {
        Some(adapter) => format!("LoRA adapter of {}", adapter.rank_in_words()),
        None => format!("vector of kind {}", dial.vector.kind().name()),
    }
}

fn to_text(file: &Path, dial: &ScaledVector, found: &Verified, doubts: &[String], model: &Path) -> String {
    let mut out = format!("{} ({}) on {}\n", file.display(), kind(dial), model.display());
    let mut line =
        |label: &str, text: String| out.push_str(&format!("  {label:<14} {}\n", bidpo_core::chat::printable(&text)));
    let effect = &found.effect;
    line("parts", format!("{} of {} take effect", effect.n_acting(), effect.parts.len()));
    line("logits", format!("the largest changes by {:.4} on a short text at scale 1", effect.largest_change));
    if let Some(price) = &found.price {
        line("strength", price.in_words_of("scale 1", "neutral passages", ""));
    }
    match &found.sign {
        Some(sign) => {
            let interval =
                sign.interval.as_ref().map_or_else(String::new, |i| format!(" [{:+.3}, {:+.3}]", i.lo, i.hi));
            line(
                "sign",
                format!(
                    "chosen answers gain {:+.3}{interval} nats a pair over rejected ones at scale +1 (n = {}, {} gain)",
                    sign.change, sign.n, sign.gained
                ),
            );
        }
        None => line("sign", "not checked: --pairs FILE gives pairs to tell it by".to_owned()),
    }
    match &found.layers {
        Some(fit) => line(
            "layers",
            format!(
                "{} (mean |cosine| with the pairs' activations over {} layers: {}{})",
                fit.in_words(),
                fit.n_layers,
                fit.cosines.iter().map(|(b, c)| format!("{} {c:.3}", b.in_words())).collect::<Vec<_>>().join(", "),
                fit.lead().map_or_else(String::new, |lead| format!(
                    "; lead {:+.3} [{:+.3}, {:+.3}], 99 %, over {} {}",
                    lead.mean,
                    lead.interval.lo,
                    lead.interval.hi,
                    lead.n,
                    lead.over.in_words()
                ))
            ),
        ),
        None if dial.vector.is_control_vector() => {
            line("layers", "not checked: --pairs FILE gives activations to compare with".to_owned());
        }
        None => {}
    }
    for doubt in doubts {
        line("note", doubt.clone());
    }
    for problem in &found.problems {
        line("problem", problem.to_string());
    }
    line("verdict", if found.problems.is_empty() { "no problem found" } else { "do not use it as it is" }.to_owned());
    out
}

fn to_json(
    file: &Path,
    dial: &ScaledVector,
    found: &Verified,
    doubts: &[String],
    model: &Path,
) -> anyhow::Result<Value> {
    let parts: Vec<Value> = found.effect.parts.iter().map(|p| json!({"name": p.name, "acts": p.acts})).collect();
    let sign = found.sign.as_ref().map(|s| {
        let interval = s.interval.as_ref().map(|i| [i.lo, i.hi]);
        json!({"change": s.change, "interval": interval, "n": s.n, "gained": s.gained})
    });
    let layers = found.layers.as_ref().map(|f| {
        json!({
            "block_n": f.cosines.get(&Block::Own),
            "block_n_minus_1": f.cosines.get(&Block::Below),
            "block_n_plus_1": f.cosines.get(&Block::Above),
            "signed": f.signed,
            "n_layers": f.n_layers,
            "belongs_to": match f.belongs {
                Belongs::To(block, _) => Some(block.in_words()),
                Belongs::Unlike | Belongs::CannotTell(_) => None,
            },
            "lead": f.lead().map(|lead| json!({
                "value": lead.mean,
                "interval": [lead.interval.lo, lead.interval.hi],
                "level": 0.99,
                "over": lead.over.in_words(),
                "n": lead.n,
            })),
            "verdict": f.in_words(),
        })
    });
    let largest = found.effect.largest_change;
    Ok(json!({
        "file": file.display().to_string(),
        "sha256": sha256_of_file(file).with_context(|| file.display().to_string())?,
        "model": model.display().to_string(),
        "kind": if dial.vector.adapter.is_some() { "lora" } else { dial.vector.kind().name() },
        "parts": parts,
        "largest_logit_change": largest.is_finite().then_some(largest),
        "price": found.price,
        "sign": sign,
        "layers": layers,
        "notes": doubts,
        "problems": found.problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "ok": found.problems.is_empty(),
    }))
}
