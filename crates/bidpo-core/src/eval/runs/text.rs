//! Running text: how well a model predicts it, and how far a vector moves its predictions.

use super::error::RunError;
use super::pending::{Pending, Runner};
use crate::adapter::Adapters;
use crate::eval::conditions::Condition;
use crate::eval::results::{GateScore, Record, Shard, TextScore};
use crate::eval::scoring::ScoreError;
use crate::steer::{ControlVector, GateMemory};
use ggml_grad::graph::{FastKernels, log_sum_exp};
use ggml_grad::llama::{Batch, Context, ContextParams, Model, Token};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes that the logits of one decode may take.
const LOGITS_BYTES: usize = 64 << 20;

/// Characters of a window's beginning that a record keeps.
pub const BEGINNING: usize = 80;

/// Tokens that are predicted by themselves, with little before the first ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// All of them, BOS included where the model wants one.
    pub tokens: Vec<Token>,
    /// Tokens of the prompt, whose answer alone is measured; `None` for running text.
    pub n_prompt: Option<usize>,
    /// How the text, or the prompt, begins.
    pub beginning: String,
}

/// A text cut into windows of tokens, or prompts with their answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    windows: Vec<Window>,
}

impl Windows {
    /// Cuts `text` into windows of `length` tokens, the last one shorter, and takes the first `limit` of them.
    ///
    /// # Errors
    /// [`ScoreError::Input`] for a text without two tokens, or windows longer than the model was trained for.
    pub fn new(model: &Model, text: &str, length: usize, limit: usize) -> Result<Self, ScoreError> {
        if length + 1 > model.n_ctx_train() || length < 2 {
            return Err(ScoreError::Input(format!(
                "windows of {length} tokens: give 2 to {}, what the model was trained for",
                model.n_ctx_train() - 1
            )));
        }
        let tokens = model.tokenize(text, false, false)?;
        let windows: Vec<Window> =
            tokens.chunks(length).filter_map(|w| running_text(model, w.to_vec())).take(limit).collect();
        if windows.is_empty() {
            return Err(ScoreError::Input(format!("a text of {} tokens: there is nothing to predict", tokens.len())));
        }
        Ok(Self { windows })
    }

    /// Each passage a window, cut where it is longer than the model was trained for.
    ///
    /// # Errors
    /// [`ScoreError::Input`] where no passage has two tokens.
    pub(in crate::eval) fn of_passages(model: &Model, passages: &[&str]) -> Result<Self, ScoreError> {
        let mut windows = Vec::with_capacity(passages.len());
        for passage in passages {
            let mut tokens = model.tokenize(passage, false, false)?;
            tokens.truncate(model.n_ctx_train().saturating_sub(1));
            windows.extend(running_text(model, tokens));
        }
        if windows.is_empty() {
            return Err(ScoreError::Input(format!("{} passages: there is nothing to predict", passages.len())));
        }
        Ok(Self { windows })
    }

    /// These windows.
    ///
    /// # Errors
    /// [`ScoreError::Input`] where there are none, or one has no token to predict.
    pub fn of(windows: Vec<Window>) -> Result<Self, ScoreError> {
        if windows.is_empty() {
            return Err(ScoreError::Input("no prompts: there is nothing to predict".into()));
        }
        let short = |w: &&Window| w.tokens.len() <= w.n_prompt.unwrap_or(1).max(1);
        if let Some(window) = windows.iter().find(short) {
            return Err(ScoreError::Input(format!("{:?}: there is nothing to predict", window.beginning)));
        }
        Ok(Self { windows })
    }

    /// Tokens of the longest window, with BOS.
    pub(in crate::eval) fn longest(&self) -> usize {
        self.windows.iter().map(|w| w.tokens.len()).max().unwrap_or(0) + 1
    }

    /// The first `n` of them, at least one.
    #[must_use]
    pub fn first(mut self, n: usize) -> Self {
        self.windows.truncate(n.max(1));
        self
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        self.windows.len()
    }

    /// Never true.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }
}

/// A window of running text; `None` for one without a token to predict: the first one is only read where the model wants no
/// BOS.
fn running_text(model: &Model, tokens: Vec<Token>) -> Option<Window> {
    let bos = model.bos().filter(|_| model.adds_bos());
    let beginning = model.detokenize(&tokens, false).chars().take(BEGINNING).collect();
    let tokens: Vec<Token> = bos.into_iter().chain(tokens).collect();
    (tokens.len() >= 2).then_some(Window { tokens, n_prompt: None, beginning })
}

