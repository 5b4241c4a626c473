//! What is written beside a vector: its provenance in the file, and a card to read.

use super::config::TrainConfig;
use super::events::Stop;
use super::heldout::HeldOut;
use super::summary::LayerStats;
use super::trainer::Trained;
use crate::engine::CacheType;
use crate::numbers::norm;
use crate::steer::{ModelIdentity, Provenance, TRAINING_CURVE};

/// All that is told about a trained vector.
#[derive(Debug)]
pub struct VectorCard<'a> {
    /// The settings.
    pub config: &'a TrainConfig,
    /// The run.
    pub trained: &'a Trained,
    /// The model.
    pub model: &'a ModelIdentity,
    /// Name of the template and its hash.
    pub template: (&'a str, &'a str),
    /// Name of the data and its hash.
    pub data: (&'a str, &'a str),
    /// Pairs to train on, to validate on, to report on.
    pub split: [usize; 3],
    /// The vector as it is written (renormalised where that was asked for).
    pub vector: &'a [f32],
    /// Figures on held-out pairs, if any were held out.
    pub heldout: Option<&'a HeldOut>,
    /// The system prompt that was compared with, if any.
    pub baseline_prompt: Option<&'a str>,
}

impl VectorCard<'_> {
    fn numbers(&self) -> Vec<f64> {
        self.vector.iter().map(|&x| f64::from(x)).collect()
    }

    /// Length of the vector; with several layers, of all their directions taken as one.
    pub fn norm(&self) -> f64 {
        norm(&self.numbers())
    }

    /// Length in percent of the median residual norm; with several layers, the mean over them.
    pub fn percent(&self) -> f64 {
        self.trained.summary.percent(&self.numbers())
    }

    /// Each layer with the length of its direction, and that in percent of the median residual norm there.
    pub fn at_layers(&self) -> Vec<(&LayerStats, f64, f64)> {
        let ready = &self.trained.summary;
        let lengths = ready.norms(&self.numbers());
        ready.layers.iter().zip(lengths).map(|(at, n)| (at, n, 100.0 * n / at.median_norm)).collect()
    }

    /// The `bidpo.*` keys of the file. Nothing here depends on the clock or the speed of the machine.
    pub fn provenance(&self) -> Provenance {
        let (c, ready) = (self.config, &self.trained.summary);
        let mut p = Provenance::default();
        p.set_str("method", "BiDPO");
        p.set_str("objective", c.objective.to_string());
        p.set_float("beta", c.beta);
        p.set_str("lr_setting", c.learning_rate.to_string());
        p.set_str("schedule", c.schedule.to_string());
        p.set_float("warmup", c.warmup_ratio);
        p.set_float("weight_decay", c.weight_decay);
        p.set_str("forward", c.precision.forward.name());
        p.set_str("backward", c.precision.backward.name());
        p.set_int("batch", c.batch as i64);
        p.set_int("steps", self.trained.steps as i64);
        p.set_int("steps_planned", ready.total_steps as i64);
        p.set_int("best_step", self.trained.best_step as i64);
        p.set_str("stopped", stop_word(&self.trained.stop));
        // [[step, training loss, validation loss or null], ...], as JSON.
        let curve: Vec<_> = self.trained.history.iter().map(|h| (h.step, h.train_loss, h.valid_loss)).collect();
        if let Some(text) = Some(curve).filter(|c| !c.is_empty()).and_then(|c| serde_json::to_string(&c).ok()) {
            p.set_str(TRAINING_CURVE, text);
        }
        if let Some(clip) = c.max_grad_norm {
            p.set_float("clip", clip);
        }
        if let Some(renorm) = c.renorm {
            p.set_float("renorm_percent", renorm);
        }
        if ready.captured_as != CacheType::F32 {
            p.set_str("captured_as", ready.captured_as.name());
        }
        match ready.layers[..] {
            [at] => {
                p.set_float("lr", at.lr);
                p.set_int("layer", at.layer as i64);
                p.set_str("hook_point", format!("residual stream after block {} (l_out-{})", at.layer, at.layer));
                p.set_float("residual_norm_median", at.median_norm);
                p.set_float("residual_norm_mean", at.mean_norm);
            }
            _ => {
                p.set_str("layers", c.layers.to_string());
                p.set_str("hook_point", format!("residual stream after each of the blocks {} (l_out-N)", c.layers));
                for at in &ready.layers {
                    p.set_float(&format!("lr.{}", at.layer), at.lr);
                    p.set_float(&format!("residual_norm_median.{}", at.layer), at.median_norm);
                    p.set_float(&format!("residual_norm_mean.{}", at.layer), at.mean_norm);
                }
            }
        }
        p.set_str("layer_convention", crate::steer::OUTPUT_WORDS);
        p.set_float("norm", self.norm());
        self.model.record(&mut p);
        p.set_str("template_name", self.template.0);
        p.set_str("template_sha256", self.template.1);
        p.set_str("data_name", self.data.0);
        p.set_str("data_sha256", self.data.1);
        p.set_int("pairs_train", self.split[0] as i64);
        p.set_int("pairs_valid", self.split[1] as i64);
        p.set_int("pairs_test", self.split[2] as i64);
        p.set_int("seed", c.seed as i64);
        p.set_str("version", env!("CARGO_PKG_VERSION"));
        if let Some(h) = self.heldout {
            p.set_int("heldout_pairs", self.split[2] as i64);
            for c in &h.conditions {
                let key = key_of(&c.name);
                let i = c.interval();
                p.set_float(&format!("heldout_{key}_accuracy"), c.accuracy());
                p.set_float(&format!("heldout_{key}_low"), i.lo);
                p.set_float(&format!("heldout_{key}_high"), i.hi);
            }
            if let Some(text) = self.baseline_prompt {
                p.set_str("heldout_system_prompt", text);
            }
        }
        p
    }

    /// The card: how the vector was made, what was measured, how to use it. `file` is the vector's file name.
    pub fn card(&self, file: &str) -> String {
        let (c, ready, m) = (self.config, &self.trained.summary, self.model);
        let mut out = format!("# {file}\n\n");
        out += &format!(
            "A steering vector for **{}** ({}, {}), trained by gradient on that quantized model with bidpo {}.\n\n",
            m.name,
            m.architecture,
            m.quantization,
            env!("CARGO_PKG_VERSION")
        );
        out += "## How it was made\n\n";
        out += &format!(
            "| | |\n| --- | --- |\n\
             | objective | {}, beta {} |\n",
            c.objective, c.beta
        );
        let steps: Vec<f64> = ready.layers.iter().map(|at| at.step_percent(ready.n_embd)).collect();
        let rates = spread(ready.layers.iter().map(|at| at.lr), 4);
        out += &match ready.layers[..] {
            [LayerStats { layer, .. }] => format!(
                "| layer | {layer} (added to the output of block {layer}, blocks counted from 0, at every position) |\n"
            ),
            _ => format!(
                "| layers | {}, one direction each, trained together (each added to the output of its block, blocks counted \
                 from 0, at every position) |\n",
                c.layers
            ),
        };
        out += &format!(
            "| optimizer | AdamW, learning rate {rates} ({} % of the residual norm a step{}), {}, warm-up {:.0} %, weight \
             decay {} |\n",
            spread(steps.iter().copied(), 2),
            if steps.len() > 1 { " and layer" } else { "" },
            c.schedule,
            100.0 * c.warmup_ratio,
            c.weight_decay
        );
        out += &format!(
            "| kernels | forward {}, backward {} (docs/performance.md) |\n",
            c.precision.forward.name(),
            c.precision.backward.name()
        );
        out += &format!(
            "| steps | {} of {} planned, {} pairs each; kept: step {} ({}) |\n",
            self.trained.steps,
            ready.total_steps,
            c.batch,
            self.trained.best_step,
            stop_word(&self.trained.stop)
        );
        out += &format!(
            "| data | {} (SHA-256 {}), {} pairs to train on, {} to choose by, {} held out; seed {} |\n",
            self.data.0,
            short(self.data.1),
            self.split[0],
            self.split[1],
            self.split[2],
            c.seed
        );
        out += &format!("| model file | SHA-256 {} |\n", m.sha256);
        out += &format!("| chat template | {} |\n", self.template.0);
        if let [at] = ready.layers[..] {
            out += &format!(
                "| length | {:.3} = {} of the median residual norm ({:.1}; mean {:.1}) at this layer |\n\n",
                self.norm(),
                percent(self.percent()),
                at.median_norm,
                at.mean_norm
            );
        } else {
            out += &format!(
                "| length | {} of the median residual norm, the mean over the layers |\n\n\
                 | layer | length | of the residual norm there | median residual norm | mean |\n\
                 | --- | --- | --- | --- | --- |\n",
                percent(self.percent())
            );
            for (at, length, share) in self.at_layers() {
                out += &format!(
                    "| {} | {length:.3} | {} | {:.1} | {:.1} |\n",
                    at.layer,
                    percent(share),
                    at.median_norm,
                    at.mean_norm
                );
            }
            out += "\n";
        }
        out += "## What was measured\n\n";
        match self.heldout {
            Some(h) => {
                out += &format!(
                    "On {} pairs that took no part in training or in choosing the vector. \"Prefers the chosen answer\": \
                     its summed log-probability is higher than that of the other answer.\n\n{}\n{}\n\n",
                    self.split[2],
                    h.table(),
                    h.in_words()
                );
                if let Some(text) = self.baseline_prompt {
                    out += &format!("The system prompt: \"{text}\"\n\n");
                }
                out += "These are preferences between given answers. They do not show that the model's own free answers \
                        got better, nor what the vector costs elsewhere.\n\n";
            }
            None if self.split[2] > 0 => {
                out += "The run did not finish, so nothing was measured on the held-out pairs.\n\n";
            }
            None => out += "Nothing was held out, so there is no figure to give.\n\n",
        }
        if !self.trained.history.is_empty() {
            let several = ready.layers.len() > 1;
            out += &format!(
                "| after step | training loss | validation loss | validation wins | length{} |\n\
                 | --- | --- | --- | --- | --- |\n",
                if several { ", of the residual norm" } else { "" }
            );
            for h in &self.trained.history {
                let number = |x: Option<f64>| x.map_or("-".into(), |x| format!("{x:.4}"));
                out += &format!(
                    "| {} | {:.4} | {} | {} | {} |\n",
                    h.step,
                    h.train_loss,
                    number(h.valid_loss),
                    h.valid_accuracy.map_or("-".into(), |a| format!("{:.1} %", 100.0 * a)),
                    if several { percent(h.percent) } else { format!("{:.3}", h.norm) }
                );
            }
            out += "\n";
        }
        out += "## How to use it\n\n";
        out += &format!(
            "    bidpo chat --model MODEL.gguf --vector {file} --scale 1\n\
             \x20   llama-cli -m MODEL.gguf --control-vector-scaled {file}:1.0\n\n\
             Scale 1 is {} of the median residual norm{}; negative scales turn the vector round; beyond 2 or 3 text tends to \
             fall apart. It fits this model file only: another model of the same width loads it, and means nothing.\n",
            percent(self.percent()),
            if ready.layers.len() > 1 { " (the mean over the layers)" } else { "" }
        );
        out
    }
}

