//! A llama.cpp context: decoding, the KV cache, the control vector, and the tap.

mod batch;
mod cache_data;
mod control_vector;
mod pool;
mod reference;

pub use batch::{Batch, BatchRow};
pub use pool::Pool;
pub use reference::{ReferenceContext, first_token};

use crate::llama::callback::RowHook;
use crate::llama::callback::{CallbackSlot, aborts, trampoline};
use crate::llama::process::guard::{guarded, throwing};
use crate::llama::process::usable_cores;
use crate::llama::{Adapter, EvalCallback, KernelOverride, LlamaError, Model, RowChange, Token, last_log_lines, sys};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Answer of `llama_decode` where the abort callback stopped it.
const ABORTED: i32 = 2;

/// Stands for a code where `llama_decode` threw.
const THREW: i32 = i32::MIN;

/// Type of the KV cache's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvType {
    /// 16-bit floats: llama.cpp's default.
    F16,
    /// 32-bit floats: what the training engine needs for bit equality.
    F32,
}

/// Options of a context.
#[derive(Debug, Clone)]
pub struct ContextParams {
    /// Tokens the KV cache holds, all sequences together.
    pub n_ctx: u32,
    /// Tokens a single `decode` may hold; also the size of one compute pass (`n_ubatch`).
    pub n_batch: u32,
    /// Number of sequences.
    pub n_seq_max: u32,
    /// Threads; 0 asks for the machine's default.
    pub n_threads: u32,
    /// Type of the K and V cache.
    pub kv: KvType,
    /// Let llama.cpp use its fused attention kernel where it can.
    pub flash_attention: bool,
    /// One cache that all sequences share (a token may then belong to several), or one for each sequence, of `n_ctx /
    /// n_seq_max` tokens. With caches of their own, what a sequence computes does not depend, to the last bit, on what the
    /// others hold.
    pub shared_cache: bool,
    /// Let a device compute large batches for layers whose weights lie in the CPU's memory (llama.cpp copies the weights
    /// there, again for each batch).
    pub op_offload: bool,
}

impl Default for ContextParams {
    fn default() -> Self {
        Self {
            n_ctx: 2048,
            n_batch: 512,
            n_seq_max: 1,
            n_threads: 0,
            kv: KvType::F16,
            flash_attention: true,
            shared_cache: true,
            op_offload: true,
        }
    }
}

impl ContextParams {
    /// The settings under which a lifted graph equals `llama_decode` bit for bit: F32 cache, no fused attention, the
    /// whole batch in one compute pass.
    pub fn exact(n_tokens: usize, n_seq_max: usize, n_threads: u32) -> Self {
        let n = n_tokens.max(32).next_multiple_of(32) as u32;
        Self {
            n_ctx: n,
            n_batch: n,
            n_seq_max: n_seq_max.max(1) as u32,
            n_threads,
            kv: KvType::F32,
            flash_attention: false,
            shared_cache: true,
            // Every op where its weights are, as in the lifted graph.
            op_offload: false,
        }
    }
}

/// The number of threads used where the user gave none: `BIDPO_THREADS`, else the physical cores that the process may use (no
/// efficiency cores where there are others), at most 16.
pub fn default_threads() -> u32 {
    if let Some(n) = std::env::var("BIDPO_THREADS").ok().and_then(|v| v.parse::<u32>().ok()).filter(|&n| n > 0) {
        return n.min(512);
    }
    usable_cores().min(16) as u32
}

/// A context over a model. Not `Sync`: one thread at a time.
#[derive(Debug)]
pub struct Context {
    pub(in crate::llama) raw: *mut sys::llama_context,
    pub(in crate::llama) model: Arc<Model>,
    slot: Box<CallbackSlot>,
    pub(in crate::llama) adapters: Vec<(Arc<Adapter>, f32)>,
    n_ctx: usize,
    n_ctx_seq: usize,
    n_batch: usize,
    n_seq_max: usize,
    n_threads: u32,
    awake: bool,
    n_rows: usize,
}

