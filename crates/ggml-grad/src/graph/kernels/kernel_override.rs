//! bidpo's kernels in llama.cpp's own graphs: the matmuls of [`super::products::int8`], bit-exact with ggml, and [`super::attention`] in
//! the place of llama.cpp's fused attention, in F32 and without the keys that the mask hides (most keys, where many questions
//! share a cache).

use super::products::activations::{self, Layout};
use super::products::int8;
use super::{attention, cpu};
use crate::llama::{DType, KernelOverride, Node, NodeId, Pool, sys};
use std::ffi::c_void;

/// Least number of columns for which unpacking a weight pays.
const COLUMNS: usize = 8;

/// Overrides llama.cpp's matmuls with weights that `quants` unpacks, and, if asked, its fused attention.
pub struct FastKernels {
    /// Quantized activations.
    packed: Vec<Line>,
    /// The tensor they were made from, and the type of the weight. Consecutive matmuls share them.
    packed_from: Option<(NodeId, sys::ggml_type)>,
    /// For the tensors of a graph of two nodes.
    arena: Vec<Line>,
    work: Vec<Line>,
    /// State of fused attention: computed too, and whether an unsupported one was met.
    attends: bool,
    refused: bool,
}

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// At least so many bytes.
fn bytes(lines: &mut Vec<Line>, n: usize) -> *mut c_void {
    if lines.len() * 64 < n {
        lines.resize(n.div_ceil(64), Line([0; 64]));
    }
    lines.as_mut_ptr().cast()
}

impl FastKernels {
    /// An override of matmuls, bit-exact with ggml. None where this CPU lacks the instructions.
    pub fn if_supported() -> Option<Box<dyn KernelOverride>> {
        Self::made(false)
    }

    /// The same with attention, for contexts with llama.cpp's fused attention and a cache in F32. A model with an attention
    /// of another kind is refused at the first token ([`KernelOverride::refused`]).
    pub fn with_attention() -> Option<Box<dyn KernelOverride>> {
        Self::made(true)
    }

    fn made(attends: bool) -> Option<Box<dyn KernelOverride>> {
        let made = || -> Box<dyn KernelOverride> {
            let (packed, arena, work) = (Vec::new(), Vec::new(), Vec::new());
            Box::new(Self { packed, packed_from: None, arena, work, attends, refused: false })
        };
        cpu::level().has_int8().then(made)
    }
}

/// A tensor, or what it is a copy of in another type: llama.cpp rounds keys and values of a cache in F32 to 16 bits before its
/// fused attention. The source of that copy is the cache itself.
fn before_rounding<'a>(t: Node<'a>) -> Node<'a> {
    match t.src(0) {
        Some(from) if t.op() == sys::GGML_OP_CPY && from.ne() == t.ne() => from,
        _ => t,
    }
}

/// The sources of a fused attention: queries, keys, values, mask.
fn attention_sources<'a>(node: &Node<'a>) -> Option<[Node<'a>; 4]> {
    Some([node.src(0)?, before_rounding(node.src(1)?), before_rounding(node.src(2)?), node.src(3)?])
}

/// True for a fused attention that bidpo's kernels compute.
fn is_our_attention(node: &Node<'_>) -> bool {
    let Some([q, k, v, mask]) = attention_sources(node) else { return false };
    let [_, max_bias, softcap] = attention::fused_params(node.params());
    let (nq, nk, nv, nm) = (q.ne(), k.ne(), v.ne(), mask.ne());
    let floats = [&q, &k, &v, node].into_iter().all(|t| t.dtype() == DType::F32 && t.nb()[0] == 4 && t.is_host());
    floats
        && node.src(4).is_none()
        && max_bias == 0.0
        && softcap == 0.0
        && nq[3] * nk[3] == 1
        && nk[1..] == nv[1..]
        && nq[2].is_multiple_of(nk[2])
        && mask.dtype() == DType::F16
        && mask.is_host()
        && nm[1] >= nq[1]
        && nm[2] * nm[3] == 1
        && is_contiguous(node)
        && attention::supports(nq[0], nv[0], nk[1], nm[0])
}

/// Graphs of two or three nodes.
struct Small(*mut sys::ggml_context);

impl Small {
    /// # Safety
    /// `arena` outlives the context.
    unsafe fn new(arena: &mut Vec<Line>) -> Result<Self, String> {
        // SAFETY: ggml's own functions say how much memory is needed.
        unsafe {
            let size = 8 * sys::ggml_tensor_overhead() + sys::ggml_graph_overhead_custom(8, false);
            let ctx = sys::ggml_init(sys::ggml_init_params {
                mem_size: size,
                mem_buffer: bytes(arena, size),
                no_alloc: true,
            });
            if ctx.is_null() { Err("no memory for a few tensors".into()) } else { Ok(Self(ctx)) }
        }
    }

    /// A new leaf on the memory of a tensor of llama.cpp's, whose own sources must not become part of the graph.
    unsafe fn leaf(&self, theirs: *const sys::ggml_tensor) -> *mut sys::ggml_tensor {
        // SAFETY: the tensor is alive.
        unsafe {
            let ours = sys::ggml_new_tensor(self.0, (*theirs).type_, 4, (*theirs).ne.as_ptr());
            ((*ours).nb, (*ours).data) = ((*theirs).nb, (*theirs).data);
            ours
        }
    }