/// Scores the windows of a text.
#[derive(Debug)]
pub struct TextRun<'a> {
    /// The model.
    pub model: &'a Arc<Model>,
    /// The windows, each an item.
    pub windows: &'a Windows,
    /// Subset of the windows.
    pub shard: Shard,
    /// Threads.
    pub n_threads: u32,
}

impl Runner for TextRun<'_> {
    fn run(&self, condition: &Condition, mut pending: Pending<'_>) -> Result<ControlFlow<()>, RunError> {
        let (model, windows) = (self.model, self.windows);
        let mine: Vec<usize> = self.shard.items(windows.len()).collect();
        if pending.none_of(&mine) {
            return Ok(ControlFlow::Continue(()));
        }
        let failed = RunError::under(&condition.name);
        let control = condition.control.as_ref();
        let mut scorer = TextScorer::new(model, windows.longest(), self.n_threads, control).map_err(failed)?;
        pending.for_each_batch(
            mine,
            |&i| vec![i],
            |i| {
                let beginning = windows.windows[i].beginning.clone();
                let both = scorer.score(windows, i).map_err(failed)?;
                let text = both.steered.unwrap_or(both.unsteered);
                if !text.nll.is_finite() || !text.kl.is_finite() {
                    let place = format!("window {} ({beginning:?})", i + 1);
                    return Err(RunError::NotFinite { place, condition: condition.name.clone() });
                }
                Ok(vec![Record {
                    item: i,
                    index: i,
                    condition: condition.name.clone(),
                    question: beginning,
                    ..Record::of_text(text)
                }])
            },
        )
    }
}

/// Scores of a stretch of text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::eval) struct TextScores {
    /// Of the unsteered model.
    pub(in crate::eval) unsteered: TextScore,
    /// Of the steered model, if there is a vector.
    pub(in crate::eval) steered: Option<TextScore>,
}

/// A context with a steering, and what its gates decide there.
#[derive(Debug)]
struct SteeredContext {
    ctx: Context,
    control: ControlVector,
    memory: Arc<Mutex<GateMemory>>,
}

impl SteeredContext {
    /// The gates at the predictions from these positions; `None` for a steering without gates.
    fn gates(&self, positions: std::ops::Range<usize>, n_prompt: usize) -> Option<GateScore> {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let gates = self.control.openings(&memory, 0, n_prompt, positions.end);
        if gates.is_empty() {
            return None;
        }
        let opening = |at: usize| {
            let sum: f64 = gates.iter().filter_map(|gate| gate.at.get(at).copied().flatten()).sum();
            sum / gates.len() as f64
        };
        let each: Vec<f64> = positions.map(opening).collect();
        Some(GateScore { opening: each.iter().sum(), open: each.iter().filter(|&&x| x > 0.5).count() })
    }
}

/// Scores stretches of text, unsteered and steered.
#[derive(Debug)]
pub(in crate::eval) struct TextScorer {
    plain: Context,
    steered: Option<SteeredContext>,
    /// Tokens of one decode.
    n_batch: usize,
}

impl TextScorer {
    /// For texts of at most `longest` tokens.
    pub(in crate::eval) fn new(
        model: &Arc<Model>,
        longest: usize,
        n_threads: u32,
        control: Option<&ControlVector>,
    ) -> Result<Self, ScoreError> {
        let n_batch = crate::numbers::rows_within(LOGITS_BYTES, model.n_vocab()).clamp(16, 512);
        let context = || -> Result<Context, ScoreError> {
            let params = ContextParams { n_batch: n_batch as u32, ..ContextParams::exact(longest, 1, n_threads) };
            let mut ctx = Context::new(model, &params)?;
            // Bit-exact with ggml's own products, and faster.
            ctx.set_kernel_override(FastKernels::if_supported());
            Ok(ctx)
        };
        let steered = match control {
            Some(control) => {
                let mut ctx = context()?;
                let memory = control.apply_with_memory(&mut ctx)?;
                Some(SteeredContext { ctx, control: control.clone(), memory })
            }
            None => None,
        };
        Ok(Self { plain: context()?, steered, n_batch })
    }

    /// Puts a steering under the unsteered model: what `control` holds beside that is measured against it.
    pub(in crate::eval) fn refer_to(&mut self, reference: &ControlVector) -> Result<(), ScoreError> {
        Ok(reference.apply(&mut self.plain)?)
    }

