//! The lifted graph against `llama_decode`, and its ops against the table of gradient rules.

use super::adapter::gradients_of;
use super::layout::{Layout, Prompts};
use super::{AdapterRefusal, Engine, EngineError, PairLogp, TracedBatch};
use crate::data::TokenizedPair;
use crate::numbers::median;
use ggml_grad::graph::grad::{GradStatus, survey};
use ggml_grad::graph::log_sum_exp;
use ggml_grad::llama::{Context, ContextParams, LlamaError};
use std::collections::BTreeMap;

/// The ops of a lifted graph, by ggml's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// Counts.
    pub ops: BTreeMap<&'static str, OpCount>,
}

impl Survey {
    /// Ops that a gradient reaches and that have no rule.
    pub fn missing(&self) -> impl Iterator<Item = &'static str> {
        self.ops.iter().filter(|(_, n)| n.missing > 0).map(|(name, _)| *name)
    }
}

/// Counts of an op in a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct OpCount {
    /// With a gradient and a rule for it.
    pub with_rule: usize,
    /// Without a gradient: it only chooses, or does not depend on the vector.
    pub not_needed: usize,
    /// With a gradient and no rule.
    pub missing: usize,
}

/// Differences between the lifted graph and `llama_decode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct Agreement {
    /// Largest difference of a logit without a vector.
    #[serde(rename = "max_difference")]
    pub unsteered: f32,
    /// Largest difference of a logit with a vector of 5 % of the median residual norm.
    #[serde(rename = "max_difference_steered")]
    pub steered: f32,
    /// Logits compared in each case.
    #[serde(rename = "compared")]
    pub n_logits: usize,
    /// Largest change of a logit of the first row by that vector: 0 means that it does nothing.
    #[serde(rename = "effect_of_vector")]
    pub effect: f32,
    /// Largest difference of a logit between llama.cpp with a vector of zeros and without any.
    #[serde(rename = "max_difference_of_zero_vector")]
    pub zero: f32,
    /// Root mean square of the differences, over the standard deviation of llama.cpp's logits; the larger of both cases.
    #[serde(rename = "relative_difference")]
    pub relative: f64,
    /// Weights lie on devices, whose kernels need not give the same bits in two graphs: differences count as rounding up to
    /// [`DEVICE_LIMIT`].
    pub on_devices: bool,
}

/// Largest [`Agreement::relative`] that counts as rounding on devices. On a GPU 3e-4 was seen (docs/devices.md): int8
/// activations make a last bit into a larger step. A graph that computes something else is off by one or more.
pub const DEVICE_LIMIT: f64 = 0.01;

impl Agreement {
    /// A vector of zeros changes nothing; on devices, next to nothing of what a vector does (ops that are fused without it
    /// are not with it).
    pub fn zero_vector_is_noop(&self) -> bool {
        self.zero == 0.0 || self.on_devices && self.effect.is_finite() && self.zero <= self.effect / 20.0
    }

    /// The lifted graph is what `llama_decode` computes: bit for bit on the CPU, within [`DEVICE_LIMIT`] on devices.
    pub fn agrees(&self) -> bool {
        self.unsteered == 0.0 && self.steered == 0.0 || self.on_devices && self.relative <= DEVICE_LIMIT
    }
}

impl Engine {
    /// Decodes the pairs once and says of every op above the lowest layer whether a gradient passes through it and whether
    /// it has a rule. [`Engine::trace_batch`] refuses a model with a missing rule; this lists all that are missing.
    ///
    /// # Errors
    /// As [`Engine::trace_batch`], but for missing rules.
    pub fn survey(&mut self, pairs: &[&TokenizedPair]) -> Result<Survey, EngineError> {
        let layout = Layout::new(pairs, Prompts::of(&self.model))?;
        let lifted = self.context.capture(&layout.batch)?.lifted;
        let mut graph = lifted.graph;
        let head = graph.log_prob_head(lifted.logits)?;
        let at = gradients_of(&*self.intervention).entries(&lifted.hook_points, &lifted.adapters);
        let standing = survey(&graph, lifted.logits, head, &at)?;
        let mut ops = BTreeMap::new();
        for (value, name) in lifted.origin {
            let count: &mut OpCount = ops.entry(name).or_default();
            match standing[value.0 as usize] {
                GradStatus::NotNeeded => count.not_needed += 1,
                GradStatus::Rule => count.with_rule += 1,
                GradStatus::Missing => count.missing += 1,
            }
        }
        Ok(Survey { ops })
    }

