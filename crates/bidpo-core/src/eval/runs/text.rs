//! Running text: how well a model predicts it, and how far a vector moves its predictions.

use super::error::RunError;
use super::pending::{Pending, Runner};
use crate::eval::conditions::Condition;
use crate::eval::results::{Record, Shard, TextScore};
use crate::eval::scoring::ScoreError;
use crate::steer::ControlVector;
use ggml_grad::graph::{FastKernels, log_sum_exp};
use ggml_grad::llama::{Batch, Context, ContextParams, Model, Token};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Bytes that the logits of one decode may take.
const LOGITS_BYTES: usize = 64 << 20;

/// A text cut into windows of tokens. Each is predicted by itself: its first tokens with little before them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    windows: Vec<Vec<Token>>,
    /// What stands before each: BOS, where the model wants one.
    bos: Option<Token>,
}

impl Windows {
    /// Cuts `text` into windows of `length` tokens, the last one shorter, and takes the first `limit` of them.
    ///
    /// # Errors
    /// [`ScoreError::Input`] for a text without two tokens, or windows longer than the model was trained for.
    pub fn new(model: &Model, text: &str, length: usize, limit: usize) -> Result<Self, ScoreError> {
        let bos = model.bos().filter(|_| model.adds_bos());
        if length + 1 > model.n_ctx_train() || length < 2 {
            return Err(ScoreError::Input(format!(
                "windows of {length} tokens: give 2 to {}, what the model was trained for",
                model.n_ctx_train() - 1
            )));
        }
        let tokens = model.tokenize(text, false, false)?;
        // A window needs a token to predict: without BOS the first one is only read.
        let least = if bos.is_some() { 1 } else { 2 };
        let windows: Vec<Vec<Token>> =
            tokens.chunks(length).filter(|w| w.len() >= least).take(limit).map(<[Token]>::to_vec).collect();
        if windows.is_empty() {
            return Err(ScoreError::Input(format!("a text of {} tokens: there is nothing to predict", tokens.len())));
        }
        Ok(Self { windows, bos })
    }

    /// Each passage a window, cut where it is longer than the model was trained for.
    ///
    /// # Errors
    /// [`ScoreError::Input`] where no passage has two tokens.
    pub(in crate::eval) fn of_passages(model: &Model, passages: &[&str]) -> Result<Self, ScoreError> {
        let bos = model.bos().filter(|_| model.adds_bos());
        let least = if bos.is_some() { 1 } else { 2 };
        let mut windows = Vec::with_capacity(passages.len());
        for passage in passages {
            let mut tokens = model.tokenize(passage, false, false)?;
            tokens.truncate(model.n_ctx_train().saturating_sub(1));
            if tokens.len() >= least {
                windows.push(tokens);
            }
        }
        if windows.is_empty() {
            return Err(ScoreError::Input(format!("{} passages: there is nothing to predict", passages.len())));
        }
        Ok(Self { windows, bos })
    }

    /// Tokens of the longest window, with BOS.
    pub(in crate::eval) fn longest(&self) -> usize {
        self.windows.iter().map(Vec::len).max().unwrap_or(0) + 1
    }

    /// The tokens of window `i`, after BOS where the model wants one.
    pub(in crate::eval) fn tokens(&self, i: usize) -> Vec<Token> {
        self.bos.iter().chain(&self.windows[i]).copied().collect()
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
                let window = &windows.windows[i];
                let both = scorer.score(&windows.tokens(i)).map_err(failed)?;
                let text = both.steered.unwrap_or(both.unsteered);
                let beginning: String = model.detokenize(window, false).chars().take(80).collect();
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

/// Scores stretches of text, unsteered and steered.
#[derive(Debug)]
pub(in crate::eval) struct TextScorer {
    plain: Context,
    steered: Option<Context>,
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
                control.apply(&mut ctx)?;
                Some(ctx)
            }
            None => None,
        };
        Ok(Self { plain: context()?, steered, n_batch })
    }

    /// Scores the tokens from the second one on.
    pub(in crate::eval) fn score(&mut self, tokens: &[Token]) -> Result<TextScores, ScoreError> {
        let zero = TextScore { n_tokens: 0, nll: 0.0, kl: 0.0, same_top: 0 };
        let mut scores = TextScores { unsteered: zero, steered: self.steered.as_ref().map(|_| zero) };
        self.plain.clear_kv();
        if let Some(ctx) = &mut self.steered {
            ctx.clear_kv();
        }
        // The last token is only predicted.
        let inputs = &tokens[..tokens.len() - 1];
        for (c, chunk) in inputs.chunks(self.n_batch).enumerate() {
            let mut batch = Batch::new();
            for (i, &t) in chunk.iter().enumerate() {
                let row = batch.add(t, c * self.n_batch + i, &[0], true);
                // Running text has no prompt: its first half stands for one where a steering tells prompt from answer.
                batch.set_prompt(row, tokens.len() / 2);
            }
            self.plain.decode(&batch)?;
            if let Some(ctx) = &mut self.steered {
                ctx.decode(&batch)?;
            }
            for i in 0..chunk.len() {
                let next = tokens[c * self.n_batch + i + 1] as usize;
                let p = self.plain.logits(i)?; // [n_vocab]
                let zp = log_sum_exp(p);
                scores.unsteered.n_tokens += 1;
                scores.unsteered.nll += zp - f64::from(p[next]);
                scores.unsteered.same_top += 1;
                if let (Some(ctx), Some(score)) = (&self.steered, &mut scores.steered) {
                    let q = ctx.logits(i)?; // [n_vocab]
                    let zq = log_sum_exp(q);
                    score.n_tokens += 1;
                    score.nll += zq - f64::from(q[next]);
                    score.kl += divergence(p, zp, q, zq);
                    score.same_top += usize::from(top(p) == top(q));
                }
            }
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
