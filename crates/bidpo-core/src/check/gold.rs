//! Reference files: log-probabilities, loss and gradient of a few pairs, computed elsewhere in full precision.

use crate::data::TokenizedPair;
use crate::engine::{Direction, Engine, EngineError, Parameters, TracedPair};
use crate::numbers::{cosine, norm};
use crate::train::{Precision, loss};
use ggml_grad::llama::{Model, Token};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One reference pair.
#[derive(Debug, Clone, Deserialize)]
struct GoldPair {
    prompt_ids: Vec<Token>,
    chosen_ids: Vec<Token>,
    rejected_ids: Vec<Token>,
    ref_chosen_logp: f64,
    ref_rejected_logp: f64,
    policy_chosen_logp: f64,
    policy_rejected_logp: f64,
}

/// A reference file: eight or so pairs, a vector, the mean loss and its gradient.
#[derive(Debug, Clone, Deserialize)]
pub struct Gold {
    /// File name of the model it was made with.
    pub model: String,
    /// Block whose output the vector is added to.
    pub layer: usize,
    /// +1 or -1.
    pub direction: f64,
    /// Beta of the loss.
    pub beta: f64,
    v: Vec<f64>,
    pairs: Vec<GoldPair>,
    mean_loss: f64,
    mean_grad: Vec<f64>,
    #[serde(skip)]
    path: PathBuf,
}

/// A reference file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GoldError {
    /// Reading failed.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Not such a file.
    #[error("{path} is not a reference file: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Tolerances of the comparison with a reference file.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Tolerances {
    /// Least cosine of the two gradients, given as `1 - cosine` at most.
    pub one_minus_cosine: f64,
    /// Largest `|ours - theirs| / |theirs|` of the gradient.
    pub relative_error: f64,
    /// Largest deviation of the ratio of the two norms from 1.
    pub norm_ratio: f64,
    /// Largest difference of a log-probability, in nats.
    pub logp: f64,
    /// Largest difference of the mean loss.
    pub loss: f64,
}

impl Tolerances {
    /// Tolerances for a forward pass in full precision or through quantized kernels, on the CPU or on devices. GELU models are
    /// judged more mildly: ggml evaluates GELU through a table of 16-bit floats. So are quantized products on devices: CUDA's
    /// keep the scales of activations as 16-bit floats and were measured at 0.0077, 0.12, 0.03, 2.9 and 0.018 on SmolLM2.
    pub fn of(f32_weights: bool, gelu: bool, on_devices: bool) -> Self {
        let (one_minus_cosine, relative_error, norm_ratio, logp, loss) = match (f32_weights, gelu, on_devices) {
            (true, false, _) => (1e-6, 1e-3, 1e-3, 2e-3, 5e-5),
            (true, true, _) => (1e-5, 5e-3, 3e-3, 6e-2, 5e-3),
            (false, false, false) => (0.01, 0.15, 0.05, 2.0, 0.15),
            (false, _, _) => (0.02, 0.25, 0.15, 5.0, 0.4),
        };
        Self { one_minus_cosine, relative_error, norm_ratio, logp, loss }
    }
}

/// Differences between a model and a reference file.
#[derive(Debug, Clone, Serialize)]
pub struct GoldResult {
    /// Name of the reference file.
    pub file: String,
    /// `f32` or `quantized`.
    pub mode: &'static str,
    /// Cosine of the two gradients.
    pub cosine: f64,
    /// `|ours - theirs| / |theirs|`.
    pub relative_error: f64,
    /// `|ours| / |theirs|`.
    pub norm_ratio: f64,
    /// Largest difference of a log-probability.
    pub logp_difference: f64,
    /// Difference of the mean loss.
    pub loss_difference: f64,
    /// The tolerances that it was judged by.
    #[serde(rename = "lines")]
    pub tolerances: Tolerances,
    /// True if every difference is within its tolerance.
    pub passed: bool,
}

impl Gold {
    /// Reads a reference file.
    ///
    /// # Errors
    /// [`GoldError::Read`], [`GoldError::Format`].
    pub fn load(path: &Path) -> Result<Self, GoldError> {
        let text =
            ggml_grad::files::read_whole(path).map_err(|source| GoldError::Read { path: path.to_owned(), source })?;
        let format = |reason: String| GoldError::Format { path: path.to_owned(), reason };
        let mut gold: Self = serde_json::from_slice(&text).map_err(|e| format(e.to_string()))?;
        if gold.pairs.is_empty() || gold.v.len() != gold.mean_grad.len() || gold.direction.abs() != 1.0 {
            return Err(format(
                "it has no pairs, a gradient of another size than v, or a direction other than 1, -1".into(),
            ));
        }
        gold.path = path.to_owned();
        Ok(gold)
    }

