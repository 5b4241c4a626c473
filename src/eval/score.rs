//! Scores of answers: the summed log-probability of their tokens after a prompt.
//!
//! What is common is computed once. The prefix (a few-shot preamble, say) stays in the KV cache for all prompts, a prompt is
//! decoded once for all of its answers, and the answers run side by side in one batch, each a sequence of its own that
//! shares the cells before it. Positions and attention are those of each answer alone after its prompt; only the order of
//! some sums differs (see the tests for how little).

use crate::llama::{Batch, Context, ContextParams, KvType, LlamaError, Model, Token};
use crate::steer::ControlVector;
use std::ops::Range;
use std::sync::Arc;

/// Sequence that holds the prefix.
const PREFIX: i32 = 0;
/// Sequence that holds the prompt in hand.
const PROMPT: i32 = 1;
/// First of the sequences that hold answers.
const ANSWERS: i32 = 2;
/// `LLAMA_MAX_SEQ` of the pinned llama.cpp.
const MAX_SEQUENCES: usize = 256;

/// What can go wrong when answers are scored.
#[derive(Debug, thiserror::Error)]
pub enum ScoreError {
    /// llama.cpp failed.
    #[error(transparent)]
    Llama(#[from] LlamaError),
    /// The model cannot share a prompt between sequences.
    #[error("{0}")]
    Unsupported(String),
    /// A prompt or an answer that cannot be scored.
    #[error("{0}")]
    Input(String),
}

/// The score of one answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AnswerScore {
    /// Sum of the natural log-probabilities of its tokens, in nats.
    pub logprob: f64,
    /// Number of its tokens.
    pub n_tokens: usize,
}

/// Sizes a [`Scorer`] works with. Results do not depend on them, beyond the rounding of sums taken in another order.
#[derive(Debug, Clone)]
pub struct ScorerParams {
    /// Threads; 0 asks for the machine's default.
    pub n_threads: u32,
    /// Tokens in one decode.
    pub n_batch: usize,
    /// Tokens the KV cache may hold before answers are scored in turns instead of side by side. It grows past this only
    /// for a single answer that needs more.
    pub max_cells: usize,
    /// Answers side by side.
    pub max_parallel: usize,
}

impl Default for ScorerParams {
    fn default() -> Self {
        Self { n_threads: 0, n_batch: 512, max_cells: 4096, max_parallel: 62 }
    }
}

/// Scores answers on one model, with or without steering.
#[derive(Debug)]
pub struct Scorer {
    model: Arc<Model>,
    params: ScorerParams,
    steering: Option<ControlVector>,
    ctx: Option<Context>,
    prefix: String,
    /// Tokens of the prefix as they lie in the cache, from position 0.
    prefix_tokens: Vec<Token>,
}

/// One answer as tokens: `whole[n_context..]` is scored given what stands before.
struct Encoded {
    whole: Vec<Token>,
    n_context: usize,
}

impl Encoded {
    /// The positions to decode after the shared ones: the last token only has to be predicted.
    fn own(&self, shared: usize) -> Range<usize> {
        shared..self.whole.len() - 1
    }
}

