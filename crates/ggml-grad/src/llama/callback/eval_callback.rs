//! The callback on the compute graph: every node that `llama_decode` runs, before and after it is computed.

use crate::llama::callback::RowHook;
use crate::llama::callback::{COMPUTE, Node, NodeId};
use crate::llama::{LlamaError, Model, Pool, sys};
use std::collections::HashSet;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Watches a decode.
pub trait EvalCallback {
    /// Called for every node before it is computed; true asks for [`EvalCallback::computed`] once it is.
    fn wants(&mut self, node: &Node<'_>) -> bool;

    /// Called with a node that was asked for, its data ready. False stops the graph here (see also
    /// [`Context::peek`](crate::llama::Context::peek)).
    fn computed(&mut self, node: &Node<'_>) -> bool;

    /// Called for every node after [`EvalCallback::wants`]; true leaves it uncomputed in this decode. Its data, that of everything
    /// made from it (what it would have written to the KV cache included) and the logits are then undefined: whoever says
    /// true clears the cache before the next decode. All nodes that depend on a skipped one must be skipped too.
    fn skips(&mut self, _node: &Node<'_>) -> bool {
        false
    }
}

/// Computes some nodes of llama.cpp's graph in ggml's place, on the threads of the context.
pub trait KernelOverride: Send {
    /// Smallest batch, in tokens, for which it is used: with fewer nothing is gained.
    fn least_tokens(&self) -> usize;

    /// True after it met a node that it was made for and could not take.
    fn refused(&self) -> bool;

    /// Called for every node before it is computed; true takes it.
    fn takes(&mut self, node: &Node<'_>) -> bool;

    /// Computes the node that was taken last; its sources are ready.
    ///
    /// # Errors
    /// Why it cannot: the decode fails with that.
    fn compute(&mut self, node: &Node<'_>, pool: &Pool) -> Result<(), String>;
}

/// Why a decode failed on the Rust side of the boundary.
#[derive(Debug)]
pub(in crate::llama) enum Failure {
    /// A callback or a kernel panicked.
    Panic(String),
    /// [`KernelOverride::compute`] returned an error.
    Kernel(String),
    /// [`crate::llama::RowChange::change`] returned an error.
    Rows(String),
}

impl From<Failure> for LlamaError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Panic(message) => Self::Callback(message),
            Failure::Kernel(reason) => Self::Kernel(reason),
            Failure::Rows(reason) => Self::Unsupported(reason),
        }
    }
}

/// The callback of the decode in progress.
enum Watch {
    /// There is none.
    Idle,
    /// It sees every node.
    Watching(Watching),
}

/// A callback that sees every node of a decode.
struct Watching {
    callback: *mut dyn EvalCallback,
    /// It asked for the node that was offered last.
    wants: bool,
    stop: Stop,
    /// Nodes that are not computed in this decode: their flag is to be set again, since llama.cpp may run the same graph
    /// for the next batch.
    skipped: HashSet<NodeId>,
    /// A skipped node was offered again: llama.cpp runs the batch in several passes, perhaps over a new graph.
    repeated: bool,
}

/// Effect of a false from [`EvalCallback::computed`].
enum Stop {
    /// The graph stops there.
    Graph,
    /// The whole batch is aborted.
    Batch,
    /// The batch is being aborted; the first node that the callback asked for since.
    Aborting { last_wanted: Option<NodeId> },
}

impl Watching {
    /// Offers a node before it is computed; true if the callback asks for it.
    fn offer(&mut self, node: &Node<'_>) -> bool {
        self.wants = false;
        if self.skipped.remove(&node.id()) {
            // SAFETY: a node offered to be computed, by the one thread that runs the decode; workers wait for it.
            unsafe { (*node.raw).flags |= COMPUTE };
            self.repeated = true;
        }
        // SAFETY: armed by decode_inner with a callback that outlives the decode.
        let callback = unsafe { &mut *self.callback };
        self.wants = callback.wants(node);
        if node.is_computed() && !self.repeated && callback.skips(node) {
            // SAFETY: as above. Every backend passes over nodes without this flag.
            unsafe { (*node.raw).flags &= !COMPUTE };
            self.skipped.insert(node.id());
        }
        if let (Stop::Aborting { last_wanted }, true) = (&mut self.stop, self.wants) {
            last_wanted.get_or_insert(node.id());
        }
        self.wants
    }