// SAFETY: a context may move between threads; llama.cpp keeps no thread-local state for it.
unsafe impl Send for Context {}

impl Context {
    /// Makes a context.
    ///
    /// # Errors
    /// [`LlamaError::Context`] when llama.cpp cannot (most often: not enough memory for the cache).
    pub fn new(model: &Arc<Model>, params: &ContextParams) -> Result<Self, LlamaError> {
        let n_threads = if params.n_threads == 0 { default_threads() } else { params.n_threads };
        let no_context = |reason| LlamaError::Context { n_ctx: params.n_ctx, reason };
        let pool = Pool::new(n_threads).ok_or_else(|| no_context(format!("{n_threads} threads cannot be started")))?;
        let mut slot = Box::new(CallbackSlot::new(model, pool));
        let _ = last_log_lines();
        // SAFETY: the model is alive; the slot is boxed, so its address holds as long as the context does.
        let p = unsafe {
            let mut p = sys::llama_context_default_params();
            p.n_ctx = params.n_ctx;
            p.n_batch = params.n_batch;
            p.n_ubatch = params.n_batch;
            p.n_seq_max = params.n_seq_max;
            p.n_threads = n_threads as i32;
            p.n_threads_batch = n_threads as i32;
            p.flash_attn_type = if params.flash_attention {
                sys::LLAMA_FLASH_ATTN_TYPE_AUTO
            } else {
                sys::LLAMA_FLASH_ATTN_TYPE_DISABLED
            };
            let kv = match params.kv {
                KvType::F16 => sys::GGML_TYPE_F16,
                KvType::F32 => sys::GGML_TYPE_F32,
            };
            p.type_k = kv;
            p.type_v = kv;
            p.kv_unified = params.shared_cache;
            p.op_offload = params.op_offload;
            p.no_perf = true;
            // One window size for every layer's cache: with a trimmed sliding-window cache, shared prompts and
            // rewinding would not work.
            p.swa_full = true;
            p.cb_eval = Some(trampoline);
            p.cb_eval_user_data = (&raw mut *slot).cast();
            p.abort_callback = Some(aborts);
            p.abort_callback_data = (&raw mut *slot).cast();
            p
        };
        let model_raw = model.raw();
        // SAFETY: as above.
        let raw = guarded(|| unsafe { throwing::llama_init_from_model(model_raw, p) }).map_err(no_context)?;
        if raw.is_null() {
            return Err(no_context(last_log_lines()));
        }
        // SAFETY: raw is a live context; the pool belongs to the slot and is freed after it.
        let (n_ctx, n_ctx_seq, n_batch) = unsafe {
            sys::llama_attach_threadpool(raw, slot.pool.raw(), std::ptr::null_mut());
            let sizes = (sys::llama_n_ctx(raw), sys::llama_n_ctx_seq(raw), sys::llama_n_batch(raw));
            (sizes.0 as usize, sizes.1 as usize, sizes.2 as usize)
        };
        Ok(Self {
            raw,
            model: Arc::clone(model),
            slot,
            adapters: Vec::new(),
            n_ctx,
            n_ctx_seq,
            n_batch,
            n_seq_max: params.n_seq_max as usize,
            n_threads,
            awake: false,
            n_rows: 0,
        })
    }

    /// Has `kernel_override` compute what it takes of the graphs of this context, from now on; None: ggml computes all of it.
    /// Returns the one before.
    pub fn set_kernel_override(
        &mut self,
        kernel_override: Option<Box<dyn KernelOverride>>,
    ) -> Option<Box<dyn KernelOverride>> {
        std::mem::replace(&mut self.slot.kernel_override, kernel_override)
    }

    /// True once the kernel override could not take a node that it was made for: see [`KernelOverride::refused`].
    pub fn kernel_override_refused(&self) -> bool {
        self.slot.kernel_override.as_ref().is_some_and(|s| s.refused())
    }

    /// Has `change` change the outputs of blocks in every decode from now on; None: nothing does. The KV cache is cleared: K and
    /// V were computed under another change.
    pub fn set_row_change(&mut self, change: Option<Box<dyn RowChange>>) {
        self.slot.rows = change.map(RowHook::new);
        self.clear_kv();
    }