impl Scorer {
    /// A scorer over `model`; `steering` acts on every position, the prefix included.
    ///
    /// # Errors
    /// [`ScoreError::Unsupported`] for models without a plain KV cache (recurrent, encoder-decoder).
    pub fn new(model: &Arc<Model>, params: ScorerParams, steering: Option<ControlVector>) -> Result<Self, ScoreError> {
        if model.is_recurrent() || model.has_encoder() {
            return Err(ScoreError::Unsupported(format!(
                "{} ({}) cannot be scored: answers that share a prompt need a decoder with a plain KV cache",
                model.path().display(),
                model.architecture()
            )));
        }
        let mut params = params;
        params.max_parallel = params.max_parallel.clamp(1, MAX_SEQUENCES - ANSWERS as usize);
        // llama.cpp reserves the logits of a full batch: half a gigabyte of them is enough.
        params.n_batch = params.n_batch.min((512 << 20) / (4 * model.n_vocab())).max(32);
        Ok(Self {
            model: Arc::clone(model),
            params,
            steering,
            ctx: None,
            prefix: String::new(),
            prefix_tokens: Vec::new(),
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Sets the text that every following prompt begins with. It is evaluated once, at the next call of
    /// [`Scorer::score`], and kept.
    ///
    /// # Errors
    /// [`ScoreError::Llama`] when it cannot be tokenized.
    pub fn set_prefix(&mut self, prefix: &str) -> Result<(), ScoreError> {
        let tokens = if prefix.is_empty() { Vec::new() } else { self.model.tokenize(prefix, true, false)? };
        self.prefix = prefix.to_owned();
        self.prefix_tokens = tokens;
        self.ctx = None;
        Ok(())
    }

    /// Scores each of `answers` as the continuation of prefix + `prompt` + one space.
    ///
    /// Tokenized as lm-evaluation-harness does: the answer's tokens are those of the whole text beyond as many tokens as
    /// the text without the answer has. BOS stands first where the model's tokenizer puts one.
    ///
    /// # Errors
    /// [`ScoreError::Input`] for an empty answer, an empty prompt without BOS, or a text longer than the model was
    /// trained for; [`ScoreError::Llama`] when llama.cpp fails.
    pub fn score(&mut self, prompt: &str, answers: &[&str]) -> Result<Vec<AnswerScore>, ScoreError> {
        let encoded = self.encode(prompt, answers)?;
        if encoded.is_empty() {
            return Ok(Vec::new());
        }
        let lcp = |a: &[Token], b: &[Token]| a.iter().zip(b).take_while(|(x, y)| x == y).count();
        // Positions 0..shared are the same in all answers and stand before the first predicted token.
        let first = &encoded[0];
        let shared = encoded.iter().map(|e| lcp(&first.whole, &e.whole).min(e.n_context)).min().unwrap_or(0);
        // Positions 0..cached come from the prefix. The last shared row predicts a token, so it is decoded again even
        // where the prefix holds it.
        let cached = lcp(&self.prefix_tokens, &first.whole).min(shared - 1);
        self.ensure_context(&encoded, shared)?;

        let mut scores: Vec<AnswerScore> =
            encoded.iter().map(|e| AnswerScore { logprob: 0.0, n_tokens: e.whole.len() - e.n_context }).collect();
        let cells = self.ctx.as_ref().map_or(0, Context::n_ctx);
        let room = cells - self.prefix_tokens.len() - (shared - cached);
        let mut start = 0;
        while start < encoded.len() {
            let mut end = start;
            let mut used = 0;
            while end < encoded.len() && end - start < self.params.max_parallel {
                used += encoded[end].own(shared).len();
                if used > room && end > start {
                    break;
                }
                end += 1;
            }
            let group = self.score_group(&encoded[start..end], shared, cached, start == 0, &mut scores[start..end]);
            if group.is_err() {
                // The cache may hold half of it: the next call begins with a new one.
                self.ctx = None;
            }
            group?;
            start = end;
        }
        self.context()?.kv_remove(PROMPT, 0);
        Ok(scores)
    }

    /// Decodes one group of answers and adds up their log-probabilities. The first group brings the prompt with it; the
    /// later ones find it in the cache, all but its last token, whose logits they need again.
    fn score_group(
        &mut self,
        group: &[Encoded],
        shared: usize,
        cached: usize,
        with_prompt: bool,
        scores: &mut [AnswerScore],
    ) -> Result<(), ScoreError> {
        let n_batch = self.params.n_batch;
        let ctx = self.context()?;
        let sequence = |i: usize| ANSWERS + i as i32;
        let from = if with_prompt {
            ctx.kv_copy(PREFIX, PROMPT);
            cached
        } else {
            shared - 1
        };
        ctx.kv_remove(PROMPT, from);
        let mut everyone = vec![PROMPT];
        for i in 0..group.len() {
            ctx.kv_copy(PROMPT, sequence(i));
            everyone.push(sequence(i));
        }

        // Each row: token, position, sequences, and the (answer, token) pairs that its logits have to give.
        type Row = (Token, usize, Vec<i32>, Vec<(usize, Token)>);
        let predicted = |e: &Encoded, p: usize| (p + 1 >= e.n_context).then(|| e.whole[p + 1]);
        let mut rows: Vec<Row> = Vec::new();
        for p in from..shared {
            let wanted = group.iter().enumerate().filter_map(|(i, e)| predicted(e, p).map(|t| (i, t))).collect();
            rows.push((group[0].whole[p], p, everyone.clone(), wanted));
        }
        for (i, e) in group.iter().enumerate() {
            for p in e.own(shared) {
                rows.push((e.whole[p], p, vec![sequence(i)], predicted(e, p).map(|t| (i, t)).into_iter().collect()));
            }
        }
        for chunk in rows.chunks(n_batch) {
            let mut batch = Batch::new();
            for (token, pos, sequences, wanted) in chunk {
                batch.add(*token, *pos, sequences, !wanted.is_empty());
            }
            ctx.decode(&batch)?;
            for (row, (_, _, _, wanted)) in chunk.iter().enumerate().filter(|(_, r)| !r.3.is_empty()) {
                let logits = ctx.logits(row)?;
                let log_sum = log_sum_exp(logits);
                for &(answer, token) in wanted {
                    scores[answer].logprob += f64::from(logits[token as usize]) - log_sum;
                }
            }
        }
        for i in 0..group.len() {
            ctx.kv_remove(sequence(i), 0);
        }
        Ok(())
    }

    fn encode(&self, prompt: &str, answers: &[&str]) -> Result<Vec<Encoded>, ScoreError> {
        let text = format!("{}{prompt}", self.prefix);
        let n_context = self.model.tokenize(&text, true, false)?.len();
        if n_context == 0 {
            return Err(ScoreError::Input(
                "the prompt is empty and this model has no BOS token: there is nothing an answer could follow".into(),
            ));
        }
        let limit = self.model.n_ctx_train();
        answers
            .iter()
            .map(|answer| {
                let whole = self.model.tokenize(&format!("{text} {answer}"), true, false)?;
                if answer.trim().is_empty() || whole.len() <= n_context {
                    return Err(ScoreError::Input(format!("the answer {answer:?} has no tokens to score")));
                }
                if whole.len() > limit {
                    return Err(ScoreError::Input(format!(
                        "prompt and answer have {} tokens, the model was trained for {limit}: shorten the preamble or \
                         the prompt (answer {answer:?})",
                        whole.len()
                    )));
                }
                Ok(Encoded { whole, n_context })
            })
            .collect()
    }

    /// Makes the context, or a larger one, with steering set and the prefix evaluated.
    fn ensure_context(&mut self, encoded: &[Encoded], shared: usize) -> Result<(), ScoreError> {
        let base = self.prefix_tokens.len() + shared;
        let own = |e: &Encoded| e.own(shared).len();
        let longest = encoded.iter().map(own).max().unwrap_or(0);
        let all: usize = encoded.iter().map(own).sum();
        let need = (base + all).min(self.params.max_cells.max(base + longest));
        if self.ctx.as_ref().is_some_and(|c| c.n_ctx() >= need) {
            return Ok(());
        }
        self.ctx = None;
        let mut ctx = Context::new(
            &self.model,
            &ContextParams {
                n_ctx: need.next_multiple_of(256) as u32,
                n_batch: self.params.n_batch as u32,
                n_seq_max: (self.params.max_parallel + ANSWERS as usize) as u32,
                n_threads: self.params.n_threads,
                kv: KvType::F32,
                flash_attention: false,
            },
        )?;
        // First the vector, then the preamble: K and V depend on it.
        if let Some(steering) = &self.steering {
            steering.apply(&mut ctx)?;
        }
        if !self.prefix_tokens.is_empty() {
            ctx.prefill(&self.prefix_tokens, 0)?;
        }
        self.ctx = Some(ctx);
        Ok(())
    }

    fn context(&mut self) -> Result<&mut Context, ScoreError> {
        self.ctx.as_mut().ok_or_else(|| ScoreError::Input("internal: scoring before a context was made".into()))
    }
}

/// `ln(sum(exp(x)))` in f64, `[n_vocab]` -> one number.
fn log_sum_exp(x: &[f32]) -> f64 {
    let max = f64::from(x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    max + x.iter().map(|&l| (f64::from(l) - max).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_sum_exp_is_stable() {
        assert!((log_sum_exp(&[0.0, 0.0]) - 2f64.ln()).abs() < 1e-15);
        assert!((log_sum_exp(&[1e4, 1e4, f32::NEG_INFINITY]) - (1e4 + 2f64.ln())).abs() < 1e-9);
    }
}
