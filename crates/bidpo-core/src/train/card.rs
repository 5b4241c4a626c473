//! Records of a trained vector: the provenance in its file, and the card in Markdown beside it.

use super::beside::LoadedBeside;
use super::checkpoint::Point;
use super::config::{ChooseBy, TrainConfig};
use super::events::Stop;
use super::held_out::HeldOut;
use super::objective::Objective;
use super::seeds::SeedSpread;
use super::summary::LayerStats;
use super::trained::Trained;
use crate::data::SplitBy;
use crate::engine::CacheType;
use crate::eval::calibrate::Calibrated;
use crate::eval::price::Price;
use crate::intervention::Kind;
use crate::numbers::norm;
use crate::steer::{ModelIdentity, Provenance, TRAINING_CURVE};
use crate::text::{TemplateFileError, numbers, render};
use serde_json::json;

/// Facts about a trained vector.
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
    /// Numbers of training, validation and test pairs.
    pub split: [usize; 3],
    /// The pairs that stayed in one part.
    pub split_by: SplitBy,
    /// The vector as it is written (renormalised where that was asked for).
    pub vector: &'a [f32],
    /// Measurements on the test pairs, if there are any.
    pub heldout: Option<&'a HeldOut>,
    /// The system prompt of the comparison, if any.
    pub baseline_prompt: Option<&'a str>,
    /// System prompts that it was chosen from, by the validation pairs.
    pub prompts_tried: usize,
    /// Name and hash of the retained texts, if any.
    pub retained: Option<(&'a str, &'a str)>,
    /// Adapters and vectors that were loaded in training.
    pub beside: &'a [LoadedBeside],
    /// Effect on neutral text, for a run that ended by itself.
    pub price: Option<&'a Price>,
    /// Scales within a budget of that effect, where they were measured.
    pub range: Option<&'a Calibrated>,
    /// The spread between seeds, where there are several.
    pub seeds: Option<&'a SeedSpread>,
    /// Threads of the run.
    pub threads: u32,
    /// CPU level of bidpo's kernels ([`ggml_grad::graph::cpu_level`]).
    pub cpu: &'a str,
}