    /// Has the flag end a decode in progress with [`LlamaError::Interrupted`] as soon as it is true; None: nothing does.
    /// Backends that cannot be stopped inside a graph finish the batch first.
    pub fn set_interrupt(&mut self, flag: Option<Arc<AtomicBool>>) {
        self.slot.interrupt = flag;
    }

    /// Keeps the threads awake between decodes (they spin), or not: for those that follow each other at once.
    pub fn stay_awake(&mut self, awake: bool) {
        self.awake = awake;
        if !awake {
            self.slot.pool.pause();
        }
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Tokens the KV cache holds.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// Tokens one sequence may hold: all of the cache where it is shared.
    pub fn n_ctx_seq(&self) -> usize {
        self.n_ctx_seq
    }

    /// Tokens one `decode` may hold.
    pub fn n_batch(&self) -> usize {
        self.n_batch
    }

    /// Threads in use.
    pub fn n_threads(&self) -> u32 {
        self.n_threads
    }

    /// Runs the model over a batch.
    ///
    /// # Errors
    /// [`LlamaError::Batch`] for a batch that does not fit, [`LlamaError::Decode`] when llama.cpp fails.
    pub fn decode(&mut self, batch: &Batch) -> Result<(), LlamaError> {
        self.decode_inner(batch, None, false)
    }

    /// Runs the model over a batch while `tap` watches (and may stop, or write to) every node of the graph.
    ///
    /// When the tap stops the graph, the logits of this batch are undefined and must not be read.
    ///
    /// # Errors
    /// As [`Context::decode`]; a panic in the tap comes back as [`LlamaError::Callback`].
    pub fn decode_with_callback(&mut self, batch: &Batch, tap: &mut dyn EvalCallback) -> Result<(), LlamaError> {
        self.decode_inner(batch, Some(tap), false)
    }

    /// As [`Context::decode_with_callback`], for a batch of which nothing but what the tap sees is needed: where the tap stops the
    /// graph, the batch is given up. Its tokens are not in the cache afterwards, and llama.cpp does not copy a table of
    /// logits that were never computed (with gemma's vocabulary a megabyte for each row that asks for them).
    ///
    /// One more node is computed behind the one at which the tap stops; if it is asked for, the tap still gets it. On
    /// backends that cannot be stopped inside a graph the rest is computed as well.
    ///
    /// # Errors
    /// As [`Context::decode_with_callback`].
    pub fn peek(&mut self, batch: &Batch, tap: &mut dyn EvalCallback) -> Result<(), LlamaError> {
        self.decode_inner(batch, Some(tap), true)
    }

    fn decode_inner(
        &mut self,
        batch: &Batch,
        mut tap: Option<&mut dyn EvalCallback>,
        gives_up: bool,
    ) -> Result<(), LlamaError> {
        self.n_rows = 0;
        if batch.is_empty() {
            return Err(LlamaError::Batch("an empty batch cannot be decoded".into()));
        }
        if batch.len() > self.n_batch {
            return Err(LlamaError::Batch(format!(
                "a batch of {} tokens does not fit: the context takes {} tokens at once",
                batch.len(),
                self.n_batch
            )));
        }
        if batch.n_seqs() > self.n_seq_max {
            return Err(LlamaError::Batch(format!(
                "the batch uses {} sequences, the context was made for {}",
                batch.n_seqs(),
                self.n_seq_max
            )));
        }
        let n_vocab = self.model.n_vocab();
        if let Some(t) = batch.tokens.iter().find(|&&t| t < 0 || t as usize >= n_vocab) {
            return Err(LlamaError::Batch(format!(
                "token {t} is not in the vocabulary of {} ({n_vocab} tokens)",
                self.model.path().display()
            )));
        }
        let mut tokens = batch.tokens.clone();
        let mut pos = batch.pos.clone();
        let mut n_seq: Vec<i32> = batch.seqs.iter().map(|s| s.len() as i32).collect();
        let mut seqs = batch.seqs.clone();
        let mut seq_ptrs: Vec<*mut i32> = seqs.iter_mut().map(|s| s.as_mut_ptr()).collect();
        let mut logits = batch.logits.clone();
        let raw = sys::llama_batch {
            n_tokens: batch.len() as i32,
            token: tokens.as_mut_ptr(),
            embd: std::ptr::null_mut(),
            pos: pos.as_mut_ptr(),
            n_seq_id: n_seq.as_mut_ptr(),
            seq_id: seq_ptrs.as_mut_ptr(),
            logits: logits.as_mut_ptr(),
        };
        let _ = last_log_lines();
        let overridden = self.slot.kernel_override.as_ref().is_some_and(|s| batch.len() >= s.least_tokens());
        if let Some(rows) = &mut self.slot.rows {
            rows.arm(batch);
        }
        let watched = tap.is_some();
        match &mut tap {
            Some(tap) => self.slot.arm(Some(&mut **tap), gives_up, overridden),
            None => self.slot.arm(None, false, overridden),
        }
        // SAFETY: all arrays hold n_tokens entries and outlive the call; the slot's tap is cleared right after it.
        let context = self.raw;
        // SAFETY: as above.
        let decoded = guarded(|| unsafe {
            let code = throwing::llama_decode(context, raw);
            throwing::llama_synchronize(context);
            code
        });
        let (code, thrown) = match decoded {
            Ok(code) => (code, None),
            Err(reason) => (THREW, Some(reason)),
        };
        if !self.awake {
            self.slot.pool.pause();
        }
        let given_up = self.slot.is_aborting();
        // SAFETY: right after the decode.
        if let (true, Some(tap), Some(node)) = (code == ABORTED, tap, unsafe { self.slot.last_wanted() }) {
            tap.computed(&node);
        }
        if let Some(failure) = self.slot.disarm() {
            return Err(failure.into());
        }
        if given_up && (code == ABORTED || code == 0) {
            // llama.cpp itself removes a token only from the first of its sequences.
            for (seq, first) in batch.first_positions() {
                self.kv_remove(seq, first);
            }
            return Ok(());
        }
        if code == ABORTED && self.slot.interrupt.is_some() {
            for (seq, first) in batch.first_positions() {
                self.kv_remove(seq, first);
            }
            return Err(LlamaError::Interrupted);
        }
        if code != 0 {
            let mut reason = thrown.unwrap_or_else(last_log_lines);
            if code == 1 {
                reason = format!("no room in the KV cache of {} tokens; {reason}", self.n_ctx);
            }
            return Err(LlamaError::Decode { code, n_tokens: batch.len(), reason });
        }
        if let Some(rows) = self.slot.rows.as_ref().filter(|_| !watched) {
            rows.verdict()?;
        }
        self.n_rows = batch.len();
        Ok(())
    }

    /// Logits of batch row `row` (which must have asked for them), `[n_vocab]`.
    ///
    /// # Errors
    /// [`LlamaError::Batch`] if that row has none.
    pub fn logits(&self, row: usize) -> Result<&[f32], LlamaError> {
        let p = if row < self.n_rows {
            // SAFETY: the row is inside the last decoded batch; llama.cpp answers NULL where it has no logits.
            unsafe { sys::llama_get_logits_ith(self.raw, row as i32) }
        } else {
            std::ptr::null_mut()
        };
        if p.is_null() {
            return Err(LlamaError::Batch(format!("row {row} of the last batch has no logits")));
        }
        // SAFETY: llama.cpp's buffer holds n_vocab floats a row until the next decode, which needs &mut self.
        Ok(unsafe { std::slice::from_raw_parts(p, self.model.n_vocab()) })
    }

    /// As [`Context::logits`], of which every one is a finite number.
    ///
    /// # Errors
    /// As [`Context::logits`], and [`LlamaError::NotFinite`].
    pub fn finite_logits(&self, row: usize) -> Result<&[f32], LlamaError> {
        let logits = self.logits(row)?;
        // A sum of such products is NaN if one of them is; without a branch it is as fast as reading the row.
        let mut sums = [0.0f32; 16];
        let (chunks, rest) = logits.as_chunks::<16>();
        for chunk in chunks {
            sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x * 0.0);
        }
        let sum: f32 = sums.iter().sum::<f32>() + rest.iter().map(|x| x * 0.0).sum::<f32>();
        if sum.is_nan() { Err(LlamaError::NotFinite { path: self.model.path().to_owned() }) } else { Ok(logits) }
    }