    /// Compares the lifted graph with `llama_decode` on these pairs: without a vector, and with pseudo-random ones of
    /// 5 % of the median residual norm of their layer. Returns the largest absolute difference of a logit in each case
    /// and the number of logits compared.
    ///
    /// # Errors
    /// Any of [`EngineError`]; a disagreement is reported, not raised.
    pub fn compare(&mut self, traced: &impl AsRef<TracedBatch>) -> Result<Agreement, EngineError> {
        let traced = traced.as_ref();
        if let Some(agreement) = self.compare_adapter(traced)? {
            return Ok(agreement);
        }
        let layout = Layout::new(&traced.pairs.iter().collect::<Vec<_>>(), Prompts::of(&self.model))?;
        let random = self.random_vectors(traced);
        let zeros = vec![0.0; self.n_vector()];
        let mut agreement = Agreement { on_devices: self.is_on_devices(), ..Agreement::default() };
        let mut first_row = Vec::new();
        let mut zero_logits = Vec::new();
        for (slot, vectors) in [&zeros, &random].into_iter().enumerate() {
            self.context.decode(&layout.batch, Some(vectors))?;
            if slot == 0 {
                zero_logits = self.all_logits(&layout)?;
            }
            let lifted = self.logits(traced, vectors)?;
            let n_vocab = self.model.n_vocab();
            let mut max = 0.0f32;
            let mut spread = Spread::default();
            for (row, &token) in layout.output_tokens.iter().enumerate() {
                let theirs = self.context.logits(token)?;
                let ours = &lifted[row * n_vocab..(row + 1) * n_vocab];
                max = max.max(distance(theirs, ours));
                spread.add(theirs, ours);
                agreement.n_logits += if slot == 0 { n_vocab } else { 0 };
                if row == 0 && slot == 0 {
                    first_row = theirs.to_vec();
                } else if row == 0 {
                    agreement.effect = distance(theirs, &first_row);
                }
            }
            let relative = spread.relative();
            // Not `max`: it would forget what is not a number.
            if agreement.relative.is_finite() && (relative > agreement.relative || relative.is_nan()) {
                agreement.relative = relative;
            }
            if slot == 0 { agreement.unsteered = max } else { agreement.steered = max }
        }
        self.context.decode(&layout.batch, None)?;
        agreement.zero = distance(&zero_logits, &self.all_logits(&layout)?);
        Ok(agreement)
    }

    /// Pseudo-random vectors of 5 % of the median residual norm of their layer, `[n_layers, n_embd]`.
    pub(super) fn random_vectors(&self, traced: &TracedBatch) -> Vec<f32> {
        let n_embd = self.model.n_embd();
        let random = |i: usize| {
            let norm = 0.05 * median(&traced.norms[i / n_embd]).unwrap_or(0.0) as f32 / (n_embd as f32).sqrt();
            let bits = ((i as u32).wrapping_mul(2_654_435_761) ^ 0x9E37_79B9).wrapping_mul(0x85EB_CA6B);
            norm * ((bits >> 8) as f32 / (1 << 23) as f32 - 1.0) * 3f32.sqrt()
        };
        (0..self.n_vector()).map(random).collect()
    }

    /// Largest change of a response's log-probability, in nats, by llama.cpp's own fused attention, with vectors added.
    /// It sums in another order than its other attention and rounds keys and values to 16 bits; where activations are rounded
    /// to 8 bits, either can decide a step. A measure for what kernels of ours change, which only sum in another order.
    ///
    /// # Errors
    /// [`EngineError::Trace`].
    pub fn fused_attention_difference(
        &self,
        pairs: &[&TokenizedPair],
        vectors: &[f32],
    ) -> Result<Option<f64>, EngineError> {
        let layout = Layout::new(pairs, Prompts::of(&self.model))?;
        let exact = ContextParams::exact(layout.token_pair.len(), 2 * pairs.len(), self.context.n_threads());
        let context = |flash_attention: bool| Context::new(&self.model, &ContextParams { flash_attention, ..exact });
        let fused = match context(true) {
            Err(LlamaError::Context { .. }) => return Ok(None),
            fused => fused?,
        };
        let scores = |mut ctx: Context| -> Result<Vec<PairLogp>, EngineError> {
            ctx.set_layer_vectors(self.layers(), vectors)?;
            ctx.decode(&layout.batch)?;
            let mut log_probs = Vec::with_capacity(layout.labels.labels.len());
            for label in &layout.labels.labels {
                let logits = ctx.logits(layout.output_tokens[label.row as usize])?;
                log_probs.push(f64::from(logits[label.token as usize]) - log_sum_exp(logits));
            }
            Ok(layout.labels.sums(pairs.len(), &log_probs))
        };
        let (with, without) = (scores(fused)?, scores(context(false)?)?);
        let apart = |(a, b): (&PairLogp, &PairLogp)| (a.chosen - b.chosen).abs().max((a.rejected - b.rejected).abs());
        Ok(Some(with.iter().zip(&without).map(apart).fold(0.0, f64::max)))
    }