impl VectorCard<'_> {
    fn numbers(&self) -> Vec<f64> {
        self.vector.iter().map(|&x| f64::from(x)).collect()
    }

    /// L2 norm of the change at each layer, lowest first ([`crate::intervention::Intervention::norms`]).
    fn norms(&self) -> Vec<f64> {
        self.trained.intervention.norms(&self.numbers(), &self.trained.summary.medians())
    }

    /// L2 norm of the change; with several layers, of all directions concatenated.
    pub fn norm(&self) -> f64 {
        match self.config.kind.kind {
            Kind::Add if self.config.lora.is_none() => norm(&self.numbers()),
            _ => norm(&self.norms()),
        }
    }

    /// That norm in percent of the median residual norm; with several layers, the mean over them.
    pub fn percent(&self) -> f64 {
        self.trained.summary.percent_of_norms(&self.norms())
    }

    /// The norm in percent of the mean residual norm; with several layers, the mean over them.
    pub fn percent_of_mean(&self) -> f64 {
        let layers = self.at_layers();
        let each = layers.iter().map(|(at, norm, _)| 100.0 * norm / at.mean_norm);
        each.sum::<f64>() / layers.len().max(1) as f64
    }

    /// Each layer with the L2 norm of its direction, and that norm in percent of the median residual norm there.
    pub fn at_layers(&self) -> Vec<(&LayerStats, f64, f64)> {
        let ready = &self.trained.summary;
        ready.layers.iter().zip(self.norms()).map(|(at, n)| (at, n, 100.0 * n / at.median_norm)).collect()
    }

    /// llama.cpp's own control vectors do the same.
    pub fn is_control_vector(&self) -> bool {
        self.config.kind.kind == Kind::Add && self.config.lora.is_none() && self.config.scope.is_all()
    }

    /// The `bidpo.*` keys of the file. Nothing here depends on the clock or the speed of the machine.
    pub fn provenance(&self) -> Provenance {
        let (c, ready) = (self.config, &self.trained.summary);
        let mut p = Provenance::default();
        p.set_str("method", "BiDPO");
        p.set_str("objective", c.objective.to_string());
        p.set_float("beta", c.beta);
        if c.objective == Objective::Simpo {
            p.set_float("gamma", c.gamma);
        }
        if c.objective == Objective::Reps {
            p.set_str("factors", c.factors.iter().map(f32::to_string).collect::<Vec<_>>().join(","));
        }
        if let (Some((name, sha256)), Some(retain)) = (self.retained, c.retain) {
            p.set_str("retain", name);
            p.set_str("retain_sha256", sha256);
            p.set_float("retain_weight", retain.weight);
            if let Some(budget) = retain.budget {
                p.set_float("retain_kl_budget", budget);
            }
            if let Some(reached) = self.trained.retained {
                p.set_float("retain_kl", reached.kl);
                p.set_float("retain_weight_reached", reached.weight);
            }
        }
        if let Some(init) = &c.init {
            p.set_str("init", &init.name);
            p.set_str("init_sha256", &init.sha256);
        }
        LoadedBeside::record(self.beside, &mut p);
        p.set_str("lr_setting", c.learning_rate.to_string());
        if let (Some(stats), Some(spec)) = (ready.adapter, &c.lora) {
            p.set_str("kind", c.kind_name());
            p.set_int("rank", stats.rank as i64);
            p.set_float("alpha", f64::from(stats.alpha));
            p.set_float("adapter_lr", stats.lr);
            p.set_str("adapter_settings", spec.described());
            p.set_float("adapter_norm", self.adapter_norm());
            let tensors = self.trained.intervention.lora().map_or(&[][..], |lora| &lora.pairs);
            p.set_str("tensors", tensors.iter().map(|t| t.tensor.as_str()).collect::<Vec<_>>().join(" "));
        }
        p.set_str("schedule", c.schedule.to_string());
        p.set_float("warmup", c.warmup_ratio);
        p.set_float("weight_decay", c.weight_decay);
        p.set_str("forward", c.precision.forward.name());
        p.set_str("backward", c.precision.backward.name());
        p.set_str("choose_by", c.validation().name());
        p.set_int("threads", i64::from(self.threads));
        p.set_str("cpu", self.cpu);
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
            // The residual stream below an adapter is not changed.
            _ if ready.adapter.is_some_and(|a| !a.with_vectors) => {}
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
        if ready.adapter.is_none_or(|a| a.with_vectors) {
            p.set_str("layer_convention", crate::steer::OUTPUT_WORDS);
        }
        p.set_float("norm", self.norm());
        self.model.record(&mut p);
        p.set_str("template_name", self.template.0);
        p.set_str("template_sha256", self.template.1);
        p.set_str("data_name", self.data.0);
        p.set_str("data_sha256", self.data.1);
        p.set_int("pairs_train", self.split[0] as i64);
        p.set_int("pairs_valid", self.split[1] as i64);
        p.set_int("pairs_test", self.split[2] as i64);
        p.set_str("split_by", self.split_by.name());
        p.set_int("seed", c.seed as i64);
        p.set_str("version", env!("CARGO_PKG_VERSION"));
        if let Some(h) = self.heldout {
            p.set_int("heldout_pairs", self.split[2] as i64);
            for c in &h.conditions {
                let key = key_of(&c.name);
                if h.alone {
                    p.set_float(&format!("heldout_{key}_logp"), c.mean_logp_diff());
                    continue;
                }
                let i = c.interval();
                p.set_float(&format!("heldout_{key}_accuracy"), c.accuracy());
                p.set_float(&format!("heldout_{key}_low"), i.lo);
                p.set_float(&format!("heldout_{key}_high"), i.hi);
            }
            if let Some(r) = h.random_range() {
                p.set_int("heldout_random_vectors", r.draws as i64);
                p.set_int("heldout_rank_among_random", r.rank as i64);
            }
            if let Some(text) = self.baseline_prompt {
                p.set_str("heldout_system_prompt", text);
            }
        }
        if let Some(spread) = self.seeds {
            p.set_int("heldout_seeds", spread.seeds.len() as i64);
            let [least, middle, _] = spread.cosines.map_or([None; 3], |c| c.map(Some));
            let values = [
                ("heldout_seeds_change", spread.mean_change),
                ("heldout_seeds_change_std_dev", spread.change_std_dev),
                ("heldout_seeds_cosine", middle),
                ("heldout_seeds_least_cosine", least),
            ];
            values.into_iter().filter_map(|(key, x)| Some((key, x?))).for_each(|(key, x)| p.set_float(key, x));
        }
        if let Some(price) = self.price {
            p.set_float("price_kl_per_token", price.kl_per_token.value);
            p.set_float("price_perplexity_change", price.perplexity_change.value);
            p.set_float("price_changed_top_tokens", price.changed_top_tokens.value);
        }
        p
    }

    /// The card in Markdown: how the vector was made, its measurements, how to use it. `file` is the vector's file name.
    ///
    /// # Errors
    /// [`TemplateFileError`]; the template is a constant of this program.
    pub fn card(&self, file: &str) -> Result<String, TemplateFileError> {
        match self.trained.summary.adapter {
            Some(_) => render("adapter.md", include_str!("adapter.md.j2"), self.data(file)),
            None => render("card.md", include_str!("card.md.j2"), self.data(file)),
        }
    }

    /// The values of the template. Numbers are formatted here where the card shows a setting as it was given.
    fn data(&self, file: &str) -> serde_json::Value {
        let (c, summary, m) = (self.config, &self.trained.summary, self.model);
        let several = summary.layers.len() > 1;
        let layers: Vec<_> = self
            .at_layers()
            .into_iter()
            .map(|(at, norm, share)| {
                json!({
                    "layer": at.layer,
                    "norm": format!("{norm:.3}"),
                    "percent": percent(share),
                    "percent_of_mean": percent(100.0 * norm / at.mean_norm),
                    "median_norm": format!("{:.1}", at.median_norm),
                    "mean_norm": format!("{:.1}", at.mean_norm),
                })
            })
            .collect();
        let or_dash = |x: Option<String>| x.unwrap_or_else(|| "-".into());
        let epoch = |h: &Point| {
            json!({
                "step": h.step,
                "train_loss": format!("{:.4}", h.train_loss),
                "valid_loss": or_dash(h.valid_loss.map(|x| format!("{x:.4}"))),
                "valid_accuracy": or_dash(h.valid_accuracy.map(numbers::percent)),
                "norm": if several { percent(h.percent) } else { format!("{:.3}", h.norm) },
            })
        };
        let kind = json!({ "name": c.kind_name(), "settings": c.kind.settings(), "scope": c.scope.to_string() });
        let mut data = json!({
            "file": file,
            "version": env!("CARGO_PKG_VERSION"),
            "model": {
                "name": m.name,
                "architecture": m.architecture,
                "quantization": m.quantization,
                "sha256": m.sha256,
            },
            "objective": c.objective.name(),
            "beta": c.beta.to_string(),
            "several": several,
            "layer_list": c.layers.to_string(),
            "rates": numbers::range(summary.layers.iter().map(|at| at.lr), 4),
            "step_percents": numbers::range(summary.layers.iter().map(|at| at.step_percent(summary.n_embd)), 2),
            "schedule": c.schedule.name(),
            "warmup_percent": format!("{:.0}", 100.0 * c.warmup_ratio),
            "alone": summary.alone,
            "weight_decay": c.weight_decay.to_string(),
            "forward": c.precision.forward.name(),
            "backward": c.precision.backward.name(),
            "steps": self.trained.steps,
            "total_steps": summary.total_steps,
            "batch": c.batch,
            "best_step": self.trained.best_step,
            "stop": stop_word(&self.trained.stop),
            "data": { "name": self.data.0, "sha256": short(self.data.1) },
            "pairs": { "train": self.split[0], "valid": self.split[1], "test": self.split[2] },
            "split": self.split_by.words(),
            "seed": c.seed,
            "template": self.template.0,
            "norm": format!("{:.3}", self.norm()),
            "percent": percent(self.percent()),
            "percent_of_mean": percent(self.percent_of_mean()),
            "renorm": c.renorm.map(|r| format!("{r}")),
            "threads": self.threads,
            "cpu": self.cpu,
            "choose_by": match c.validation() {
                ChooseBy::Both => "scale +1 and -1",
                ChooseBy::Positive => "scale +1",
            },
            "untrained_loss": format!("{:.4}", self.trained.untrained_loss),
            "worse_than_none": self.trained.beats_untrained() == Some(false),
            "complete": self.trained.complete(),
            "price": self.price.map(Price::in_words),
            "prompts_tried": self.prompts_tried,
            "layers": layers,
            "baseline_prompt": self.baseline_prompt,
            "history": self.trained.history.iter().map(epoch).collect::<Vec<_>>(),
        });
        data["kind"] = kind;
        data["adapter"] = self.adapter_json();
        data["retained"] = self.retained_json();
        data["beside"] = self.beside.iter().map(LoadedBeside::to_json).collect();
        data["init"] =
            c.init.as_ref().map_or(json!(null), |init| json!({ "name": init.name, "sha256": short(&init.sha256) }));
        data["heldout"] = self.heldout_json();
        data["seeds"] = self.seeds.map(SeedSpread::in_words).into();
        data["range"] = self.range.map(Calibrated::in_words).into();
        data["control_vector"] = self.is_control_vector().into();
        data
    }
}

