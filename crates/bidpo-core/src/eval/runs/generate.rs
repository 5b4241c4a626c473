//! Open-ended generation: many items in parallel, as sequences of one context that share the common prefix of their
//! prompts.
//!
//! Items are taken in waves, and a wave is the same whether or not some of it is done already: what is computed in one
//! batch decides the last bits of a sum, and with them now and then a token.

use super::error::RunError;
use super::pending::{Pending, Runner};
use crate::chat::Utf8Decoder;
use crate::eval::conditions::Condition;
use crate::eval::items::Benchmark;
use crate::eval::prompt::Style;
use crate::eval::results::{Record, Shard, Written};
use crate::eval::scoring::ScoreError;
use crate::steer::ControlVector;
use ggml_grad::llama::{Batch, Context, ContextParams, LlamaError, Model, Sampler, SamplerParams, Token};
use serde_json::{Value, json};
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

/// Items side by side.
const PARALLEL: usize = 32;
/// Tokens that they may take up together, unless one alone needs more.
const CELLS: usize = 16_384;
/// Sequence that holds what all prompts begin with.
const PREFIX: i32 = 0;

/// Decoding options.
#[derive(Debug, Clone)]
pub struct GenerationOptions {
    /// How each token is chosen. Each item draws from a separate random sequence.
    pub sampler: SamplerParams,
    /// Maximum tokens of an answer.
    pub max_tokens: usize,
    /// Stop strings, besides the model's end of turn; they are not part of the answer.
    pub stops: Vec<String>,
}

impl GenerationOptions {
    /// For the manifest.
    pub fn facts(&self) -> Value {
        let s = &self.sampler;
        json!({
            "max_tokens": self.max_tokens,
            "stops": self.stops,
            "temperature": s.temperature,
            "top_p": if s.temperature > 0.0 { s.top_p } else { 1.0 },
            "repeat_penalty": s.repeat_penalty,
        })
    }
}

/// Open-ended generation of answers to a benchmark's items.
#[derive(Debug)]
pub struct Generation<'a> {
    /// The model.
    pub model: &'a Arc<Model>,
    /// The items; all of one group.
    pub benchmark: &'a Benchmark,
    /// Their prompts.
    pub style: &'a Style,
    /// Subset of the items.
    pub shard: Shard,
    /// Decoding options: token limit, stop strings, sampler.
    pub options: &'a GenerationOptions,
    /// Threads.
    pub n_threads: u32,
}

/// An answer in progress.
struct Answer {
    item: usize,
    seq: i32,
    /// Tokens of its prompt.
    n_prompt: usize,
    /// Tokens of it that the cache holds, prompt included.
    n_past: usize,
    sampler: Sampler,
    characters: Utf8Decoder,
    text: String,
    n_tokens: usize,
    last: Token,
    ended: Option<bool>,
}

impl Answer {
    /// Takes the next token.
    fn push(&mut self, token: Token, model: &Model, options: &GenerationOptions, room: usize) {
        if model.is_eog(token) {
            self.ended = Some(true);
            return;
        }
        self.n_tokens += 1;
        self.last = token;
        self.text += &self.characters.push(&model.token_bytes(token, false));
        if let Some(at) = options.stops.iter().filter_map(|s| self.text.find(s)).min() {
            self.text.truncate(at);
            self.characters = Utf8Decoder::default();
            self.ended = Some(true);
        } else if self.n_tokens >= options.max_tokens || self.n_past >= room {
            self.ended = Some(false);
        }
    }

    fn written(mut self) -> Written {
        self.text += &self.characters.finish();
        Written { text: self.text.trim().to_owned(), n_tokens: self.n_tokens, ended: self.ended.unwrap_or(false) }
    }
}

