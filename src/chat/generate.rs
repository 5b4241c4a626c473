//! One answer: prompt tokens in, tokens out until something ends it.

use super::Utf8Pieces;
use crate::data::TemplateError;
use crate::llama::{Batch, Context, ContextParams, LlamaError, Model, Sampler, SamplerParams, Token};
use crate::steer::{ControlVector, SteerError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What can go wrong in a chat.
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
    /// The model is of a kind that cannot chat.
    #[error("{0}")]
    Unsupported(String),
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

/// How to make a [`Generator`].
#[derive(Debug, Clone, Default)]
pub struct GeneratorParams {
    /// Tokens of context; 0 takes the model's training length, at most [`Generator::DEFAULT_CONTEXT`].
    pub n_ctx: u32,
    /// Threads; 0 asks for the machine's default.
    pub n_threads: u32,
}

/// How to answer.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// How each token is chosen.
    pub sampler: SamplerParams,
    /// The most tokens an answer may have.
    pub max_tokens: usize,
    /// Stops the answer when it becomes true (Ctrl-C).
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
    /// How many of those were still in the KV cache.
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

fn rate(n: usize, time: Duration) -> f64 {
    if n == 0 || time.is_zero() { 0.0 } else { n as f64 / time.as_secs_f64() }
}

/// A context that answers prompts under one steering at a time, and remembers what its KV cache holds.
#[derive(Debug)]
pub struct Generator {
    ctx: Context,
    /// Tokens of context that were asked for; llama.cpp rounds its cache up to a multiple of 256.
    n_ctx: usize,
    /// Tokens whose K and V lie in the cache, in order: position i holds `cached[i]`.
    cached: Vec<Token>,
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
        if model.has_encoder() {
            return Err(ChatError::Unsupported(format!(
                "{} is an encoder-decoder model ({}): only decoder models can chat",
                model.path().display(),
                model.architecture()
            )));
        }
        let n_ctx = match params.n_ctx {
            0 => Self::default_context(model) as u32,
            n => n,
        };
        let ctx = Context::new(
            model,
            &ContextParams { n_ctx, n_batch: n_ctx.min(512), n_threads: params.n_threads, ..ContextParams::default() },
        )?;
        Ok(Self { n_ctx: ctx.n_ctx().min(n_ctx as usize), ctx, cached: Vec::new(), steering: None })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        self.ctx.model()
    }

    /// Tokens the context holds.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
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
        self.steering = None;
        match &vector {
            Some(v) => v.apply(&mut self.ctx)?,
            None => self.ctx.clear_control_vector(),
        }
        self.steering = vector;
        Ok(())
    }

    /// Forgets the KV cache.
    pub fn clear(&mut self) {
        self.ctx.clear_kv();
        self.cached.clear();
    }

    /// Answers `prompt` (tokens, BOS included). `on_piece` gets the text as it comes, whole characters only.
    ///
    /// What the cache holds of the prompt's beginning is used again. A position's K and V depend on the tokens before
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
        if prompt.is_empty() {
            return Err(TemplateError::EmptyPrompt.into());
        }
        if prompt.len() > self.n_ctx {
            return Err(ChatError::PromptTooLong { n_prompt: prompt.len(), n_ctx: self.n_ctx });
        }
        let interrupted = || options.interrupt.load(Ordering::Relaxed);
        let n_reused = self.rewind(prompt);
        let mut out = Generation {
            text: String::new(),
            tokens: Vec::new(),
            stop: StopReason::Interrupted,
            n_prompt: prompt.len(),
            n_reused,
            prompt_time: Duration::ZERO,
            answer_time: Duration::ZERO,
        };
        let start = Instant::now();
        let mut row = 0;
        for chunk in prompt[n_reused..].chunks(self.ctx.n_batch()) {
            if interrupted() {
                return Ok(out);
            }
            row = self.ctx.prefill(chunk, self.cached.len())?;
            self.cached.extend(chunk);
        }
        out.prompt_time = start.elapsed();

        // One token follows another: threads that sleep in between would have to be woken for each.
        self.ctx.stay_awake(true);
        let answered = self.continue_from(row, options, on_piece, &mut out);
        self.ctx.stay_awake(false);
        answered.map(|()| out)
    }

    /// The answer to a prompt that is in the cache, its last logits in row `row` of the last batch.
    fn continue_from(
        &mut self,
        mut row: usize,
        options: &GenerateOptions,
        on_piece: &mut dyn FnMut(&str),
        out: &mut Generation,
    ) -> Result<(), ChatError> {
        let interrupted = || options.interrupt.load(Ordering::Relaxed);
        let model = Arc::clone(self.model());
        let start = Instant::now();
        let mut sampler = Sampler::new(model.n_vocab(), &options.sampler);
        let mut characters = Utf8Pieces::default();
        out.stop = loop {
            if interrupted() {
                break StopReason::Interrupted;
            }
            if out.tokens.len() >= options.max_tokens {
                break StopReason::MaxTokens;
            }
            let token = sampler.sample(&self.ctx, row)?;
            if model.is_eog(token) {
                break StopReason::EndOfTurn;
            }
            out.tokens.push(token);
            let piece = characters.push(&model.token_bytes(token, false));
            if !piece.is_empty() {
                out.text.push_str(&piece);
                on_piece(&piece);
            }
            if out.tokens.len() >= options.max_tokens {
                break StopReason::MaxTokens;
            }
            if self.cached.len() >= self.n_ctx {
                break StopReason::ContextFull;
            }
            let mut batch = Batch::new();
            row = batch.add(token, self.cached.len(), &[0], true);
            self.ctx.decode(&batch)?;
            self.cached.push(token);
        };
        let rest = characters.finish();
        if !rest.is_empty() {
            out.text.push_str(&rest);
            on_piece(&rest);
        }
        out.answer_time = start.elapsed();
        Ok(())
    }

    /// Cuts the cache back to what it shares with `prompt`, leaving at least the last prompt token to compute (its
    /// logits are needed). Returns the number of tokens kept.
    fn rewind(&mut self, prompt: &[Token]) -> usize {
        let common = self.cached.iter().zip(prompt).take_while(|(a, b)| a == b).count().min(prompt.len() - 1);
        // A recurrent state cannot be taken back by a few tokens: all or nothing.
        let keep = if self.model().is_recurrent() && common < self.cached.len() { 0 } else { common };
        if keep == 0 {
            self.clear();
        } else if keep < self.cached.len() {
            self.ctx.kv_remove(0, keep);
            self.cached.truncate(keep);
        }
        keep
    }
}
