//! The callback on the compute graph: every node that `llama_decode` runs, before and after it is computed.

use super::node::{COMPUTE, Node, NodeId};
use super::{Model, Pool, sys};
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
    /// [`Context::peek`](super::Context::peek)).
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
    /// Tokens of a batch from which on it is asked: with fewer nothing is gained.
    fn least_tokens(&self) -> usize;

    /// True once there was a node that it was made for and could not take.
    fn refused(&self) -> bool;

    /// Called for every node before it is computed; true takes it.
    fn takes(&mut self, node: &Node<'_>) -> bool;

    /// Computes the node that was taken last; its sources are ready.
    ///
    /// # Errors
    /// Why it cannot: the decode fails with that.
    fn compute(&mut self, node: &Node<'_>, pool: &Pool) -> Result<(), String>;
}

/// Where the trampoline finds the tap of the decode in progress, and who computes in ggml's place.
pub(super) struct CallbackSlot {
    tap: Option<*mut dyn EvalCallback>,
    /// The tap asked for the node that was offered last.
    tap_wants: bool,
    pub(super) pool: Pool,
    pub(super) kernel_override: Option<Box<dyn KernelOverride>>,
    /// It may take nodes of the decode in progress.
    stands_in: bool,
    /// The node it took: uncomputed until llama.cpp comes back with it.
    taken: Option<NodeId>,
    panic: Option<String>,
    model: Arc<Model>,
    /// Nodes that are not computed in this decode: their flag is to be set again, since llama.cpp may run the same graph
    /// for the next batch.
    skipped: HashSet<NodeId>,
    /// A skipped node came by once more: llama.cpp runs the batch in several passes, perhaps over a graph made anew.
    repeated: bool,
    /// The batch is given up where the tap stops the graph.
    gives_up: bool,
    /// It did.
    stopped: bool,
    /// The node that the tap asked for after that.
    last_wanted: Option<NodeId>,
    /// Ends the decode in progress when it becomes true.
    pub(super) interrupt: Option<Arc<AtomicBool>>,
}

impl std::fmt::Debug for CallbackSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CallbackSlot").field("armed", &self.tap.is_some()).finish()
    }
}

impl CallbackSlot {
    pub(super) fn new(model: &Arc<Model>, pool: Pool) -> Self {
        Self {
            tap: None,
            tap_wants: false,
            pool,
            kernel_override: None,
            stands_in: false,
            taken: None,
            panic: None,
            model: Arc::clone(model),
            skipped: HashSet::new(),
            repeated: false,
            gives_up: false,
            stopped: false,
            last_wanted: None,
            interrupt: None,
        }
    }

    pub(super) fn arm(&mut self, tap: Option<&mut dyn EvalCallback>, gives_up: bool, stands_in: bool) {
        self.panic = None;
        self.stands_in = stands_in;
        self.gives_up = gives_up;
        self.stopped = false;
        self.last_wanted = None;
        self.repeated = false;
        self.tap = tap.map(|t| {
            let p: *mut (dyn EvalCallback + '_) = t;
            // SAFETY: only the lifetime is erased; decode_inner disarms the slot before the borrow ends.
            unsafe { std::mem::transmute::<*mut (dyn EvalCallback + '_), *mut (dyn EvalCallback + 'static)>(p) }
        });
    }

    /// True if the batch was given up.
    pub(super) fn stopped(&self) -> bool {
        self.stopped
    }

    /// The node that was computed last and asked for, if the batch was given up.
    ///
    /// # Safety
    /// Only right after the decode: the next one may build another graph.
    pub(super) unsafe fn last_wanted(&self) -> Option<Node<'_>> {
        // SAFETY: by contract the graph is still there.
        self.last_wanted.filter(|_| self.stopped).map(|id| unsafe { Node::from_raw(id.ptr(), &self.model) })
    }

