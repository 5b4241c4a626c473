//! A tensor of a graph, as a callback sees it.

use crate::llama::{DType, Model, sys};
use std::borrow::Cow;
use std::ffi::{CStr, c_void};
use std::sync::Arc;

/// ggml's flag of nodes that are computed.
pub(in crate::llama) const COMPUTE: i32 = sys::GGML_TENSOR_FLAG_COMPUTE as i32;

/// Identity of a tensor inside one graph. Names repeat in llama.cpp's graphs; addresses do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub usize);

impl NodeId {
    /// The tensor's address; the tensor itself lives as long as the graph that it was offered from.
    pub fn ptr(self) -> *mut sys::ggml_tensor {
        self.0 as *mut sys::ggml_tensor
    }
}

/// One tensor of a graph, alive during the callback that offers it.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    pub(in crate::llama) raw: *mut sys::ggml_tensor,
    pub(in crate::llama) model: &'a Arc<Model>,
}

impl<'a> Node<'a> {
    /// # Safety
    /// `raw` points to a tensor that stays alive for `'a`, of a graph of `model`.
    pub(in crate::llama) unsafe fn from_raw(raw: *mut sys::ggml_tensor, model: &'a Arc<Model>) -> Self {
        Self { raw, model }
    }

    /// ggml's tensor.
    pub(in crate::llama) fn t(&self) -> &sys::ggml_tensor {
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
