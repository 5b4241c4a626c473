//! The tap: every node of the graph that `llama_decode` runs, seen before and after it is computed.

use super::transposed::TransposedTensor;
use super::{FileTensor, LlamaError, Model, Pool, sys};
use std::borrow::Cow;
use std::collections::HashSet;
use std::ffi::{CStr, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Identity of a tensor inside one graph. Names repeat in llama.cpp's graphs; addresses do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub usize);

impl NodeId {
    /// The tensor's address; the tensor itself lives as long as the graph that it was offered from.
    pub fn ptr(self) -> *mut sys::ggml_tensor {
        self.0 as *mut sys::ggml_tensor
    }
}

/// Element type of a tensor (ggml's number).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DType(pub sys::ggml_type);

impl DType {
    /// 32-bit float.
    pub const F32: Self = Self(sys::GGML_TYPE_F32);
    /// 16-bit float.
    pub const F16: Self = Self(sys::GGML_TYPE_F16);
    /// 32-bit integer.
    pub const I32: Self = Self(sys::GGML_TYPE_I32);
    /// 64-bit integer.
    pub const I64: Self = Self(sys::GGML_TYPE_I64);

    /// ggml's name, for example `q4_1`.
    pub fn name(self) -> String {
        // SAFETY: ggml answers every value of the enum with a static string.
        unsafe { CStr::from_ptr(sys::ggml_type_name(self.0)) }.to_string_lossy().into_owned()
    }

    /// Bytes of `n` elements in a row (`n` a multiple of the type's block).
    pub fn row_bytes(self, n: usize) -> usize {
        // SAFETY: pure arithmetic on the type's traits.
        unsafe { sys::ggml_row_size(self.0, n as i64) }
    }

    /// Elements in one block of the type (1 for plain types).
    pub fn block(self) -> usize {
        // SAFETY: as above.
        unsafe { sys::ggml_blck_size(self.0) as usize }
    }

    /// True for block-quantized types.
    pub fn is_quantized(self) -> bool {
        // SAFETY: as above.
        unsafe { sys::ggml_is_quantized(self.0) }
    }
}

/// One tensor of a graph, alive during the callback that offers it.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    raw: *mut sys::ggml_tensor,
    model: &'a Arc<Model>,
}

/// A tensor of a model, kept together with the model it belongs to.
#[derive(Debug, Clone)]
pub struct Weight {
    raw: *mut sys::ggml_tensor,
    model: Arc<Model>,
    plain: Option<Arc<FileTensor>>,
    /// Keeps the tensor alive, where it is a transposed copy.
    _transposed: Option<Arc<TransposedTensor>>,
}

impl Weight {
    /// The tensor, to be read.
    pub fn node(&self) -> Node<'_> {
        Node { raw: self.raw, model: &self.model }
    }

    /// Makes sure that the CPU can read the weight as it lies in the file: where llama.cpp keeps it in another form or
    /// memory, a copy of it is read.
    ///
    /// # Errors
    /// As [`FileTensor::load`].
    pub fn make_plain(&mut self) -> Result<(), LlamaError> {
        let node = self.node();
        if !node.is_host() && self.plain.is_none() {
            self.plain = Some(self.model.plain(&node.name(), node.dtype(), node.ne())?);
        }
        Ok(())
    }

    /// The device whose memory holds the weight; None where that is the CPU's.
    pub fn device(&self) -> Option<sys::ggml_backend_dev_t> {
        let node = self.node();
        if node.is_host() || node.t().buffer.is_null() {
            return None;
        }
        // SAFETY: a live buffer; its type and device live forever.
        unsafe {
            let device = sys::ggml_backend_buft_get_device(sys::ggml_backend_buffer_get_type(node.t().buffer));
            let kind = if device.is_null() { return None } else { sys::ggml_backend_dev_type(device) };
            (kind != sys::GGML_BACKEND_DEVICE_TYPE_CPU && kind != sys::GGML_BACKEND_DEVICE_TYPE_ACCEL).then_some(device)
        }
    }

    /// ggml's name of [`Weight::device`].
    pub fn device_name(&self) -> Option<String> {
        self.device().map(super::device::device_name)
    }

    /// The first of `types` in which the weight's device multiplies by its transpose; None for a weight in the CPU's memory.
    ///
    /// # Errors
    /// [`LlamaError::Device`] where it does in none.
    pub fn transposed_type(&self, types: &[DType]) -> Result<Option<DType>, LlamaError> {
        self.device().map(|device| TransposedTensor::choose(self.node().ne(), device, types)).transpose()
    }

    /// True if the transposed copy in this type is there.
    pub fn has_transposed(&self, kind: DType) -> bool {
        self.model.has_transposed(&self.node().name(), kind)
    }

    /// The transposed copy of the weight on its device, as `kind`, as a weight; None for a weight in the CPU's memory.
    ///
    /// # Errors
    /// [`LlamaError::Device`] where the device has no room, and what reading the file gives.
    pub fn transposed(&self, kind: DType) -> Result<Option<Self>, LlamaError> {
        let Some(device) = self.device() else { return Ok(None) };
        let node = self.node();
        let copy = self.model.transposed(&node.name(), node.dtype(), node.ne(), device, kind)?;
        Ok(Some(Self { raw: copy.raw(), model: Arc::clone(&self.model), plain: None, _transposed: Some(copy) }))
    }

    /// The weight's tensor as it lies in the file, None where the CPU cannot read it and [`Weight::make_plain`] was not
    /// called.
    pub fn plain_ptr(&self) -> Option<*mut sys::ggml_tensor> {
        match &self.plain {
            Some(plain) => Some(plain.raw()),
            None => self.node().is_host().then_some(self.raw),
        }
    }
}