    /// Hands over the node that was offered last, if it was asked for; false stops the graph.
    fn computed(&mut self, node: &Node<'_>) -> bool {
        // SAFETY: armed by decode_inner with a callback that outlives the decode.
        !self.wants || unsafe { &mut *self.callback }.computed(node) || self.stop()
    }

    /// The answer to llama.cpp where the decode is to stop.
    fn stop(&mut self) -> bool {
        match self.stop {
            Stop::Graph => false,
            Stop::Batch => {
                // llama.cpp computes one more node, and aborts after it.
                self.stop = Stop::Aborting { last_wanted: None };
                true
            }
            Stop::Aborting { .. } => true,
        }
    }
}

/// The part of the kernel override in the decode in progress.
enum Override {
    /// None: ggml computes every node.
    Idle,
    /// It is offered every node.
    Armed,
    /// It has taken a node, which stays uncomputed until llama.cpp comes back with it.
    Taken(NodeId),
}

/// State of a context's callbacks, reached by the trampoline.
pub(in crate::llama) struct CallbackSlot {
    pub(in crate::llama) pool: Pool,
    pub(in crate::llama) kernel_override: Option<Box<dyn KernelOverride>>,
    /// Changes of block outputs.
    pub(in crate::llama) rows: Option<RowHook>,
    /// Ends the decode in progress when it becomes true.
    pub(in crate::llama) interrupt: Option<Arc<AtomicBool>>,
    model: Arc<Model>,
    watch: Watch,
    overriding: Override,
    failure: Option<Failure>,
}

impl std::fmt::Debug for CallbackSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CallbackSlot").field("watching", &matches!(self.watch, Watch::Watching(_))).finish()
    }
}

impl CallbackSlot {
    pub(in crate::llama) fn new(model: &Arc<Model>, pool: Pool) -> Self {
        Self {
            pool,
            kernel_override: None,
            rows: None,
            interrupt: None,
            model: Arc::clone(model),
            watch: Watch::Idle,
            overriding: Override::Idle,
            failure: None,
        }
    }

    /// Prepares a decode. `aborts`: a false from the callback aborts the batch instead of stopping the graph.
    /// `overrides`: the kernel override is offered the nodes.
    pub(in crate::llama) fn arm(&mut self, callback: Option<&mut dyn EvalCallback>, aborts: bool, overrides: bool) {
        self.failure = None;
        self.overriding = if overrides { Override::Armed } else { Override::Idle };
        self.watch = callback.map_or(Watch::Idle, |callback| {
            let p: *mut (dyn EvalCallback + '_) = callback;
            // SAFETY: only the lifetime is erased; decode_inner disarms the slot before the borrow ends.
            let callback =
                unsafe { std::mem::transmute::<*mut (dyn EvalCallback + '_), *mut (dyn EvalCallback + 'static)>(p) };
            let stop = if aborts { Stop::Batch } else { Stop::Graph };
            Watch::Watching(Watching { callback, wants: false, stop, skipped: HashSet::new(), repeated: false })
        });
    }

    /// True if the callback had the batch aborted.
    pub(in crate::llama) fn is_aborting(&self) -> bool {
        matches!(&self.watch, Watch::Watching(w) if matches!(w.stop, Stop::Aborting { .. }))
    }

    /// The node that was computed last and asked for, if the batch was aborted.
    ///
    /// # Safety
    /// Only right after the decode: the next one may build another graph.
    pub(in crate::llama) unsafe fn last_wanted(&self) -> Option<Node<'_>> {
        let Watch::Watching(Watching { stop: Stop::Aborting { last_wanted }, .. }) = &self.watch else { return None };
        // SAFETY: by contract the graph is still there.
        last_wanted.map(|id| unsafe { Node::from_raw(id.ptr(), &self.model) })
    }

    /// Ends a decode: restores the flags of its graph and returns what failed.
    pub(in crate::llama) fn disarm(&mut self) -> Option<Failure> {
        if let Override::Taken(node) = std::mem::replace(&mut self.overriding, Override::Idle) {
            // SAFETY: llama.cpp stopped between offering the node and computing it, so its graph is still the context's.
            unsafe { (*node.ptr()).flags |= COMPUTE };
        }
        if let Watch::Watching(watching) = std::mem::replace(&mut self.watch, Watch::Idle)
            && !watching.repeated
        {
            for node in watching.skipped {
                // SAFETY: one pass ran, so the graph of the decode that has just ended is still the context's.
                unsafe { (*node.ptr()).flags |= COMPUTE };
            }
        }
        self.failure.take()
    }