impl Runner for Generation<'_> {
    fn run(&self, condition: &Condition, mut pending: Pending<'_>) -> Result<ControlFlow<()>, RunError> {
        let items = &self.benchmark.items;
        let mine: Vec<usize> = self.shard.items(items.len()).collect();
        if pending.none_of(&mine) {
            return Ok(ControlFlow::Continue(()));
        }
        let failed = RunError::under(&condition.name);
        let place = || format!("condition {:?}", condition.name);
        let (prompts, _) = self
            .style
            .prompts(self.model, self.benchmark, 0, &mine, &condition.overrides)
            .map_err(|source| RunError::Prompt { place: place(), source })?;
        let contexts = prompts.contexts(self.model).map_err(failed)?;
        // A limit of context that leaves no room for one token of an answer.
        let limit = self.model.n_ctx_train();
        if let Some((i, c)) = mine.iter().zip(&contexts).find(|(_, c)| c.is_empty() || c.len() >= limit) {
            let n = c.len();
            let what = format!(
                "the prompt has {n} tokens; it needs at least 1 and fewer than the {limit} the model was trained for"
            );
            let item = &items[*i];
            let place = format!("question {} ({:?}), {}", item.index + 1, item.question, place());
            return Err(RunError::Score { place, source: ScoreError::Input(what) });
        }
        let by_prompt = condition.control.as_ref().is_some_and(ControlVector::depends_on_prompt);
        let n_prefix = if self.model.is_recurrent() || by_prompt { 0 } else { common_prefix(&contexts) };
        let waves = waves(&contexts, n_prefix, self.options.max_tokens);
        let mut ctx = self.context(&contexts, &waves, n_prefix, condition).map_err(|e| failed(e.into()))?;
        pending.for_each_batch(
            waves,
            |wave| mine[wave.clone()].to_vec(),
            |wave| {
                let answers = self
                    .wave(&mut ctx, &mine[wave.clone()], &contexts[wave], n_prefix)
                    .map_err(|e| failed(e.into()))?;
                Ok(answers.into_iter().map(|a| self.record(condition, a)).collect())
            },
        )
    }
}

impl Generation<'_> {
    fn record(&self, condition: &Condition, answer: Answer) -> Record {
        let item = &self.benchmark.items[answer.item];
        Record {
            item: answer.item,
            index: item.index,
            condition: condition.name.clone(),
            question: item.question.clone(),
            category: item.category.clone(),
            answers: item.answers.clone(),
            views: Vec::new(),
            text: None,
            written: Some(answer.written()),
        }
    }

    /// A context for the largest wave, steered, the common beginning in the first sequence.
    fn context(
        &self,
        contexts: &[Vec<Token>],
        waves: &[Range<usize>],
        n_prefix: usize,
        condition: &Condition,
    ) -> Result<Context, LlamaError> {
        let cells = |w: &Range<usize>| cells(&contexts[w.clone()], n_prefix, self.options.max_tokens);
        let need = n_prefix + waves.iter().map(cells).max().unwrap_or(0);
        // llama.cpp reserves the logits of a full batch: half a gigabyte of them is enough.
        let n_batch = 512.min(crate::numbers::rows_within(512 << 20, self.model.n_vocab())).max(PARALLEL);
        let mut ctx = Context::new(
            self.model,
            &ContextParams {
                n_ctx: need.next_multiple_of(256) as u32,
                n_batch: n_batch as u32,
                n_seq_max: 1 + PARALLEL as u32,
                n_threads: self.n_threads,
                ..ContextParams::default()
            },
        )?;
        ctx.set_kernel_override(ggml_grad::graph::FastKernels::if_supported());
        // First the vector, then the beginning: K and V depend on it.
        if let Some(control) = &condition.control {
            control.apply(&mut ctx)?;
        }
        if n_prefix > 0 {
            ctx.prefill(&contexts[0][..n_prefix], 0)?;
        }
        Ok(ctx)
    }

    /// Answers some items side by side.
    fn wave(
        &self,
        ctx: &mut Context,
        items: &[usize],
        contexts: &[Vec<Token>],
        n_prefix: usize,
    ) -> Result<Vec<Answer>, LlamaError> {
        let mut answers: Vec<Answer> = Vec::new();
        let mut rows = Vec::new(); // of all prompts: answer, token, position, is it the last
        for (i, (&item, context)) in items.iter().zip(contexts).enumerate() {
            let seq = PREFIX + 1 + i as i32;
            ctx.kv_remove(seq, 0);
            if n_prefix > 0 {
                ctx.kv_copy(PREFIX, seq);
            }
            answers.push(Answer {
                item,
                seq,
                n_prompt: context.len(),
                n_past: context.len(),
                sampler: Sampler::new(self.model.n_vocab(), &self.sampler_of(item)),
                characters: Utf8Decoder::default(),
                text: String::new(),
                n_tokens: 0,
                last: 0,
                ended: None,
            });
            rows.extend((n_prefix..context.len()).map(|p| (i, context[p], p, p + 1 == context.len())));
        }
        for chunk in rows.chunks(ctx.n_batch()) {
            let mut batch = Batch::new();
            let mut ends = Vec::new();
            for &(i, token, pos, last) in chunk {
                let row = batch.add(token, pos, &[answers[i].seq], last);
                batch.set_prompt(row, answers[i].n_prompt);
                if last {
                    ends.push((i, row));
                }
            }
            ctx.decode(&batch)?;
            for (i, row) in ends {
                self.sample(ctx, row, &mut answers[i])?;
            }
        }
        ctx.stay_awake(true);
        let written = self.write(ctx, &mut answers);
        ctx.stay_awake(false);
        written?;
        answers.iter().for_each(|a| ctx.kv_remove(a.seq, 0));
        Ok(answers)
    }

    fn write(&self, ctx: &mut Context, answers: &mut [Answer]) -> Result<(), LlamaError> {
        loop {
            let mut batch = Batch::new();
            let mut rows = Vec::new();
            for (i, a) in answers.iter_mut().enumerate().filter(|(_, a)| a.ended.is_none()) {
                let row = batch.add(a.last, a.n_past, &[a.seq], true);
                batch.set_prompt(row, a.n_prompt);
                rows.push((i, row));
                a.n_past += 1;
            }
            if batch.is_empty() {
                return Ok(());
            }
            ctx.decode(&batch)?;
            for (i, row) in rows {
                self.sample(ctx, row, &mut answers[i])?;
            }
        }
    }

    fn sample(&self, ctx: &Context, row: usize, answer: &mut Answer) -> Result<(), LlamaError> {
        let token = answer.sampler.sample(ctx, row)?;
        answer.push(token, self.model, self.options, self.model.n_ctx_train());
        Ok(())
    }

    /// The options with a seed of the item's own, the same under every condition.
    fn sampler_of(&self, item: usize) -> SamplerParams {
        let s = &self.options.sampler;
        let seed = s.seed.wrapping_mul(0x9E37_79B9).wrapping_add(self.benchmark.items[item].index as u32);
        SamplerParams { seed, ..s.clone() }
    }
}