fn stop_word(stop: &Stop) -> &'static str {
    match stop {
        Stop::Finished => "all steps taken",
        Stop::Early => "stopped early: validation loss no longer fell",
        Stop::Interrupted => "interrupted",
        Stop::NotFinite { .. } => "stopped: the loss was not finite",
    }
}

fn percent(x: f64) -> String {
    format!("{x:.2} %")
}

/// `0.0715`, or `0.0650 to 0.0798`.
fn spread(values: impl Iterator<Item = f64> + Clone, decimals: usize) -> String {
    let low = format!("{:.decimals$}", values.clone().fold(f64::INFINITY, f64::min));
    let high = format!("{:.decimals$}", values.fold(f64::NEG_INFINITY, f64::max));
    if low == high { low } else { format!("{low} to {high}") }
}

fn short(hash: &str) -> &str {
    hash.get(..16).unwrap_or(hash)
}

/// A condition's name as part of a metadata key: `vector, scale -1` is `vector_scale_minus_1`.
fn key_of(name: &str) -> String {
    let spelled = name.replace('+', " plus ").replace('-', " minus ");
    let words = spelled.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty());
    words.collect::<Vec<_>>().join("_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_condition_has_a_key_of_its_own() {
        assert_eq!(key_of("vector, scale +1"), "vector_scale_plus_1");
        assert_eq!(key_of("vector, scale -1"), "vector_scale_minus_1");
        assert_eq!(key_of("system prompt, no vector"), "system_prompt_no_vector");
    }
}