impl<'a> Node<'a> {
    /// # Safety
    /// `raw` points to a tensor that stays alive for `'a`, of a graph of `model`.
    unsafe fn from_raw(raw: *mut sys::ggml_tensor, model: &'a Arc<Model>) -> Self {
        Self { raw, model }
    }

    /// The tensor as a weight that outlives the graph, if it is one of the model's.
    pub fn weight(&self) -> Option<Weight> {
        (self.is_leaf() && self.is_weight()).then(|| Weight {
            raw: self.raw,
            model: Arc::clone(self.model),
            plain: None,
            _transposed: None,
        })
    }

    fn t(&self) -> &sys::ggml_tensor {
        // SAFETY: by the contract of from_raw the tensor is alive.
        unsafe { &*self.raw }
    }

    /// Identity inside the graph.
    pub fn id(&self) -> NodeId {
        NodeId(self.raw as usize)
    }

    /// The tensor's name (not unique).
    pub fn name(&self) -> String {
        // SAFETY: ggml keeps names NUL-terminated.
        unsafe { CStr::from_ptr(self.t().name.as_ptr()) }.to_string_lossy().into_owned()
    }

    /// The block whose output this is, by llama.cpp's name for it: `l_out-N`. A name may be of several nodes (views); see
    /// [`Node::is_computed`].
    pub fn block_output(&self) -> Option<usize> {
        let name = &self.t().name;
        let digits = name.iter().zip(b"l_out-").all(|(&c, &want)| c as u8 == want).then_some(&name[6..])?;
        let mut n = None;
        for &c in digits.iter().take_while(|&&c| c != 0) {
            let digit = (c as u8).is_ascii_digit().then_some(usize::from(c as u8) - usize::from(b'0'))?;
            n = Some(n.unwrap_or(0) * 10 + digit);
        }
        n
    }

    /// ggml's operation number.
    pub fn op(&self) -> u32 {
        self.t().op
    }

