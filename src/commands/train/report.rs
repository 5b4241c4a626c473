//! Summary of a finished run: lines on stderr, results on stdout.

use super::beside::Beside;
use super::{Args, Files};
use crate::args::data::reading_json;
use crate::terminal::streams;
use bidpo_core::data::Reading;
use bidpo_core::eval::calibrate::Calibrated;
use bidpo_core::eval::price::Price;
use bidpo_core::text::numbers::fixed;
use bidpo_core::train::{HeldOut, SeedSpread, Stop, VectorCard};
use serde_json::json;

/// Prints the summary.
pub(super) fn print(
    args: &Args,
    r: &VectorCard<'_>,
    files: &Files,
    loaded: &Beside,
    reading: &Reading,
) -> anyhow::Result<()> {
    let Files { vector: output, card, checkpoint, .. } = files;
    let t = r.trained;
    let made = if t.summary.adapter.is_some() { "adapter" } else { "vector" };
    match &t.stop {
        Stop::Finished => {}
        Stop::Early => eprintln!("stopped early: the validation loss has not fallen for {} epochs", args.patience),
        Stop::Interrupted => eprintln!(
            "interrupted after step {} of {}: the {made} so far is saved; --resume continues from {}",
            t.steps,
            t.summary.total_steps,
            checkpoint.display()
        ),
        Stop::NotFinite { step, pair } => eprintln!(
            "bidpo: the loss was not finite at step {step}, pair {pair}: stopped; the last good {made}, from step {}, is \
             saved in {}. A smaller --lr or a --clip limit usually helps",
            t.best_step,
            output.display()
        ),
    }
    let largest = r.at_layers().into_iter().fold(0.0, |most, (_, _, percent)| percent.max(most));
    let in_stream = t.summary.adapter.is_none_or(|a| a.with_vectors);
    if in_stream && largest > 100.0 {
        eprintln!(
            "warning: the vector has a larger norm than the residual stream it is added to ({:.3e} times its median \
             norm): text will fall apart at scale 1. Train with a smaller --lr, or add --renorm 5%",
            largest / 100.0
        );
    }
    if t.beats_untrained() == Some(false) {
        eprintln!(
            "warning: no epoch beat the untrained model on the validation pairs (lowest loss {:.4}, untrained {:.4}): the {made} \
             of step {} is kept, but it is not worth using",
            t.best_valid_loss().unwrap_or(f64::NAN),
            t.untrained_loss,
            t.best_step
        );
    }
    if let Some(retained) = t.retained.filter(|r| r.met() == Some(false)) {
        eprintln!(
            "warning: the budget of the retained texts was not met: KL {:.4} nats a token, budget {}. Take more epochs, a higher \
             --retain-weight to begin with, or --kind gate",
            retained.kl,
            retained.budget.unwrap_or_default()
        );
    }
    if args.json {
        let stop = match &t.stop {
            Stop::Finished => json!("finished"),
            Stop::Early => json!("early"),
            Stop::Interrupted => json!("interrupted"),
            Stop::NotFinite { step, pair } => json!({ "not_finite": { "step": step, "pair": pair } }),
        };
        let layers: Vec<_> = r
            .at_layers()
            .into_iter()
            .map(|(at, norm, percent)| {
                json!({
                    "layer": at.layer,
                    "norm": norm,
                    "norm_percent": percent,
                    "norm_percent_of_mean": 100.0 * norm / at.mean_norm,
                    "residual_norm_median": at.median_norm,
                    "residual_norm_mean": at.mean_norm,
                    "lr": at.lr,
                })
            })
            .collect();
        // The values of a layer are also given outside the list where there is only one layer.
        let only = match t.summary.layers[..] {
            [at] => Some(at),
            _ => None,
        };
        let summary = json!({
            "vector": output.display().to_string(),
            "card": card.display().to_string(),
            "kind": r.config.kind_name(),
            "adapter": t.summary.adapter,
            "adapter_norm": t.summary.adapter.map(|_| r.adapter_norm()),
            "vector_beside": files.beside.as_ref().map(|path| path.display().to_string()),
            "scope": r.config.scope.to_string(),
            "layer": only.map(|at| at.layer),
            "layers": layers,
            "norm": r.norm(),
            "norm_percent": r.percent(),
            "norm_percent_of_mean": r.percent_of_mean(),
            "residual_norm_median": only.map(|at| at.median_norm),
            "residual_norm_mean": only.map(|at| at.mean_norm),
            "lr": only.map(|at| at.lr),
            "steps": t.steps,
            "best_step": t.best_step,
            "untrained_loss": t.untrained_loss,
            "beats_untrained": t.beats_untrained(),
            "threads": r.threads,
            "cpu": r.cpu,
            "data": reading_json(reading),
            "split_by": r.split_by.name(),
            "pairs": { "train": r.split[0], "valid": r.split[1], "test": r.split[2] },
            "stop": stop,
            "history": t.history,
            "heldout": r.heldout.map(HeldOut::rows),
            "summary": r.heldout.map(HeldOut::in_words),
            "random": r.heldout.and_then(HeldOut::random_range),
            "baseline_prompt": r.baseline_prompt,
            "retained": t.retained,
            "beside": loaded.files,
            "price": r.price,
            "price_summary": r.price.map(Price::in_words),
            "seeds": r.seeds,
            "seeds_summary": r.seeds.map(SeedSpread::in_words),
            "safe_range": r.range,
            "safe_range_summary": r.range.map(Calibrated::in_words),
        });
        streams::out_json(serde_json::to_string_pretty(&summary)?);
        return Ok(());
    }
    let adapter = t.summary.adapter.as_ref();
    let (percent, of_mean) = (fixed(r.percent(), 2), fixed(r.percent_of_mean(), 2));
    let norm = match r.config.layers.len() {
        1 => format!("norm {} ({percent} % of the median residual norm, {of_mean} % of the mean)", fixed(r.norm(), 3)),
        n => format!("{percent} % of the median residual norm, {of_mean} % of the mean (averaged over {n} layers)"),
    };
    match adapter {
        Some(adapter) => println!(
            "{}: adapter of {}, norm of all changes {}, from step {} of {}",
            output.display(),
            adapter.in_words(),
            fixed(r.adapter_norm(), 4),
            t.best_step,
            t.steps
        ),
        None => {
            let layers = r.config.layers.labelled();
            println!("{}: {layers}, {norm}, from step {} of {}", output.display(), t.best_step, t.steps);
        }
    }
    if let Some(beside) = &files.beside {
        println!("{}: the vector trained with it, {}, {norm}", beside.display(), r.config.layers.labelled());
    }
    println!("{} thread{}, kernels for {}", r.threads, if r.threads == 1 { "" } else { "s" }, r.cpu);
    if let Some(h) = r.heldout {
        println!("\nOn {} test pairs:\n\n{}\n{}", r.split[2], h.table(), h.in_words());
    } else if t.complete() {
        println!("\nNo test pairs were held out: whether the {made} does what it was trained for was not measured.");
    }
    if let Some(spread) = r.seeds {
        println!("\n{}", spread.in_words());
    }
    if let Some(retained) = t.retained {
        println!("\n{}", retained.in_words());
    }
    if let Some(price) = r.price {
        println!("\n{}", price.in_words());
    }
    if let Some(range) = r.range {
        println!("\n{}", range.in_words());
    }
    println!();
    println!("card: {}", card.display());
    let (loaded_here, loaded_there) = (loaded.options(), loaded.llama_options());
    if adapter.is_some() {
        let beside = files.beside.as_ref().map(|path| format!(" --vector {}", path.display())).unwrap_or_default();
        let (model, output) = (args.model.model.display(), output.display());
        println!("chat: bidpo chat --model {model} --lora {output}{beside}{loaded_here}");
        let vector = files.beside.as_ref().map(|path| format!(" --control-vector-scaled {}:1.0", path.display()));
        println!("llama.cpp: llama-cli -m {model} --lora {output}{}{loaded_there}", vector.unwrap_or_default());
        return Ok(());
    }
    let scale = if loaded.files.is_empty() { " --scale 1" } else { ":1" };
    println!(
        "chat: bidpo chat --model {} --vector {}{scale}{loaded_here}",
        args.model.model.display(),
        output.display()
    );
    if r.is_control_vector() {
        println!(
            "llama.cpp: llama-cli -m {} --control-vector-scaled {}:1.0{loaded_there}",
            args.model.model.display(),
            output.display()
        );
    } else {
        println!(
            "llama.cpp cannot run it: bidpo vector export --constant {} -o FILE.gguf writes what it can run",
            output.display()
        );
    }
    Ok(())
}