    /// Runs the pairs on `model` and compares, with what may be rounded.
    ///
    /// # Errors
    /// [`GoldError::Format`] for a model of another width or vocabulary; [`GoldError::Engine`].
    pub fn compare(
        &self,
        model: &Arc<Model>,
        f32_weights: bool,
        precision: Precision,
        n_threads: u32,
    ) -> Result<GoldResult, GoldError> {
        let format = |reason: String| GoldError::Format { path: self.path.clone(), reason };
        if self.v.len() != model.n_embd() {
            return Err(format(format!(
                "its vectors have {} numbers, the residual stream of {} has {}",
                self.v.len(),
                model.path().display(),
                model.n_embd()
            )));
        }
        let pairs: Vec<TokenizedPair> = self
            .pairs
            .iter()
            .map(|p| TokenizedPair {
                prompt: p.prompt_ids.clone(),
                chosen: p.chosen_ids.clone(),
                rejected: p.rejected_ids.clone(),
            })
            .collect();
        let n_vocab = model.n_vocab() as i32;
        let ids = pairs.iter().flat_map(|p| p.prompt.iter().chain(&p.chosen).chain(&p.rejected));
        if let Some(t) = ids.copied().find(|&t| t < 0 || t >= n_vocab) {
            return Err(format(format!("vocabulary mismatch: token {t}, the model has {n_vocab} tokens")));
        }
        let max = pairs.iter().map(TokenizedPair::n_tokens).max().unwrap_or(1);
        let mut engine = Engine::new(model, &[self.layer], max, 1, n_threads)?;
        engine.set_precision(precision);
        let theta: Vec<f32> = self.v.iter().map(|&x| x as f32).collect();
        let direction = if self.direction < 0.0 { Direction::Reverse } else { Direction::Forward };
        let d = direction.sign();
        let at = Parameters { theta: &theta, direction };
        let n = pairs.len() as f64;
        let (mut grad, mut mean_loss, mut logp_difference, mut gelu) = (vec![0.0; theta.len()], 0.0, 0.0f64, false);
        let traced = pairs.iter().map(|pair| engine.trace(pair)).collect::<Result<Vec<TracedPair>, _>>()?;
        // Together, as in training, where this precision lets pairs be joined.
        let longest = traced.iter().max_by_key(|e| e.n_tokens()).expect("there are pairs");
        let plan = engine.plan_batches(longest, traced.iter().map(TracedPair::n_tokens).sum())?.plan;
        let sizes: Vec<usize> = traced.iter().map(TracedPair::n_tokens).collect();
        for group in plan.batches(&sizes) {
            let members: Vec<&TracedPair> = traced[group.clone()].iter().collect();
            let derivative = |margin: f64| d * loss(d, self.beta, margin).slope / n;
            let sum = engine.run_batch(&members, at, Some(&derivative))?;
            grad.iter_mut().zip(&sum.grad).for_each(|(grad, g)| *grad += g);
            for ((pair, policy), want) in members.iter().zip(&sum.logp).zip(&self.pairs[group]) {
                gelu |= pair.as_ref().ops().keys().any(|op| op.contains("GELU") || op.contains("GEGLU"));
                let reference = pair.reference();
                for (a, b) in [
                    (reference.chosen, want.ref_chosen_logp),
                    (reference.rejected, want.ref_rejected_logp),
                    (policy.chosen, want.policy_chosen_logp),
                    (policy.rejected, want.policy_rejected_logp),
                ] {
                    logp_difference = logp_difference.max((a - b).abs());
                }
                mean_loss += loss(d, self.beta, policy.gap() - reference.gap()).value / n;
            }
        }
        let (ours, theirs) = (norm(&grad), norm(&self.mean_grad));
        let diff: Vec<f64> = grad.iter().zip(&self.mean_grad).map(|(a, b)| a - b).collect();
        let tolerances = Tolerances::of(f32_weights, gelu, model.placement().is_offloaded());
        let mut r = GoldResult {
            file: super::file_name(&self.path),
            mode: match (f32_weights, precision == Precision::EXACT) {
                (true, _) => "f32",
                (false, true) => "quantized, nothing rounded for speed",
                (false, false) => "quantized",
            },
            cosine: cosine(&grad, &self.mean_grad),
            relative_error: norm(&diff) / theirs,
            norm_ratio: ours / theirs,
            logp_difference,
            loss_difference: (mean_loss - self.mean_loss).abs(),
            tolerances,
            passed: false,
        };
        // Written so that NaN fails.
        r.passed = r.cosine >= 1.0 - tolerances.one_minus_cosine
            && r.relative_error <= tolerances.relative_error
            && (r.norm_ratio - 1.0).abs() <= tolerances.norm_ratio
            && r.logp_difference <= tolerances.logp
            && r.loss_difference <= tolerances.loss;
        Ok(r)
    }
}