impl VectorCard<'_> {
    /// Measurements on the test pairs, for the template; null where there are none.
    fn heldout_json(&self) -> serde_json::Value {
        let of = |h: &HeldOut| json!({ "table": h.table(), "summary": h.in_words(), "alone": h.alone });
        self.heldout.map_or(serde_json::Value::Null, of)
    }

    /// The adapter, for the template; null where there is none.
    fn adapter_json(&self) -> serde_json::Value {
        let (Some(stats), Some(spec)) = (self.trained.summary.adapter, &self.config.lora) else {
            return serde_json::Value::Null;
        };
        json!({
            "words": stats.in_words(),
            "settings": spec.described(),
            "lr": stats.lr.to_string(),
            "with_vectors": stats.with_vectors,
            "norm": format!("{:.4}", self.adapter_norm()),
        })
    }

    /// The Frobenius norm of all pairs' changes together; 0 without an adapter.
    pub fn adapter_norm(&self) -> f64 {
        self.trained.intervention.lora().map_or(0.0, |lora| norm(&lora.pair_norms(&self.numbers())))
    }

    /// The retained texts, for the template; null where there are none.
    fn retained_json(&self) -> serde_json::Value {
        let (Some((name, sha256)), Some(retain)) = (self.retained, self.config.retain) else {
            return serde_json::Value::Null;
        };
        json!({
            "name": name,
            "sha256": short(sha256),
            "weight": retain.weight.to_string(),
            "budget": retain.budget.map(|b| b.to_string()),
            "texts": self.trained.retained.map(|r| r.texts),
            "words": self.trained.retained.map(|r| r.in_words()),
        })
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
