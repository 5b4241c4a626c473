//! A job on its way: what was computed of it, and the text that comes out.

use super::job::{Event, Finish, Job, TokenInfo, Usage};
use super::logprobs::RowLogprobs;
use super::stops::StopFilter;
use bidpo_core::chat::Utf8Decoder;
use bidpo_core::steer::{GateMemory, Opening};
use ggml_grad::llama::{Context, LlamaError, Model, Sampler, Token};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A job that has a slot.
#[derive(Debug)]
pub(crate) struct Work {
    pub job: Job,
    /// Tokens of the job that are in the cache.
    pub n_done: usize,
    /// The token generated last, in no cache yet.
    pub next: Option<Token>,
    n_reused: usize,
    n_generated: usize,
    started: Instant,
    answering: Option<Instant>,
    sampler: Sampler,
    characters: Utf8Decoder,
    filter: StopFilter,
    /// Tokens whose text is held back, each with the length of the text before it and with it.
    pending: VecDeque<(TokenInfo, usize, usize)>,
    /// Bytes of text so far, and of those that went out.
    n_text: usize,
    n_sent: usize,
    /// A stop sequence was met: nothing more goes out.
    stopped: bool,
    /// The token that ended the turn, where it is told.
    end: Option<TokenInfo>,
}

impl Work {
    /// Starts a job of which the cache holds `n_reused` tokens.
    pub(crate) fn new(job: Job, n_reused: usize, n_vocab: usize) -> Self {
        Self {
            n_done: n_reused,
            next: None,
            n_reused,
            n_generated: 0,
            started: Instant::now(),
            answering: None,
            sampler: job.sampling.sampler(n_vocab),
            characters: Utf8Decoder::default(),
            filter: StopFilter::new(job.stop.clone()),
            pending: VecDeque::new(),
            n_text: 0,
            n_sent: 0,
            stopped: false,
            end: None,
            job,
        }
    }

    /// True while tokens of the job itself have to be computed.
    pub(crate) fn is_prefilling(&self) -> bool {
        self.n_done < self.job.tokens.len()
    }

    pub(crate) fn n_generated(&self) -> usize {
        self.n_generated
    }

    /// Scores of tokens of the job from one batch: `rows` holds the row of the batch and the position behind which each
    /// token comes; `gates`, what the gates decided in sequence `id`.
    pub(crate) fn score(
        &self,
        ctx: &Context,
        rows: &[(usize, usize)],
        gates: &GateMemory,
        id: i32,
    ) -> Result<(), LlamaError> {
        let mut scored = Vec::with_capacity(rows.len());
        for &(row, at) in rows {
            let open = self.job.gates_at(gates, id, at);
            scored.push(self.info(ctx.finite_logits(row)?, self.job.tokens[at + 1], open));
        }
        if !scored.is_empty() {
            self.job.send(Event::Scored(scored));
        }
        Ok(())
    }

    fn info(&self, logits: &[f32], token: Token, gates: Vec<Opening>) -> TokenInfo {
        let row = RowLogprobs::new(logits);
        TokenInfo { token, logprob: Some(row.of(token)), top: row.top(self.job.top_logprobs.unwrap_or(0)), gates }
    }

    /// Notes that the prompt is computed.
    pub(crate) fn prompt_is_done(&mut self) {
        self.answering = Some(Instant::now());
    }

    /// Chooses the next token from a row of logits, for which the gates were open as `gates` tells where log-probabilities are
    /// wanted. `full`: no room for another one. Some: the answer ends.
    pub(crate) fn sample(
        &mut self,
        ctx: &Context,
        row: usize,
        gates: Vec<Opening>,
        full: bool,
    ) -> Result<Option<Finish>, LlamaError> {
        let model = ctx.model();
        let token = match &mut self.job.grammar {
            None => self.sampler.sample(ctx, row)?,
            Some(grammar) => match self.sampler.sample_within(ctx, row, grammar)? {
                Some(token) => token,
                // No token leads on, which happens where the vocabulary lacks a character.
                None => return Ok(Some(Finish::Stop)),
            },
        };
        if model.is_eog(token) {
            if self.job.tell_end && self.job.top_logprobs.is_some() {
                self.end = Some(self.info(ctx.logits(row)?, token, gates));
            }
            return Ok(Some(Finish::Stop));
        }
        self.n_generated += 1;
        self.next = Some(token);
        let info = match self.job.top_logprobs {
            Some(_) => Some(self.info(ctx.logits(row)?, token, gates)),
            None => None,
        };
        if let Some(sequence) = self.write(model, token, info) {
            return Ok(Some(Finish::Sequence(sequence)));
        }
        Ok((full || self.n_generated >= self.job.max_tokens).then_some(Finish::Length))
    }

    /// Adds a token's text. Some: the number of the stop sequence that was met.
    fn write(&mut self, model: &Model, token: Token, info: Option<TokenInfo>) -> Option<usize> {
        let piece = self.characters.push(&model.token_bytes(token, self.job.written.contains(&token)));
        let before = self.n_text;
        self.n_text += piece.len();
        self.pending.extend(info.map(|info| (info, before, self.n_text)));
        let passed = self.filter.push(&piece);
        self.stopped = passed.met.is_some();
        self.send(passed.text, self.stopped);
        passed.met
    }

    /// Sends text, and the tokens whose text is out with it. At a stop, of the token that the text ends in too.
    fn send(&mut self, text: String, stopped: bool) {
        self.n_sent += text.len();
        let mut tokens = Vec::new();
        while let Some((_, before, after)) = self.pending.front() {
            if *after <= self.n_sent || (stopped && *before < self.n_sent) {
                tokens.extend(self.pending.pop_front().map(|(info, ..)| info));
            } else {
                break;
            }
        }
        if !text.is_empty() || !tokens.is_empty() {
            self.job.send(Event::Text { text, tokens });
        }
    }

    /// Ends the answer: what was held back goes out, unless a stop sequence was met.
    pub(crate) fn finish(mut self, finish: Finish) {
        if !self.stopped {
            let rest = self.characters.finish();
            self.n_text += rest.len();
            let passed = self.filter.push(&rest);
            self.send(passed.text, passed.met.is_some());
            if passed.met.is_none() {
                let held = self.filter.finish();
                self.send(held, false);
            }
        }
        if let Some(end) = self.end.take() {
            self.job.send(Event::Text { text: String::new(), tokens: vec![end] });
        }
        let usage = self.usage();
        self.job.send(Event::Done(finish, usage));
    }

    /// Times and token counts so far.
    pub(crate) fn usage(&self) -> Usage {
        let answering = self.answering.unwrap_or_else(Instant::now);
        Usage {
            n_prompt: self.job.tokens.len(),
            n_reused: self.n_reused,
            n_generated: self.n_generated,
            waited: self.started.duration_since(self.job.since),
            prompt_time: answering.duration_since(self.started),
            answer_time: self.answering.map_or(Duration::ZERO, |t| t.elapsed()),
        }
    }
}
