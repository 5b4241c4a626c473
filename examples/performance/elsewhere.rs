//! The step of large models on machines that were not at hand: predictions from what was measured on smaller ones.

use crate::document::duration;
use crate::fit::{Costs, Step};
use crate::plan::{SEVEN, SEVENTY, Sizes};
use bidpo_core::text::numbers::significant;
use ggml_grad::memory::text;
use std::fmt::Write as _;

/// Part of a graph's time in which its threads wait for one another, per further thread: measured with 16 on SmolLM2's shape. The nodes
/// of larger models are longer, so this is cautious.
const WAITING: f64 = 0.09;
/// Threads of the measured points.
const HERE: f64 = 2.0;
/// Operations a second of a step on an H100 80GB: a random 1.1B model's 7,116 and 8,221 tokens/s at layer 11 of 22 (docs/devices.md),
/// four operations a weight above it.
const GPU: f64 = 1.5e13;
/// Bytes of that GPU's memory.
const GPU_BYTES: f64 = 80e9;

/// How many times as fast as one thread `n` are.
fn speed(n: f64) -> f64 {
    n / (1.0 + WAITING * (n - 1.0))
}

/// Seconds of a step of eight pairs, or why there is none.
fn on_gpu(model: &Sizes, layer: usize, tokens: f64) -> String {
    let above = model.above(layer) as f64 * model.block_params() + model.head_params();
    // The file's 4.5 bits a weight, and a transposed copy in BF16 of what is above the layer.
    let bytes = model.params() * 4.5 / 8.0 + 2.0 * above;
    if bytes > GPU_BYTES {
        return format!("does not fit: {} with transposed copies", text(bytes as u64));
    }
    format!("{} s", significant(8.0 * tokens * 4.0 * above / GPU))
}

/// The table.
pub(crate) fn predictions(costs: &Costs) -> String {
    let mut out = format!(
        "\n**Predictions for other machines**, on paper, of the same step. Cores: those of this machine, whose threads wait for one another \
         {:.0} % of a graph's time per further thread, as 16 did on a small model ({:.1} times as fast as one; 64 would be {:.1} \
         times: more cores help large batches that run side by side, not one graph). GPU: an H100 80GB at the rate that it reached \
         on a 1.1B model, pairs one by one ([devices.md](devices.md)); larger models may fill it better.\n\n\
         | model | 16 cores | 64 cores | one 80 GB GPU |\n| --- | --- | --- | --- |\n",
        100.0 * WAITING,
        speed(16.0),
        speed(64.0)
    );
    for model in [SEVEN, SEVENTY] {
        let layer = model.n_layer / 2;
        let step = Step { model, layer, tokens: 160.0, outputs: 100.0 };
        let here = 8.0 * costs.seconds(&step);
        let with = |n: f64| duration(here * speed(HERE) / speed(n));
        let _ =
            writeln!(out, "| {} | {} | {} | {} |", model.name, with(16.0), with(64.0), on_gpu(&model, layer, 160.0));
    }
    out
}