/// Tokens that all contexts begin with, leaving at least one of each.
fn common_prefix(contexts: &[Vec<Token>]) -> usize {
    let Some((first, rest)) = contexts.split_first() else { return 0 };
    let common = rest.iter().fold(first.len(), |n, c| first[..n].iter().zip(c).take_while(|(a, b)| a == b).count());
    let shortest = contexts.iter().map(Vec::len).min().unwrap_or(0);
    common.min(shortest.saturating_sub(1))
}

/// Tokens that some items take up beside the prefix.
fn cells(contexts: &[Vec<Token>], n_prefix: usize, max_tokens: usize) -> usize {
    contexts.iter().map(|c| c.len() - n_prefix + max_tokens).sum()
}

/// Which items are answered side by side.
fn waves(contexts: &[Vec<Token>], n_prefix: usize, max_tokens: usize) -> Vec<Range<usize>> {
    let mut waves = Vec::new();
    let mut start = 0;
    while start < contexts.len() {
        let mut end = start + 1;
        while end < contexts.len()
            && end - start < PARALLEL
            && cells(&contexts[start..=end], n_prefix, max_tokens) <= CELLS
        {
            end += 1;
        }
        waves.push(start..end);
        start = end;
    }
    waves
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves_hold_what_fits() {
        let contexts = vec![vec![1, 2, 3]; 70];
        assert_eq!(waves(&contexts, 2, 10), [0..32, 32..64, 64..70]);
        // 8,001 tokens each: two fit.
        assert_eq!(waves(&contexts[..3], 2, 8000), [0..2, 2..3]);
        assert_eq!(waves(&contexts[..2], 0, 20_000), [0..1, 1..2]);
    }

    #[test]
    fn a_prefix_leaves_something_to_compute() {
        assert_eq!(common_prefix(&[vec![1, 2, 3], vec![1, 2, 4, 5]]), 2);
        assert_eq!(common_prefix(&[vec![1, 2], vec![1, 2, 4]]), 1);
        assert_eq!(common_prefix(&[vec![1, 2]]), 1);
        assert_eq!(common_prefix(&[]), 0);
    }
}
