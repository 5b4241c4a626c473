//! One answer: prompt tokens in, tokens out until something ends it.

use super::Utf8Decoder;
use crate::adapter::Adapters;
use crate::data::TemplateError;
use crate::steer::{ControlVector, GateMemory, Openings, SteerError};
use ggml_grad::llama::{Batch, Context, ContextParams, LlamaError, Model, Sampler, SamplerParams, Token, Use};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// An error in a chat.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The prompt alone fills the context.
    #[error(
        "the prompt has {n_prompt} tokens and the context holds {n_ctx}: raise --ctx, shorten the prompt, or start a new chat"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        n_prompt: usize,
        /// Tokens of the context.
        n_ctx: usize,
    },
    /// There is no vector of that name.
    #[error("no vector is named {name}; loaded: {loaded}")]
    NoSuchVector {
        /// The name asked for.
        name: String,
        /// The names there are.
        loaded: String,
    },
    /// There is nothing to answer again.
    #[error("no question was asked yet")]
    NoQuestion,
    /// A comparison without anything to compare.
    #[error("nothing steers, so there is nothing to compare: {0}")]
    NothingSteers(&'static str),
    /// The model is of a kind that cannot chat.
    #[error(transparent)]
    Unsupported(#[from] ggml_grad::llama::Unsupported),
    /// The template's reason.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// llama.cpp's reason.
    #[error(transparent)]
    Llama(#[from] LlamaError),
    /// The vector's reason.
    #[error(transparent)]
    Steer(#[from] SteerError),
}

/// Settings of a [`Generator`].
#[derive(Debug, Clone, Default)]
pub struct GeneratorParams {
    /// Tokens of context; 0 takes the model's training length, at most [`Generator::DEFAULT_CONTEXT`].
    pub n_ctx: u32,
    /// Threads; 0 asks for the machine's default.
    pub n_threads: u32,
}

/// Settings of an answer.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// Sampling settings.
    pub sampler: SamplerParams,
    /// The most tokens an answer may have.
    pub max_tokens: usize,
    /// Stops the answer when it becomes true (Ctrl-C), within a prompt that is being computed as well.
    pub interrupt: Arc<AtomicBool>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self { sampler: SamplerParams::default(), max_tokens: 256, interrupt: Arc::default() }
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The model ended its turn.
    EndOfTurn,
    /// `max_tokens` were generated.
    MaxTokens,
    /// The context is full.
    ContextFull,
    /// Someone stopped it.
    Interrupted,
}

impl std::fmt::Display for StopReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::EndOfTurn => "the model ended its turn",
            Self::MaxTokens => "the limit of tokens was reached",
            Self::ContextFull => "the context is full",
            Self::Interrupted => "it was stopped",
        })
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Generation {
    /// Its text.
    pub text: String,
    /// Its tokens, without the one that ended it.
    pub tokens: Vec<Token>,
    /// Why it ended.
    pub stop: StopReason,
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// Number of those that were still in the KV cache.
    pub n_reused: usize,
    /// Time the rest of the prompt took.
    pub prompt_time: Duration,
    /// Time the answer took.
    pub answer_time: Duration,
}

impl Generation {
    /// Prompt tokens computed in a second; 0 where none was.
    pub fn prompt_tokens_per_second(&self) -> f64 {
        rate(self.n_prompt - self.n_reused, self.prompt_time)
    }

    /// Tokens generated in a second; 0 where none was.
    pub fn tokens_per_second(&self) -> f64 {
        rate(self.tokens.len(), self.answer_time)
    }
}

pub(super) fn rate(n: usize, time: Duration) -> f64 {
    if n == 0 || time.is_zero() { 0.0 } else { n as f64 / time.as_secs_f64() }
}

/// An answer in progress.
#[derive(Debug)]
pub(super) struct GenerationState {
    /// Row of the last batch with the next token's logits.
    row: usize,
    sampler: Sampler,
    characters: Utf8Decoder,
    max_tokens: usize,
    interrupt: Arc<AtomicBool>,
    /// The answer is complete.
    pub(super) done: bool,
    pub(super) out: Generation,
}

impl GenerationState {
    fn interrupted(&self) -> bool {
        self.interrupt.load(Ordering::Relaxed)
    }
}

/// Where the gates of a steering opened in a conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct GateTrace {
    /// The tokens in the cache: the prompt and its answer.
    pub tokens: Vec<Token>,
    /// Tokens of the prompt.
    pub n_prompt: usize,
    /// Each gate's opening at each token.
    pub gates: Vec<Openings>,
}

/// A context that answers prompts under one steering at a time, and remembers what its KV cache holds.
#[derive(Debug)]
pub struct Generator {
    ctx: Context,
    /// Tokens of context that were asked for; llama.cpp rounds its cache up to a multiple of 256.
    n_ctx: usize,
    /// Tokens whose K and V lie in the cache, in order: position i holds `cached[i]`.
    cached: Vec<Token>,
    /// For each of them, the tokens of the prompt that it was computed with.
    cached_prompts: Vec<usize>,
    /// What the gates decided.
    memory: Arc<Mutex<GateMemory>>,
    steering: Option<ControlVector>,
}

