//! Scores of answers: the summed log-probability of their tokens after a prompt.
//!
//! What is common is computed once. The prefix (a few-shot preamble, say) stays in the KV cache for all prompts; a prompt,
//! and whatever its answers begin with alike, is decoded once for all of its answers ([`super::pack`]); many prompts are
//! decoded together. Positions and attention are those of each answer alone after its prompt; only the order of some sums
//! differs (see the tests for how little). With a recurrent state each answer is decoded by itself, after a copy of the
//! prefix's state.

use super::error::ScoreError;
use super::lm_head::Head;
use super::pack::{Encoded, Limits, Plan, Request, Reuse, Tree};
use crate::steer::ControlVector;
use ggml_grad::llama::{Batch, Context, ContextParams, KernelOverride, KvType, Model, Token, Use, default_threads};
use std::sync::Arc;

/// Sequence that holds the prefix.
const PREFIX: i32 = 0;
/// First of the sequences that hold answers.
const ANSWERS: i32 = 1;
/// `LLAMA_MAX_SEQ` of the pinned llama.cpp.
const MAX_SEQUENCES: usize = 256;

/// The score of one answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AnswerScore {
    /// Sum of the natural log-probabilities of its tokens, in nats.
    pub logprob: f64,
    /// Number of its tokens.
    pub n_tokens: usize,
}

/// A context and the answers to score after it, in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRequest {
    /// Everything before the answer, BOS included.
    pub context: Vec<Token>,
    /// The answers.
    pub answers: Vec<Vec<Token>>,
}

impl TokenRequest {
    /// The tokens of `answers` after `prefix` and `prompt`, as [`Scorer::score`] takes them.
    ///
    /// # Errors
    /// As [`Scorer::score`].
    pub fn encode(model: &Model, prefix: &str, prompt: &str, answers: &[&str]) -> Result<Self, ScoreError> {
        let encoded = encode(model, prefix, prompt, answers)?;
        let context = encoded.whole.first().map_or_else(Vec::new, |w| w[..encoded.n_context].to_vec());
        let answers = encoded.whole.iter().map(|w| w[encoded.n_context..].to_vec()).collect();
        Ok(Self { context, answers })
    }
}

/// Sizes a [`Scorer`] works with. Results do not depend on them, beyond the rounding of sums taken in another order.
#[derive(Debug, Clone)]
pub struct ScorerParams {
    /// Threads; 0 asks for the machine's default.
    pub n_threads: u32,
    /// Tokens in one decode.
    pub n_batch: usize,
    /// Tokens the KV cache may hold before answers are scored one after the other instead of in parallel. It grows past this
    /// only for a single answer that needs more.
    pub max_cells: usize,
    /// Parallel sequences: answers, or groups of them, each with a separate end.
    pub max_parallel: usize,
}

impl Default for ScorerParams {
    fn default() -> Self {
        Self { n_threads: 0, n_batch: 512, max_cells: 4096, max_parallel: 126 }
    }
}

/// Scores answers on one model, with or without steering.
#[derive(Debug)]
pub struct Scorer {
    model: Arc<Model>,
    params: ScorerParams,
    steering: Option<ControlVector>,
    ready: Option<Ready>,
    prefix: String,
    /// Tokens of the prefix as they lie in the cache, from position 0.
    prefix_tokens: Vec<Token>,
}

/// A context with the steering set and the prefix evaluated, and what gives log-probabilities on it.
#[derive(Debug)]
struct Ready {
    ctx: Context,
    head: Head,
}

