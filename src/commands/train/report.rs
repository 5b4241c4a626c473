//! Summary of a finished run: lines on stderr, results on stdout.

use super::{Args, Files};
use bidpo_core::text::numbers::fixed;
use bidpo_core::train::{HeldOut, Stop, VectorCard};
use serde_json::json;

/// Prints the summary.
pub(super) fn print(args: &Args, r: &VectorCard<'_>, files: &Files) -> anyhow::Result<()> {
    let Files { vector: output, card, checkpoint } = files;
    let t = r.trained;
    match &t.stop {
        Stop::Finished => {}
        Stop::Early => eprintln!("stopped early: the validation loss has not fallen for {} epochs", args.patience),
        Stop::Interrupted => eprintln!(
            "interrupted after step {} of {}: the vector so far is saved; --resume continues from {}",
            t.steps,
            t.summary.total_steps,
            checkpoint.display()
        ),
        Stop::NotFinite { step, pair } => eprintln!(
            "bidpo: the loss was not finite at step {step}, pair {pair}: stopped; the last good vector, from step {}, is \
             saved in {}. A smaller --lr or a --clip limit usually helps",
            t.best_step,
            output.display()
        ),
    }
    let largest = r.at_layers().into_iter().fold(0.0, |most, (_, _, percent)| percent.max(most));
    if largest > 100.0 {
        eprintln!(
            "warning: the vector has a larger norm than the residual stream it is added to ({:.3e} times its median \
             norm): text will fall apart at scale 1. Train with a smaller --lr, or add --renorm 5%",
            largest / 100.0
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
            "layer": only.map(|at| at.layer),
            "layers": layers,
            "norm": r.norm(),
            "norm_percent": r.percent(),
            "residual_norm_median": only.map(|at| at.median_norm),
            "residual_norm_mean": only.map(|at| at.mean_norm),
            "lr": only.map(|at| at.lr),
            "steps": t.steps,
            "best_step": t.best_step,
            "stop": stop,
            "history": t.history,
            "heldout": r.heldout.map(HeldOut::rows),
            "summary": r.heldout.map(HeldOut::in_words),
        });
        println!("{}", serde_json::to_string_pretty(&summary)?);
        return Ok(());
    }
    let percent = fixed(r.percent(), 2);
    let norm = match r.config.layers.len() {
        1 => format!("norm {} ({percent} % of the median residual norm)", fixed(r.norm(), 3)),
        n => format!("{percent} % of the median residual norm (mean over {n} layers)"),
    };
    println!("{}: {}, {norm}, from step {} of {}", output.display(), r.config.layers.words(), t.best_step, t.steps);
    if let Some(h) = r.heldout {
        println!("\nOn {} test pairs:\n\n{}\n{}\n", r.split[2], h.table(), h.in_words());
    }
    println!("card: {}", card.display());
    println!("chat: bidpo chat --model {} --vector {} --scale 1", args.model.model.display(), output.display());
    println!("llama.cpp: llama-cli -m {} --control-vector-scaled {}:1.0", args.model.model.display(), output.display());
    Ok(())
}
