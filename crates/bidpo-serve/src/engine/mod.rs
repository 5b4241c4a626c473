//! The thread that owns the llama.cpp context: continuous batching over its sequences.
//!
//! Each slot is a sequence with a cache of its own. In turns, one batch holds the next token of every answer (each row with
//! its own steering), and one a piece of one prompt. A new job takes a free slot at once; nobody waits for others to end.

pub(crate) mod job;
pub(crate) mod logprobs;
pub(crate) mod queue;
pub(crate) mod sampling;
pub(crate) mod slot;
pub(crate) mod status;
pub(crate) mod stops;
pub(crate) mod work;

use crate::metrics::Metrics;
use bidpo_core::adapter::Adapters;
use bidpo_core::steer::{ControlVector, GateMemory, decode_steered_with};
use ggml_grad::llama::{Batch, Context, LlamaError};
use job::{Client, Event, Finish, Job, JobError};
use queue::FairQueue;
use slot::{Cell, PIECE, Slot};
use status::{Board, SlotStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError};
use std::thread::JoinHandle;
use work::Work;

/// Messages to the engine's thread.
pub(crate) enum Message {
    Job(Box<Job>),
    /// Give up everything and end.
    Stop,
}

/// The way to the engine's thread, which ends when the last handle is dropped.
#[derive(Debug)]
pub(crate) struct Handle {
    inbox: Sender<Message>,
    alive: Arc<AtomicBool>,
    board: Board,
}

impl Handle {
    /// Starts the thread.
    pub(crate) fn start(
        ctx: Context,
        n_slots: usize,
        n_ctx: usize,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (inbox, messages) = std::sync::mpsc::channel();
        let alive = Arc::new(AtomicBool::new(true));
        let flag = Alive(Arc::clone(&alive));
        let board = Board::new(n_slots);
        let shown = board.clone();
        let thread = std::thread::Builder::new().name("engine".into()).spawn(move || {
            let _flag = flag;
            Engine::new(ctx, n_slots, n_ctx, messages, metrics, shown).run();
        })?;
        Ok((Self { inbox, alive, board }, thread))
    }

    /// Hands a job over; false where the thread has ended.
    pub(crate) fn send(&self, job: Job) -> bool {
        self.inbox.send(Message::Job(Box::new(job))).is_ok()
    }

    /// False once the thread has ended.
    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    /// What the slots are at.
    pub(crate) fn slots(&self) -> Vec<SlotStatus> {
        self.board.read()
    }

    /// Gives up what is being computed.
    pub(crate) fn stop(&self) {
        let _ = self.inbox.send(Message::Stop);
    }
}