impl Scorer {
    /// A scorer over `model`; `steering` acts on every position, the prefix included.
    ///
    /// # Errors
    /// [`ScoreError::Model`] for encoder-decoder models.
    pub fn new(model: &Arc<Model>, params: ScorerParams, steering: Option<ControlVector>) -> Result<Self, ScoreError> {
        model.supports(Use::Score)?;
        let mut params = params;
        params.max_parallel = params.max_parallel.clamp(1, MAX_SEQUENCES - ANSWERS as usize);
        // Tokens of several sequences need a KV cache; llama.cpp splits batches of recurrent sequences of different lengths.
        if model.is_recurrent() {
            params.max_parallel = 1;
        }
        // llama.cpp reserves the logits of a full batch: half a gigabyte of them is enough.
        params.n_batch = params.n_batch.min(crate::numbers::rows_within(512 << 20, model.n_vocab())).max(32);
        if params.n_threads == 0 {
            params.n_threads = default_threads();
        }
        Ok(Self {
            model: Arc::clone(model),
            params,
            steering,
            ready: None,
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
        self.ready = None;
        Ok(())
    }

    /// The same for a prefix in tokens, BOS among them where there is one: for [`Scorer::plan_tokens`].
    pub fn set_prefix_tokens(&mut self, tokens: Vec<Token>) {
        self.prefix = String::new();
        self.prefix_tokens = tokens;
        self.ready = None;
    }

    /// Scores each of `answers` as the continuation of prefix + `prompt` + one space.
    ///
    /// Tokenized as lm-evaluation-harness does: the answer's tokens are those of the whole text beyond as many tokens as
    /// the text without the answer has. BOS stands first where the model's tokenizer puts one.
    ///
    /// # Errors
    /// [`ScoreError::Input`] for an empty answer or an empty prompt without BOS; [`ScoreError::TooLong`] for a text longer
    /// than the model was trained for; [`ScoreError::Llama`] when llama.cpp fails.
    pub fn score(&mut self, prompt: &str, answers: &[&str]) -> Result<Vec<AnswerScore>, ScoreError> {
        let encoded = encode(&self.model, &self.prefix, prompt, answers)?;
        let plan = self.plan_of(&[encoded]);
        let mut scores = Vec::new();
        for pack in 0..plan.n_packs() {
            scores.extend(self.run_pack(&plan, pack)?.into_iter().flatten());
        }
        Ok(scores)
    }

    /// Scores many requests, packed into full batches, in order. `on_scores` is told each request's place and scores,
    /// and stops the work by answering false. Returns the number of requests that were scored.
    ///
    /// # Errors
    /// As [`Scorer::plan`] and [`Scorer::run_pack`].
    pub fn score_many(
        &mut self,
        requests: &[Request<'_>],
        on_scores: &mut dyn FnMut(usize, Vec<AnswerScore>) -> bool,
    ) -> Result<usize, ScoreError> {
        let plan = self.plan(requests)?;
        for pack in 0..plan.n_packs() {
            for (request, scores) in plan.requests(pack).zip(self.run_pack(&plan, pack)?) {
                if !on_scores(request, scores) {
                    return Ok(request + 1);
                }
            }
        }
        Ok(requests.len())
    }

    /// Tokenizes requests (as [`Scorer::score`] does) and decides which are decoded together. The plan holds for any
    /// scorer of the same model, prefix and parameters.
    ///
    /// # Errors
    /// [`ScoreError::Request`] with the errors of [`Scorer::score`].
    pub fn plan(&self, requests: &[Request<'_>]) -> Result<Plan, ScoreError> {
        // On all threads: it would be the one serial part.
        let (model, prefix) = (&*self.model, self.prefix.as_str());
        let part = requests.len().div_ceil(self.params.n_threads as usize).max(1);
        let encode_part = move |first: usize, part: &[Request<'_>]| -> Result<Vec<Encoded>, ScoreError> {
            let at = |i| move |source| ScoreError::Request { request: first + i, source: Box::new(source) };
            part.iter().enumerate().map(|(i, r)| encode(model, prefix, r.prompt, r.answers).map_err(at(i))).collect()
        };
        let parts: Vec<_> = std::thread::scope(|scope| {
            let task = |(i, r)| scope.spawn(move || encode_part(i * part, r));
            let tasks: Vec<_> = requests.chunks(part).enumerate().map(task).collect();
            tasks.into_iter().map(|t| t.join().unwrap_or_else(|e| std::panic::resume_unwind(e))).collect()
        });
        let mut encoded = Vec::with_capacity(requests.len());
        for part in parts {
            encoded.extend(part?);
        }
        Ok(self.plan_of(&encoded))
    }

    /// As [`Scorer::plan`], for requests that are tokens already (a chat template's). Contexts need not begin with the
    /// prefix, but what they share with it is not computed again.
    ///
    /// # Errors
    /// [`ScoreError::Request`] for an empty context, an answer without tokens, or a text longer than the model was trained
    /// for.
    pub fn plan_tokens(&self, requests: &[TokenRequest]) -> Result<Plan, ScoreError> {
        let limit = self.model.n_ctx_train();
        let one = |r: &TokenRequest| -> Result<Encoded, ScoreError> {
            if r.context.is_empty() || r.answers.iter().any(Vec::is_empty) {
                return Err(ScoreError::Input("a context or an answer without tokens".into()));
            }
            let whole: Vec<Vec<Token>> = r.answers.iter().map(|a| [&r.context[..], a].concat()).collect();
            match whole.iter().map(Vec::len).max() {
                Some(tokens) if tokens > limit => Err(ScoreError::TooLong { tokens, limit }),
                _ => Ok(Encoded { n_context: r.context.len(), whole }),
            }
        };
        let encoded = requests
            .iter()
            .enumerate()
            .map(|(request, r)| one(r).map_err(|source| ScoreError::Request { request, source: Box::new(source) }));
        Ok(self.plan_of(&encoded.collect::<Result<Vec<_>, _>>()?))
    }

    /// The prefix that is evaluated once for all: none where it is changed by where each prompt ends.
    fn shared_prefix(&self) -> &[Token] {
        match &self.steering {
            Some(steering) if steering.depends_on_prompt() => &[],
            _ => &self.prefix_tokens,
        }
    }

    fn plan_of(&self, encoded: &[Encoded]) -> Plan {
        // llama.cpp's attention takes the cache in steps of 256 cells: a batch that fills the last step costs no more.
        let n_prefix = self.shared_prefix().len();
        let full = ((n_prefix + self.params.n_batch) / 256 * 256).saturating_sub(n_prefix);
        let limits = Limits {
            n_batch: if full >= self.params.n_batch / 2 { full } else { self.params.n_batch },
            max_cells: self.params.max_cells,
            max_sequences: self.params.max_parallel,
            reuse: if self.model.is_recurrent() { Reuse::Whole } else { Reuse::Part },
        };
        Plan::new(encoded, self.shared_prefix(), limits)
    }

    /// Scores one pack of a plan: the scores of each of its requests. A pack's scores do not depend on the packs before.
    ///
    /// # Errors
    /// [`ScoreError::Llama`] when llama.cpp fails.
    pub fn run_pack(&mut self, plan: &Plan, pack: usize) -> Result<Vec<Vec<AnswerScore>>, ScoreError> {
        let Some(pack) = plan.packs.get(pack) else { return Ok(Vec::new()) };
        let of = |n: &Vec<usize>| n.iter().map(|&n_tokens| AnswerScore { logprob: 0.0, n_tokens }).collect();
        let mut scores: Vec<Vec<AnswerScore>> = plan.n_tokens[pack.requests.clone()].iter().map(of).collect();
        let mut ready = self.ready(plan)?;
        for round in &pack.rounds {
            // After an error the cache may hold half of it, and the next call begins with a new one.
            self.run_round(&mut ready, round, &mut |request, answer, logprob| {
                scores[request - pack.requests.start][answer].logprob += logprob;
            })?;
        }
        self.ready = Some(ready);
        Ok(scores)
    }

    /// Decodes trees side by side. `add` gets request, answer, and the log-probability of one of its tokens.
    fn run_round(
        &self,
        ready: &mut Ready,
        round: &[(usize, Tree)],
        add: &mut dyn FnMut(usize, usize, f64),
    ) -> Result<(), ScoreError> {
        let Ready { ctx, head } = ready;
        // Every sequence holds the prefix.
        let n_prefix = self.shared_prefix().len();
        let mut first = ANSWERS;
        let mut sequences = Vec::new();
        for (_, tree) in round {
            let range = first..first + tree.n_sequences as i32;
            if tree.cached < n_prefix {
                range.clone().for_each(|s| ctx.kv_remove(s, tree.cached));
            }
            first = range.end;
            sequences.push(range);
        }
        let rows: Vec<_> = round
            .iter()
            .zip(&sequences)
            .flat_map(|((request, tree), sequences)| {
                tree.rows.iter().map(move |row| (*request, sequences.start, row, tree.n_context))
            })
            .collect();
        let n_chunks = rows.len().div_ceil(self.params.n_batch);
        for (c, chunk) in rows.chunks(self.params.n_batch).enumerate() {
            let mut batch = Batch::new();
            let (mut wanted, mut whose) = (Vec::new(), Vec::new());
            for &(request, base, row, n_context) in chunk {
                let ids: Vec<i32> = row.sequences.clone().map(|s| base + s as i32).collect();
                let at = batch.add(row.token, row.pos, &ids, !row.wanted.is_empty());
                batch.set_prompt(at, n_context);
                // Answers mostly go on alike: each token once.
                let mut tokens: Vec<Token> = row.wanted.iter().map(|w| w.1).collect();
                tokens.sort_unstable();
                tokens.dedup();
                for &token in &tokens {
                    let answers = row.wanted.iter().filter(|w| w.1 == token).map(|w| w.0);
                    whose.extend(answers.map(|answer| (wanted.len(), request, answer)));
                    wanted.push((at, token));
                }
            }
            let log_probs = head.decode(ctx, &batch, &wanted, c + 1 < n_chunks)?;
            for (i, request, answer) in whose {
                add(request, answer, log_probs[i]);
            }
        }
        for ((_, tree), range) in round.iter().zip(sequences) {
            for sequence in range {
                // A recurrent state goes back to that of the prefix by a copy only.
                if tree.cached < n_prefix || self.model.is_recurrent() {
                    ctx.kv_remove(sequence, 0);
                    ctx.kv_copy(PREFIX, sequence);
                } else {
                    ctx.kv_remove(sequence, n_prefix);
                }
            }
        }
        Ok(())
    }

    /// The context, made new where there is none that is large enough, with the steering set and the prefix evaluated.
    fn ready(&mut self, plan: &Plan) -> Result<Ready, ScoreError> {
        // A full batch beside the prefix, so that a larger plan seldom needs another context.
        let need = plan.n_cells.max((self.shared_prefix().len() + self.params.n_batch).min(self.params.max_cells));
        if let Some(ready) = self.ready.take().filter(|r| r.ctx.n_ctx() >= need) {
            return Ok(ready);
        }
        // Attention by our kernel, where the CPU has it and the model's attention is of that kind; else llama.cpp's other one,
        // for its fused one rounds more.
        let ours =
            match ggml_grad::graph::FastKernels::with_attention().filter(|_| !self.model.placement().is_offloaded()) {
                Some(kernel_override) => {
                    Some(self.context(need, true, kernel_override)?).filter(|(ctx, _)| !ctx.kernel_override_refused())
                }
                None => None,
            };
        let (mut ctx, head) = match ours {
            Some(ready) => ready,
            None => self.context(need, false, ggml_grad::graph::FastKernels::if_supported())?,
        };
        ctx.clear_kv();
        if !self.shared_prefix().is_empty() {
            ctx.prefill(self.shared_prefix(), 0)?;
            (ANSWERS..ANSWERS + self.params.max_parallel as i32).for_each(|s| ctx.kv_copy(PREFIX, s));
        }
        Ok(Ready { ctx, head })
    }

    /// A context for so many cells with the steering set, and its output head.
    fn context(
        &self,
        need: usize,
        flash_attention: bool,
        kernel_override: impl Into<Option<Box<dyn KernelOverride>>>,
    ) -> Result<(Context, Head), ScoreError> {
        let mut ctx = Context::new(
            &self.model,
            &ContextParams {
                n_ctx: need.next_multiple_of(256) as u32,
                n_batch: self.params.n_batch as u32,
                n_seq_max: (self.params.max_parallel + ANSWERS as usize) as u32,
                n_threads: self.params.n_threads,
                kv: KvType::F32,
                flash_attention,
                shared_cache: true,
                op_offload: true,
            },
        )?;
        ctx.set_kernel_override(kernel_override.into());
        // First the vector, then the preamble: K and V depend on it.
        if let Some(steering) = &self.steering {
            steering.apply(&mut ctx)?;
        }
        let head = Head::find(&mut ctx, PREFIX)?;
        Ok((ctx, head))
    }

    /// Why scores are taken from llama.cpp's logits instead of the fused output head, which is faster; None where they are
    /// not, or before the first score.
    pub fn slow_head(&self) -> Option<&str> {
        match &self.ready.as_ref()?.head {
            Head::Logits(reason) => Some(reason),
            Head::Fused(..) => None,
        }
    }
}

/// Tokens of some answers after prefix and prompt, as [`Scorer::score`] takes them.
fn encode(model: &Model, prefix: &str, prompt: &str, answers: &[&str]) -> Result<Encoded, ScoreError> {
    let text = format!("{}{prompt}", prefix);
    let n_context = model.tokenize(&text, true, false)?.len();
    if n_context == 0 {
        return Err(ScoreError::Input(
            "the prompt is empty and this model has no BOS token: there is nothing an answer could follow".into(),
        ));
    }
    let limit = model.n_ctx_train();
    let whole = answers
        .iter()
        .map(|answer| {
            let whole = model.tokenize(&format!("{text} {answer}"), true, false)?;
            if answer.trim().is_empty() || whole.len() <= n_context {
                return Err(ScoreError::Input(format!("the answer {answer:?} has no tokens to score")));
            }
            if whole.len() > limit {
                return Err(ScoreError::TooLong { tokens: whole.len(), limit });
            }
            Ok(whole)
        })
        .collect::<Result<_, _>>()?;
    Ok(Encoded { n_context, whole })
}