    /// Scores one model under `control` as the unsteered one, and another of the same vocabulary as the steered one.
    pub(in crate::eval) fn between(
        reference: &Arc<Model>,
        control: &ControlVector,
        other: &Arc<Model>,
        longest: usize,
        n_threads: u32,
    ) -> Result<Self, ScoreError> {
        let nothing = ControlVector::of_adapters(Adapters::default(), other.n_layer(), other.n_embd());
        let mut of_other = Self::new(other, longest, n_threads, Some(&nothing))?;
        let mut of_reference = Self::new(reference, longest, n_threads, Some(control))?;
        let (Some(steered), Some(other)) = (of_reference.steered.take(), of_other.steered.take()) else {
            unreachable!("both were made with a steering")
        };
        Ok(Self { plain: steered.ctx, steered: Some(other), n_batch: of_reference.n_batch })
    }

    /// Scores window `i`: of a prompt the answer, of running text the tokens from the second one on.
    pub(in crate::eval) fn score(&mut self, windows: &Windows, i: usize) -> Result<TextScores, ScoreError> {
        let Window { tokens, n_prompt, .. } = &windows.windows[i];
        let zero = TextScore { n_tokens: 0, nll: 0.0, kl: 0.0, same_top: 0, gate: None };
        let mut scores = TextScores { unsteered: zero, steered: self.steered.as_ref().map(|_| zero) };
        self.plain.clear_kv();
        if let Some(steered) = &mut self.steered {
            steered.ctx.clear_kv();
        }
        // The last token is only predicted.
        let inputs = &tokens[..tokens.len() - 1];
        // The first position that a measured token is predicted from.
        let first = n_prompt.map_or(0, |n| n.saturating_sub(1));
        // Running text has no prompt: its first half stands for one where a steering tells prompt from answer.
        let n_prompt = n_prompt.unwrap_or(tokens.len() / 2);
        for (c, chunk) in inputs.chunks(self.n_batch).enumerate() {
            let start = c * self.n_batch;
            let mut batch = Batch::new();
            for (i, &t) in chunk.iter().enumerate() {
                let row = batch.add(t, start + i, &[0], start + i >= first);
                batch.set_prompt(row, n_prompt);
            }
            self.plain.decode(&batch)?;
            if let Some(steered) = &mut self.steered {
                steered.ctx.decode(&batch)?;
            }
            for i in first.saturating_sub(start)..chunk.len() {
                let next = tokens[start + i + 1] as usize;
                let p = self.plain.logits(i)?; // [n_vocab]
                let zp = log_sum_exp(p);
                scores.unsteered.n_tokens += 1;
                scores.unsteered.nll += zp - f64::from(p[next]);
                scores.unsteered.same_top += 1;
                if let (Some(steered), Some(score)) = (&self.steered, &mut scores.steered) {
                    let q = steered.ctx.logits(i)?; // [n_vocab]
                    let zq = log_sum_exp(q);
                    score.n_tokens += 1;
                    score.nll += zq - f64::from(q[next]);
                    score.kl += divergence(p, zp, q, zq);
                    score.same_top += usize::from(top(p) == top(q));
                }
            }
        }
        if let (Some(steered), Some(score)) = (&self.steered, &mut scores.steered) {
            score.gate = steered.gates(first..inputs.len(), n_prompt);
        }
        Ok(scores)
    }
}

/// KL(p || q) in nats of two rows of logits with their log-sum-exps; never below 0.
fn divergence(p: &[f32], zp: f64, q: &[f32], zq: f64) -> f64 {
    let sum: f64 = p
        .iter()
        .zip(q)
        .map(|(&a, &b)| {
            let (a, b) = (f64::from(a) - zp, f64::from(b) - zq);
            // What is -inf under p contributes nothing.
            if a == f64::NEG_INFINITY { 0.0 } else { a.exp() * (a - b) }
        })
        .sum();
    sum.max(0.0)
}

fn top(row: &[f32]) -> usize {
    row.iter().enumerate().fold(0, |best, (i, x)| if *x > row[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_by_hand() {
        // p = (1/2, 1/2), q = (1/4, 3/4): 1/2 ln 2 + 1/2 ln (2/3).
        let (p, q) = ([0.0f32, 0.0], [1.0f32.ln(), 3.0f32.ln()]);
        let kl = divergence(&p, log_sum_exp(&p), &q, log_sum_exp(&q));
        assert!((kl - 0.5 * (2.0f64.ln() + (2.0f64 / 3.0).ln())).abs() < 1e-7, "{kl}");
        assert_eq!(divergence(&p, log_sum_exp(&p), &p, log_sum_exp(&p)), 0.0);
        assert_eq!(top(&[0.0, 2.0, 2.0]), 1);
    }
}