    pub(super) fn disarm(&mut self) -> Option<String> {
        self.tap = None;
        self.stopped = false;
        self.stands_in = false;
        if let Some(node) = self.taken.take() {
            // SAFETY: llama.cpp gave up between offering the node and computing it, so its graph is still the context's.
            unsafe { (*node.ptr()).flags |= COMPUTE };
        }
        for node in self.skipped.drain().filter(|_| !self.repeated) {
            // SAFETY: one pass ran, so the graph of the decode that has just ended is still the context's.
            unsafe { (*node.ptr()).flags |= COMPUTE };
        }
        self.panic.take()
    }
}

/// The function llama.cpp calls for each node. A Rust panic must not unwind into C: it is caught, kept, and turned into
/// a stop of the graph.
pub(super) unsafe extern "C" fn trampoline(t: *mut sys::ggml_tensor, ask: bool, user: *mut c_void) -> bool {
    // SAFETY: user is the boxed slot of the context that is decoding; nothing else borrows it during the call.
    let slot = unsafe { &mut *user.cast::<CallbackSlot>() };
    if slot.tap.is_none() && !slot.stands_in {
        return !ask;
    }
    if slot.panic.is_some() {
        return false;
    }
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: armed by decode_inner with a tap that outlives the decode.
        let tap = slot.tap.map(|tap| unsafe { &mut *tap });
        // SAFETY: llama.cpp offers live tensors.
        let node = unsafe { Node::from_raw(t, &slot.model) };
        if !ask {
            if slot.taken.take_if(|id| *id == node.id()).is_some() {
                // SAFETY: a node of the graph that this thread runs; workers wait for it.
                unsafe { (*t).flags |= COMPUTE };
                if let Some(Err(reason)) = slot.kernel_override.as_mut().map(|s| s.compute(&node, &slot.pool)) {
                    slot.panic = Some(reason);
                    return false;
                }
            }
            return tap.filter(|_| slot.tap_wants).is_none_or(|tap| tap.computed(&node));
        }
        slot.tap_wants = false;
        if slot.skipped.remove(&node.id()) {
            // SAFETY: a node offered to be computed, by the one thread that runs the decode; workers wait for it.
            unsafe { (*t).flags |= COMPUTE };
            slot.repeated = true;
        }
        if let Some(tap) = tap {
            slot.tap_wants = tap.wants(&node);
            if node.is_computed() && !slot.repeated && tap.skips(&node) {
                // SAFETY: as above. Every backend passes over nodes without this flag.
                unsafe { (*t).flags &= !COMPUTE };
                slot.skipped.insert(node.id());
            }
        }
        // Once the batch is given up, ggml's own abort decides what is computed still.
        if slot.stands_in && !slot.stopped && slot.kernel_override.as_mut().is_some_and(|s| s.takes(&node)) {
            // SAFETY: as above; set again when llama.cpp comes back with the node.
            unsafe { (*t).flags &= !COMPUTE };
            slot.taken = Some(node.id());
            return true;
        }
        slot.tap_wants
    }));
    match outcome {
        Ok(wanted) if ask => {
            if slot.stopped && slot.tap_wants {
                slot.last_wanted.get_or_insert(NodeId(t as usize));
            }
            wanted
        }
        Ok(false) if slot.gives_up => {
            // llama.cpp goes on to the next node, and gives up behind it.
            slot.stopped = true;
            true
        }
        Ok(answer) => answer,
        Err(payload) => {
            let text = payload
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| payload.downcast_ref::<&str>().map(|s| (*s).to_owned()))
                .unwrap_or_else(|| "panic".into());
            slot.panic = Some(text);
            // On the asking call, true makes llama.cpp come back after this node, where false stops the graph.
            ask
        }
    }
}

/// The function that ggml asks behind each node whether to give up.
pub(super) unsafe extern "C" fn gives_up(user: *mut c_void) -> bool {
    // SAFETY: user is the boxed slot of the context that is decoding. ggml asks on the thread that decodes, between its
    // calls of the trampoline.
    let slot = unsafe { &*user.cast::<CallbackSlot>() };
    slot.stopped || slot.interrupt.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed))
}
