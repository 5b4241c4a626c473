//! Running text: how well a model predicts it, and how far a vector moves its predictions.

use super::error::RunError;
use super::pending::{Pending, Runner};
use crate::eval::conditions::Condition;
use crate::eval::results::{Record, Shard, TextScore};
use crate::eval::scoring::ScoreError;
use ggml_grad::graph::log_sum_exp;
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
        let longest = windows.windows.iter().map(Vec::len).max().unwrap_or(0) + 1;
        let n_batch = crate::numbers::rows_within(LOGITS_BYTES, model.n_vocab()).clamp(16, 512);
        let context = || -> Result<Context, ScoreError> {
            let params = ContextParams { n_batch: n_batch as u32, ..ContextParams::exact(longest, 1, self.n_threads) };
            Ok(Context::new(model, &params)?)
        };
        let mut plain = context().map_err(failed)?;
        let mut steered = match &condition.control {
            Some(control) => {
                let mut ctx = context().map_err(failed)?;
                control.apply(&mut ctx).map_err(|e| failed(e.into()))?;
                Some(ctx)
            }
            None => None,
        };
        pending.for_each_batch(
            mine,
            |&i| vec![i],
            |i| {
                let window = &windows.windows[i];
                let text = self.window(&mut plain, steered.as_mut(), window, n_batch).map_err(failed)?;
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
                    category: None,
                    answers: Vec::new(),
                    views: Vec::new(),
                    text: Some(text),
                    written: None,
                }])
            },
        )
    }
}

impl TextRun<'_> {
    fn window(
        &self,
        plain: &mut Context,
        mut steered: Option<&mut Context>,
        window: &[Token],
        n_batch: usize,
    ) -> Result<TextScore, ScoreError> {
        let tokens: Vec<Token> = self.windows.bos.iter().chain(window).copied().collect();
        let mut score = TextScore { n_tokens: 0, nll: 0.0, kl: 0.0, same_top: 0 };
        plain.clear_kv();
        if let Some(ctx) = steered.as_deref_mut() {
            ctx.clear_kv();
        }
        // The last token is only predicted.
        let inputs = &tokens[..tokens.len() - 1];
        for (c, chunk) in inputs.chunks(n_batch).enumerate() {
            let mut batch = Batch::new();
            for (i, &t) in chunk.iter().enumerate() {
                batch.add(t, c * n_batch + i, &[0], true);
            }
            plain.decode(&batch)?;
            if let Some(ctx) = steered.as_deref_mut() {
                ctx.decode(&batch)?;
            }
            for i in 0..chunk.len() {
                let next = tokens[c * n_batch + i + 1] as usize;
                let p = plain.logits(i)?; // [n_vocab]
                let q = match &steered {
                    Some(ctx) => ctx.logits(i)?,
                    None => p,
                };
                let (zp, zq) = (log_sum_exp(p), log_sum_exp(q));
                score.n_tokens += 1;
                score.nll += zq - f64::from(q[next]);
                if steered.is_some() {
                    score.kl += divergence(p, zp, q, zq);
                    score.same_top += usize::from(top(p) == top(q));
                } else {
                    score.same_top += 1;
                }
            }
        }
        Ok(score)
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