    /// Sequences that the context was made for.
    pub fn n_seq_max(&self) -> usize {
        self.n_seq_max
    }

    /// Forgets everything in the KV cache.
    pub fn clear_kv(&mut self) {
        // SAFETY: raw is a live context (also below). `true` also clears the data.
        unsafe { sys::llama_memory_clear(sys::llama_get_memory(self.raw), true) };
    }

    /// Removes positions `from..` of sequence `seq` (all sequences if negative) from the KV cache.
    pub fn kv_remove(&mut self, seq: i32, from: usize) {
        // SAFETY: raw is a live context. llama.cpp itself aborts on a sequence beyond its maximum.
        unsafe { sys::llama_memory_seq_rm(sys::llama_get_memory(self.raw), seq, from as i32, -1) };
    }

    /// As [`Context::kv_remove`]; false, with nothing removed, where it cannot be done: a recurrent state cannot be taken back
    /// by a few tokens.
    #[must_use]
    pub fn kv_truncate(&mut self, seq: i32, from: usize) -> bool {
        // SAFETY: raw is a live context. llama.cpp itself aborts on a sequence beyond its maximum.
        unsafe { sys::llama_memory_seq_rm(sys::llama_get_memory(self.raw), seq, from as i32, -1) }
    }

    /// Makes sequence `to` share the whole of sequence `from`.
    pub fn kv_copy(&mut self, from: i32, to: i32) {
        // SAFETY: raw is a live context. -1, -1 is the whole sequence, the only range that may cross caches.
        // llama.cpp itself aborts on a sequence beyond its maximum.
        unsafe { sys::llama_memory_seq_cp(sys::llama_get_memory(self.raw), from, to, -1, -1) };
        if let Some(rows) = &mut self.slot.rows {
            rows.change.copied(from, to);
        }
    }