impl Generator {
    /// The most tokens of context taken without being asked.
    pub const DEFAULT_CONTEXT: usize = 4096;

    /// Tokens of context on `model` where none are asked for.
    pub fn default_context(model: &Model) -> usize {
        model.n_ctx_train().clamp(1, Self::DEFAULT_CONTEXT)
    }

    /// Makes a context on `model`, unsteered.
    ///
    /// # Errors
    /// [`ChatError::Unsupported`] for encoder-decoder models, [`ChatError::Llama`] when there is no memory for it.
    pub fn new(model: &Arc<Model>, params: &GeneratorParams) -> Result<Self, ChatError> {
        model.supports(Use::Chat)?;
        let n_ctx = match params.n_ctx {
            0 => Self::default_context(model) as u32,
            n => n,
        };
        let ctx = Context::new(
            model,
            &ContextParams { n_ctx, n_batch: n_ctx.min(512), n_threads: params.n_threads, ..ContextParams::default() },
        )?;
        Ok(Self {
            n_ctx: ctx.n_ctx().min(n_ctx as usize),
            ctx,
            cached: Vec::new(),
            cached_prompts: Vec::new(),
            memory: Arc::default(),
            steering: None,
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        self.ctx.model()
    }

    /// Tokens the context holds.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// Steering of the tokens in the KV cache.
    pub fn steering(&self) -> Option<&ControlVector> {
        self.steering.as_ref()
    }

    /// Tokens in the KV cache.
    pub fn n_cached(&self) -> usize {
        self.cached.len()
    }

    /// Steers from now on with `vector`. K and V computed under another vector are thrown away: the next prompt is
    /// computed from its first token. The same vector again changes nothing.
    ///
    /// # Errors
    /// [`ChatError::Llama`] when the vector does not fit the model.
    pub fn set_steering(&mut self, vector: Option<ControlVector>) -> Result<(), ChatError> {
        if vector == self.steering {
            return Ok(());
        }
        self.cached.clear();
        self.cached_prompts.clear();
        self.steering = None;
        match &vector {
            Some(v) => self.memory = v.apply_with_memory(&mut self.ctx)?,
            None => {
                Adapters::default().put_on(&mut self.ctx)?;
                self.ctx.clear_control_vector();
            }
        }
        self.steering = vector;
        Ok(())
    }

    /// Openings of the gates at the positions in the KV cache, with their tokens; the last prompt's length tells which are
    /// the answer's.
    pub fn gates(&self) -> GateTrace {
        let n_prompt = self.cached_prompts.last().copied().unwrap_or(0);
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let steering = self.steering.as_ref();
        GateTrace {
            tokens: self.cached.clone(),
            n_prompt,
            gates: steering.map_or_else(Vec::new, |s| s.openings(&memory, 0, n_prompt, self.cached.len())),
        }
    }

    /// Forgets the KV cache.
    pub fn clear(&mut self) {
        self.ctx.clear_kv();
        self.cached.clear();
        self.cached_prompts.clear();
    }

    /// Answers `prompt` (tokens, BOS included). `on_piece` gets the text as it comes, whole characters only.
    ///
    /// The cached prefix of the prompt is reused. A position's K and V depend on the tokens before
    /// it and on the vector alone, so this changes speed, not meaning.
    ///
    /// # Errors
    /// [`ChatError::PromptTooLong`], [`TemplateError::EmptyPrompt`], or [`ChatError::Llama`]; the cache is empty
    /// after an error.
    pub fn generate(
        &mut self,
        prompt: &[Token],
        options: &GenerateOptions,
        on_piece: &mut dyn FnMut(&str),
    ) -> Result<Generation, ChatError> {
        let result = self.answer(prompt, options, on_piece);
        if result.is_err() {
            self.clear(); // a decode that failed half-way leaves the cache in an unknown state
        }
        result
    }

    fn answer(
        &mut self,
        prompt: &[Token],
        options: &GenerateOptions,
        on_piece: &mut dyn FnMut(&str),
    ) -> Result<Generation, ChatError> {
        let mut answering = self.begin(prompt, options)?;
        // One token follows another: threads that sleep in between would have to be woken for each.
        self.ctx.stay_awake(true);
        let mut answered = Ok(());
        while !answering.done {
            match self.step(&mut answering) {
                Ok(piece) if piece.is_empty() => {}
                Ok(piece) => on_piece(&piece),
                Err(error) => {
                    answered = Err(error);
                    break;
                }
            }
        }
        self.ctx.stay_awake(false);
        answered.map(|()| answering.out)
    }

    /// Puts `prompt` into the cache. Nothing else may use the generator until the answer is done.
    ///
    /// # Errors
    /// As [`Generator::generate`]; [`Generator::clear`] is left to the caller (also below).
    pub(super) fn begin(&mut self, prompt: &[Token], options: &GenerateOptions) -> Result<GenerationState, ChatError> {
        if prompt.is_empty() {
            return Err(TemplateError::EmptyPrompt.into());
        }
        if prompt.len() > self.n_ctx {
            return Err(ChatError::PromptTooLong { n_prompt: prompt.len(), n_ctx: self.n_ctx });
        }
        let n_reused = self.rewind(prompt);
        let mut answering = GenerationState {
            row: 0,
            sampler: Sampler::new(self.model().n_vocab(), &options.sampler),
            characters: Utf8Decoder::default(),
            max_tokens: options.max_tokens,
            interrupt: Arc::clone(&options.interrupt),
            done: false,
            out: Generation {
                text: String::new(),
                tokens: Vec::new(),
                stop: StopReason::Interrupted,
                n_prompt: prompt.len(),
                n_reused,
                prompt_time: Duration::ZERO,
                answer_time: Duration::ZERO,
            },
        };
        self.ctx.set_interrupt(Some(Arc::clone(&options.interrupt)));
        let start = Instant::now();
        for chunk in prompt[n_reused..].chunks(self.ctx.n_batch()) {
            let decoded = if answering.interrupted() {
                Err(LlamaError::Interrupted)
            } else {
                self.ctx.prefill_of(chunk, self.cached.len(), Some(prompt.len()))
            };
            match decoded {
                Ok(row) => answering.row = row,
                Err(LlamaError::Interrupted) => {
                    answering.done = true; // the chunks before stay in the cache
                    break;
                }
                Err(error) => return Err(error.into()),
            }
            self.cached.extend(chunk);
            self.cached_prompts.resize(self.cached.len(), prompt.len());
        }
        answering.out.prompt_time = start.elapsed();
        Ok(answering)
    }

    /// One more token of the answer; returns the text that became complete with it.
    ///
    /// # Errors
    /// [`ChatError::Llama`].
    pub(super) fn step(&mut self, a: &mut GenerationState) -> Result<String, ChatError> {
        let start = Instant::now();
        let (mut piece, stop) = self.next(a)?;
        if let Some(stop) = stop {
            piece += &a.characters.finish();
            a.out.stop = stop;
            a.done = true;
        }
        a.out.text += &piece;
        a.out.answer_time += start.elapsed();
        Ok(piece)
    }

    /// The next token's text, and why it was the last one.
    fn next(&mut self, a: &mut GenerationState) -> Result<(String, Option<StopReason>), ChatError> {
        let nothing = |reason| Ok((String::new(), Some(reason)));
        if a.interrupted() {
            return nothing(StopReason::Interrupted);
        }
        if a.out.tokens.len() >= a.max_tokens {
            return nothing(StopReason::MaxTokens);
        }
        let token = a.sampler.sample(&self.ctx, a.row)?;
        if self.model().is_eog(token) {
            return nothing(StopReason::EndOfTurn);
        }
        a.out.tokens.push(token);
        let piece = a.characters.push(&self.model().token_bytes(token, false));
        if a.out.tokens.len() >= a.max_tokens {
            return Ok((piece, Some(StopReason::MaxTokens)));
        }
        if self.cached.len() >= self.n_ctx {
            return Ok((piece, Some(StopReason::ContextFull)));
        }
        let mut batch = Batch::new();
        a.row = batch.add(token, self.cached.len(), &[0], true);
        batch.set_prompt(a.row, a.out.n_prompt);
        match self.ctx.decode(&batch) {
            Ok(()) => {
                self.cached.push(token);
                self.cached_prompts.push(a.out.n_prompt);
            }
            Err(LlamaError::Interrupted) => return Ok((piece, Some(StopReason::Interrupted))),
            Err(error) => return Err(error.into()),
        }
        Ok((piece, None))
    }

    /// Cuts the cache back to what it shares with `prompt`, leaving at least the last prompt token to compute (its
    /// logits are needed). Returns the number of tokens kept.
    fn rewind(&mut self, prompt: &[Token]) -> usize {
        let mut common = self.cached.iter().zip(prompt).take_while(|(a, b)| a == b).count().min(prompt.len() - 1);
        if let Some(steering) = self.steering.as_ref().filter(|s| s.depends_on_prompt()) {
            // What was an answer is now part of a prompt: kept only where it would be changed in the same way.
            let alike = |&at: &usize| steering.treats_alike(at, self.cached_prompts[at], prompt.len());
            common = (0..common).take_while(alike).count();
        }
        // A recurrent state cannot be taken back by a few tokens: all or nothing.
        let keep = if self.model().is_recurrent() && common < self.cached.len() { 0 } else { common };
        if keep == 0 {
            self.clear();
        } else if keep < self.cached.len() {
            self.ctx.kv_remove(0, keep);
            self.cached.truncate(keep);
            self.cached_prompts.truncate(keep);
        }
        keep
    }
}