    /// Logits of the last decode, `[n_outputs, n_vocab]`.
    pub(super) fn all_logits(&self, layout: &Layout) -> Result<Vec<f32>, EngineError> {
        let mut all = Vec::with_capacity(layout.output_tokens.len() * self.model.n_vocab());
        for &token in &layout.output_tokens {
            all.extend_from_slice(self.context.logits(token)?);
        }
        Ok(all)
    }

    /// As [`Engine::compare`], but a disagreement is an error.
    ///
    /// # Errors
    /// [`EngineError::Disagrees`].
    pub fn verify(&mut self, traced: &impl AsRef<TracedBatch>) -> Result<Agreement, EngineError> {
        let a = self.compare(traced)?;
        let steered = match self.adapter {
            Some(_) => "the adapter at random numbers",
            None => "a random vector of 5 % of the residual norm",
        };
        for (max_diff, what, fine) in [
            (a.unsteered, "no vector", a.agrees()),
            (a.steered, steered, a.agrees()),
            (a.zero, "llama_decode itself, a vector of zeros against none", a.zero_vector_is_noop()),
        ] {
            if !fine && max_diff != 0.0 {
                return Err(EngineError::Disagrees { max_diff, n_logits: a.n_logits, what });
            }
        }
        if a.effect == 0.0 && self.adapter.is_some() {
            return Err(AdapterRefusal::NoEffect { architecture: self.model.architecture() }.into());
        }
        if a.effect == 0.0 {
            return Err(EngineError::Model(format!(
                "a control vector at layers {:?} does not move the logits of this architecture ({})",
                self.layers(),
                self.model.architecture()
            )));
        }
        Ok(a)
    }
}

/// Sums for [`Agreement::relative`].
#[derive(Default)]
pub(super) struct Spread {
    n: f64,
    sum: f64,
    squares: f64,
    differences: f64,
}

impl Spread {
    pub(super) fn add(&mut self, theirs: &[f32], ours: &[f32]) {
        // A logit that is -inf on both sides is masked out of the vocabulary.
        for (&a, &b) in theirs.iter().zip(ours).filter(|(a, b)| a != b || a.is_finite()) {
            let (a, d) = (f64::from(a), f64::from(a) - f64::from(b));
            self.n += 1.0;
            self.sum += a;
            self.squares += a * a;
            self.differences += d * d;
        }
    }

    /// 0 where nothing differs; not a number where a logit of ours is none.
    pub(super) fn relative(&self) -> f64 {
        if self.differences == 0.0 {
            return 0.0;
        }
        let mean = self.sum / self.n;
        (self.differences / (self.squares - self.n * mean * mean)).sqrt()
    }
}

/// Largest absolute difference; infinite if a number is not one.
pub(super) fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |max, d| if d.is_nan() { f32::INFINITY } else { max.max(d) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relative(theirs: &[f32], ours: &[f32]) -> f64 {
        let mut spread = Spread::default();
        spread.add(theirs, ours);
        spread.relative()
    }

    #[test]
    fn differences_are_measured_by_the_spread() {
        let theirs = [1.0, -1.0, 3.0, -3.0];
        assert_eq!(relative(&theirs, &theirs), 0.0);
        // Off by 0.5 everywhere, of a standard deviation of sqrt(5).
        let ours = theirs.map(|x| x + 0.5);
        assert!((relative(&theirs, &ours) - 0.5 / 5f64.sqrt()).abs() < 1e-12);
        let masked = [f32::NEG_INFINITY, 1.0, -1.0];
        assert_eq!(relative(&masked, &masked), 0.0);
    }

    #[test]
    fn what_is_no_number_never_agrees() {
        let agrees = |theirs: &[f32], ours: &[f32]| {
            let difference = distance(theirs, ours);
            let a = Agreement {
                unsteered: difference,
                relative: relative(theirs, ours),
                on_devices: true,
                ..Agreement::default()
            };
            a.agrees()
        };
        assert!(agrees(&[1.0, -1.0], &[1.0, -1.001]));
        assert!(!agrees(&[1.0, -1.0], &[1.0, f32::NAN]));
        assert!(!agrees(&[1.0, f32::NAN], &[1.0, -1.0]));
        assert!(!agrees(&[f32::NAN; 2], &[f32::NAN; 2]));
        assert!(!agrees(&[1.0, -1.0], &[1.0, f32::INFINITY]));
        let lost = Agreement { zero: f32::INFINITY, effect: f32::INFINITY, on_devices: true, ..Agreement::default() };
        assert!(!lost.zero_vector_is_noop());
    }
}