    /// Decodes `tokens` as sequence 0 from position `start`, in pieces that fit, asking for the logits of the last one.
    /// Returns the batch row that holds them.
    ///
    /// # Errors
    /// As [`Context::decode`].
    pub fn prefill(&mut self, tokens: &[Token], start: usize) -> Result<usize, LlamaError> {
        self.prefill_of(tokens, start, None)
    }

    /// As [`Context::prefill`], for a prompt of so many tokens in all ([`Batch::set_prompt`]).
    ///
    /// # Errors
    /// As [`Context::decode`].
    pub fn prefill_of(&mut self, tokens: &[Token], start: usize, n_prompt: Option<usize>) -> Result<usize, LlamaError> {
        if start + tokens.len() > self.n_ctx {
            return Err(LlamaError::Batch(format!(
                "{} tokens do not fit a context of {}",
                start + tokens.len(),
                self.n_ctx
            )));
        }
        let mut row = 0;
        let mut pos = start;
        let n = tokens.len();
        for (c, chunk) in tokens.chunks(self.n_batch).enumerate() {
            let mut batch = Batch::new();
            for (i, &t) in chunk.iter().enumerate() {
                let last = c * self.n_batch + i + 1 == n;
                row = batch.add(t, pos, &[0], last);
                if let Some(n_prompt) = n_prompt {
                    batch.set_prompt(row, n_prompt);
                }
                pos += 1;
            }
            self.decode(&batch)?;
        }
        Ok(row)
    }

    pub(in crate::llama) fn raw(&self) -> *mut sys::llama_context {
        self.raw
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: freed once; the model outlives it through the Arc.
        unsafe { sys::llama_free(self.raw) };
    }
}