/// False when it is dropped, a panic included.
struct Alive(Arc<AtomicBool>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

struct Engine {
    ctx: Context,
    /// What gates decided, by slot.
    gates: GateMemory,
    /// Tokens of a sequence.
    n_ctx: usize,
    slots: Vec<Slot>,
    queue: FairQueue<Client, Job>,
    messages: Receiver<Message>,
    metrics: Arc<Metrics>,
    board: Board,
    /// The slot whose prompt was worked on last.
    prefilled: usize,
    jobs: u64,
}

impl Engine {
    fn new(
        ctx: Context,
        n_slots: usize,
        n_ctx: usize,
        messages: Receiver<Message>,
        metrics: Arc<Metrics>,
        board: Board,
    ) -> Self {
        let slots = (0..n_slots as i32).map(Slot::new).collect();
        Self {
            ctx,
            gates: GateMemory::default(),
            n_ctx,
            slots,
            queue: FairQueue::new(),
            messages,
            metrics,
            board,
            prefilled: 0,
            jobs: 0,
        }
    }

    fn run(mut self) {
        loop {
            if !self.listen() {
                break;
            }
            self.forget_abandoned();
            self.admit();
            self.metrics.load(self.busy(), self.queue.len());
            self.board.write(&self.slots);
            self.answer();
            self.prefill();
        }
        while let Some(job) = self.queue.pop() {
            job.send(Event::Failed(JobError::ShuttingDown));
        }
        for slot in 0..self.slots.len() {
            self.fail(slot, &JobError::ShuttingDown);
        }
    }

    /// Slots at work.
    fn busy(&self) -> usize {
        self.slots.iter().filter(|s| s.work.is_some()).count()
    }

    /// Takes what has come in; sleeps while there is nothing to do. False: the end.
    fn listen(&mut self) -> bool {
        loop {
            let idle = self.queue.is_empty() && self.slots.iter().all(|s| s.work.is_none());
            let message = if idle {
                self.metrics.load(0, 0);
                self.board.write(&self.slots);
                self.ctx.stay_awake(false);
                match self.messages.recv() {
                    Ok(message) => message,
                    Err(_) => return false,
                }
            } else {
                match self.messages.try_recv() {
                    Ok(message) => message,
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return false,
                }
            };
            match message {
                Message::Job(job) => self.queue.push(job.client.clone(), *job),
                Message::Stop => return false,
            }
        }
        // One decode follows another: threads that sleep in between would have to be woken for each.
        self.ctx.stay_awake(true);
        true
    }

    /// Drops the jobs whose clients have left.
    fn forget_abandoned(&mut self) {
        let mut n = self.queue.len();
        self.queue.retain(|job| !job.is_abandoned());
        n -= self.queue.len();
        for i in 0..self.slots.len() {
            let Some(work) = self.slots[i].work.take_if(|w| w.job.is_abandoned()) else { continue };
            n += 1;
            self.metrics.abandoned(work.n_generated());
            // Nobody has seen the logits of a prompt that is not done: its K and V may be anything.
            if work.is_prefilling() {
                self.clean(i);
            }
        }
        self.metrics.cancelled(n);
    }

    /// Gives free slots to those who wait: the one whose cache holds most of the prompt, else the one unused for longest.
    fn admit(&mut self) {
        if self.busy() == 0 && self.slots.iter().any(|s| s.unclean) {
            self.ctx.clear_kv();
            for slot in &mut self.slots {
                slot.cells.clear();
                slot.unclean = false;
            }
        }
        while let Some(free) = self.slots.iter().position(Slot::is_free) {
            let Some(job) = self.queue.pop() else { return };
            let candidates = (free..self.slots.len()).filter(|&i| self.slots[i].is_free());
            let best = candidates.max_by_key(|&i| (self.slots[i].common(&job), std::cmp::Reverse(self.slots[i].used)));
            self.begin(best.unwrap_or(free), job);
        }
    }

    fn begin(&mut self, slot: usize, job: Job) {
        self.jobs += 1;
        let common = self.slots[slot].common(&job);
        let kept = self.truncate(slot, common);
        let n_vocab = self.ctx.model().n_vocab();
        self.slots[slot].used = self.jobs;
        self.slots[slot].work = Some(Work::new(job, kept, n_vocab));
    }

    /// Cuts a slot's cache back to `n` tokens; to none where the model's memory cannot be cut. Returns how many are left.
    fn truncate(&mut self, slot: usize, n: usize) -> usize {
        let slot = &mut self.slots[slot];
        if n == slot.cells.len() {
            return n;
        }
        let n = if n > 0 && self.ctx.kv_truncate(slot.id, n) {
            n
        } else {
            self.ctx.kv_remove(slot.id, 0);
            0
        };
        slot.cells.truncate(n);
        n
    }

    /// One more token of every answer.
    fn answer(&mut self) {
        let ready: Vec<usize> =
            (0..self.slots.len()).filter(|&i| self.slots[i].work.as_ref().is_some_and(|w| w.next.is_some())).collect();
        // Rows under different adapters share no batch. Those of the context's own come first: a change has the graph laid out
        // anew.
        let mut left = ready;
        while let Some(first) =
            left.iter().position(|&i| self.adapters(i).are_on(&self.ctx)).or((!left.is_empty()).then_some(0))
        {
            let adapters = self.adapters(left[first]);
            let (now, later): (Vec<usize>, Vec<usize>) = left.into_iter().partition(|&i| self.adapters(i) == adapters);
            // llama.cpp takes sequences with caches of their own in one pass where their numbers follow one another.
            for run in now.chunk_by(|a, b| a + 1 == *b) {
                if let Err(error) = self.answer_run(run, &adapters) {
                    let error = JobError::from(error);
                    for &slot in run {
                        self.fail(slot, &error);
                    }
                }
            }
            left = later;
        }
    }

    /// The adapters of a slot's job.
    fn adapters(&self, slot: usize) -> Adapters {
        self.slots[slot].work.as_ref().map(|w| w.job.adapters()).unwrap_or_default()
    }

    fn answer_run(&mut self, run: &[usize], adapters: &Adapters) -> Result<(), LlamaError> {
        adapters.switch_to(&mut self.ctx)?;
        let mut batch = Batch::new();
        let mut cells = Vec::with_capacity(run.len());
        for &i in run {
            let slot = &self.slots[i];
            let Some((work, token)) = slot.work.as_ref().and_then(|w| Some((w, w.next?))) else { continue };
            let at = slot.cells.len();
            batch.add(token, at, &[slot.id], true);
            batch.set_prompt(batch.len() - 1, work.job.n_prompt);
            cells.push(Cell {
                token,
                steering: work.job.steering_at(at).cloned(),
                whole: false,
                n_prompt: work.job.n_prompt,
            });
        }
        let rows: Vec<Option<&ControlVector>> = cells.iter().map(|c| c.steering.as_deref()).collect();
        decode_steered_with(&mut self.ctx, &batch, &rows, &mut self.gates)?;
        self.metrics.batch(batch.len());
        for (row, (&i, cell)) in run.iter().zip(cells).enumerate() {
            self.slots[i].cells.push(cell);
            // What is wrong with one row is no other's concern.
            if let Err(error) = self.sample(i, row) {
                self.fail(i, &error.into());
            }
        }
        Ok(())
    }

    /// A piece of one prompt: those that wait for theirs take turns.
    fn prefill(&mut self) {
        let n = self.slots.len();
        let turns = (1..=n).map(|k| (self.prefilled + k) % n);
        let waiting = |&i: &usize| self.slots[i].work.as_ref().is_some_and(Work::is_prefilling);
        let Some(slot) = turns.into_iter().find(waiting) else { return };
        self.prefilled = slot;
        if let Err(error) = self.prefill_slot(slot) {
            self.fail(slot, &error.into());
        }
    }

    fn prefill_slot(&mut self, i: usize) -> Result<(), LlamaError> {
        self.adapters(i).switch_to(&mut self.ctx)?;
        let slot = &mut self.slots[i];
        let Some(work) = &mut slot.work else { return Ok(()) };
        let job = &work.job;
        let mut batch = Batch::new();
        let mut cells = Vec::new();
        let mut scored = Vec::new();
        let end = job.tokens.len();
        let piece = work.n_done..(work.n_done + PIECE).min(end);
        let whole = piece.len() == PIECE;
        for at in piece {
            let (token, wants) = (job.tokens[at], job.wants_logits(at));
            let row = batch.add(token, at, &[slot.id], wants);
            batch.set_prompt(row, job.n_prompt);
            cells.push(Cell { token, steering: job.steering_at(at).cloned(), whole, n_prompt: job.n_prompt });
            if wants && at + 1 < end {
                scored.push((row, at));
            }
        }
        let rows: Vec<Option<&ControlVector>> = cells.iter().map(|c| c.steering.as_deref()).collect();
        decode_steered_with(&mut self.ctx, &batch, &rows, &mut self.gates)?;
        self.metrics.prompt(batch.len());
        work.n_done += batch.len();
        slot.cells.extend(cells);
        work.score(&self.ctx, &scored, &self.gates, slot.id)?;
        if !work.is_prefilling() {
            work.prompt_is_done();
            if work.job.max_tokens == 0 {
                self.ctx.finite_logits(batch.len() - 1)?;
                self.finish(i, Finish::Length);
            } else {
                self.sample(i, batch.len() - 1)?;
            }
        }
        Ok(())
    }

    /// Chooses the slot's next token from the logits of `row` of the last batch.
    fn sample(&mut self, i: usize, row: usize) -> Result<(), LlamaError> {
        let slot = &mut self.slots[i];
        let full = slot.cells.len() >= self.n_ctx;
        let Some(work) = &mut slot.work else { return Ok(()) };
        let gates = match (work.job.top_logprobs, slot.cells.len().checked_sub(1)) {
            (Some(_), Some(at)) => work.job.gates_at(&self.gates, slot.id, at),
            _ => Vec::new(),
        };
        if let Some(finish) = work.sample(&self.ctx, row, gates, full)? {
            self.finish(i, finish);
        }
        Ok(())
    }

    fn finish(&mut self, i: usize, finish: Finish) {
        if let Some(work) = self.slots[i].work.take() {
            // Counted before the client hears of it, and may ask.
            self.metrics.finished(&work.usage());
            self.metrics.load(self.busy(), self.queue.len());
            self.board.write(&self.slots);
            work.finish(finish);
        }
    }

    /// Ends a slot's job with an error. What its cache holds is not known any more.
    fn fail(&mut self, i: usize, error: &JobError) {
        if let Some(work) = self.slots[i].work.take() {
            self.metrics.failed();
            self.board.write(&self.slots);
            work.job.send(Event::Failed(error.clone()));
        }
        if *error != JobError::ShuttingDown {
            self.clean(i);
        }
    }

    /// Overwrites a slot's cache, which may hold NaN: attention would carry it into every later job of the slot.
    fn clean(&mut self, i: usize) {
        let slot = &mut self.slots[i];
        slot.cells.clear();
        slot.unclean = !matches!(self.ctx.clear_sequence(slot.id), Ok(true));
    }
}