    /// Before a node is computed: true has llama.cpp come back once it is.
    ///
    /// # Safety
    /// `t` is a live tensor of the model's graph, which this thread runs.
    unsafe fn before(&mut self, t: *mut sys::ggml_tensor) -> bool {
        // SAFETY: by contract.
        let node = unsafe { Node::from_raw(t, &self.model) };
        let wanted = match &mut self.watch {
            Watch::Watching(watching) => watching.offer(&node),
            Watch::Idle => false,
        };
        // Once the batch is aborted, ggml's own abort decides what is computed still.
        let offers = !matches!(self.overriding, Override::Idle)
            && !matches!(&self.watch, Watch::Watching(w) if matches!(w.stop, Stop::Aborting { .. }));
        if offers && self.kernel_override.as_mut().is_some_and(|kernels| kernels.takes(&node)) {
            // SAFETY: a node offered to be computed; the flag is set again when llama.cpp comes back with it.
            unsafe { (*t).flags &= !COMPUTE };
            self.overriding = Override::Taken(node.id());
            return true;
        }
        wanted || self.rows.as_ref().is_some_and(|rows| rows.wants(&node))
    }

    /// After a node was computed, or left to the kernel override: false stops the graph.
    ///
    /// # Safety
    /// As [`CallbackSlot::before`].
    unsafe fn after(&mut self, t: *mut sys::ggml_tensor) -> bool {
        // SAFETY: by contract.
        let node = unsafe { Node::from_raw(t, &self.model) };
        if matches!(self.overriding, Override::Taken(id) if id == node.id()) {
            self.overriding = Override::Armed;
            // SAFETY: a node of the graph that this thread runs; workers wait for it.
            unsafe { (*t).flags |= COMPUTE };
            if let Some(Err(reason)) = self.kernel_override.as_mut().map(|kernels| kernels.compute(&node, &self.pool)) {
                self.failure = Some(Failure::Kernel(reason));
                return match &mut self.watch {
                    Watch::Watching(watching) => watching.stop(),
                    Watch::Idle => false,
                };
            }
        }
        if let Some(rows) = self.rows.as_mut().filter(|rows| rows.wants(&node))
            && let Err(reason) = rows.apply(&node)
        {
            self.failure = Some(Failure::Rows(reason));
            return match &mut self.watch {
                Watch::Watching(watching) => watching.stop(),
                Watch::Idle => false,
            };
        }
        match &mut self.watch {
            Watch::Watching(watching) => watching.computed(&node),
            Watch::Idle => true,
        }
    }
}

/// The function llama.cpp calls for each node: before it (`ask`) and, where that call answered true, after it. A Rust panic
/// must not unwind into C: it is caught, kept, and turned into a stop of the graph.
pub(in crate::llama) unsafe extern "C" fn trampoline(t: *mut sys::ggml_tensor, ask: bool, user: *mut c_void) -> bool {
    crate::llama::process::guard::computing();
    // SAFETY: user is the boxed slot of the context that is decoding; nothing else borrows it during the call.
    let slot = unsafe { &mut *user.cast::<CallbackSlot>() };
    if let (Watch::Idle, Override::Idle, None) = (&slot.watch, &slot.overriding, &slot.rows) {
        return !ask;
    }
    if slot.failure.is_some() {
        return false;
    }
    // SAFETY: llama.cpp offers live tensors of the graph that it runs on this thread.
    let outcome = catch_unwind(AssertUnwindSafe(|| unsafe { if ask { slot.before(t) } else { slot.after(t) } }));
    outcome.unwrap_or_else(|payload| {
        let text = payload
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| payload.downcast_ref::<&str>().map(|s| (*s).to_owned()))
            .unwrap_or_else(|| "panic".into());
        slot.failure = Some(Failure::Panic(text));
        // On the asking call, true makes llama.cpp come back after this node, where false stops the graph.
        ask
    })
}

/// The function that ggml calls after each node to ask whether to abort.
pub(in crate::llama) unsafe extern "C" fn aborts(user: *mut c_void) -> bool {
    // SAFETY: user is the boxed slot of the context that is decoding. ggml asks on the thread that decodes, between its
    // calls of the trampoline.
    let slot = unsafe { &*user.cast::<CallbackSlot>() };
    slot.is_aborting() || slot.interrupt.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed))
}