    /// The operation's name, for example `MUL_MAT`; unary and gated ops give their own (`GELU`, `SWIGLU`).
    pub fn op_name(&self) -> &'static str {
        // SAFETY: ggml answers with a static string.
        unsafe { CStr::from_ptr(sys::ggml_op_desc(self.raw)) }.to_str().unwrap_or("unknown")
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        DType(self.t().type_)
    }

    /// Elements along each dimension, fastest first.
    pub fn ne(&self) -> [usize; 4] {
        self.t().ne.map(|n| n as usize)
    }

    /// Stride in bytes along each dimension.
    pub fn nb(&self) -> [usize; 4] {
        self.t().nb
    }

    /// The operation's parameters.
    pub fn params(&self) -> [i32; 16] {
        self.t().op_params
    }

    /// Source `i`, if there is one.
    pub fn src(&self, i: usize) -> Option<Node<'a>> {
        let p = *self.t().src.get(i)?;
        // SAFETY: a graph's sources live as long as the graph.
        (!p.is_null()).then(|| unsafe { Node::from_raw(p, self.model) })
    }

    /// The tensor this one is a view of.
    pub fn view_src(&self) -> Option<Node<'a>> {
        let p = self.t().view_src;
        // SAFETY: as above.
        (!p.is_null()).then(|| unsafe { Node::from_raw(p, self.model) })
    }

    /// Offset in bytes into [`Node::view_src`].
    pub fn view_offset(&self) -> usize {
        self.t().view_offs
    }

    /// True if ggml computes this node (llama.cpp's graphs also hold nodes that nobody needs).
    pub fn is_computed(&self) -> bool {
        self.t().flags & COMPUTE != 0
    }

    /// True for a tensor that no operation makes: a weight, an input or a cache.
    pub fn is_leaf(&self) -> bool {
        self.t().op == sys::GGML_OP_NONE && self.t().view_src.is_null()
    }

    /// True for a leaf that llama.cpp fills for each batch: positions, masks, row numbers.
    pub fn is_input(&self) -> bool {
        self.t().flags & sys::GGML_TENSOR_FLAG_INPUT as i32 != 0
    }

    /// True if the tensor lies in a buffer that holds weights.
    pub fn is_weight(&self) -> bool {
        let buffer = self.t().buffer;
        // SAFETY: a non-null buffer of a live tensor is alive.
        !buffer.is_null()
            && unsafe { sys::ggml_backend_buffer_get_usage(buffer) == sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS }
    }

    /// True if the tensor's elements can be read through a pointer by the CPU.
    pub fn is_host(&self) -> bool {
        let buffer = self.t().buffer;
        // SAFETY: as above.
        !self.t().data.is_null() && !buffer.is_null() && unsafe { sys::ggml_backend_buffer_is_host(buffer) }
    }

    /// Number of bytes the tensor spans.
    pub fn n_bytes(&self) -> usize {
        // SAFETY: pure arithmetic on the tensor's shape.
        unsafe { sys::ggml_nbytes(self.raw) }
    }

    /// Copies the tensor's bytes out of wherever they lie.
    pub fn read_bytes(&self) -> Vec<u8> {
        let mut out = vec![0u8; self.n_bytes()];
        assert!(!self.t().data.is_null(), "tensor {} has no data yet", self.name());
        // SAFETY: out holds n_bytes; the tensor's data is allocated.
        unsafe { sys::ggml_backend_tensor_get(self.raw, out.as_mut_ptr().cast::<c_void>(), 0, out.len()) };
        out
    }

    /// Copies an F32 tensor out, `ne[0]` fastest; contiguous tensors only.
    pub fn read_f32(&self) -> Vec<f32> {
        assert_eq!(self.dtype(), DType::F32, "tensor {} is not F32", self.name());
        assert!(!self.t().data.is_null(), "tensor {} has no data yet", self.name());
        let mut out = vec![0f32; self.n_bytes() / 4];
        // SAFETY: out holds as many bytes; the tensor's data is allocated; ggml runs on little-endian machines.
        unsafe { sys::ggml_backend_tensor_get(self.raw, out.as_mut_ptr().cast::<c_void>(), 0, out.len() * 4) };
        out
    }

    /// The elements of an F32 tensor, `ne[0]` fastest, in place where the CPU can read them there; contiguous tensors only.
    pub fn f32s(&self) -> Cow<'_, [f32]> {
        assert_eq!(self.dtype(), DType::F32, "tensor {} is not F32", self.name());
        if !self.is_host() {
            return Cow::Owned(self.read_f32());
        }
        // SAFETY: n_bytes of floats in host memory, which nothing writes while the node is being looked at.
        Cow::Borrowed(unsafe { std::slice::from_raw_parts(self.t().data.cast::<f32>(), self.n_bytes() / 4) })
    }

    /// Adds F32 values to elements of the tensor, from element `offset` on.
    pub fn add_f32(&self, offset: usize, values: &[f32]) {
        assert_eq!(self.dtype(), DType::F32, "tensor {} is not F32", self.name());
        assert!((offset + values.len()) * 4 <= self.n_bytes(), "write past the end of tensor {}", self.name());
        let mut sum = vec![0f32; values.len()];
        // SAFETY: the range was checked; sum holds as many bytes.
        unsafe { sys::ggml_backend_tensor_get(self.raw, sum.as_mut_ptr().cast::<c_void>(), offset * 4, sum.len() * 4) };
        sum.iter_mut().zip(values).for_each(|(x, v)| *x += v);
        self.write_f32(offset, &sum);
    }

    /// Writes F32 values over the start of the tensor, at element `offset`.
    pub fn write_f32(&self, offset: usize, values: &[f32]) {
        assert!(!self.is_weight(), "tensor {} is a weight: it belongs to the file", self.name());
        assert!((offset + values.len()) * 4 <= self.n_bytes(), "write past the end of tensor {}", self.name());
        // SAFETY: the range was checked; values is valid for its length.
        unsafe {
            sys::ggml_backend_tensor_set(self.raw, values.as_ptr().cast::<c_void>(), offset * 4, values.len() * 4);
        }
    }
}

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

const COMPUTE: i32 = sys::GGML_TENSOR_FLAG_COMPUTE as i32;

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