    /// A node with the shape and the memory of theirs.
    unsafe fn node(
        &self,
        theirs: *const sys::ggml_tensor,
        src: &mut [*mut sys::ggml_tensor],
        run: sys::ggml_custom_op_t,
        task: *mut c_void,
    ) -> *mut sys::ggml_tensor {
        // SAFETY: live tensors.
        unsafe {
            let ([a, b, c, d], n) = ((*theirs).ne, src.len() as i32);
            let ours = sys::ggml_custom_4d(self.0, sys::GGML_TYPE_F32, a, b, c, d, src.as_mut_ptr(), n, run, -1, task);
            (*ours).data = (*theirs).data;
            ours
        }
    }

    /// Computes what leads to a node.
    unsafe fn run(self, node: *mut sys::ggml_tensor, work: &mut Vec<Line>, pool: &Pool) -> Result<(), String> {
        // SAFETY: all tensors have memory.
        unsafe {
            let graph = sys::ggml_new_graph_custom(self.0, 8, false);
            sys::ggml_build_forward_expand(graph, node);
            let mut plan = sys::ggml_graph_plan(graph, pool.n_threads() as i32, pool.raw());
            plan.work_data = bytes(work, plan.work_size).cast();
            let status = sys::ggml_graph_compute(graph, &raw mut plan);
            if status == sys::GGML_STATUS_SUCCESS { Ok(()) } else { Err(format!("ggml failed with status {status}")) }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // SAFETY: freed once.
        unsafe { sys::ggml_free(self.0) };
    }
}

/// Rows one behind the other, without gaps.
fn is_contiguous(node: &Node<'_>) -> bool {
    let (ne, nb) = (node.ne(), node.nb());
    nb[0] == 4 && (1..4).all(|i| ne[i] == 1 || nb[i] == nb[i - 1] * ne[i - 1])
}

impl KernelOverride for FastKernels {
    fn least_tokens(&self) -> usize {
        // ggml's fused attention rounds more than ours does: not now one, now the other.
        if self.attends { 1 } else { COLUMNS }
    }

    fn refused(&self) -> bool {
        self.refused
    }

    fn takes(&mut self, node: &Node<'_>) -> bool {
        // About to be computed (again, where llama.cpp runs a batch in several passes): the quantized activations are outdated.
        self.packed_from.take_if(|(from, _)| *from == node.id());
        if self.attends && node.op() == sys::GGML_OP_FLASH_ATTN_EXT {
            let ours = is_our_attention(node);
            self.refused |= !ours;
            return ours && node.is_computed();
        }
        if node.op() != sys::GGML_OP_MUL_MAT || !node.is_computed() || node.dtype() != DType::F32 {
            return false;
        }
        let (Some(w), Some(x)) = (node.src(0), node.src(1)) else { return false };
        let ne = x.ne();
        int8::has_exact(w.dtype().0)
            && w.is_leaf()
            && w.is_weight()
            && w.is_host()
            && w.ne()[2] * w.ne()[3] == 1
            && ne[1] * ne[2] * ne[3] >= COLUMNS
            && x.dtype() == DType::F32
            && [&x, node].into_iter().all(|t| t.is_host() && is_contiguous(t))
    }

    fn compute(&mut self, node: &Node<'_>, pool: &Pool) -> Result<(), String> {
        // SAFETY: `takes` saw that the sources are in host memory and of types and shapes that the kernels take, and llama.cpp
        // that they are ready. Tensors and graph live in `arena` until the context is freed; the buffers are as large as ggml
        // and `packed_bytes` say.
        unsafe {
            let t = node.id().ptr();
            let small = Small::new(&mut self.arena)?;
            if (*t).op == sys::GGML_OP_FLASH_ATTN_EXT {
                let [scale, ..] = attention::fused_params((*t).op_params);
                let sources = attention_sources(node).ok_or("an attention without sources")?;
                let mut src = sources.map(|s| small.leaf(s.id().ptr()));
                let result = small.node(t, &mut src, Some(attention::fused), attention::task(scale));
                return small.run(result, &mut self.work, pool);
            }
            let (theirs_w, theirs_x) = ((*t).src[0], (*t).src[1]);
            let (kind, [k, a, b, c]) = ((*theirs_w).type_, (*theirs_x).ne.map(|n| n as usize));
            let n_bytes = activations::packed_bytes(kind, Layout::Pairs, k, a * b * c).ok_or("no such format")?;
            let (w, x) = (small.leaf(theirs_w), small.leaf(theirs_x));
            let from = Some((NodeId(theirs_x as usize), kind));
            let packed = if self.packed_from == from {
                sys::ggml_new_tensor_1d(small.0, sys::GGML_TYPE_I8, n_bytes as i64)
            } else {
                let (mut src, task) = (x, activations::pack_task(kind, Layout::Pairs));
                let run = Some(activations::pack as _);
                sys::ggml_custom_4d(small.0, sys::GGML_TYPE_I8, n_bytes as i64, 1, 1, 1, &raw mut src, 1, run, -1, task)
            };
            (*packed).data = bytes(&mut self.packed, n_bytes);
            let product = small.node(t, &mut [w, packed], Some(int8::exact), std::ptr::null_mut());
            // A leaf (the embeddings, say) is not offered before it changes.
            self.packed_from = from.filter(|_| (*theirs_x).op != sys::GGML_OP_NONE);
            small.run(product, &mut self.work, pool)
        }
    }
}
